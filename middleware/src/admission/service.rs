//! The service: learn the agent, spend, then pass on or answer.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{Request, Response};
use http_body::Body;
use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_service::Service;

use super::{
    body::{AdmissionBody, Settlement, Whole},
    concurrency::Permit,
    fields::Outcome,
    layer::Gate,
    path::TwoWays,
    plan::Plan,
    refusal::Refusal,
    reservation::Reservation,
    response::Head,
    route,
};
use crate::{
    bucket::Tokens,
    identity::{Caller, Identify, IdentityError},
    outage::{Answer, By, Guarded},
    store::{Charge, Decision, Held, Spend, StoreError, Take, Verdict},
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

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let mut state = State::new(Arc::clone(&self.gate), self.own.clone());
        let now = Instant::now();
        let doing = match state.gate.shared.identity.identify_now(&request, now) {
            None => Doing::Identify { pending: state.gate.shared.identity.identify(&request) },
            Some(learned) => match state.ask(learned, &request, now) {
                Asked::Clear => {
                    state.introduce(&mut request);
                    let pending = self.inner.call(request);
                    return AdmissionFuture { step: Step::Pass { pending }, state };
                }
                Asked::Refused(refusal) => {
                    // Nobody calls the instance that is ready, which may hold a place of others.
                    self.inner = self.inner.clone();
                    let response = Some(state.respond(&refusal, Head::of(&request)));
                    return AdmissionFuture { step: Step::Refused { response }, state };
                }
                Asked::Spend(pending) => Doing::Spend { pending },
            },
        };
        // The instance that was polled ready must be the one that is called.
        let clone = self.inner.clone();
        let inner = Inner { service: mem::replace(&mut self.inner, clone), ready: true };
        let pending = Box::pin(Pending { doing, waiting: Some((inner, request)) });
        state.began = S::REMOTE.then_some(now);
        AdmissionFuture { step: Step::Decide { pending }, state }
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
        step: Step<T, Request<ReqBody>, I::Future, S::Future, T::Future>,
        state: State<S, I>,
    }
}

