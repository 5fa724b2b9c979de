//! The service: send, read what the answer tells, wait, send again.

use std::{
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use http::{Method, Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower_service::Service;
use tracing::debug;

use super::{
    RepeatBody, RetryAfterLayer,
    pause::Whose,
    wait::{self, Told},
};

/// A client that waits as it is told. Made by [`RetryAfterLayer`].
#[derive(Clone, Debug)]
pub struct RetryAfter<S, C> {
    inner: S,
    how: RetryAfterLayer<C>,
}

impl<S, C> RetryAfter<S, C> {
    pub(super) fn new(inner: S, how: RetryAfterLayer<C>) -> Self {
        Self { inner, how }
    }
}

impl<S, B, R, C> Service<Request<B>> for RetryAfter<S, C>
where
    S: Service<Request<B>, Response = Response<R>> + Clone,
    C: RepeatBody<B> + Clone,
{
    type Response = Response<R>;
    type Error = S::Error;
    type Future = RetryAfterFuture<S, B, C>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let whose = self.how.pauses.as_ref().map(|pauses| pauses.whose(&request));
        let mut sender = Sender {
            inner: self.inner.clone(),
            how: self.how.clone(),
            whose,
            sent: 0,
            waited: Duration::ZERO,
        };
        if let Some(pause) = sender.held_back() {
            // Nobody calls the instance that is ready, which may hold a place of others: this request needs one
            // itself when it has waited.
            self.inner = self.inner.clone();
            let step = Step::Wait { pause: sleep(pause) };
            return RetryAfterFuture { sender, request: Some(request), step };
        }
        // The instance that was polled ready must be the one that is called.
        mem::swap(&mut sender.inner, &mut self.inner);
        let (answer, request) = sender.send(request);
        RetryAfterFuture { sender, request, step: Step::Send { answer } }
    }
}

/// What one request needs to be sent again.
struct Sender<S, C> {
    inner: S,
    how: RetryAfterLayer<C>,
    whose: Option<Whose>,
    sent: u32,
    waited: Duration,
}

impl<S, C> Sender<S, C> {
    /// Sends `request`; returns the pending answer, and a copy if there may be a next time.
    fn send<B>(&mut self, request: Request<B>) -> (S::Future, Option<Request<B>>)
    where
        S: Service<Request<B>>,
        C: RepeatBody<B>,
    {
        self.sent = self.sent.saturating_add(1);
        let again = self.sent < self.how.budget.max_attempts;
        let copy = again.then(|| self.copy(&request)).flatten();
        (self.inner.call(request), copy)
    }

    fn copy<B>(&self, request: &Request<B>) -> Option<Request<B>>
    where
        C: RepeatBody<B>,
    {
        let mut copy = Request::new(self.how.repeat.repeat(request.body())?);
        copy.method_mut().clone_from(request.method());
        copy.uri_mut().clone_from(request.uri());
        *copy.version_mut() = request.version();
        copy.headers_mut().clone_from(request.headers());
        copy.extensions_mut().clone_from(request.extensions());
        Some(copy)
    }

    /// Returns how long a pause that others began holds this request back. When the budget ends
    /// before the pause does, it does not: the server's own answer is the caller's.
    fn held_back(&mut self) -> Option<Duration> {
        let (pauses, whose) = (self.how.pauses.as_ref()?, self.whose?);
        let now = Instant::now();
        let left = pauses.until(whose, now)? - now;
        let pause = self.how.budget.allows(left, self.waited, fastrand::f64())?;
        self.waited += pause;
        Some(pause)
    }

    /// Returns how long to wait before `request`, which was answered so, is sent again.
    fn wait<R, B>(
        &mut self,
        answer: &Response<R>,
        request: Option<&Request<B>>,
    ) -> Option<Duration> {
        let told = wait::told(answer.status(), answer.headers(), SystemTime::now())?;
        if let (Some(pauses), Some(whose), Told::For(wait)) = (&self.how.pauses, self.whose, told)
            && let Some(until) = Instant::now().checked_add(wait)
        {
            pauses.extend(whose, until);
        }
        let request = request?;
        if answer.status() == StatusCode::SERVICE_UNAVAILABLE && !is_repeatable(request) {
            return None;
        }
        let Self { sent, waited, .. } = *self;
        let wait = self.how.budget.before_next(told, sent, waited, fastrand::f64())?;
        self.waited += wait;
        debug!(status = %answer.status(), attempt = sent, ?wait, "asked to wait");
        Some(wait)
    }
}

/// Whether it does no harm when the service acts on `request` twice (RFC 9110 section 9.2.2).
fn is_repeatable<B>(request: &Request<B>) -> bool {
    let idempotent =
        [Method::GET, Method::HEAD, Method::OPTIONS, Method::TRACE, Method::PUT, Method::DELETE];
    idempotent.contains(request.method()) || request.headers().contains_key("idempotency-key")
}

pin_project! {
    /// A request that may be sent more than once.
    pub struct RetryAfterFuture<S, B, C>
    where
        S: Service<Request<B>>,
    {
        sender: Sender<S, C>,
        // The request that comes next, if it can be had.
        request: Option<Request<B>>,
        #[pin]
        step: Step<S::Future>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<Answer> {
        Send { #[pin] answer: Answer },
        Wait { #[pin] pause: Sleep },
        Ready,
    }
}

impl<S, B, R, C> Future for RetryAfterFuture<S, B, C>
where
    S: Service<Request<B>, Response = Response<R>>,
    C: RepeatBody<B>,
{
    type Output = Result<Response<R>, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.step.as_mut().project() {
                StepProjection::Send { answer } => {
                    let answer = ready!(answer.poll(context))?;
                    match this.sender.wait(&answer, this.request.as_ref()) {
                        Some(wait) => Step::Wait { pause: sleep(wait) },
                        None => return Poll::Ready(Ok(answer)),
                    }
                }
                StepProjection::Wait { pause } => {
                    ready!(pause.poll(context));
                    // Another request may have been told to wait longer meanwhile.
                    match this.sender.held_back() {
                        Some(pause) => Step::Wait { pause: sleep(pause) },
                        None => Step::Ready,
                    }
                }
                StepProjection::Ready => {
                    ready!(this.sender.inner.poll_ready(context))?;
                    let request = this.request.take().expect("nobody waits without a request");
                    let (answer, copy) = this.sender.send(request);
                    *this.request = copy;
                    Step::Send { answer }
                }
            };
            this.step.set(next);
        }
    }
}
