//! What happens when the store does not answer: open, closed, or a limit of this node's own.
//!
//! 1. A store that failed [`FAILURES_TO_OPEN`] times in a row is left alone: the breaker opens, and
//!    decisions follow the policy at once instead of waiting for their deadline.
//! 2. While it is open, one decision every [`PROBE_INTERVAL`] asks the store after all; the first
//!    answer closes it.
//! 3. `Local` limits at each agent's last known limits divided by the number of nodes that share
//!    them; bans hold. It is the in-process store: the same arithmetic, the same answers. What an
//!    agent had already spent in Redis is not known here, so an outage gives it at most one more
//!    bucket, shared by all nodes: `capacity` (each node's share rounded up) and its refill.
//!    There is one breaker: of a cluster, a shard that is away opens it now and then for the agents of
//!    the others too.
//! 4. A fault of one agent's data is that agent's: its requests follow the policy, and the breaker
//!    stays closed for everybody else.

use std::{
    future::Future,
    num::NonZeroU32,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use metrics::Counter;
use pin_project_lite::pin_project;
use tracing::{debug, info, warn};

use crate::{
    AgentId,
    store::{Charge, Decision, Held, MemoryStore, Settlement, Spend, StoreError, Take, Verdict},
};

/// Failures in a row after which the store is left alone.
pub const FAILURES_TO_OPEN: u32 = 5;

/// How often a store that is left alone is asked again: every 100 ms.
pub const PROBE_INTERVAL: Duration = Duration::from_millis(PROBE_INTERVAL_MS);

const PROBE_INTERVAL_MS: u64 = 100;

/// How many agents the node's own limits are kept for; see [`MemoryStore::with_capacity`].
const LOCAL_AGENTS_MAX: usize = 1 << 17;

/// What to do with a request when the store does not answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Outage {
    /// Pass it on, unlimited.
    Open,
    /// Answer 503 with `Retry-After`.
    Closed,
    /// Limit it on this node, at the agent's last known limits ÷ the number of nodes.
    #[default]
    Local,
}

/// How a decision came about.
#[derive(Debug)]
pub(crate) enum Answer {
    /// Somebody decided.
    Decided(Verdict, By),
    /// The store did not answer, and the policy is to pass.
    Open,
    /// The store did not answer, and the policy is to refuse.
    Closed,
}

/// Who decided, and so where a correction belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// The store.
    Store,
    /// This node in its place.
    Node,
}

/// A store, and what stands in for it.
pub(crate) struct Guard<S> {
    store: S,
    nodes: NonZeroU32,
    breaker: Breaker,
    local: MemoryStore,
    failures: Counter,
    skipped: Counter,
}

impl<S: Spend> Guard<S> {
    pub(crate) fn new(store: S, nodes: NonZeroU32) -> Self {
        Self {
            store,
            nodes,
            breaker: Breaker::new(),
            local: MemoryStore::with_capacity(LOCAL_AGENTS_MAX),
            failures: metrics::counter!("merit_store_failures_total"),
            skipped: metrics::counter!("merit_store_skipped_total"),
        }
    }

    /// Returns the store's verdict, where it has one without asking anybody.
    pub(crate) fn spend_now(
        &self,
        agent: &AgentId,
        takes: &Arc<[Take]>,
        now: tokio::time::Instant,
    ) -> Option<Verdict> {
        self.store.spend_now(agent, takes, now)
    }

    /// Asks for `charge`; `policy` holds when the store does not answer.
    pub(crate) fn spend(&self, charge: Charge, policy: Outage) -> Guarded<S::Future> {
        if !S::REMOTE {
            return Guarded { asked: Some(self.store.spend(charge)), fallback: None, policy };
        }
        let asked = self.breaker.admits().then(|| self.store.spend(charge.clone()));
        if asked.is_none() {
            self.skipped.increment(1);
        }
        Guarded { asked, fallback: Some(charge), policy }
    }

    /// Corrects a charge where it was decided.
    pub(crate) fn settle(&self, mut settlement: Settlement, by: By) {
        match by {
            By::Store => self.store.settle(settlement),
            By::Node => {
                settlement.takes = self.shares(&settlement.takes);
                self.local.settle(settlement);
            }
        }
    }

    /// Returns the buckets of `takes` with this node's share of their limits.
    fn shares(&self, takes: &[Take]) -> Arc<[Take]> {
        let share = |take: &Take| {
            let mut take = take.clone();
            take.bucket.limits = take.bucket.limits.divided_by(self.nodes);
            take
        };
        takes.iter().map(share).collect()
    }

    /// Decides in the store's place.
    fn decide(&self, charge: Option<Charge>, policy: Outage) -> Answer {
        match (policy, charge) {
            (Outage::Local, Some(Charge { agent, takes })) => {
                Answer::Decided(self.local.decide(&agent, &self.shares(&takes)), By::Node)
            }
            (Outage::Open, _) => Answer::Open,
            (Outage::Closed | Outage::Local, _) => Answer::Closed,
        }
    }

