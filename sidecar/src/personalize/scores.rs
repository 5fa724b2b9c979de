//! `GET /v1/rating/{item_id}`, `GET /v1/ratings` and `GET /v1/items/{item_id}`.
//!
//! 1. A personal score is private and short-lived; caches keep it by who asked (`Vary: Authorization`).
//! 2. An item's popularity is the same for everybody: public, and long-lived.
//! 3. Every answer has a weak ETag of what it says (the time aside), and `If-None-Match` is answered with
//!    304.

use aws_lc_rs::digest::{SHA256, digest};
use axum::{
    Router,
    body::Body,
    extract::{FromRequestParts as _, Path, Query, State},
    response::Response,
    routing::get,
};
use http::{HeaderMap, HeaderValue, Request, StatusCode, header, request::Parts};
use serde::Serialize;

use super::{
    Config, Personalized, Viewers,
    model::Key,
    viewers::{Refused, allowed},
};
use crate::{
    clock::unix_ms,
    rating::{ItemId, UserId},
};

/// Digits of a score after the point: what is below says nothing, and would spoil ETags.
const SCORE_DIGITS: f64 = 1_000.0;
/// The longest `If-None-Match` that is looked at, in bytes.
const TAGS_MAX: usize = 4096;

#[derive(Clone, Debug)]
struct Scores {
    personalized: Personalized,
    viewers: Viewers,
    /// `Cache-Control` of scores and of items.
    personal: HeaderValue,
    public: HeaderValue,
    batch_max: usize,
}

/// A user's score for an item.
#[derive(Serialize)]
struct Score<'a> {
    user_id: &'a str,
    item_id: &'a str,
    /// 1 to 5.
    rating: f64,
    /// When it was computed, in Unix milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    timestamp: Option<u64>,
}

#[derive(Serialize)]
struct Item<'a> {
    item_id: &'a str,
    /// What somebody unknown is told, 1 to 5.
    rating: f64,
    /// Mean of its ratings; null when it has none.
    mean: Option<f64>,
    /// How many it has.
    ratings: u32,
}

impl Personalized {
    /// Returns the routes that tell scores, for the listener of ingest.
    pub fn router(&self, config: &Config, viewers: Viewers) -> Router {
        let control = |scope: &str, age: u64| {
            let text = format!("{scope}, max-age={age}");
            HeaderValue::from_str(&text).expect("letters and digits")
        };
        let scores = Scores {
            personalized: self.clone(),
            viewers,
            personal: control("private", config.max_age.as_secs()),
            public: control("public", config.item_max_age.as_secs()),
            batch_max: config.batch_max,
        };
        Router::new()
            .route("/v1/rating/{item_id}", get(one))
            .route("/v1/ratings", get(many))
            .route("/v1/items/{item_id}", get(item))
            .with_state(scores)
    }
}

/// Returns `score` as it is told.
pub(super) fn told(score: f64) -> f64 {
    (score * SCORE_DIGITS).round() / SCORE_DIGITS
}

async fn one(State(scores): State<Scores>, request: Request<Body>) -> Response {
    let outcome = async {
        let token = scores.viewers.token(&request).await?;
        let (mut parts, _) = request.into_parts();
        let item = item_in_path(&mut parts).await?;
        let asked = Asked::read(&mut parts).await?;
        if !asked.items.is_empty() {
            return Err(Refused::Invalid("item_id", "stands in the path; leave it out".into()));
        }
        let user = allowed(&token, asked.user.as_deref())?;
        let key = Key::item(item.as_str());
        let rating = told(scores.personalized.model().predict(Key::user(&user), key));
        let mut score = Score { user_id: &user, item_id: item.as_str(), rating, timestamp: None };
        let tag = tag(&score);
        score.timestamp = Some(unix_ms());
        Ok(scores.private(&parts.headers, tag, &score))
    };
    outcome.await.unwrap_or_else(Refused::into_response)
}

async fn many(State(scores): State<Scores>, request: Request<Body>) -> Response {
    let outcome = async {
        let token = scores.viewers.token(&request).await?;
        let (mut parts, _) = request.into_parts();
        let asked = Asked::read(&mut parts).await?;
        let user = allowed(&token, asked.user.as_deref())?;
        if !(1..=scores.batch_max).contains(&asked.items.len()) {
            let (max, found) = (scores.batch_max, asked.items.len());
            let problem = format!("must be given 1 to {max} times, is there {found} times");
            return Err(Refused::Invalid("item_id", problem));
        }
        let keys: Vec<Key> = asked.items.iter().map(|item| Key::item(item.as_str())).collect();
        let ratings: Vec<f64> = {
            let model = scores.personalized.model();
            let viewer = model.viewer(Key::user(&user));
            keys.into_iter().map(|key| told(model.score(viewer, key))).collect()
        };
        let list = |timestamp| -> Vec<Score<'_>> {
            let pairs = asked.items.iter().map(ItemId::as_str).zip(&ratings);
            pairs
                .map(|(item_id, &rating)| Score { user_id: &user, item_id, rating, timestamp })
                .collect()
        };
        let tag = tag(&list(None));
        let body = serde_json::json!({ "ratings": list(Some(unix_ms())) });
        Ok(scores.private(&parts.headers, tag, &body))
    };
    outcome.await.unwrap_or_else(Refused::into_response)
}

