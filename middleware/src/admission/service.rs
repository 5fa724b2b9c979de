//! The service: learn the agent, spend, then pass on or answer.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Instant,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    layer::Gate,
    response::{self, AdmissionBody},
};
use crate::{
    identity::{Caller, Identify, IdentityError},
    outage::{Answer, Guarded},
    store::{Charge, Decision, Spend, Verdict},
};

/// A service behind admission. Made by [`AdmissionLayer`](super::AdmissionLayer).
pub struct AdmissionService<T, S, I> {
    inner: T,
    gate: Arc<Gate<S, I>>,
}

impl<T, S, I> AdmissionService<T, S, I> {
    pub(super) fn new(inner: T, gate: Arc<Gate<S, I>>) -> Self {
        Self { inner, gate }
    }
}

impl<T: Clone, S, I> Clone for AdmissionService<T, S, I> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: Arc::clone(&self.gate) }
    }
}

impl<T: std::fmt::Debug, S, I> std::fmt::Debug for AdmissionService<T, S, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmissionService").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<T, S, I, ReqBody, ResBody> Service<Request<ReqBody>> for AdmissionService<T, S, I>
where
    T: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    S: Spend,
    I: Identify,
    ResBody: Body<Data = Bytes>,
{
    type Response = Response<AdmissionBody<ResBody>>;
    type Error = T::Error;
    type Future = AdmissionFuture<T, S, I, ReqBody>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), T::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        // The instance that was polled ready must be the one that is called.
        let clone = self.inner.clone();
        let inner = mem::replace(&mut self.inner, clone);
        AdmissionFuture {
            step: Step::Identify { pending: self.gate.identity.identify(&request) },
            waiting: Some((inner, request)),
            gate: Arc::clone(&self.gate),
            began: Instant::now(),
        }
    }
}

pin_project! {
    /// A request on its way through admission.
    pub struct AdmissionFuture<T, S, I, ReqBody>
    where
        T: Service<Request<ReqBody>>,
        S: Spend,
        I: Identify,
    {
        #[pin]
        step: Step<I::Future, S::Future, T::Future>,
        waiting: Option<(T, Request<ReqBody>)>,
        gate: Arc<Gate<S, I>>,
        began: Instant,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<Identifying, Spending, Passed> {
        Identify { #[pin] pending: Identifying },
        Spend { #[pin] pending: Guarded<Spending>, agent: Option<crate::AgentId> },
        Pass { #[pin] pending: Passed, verdict: Option<Verdict> },
    }
}

impl<T, S, I, ReqBody, ResBody> Future for AdmissionFuture<T, S, I, ReqBody>
where
    T: Service<Request<ReqBody>, Response = Response<ResBody>>,
    S: Spend,
    I: Identify,
    ResBody: Body<Data = Bytes>,
{
    type Output = Result<Response<AdmissionBody<ResBody>>, T::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let gate = &**this.gate;
        loop {
            let next = match this.step.as_mut().project() {
                StepProjection::Identify { pending } => match ready!(pending.poll(context)) {
                    Ok(Caller { agent, .. }) => {
                        let takes = Arc::clone(&gate.plan.takes);
                        let charge = Charge { agent: agent.clone(), takes };
                        let pending = gate.guard.spend(charge, &gate.plan);
                        Step::Spend { pending, agent: Some(agent) }
                    }
                    Err(error) => {
                        match &error {
                            IdentityError::NoAgent(_) => gate.metrics.no_agent.increment(1),
                            IdentityError::Unavailable { .. } => {
                                gate.metrics.identity_unavailable.increment(1);
                            }
                            IdentityError::Unauthenticated { .. }
                            | IdentityError::ApiKey { .. } => {
                                gate.metrics.unauthenticated.increment(1);
                            }
                        }
                        return Poll::Ready(Ok(response::unidentified(&error, &gate.realm)));
                    }
                },
                StepProjection::Spend { pending, agent } => {
                    let answer = ready!(pending.poll(context));
                    gate.metrics.seconds.record(this.began.elapsed());
                    match refusal(gate, &answer) {
                        Some(refusal) => return Poll::Ready(Ok(refusal)),
                        None => {
                            let (mut inner, mut request) =
                                this.waiting.take().expect("a request passes once");
                            let agent = agent.take().expect("a request passes once");
                            request.extensions_mut().insert(agent);
                            let verdict = match answer {
                                Answer::Decided(verdict) if gate.headers => Some(verdict),
                                _ => None,
                            };
                            Step::Pass { pending: inner.call(request), verdict }
                        }
                    }
                }
                StepProjection::Pass { pending, verdict } => {
                    let mut response = ready!(pending.poll(context))?;
                    if let Some(verdict) = verdict {
                        response::put_fields(response.headers_mut(), verdict, None);
                    }
                    return Poll::Ready(Ok(response.map(AdmissionBody::passed)));
                }
            };
            this.step.set(next);
        }
    }
}

/// Counts the decision, and returns what to answer instead of passing the request on.
fn refusal<S, I, B>(gate: &Gate<S, I>, answer: &Answer) -> Option<Response<AdmissionBody<B>>> {
    let metrics = &gate.metrics;
    let verdict = match answer {
        Answer::Decided(verdict) => verdict,
        Answer::Open => {
            metrics.outage_open.increment(1);
            return None;
        }
        Answer::Closed => {
            metrics.outage_closed.increment(1);
            return Some(response::store_down());
        }
    };
    if let Decision::Banned { for_ms } = verdict.decision {
        metrics.banned.increment(1);
        return Some(response::banned(for_ms));
    }
    for held in verdict.held() {
        metrics.utilization.record(held.utilization());
    }
    match verdict.decision {
        Decision::Denied { wait_ms } => {
            metrics.denied.increment(1);
            Some(response::denied(verdict, wait_ms, gate.headers))
        }
        _ => {
            metrics.admitted.increment(1);
            None
        }
    }
}
