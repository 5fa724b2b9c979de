//! What a caller reads instead of an answer of the service: problem+json, and when to come back.

use std::{num::NonZeroU64, sync::Arc};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Version, header};

use super::{
    concurrency::CONCURRENCY_POLICY,
    fields::{Choice, Outcome, Shown, expose_retry_after},
    grpc,
    refusal::{Refusal, never_passes, whole_seconds},
};
use crate::{
    bucket::BucketName,
    identity::IdentityError,
    problem::{Problem, QUOTA_EXCEEDED, REDUCED_CAPACITY},
    store::Verdict,
};

/// What changes the answer to a refused request.
type Hook = Arc<dyn Fn(&Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync>;

/// How answers look.
pub(super) struct Answers {
    pub(super) realm: String,
    pub(super) choice: Choice,
    /// The most milliseconds that are added to a wait.
    pub(super) jitter_max_ms: u64,
    /// Where callers read what their limits are.
    pub(super) explained: Option<Explained>,
    pub(super) hook: Option<Hook>,
}

/// The page on which callers read what their limits are, as refusals name it.
pub(super) struct Explained {
    path: String,
    link: HeaderValue,
}

impl Explained {
    /// Returns `None` when `path` cannot stand between the angle brackets of a `Link` field.
    pub(super) fn at(path: &str) -> Option<Self> {
        let fits = |byte: u8| byte.is_ascii_graphic() && byte != b'>';
        if !path.starts_with('/') || !path.bytes().all(fits) {
            return None;
        }
        let link = format!("<{path}>; rel=\"help\"; type=\"application/json\"");
        let link = HeaderValue::from_str(&link).ok()?;
        Some(Self { path: path.to_owned(), link })
    }
}

/// What the answer to a refused request goes by.
#[derive(Clone, Copy)]
#[cfg_attr(
    not(feature = "grpc"),
    allow(dead_code, reason = "by more than the method goes who speaks gRPC")
)]
pub(super) struct Head<'a> {
    pub(super) method: &'a Method,
    pub(super) version: Version,
    pub(super) fields: &'a HeaderMap,
}

impl<'a> Head<'a> {
    pub(super) fn of<B>(request: &'a Request<B>) -> Self {
        Self { method: request.method(), version: request.version(), fields: request.headers() }
    }
}

/// Returns true for a refusal that the agent's limits or its ban explain.
fn is_of_limits(refusal: &Refusal) -> bool {
    matches!(
        refusal,
        Refusal::Denied { .. } | Refusal::TooManyInFlight { .. } | Refusal::Banned { .. }
    )
}

impl Answers {
    /// Returns a random number of milliseconds up to the configured most.
    pub(super) fn jitter_ms(&self) -> u64 {
        if self.jitter_max_ms == 0 { 0 } else { fastrand::u64(0..=self.jitter_max_ms) }
    }

    /// Returns the milliseconds until it is worth trying again, spread over the jitter.
    fn wait_ms(&self, refusal: &Refusal) -> Option<u64> {
        let wait_ms = refusal.retry_after_ms()?;
        match refusal {
            // Its own numbers hold the jitter already.
            Refusal::Denied { .. } => Some(wait_ms),
            _ => Some(wait_ms.saturating_add(self.jitter_ms())),
        }
    }

