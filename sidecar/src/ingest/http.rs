//! `POST /v1/rating` and `POST /v1/ratings`, and the schemas of what they take.
//!
//! Order of refusal: too busy (503), who (401, 403), what kind (415), how long (413, 408), what it
//! says (400 when it is no JSON, 422 when a field is at fault). A body is not read before the
//! poster is known.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::{Body, Bytes},
    extract::State,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, SemaphorePermit},
    time::{Instant, timeout_at},
};
use tower_merit::Problem;

use super::{
    Accepted, Ingest, Refusal,
    accept::idempotency_key,
    batch::{self, Form},
    cloud_events::{self, Event},
    schema,
};
use crate::rating::{RatingId, RatingRequest};

/// The longest piece of a refused header that an answer repeats, in characters.
const SHOWN_MAX: usize = 60;

impl Ingest {
    /// Returns the routes of the ingest listener.
    pub fn router(self) -> Router {
        Router::new()
            .route("/v1/rating", post(one))
            .route("/v1/ratings", post(many))
            .route("/v1/schema/{format}", get(schema::of))
            .fallback(async || {
                refuse(StatusCode::NOT_FOUND, "ratings go to /v1/rating or /v1/ratings")
            })
            .method_not_allowed_fallback(async || {
                refuse(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "ratings are sent with POST, schemas are read with GET",
                )
            })
            .with_state(self)
    }

    /// Answers within the deadline, counts and times.
    async fn answer(&self, outcome: impl Future<Output = Result<Response, Refusal>>) -> Response {
        let began = Instant::now();
        let response = outcome.await.unwrap_or_else(|refusal| {
            self.inner.meter.refused(&refusal);
            refusal.into_response()
        });
        self.inner.meter.seconds.record(began.elapsed());
        response
    }
}

async fn one(State(ingest): State<Ingest>, request: Request<Body>) -> Response {
    let inner = Arc::clone(&ingest.inner);
    let outcome = async {
        let _permit = permit(&inner.in_flight)?;
        let deadline = Instant::now() + inner.config.timeout;
        let rater = ingest.identify(&request).await?;
        let (name, form) = form_of_one(request.headers())?;
        let max = inner.config.max_body_bytes;
        let body = read(request, max, deadline, &ingest).await?;
        let asked = match form {
            One::Rating => RatingRequest::from_json(&body)?,
            One::DataOf(event) => event.asks(&body)?,
            One::Event => Event::read(&body)?,
        };
        let rating = ingest.allow(&rater, name, asked)?;
        let accepted = ingest.publish(rating, deadline).await?;
        Ok((StatusCode::ACCEPTED, Json(accepted.to_json())).into_response())
    };
    ingest.answer(outcome).await
}

async fn many(State(ingest): State<Ingest>, request: Request<Body>) -> Response {
    let inner = Arc::clone(&ingest.inner);
    let outcome = async {
        let _permit = permit(&inner.in_flight)?;
        let deadline = Instant::now() + inner.config.timeout;
        let rater = ingest.identify(&request).await?;
        let _batch = inner.batches.take(&rater)?;
        if idempotency_key(request.headers())?.is_some() {
            let problem = "names one rating; in a batch give every item its own `id`".to_owned();
            return Err(Refusal::IdempotencyKey { problem });
        }
        let form = match media_type(request.headers())?.as_str() {
            "application/x-ndjson" => Form::Lines,
            cloud_events::MANY => Form::Events,
            cloud_events::ONE => {
                return Err(other_media_type(request.headers(), cloud_events::MANY));
            }
            kind if is_json(kind) => Form::Array,
            _ => {
                let expected = "application/json or application/x-ndjson";
                return Err(other_media_type(request.headers(), expected));
            }
        };
        let max = inner.config.max_batch_bytes;
        let body = read(request, max, deadline, &ingest).await?;
        let items = batch::split(&body, form, inner.config.max_batch)?;
        let outcomes = batch::take(&ingest, &rater, (form, &items), deadline).await;
        outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).for_each(|refusal| {
            inner.meter.refused(refusal);
        });
        Ok(batch::answer(&outcomes))
    };
    ingest.answer(outcome).await
}

