//! Leases: a node takes a few tokens ahead, spends them itself and returns what is left.
//!
//! 1. A request whose agent holds a lease here is decided at once: one lock, no call, no allocation
//!    for a plan of one bucket. Any other joins the one loan of its agent and plan that is on its
//!    way, or starts it; requests that wait are answered in their order. When the bucket had less
//!    than they need, the rest of them ask it themselves, together: nobody waits for more than two
//!    loans and an answer of its own.
//! 2. A lease is as large as what the agent uses here in 200 ms, by what it used lately. An agent that was not seen
//!    for a term gets nothing ahead, so an idle long tail costs nothing. Where use is steady the
//!    lease is renewed in the background before it runs dry.
//! 3. What is left goes back through [`Spend::settle`] when the term ends and nobody asks (within a
//!    term and a fifth), when the store names other limits or a ban, when [`Tune::write`](super::Tune::write) through
//!    this store sets limits, when the agent makes room for others, and by [`Leased::close`].
//! 4. A lease is spent within [`LEASE_TERM_MAX`] of the moment it was asked for, and renewing asks
//!    for the limits and the ban anew: an operator's change is honoured within a second.
//! 5. A refusal is believed until the moment at which the charge would pass, at most 100 ms; so is a
//!    ban. The bucket counts refusals told from memory when the store is next asked or the term ends.
//!    A store that remembers refusals itself is told not to, or the two memories would add up.
//! 6. When the store fails, leases go on until their terms end; then its errors are passed on.
//!
//! # Never more than the bucket
//!
//! Every multiple admitted here was taken from the bucket before: it is the charge of a loan, or one
//! of the loan's multiples ahead, and each of those is admitted, given back, or lost, never two of
//! them. Let `A(t)` be the tokens admitted by all nodes until `t`, `O(t)` what they hold in leases or
//! have on the way back, and `L(t)` the level. The bucket gives at most its capacity `C` and its
//! refill `r·t`, and a return is credited at most as what it was, so `A(t) + O(t) + L(t) ≤ C + r·t`:
//! from a full bucket on, no more is admitted at any time than by [`MemoryStore`] or
//! [`RedisStore`] alone (a cost above the capacity leaves debt there and here alike).
//!
//! A window that begins later, at `s`, may see what was taken before it: the level at `s` is at most
//! `C`, so `A(t) − A(s) ≤ C + r·(t − s) + O(s)`. The leases in `O(s)` are at most
//! [`LeasedBuilder::ahead_max`] + 1 multiples per node and plan, and where use is steady a fifth of
//! a second of it. Returns clamp at the capacity, so a bucket never holds more than `C`.
//!
//! A node that dies loses its agents what it held: at most its leases. The same holds for a loan or a
//! return whose answer is lost.
//!
//! # Fairness
//!
//! A loan takes no more than half of what the charge left, so a node that asks for more leaves
//! others the same again. In a drained bucket nobody gets anything ahead: each node asks at the
//! moment its refusal ends, and who asks first is admitted. Requests of one node that wait for a loan pass in
//! order; those who then ask the store themselves pass in the order it takes them.
//! A node may hold tokens for up to a term while another is refused.
//!
//! [`MemoryStore`]: super::MemoryStore
//! [`RedisStore`]: super::RedisStore

mod builder;

mod agents;

mod lease;

mod flight;

mod future;

mod tune;

#[cfg(test)]
mod tests;

pub use builder::{LeasedBuilder, LeasedError};

pub use future::LeasedFuture;