    /// Returns the answer to a request with this head that is refused.
    pub(super) fn respond(
        &self,
        refusal: &Refusal,
        head: Head<'_>,
        shown: &Shown,
        verdict: Option<&Verdict>,
    ) -> Response<Bytes> {
        let explained = self.explained.as_ref().filter(|_| is_of_limits(refusal));
        let mut problem = self.problem(refusal);
        if let Some(page) = explained {
            problem = problem.with("limits", page.path.as_str());
        }
        let wait_ms = self.wait_ms(refusal);
        let mut response = match grpc::speaks(&head) {
            true => grpc::response(refusal, problem.detail(), wait_ms),
            false => problem.into_response(),
        };
        let headers = response.headers_mut();
        if let Some(page) = explained {
            headers.insert(header::LINK, page.link.clone());
        }
        let retry_after = wait_ms.map(whole_seconds).and_then(NonZeroU64::new);
        if let Some(seconds) = retry_after {
            headers.insert(header::RETRY_AFTER, seconds.get().into());
        }
        let challenge = match refusal {
            Refusal::Unauthenticated(error) => error.challenge(&self.realm),
            _ => None,
        };
        if let Some(challenge) = challenge {
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        let outcome = match refusal {
            Refusal::Denied { .. } => Some(Outcome { verdict, retry_after, places_left: None }),
            Refusal::TooManyInFlight { .. } => {
                Some(Outcome { verdict: None, retry_after: None, places_left: Some(0) })
            }
            _ => None,
        };
        match outcome {
            Some(outcome) => shown.put(headers, self.choice, outcome),
            None if self.choice.expose && retry_after.is_some() => expose_retry_after(headers),
            None => {}
        }
        let mut response = match &self.hook {
            Some(hook) => hook(refusal, response),
            None => response,
        };
        // RFC 9110 section 9.3.2: the fields of the answer without its content, which over HTTP/2 the server
        // would send.
        if head.method == Method::HEAD && !response.body().is_empty() {
            let length = response.body().len();
            response.headers_mut().entry(header::CONTENT_LENGTH).or_insert(length.into());
            *response.body_mut() = Bytes::new();
        }
        response
    }

    fn problem(&self, refusal: &Refusal) -> Problem {
        match refusal {
            Refusal::Unauthenticated(error) => unidentified(StatusCode::UNAUTHORIZED, error),
            Refusal::NoAgent(error) => Problem::new(StatusCode::FORBIDDEN, error.to_string()),
            Refusal::IdentityUnavailable(error) => reduced_capacity(error.to_string()),
            Refusal::AmbiguousPath => Problem::new(
                StatusCode::BAD_REQUEST,
                "the path can be read in more than one way: send it without `//`, dots, `\\`, `;` \
                 and encoded slashes",
            ),
            Refusal::Denied { retry_after, retry_after_ms, violated, limits } => {
                let names: Vec<&str> = violated.iter().map(BucketName::as_str).collect();
                let (rate, capacity) = (limits.refill(), limits.capacity());
                let buckets = names.join("`, `");
                let detail = match never_passes(limits) {
                    false => format!(
                        "out of tokens in bucket `{buckets}` ({rate} a second, at most {capacity}): retry after {retry_after} s",
                    ),
                    true => format!(
                        "bucket `{buckets}` lets nothing pass at its present limits ({rate} a second, at most {capacity})",
                    ),
                };
                quota_exceeded(detail, names).with("retry_after_ms", *retry_after_ms)
            }
            Refusal::TooManyInFlight { limit } => quota_exceeded(
                format!("{limit} requests of this agent are in flight, as many as may be"),
                vec![CONCURRENCY_POLICY],
            ),
            Refusal::Banned { .. } => {
                let seconds = refusal.retry_after_seconds().expect("a ban has an end");
                let detail = format!("this agent is banned for another {seconds} s");
                Problem::new(StatusCode::FORBIDDEN, detail)
            }
            Refusal::StoreDown => reduced_capacity(
                "the bucket store does not answer, and this service is configured to refuse then"
                    .to_owned(),
            ),
        }
    }
}

fn unidentified(status: StatusCode, error: &IdentityError) -> Problem {
    Problem::new(status, error.to_string())
}

fn quota_exceeded(detail: String, violated: Vec<&str>) -> Problem {
    let title = "Request cannot be satisfied as assigned quota has been exceeded";
    Problem::typed(StatusCode::TOO_MANY_REQUESTS, QUOTA_EXCEEDED, title, detail)
        .with("violated-policies", violated)
}

fn reduced_capacity(detail: String) -> Problem {
    let title = "Request cannot be satisfied due to temporary server capacity constraints";
    Problem::typed(StatusCode::SERVICE_UNAVAILABLE, REDUCED_CAPACITY, title, detail)
}
