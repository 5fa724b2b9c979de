//! For callers: waits as a 429 tells them to, and asks again.
//!
//! 1. 429 is waited out whatever the method: the limiter refused the request, so nobody acted on
//!    it (RFC 6585 section 4). 503 is waited out when it says `Retry-After`, and only for methods
//!    that may be repeated (RFC 9110 section 9.2.2) or with an `Idempotency-Key`.
//! 2. The wait is what `Retry-After` says (RFC 9110 section 10.2.3), seconds or date, plus jitter:
//!    never shorter. A 429 without it is waited out for 1 s, then 2 s, 4 s … `RateLimit` fields are
//!    not asked: their `t` is no promise that quota is there by then (draft-11 section 8.4).
//! 3. Each request has a budget of waiting and of attempts. A wait that would pass it does not
//!    begin: the caller gets the last answer at once, unchanged.
//! 4. A request whose body cannot be had twice is sent once.
//! 5. With [`share_pause`](RetryAfterLayer::share_pause), what one request is told holds back the
//!    others of the same origin and credential too.
//! 6. Errors of the service behind pass. Dropping the future ends its wait; nothing else knows of it.

mod pause;

mod service;

mod wait;

pub use pause::PAUSES_MAX;
pub use service::{RetryAfter, RetryAfterFuture};
pub use wait::FIRST_GUESS;

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use http::HeaderName;
use tower_layer::Layer;

use self::{
    pause::{CREDENTIALS, Pauses},
    wait::Budget,
};

/// How long a request waits in total, unless configured: 60 s.
pub const MAX_WAIT_DEFAULT: Duration = Duration::from_secs(60);

/// How often a request is sent in total, unless configured.
pub const MAX_ATTEMPTS_DEFAULT: NonZeroU32 = NonZeroU32::new(8).expect("8 is not 0");

/// The share by which a wait may be longer than told, unless configured.
pub const JITTER_DEFAULT: f64 = 0.1;

/// Gives a body a second time.
///
/// [`Cloned`] does for every body that is `Clone`; closures are taken for the others.
pub trait RepeatBody<B> {
    /// Returns a body that sends what `body` will send; nothing when that cannot be had.
    fn repeat(&self, body: &B) -> Option<B>;
}

/// Clones bodies.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cloned;

impl<B: Clone> RepeatBody<B> for Cloned {
    fn repeat(&self, body: &B) -> Option<B> {
        Some(body.clone())
    }
}

impl<B, F: Fn(&B) -> Option<B>> RepeatBody<B> for F {
    fn repeat(&self, body: &B) -> Option<B> {
        self(body)
    }
}

/// Makes a client wait as it is told: see the [module](self) for the rules.
///
/// Around any `Service<http::Request<_>, Response = http::Response<_>>`, for example the client of
/// hyper-util:
///
/// ```
/// use std::time::Duration;
///
/// use bytes::Bytes;
/// use http_body_util::Full;
/// use hyper_util::{client::legacy::Client, rt::TokioExecutor};
/// use tower::ServiceBuilder;
/// use tower_merit::retry_after::RetryAfterLayer;
///
/// let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
/// let polite = ServiceBuilder::new()
///     .layer(RetryAfterLayer::new().max_wait(Duration::from_secs(30)).share_pause())
///     .service(client);
/// # let _ = polite;
/// ```
///
/// A body that is not `Clone` needs to be told how it is had twice. This one repeats requests
/// without a body:
///
/// ```
/// use axum::body::{Body, HttpBody as _};
/// use tower_merit::retry_after::RetryAfterLayer;
///
/// let layer = RetryAfterLayer::new()
///     .repeat_body(|body: &Body| body.is_end_stream().then(Body::empty));
/// # let _ = layer;
/// ```
#[derive(Clone, Debug)]
pub struct RetryAfterLayer<C = Cloned> {
    budget: Budget,
    pauses: Option<Arc<Pauses>>,
    repeat: C,
}

impl RetryAfterLayer {
    /// Returns a layer that waits up to [`MAX_WAIT_DEFAULT`] in [`MAX_ATTEMPTS_DEFAULT`] attempts.
    #[must_use]
    pub fn new() -> Self {
        let budget = Budget {
            max_wait: MAX_WAIT_DEFAULT,
            max_attempts: MAX_ATTEMPTS_DEFAULT.get(),
            jitter: JITTER_DEFAULT,
        };
        Self { budget, pauses: None, repeat: Cloned }
    }
}

impl Default for RetryAfterLayer {
    fn default() -> Self {
        Self::new()
    }
}

impl<C> RetryAfterLayer<C> {
    /// Sets how long one request waits in total. The time that answers take does not count: put
    /// a timeout around this layer to bound both.
    #[must_use]
    pub fn max_wait(mut self, total: Duration) -> Self {
        self.budget.max_wait = total;
        self
    }

    /// Sets how often one request is sent in total; 1 never asks again.
    #[must_use]
    pub fn max_attempts(mut self, attempts: NonZeroU32) -> Self {
        self.budget.max_attempts = attempts.get();
        self
    }

    /// Sets the share by which a wait may be longer than told, drawn anew for each, so that many
    /// callers that were told the same do not come back at once: 0 to 1, others are taken as the
    /// nearer of the two.
    #[must_use]
    pub fn jitter(mut self, share: f64) -> Self {
        self.budget.jitter = if share.is_nan() { 0.0 } else { share.clamp(0.0, 1.0) };
        self
    }

    /// Holds back requests of the same origin and the same `Authorization` and `x-api-key` while one
    /// of them waits, in every service that this layer and its clones make: a fleet of tasks that is
    /// one agent then asks once, not once each. Agents that show who they are in other fields need
    /// [`share_pause_by`](Self::share_pause_by), or they pause each other.
    ///
    /// A request whose budget ends before the pause does is sent at once, to get an answer of
    /// its own. Up to [`PAUSES_MAX`] pauses are remembered; beyond that the one asked for longest
    /// ago is forgotten.
    #[must_use]
    pub fn share_pause(self) -> Self {
        self.share_pause_by(CREDENTIALS)
    }

    /// Does as [`share_pause`](Self::share_pause), with agents told apart by the values of these
    /// fields and no others.
    #[must_use]
    pub fn share_pause_by(mut self, credentials: impl IntoIterator<Item = HeaderName>) -> Self {
        self.pauses = Some(Arc::new(Pauses::new(credentials)));
        self
    }

    /// Sets how a body is had a second time, for bodies that are not `Clone`.
    #[must_use]
    pub fn repeat_body<F>(self, repeat: F) -> RetryAfterLayer<F> {
        RetryAfterLayer { budget: self.budget, pauses: self.pauses, repeat }
    }
}

impl<S, C: Clone> Layer<S> for RetryAfterLayer<C> {
    type Service = RetryAfter<S, C>;

    fn layer(&self, inner: S) -> Self::Service {
        RetryAfter::new(inner, self.clone())
    }
}