use std::{
    hash::BuildHasher,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use foldhash::quality::RandomState;
use metrics::{Counter, counter};
use tokio::{
    runtime::Handle,
    sync::Notify,
    time::{Instant, MissedTickBehavior},
};

use self::{
    agents::{Agents, Asked, Booking},
    flight::{Flight, Led, hand_out},
    lease::{Bounds, multiplied},
};
use super::{Charge, Direction, Lend, Settlement, Spend, StoreError, Take, Verdict};
use crate::{AgentId, bucket::Tokens};

/// The longest a lease may last: 1 s, within which an operator's change is honoured.
pub const LEASE_TERM_MAX: Duration = Duration::from_secs(1);

/// The shortest a lease may last: 10 ms, a few round trips.
pub const LEASE_TERM_MIN: Duration = Duration::from_millis(10);

/// How long a lease lasts unless configured: 500 ms, five times what it is sized for.
pub const LEASE_TERM: Duration = Duration::from_millis(500);

/// The most requests that a lease can admit without asking, unless configured.
pub const AHEAD_MAX: u32 = 1024;

/// The most agents with a lease on one node, unless configured.
pub const LEASES_MAX: usize = 1 << 17;

/// A power of two, so that a shard is picked by a mask; enough that two cores seldom meet.
const SHARDS: usize = 64;

/// The sweep passes this often within a term.
const SWEEPS_PER_TERM: u32 = 5;

/// Returns that may be in the store's queue before one waits for them.
const UNCONFIRMED_MAX: usize = 1024;

/// Agents that the sweep drops under one lock.
const SWEEP_BATCH: usize = 256;

/// A store in front of another one, with tokens taken ahead. Clones share the leases.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// use std::time::Duration;
/// use tower_merit::{MemoryStore, store::Leased};
///
/// let store = MemoryStore::new();
/// // Or Redis, which then leaves it to the leases to remember refusals:
/// // RedisStore::builder("redis://127.0.0.1:6379").cache_denials(false).connect().await?
/// let leased = Leased::builder(store).term(Duration::from_millis(250)).build()?;
/// // … AdmissionLayer::builder(leased.clone()) …
/// leased.close().await?;
/// # Ok(())
/// # }
/// ```
pub struct Leased<S: Lend> {
    inner: Arc<Inner<S>>,
}

struct Inner<S: Lend> {
    store: S,
    shards: Box<[Mutex<Agents>]>,
    hasher: RandomState,
    bounds: Bounds,
    started: Instant,
    runtime: Handle,
    closed: AtomicBool,
    /// Told of every loan that lands once the store is closed.
    landed: Notify,
    meters: Meters,
}

/// Handles taken once: a lookup by name would cost more than a decision.
struct Meters {
    here: Counter,
    loans: Counter,
    lent: Counter,
    returned: Counter,
}

impl Meters {
    fn new() -> Self {
        Self {
            here: counter!("merit_lease_decisions_total"),
            loans: counter!("merit_lease_loans_total"),
            lent: counter!("merit_lease_lent_total"),
            returned: counter!("merit_lease_returned_total"),
        }
    }
}

impl<S: Lend> Inner<S> {
    fn now_ms(&self) -> u64 {
        self.ms(Instant::now())
    }

    fn ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.started).as_millis();
        u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    /// Locks the shard of `agent`.
    fn agents(&self, agent: &AgentId) -> MutexGuard<'_, Agents> {
        #[allow(clippy::cast_possible_truncation, reason = "only the low bits pick a shard")]
        let hash = self.hasher.hash_one(agent) as usize;
        lock(&self.shards[hash & (SHARDS - 1)])
    }

    fn is_closed(&self) -> bool {
        // Read under a shard's lock: `close` sets it before it takes that lock.
        self.closed.load(Ordering::Acquire)
    }

    fn landed(&self) {
        if self.is_closed() {
            self.landed.notify_waiters();
        }
    }

    /// Hands to the store what it is to book. No lock is held.
    fn book(&self, books: impl IntoIterator<Item = Booking>) {
        for Booking { agent, takes, count, direction } in books {
            if direction == Direction::GiveBack {
                self.meters.returned.increment(u64::from(count));
            }
            for takes in multiplied(&takes, count) {
                self.store.settle(Settlement { agent: agent.clone(), takes, direction });
            }
        }
    }

    /// Takes back the multiple of a request that has no use for it: into the lease if there still is
    /// one, or else into the bucket.
    fn put_back(&self, charge: Charge) {
        let now_ms = self.now_ms();
        if charge.takes.is_empty() {
            return;
        }
        let mut agents = self.agents(&charge.agent);
        if !self.is_closed()
            && let Some(lease) = agents.lease(&charge)
            && lease.put_back(now_ms, &self.bounds)
        {
            if let Some(mut waiters) = lease.flight.take() {
                hand_out(lease, &mut waiters, now_ms);
                lease.flight = Some(waiters);
            }
            return;
        }
        drop(agents);
        let Charge { agent, takes } = charge;
        self.store.settle(Settlement { agent, takes, direction: Direction::GiveBack });
    }
}