    /// Remembers a ban, or the limits in force where they are not the configured ones.
    fn learn(&self, charge: &Charge, verdict: &Verdict) {
        if let Decision::Banned { for_ms } = verdict.decision {
            return self.local.ban_for(&charge.agent, for_ms);
        }
        for (Held { limits, .. }, take) in verdict.held().zip(&*charge.takes) {
            let own = (*limits != take.bucket.limits).then(|| limits.divided_by(self.nodes));
            self.local.learn(&charge.agent, &take.bucket, own);
        }
    }
}

pin_project! {
    /// A pending decision.
    pub(crate) struct Guarded<F> {
        #[pin]
        asked: Option<F>,
        // What to decide here when the store does not; nothing when it cannot fail.
        fallback: Option<Charge>,
        policy: Outage,
    }
}

impl<F> Guarded<F>
where
    F: Future<Output = Result<Verdict, StoreError>>,
{
    /// Polls the decision that `guard` was asked for.
    pub(crate) fn poll<S: Spend>(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        guard: &Guard<S>,
    ) -> Poll<Answer> {
        let this = self.project();
        if let Some(asked) = this.asked.as_pin_mut() {
            match ready!(asked.poll(context)) {
                Ok(verdict) => {
                    if let Some(charge) = this.fallback.as_ref() {
                        guard.breaker.succeeded();
                        if *this.policy == Outage::Local {
                            guard.learn(charge, &verdict);
                        }
                    }
                    return Poll::Ready(Answer::Decided(verdict, By::Store));
                }
                Err(error) => {
                    guard.failures.increment(1);
                    if error.is_transient() {
                        guard.breaker.failed(&error);
                    } else {
                        // The store did answer.
                        guard.breaker.succeeded();
                        debug!(%error, "one agent's bucket is malformed");
                    }
                }
            }
        }
        Poll::Ready(guard.decide(this.fallback.take(), *this.policy))
    }
}

/// Leaves a failing store alone, and asks it again now and then.
struct Breaker {
    failures: AtomicU32,
    /// Milliseconds since `started` at which the next probe may go.
    probe_at_ms: AtomicU64,
    started: Instant,
}

impl Breaker {
    fn new() -> Self {
        Self {
            failures: AtomicU32::new(0),
            probe_at_ms: AtomicU64::new(0),
            started: Instant::now(),
        }
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns true when the store may be asked.
    fn admits(&self) -> bool {
        if self.failures.load(Ordering::Relaxed) < FAILURES_TO_OPEN {
            return true;
        }
        let (now_ms, due_ms) = (self.now_ms(), self.probe_at_ms.load(Ordering::Relaxed));
        now_ms >= due_ms && self.take_probe(due_ms, now_ms)
    }

    /// Returns true for the one caller that may probe now.
    fn take_probe(&self, due_ms: u64, now_ms: u64) -> bool {
        let next_ms = now_ms + PROBE_INTERVAL_MS;
        let order = Ordering::Relaxed;
        self.probe_at_ms.compare_exchange(due_ms, next_ms, order, order).is_ok()
    }

    fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) > 0
            && self.failures.swap(0, Ordering::Relaxed) >= FAILURES_TO_OPEN
        {
            info!("bucket store answers again");
        }
    }

    fn failed(&self, error: &StoreError) {
        let before = self
            .failures
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |failures| {
                Some(failures.saturating_add(1))
            })
            .unwrap_or(u32::MAX);
        if before == FAILURES_TO_OPEN - 1 {
            let due_ms = self.probe_at_ms.load(Ordering::Relaxed);
            self.take_probe(due_ms, self.now_ms());
            let cause = std::error::Error::source(error).map(ToString::to_string);
            warn!(%error, cause, "bucket store fails, the outage policy is in force");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure() -> StoreError {
        StoreError::Timeout(Duration::from_millis(20))
    }

    #[test]
    fn a_store_that_fails_is_left_alone_but_for_one_probe() {
        let breaker = Breaker::new();
        for _ in 0..FAILURES_TO_OPEN {
            assert!(breaker.admits());
            breaker.failed(&failure());
        }
        assert!(!breaker.admits(), "asked right after the last failure");
        breaker.probe_at_ms.store(0, Ordering::Relaxed);
        assert!(breaker.admits(), "no probe although it is due");
        assert!(!breaker.admits(), "a second probe at the same time");
        breaker.succeeded();
        assert!(breaker.admits());
    }

    #[test]
    fn a_success_forgives_earlier_failures() {
        let breaker = Breaker::new();
        for _ in 0..FAILURES_TO_OPEN - 1 {
            breaker.failed(&failure());
        }
        breaker.succeeded();
        breaker.failed(&failure());
        assert!(breaker.admits());
    }
}
