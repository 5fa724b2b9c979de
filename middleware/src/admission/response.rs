//! What a caller reads: `RateLimit` fields on every answer, problem+json on a refusal.
//!
//! Fields follow draft-ietf-httpapi-ratelimit-headers-11. `q` is the capacity and `w` the time in
//! which an empty bucket fills. Admitted: `r` is the whole tokens left and `t` the seconds until the
//! bucket is full. Denied: the bucket that held too little has `r=0` and `t` equal to `Retry-After`,
//! so that `Retry-After` never ends before `t` (section 6).

use std::{
    fmt::Write,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use crate::{
    identity::IdentityError,
    problem::{Problem, QUOTA_EXCEEDED, REDUCED_CAPACITY},
    store::Verdict,
};

/// `Retry-After` when waiting will not help, because the limits in force never let the request
/// pass: a day.
pub const NEVER_RETRY_SECONDS: u64 = 24 * 3600;

/// `Retry-After` while the store does not answer.
const OUTAGE_RETRY_SECONDS: u64 = 1;

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

pin_project! {
    /// The body of the service behind, or the text of a refusal.
    pub struct AdmissionBody<B> {
        #[pin]
        passed: Option<B>,
        refusal: Option<Bytes>,
    }
}

impl<B> AdmissionBody<B> {
    pub(super) fn passed(body: B) -> Self {
        Self { passed: Some(body), refusal: None }
    }

    fn refusal(text: Bytes) -> Self {
        Self { passed: None, refusal: Some(text) }
    }
}

impl<B: Default> Default for AdmissionBody<B> {
    fn default() -> Self {
        Self::passed(B::default())
    }
}

impl<B: Body<Data = Bytes>> Body for AdmissionBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.project();
        match this.passed.as_pin_mut() {
            Some(body) => body.poll_frame(context),
            None => Poll::Ready(this.refusal.take().map(|text| Ok(Frame::data(text)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.passed {
            Some(body) => body.is_end_stream(),
            None => self.refusal.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.passed {
            Some(body) => body.size_hint(),
            None => SizeHint::with_exact(self.refusal.as_ref().map_or(0, |text| text.len() as u64)),
        }
    }
}

fn answer<B>(problem: Problem) -> Response<AdmissionBody<B>> {
    problem.into_response().map(AdmissionBody::refusal)
}

fn whole_seconds(milliseconds: u64) -> u64 {
    milliseconds.div_ceil(1000).max(1)
}

/// 401, 403 or 503: nobody was learned.
pub(super) fn unidentified<B>(error: &IdentityError, realm: &str) -> Response<AdmissionBody<B>> {
    let mut response = answer(Problem::new(error.status(), error.to_string()));
    if let Some(challenge) = error.challenge(realm) {
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    if let Some(seconds) = error.retry_after_s() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// 429: too few tokens.
pub(super) fn denied<B>(
    verdict: &Verdict,
    wait_ms: Option<u64>,
    headers: bool,
) -> Response<AdmissionBody<B>> {
    let retry_after = wait_ms.map_or(NEVER_RETRY_SECONDS, whole_seconds);
    let short = || verdict.held().filter(|held| held.short);
    let names: Vec<&str> = short().map(|held| held.bucket.as_str()).collect();
    let limits = short().next().unwrap_or(&verdict.first).limits;
    let detail = match wait_ms {
        Some(_) => format!(
            "out of tokens in bucket `{}` ({} a second, at most {}): retry after {retry_after} s",
            names.join("`, `"),
            limits.refill(),
            limits.capacity(),
        ),
        None => format!(
            "bucket `{}` lets nothing pass at its present limits ({} a second, at most {})",
            names.join("`, `"),
            limits.refill(),
            limits.capacity(),
        ),
    };
    let problem = Problem::typed(
        StatusCode::TOO_MANY_REQUESTS,
        QUOTA_EXCEEDED,
        "Request cannot be satisfied as assigned quota has been exceeded",
        detail,
    )
    .with("retry_after_ms", wait_ms.unwrap_or(NEVER_RETRY_SECONDS * 1000))
    .with("violated-policies", names.iter().map(ToString::to_string).collect::<Vec<_>>());
    let mut response = answer(problem);
    response.headers_mut().insert(header::RETRY_AFTER, retry_after.into());
    if headers {
        put_fields(response.headers_mut(), verdict, Some(retry_after));
    }
    response
}

/// 403: banned.
pub(super) fn banned<B>(for_ms: u64) -> Response<AdmissionBody<B>> {
    let seconds = whole_seconds(for_ms);
    let detail = format!("this agent is banned for another {seconds} s");
    let mut response = answer(Problem::new(StatusCode::FORBIDDEN, detail));
    response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    response
}

/// 503: the store does not answer, and the policy is to refuse.
pub(super) fn store_down<B>() -> Response<AdmissionBody<B>> {
    let mut response = answer(Problem::typed(
        StatusCode::SERVICE_UNAVAILABLE,
        REDUCED_CAPACITY,
        "Request cannot be satisfied due to temporary server capacity constraints",
        "the bucket store does not answer, and this service is configured to refuse then",
    ));
    response.headers_mut().insert(header::RETRY_AFTER, OUTAGE_RETRY_SECONDS.into());
    response
}

/// Appends `RateLimit` and `RateLimit-Policy`; what the service behind has sent stays.
pub(super) fn put_fields(headers: &mut HeaderMap, verdict: &Verdict, retry_after: Option<u64>) {
    let mut policy = String::with_capacity(48);
    let mut state = String::with_capacity(48);
    for held in verdict.held() {
        if !policy.is_empty() {
            policy.push_str(", ");
            state.push_str(", ");
        }
        // Writing to a String cannot fail.
        let _ = write!(policy, "\"{}\";q={}", held.bucket, held.limits.capacity());
        if let Some(window) = held.limits.window_seconds() {
            let _ = write!(policy, ";w={window}");
        }
        let left = if held.short { 0 } else { held.tokens.whole() };
        let _ = write!(state, "\"{}\";r={left}", held.bucket);
        let until = match (held.short, retry_after) {
            (true, retry_after) => retry_after,
            (false, Some(_)) => None,
            (false, None) => held.full_in_ms().map(whole_seconds),
        };
        if let Some(until) = until {
            let _ = write!(state, ";t={until}");
        }
    }
    append(headers, RATE_LIMIT_POLICY, policy);
    append(headers, RATE_LIMIT, state);
}

fn append(headers: &mut HeaderMap, name: HeaderName, text: String) {
    let value = HeaderValue::from_maybe_shared(Bytes::from(text));
    // Bucket names and numbers are visible ASCII; a full header map drops the field, not the answer.
    if let Ok(value) = value {
        let _ = headers.try_append(name, value);
    }
}