pin_project! {
    #[project = StepProjection]
    enum Step<T, Request, Identifying, Spending, Passing> {
        // In a box: whoever is decided at once does not carry the room for it.
        Decide { pending: Pin<Box<Pending<T, Request, Identifying, Spending>>> },
        Refused { response: Option<Box<Response<Bytes>>> },
        Pass { #[pin] pending: Passing },
    }
}

pin_project! {
    /// A request that nobody could decide at once.
    struct Pending<T, Request, Identifying, Spending> {
        #[pin]
        doing: Doing<Identifying, Spending>,
        waiting: Option<(Inner<T>, Request)>,
    }
}

pin_project! {
    #[project = DoingProjection]
    enum Doing<Identifying, Spending> {
        Identify { #[pin] pending: Identifying },
        Spend { #[pin] pending: Guarded<Spending> },
        // It may pass, as soon as the service behind is ready again.
        Wait,
    }
}

/// The service behind, while nobody knows whether it will be called.
struct Inner<T> {
    service: T,
    ready: bool,
}

impl<T: Clone> Inner<T> {
    /// Lets go of what being ready may hold, a place of a `ConcurrencyLimit` or in a `Buffer`: a
    /// request whose decision takes time must not keep it from others.
    fn give_way(&mut self) {
        if mem::take(&mut self.ready) {
            self.service = self.service.clone();
        }
    }
}

/// What a pending request came to.
enum Decided<T: Service<Request>, Request> {
    /// The service behind was asked.
    Passed(T::Future),
    /// It was not.
    Refused(Box<Response<Bytes>>),
    /// It failed before it could be.
    Failed(T::Error),
}

impl<T, ReqBody, Identifying, Spending> Pending<T, Request<ReqBody>, Identifying, Spending>
where
    T: Service<Request<ReqBody>> + Clone,
    Identifying: Future<Output = Result<Caller, IdentityError>>,
    Spending: Future<Output = Result<Verdict, StoreError>>,
{
    fn poll<S, I>(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        state: &mut State<S, I>,
    ) -> Poll<Decided<T, Request<ReqBody>>>
    where
        S: Spend<Future = Spending>,
        I: Identify,
    {
        let mut this = self.project();
        let (inner, request) = this.waiting.as_mut().expect("a request passes once");
        loop {
            let decided = match this.doing.as_mut().project() {
                DoingProjection::Identify { pending } => {
                    let Poll::Ready(learned) = pending.poll(context) else {
                        inner.give_way();
                        return Poll::Pending;
                    };
                    match state.ask(learned, request, Instant::now()) {
                        Asked::Spend(pending) => {
                            this.doing.set(Doing::Spend { pending });
                            continue;
                        }
                        Asked::Clear => Ok(()),
                        Asked::Refused(refusal) => Err(refusal),
                    }
                }
                DoingProjection::Spend { pending } => {
                    let Poll::Ready(answer) = pending.poll(context, &state.gate.shared.guard)
                    else {
                        inner.give_way();
                        return Poll::Pending;
                    };
                    state.weigh(answer)
                }
                DoingProjection::Wait => Ok(()),
            };
            if let Err(refusal) = decided {
                let response = state.respond(&refusal, Head::of(request));
                *this.waiting = None;
                return Poll::Ready(Decided::Refused(response));
            }
            if !inner.ready {
                this.doing.set(Doing::Wait);
                if let Err(error) = ready!(inner.service.poll_ready(context)) {
                    return Poll::Ready(Decided::Failed(error));
                }
            }
            break;
        }
        let (mut inner, mut request) = this.waiting.take().expect("a request passes once");
        state.introduce(&mut request);
        Poll::Ready(Decided::Passed(inner.service.call(request)))
    }
}

impl<T, S, I, ReqBody, ResBody> Future for AdmissionFuture<T, S, I, ReqBody>
where
    T: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    S: Spend,
    I: Identify,
    ResBody: Body<Data = Bytes>,
{
    type Output = Result<Response<AdmissionBody<ResBody>>, T::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        let state = this.state;
        loop {
            let response = match this.step.as_mut().project() {
                StepProjection::Decide { pending } => {
                    match ready!(pending.as_mut().poll(context, state)) {
                        Decided::Passed(pending) => {
                            this.step.set(Step::Pass { pending });
                            continue;
                        }
                        Decided::Refused(response) => response,
                        Decided::Failed(error) => {
                            state.failed();
                            return Poll::Ready(Err(error));
                        }
                    }
                }
                StepProjection::Refused { response } => {
                    response.take().expect("polled after it was ready")
                }
                StepProjection::Pass { pending } => {
                    return Poll::Ready(match ready!(pending.poll(context)) {
                        Ok(mut response) => {
                            state.complete(&mut response);
                            let (permit, settlement) = (&mut state.permit, &mut state.settlement);
                            Ok(response.map(|body| {
                                AdmissionBody::passed(body, permit.take(), settlement.take())
                            }))
                        }
                        Err(error) => {
                            state.failed();
                            Err(error)
                        }
                    });
                }
            };
            return Poll::Ready(Ok(response.map(AdmissionBody::refused)));
        }
    }
}

/// What one request has come to so far.
struct State<S, I> {
    gate: Arc<Gate<S, I>>,
    own: Option<Arc<Plan>>,
    route: Result<Option<usize>, TwoWays>,
    /// When somebody was asked to decide it; nothing when it was decided at once.
    began: Option<Instant>,
    caller: Option<Caller>,
    permit: Option<Box<Permit>>,
    /// What it takes, where that must be remembered until the answer.
    takes: Option<Arc<[Take]>>,
    /// What the buckets held, for the answer to tell.
    verdict: Option<Verdict>,
    /// Whether tokens were really taken for it.
    paid: bool,
    reservation: Option<Reservation>,
    /// What the answer is read for, from the moment that the request passes.
    settlement: Option<Box<Settlement>>,
    /// Who is to get a receipt with the answer.
    proof: Option<Box<Caller>>,
}

/// What comes after the caller is known, or not.
enum Asked<F> {
    /// The store decides.
    Spend(Guarded<F>),
    /// It passes without.
    Clear,
    /// It does not pass.
    Refused(Refusal),
}

impl<S: Spend, I: Identify> State<S, I> {
    fn new(gate: Arc<Gate<S, I>>, own: Option<Arc<Plan>>) -> Self {
        Self {
            gate,
            own,
            route: Ok(None),
            began: None,
            caller: None,
            permit: None,
            takes: None,
            verdict: None,
            paid: false,
            reservation: None,
            settlement: None,
            proof: None,
        }
    }

    fn plan(&self) -> &Plan {
        plan(&self.gate, self.own.as_ref(), self.route)
    }

    /// Learns which route `request` takes. Reading a path may cost more than a decision, so it is done
    /// for callers that are known.
    fn find_route<B>(&mut self, request: &Request<B>) {
        if self.own.is_none() {
            self.route = route::find(&self.gate.routes, request);
        }
    }

    /// Asks the store for the caller's tokens, unless it is clear without.
    fn ask<B>(
        &mut self,
        learned: Result<Caller, IdentityError>,
        request: &Request<B>,
        now: Instant,
    ) -> Asked<S::Future> {
        if learned.is_ok() || self.gate.shared.defaults.shadow {
            self.find_route(request);
        }
        let caller = match learned {
            Ok(caller) => self.caller.insert(caller),
            Err(error) => return self.refuse(error.into()).into(),
        };
        let gate = &*self.gate;
        if !gate.shared.allow.is_empty() && gate.shared.allow.contains(&caller.agent) {
            gate.shared.metrics.allowed.increment(1);
            return Asked::Clear;
        }
        let plan = plan(gate, self.own.as_ref(), self.route);
        if self.route.is_err() {
            return self.refuse(Refusal::AmbiguousPath).into();
        }
        if let Some(places) = &gate.shared.in_flight {
            self.permit = places.enter(&caller.agent).map(Box::new);
            if self.permit.is_none() {
                let limit = places.limit();
                return self.refuse(Refusal::TooManyInFlight { limit }).into();
            }
        }
        let takes = plan.takes(request);
        if plan.remembers() || gate.shared.receipts.is_some() {
            self.takes = Some(Arc::clone(&takes));
        }
        if let Some(verdict) = gate.shared.guard.spend_now(&caller.agent, &takes, now) {
            return self.judge(verdict, By::Store).into();
        }
        let charge = Charge { agent: caller.agent.clone(), takes: takes.into_owned() };
        Asked::Spend(gate.shared.guard.spend(charge, plan.on_outage))
    }

    /// Weighs what the store has answered, and counts it.
    fn weigh(&mut self, answer: Answer) -> Result<(), Refusal> {
        if let Some(began) = self.began {
            self.gate.shared.metrics.seconds.record(began.elapsed());
        }
        match answer {
            Answer::Decided(verdict, by) => self.judge(verdict, by),
            Answer::Open => {
                self.gate.shared.metrics.outage_open.increment(1);
                Ok(())
            }
            Answer::Closed => self.refuse(Refusal::StoreDown),
        }
    }

    fn judge(&mut self, verdict: Verdict, by: By) -> Result<(), Refusal> {
        let (gate, verdict) = (&*self.gate, &*self.verdict.insert(verdict));
        let plan = plan(gate, self.own.as_ref(), self.route);
        match verdict.decision {
            Decision::Banned { for_ms } => self.refuse(Refusal::Banned { for_ms }),
            Decision::Denied { wait_ms } => {
                gate.shared.metrics.utilization(verdict);
                let jitter_ms = gate.shared.answers.jitter_ms();
                let refusal = Refusal::denied(&plan.short(verdict), wait_ms, jitter_ms);
                if plan.shadow {
                    plan.count_would_deny(verdict);
                }
                self.refuse(refusal)
            }
            Decision::Admitted => {
                gate.shared.metrics.admitted.increment(1);
                gate.shared.metrics.utilization(verdict);
                plan.count_would_deny(verdict);
                if let (Some(takes), Some(Caller { agent, .. })) = (&self.takes, &self.caller) {
                    let really =
                        |(take, held): (&Take, &Held)| !held.short && take.cost > Tokens::ZERO;
                    self.paid = takes.iter().zip(verdict.held()).any(really);
                    if plan.remembers() {
                        let to = Arc::clone(&self.gate.shared);
                        let reservation =
                            Reservation::new(to, by, agent.clone(), takes, verdict, plan);
                        self.reservation = Some(reservation);
                    }
                }
                Ok(())
            }
        }
    }

    /// Counts a refusal. In shadow mode the request passes on all the same; the shadow of one route
    /// is about its limits, and opens it neither to strangers nor to banned agents.
    fn refuse(&self, refusal: Refusal) -> Result<(), Refusal> {
        let of_limits = matches!(refusal, Refusal::Denied { .. } | Refusal::TooManyInFlight { .. });
        let shadow = self.plan().shadow && (of_limits || self.gate.shared.defaults.shadow);
        self.gate.shared.metrics.refused(&refusal, shadow);
        if shadow { Ok(()) } else { Err(refusal) }
    }

    /// Tells the service behind who is asking, and hands it the reservation if it wants one.
    fn introduce<B>(&mut self, request: &mut Request<B>) {
        let extensions = request.extensions_mut();
        if let Some(caller) = self.caller.take() {
            if self.paid {
                self.proof =
                    self.gate.shared.receipts.as_ref().and_then(|receipts| receipts.due(&caller));
            }
            extensions.insert(caller.agent);
        }
        let plan = plan(&self.gate, self.own.as_ref(), self.route);
        if let Some(reservation) = self.reservation.as_ref().filter(|_| plan.reserve) {
            extensions.insert(reservation.clone());
        }
        if let Some(from) = &plan.settle_from {
            self.settlement = Settlement::new(from, self.reservation.as_ref(), Whole::of(request));
        }
    }

    /// Gives up on a service that failed.
    fn failed(&mut self) {
        self.refund();
        if let Some(settlement) = &mut self.settlement {
            settlement.let_stand();
        }
    }

    fn refund(&self) {
        if self.plan().refund_on_5xx
            && let Some(reservation) = &self.reservation
        {
            reservation.refund();
        }
    }

    /// Adds to the service's answer what the caller should know, and settles what it cost. What is
    /// left is the body's.
    fn complete<B: Body>(&mut self, response: &mut Response<B>) {
        if response.status().is_server_error() {
            self.refund();
        }
        if let Some(settlement) = &mut self.settlement {
            settlement.read(response.headers_mut());
            settlement.begin(response);
        }
        let plan = plan(&self.gate, self.own.as_ref(), self.route);
        let given_back = self.reservation.as_ref().is_some_and(Reservation::is_given_back);
        let verdict = self.verdict.as_ref();
        let places_left = self.permit.as_ref().map(|permit| permit.left);
        if !plan.shadow && (verdict.is_some() || places_left.is_some()) {
            let outcome = Outcome { verdict, retry_after: None, places_left };
            plan.shown.put(response.headers_mut(), self.gate.shared.answers.choice, outcome);
        }
        if let (Some(receipts), Some(caller), false) =
            (&self.gate.shared.receipts, &self.proof, given_back)
        {
            receipts.attach(caller, response.headers_mut());
        }
    }

    fn respond(&mut self, refusal: &Refusal, head: Head<'_>) -> Box<Response<Bytes>> {
        self.permit = None;
        let (answers, shown) = (&self.gate.shared.answers, &self.plan().shown);
        Box::new(answers.respond(refusal, head, shown, self.verdict.as_ref()))
    }
}

impl<F> From<Result<(), Refusal>> for Asked<F> {
    fn from(decided: Result<(), Refusal>) -> Self {
        match decided {
            Ok(()) => Self::Clear,
            Err(refusal) => Self::Refused(refusal),
        }
    }
}

/// Returns how a request is charged and answered. Beside [`State`], so that its other fields can be
/// written meanwhile.
fn plan<'a, S, I>(
    gate: &'a Gate<S, I>,
    own: Option<&'a Arc<Plan>>,
    route: Result<Option<usize>, TwoWays>,
) -> &'a Plan {
    match (own, route) {
        (Some(own), _) => own,
        (None, Ok(Some(index))) => &gate.routes[index].plan,
        (None, Ok(None) | Err(TwoWays)) => &gate.base,
    }
}
