//! Ratings that an existing API accepts are taken by Merit too.
//!
//! The body is copied while it streams to the upstream; when the upstream has said 2xx the copy is
//! handed on with the request's head, so that the receiver applies its own rules of who may rate.
//! Whatever comes of that, the upstream's answer passes unchanged; what came of it is counted.
//! A rating may still be on its way when its answer is out: who stops the process waits for it with
//! [`HandingOn::finish`] before the bus or its reader ends.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::body::{Body, Bytes};
use bytes::BytesMut;
use futures_util::future::BoxFuture;
use http::{Method, Request, StatusCode, request::Parts};
use http_body::Body as _;
use metrics::counter;
use tokio::{sync::Semaphore, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::warn;

use crate::trace;

use super::passing::passing;

/// The longest rating that is copied, in bytes; longer bodies pass and are counted.
pub const TEE_BODY_MAX: usize = 64 << 10;

/// How many ratings may be on their way to the receiver; further ones pass and are counted.
pub const TEE_IN_FLIGHT_MAX: usize = 1024;

/// A rating that was not taken is logged at most this often.
const LOG_EVERY: Duration = Duration::from_secs(10);

type Receiver =
    dyn Fn(Request<Bytes>) -> BoxFuture<'static, Result<(), &'static str>> + Send + Sync;

/// Where copies of ratings go.
#[derive(Clone)]
pub struct Tee {
    shared: Arc<Shared>,
}

struct Shared {
    receiver: Box<Receiver>,
    in_flight: Arc<Semaphore>,
    handing_on: HandingOn,
    started: Instant,
    log_from_ms: AtomicU64,
}

/// The ratings that are on their way to the receiver of one [`Tee`], at most [`TEE_IN_FLIGHT_MAX`].
///
/// It does not hold the receiver, so that who waits for the ratings does not keep the bus open.
#[derive(Clone, Debug, Default)]
pub struct HandingOn {
    tasks: TaskTracker,
    give_up: CancellationToken,
}

impl HandingOn {
    /// Waits until no rating is on its way, at most `wait`; then gives up what is left, and counts
    /// it as `stopped`. Returns how many were given up.
    ///
    /// Call it when no further request reaches the gateway.
    pub async fn finish(&self, wait: Duration) -> usize {
        self.tasks.close();
        if tokio::time::timeout(wait, self.tasks.wait()).await.is_ok() {
            return 0;
        }
        let left = self.tasks.len();
        self.give_up.cancel();
        self.tasks.wait().await;
        left
    }
}

impl std::fmt::Debug for Tee {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tee").finish_non_exhaustive()
    }
}

impl Tee {
    /// Returns a tee that hands ratings to `receiver`: the request as the client sent it. The
    /// receiver returns why it did not take the rating as a label of metrics, from a small fixed set.
    pub fn new<F, R>(receiver: R) -> Self
    where
        R: Fn(Request<Bytes>) -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), &'static str>> + Send + 'static,
    {
        let shared = Shared {
            receiver: Box::new(move |request| Box::pin(receiver(request))),
            in_flight: Arc::new(Semaphore::new(TEE_IN_FLIGHT_MAX)),
            handing_on: HandingOn::default(),
            started: Instant::now(),
            log_from_ms: AtomicU64::new(0),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Returns what waits for the ratings that are on their way.
    #[must_use]
    pub fn handing_on(&self) -> HandingOn {
        self.shared.handing_on.clone()
    }

    /// Returns the body to pass on in place of `body`, and what becomes the rating.
    pub(super) fn split(&self, head: &Parts, body: Body) -> (Body, Copied) {
        let mut request = Request::new(());
        *request.method_mut() = Method::POST;
        request.uri_mut().clone_from(&head.uri);
        request.headers_mut().clone_from(&head.headers);
        let taken = Arc::new(Mutex::new(Taken::Reading(BytesMut::new())));
        if body.is_end_stream() {
            taken.lock().unwrap_or_else(PoisonError::into_inner).end();
        }
        let copy = Arc::clone(&taken);
        let body = passing(body, move |passed, last| {
            let Some(passed) = passed else { return };
            let mut copy = copy.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(Ok(frame)) = passed
                && let Some(data) = frame.data_ref()
            {
                copy.add(data);
            }
            if last && !matches!(passed, Some(Err(_))) {
                copy.end();
            }
        });
        (body, Copied { tee: self.clone(), request, taken })
    }

    fn count(&self, outcome: &'static str) {
        counter!("merit_tee_total", "outcome" => outcome).increment(1);
    }

    fn not_taken(&self, outcome: &'static str) {
        self.count(outcome);
        let now_ms = u64::try_from(self.shared.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let from_ms = self.shared.log_from_ms.load(Ordering::Relaxed);
        let next_ms = now_ms + u64::try_from(LOG_EVERY.as_millis()).unwrap_or(u64::MAX);
        let order = Ordering::Relaxed;
        if now_ms >= from_ms
            && self.shared.log_from_ms.compare_exchange(from_ms, next_ms, order, order).is_ok()
        {
            warn!(outcome, "a rating that the upstream accepted was not taken");
        }
    }
}

/// A rating that is on its way to the upstream.
pub(super) struct Copied {
    tee: Tee,
    request: Request<()>,
    taken: Arc<Mutex<Taken>>,
}

impl Copied {
    /// Hands the rating on when the upstream accepted it; waits for that at most `wait`.
    pub(super) async fn answered(self, status: StatusCode, wait: Duration) {
        if !status.is_success() {
            return;
        }
        let Self { tee, request, taken } = self;
        let taken = std::mem::replace(
            &mut *taken.lock().unwrap_or_else(PoisonError::into_inner),
            Taken::TooLong,
        );
        let body = match taken {
            Taken::Whole(body) => body,
            Taken::TooLong => return tee.not_taken("too_large"),
            Taken::Reading(_) => return tee.not_taken("incomplete"),
        };
        let Ok(permit) = Arc::clone(&tee.shared.in_flight).try_acquire_owned() else {
            return tee.not_taken("busy");
        };
        // A task, so that the rating is taken even when the client leaves or the wait ends.
        let HandingOn { tasks, give_up } = tee.handing_on();
        let handed_on = tasks.spawn(trace::carried(async move {
            let _permit = permit;
            let taking = (tee.shared.receiver)(request.map(|()| body));
            match give_up.run_until_cancelled(taking).await {
                Some(Ok(())) => tee.count("accepted"),
                Some(Err(outcome)) => tee.not_taken(outcome),
                None => tee.not_taken("stopped"),
            }
        }));
        let _ = tokio::time::timeout(wait, handed_on).await;
    }
}

/// What was copied so far.
enum Taken {
    Reading(BytesMut),
    Whole(Bytes),
    TooLong,
}

impl Taken {
    fn add(&mut self, data: &[u8]) {
        if let Self::Reading(copy) = self {
            match copy.len() + data.len() <= TEE_BODY_MAX {
                true => copy.extend_from_slice(data),
                false => *self = Self::TooLong,
            }
        }
    }

    fn end(&mut self) {
        if let Self::Reading(copy) = self {
            *self = Self::Whole(std::mem::take(copy).freeze());
        }
    }
}
