//! Why a rating was not taken: one answer for each reason, naming the field, with a bounded label.

use std::time::Duration;

use axum::{body::Body, response::Response};
use http::{HeaderValue, StatusCode, header};
use tower_merit::{
    Problem,
    identity::IdentityError,
    problem::{QUOTA_EXCEEDED, REDUCED_CAPACITY},
};

use super::{
    raters::{WRITE, WRITE_ANY},
    receipts::ReceiptFault,
};
use crate::{
    bus::PublishError,
    rating::{RatingError, RatingId, TextError},
};

/// The realm of `WWW-Authenticate`.
const REALM: &str = "merit";
/// When to come back after this process had too much to do.
const BUSY_RETRY_AFTER: Duration = Duration::from_secs(1);

/// Why a rating was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// No credential, or one that does not verify: 401.
    #[error(transparent)]
    Unauthenticated(IdentityError),
    /// The token may not post ratings: 403.
    #[error("token has neither scope `{WRITE}` nor `{WRITE_ANY}`")]
    Scope,
    /// The token has no subject to rate as: 403.
    #[error("token has no `sub`, which names who rates")]
    NoSubject,
    /// The token's subject cannot name a poster: 403.
    #[error("the token's `sub` {0}")]
    Subject(#[source] TextError),
    /// The token may rate as its own subject only: 403.
    #[error("user_id must be the token's `sub`; naming others needs scope `{WRITE_ANY}`")]
    OtherUser,
    /// The rated agent is the one that posts: 403.
    #[error("agent_id is the agent of this token; nobody rates itself")]
    OwnAgent,
    /// The body is of another kind: 415.
    #[error("content-type must be {expected}, is {found}")]
    MediaType {
        /// What would be taken.
        expected: &'static str,
        /// What came, shortened.
        found: String,
    },
    /// The body is encoded, for example compressed: 415.
    #[error("content-encoding must be absent or `identity`")]
    Encoding,
    /// The body is too long: 413.
    #[error("body must be at most {max} bytes long")]
    TooLarge {
        /// The bound in bytes.
        max: usize,
    },
    /// The batch holds too many ratings: 413.
    #[error("batch must hold at most {max} ratings")]
    TooMany {
        /// The bound.
        max: usize,
    },
    /// The batch holds nothing: 422.
    #[error("batch is empty; send at least one rating")]
    Empty,
    /// The batch is no JSON array: 400.
    #[error("batch is not a valid JSON array at line {line}, column {column}")]
    Array {
        /// Line in the body, from 1.
        line: usize,
        /// Column in the line, from 1.
        column: usize,
    },
    /// The body broke off: 400.
    #[error("body could not be read to its end")]
    BrokenOff,
    /// `Idempotency-Key` cannot name a rating: 400.
    #[error("idempotency-key {problem}")]
    IdempotencyKey {
        /// What is wrong and what to send.
        problem: String,
    },
    /// The request is no CloudEvent though it says it is one: 400.
    #[error("{attribute} {problem}")]
    CloudEvent {
        /// The attribute or header at fault, or `cloudevent` when it is all of it.
        attribute: &'static str,
        /// What is wrong and what to send.
        problem: String,
    },
    /// `Idempotency-Key` and the body's `id` differ: 400.
    #[error(transparent)]
    TwoNames(RatingError),
    /// The body is no rating: 400 when it is no JSON, else 422.
    #[error(transparent)]
    Rating(#[from] RatingError),
    /// It must have a receipt that holds, and has none: 422.
    #[error("receipt {0}")]
    Receipt(#[source] ReceiptFault),
    /// The bus did not take it: 503, or 500 when it never will.
    #[error("{}", bus_message(source))]
    Bus {
        /// The name that the rating has: a repeat under it counts once.
        id: RatingId,
        /// What the bus said.
        #[source]
        source: PublishError,
    },
    /// The deadline of the request passed before the bus acknowledged: 503.
    #[error("bus did not acknowledge before this request's deadline")]
    Late {
        /// The name that the rating has: a repeat under it counts once.
        id: RatingId,
    },
    /// The body did not arrive before the deadline of the request: 408.
    #[error("body did not arrive within {} ms", .0.as_millis())]
    Slow(Duration),
    /// The poster has posted more ratings than it may: 429.
    #[error("you have posted as many ratings as you may; the next one is taken in {} ms", retry_after.as_millis())]
    Quota {
        /// When the next one is taken.
        retry_after: Duration,
    },
    /// The poster has as many batches or streams in flight as one rater may: 429.
    #[error(
        "you have {most} batches or streams in flight, as many as one rater may: wait for one to end"
    )]
    Crowded {
        /// How many one rater may have.
        most: usize,
    },
    /// Too many requests are in flight: 503.
    #[error("too many requests are in flight")]
    Busy,
    /// A call that carries one rating carries none, or more: gRPC only.
    #[error("a call of Rate carries one rating; send many with RateStream")]
    NotOne,
    /// A stream of ratings is ended here, with no fault of its own: gRPC only.
    #[error("stream ends here, {0}; open another and go on there")]
    StreamEnds(&'static str),
}

fn bus_message(error: &PublishError) -> &'static str {
    match error {
        PublishError::Full { .. } => "bus is full",
        PublishError::Refused { .. } => "bus refuses this rating",
        _ => "bus did not acknowledge the rating",
    }
}

