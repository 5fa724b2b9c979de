//! `GET /events/personalized-rating` and `POST /events/ticket`, on the gateway's listener.
//!
//! They are Merit's own: no agent is charged for them, and nothing of them reaches the upstream.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, Bytes},
    extract::{FromRequestParts as _, Query, State},
    response::Response,
    routing::{get, post},
};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, header, request::Parts,
};
use metrics::counter;
use serde_json::json;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_merit::{Problem, identity::IdentityError};

use super::{
    Config, TICKET_LIFE, TicketError, Tickets,
    cursor::Cursor,
    stream::{Open, Stream, TooMany},
    tickets::Grant,
};
use crate::{
    clock::unix_time,
    personalize::{Personalized, Viewers, model::Key, viewers::Refused},
    quota::Quota,
    rating::{ItemId, UserId},
};

/// The field in which a browser says which event it had last.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Tells nginx and its like to pass on every piece at once.
const X_ACCEL_BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");
/// When to come back after there were too many streams, in seconds.
const RETRY_AFTER: u64 = 5;
/// How long a browser may remember what it may send, in seconds.
const PREFLIGHT_AGE: u64 = 600;

/// How many tickets a viewer may ask for at once on one node: so many open pages that connect again; and how many a
/// second then.
const TICKETS_BURST: u64 = 60;
const TICKETS_PER_SECOND: f64 = 1.0;

#[derive(Clone)]
struct Events {
    personalized: Personalized,
    viewers: Viewers,
    tickets: Tickets,
    config: Arc<Config>,
    open: Open,
    /// How often a viewer may ask for a ticket: each is a key in the store for a minute.
    asked: Arc<Option<Quota>>,
    stop: CancellationToken,
}

impl Personalized {
    /// Returns the routes of streams and tickets, for the gateway's listener. Streams end with `stop`.
    pub fn events(
        &self,
        config: &Config,
        viewers: Viewers,
        tickets: Tickets,
        stop: CancellationToken,
    ) -> Router {
        let events = Events {
            personalized: self.clone(),
            viewers,
            tickets,
            config: Arc::new(config.clone()),
            open: Open::default(),
            asked: Arc::new(Quota::new("ticket", TICKETS_PER_SECOND, TICKETS_BURST)),
            stop,
        };
        Router::new()
            .route("/events/personalized-rating", get(listen).options(preflight))
            .route("/events/ticket", post(issue).options(preflight))
            .with_state(events)
    }
}

/// Why no stream is opened and no ticket issued.
enum Refusal {
    /// The viewer, a parameter or the token.
    Viewer(Refused),
    /// The token names nobody: 403.
    NoSubject,
    /// The ticket is unknown, used or too old: 401.
    Ticket,
    /// Too many streams: 503, or 429 when they are the viewer's.
    TooMany(TooMany),
    /// Tickets cannot be kept now: 503.
    Tickets(TicketError),
    /// The viewer asks for too many: 429.
    Asked {
        /// When the next one is issued.
        retry_after: Duration,
    },
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Self {
        Self::Viewer(refused)
    }
}

impl Refusal {
    fn into_response(self) -> Response {
        let busy = |status, detail: String| {
            let mut response = Problem::new(status, detail).into_response().map(Body::from);
            response.headers_mut().insert(header::RETRY_AFTER, RETRY_AFTER.into());
            response
        };
        match self {
            Self::Viewer(refused) => refused.into_response(),
            Self::NoSubject => {
                let detail = "token has no `sub`, which names whose scores are told";
                Problem::new(StatusCode::FORBIDDEN, detail).into_response().map(Body::from)
            }
            Self::Ticket => {
                let reason = "the ticket is unknown, was used, or is older than a minute";
                let error = IdentityError::Unauthenticated { reason, presented: true };
                Refused::Unauthenticated(error).into_response()
            }
            Self::TooMany(TooMany::OfNode) => busy(
                StatusCode::SERVICE_UNAVAILABLE,
                "this node has as many streams as it may".to_owned(),
            ),
            Self::TooMany(TooMany::OfViewer) => busy(
                StatusCode::TOO_MANY_REQUESTS,
                "this viewer has as many streams on this node as it may: close one".to_owned(),
            ),
            Self::Asked { retry_after } => {
                let mut response = busy(
                    StatusCode::TOO_MANY_REQUESTS,
                    format!(
                        "a viewer may ask for {TICKETS_BURST} tickets at once and {TICKETS_PER_SECOND} a second then"
                    ),
                );
                let seconds = retry_after.as_millis().div_ceil(1_000).max(1);
                let seconds = u64::try_from(seconds).unwrap_or(RETRY_AFTER);
                response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
                response
            }
            Self::Tickets(error) => {
                let error = crate::causes::with_causes(&error);
                tracing::warn!(error, "no tickets for streams");
                busy(StatusCode::SERVICE_UNAVAILABLE, "tickets cannot be kept now".to_owned())
            }
        }
    }
}

async fn listen(State(events): State<Events>, request: Request<Body>) -> Response {
    let (parts, _) = request.into_parts();
    let origin = parts.headers.get(header::ORIGIN).cloned();
    let config = Arc::clone(&events.config);
    let response = events.listen(parts).await.unwrap_or_else(|refusal| {
        counter!("merit_events_refused_total").increment(1);
        refusal.into_response()
    });
    allow(&config, origin, response)
}