async fn item(State(scores): State<Scores>, request: Request<Body>) -> Response {
    let outcome = async {
        let (mut parts, _) = request.into_parts();
        let id = item_in_path(&mut parts).await?;
        let (known, mean) = {
            let model = scores.personalized.model();
            (model.popularity(Key::item(id.as_str())), model.mean())
        };
        let item = Item {
            item_id: id.as_str(),
            rating: told(known.map_or(mean, |known| known.score)),
            mean: known.map(|known| told(known.mean)),
            ratings: known.map_or(0, |known| known.ratings),
        };
        let tag = tag(&item);
        Ok(answer(&parts.headers, &tag, &scores.public, &item))
    };
    outcome.await.unwrap_or_else(Refused::into_response)
}

impl Scores {
    fn private(&self, head: &HeaderMap, tag: String, body: &impl Serialize) -> Response {
        let mut response = answer(head, &tag, &self.personal, body);
        let vary = HeaderValue::from_static("authorization");
        response.headers_mut().insert(header::VARY, vary);
        response
    }
}

async fn item_in_path(parts: &mut Parts) -> Result<ItemId, Refused> {
    let path = Path::<String>::from_request_parts(parts, &()).await;
    let Path(id) = path.map_err(|error| Refused::Invalid("item_id", error.body_text()))?;
    ItemId::new(&id).map_err(|error| Refused::Invalid("item_id", error.to_string()))
}

/// What the query asks for.
struct Asked {
    user: Option<String>,
    items: Vec<ItemId>,
}

impl Asked {
    async fn read(parts: &mut Parts) -> Result<Self, Refused> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(parts, &()).await;
        let Query(pairs) = query.map_err(|error| Refused::Invalid("query", error.body_text()))?;
        let mut asked = Self { user: None, items: Vec::new() };
        for (name, value) in pairs {
            match name.as_str() {
                "user_id" if asked.user.is_some() => {
                    return Err(Refused::Invalid("user_id", "is given twice; send it once".into()));
                }
                "user_id" => {
                    UserId::new(&value)
                        .map_err(|error| Refused::Invalid("user_id", error.to_string()))?;
                    asked.user = Some(value);
                }
                "item_id" => {
                    let item = ItemId::new(&value);
                    asked.items.push(
                        item.map_err(|error| Refused::Invalid("item_id", error.to_string()))?,
                    );
                }
                // Caches are told apart by parameters that we need not know.
                _ => {}
            }
        }
        Ok(asked)
    }
}

/// Returns a weak entity tag of what `says`.
fn tag(says: &impl Serialize) -> String {
    let body = serde_json::to_vec(says).expect("texts and finite numbers are JSON");
    let digest = digest(&SHA256, &body);
    let half = u64::from_le_bytes(digest.as_ref()[..8].try_into().expect("eight bytes"));
    format!("W/\"{half:016x}\"")
}

/// Returns the body with its tag and how long it may be kept; or 304 when the client has it.
fn answer(head: &HeaderMap, tag: &str, control: &HeaderValue, body: &impl Serialize) -> Response {
    let mut response = if has(head, tag) {
        let mut response = Response::new(Body::empty());
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        let body = serde_json::to_vec(body).expect("texts and finite numbers are JSON");
        let mut response = Response::new(Body::from(body));
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        // Ids may hold anything: no browser is to take this for a page.
        let nosniff = HeaderValue::from_static("nosniff");
        response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, nosniff);
        response
    };
    let headers = response.headers_mut();
    headers.insert(header::ETAG, HeaderValue::from_str(tag).expect("hexadecimal digits"));
    headers.insert(header::CACHE_CONTROL, control.clone());
    response
}

/// Returns whether `If-None-Match` names `tag`, compared weakly (RFC 9110 section 13.1.2).
fn has(head: &HeaderMap, tag: &str) -> bool {
    let opaque = |tag: &str| tag.trim().trim_start_matches("W/").to_owned();
    head.get_all(header::IF_NONE_MATCH).iter().any(|field| {
        let text = field.to_str().ok().filter(|text| text.len() <= TAGS_MAX).unwrap_or_default();
        text.split(',').any(|one| one.trim() == "*" || opaque(one) == opaque(tag))
    })
}

#[cfg(test)]
mod tests;
