//! A loan on its way: one at a time for an agent and plan, and the requests that wait for it.
//!
//! A loan belongs to no request: it is carried to its end by a task of its own, so that a caller
//! who goes away takes nobody's answer along. What was taken for such a caller stays in the lease.

use std::{
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
};

use tokio::sync::oneshot;

use super::{
    Inner,
    agents::Booking,
    lease::{Answer, Lease, Waiters, paid},
};
use crate::store::{Charge, Decision, Lend, Loan, StoreError};

/// Who asked for a loan, and so is the one whose charge the store decides.
enum Leader {
    /// The request that is being decided right now.
    Here,
    /// A request that waits.
    Away(oneshot::Sender<Answer>),
    /// Nobody: the lease is renewed before it runs dry.
    Nobody,
}

/// What a request gets that leads a loan.
pub(super) enum Led {
    /// The store answered at once.
    Answered(Answer),
    /// It will come here.
    Wait(oneshot::Receiver<Answer>),
}

/// A further loan, for requests that still wait when one has landed.
struct Next {
    leader: oneshot::Sender<Answer>,
    most: u32,
}

/// A loan on its way. Dropped before it landed, it lets those who wait ask the store themselves.
pub(super) struct Flight<S: Lend> {
    inner: Arc<Inner<S>>,
    charge: Charge,
    /// How many multiples the loan is to bring.
    most: u32,
    sent_ms: u64,
    leader: Leader,
    landed: bool,
}

impl<S: Lend> Flight<S> {
    fn new(inner: &Arc<Inner<S>>, charge: Charge, leader: Leader) -> Self {
        let sent_ms = inner.now_ms();
        Self { inner: Arc::clone(inner), charge, most: 0, sent_ms, leader, landed: false }
    }