/// What is left goes back when the last clone is dropped, as far as the runtime still carries it.
impl<S: Lend> Drop for Inner<S> {
    fn drop(&mut self) {
        let runtime = self.runtime.clone();
        let _entered = runtime.enter();
        for shard in &self.shards {
            let mut books = Vec::new();
            lock(shard).recall_all(self.now_ms(), &mut books);
            self.book(books);
        }
    }
}

/// A panic elsewhere leaves whole leases behind: every change here is complete or not begun.
fn lock(mutex: &Mutex<Agents>) -> MutexGuard<'_, Agents> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Drops agents that were not here for a term, and returns what they left.
async fn sweep<S: Lend>(inner: Weak<Inner<S>>, every: Duration) {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(inner) = inner.upgrade() else { return };
        let mut pace = Pace::default();
        for shard in &inner.shards {
            let mut more = true;
            while more {
                let mut books = Vec::new();
                let now_ms = inner.now_ms();
                more = lock(shard).drop_idle(now_ms, &inner.bounds, SWEEP_BATCH, &mut books);
                // A store that fails has lost these; the agents wait for their refill instead.
                let _ = pace.book(&inner, books).await;
                if more {
                    tokio::task::yield_now().await;
                }
            }
        }
    }
}

/// Books no more at a time than a store's queue can hold.
#[derive(Default)]
struct Pace {
    unconfirmed: usize,
    last: Option<Charge>,
}

impl Pace {
    async fn book<S: Lend>(
        &mut self,
        inner: &Inner<S>,
        books: Vec<Booking>,
    ) -> Result<(), StoreError> {
        self.unconfirmed += books.len();
        if let Some(Booking { agent, takes, .. }) = books.last() {
            self.last = Some(Charge { agent: agent.clone(), takes: Arc::clone(takes) });
        }
        inner.book(books);
        if self.unconfirmed >= UNCONFIRMED_MAX { self.confirm(inner).await } else { Ok(()) }
    }

    /// Looks at a bucket: when that is answered, what was booked before has left the queue.
    async fn confirm<S: Lend>(&mut self, inner: &Inner<S>) -> Result<(), StoreError> {
        self.unconfirmed = 0;
        let Some(Charge { agent, takes }) = self.last.take() else { return Ok(()) };
        let look = |take: &Take| Take { cost: Tokens::ZERO, bucket: take.bucket.clone() };
        let takes = takes.iter().map(look).collect();
        inner.store.spend(Charge { agent, takes }).await.map(drop)
    }
}

impl<S: Lend> Leased<S> {
    /// Returns leases over `store`, within the bounds that hold unless configured.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, or in one without a timer.
    #[must_use]
    pub fn new(store: S) -> Self {
        Self::builder(store).build().expect("the bounds as shipped are in range")
    }

    /// Returns a builder of leases over `store`.
    #[must_use]
    pub fn builder(store: S) -> LeasedBuilder<S> {
        LeasedBuilder::new(store)
    }

    /// Returns the store that the tokens come from.
    #[must_use]
    pub fn store(&self) -> &S {
        &self.inner.store
    }