async fn issue(State(events): State<Events>, request: Request<Body>) -> Response {
    let origin = request.headers().get(header::ORIGIN).cloned();
    let outcome = async {
        let token = events.viewers.token(&request);
        drop(request);
        let token = token.await?;
        let viewer = token.subject.as_deref().ok_or(Refusal::NoSubject)?.to_owned();
        if let Some(asked) = &*events.asked {
            asked.take(&viewer).map_err(|retry_after| Refusal::Asked { retry_after })?;
        }
        let grant = Grant { viewer, expires_at: token.expires_at };
        let ticket = events.tickets.issue(&grant).await.map_err(Refusal::Tickets)?;
        let body = json!({"ticket": ticket, "expires_in": TICKET_LIFE.as_secs()}).to_string();
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = StatusCode::CREATED;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        Ok(response)
    };
    let response = outcome.await.unwrap_or_else(Refusal::into_response);
    allow(&events.config, origin, response)
}

/// Answers what a browser asks before it sends fields of its own (Fetch, "CORS-preflight").
async fn preflight(State(events): State<Events>, head: HeaderMap) -> Response {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::NO_CONTENT;
    let allowed = is_allowed(&events.config, head.get(header::ORIGIN));
    if allowed {
        let headers = response.headers_mut();
        let methods = HeaderValue::from_static("GET, POST");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let fields = HeaderValue::from_static("authorization, last-event-id, cache-control");
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, fields);
        headers.insert(header::ACCESS_CONTROL_MAX_AGE, PREFLIGHT_AGE.into());
    }
    allow(&events.config, head.get(header::ORIGIN).cloned(), response)
}

fn is_allowed(config: &Config, origin: Option<&HeaderValue>) -> bool {
    origin.is_some_and(|origin| config.allow_origins.iter().any(|allowed| origin == allowed))
}

/// Lets scripts of an allowed origin read `response`.
fn allow(config: &Config, origin: Option<HeaderValue>, mut response: Response) -> Response {
    let headers = response.headers_mut();
    if !config.allow_origins.is_empty() {
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    if is_allowed(config, origin.as_ref())
        && let Some(origin) = origin
    {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    }
    response
}

/// What a stream is asked for.
#[derive(Default)]
struct Asked {
    ticket: Option<String>,
    last: Option<String>,
    items: Vec<String>,
}

impl Asked {
    async fn read(mut parts: Parts, config: &Config) -> Result<(Self, Parts), Refused> {
        let query = Query::<Vec<(String, String)>>::from_request_parts(&mut parts, &()).await;
        // What is wrong with it is not repeated: a ticket may be in it.
        let invalid = |_| Refused::Invalid("query", "is no list of name=value".into());
        let Query(pairs) = query.map_err(invalid)?;
        let mut asked = Self::default();
        for (name, value) in pairs {
            match name.as_str() {
                "ticket" => asked.ticket = Some(value),
                "last_event_id" => asked.last = Some(value),
                "item_id" => {
                    ItemId::new(&value)
                        .map_err(|error| Refused::Invalid("item_id", error.to_string()))?;
                    asked.items.push(value);
                }
                _ => {}
            }
        }
        if asked.items.len() > config.items_max {
            let (max, found) = (config.items_max, asked.items.len());
            let problem = format!("may be given at most {max} times, is there {found} times");
            return Err(Refused::Invalid("item_id", problem));
        }
        // A browser that connects again by itself sends the field: it knows better than the address.
        if let Some(last) = parts.headers.get(LAST_EVENT_ID) {
            asked.last = Some(String::from_utf8_lossy(last.as_bytes()).into_owned());
        }
        Ok((asked, parts))
    }
}

impl Events {
    async fn viewer(&self, parts: Parts, ticket: Option<&str>) -> Result<Grant, Refusal> {
        if let Some(ticket) = ticket
            && !parts.headers.contains_key(header::AUTHORIZATION)
        {
            let grant = self.tickets.redeem(ticket).await.map_err(Refusal::Tickets)?;
            return grant.ok_or(Refusal::Ticket);
        }
        let verifying = self.viewers.token(&Request::from_parts(parts, ()));
        let token = verifying.await?;
        let viewer = token.subject.as_deref().ok_or(Refusal::NoSubject)?.to_owned();
        Ok(Grant { viewer, expires_at: token.expires_at })
    }

    async fn listen(self, parts: Parts) -> Result<Response, Refusal> {
        if parts.method == Method::HEAD {
            // There is no end to wait for, so nothing is opened.
            return Ok(head_of_stream(Body::empty()));
        }
        let (asked, parts) = Asked::read(parts, &self.config).await?;
        let grant = self.viewer(parts, asked.ticket.as_deref()).await?;
        UserId::new(&grant.viewer)
            .map_err(|error| Refused::Invalid("sub", format!("of the token {error}")))?;
        let viewer = Key::user(&grant.viewer);
        let place = self.open.place(viewer, &self.config).map_err(Refusal::TooMany)?;
        let left = Duration::from_secs(grant.expires_at).saturating_sub(unix_time());
        // An end beyond what a timer can wait for is no end.
        let expires = Instant::now() + left.min(Duration::from_secs(365 * 24 * 3600));
        let ring = self.personalized.ring();
        let (news, items) = (ring.news(), (!asked.items.is_empty()).then_some(&*asked.items));
        let cursor =
            Cursor::new(&ring.state(), items, asked.last.as_deref(), self.config.behind_max);
        let stream = Stream {
            personalized: self.personalized,
            viewer,
            cursor,
            news,
            expires,
            stop: self.stop,
            keep_alive: self.config.keep_alive,
            retry: Some(self.config.retry),
            _place: place,
        };
        let pieces = futures_util::stream::unfold(stream, async |mut stream| {
            let piece = stream.next().await?;
            Some((Ok::<Bytes, std::convert::Infallible>(piece), stream))
        });
        Ok(head_of_stream(Body::from_stream(pieces)))
    }
}

fn head_of_stream(body: Body) -> Response {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_ACCEL_BUFFERING, HeaderValue::from_static("no"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

#[cfg(test)]
mod tests;
