//! Reserve, then settle: a request is charged what it will probably cost, and corrected once.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use super::{cost::clamped, plan::Plan};
use crate::{
    AgentId,
    bucket::Tokens,
    outage::By,
    store::{Direction, Settlement, Take, Verdict},
};

/// What a request was charged, for the service behind to correct once the true cost is known.
///
/// It is in the extensions of requests on routes with [`Route::reserve`](super::Route::reserve).
/// What was charged stands until somebody settles, and when nobody does. Clones share the one
/// settlement, so a handle can be moved into the end of a streamed answer.
///
/// A settlement is sent without waiting, and at most once: when the store does not answer just then,
/// what was charged stands.
///
/// ```
/// use tower_merit::{Reservation, Route};
///
/// # let _ =
/// // An LLM's route: 1,000 tokens are reserved, what was generated is settled at the end.
/// Route::path("/v1/chat").bucket("tokens").default_cost(1).cost(1_000).reserve(true);
///
/// fn finished(reservation: &Reservation, prompt: u64, completion: u64) {
///     reservation.settle(prompt + completion);
/// }
/// # let _ = finished;
/// ```
#[derive(Clone)]
pub struct Reservation(Arc<Reserved>);

/// Whoever carries settlements to the store that decided.
pub(super) trait Settle: Send + Sync {
    fn settle(&self, settlement: Settlement, by: By);
}

struct Reserved {
    to: Arc<dyn Settle>,
    by: By,
    agent: AgentId,
    /// What was taken: a bucket that was only watched and held too little is not there.
    taken: Arc<[Take]>,
    /// What was taken at the route's cost; the default bucket may have a cost of its own.
    metered: Arc<[Take]>,
    cost: Tokens,
    open: AtomicBool,
    /// Whether nothing of what was taken is left taken.
    given_back: AtomicBool,
}

impl Reservation {
    /// Returns the reservation of a request that was admitted with `verdict`.
    pub(super) fn new(
        to: Arc<dyn Settle>,
        by: By,
        agent: AgentId,
        takes: &Arc<[Take]>,
        verdict: &Verdict,
        plan: &Plan,
    ) -> Self {
        let whole = verdict.held().all(|held| !held.short);
        let taken: Arc<[Take]> = match whole {
            true => Arc::clone(takes),
            false => (takes.iter().zip(verdict.held()))
                .filter(|(_, held)| !held.short)
                .map(|(take, _)| take.clone())
                .collect(),
        };
        let metered: Arc<[Take]> = match taken.iter().all(|take| plan.settles(&take.bucket)) {
            true => Arc::clone(&taken),
            false => taken.iter().filter(|take| plan.settles(&take.bucket)).cloned().collect(),
        };
        let cost = metered.first().map_or(Tokens::ZERO, |take| take.cost);
        debug_assert!(metered.iter().all(|take| take.cost == cost), "a route has one cost");
        let (open, given_back) = (AtomicBool::new(true), AtomicBool::new(false));
        Self(Arc::new(Reserved { to, by, agent, taken, metered, cost, open, given_back }))
    }

    /// Returns the tokens that were reserved in each of the buckets that are settled.
    #[must_use]
    pub fn reserved(&self) -> u64 {
        self.0.cost.get()
    }

    /// Corrects the charge to `actual` tokens: gives back what was too much, takes what was too
    /// little, even into debt. At most [`CAPACITY_MAX`](crate::bucket::CAPACITY_MAX) tokens.
    /// Returns false when it was settled before; then nothing happens.
    pub fn settle(&self, actual: u64) -> bool {
        let Some(reserved) = self.close() else { return false };
        let (actual, cost) = (clamped(actual), reserved.cost);
        let only_metered = reserved.metered.len() == reserved.taken.len();
        if actual == Tokens::ZERO && only_metered {
            reserved.given_back.store(true, Ordering::Relaxed);
        }
        let (difference, direction) = match actual <= cost {
            true => (cost.get() - actual.get(), Direction::GiveBack),
            false => (actual.get() - cost.get(), Direction::TakeMore),
        };
        if difference > 0 && !reserved.metered.is_empty() {
            let at = |take: &Take| Take { bucket: take.bucket.clone(), cost: clamped(difference) };
            reserved.send(reserved.metered.iter().map(at).collect(), direction);
        }
        true
    }

    /// Gives everything back, as if the request had not been made. Returns false when it was settled
    /// before; then nothing happens.
    pub fn refund(&self) -> bool {
        let Some(reserved) = self.close() else { return false };
        reserved.given_back.store(true, Ordering::Relaxed);
        if reserved.taken.iter().any(|take| take.cost > Tokens::ZERO) {
            reserved.send(Arc::clone(&reserved.taken), Direction::GiveBack);
        }
        true
    }

    /// Raises the charge to `least` tokens where it is lower, and settles it with that; when it was
    /// settled before, nothing happens.
    pub(super) fn raise(&self, least: Tokens) {
        if self.0.cost < least {
            self.settle(least.get());
        }
    }

    /// Returns true when nothing of what was taken is left taken.
    pub(super) fn is_given_back(&self) -> bool {
        self.0.given_back.load(Ordering::Relaxed)
    }

    fn close(&self) -> Option<&Reserved> {
        self.0.open.swap(false, Ordering::Relaxed).then_some(&*self.0)
    }
}

impl Reserved {
    fn send(&self, takes: Arc<[Take]>, direction: Direction) {
        self.to.settle(Settlement { agent: self.agent.clone(), takes, direction }, self.by);
    }
}

impl fmt::Debug for Reservation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reserved { agent, cost, open, .. } = &*self.0;
        f.debug_struct("Reservation")
            .field("agent", agent)
            .field("reserved", &cost.get())
            .field("open", open)
            .finish_non_exhaustive()
    }
}
