//! Envoy's rate limit service: a proxy asks for each request whether it may pass, and the admission that the
//! gateway wears answers.
//!
//! 1. A descriptor is about an agent or it is nobody's. An agent's becomes a request (its path and method choose the
//!    route, its other entries are header fields) that goes through [`AdmissionLayer`]; nobody's is told OK, as
//!    the protocol has it of limits that nobody configured, and counted.
//! 2. Each descriptor is a limit of its own and is charged whatever becomes of the others. A
//!    request passes when all of them do.
//! 3. What the gateway would answer is what the caller gets: its header fields, and the problem in place of a body
//!    when it may not pass. The protocol has no other refusal than `OVER_LIMIT`, so a bad token, a ban and an
//!    outage under `on_outage = "closed"` are that as well: as a gRPC error a proxy would let them pass
//!    (`failure_mode_deny` is false unless set).
//! 4. Nothing is learned of a request's end here: what is settled, given back or counted while it is in flight is the gateway's.

use std::{
    convert::Infallible,
    future::{Ready, ready},
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty};
use metrics::{Counter, counter};
use tower::{Layer as _, Service};
use tower_merit::{
    AdmissionLayer, AdmissionService, Identify, Problem, Spend, identity::Selector,
    problem::QUOTA_EXCEEDED,
};

mod config;
pub mod proto;
mod read;

#[cfg(feature = "grpc")]
mod grpc;
#[cfg(not(feature = "grpc"))]
#[path = "grpc_missing.rs"]
mod grpc;

pub use self::{
    config::{Config, Identified},
    grpc::{SUPPORTED, router},
    read::{Callers, cost},
};
use self::{
    proto::{Code, DescriptorStatus, Duration, HeaderValue, RateLimitRequest, RateLimitResponse},
    read::{Hits, Reader},
};

const X_LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const X_REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const X_RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// The admission that answers proxies, and how their descriptors are read. Clones share both.
pub struct Live<S, I> {
    reader: Arc<Reader>,
    /// Whether callers get `X-RateLimit-*`; the layer always writes them, for the statuses.
    x_rate_limit: bool,
    now: Arc<ArcSwap<InForce<S, I>>>,
    counted: Arc<Counted>,
}

struct InForce<S, I> {
    layer: AdmissionLayer<S, Callers<I>>,
    service: AdmissionService<Pass, S, Callers<I>>,
}

/// What became of descriptors.
struct Counted {
    ok: Counter,
    over_limit: Counter,
    unmatched: Counter,
}

/// What one descriptor came to.
enum Decided {
    /// It is about no agent.
    Nobody,
    /// Admission has answered.
    Answered { passes: bool, head: HeaderMap, body: Bytes },
}

impl<S: Spend, I: Identify> Live<S, I> {
    /// Returns a service that reads descriptors as `config` says and answers by `admission`, which must write `X-RateLimit-*`;
    /// callers get these if `x_rate_limit`. `selector` is where agents stand in requests.
    #[must_use]
    pub fn new(
        config: &Config,
        selector: &Selector,
        admission: AdmissionLayer<S, Callers<I>>,
        x_rate_limit: bool,
    ) -> Self {
        let counter = |outcome| counter!("merit_rls_descriptors_total", "outcome" => outcome);
        let counted = Counted {
            ok: counter("ok"),
            over_limit: counter("over_limit"),
            unmatched: counter("unmatched"),
        };
        Self {
            reader: Arc::new(Reader::new(config, selector)),
            x_rate_limit,
            now: Arc::new(ArcSwap::from_pointee(InForce::new(admission))),
            counted: Arc::new(counted),
        }
    }

    /// Puts `admission` in force for requests that arrive from now on.
    pub fn put(&self, admission: AdmissionLayer<S, Callers<I>>) {
        self.now.store(Arc::new(InForce::new(admission)));
    }

    /// Returns the admission in force.
    #[must_use]
    pub fn admission(&self) -> AdmissionLayer<S, Callers<I>> {
        self.now.load().layer.clone()
    }

    /// Decides whether a request may pass, and takes what it costs.
    pub async fn decide(&self, request: &RateLimitRequest) -> RateLimitResponse {
        let now = self.now.load_full();
        let hits = u64::from(request.hits_addend.max(1));
        let kept = self.reader.keeps(&request.domain);
        let decide = async |descriptor| {
            let asked = match kept {
                true => self.reader.request(descriptor, hits),
                false => Ok(None),
            };
            match asked {
                Ok(None) => Decided::Nobody,
                Ok(Some(request)) => now.decide(request).await,
                Err(key) => refused(key),
            }
        };
        let decided = match &request.descriptors[..] {
            [only] => vec![decide(only).await],
            descriptors => join_all(descriptors.iter().map(decide)).await,
        };
        self.answer(decided)
    }