    /// Asks the store for `charge` and up to `most` multiples more. The lease is marked already.
    pub(super) fn lead(inner: &Arc<Inner<S>>, charge: Charge, most: u32) -> Led {
        let mut flight = Self::new(inner, charge, Leader::Here);
        let mut loan = flight.ask(most);
        // Many a store answers at once. The task asks anew, with a waker, whoever does not.
        if let Poll::Ready(result) = loan.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            let (answer, next) = flight.land(result);
            if let Some(next) = next {
                let loan = flight.again(next);
                inner.runtime.spawn(flight.carry(loan));
            }
            return Led::Answered(answer.expect("the leader is here"));
        }
        let (sender, receiver) = oneshot::channel();
        flight.leader = Leader::Away(sender);
        inner.runtime.spawn(flight.carry(loan));
        Led::Wait(receiver)
    }

    /// Takes `charge` and up to `most` multiples more ahead, in the background.
    pub(super) fn renew(inner: &Arc<Inner<S>>, charge: Charge, most: u32) {
        let mut flight = Self::new(inner, charge, Leader::Nobody);
        inner.runtime.spawn(async move {
            let loan = flight.ask(most);
            flight.carry(loan).await;
        });
    }

    fn ask(&mut self, most: u32) -> Pin<Box<S::Loan>> {
        self.most = most;
        self.inner.meters.loans.increment(1);
        Box::pin(self.inner.store.lend(self.charge.clone(), most))
    }

    /// Asks again, for a request that still waits.
    fn again(&mut self, Next { leader, most }: Next) -> Pin<Box<S::Loan>> {
        self.leader = Leader::Away(leader);
        self.sent_ms = self.inner.now_ms();
        self.landed = false;
        self.ask(most)
    }

    /// Waits for the loan, and takes further ones while requests wait for them.
    async fn carry(mut self, mut loan: Pin<Box<S::Loan>>) {
        loop {
            let result = loan.await;
            match self.land(result) {
                (_, Some(next)) => loan = self.again(next),
                (_, None) => return,
            }
        }
    }

    /// Books what the store answered, and hands it out: first to the leader, then to those who wait.
    /// Waking them is all that happens under the lock besides.
    ///
    /// A further loan is asked for when this one brought all it was to bring, and for no more
    /// requests than it is to serve. From a bucket that had less, each loan would admit a few and the
    /// line would move at the pace of the refill: those still in it ask the store themselves, at
    /// once, so that nobody waits for more than two loans and an answer of its own.
    fn land(&mut self, result: Result<Loan, StoreError>) -> (Option<Answer>, Option<Next>) {
        self.landed = true;
        let inner = &*self.inner;
        let (now_ms, bounds) = (inner.now_ms(), &inner.bounds);
        let mut agents = inner.agents(&self.charge.agent);
        let lease = agents.lease(&self.charge).expect("a lease in flight is never dropped");
        let mut waiters = lease.flight.take().expect("this loan is the one in flight");

        let Charge { agent, takes } = self.charge.clone();
        let refused = lease.uncounted().map(|refused| Booking::refused(&agent, refused));
        let (mut count, mut scarce, mut partial) = (0, false, None);
        let outcome = match result {
            Ok(loan) => {
                inner.meters.lent.increment(u64::from(loan.ahead));
                let decision = loan.verdict.decision;
                scarce = loan.ahead < self.most;
                if decision == Decision::Admitted {
                    partial =
                        Some(paid(&takes, &loan.verdict)).filter(|paid| !Arc::ptr_eq(paid, &takes));
                }
                count = lease.landed(loan, self.sent_ms, now_ms, bounds);
                Ok(decision == Decision::Admitted)
            }
            Err(error) => {
                lease.failed(now_ms);
                Err(error)
            }
        };
        let answer = |lease: &mut Lease| match &outcome {
            Ok(_) => Ok(lease.lead(now_ms)),
            Err(error) => lease.take(now_ms).ok_or_else(|| error.clone()),
        };
        let mut here = None;
        let unused = match mem::replace(&mut self.leader, Leader::Nobody) {
            Leader::Here => {
                here = Some(answer(lease));
                false
            }
            Leader::Away(sender) => !tell(sender, answer(lease)),
            Leader::Nobody => matches!(outcome, Ok(true)),
        };
        // A part of a multiple admits nobody: it goes back at once.
        let partial = partial.filter(|_| unused);
        if unused && partial.is_none() {
            lease.keep();
        }
        hand_out(lease, &mut waiters, now_ms);
        let mut next = None;
        if matches!(outcome, Ok(true)) {
            while let Some(leader) = if scarce { None } else { waiters.pop_front() } {
                if !leader.is_closed() {
                    let closed = inner.is_closed();
                    let most = if closed { 0 } else { lease.wanted(waiters.len(), now_ms, bounds) };
                    waiters.truncate(usize::try_from(most).unwrap_or(usize::MAX));
                    next = Some(Next { leader, most });
                    break;
                }
            }
        } else {
            while let Some(waiter) = waiters.pop_front() {
                if !tell(waiter, answer(lease)) {
                    lease.keep();
                }
            }
        }
        if next.is_some() {
            lease.flight = Some(waiters);
        } else {
            drop(waiters);
        }
        drop(agents);

        inner.book(refused.into_iter().chain([Booking::back(&agent, &takes, count)]));
        let partial = partial.filter(|takes| !takes.is_empty());
        inner.book(partial.map(|takes| Booking::back(&agent, &takes, 1)));
        if next.is_none() {
            inner.landed();
        }
        (here, next)
    }
}

impl<S: Lend> Drop for Flight<S> {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        // The task was cut off: its runtime ends, or the store panicked.
        let waiters = self.inner.agents(&self.charge.agent).lease(&self.charge).map(|lease| {
            lease.failed(self.inner.now_ms());
            lease.flight.take()
        });
        drop(waiters);
        self.inner.landed();
    }
}

/// Answers a request that waits; false when it has gone away and does not use what was taken for it.
fn tell(waiter: oneshot::Sender<Answer>, answer: Answer) -> bool {
    !matches!(waiter.send(answer), Err(Ok(unheard)) if unheard.decision == Decision::Admitted)
}

/// Spends what the lease holds on those who wait, in their order.
pub(super) fn hand_out(lease: &mut Lease, waiters: &mut Waiters, now_ms: u64) {
    while !waiters.is_empty() {
        let Some(verdict) = lease.take(now_ms) else { return };
        if let Some(waiter) = waiters.pop_front()
            && !tell(waiter, Ok(verdict))
        {
            lease.keep();
        }
    }
}
