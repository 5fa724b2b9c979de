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
use http::{HeaderMap, Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tower_service::Service;

use super::{
    body::{AdmissionBody, Settlement},
    concurrency::Permit,
    fields::Outcome,
    layer::Gate,
    path::TwoWays,
    plan::Plan,
    refusal::Refusal,
    reservation::Reservation,
    route,
};
use crate::{
    AgentId,
    identity::{Caller, Identify},
    outage::{Answer, By, Guarded},
    store::{Charge, Decision, Spend, Take, Verdict},
};

/// A service behind admission. Made by [`AdmissionLayer`](super::AdmissionLayer).
pub struct AdmissionService<T, S, I> {
    inner: T,
    gate: Arc<Gate<S, I>>,
    own: Option<Arc<Plan>>,
}

impl<T, S, I> AdmissionService<T, S, I> {
    pub(super) fn new(inner: T, gate: Arc<Gate<S, I>>, own: Option<Arc<Plan>>) -> Self {
        Self { inner, gate, own }
    }
}

impl<T: Clone, S, I> Clone for AdmissionService<T, S, I> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), gate: Arc::clone(&self.gate), own: self.own.clone() }
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
        let route = match self.own {
            Some(_) => Ok(None),
            None => route::find(&self.gate.routes, &request),
        };
        AdmissionFuture {
            step: Step::Identify { pending: self.gate.identity.identify(&request) },
            waiting: Some((inner, request)),
            began: S::REMOTE.then(Instant::now),
            shared: Shared { gate: Arc::clone(&self.gate), own: self.own.clone(), route },
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
        began: Option<Instant>,
        shared: Shared<S, I>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<Identifying, Spending, Passing> {
        Identify { #[pin] pending: Identifying },
        Spend { #[pin] pending: Guarded<Spending>, asker: Option<Asker> },
        Pass { #[pin] pending: Passing, passed: Passed },
    }
}

/// Who waits for a decision.
struct Asker {
    caller: Caller,
    permit: Option<Permit>,
    /// What the request takes, where that must be remembered until the answer.
    takes: Option<Arc<[Take]>>,
}

/// What a request that passed takes along.
#[derive(Default)]
struct Passed {
    verdict: Option<Verdict>,
    permit: Option<Permit>,
    reservation: Option<Reservation>,
}

/// What comes after a step.
enum Next<F> {
    Spend(Guarded<F>, Asker),
    Pass(Option<Caller>, Passed),
    Refuse(Refusal, Option<Verdict>),
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
        let shared = &*this.shared;
        loop {
            let next = match this.step.as_mut().project() {
                StepProjection::Identify { pending } => {
                    let learned = ready!(pending.poll(context));
                    let (_, request) = this.waiting.as_ref().expect("a request passes once");
                    match learned {
                        Ok(caller) => shared.ask(caller, request),
                        Err(error) => shared.refuse(error.into(), None, None),
                    }
                }
                StepProjection::Spend { pending, asker } => {
                    let answer = ready!(pending.poll(context, &shared.gate.guard));
                    if let Some(began) = this.began {
                        shared.gate.metrics.seconds.record(began.elapsed());
                    }
                    shared.weigh(answer, asker.take().expect("a request is decided once"))
                }
                StepProjection::Pass { pending, passed } => {
                    let answer = ready!(pending.poll(context));
                    return Poll::Ready(shared.answer(answer, mem::take(passed)));
                }
            };
            let step = match next {
                Next::Spend(pending, asker) => Step::Spend { pending, asker: Some(asker) },
                Next::Refuse(refusal, verdict) => {
                    let (_, request) = this.waiting.take().expect("a request is refused once");
                    let response = shared.respond(&refusal, request.headers(), verdict.as_ref());
                    return Poll::Ready(Ok(response.map(AdmissionBody::refused)));
                }
                Next::Pass(caller, passed) => {
                    let (mut inner, mut request) =
                        this.waiting.take().expect("a request passes once");
                    if let Some(Caller { agent, .. }) = caller {
                        request.extensions_mut().insert(agent);
                    }
                    if let Some(reservation) = &passed.reservation
                        && shared.plan().reserve
                    {
                        request.extensions_mut().insert(reservation.clone());
                    }
                    Step::Pass { pending: inner.call(request), passed }
                }
            };
            this.step.set(step);
        }
    }
}

/// What all steps of one request share.
struct Shared<S, I> {
    gate: Arc<Gate<S, I>>,
    own: Option<Arc<Plan>>,
    route: Result<Option<usize>, TwoWays>,
}

impl<S: Spend, I: Identify> Shared<S, I> {
    fn plan(&self) -> &Plan {
        match (&self.own, self.route) {
            (Some(own), _) => own,
            (None, Ok(Some(index))) => &self.gate.routes[index].plan,
            (None, Ok(None) | Err(TwoWays)) => &self.gate.base,
        }
    }

    /// Asks the store for the caller's tokens, unless it is clear without.
    fn ask<B>(&self, caller: Caller, request: &Request<B>) -> Next<S::Future> {
        let (gate, plan) = (&*self.gate, self.plan());
        if !gate.allow.is_empty() && gate.allow.contains(&caller.agent) {
            gate.metrics.allowed.increment(1);
            return Next::Pass(Some(caller), Passed::default());
        }
        if self.route.is_err() && !plan.shadow {
            return self.refuse(Refusal::AmbiguousPath, Some(caller), None);
        }
        let permit = match &gate.in_flight {
            None => None,
            Some(places) => match places.enter(&caller.agent) {
                Some(permit) => Some(permit),
                None => {
                    let refusal = Refusal::TooManyInFlight { limit: places.limit() };
                    return self.refuse(refusal, Some(caller), None);
                }
            },
        };
        let takes = plan.takes(request);
        let remembered = plan.remembers().then(|| Arc::clone(&takes));
        let charge = Charge { agent: caller.agent.clone(), takes };
        let pending = gate.guard.spend(charge, plan.on_outage);
        Next::Spend(pending, Asker { caller, permit, takes: remembered })
    }

    /// Weighs what the store has answered, and counts it.
    fn weigh(&self, answer: Answer, asker: Asker) -> Next<S::Future> {
        let (gate, plan) = (&*self.gate, self.plan());
        let Asker { caller, permit, takes } = asker;
        let (verdict, by) = match answer {
            Answer::Decided(verdict, by) => (verdict, by),
            Answer::Open => {
                gate.metrics.outage_open.increment(1);
                return Next::Pass(Some(caller), Passed { permit, ..Passed::default() });
            }
            Answer::Closed => return self.refuse(Refusal::StoreDown, Some(caller), permit),
        };
        match verdict.decision {
            Decision::Banned { for_ms } => {
                self.refuse(Refusal::Banned { for_ms }, Some(caller), permit)
            }
            Decision::Denied { wait_ms } => {
                gate.metrics.utilization(&verdict);
                let jitter_ms = gate.answers.jitter_ms();
                let refusal = Refusal::denied(&plan.short(&verdict), wait_ms, jitter_ms);
                if plan.shadow {
                    plan.count_would_deny(&verdict);
                    return self.refuse(refusal, Some(caller), permit);
                }
                gate.metrics.refused(&refusal, false);
                Next::Refuse(refusal, Some(verdict))
            }
            Decision::Admitted => {
                gate.metrics.admitted.increment(1);
                gate.metrics.utilization(&verdict);
                plan.count_would_deny(&verdict);
                let reservation =
                    takes.map(|takes| self.reserve(&caller.agent, &takes, &verdict, by));
                let verdict = (!plan.shadow).then_some(verdict);
                Next::Pass(Some(caller), Passed { verdict, permit, reservation })
            }
        }
    }

    /// Counts a refusal. In shadow mode the request passes on all the same.
    fn refuse(
        &self,
        refusal: Refusal,
        caller: Option<Caller>,
        permit: Option<Permit>,
    ) -> Next<S::Future> {
        let shadow = self.plan().shadow;
        self.gate.metrics.refused(&refusal, shadow);
        match shadow {
            true => Next::Pass(caller, Passed { permit, ..Passed::default() }),
            false => Next::Refuse(refusal, None),
        }
    }

    fn reserve(
        &self,
        agent: &AgentId,
        takes: &Arc<[Take]>,
        verdict: &Verdict,
        by: By,
    ) -> Reservation {
        let to = Arc::clone(&self.gate);
        Reservation::new(to, by, agent.clone(), takes, verdict, self.plan())
    }

    /// Adds to the service's answer what the caller should know, and settles what it cost.
    fn answer<B, E>(
        &self,
        answer: Result<Response<B>, E>,
        passed: Passed,
    ) -> Result<Response<AdmissionBody<B>>, E> {
        let plan = self.plan();
        let Passed { verdict, permit, reservation } = passed;
        let failed = match &answer {
            Ok(response) => response.status().is_server_error(),
            Err(_) => true,
        };
        if failed
            && plan.refund_on_5xx
            && let Some(reservation) = &reservation
        {
            reservation.refund();
        }
        let mut response = answer?;
        let mut settlement = None;
        if let (Some(from), Some(reservation)) = (&plan.settle_from, reservation) {
            let pending = Settlement::new(from.clone(), reservation);
            if !pending.read(response.headers_mut()) {
                settlement = Some(Box::new(pending));
            }
        }
        if !plan.shadow {
            let places_left = permit.as_ref().map(|permit| permit.left);
            let outcome = Outcome { verdict: verdict.as_ref(), retry_after: None, places_left };
            if verdict.is_some() || places_left.is_some() {
                plan.shown.put(response.headers_mut(), self.gate.answers.choice, outcome);
            }
        }
        Ok(response.map(|body| AdmissionBody::passed(body, permit, settlement)))
    }

    fn respond(
        &self,
        refusal: &Refusal,
        head: &HeaderMap,
        verdict: Option<&Verdict>,
    ) -> Response<Bytes> {
        self.gate.answers.respond(refusal, head, &self.plan().shown, verdict)
    }
}