impl Refusal {
    /// Returns the status of the answer.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Unauthenticated(error) => error.status(),
            Self::Scope | Self::NoSubject | Self::Subject(_) | Self::OtherUser | Self::OwnAgent => {
                StatusCode::FORBIDDEN
            }
            Self::MediaType { .. } | Self::Encoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooLarge { .. } | Self::TooMany { .. } => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Array { .. }
            | Self::BrokenOff
            | Self::IdempotencyKey { .. }
            | Self::CloudEvent { .. }
            | Self::TwoNames(_)
            | Self::NotOne
            | Self::Rating(RatingError::Json { .. } | RatingError::Malformed { .. }) => {
                StatusCode::BAD_REQUEST
            }
            Self::Empty | Self::Rating(_) | Self::Receipt(_) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Bus { source: PublishError::Refused { .. }, .. } => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            Self::Bus { .. } | Self::Late { .. } | Self::Busy | Self::StreamEnds(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Slow(_) => StatusCode::REQUEST_TIMEOUT,
            Self::Quota { .. } | Self::Crowded { .. } => StatusCode::TOO_MANY_REQUESTS,
        }
    }

    /// Returns the reason as a label of metrics: one of a fixed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unauthenticated(IdentityError::Unavailable { .. }) => "keys_unavailable",
            Self::Unauthenticated(_) => "unauthenticated",
            Self::Scope | Self::NoSubject | Self::Subject(_) => "scope",
            Self::OtherUser => "other_user",
            Self::OwnAgent => "own_agent",
            Self::MediaType { .. } | Self::Encoding => "media_type",
            Self::TooLarge { .. } | Self::TooMany { .. } => "too_large",
            Self::Array { .. } | Self::BrokenOff | Self::Rating(RatingError::Json { .. }) => "json",
            Self::Rating(RatingError::Malformed { .. }) => "protobuf",
            Self::IdempotencyKey { .. } | Self::TwoNames(_) => "idempotency_key",
            Self::Empty | Self::NotOne | Self::Rating(_) => "invalid",
            Self::Receipt(_) => "receipt",
            Self::Bus { source: PublishError::Full { .. }, .. } => "bus_full",
            Self::Bus { source: PublishError::Refused { .. }, .. } => "bus_refused",
            Self::Bus { .. } | Self::Late { .. } => "bus_unavailable",
            Self::Slow(_) => "slow",
            Self::CloudEvent { .. } => "cloud_event",
            Self::Quota { .. } => "quota",
            Self::Crowded { .. } => "crowded",
            Self::Busy => "busy",
            Self::StreamEnds(_) => "stream_ends",
        }
    }

    /// Returns the field or header at fault.
    #[must_use]
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::OtherUser => Some("user_id"),
            Self::OwnAgent => Some("agent_id"),
            Self::Receipt(_) => Some("receipt"),
            Self::MediaType { .. } => Some("content-type"),
            Self::Encoding => Some("content-encoding"),
            Self::IdempotencyKey { .. } => Some("idempotency-key"),
            Self::CloudEvent { attribute, .. } => Some(attribute),
            Self::TwoNames(error) | Self::Rating(error) => error.field(),
            _ => None,
        }
    }

    /// Returns when the same request may succeed; nothing when it never will.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Bus { source, .. } => source.retry_after(),
            Self::Late { .. } | Self::Busy | Self::Crowded { .. } | Self::StreamEnds(_) => {
                Some(BUSY_RETRY_AFTER)
            }
            Self::Quota { retry_after } => Some(*retry_after),
            Self::Unauthenticated(error) => error.retry_after_s().map(Duration::from_secs),
            _ => None,
        }
    }

    /// Returns the name of a rating that may or may not have arrived: send it again under it.
    #[must_use]
    pub fn id(&self) -> Option<&RatingId> {
        match self {
            Self::Bus { id, .. } | Self::Late { id } => Some(id),
            _ => None,
        }
    }

    /// Returns what the caller reads, also as an item of a batch.
    #[must_use]
    pub fn problem(&self) -> Problem {
        let (status, detail) = (self.status(), self.detail());
        let mut problem = match status {
            StatusCode::SERVICE_UNAVAILABLE => Problem::typed(
                status,
                REDUCED_CAPACITY,
                "Request cannot be satisfied due to temporary server capacity constraints",
                detail,
            ),
            StatusCode::TOO_MANY_REQUESTS => Problem::typed(
                status,
                QUOTA_EXCEEDED,
                "Request cannot be satisfied as assigned quota has been exceeded",
                detail,
            ),
            _ => Problem::new(status, detail),
        };
        if let Some(field) = self.field() {
            problem = problem.with("field", field);
        }
        if let Some(id) = self.id() {
            problem = problem.with("id", id.as_str());
        }
        problem
    }

    /// Returns what was wrong, and what to do.
    pub(super) fn detail(&self) -> String {
        match (self.id(), self.retry_after()) {
            (Some(_), Some(_)) => {
                format!("{self}; send it again with this `id`: it counts once")
            }
            _ => self.to_string(),
        }
    }

    /// Returns the answer to a request that failed as a whole.
    #[must_use]
    pub fn into_response(self) -> Response {
        let mut response = self.problem().into_response().map(Body::from);
        let headers = response.headers_mut();
        match &self {
            Self::Unauthenticated(error) => {
                if let Some(challenge) = error.challenge(REALM) {
                    headers.insert(header::WWW_AUTHENTICATE, challenge);
                }
            }
            // RFC 6750 section 3.1.
            Self::Scope => {
                let text = format!(
                    "Bearer realm=\"{REALM}\", error=\"insufficient_scope\", scope=\"{WRITE}\""
                );
                let challenge = HeaderValue::from_str(&text).expect("scopes are printable");
                headers.insert(header::WWW_AUTHENTICATE, challenge);
            }
            _ => {}
        }
        if let Some(wait) = self.retry_after() {
            headers.insert(header::RETRY_AFTER, whole_seconds(wait).into());
        }
        response
    }
}

/// Returns `wait` as `Retry-After` says it: rounded up, at least 1.
pub(super) fn whole_seconds(wait: Duration) -> u64 {
    let milliseconds = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX);
    milliseconds.div_ceil(1000).max(1)
}