    /// Returns the number of agents that were here within about a term.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    /// Returns true when no agent was here within about a term.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every lease, for good: waits for the loans on their way, gives back all that is left, and
    /// waits for a look at a bucket behind the last return. From then on every decision is the
    /// store's. Dropping the last clone gives back too, without waiting, as far as the runtime lives
    /// on to carry it.
    ///
    /// # Errors
    ///
    /// When the store did not answer: some of what was given back may be lost to its agents.
    pub async fn close(&self) -> Result<(), StoreError> {
        let inner = &*self.inner;
        inner.closed.store(true, Ordering::Release);
        let (mut pace, mut outcome) = (Pace::default(), Ok(()));
        loop {
            let landed = inner.landed.notified();
            tokio::pin!(landed);
            landed.as_mut().enable();
            let mut all = true;
            for shard in &inner.shards {
                let mut books = Vec::new();
                all &= lock(shard).recall_all(inner.now_ms(), &mut books);
                outcome = outcome.and(pace.book(inner, books).await);
            }
            if all {
                return outcome.and(pace.confirm(inner).await);
            }
            landed.await;
        }
    }
}

impl<S: Lend> Clone for Leased<S> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Lend> std::fmt::Debug for Leased<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Leased").field("bounds", &self.inner.bounds).finish_non_exhaustive()
    }
}

impl<S: Lend> Spend for Leased<S> {
    const REMOTE: bool = S::REMOTE;

    type Future = LeasedFuture<S>;

    fn spend(&self, charge: Charge) -> Self::Future {
        let inner = &self.inner;
        // A look takes nothing, ahead neither.
        if charge.takes.iter().all(|take| take.cost == Tokens::ZERO) {
            return LeasedFuture::asking(inner.store.spend(charge));
        }
        let now_ms = inner.now_ms();
        let mut books = Vec::new();
        let asked = {
            let mut agents = inner.agents(&charge.agent);
            if inner.is_closed() {
                Asked::Bypass
            } else {
                agents.ask(&charge, now_ms, &inner.bounds, &mut books)
            }
        };
        inner.book(books);
        match asked {
            Asked::Answered(verdict) => {
                inner.meters.here.increment(1);
                LeasedFuture::answered(Ok(verdict))
            }
            Asked::Renew(verdict, most) => {
                inner.meters.here.increment(1);
                Flight::renew(inner, charge, most);
                LeasedFuture::answered(Ok(verdict))
            }
            Asked::Lead(most) => match Flight::lead(inner, charge.clone(), most) {
                Led::Answered(answer) => LeasedFuture::answered(answer),
                Led::Wait(receiver) => LeasedFuture::waiting(inner, charge, receiver),
            },
            Asked::Wait(receiver) => LeasedFuture::waiting(inner, charge, receiver),
            Asked::Bypass => LeasedFuture::asking(inner.store.spend(charge)),
        }
    }

    fn spend_now(&self, agent: &AgentId, takes: &Arc<[Take]>, now: Instant) -> Option<Verdict> {
        let inner = &self.inner;
        if takes.iter().all(|take| take.cost == Tokens::ZERO) {
            return None;
        }
        let now_ms = inner.ms(now);
        let mut agents = inner.agents(agent);
        if inner.is_closed() {
            return None;
        }
        let verdict = agents.ask_now(agent, takes, now_ms, &inner.bounds)?;
        inner.meters.here.increment(1);
        Some(verdict)
    }

    /// What is given back of a plan goes into its lease while that is alive.
    fn settle(&self, settlement: Settlement) {
        match settlement.direction {
            Direction::GiveBack => {
                let Settlement { agent, takes, .. } = settlement;
                self.inner.put_back(Charge { agent, takes });
            }
            Direction::TakeMore | Direction::Refused => self.inner.store.settle(settlement),
        }
    }
}