    /// Puts one answer together: who reads it is told of the first descriptor that may not pass, or else of
    /// the first that is about an agent.
    fn answer(&self, decided: Vec<Decided>) -> RateLimitResponse {
        let statuses = decided.iter().map(|decided| self.status(decided)).collect();
        let mut told: Option<(bool, HeaderMap, Bytes)> = None;
        for decided in decided {
            if let Decided::Answered { passes, head, body } = decided
                && told.as_ref().is_none_or(|(before, ..)| *before && !passes)
            {
                told = Some((passes, head, body));
            }
        }
        let (passes, head, raw_body) = told.unwrap_or((true, HeaderMap::new(), Bytes::new()));
        let shown = |name: &HeaderName| {
            *name != header::CONTENT_LENGTH
                && (self.x_rate_limit || ![X_LIMIT, X_REMAINING, X_RESET].contains(name))
        };
        let fields = head.iter().filter(|(name, _)| shown(name));
        let response_headers_to_add = fields
            .filter_map(|(name, value)| {
                let value = value.to_str().ok()?.to_owned();
                Some(HeaderValue { key: name.as_str().to_owned(), value })
            })
            .collect();
        RateLimitResponse {
            overall_code: code(passes).into(),
            statuses,
            response_headers_to_add,
            raw_body,
        }
    }

    fn status(&self, decided: &Decided) -> DescriptorStatus {
        let (passes, head) = match decided {
            Decided::Nobody => {
                self.counted.unmatched.increment(1);
                return DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() };
            }
            Decided::Answered { passes, head, .. } => (*passes, head),
        };
        match passes {
            true => self.counted.ok.increment(1),
            false => self.counted.over_limit.increment(1),
        }
        let until = if passes { X_RESET } else { header::RETRY_AFTER };
        let seconds = number(head, &until).and_then(|seconds| i64::try_from(seconds).ok());
        let left = number(head, &X_REMAINING).filter(|_| passes).unwrap_or(0);
        DescriptorStatus {
            code: code(passes).into(),
            limit_remaining: u32::try_from(left).unwrap_or(u32::MAX),
            duration_until_reset: seconds.map(|seconds| Duration { seconds, nanos: 0 }),
        }
    }
}

impl<S: Spend, I: Identify> InForce<S, I> {
    fn new(layer: AdmissionLayer<S, Callers<I>>) -> Self {
        Self { service: layer.layer(Pass), layer }
    }

    async fn decide(&self, request: Request<()>) -> Decided {
        let looks = request.extensions().get::<Hits>().is_some_and(|hits| hits.0 == 0);
        let answer =
            self.service.clone().call(request).await.unwrap_or_else(|error| match error {});
        let (mut head, body) = answer.into_parts();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes);
        let mut body = body.unwrap_or_else(|error| match error {});
        let mut passes = head.extensions.get::<Passed>().is_some();
        // The layer lets a look pass whatever it sees; in this protocol it asks whether anything is left.
        if looks && passes && number(&head.headers, &X_REMAINING) == Some(0) {
            passes = false;
            let title = "Request cannot be satisfied as assigned quota has been exceeded";
            let status = StatusCode::TOO_MANY_REQUESTS;
            let problem = Problem::typed(status, QUOTA_EXCEEDED, title, "no whole token is left");
            let (refusal, text) = problem.into_response().into_parts();
            head.headers.extend(refusal.headers);
            body = text;
        }
        Decided::Answered { passes, head: head.headers, body }
    }
}

impl<S, I> Clone for Live<S, I> {
    fn clone(&self) -> Self {
        Self {
            reader: Arc::clone(&self.reader),
            x_rate_limit: self.x_rate_limit,
            now: Arc::clone(&self.now),
            counted: Arc::clone(&self.counted),
        }
    }
}

impl<S, I> std::fmt::Debug for Live<S, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("reader", &self.reader).finish_non_exhaustive()
    }
}

/// Returns what becomes of a descriptor whose entry `key` no request could have.
fn refused(key: &str) -> Decided {
    let detail = format!("the proxy's entry `{key}` holds what no request can have there");
    let (head, body) = Problem::new(StatusCode::BAD_REQUEST, detail).into_response().into_parts();
    Decided::Answered { passes: false, head: head.headers, body }
}

fn code(passes: bool) -> Code {
    if passes { Code::Ok } else { Code::OverLimit }
}

fn number(head: &HeaderMap, name: &HeaderName) -> Option<u64> {
    head.get(name)?.to_str().ok()?.parse().ok()
}

/// What an answer has that came from behind the admission.
#[derive(Clone, Copy)]
struct Passed;

/// The service behind the admission: what reaches it may pass.
#[derive(Clone, Copy)]
struct Pass;

impl Service<Request<()>> for Pass {
    type Response = Response<Empty<Bytes>>;
    type Error = Infallible;
    type Future = Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<()>) -> Self::Future {
        let mut response = Response::default();
        response.extensions_mut().insert(Passed);
        ready(Ok(response))
    }
}

#[cfg(test)]
mod tests;
