//! How leases are configured, and what is refused.

use std::{
    sync::{Arc, Mutex, atomic::AtomicBool},
    time::Duration,
};

use foldhash::quality::RandomState;
use tokio::{runtime::Handle, sync::Notify, time::Instant};

use super::{
    AHEAD_MAX, Inner, LEASE_TERM, LEASE_TERM_MAX, LEASE_TERM_MIN, LEASES_MAX, Leased, Meters,
    SHARDS, SWEEPS_PER_TERM, agents::Agents, lease::Bounds, sweep,
};
use crate::store::Lend;

/// Builds a [`Leased`] store.
#[derive(Clone, Debug)]
pub struct LeasedBuilder<S> {
    store: S,
    term: Duration,
    ahead_max: u32,
    agents_max: usize,
}

/// Why leases cannot be given as configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LeasedError {
    /// The term is out of range.
    #[error("lease term must be 10 ms to 1 s, is {} ms", .0.as_millis())]
    Term(Duration),
    /// Nothing could be taken ahead, or no agent have a lease.
    #[error("lease bounds must be at least 1: {ahead_max} requests ahead, {agents_max} agents")]
    Nothing {
        /// The most requests that a lease can admit.
        ahead_max: u32,
        /// The most agents with a lease.
        agents_max: usize,
    },
}

impl<S: Lend> LeasedBuilder<S> {
    pub(super) fn new(store: S) -> Self {
        Self { store, term: LEASE_TERM, ahead_max: AHEAD_MAX, agents_max: LEASES_MAX }
    }

    /// Sets how long a lease lasts, 10 ms to [`LEASE_TERM_MAX`]; [`LEASE_TERM`] unless set.
    #[must_use]
    pub fn term(mut self, term: Duration) -> Self {
        self.term = term;
        self
    }

    /// Sets the most requests that a lease can admit without asking; [`AHEAD_MAX`] unless set.
    #[must_use]
    pub fn ahead_max(mut self, requests: u32) -> Self {
        self.ahead_max = requests;
        self
    }

    /// Sets the most agents with a lease on this node (rounded up to a multiple of 64); beyond it the
    /// one that was not here for longest makes room. [`LEASES_MAX`] unless set. An agent takes about
    /// 400 bytes, and 250 for each further plan (four at most).
    #[must_use]
    pub fn agents_max(mut self, agents: usize) -> Self {
        self.agents_max = agents;
        self
    }

    /// Returns the store, and starts the task that returns what nobody spends: it ends with the
    /// store's last clone.
    ///
    /// # Errors
    ///
    /// When a bound is out of range.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime, or in one without a timer.
    pub fn build(self) -> Result<Leased<S>, LeasedError> {
        let Self { store, term, ahead_max, agents_max } = self;
        if !(LEASE_TERM_MIN..=LEASE_TERM_MAX).contains(&term) {
            return Err(LeasedError::Term(term));
        }
        if ahead_max == 0 || agents_max == 0 {
            return Err(LeasedError::Nothing { ahead_max, agents_max });
        }
        let hasher = RandomState::default();
        let shard = |_| Mutex::new(Agents::new(agents_max.div_ceil(SHARDS), hasher.clone()));
        let term_ms = u64::try_from(term.as_millis()).expect("at most a second");
        let inner = Arc::new(Inner {
            store,
            shards: (0..SHARDS).map(shard).collect(),
            hasher: hasher.clone(),
            bounds: Bounds { term_ms, ahead_max },
            started: Instant::now(),
            runtime: Handle::current(),
            closed: AtomicBool::new(false),
            landed: Notify::new(),
            meters: Meters::new(),
        });
        inner.runtime.spawn(sweep(Arc::downgrade(&inner), term / SWEEPS_PER_TERM));
        Ok(Leased { inner })
    }
}