/// What the body of one rating is.
enum One {
    Rating,
    /// The data of an event whose attributes are in the head.
    DataOf(Event),
    /// An event with its data.
    Event,
}

/// Returns what the body is, and the name that the head gives the rating.
fn form_of_one(head: &HeaderMap) -> Result<(Option<RatingId>, One), Refusal> {
    let name = idempotency_key(head)?;
    let form = match media_type(head)?.as_str() {
        cloud_events::ONE => One::Event,
        cloud_events::MANY => return Err(other_media_type(head, cloud_events::ONE)),
        kind if is_json(kind) => match Event::in_head(head)? {
            Some(event) => One::DataOf(event),
            None => One::Rating,
        },
        _ => return Err(other_media_type(head, "application/json")),
    };
    match (&name, &form) {
        (Some(_), One::DataOf(_) | One::Event) => {
            let problem = "names what `id` and `source` of a CloudEvent name; leave it out";
            Err(Refusal::IdempotencyKey { problem: problem.to_owned() })
        }
        _ => Ok((name, form)),
    }
}

impl Accepted {
    /// Returns what the poster reads.
    pub(super) fn to_json(&self) -> Value {
        let mut answer = match self.moves_a_limit {
            true => json!({ "id": self.id.as_str() }),
            false => json!({
                "id": self.id.as_str(),
                "moves": null,
                "note": "names no agent, so it moves no limit; it counts for personalised ratings",
            }),
        };
        if let Some(receipted) = self.receipted {
            answer["receipted"] = receipted.into();
        }
        answer
    }
}

pub(super) fn refuse(status: StatusCode, detail: &str) -> Response {
    Problem::new(status, detail).into_response().map(Body::from)
}

pub(super) fn permit(semaphore: &Semaphore) -> Result<SemaphorePermit<'_>, Refusal> {
    semaphore.try_acquire().map_err(|_| Refusal::Busy)
}

/// Returns the media type in lower case without its parameters; empty when there is none. A body
/// that is encoded is refused.
fn media_type(headers: &HeaderMap) -> Result<String, Refusal> {
    let encoding = headers.get(header::CONTENT_ENCODING);
    if encoding.is_some_and(|encoding| !encoding.as_bytes().eq_ignore_ascii_case(b"identity")) {
        return Err(Refusal::Encoding);
    }
    let text = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = text.unwrap_or_default().split(';').next().unwrap_or_default();
    Ok(kind.trim().to_ascii_lowercase())
}

pub(super) fn is_json(media_type: &str) -> bool {
    let Some(subtype) = media_type.strip_prefix("application/") else { return false };
    subtype == "json" || subtype.strip_suffix("+json").is_some_and(|name| !name.is_empty())
}

fn other_media_type(headers: &HeaderMap, expected: &'static str) -> Refusal {
    let found = match headers.get(header::CONTENT_TYPE) {
        None => "missing".to_owned(),
        Some(value) => {
            let text = String::from_utf8_lossy(value.as_bytes());
            let shown: String = text.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect();
            format!("`{shown}`")
        }
    };
    Refusal::MediaType { expected, found }
}

/// Reads a body of at most `max` bytes; one that announces more is not read at all.
async fn read(
    request: Request<Body>,
    max: usize,
    deadline: Instant,
    ingest: &Ingest,
) -> Result<Bytes, Refusal> {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let announced = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > max as u64) {
        return Err(Refusal::TooLarge { max });
    }
    let body = Limited::new(request.into_body(), max).collect();
    match timeout_at(deadline, body).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Refusal::TooLarge { max }),
        Ok(Err(_)) => Err(Refusal::BrokenOff),
        Err(_) => Err(Refusal::Slow(ingest.inner.config.timeout)),
    }
}

#[cfg(test)]
mod tests;
