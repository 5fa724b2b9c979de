//! What the loop counts and measures.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tower_merit::AgentId;
use tracing::{info, warn};

use super::{
    agents::{Folded, Folding},
    busiest::Busiest,
    insight::{Recent, What},
};
use crate::policy::{Decision, Drift, Reason};

/// How often one kind of fault is told: a thousand of them in a second are one line.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// When each kind of fault was told last, and how often it was not since.
#[derive(Default)]
struct Told(HashMap<Reason, (Instant, u64)>);

impl Told {
    /// Returns how often `reason` was not told since the last time, when it is time to tell it again.
    fn tell(&mut self, reason: Reason) -> Option<u64> {
        let now = Instant::now();
        match self.0.get_mut(&reason) {
            Some((at, untold)) if now.duration_since(*at) < TELL_EVERY => {
                *untold += 1;
                None
            }
            Some((at, untold)) => {
                *at = now;
                Some(std::mem::take(untold))
            }
            None => {
                self.0.insert(reason, (now, 0));
                Some(0)
            }
        }
    }
}

pub(super) struct Metrics {
    pub(super) update_latency: Histogram,
    rating_to_limit: Histogram,
    refill_rate: Histogram,
    reward: Histogram,
    counted: Counter,
    pub(super) skipped: Counter,
    repeats: Counter,
    conflicts: Counter,
    pub(super) without_agent: Counter,
    writes: Counter,
    /// Limits that a tick moved.
    moves: Counter,
    residual: Histogram,
    told: Told,
    pub(super) recent: Recent,
    pub(super) stale: Counter,
    pub(super) set_aside: Counter,
    pub(super) store_failures: Counter,
    pub(super) rewinds: Counter,
    pub(super) gaps: Counter,
    pub(super) lag: Gauge,
    pub(super) agents: Gauge,
    stopped_partitions: Gauge,
    busiest: Option<Busiest>,
}

impl Metrics {
    pub(super) fn new(busiest: Option<Busiest>) -> Self {
        let folded =
            |outcome: &'static str| counter!("merit_ratings_folded_total", "outcome" => outcome);
        Self {
            update_latency: histogram!("rl_update_latency"),
            rating_to_limit: histogram!("merit_rating_to_limit_seconds"),
            refill_rate: histogram!("merit_refill_rate"),
            reward: histogram!("merit_reward"),
            counted: folded("counted"),
            skipped: folded("already_applied"),
            repeats: folded("repeat"),
            conflicts: folded("id_conflict"),
            without_agent: folded("no_agent"),
            writes: counter!("merit_limit_writes_total"),
            moves: counter!("merit_limit_moves_total"),
            residual: histogram!("merit_policy_residual"),
            told: Told::default(),
            recent: Recent::default(),
            stale: counter!("merit_limit_writes_stale_total"),
            set_aside: counter!("merit_ratings_set_aside_total"),
            store_failures: counter!("merit_tuner_store_failures_total"),
            rewinds: counter!("merit_tuner_rewinds_total"),
            gaps: counter!("merit_tuner_gaps_total"),
            lag: gauge!("merit_bus_lag_ratings"),
            agents: gauge!("merit_tuner_agents"),
            stopped_partitions: gauge!("merit_tuner_stopped_partitions"),
            busiest,
        }
    }

    /// Notes how many partitions are ours and not read.
    pub(super) fn stopped(&self, partitions: usize) {
        self.stopped_partitions.set(f64::from(u32::try_from(partitions).unwrap_or(u32::MAX)));
    }

    /// Counts and tells what a decision says beside the rate.
    pub(super) fn decided(&mut self, agent: &AgentId, decision: &Decision) {
        if decision.residual != 0.0 {
            self.residual.record(decision.residual);
        }
        self.noticed(agent, decision.held, decision.drift);
    }

    fn noticed(&mut self, agent: &AgentId, held: Option<Reason>, drift: Option<Drift>) {
        if let Some(reason) = held {
            counter!("merit_policy_held_total", "reason" => reason.as_str()).increment(1);
            if reason.is_fault()
                && let Some(untold) = self.told.tell(reason)
            {
                warn!(%agent, reason = reason.as_str(), untold, "a guardrail stood in for the policy");
                self.recent.note(agent, What::Guardrail(reason));
            }
        }
        if let Some(drift @ Drift { before, after, ratings, evidence }) = drift {
            self.recent.note(agent, What::Drift(drift));
            let direction = if after < before { "fall" } else { "rise" };
            counter!("merit_drift_total", "direction" => direction).increment(1);
            info!(%agent, before, after, ratings, evidence, "an agent's quality changed");
        }
    }

    /// Tells what a write put in force at `at` (since the Unix epoch).
    pub(super) fn applied(
        &mut self,
        agent: &AgentId,
        folded: &Folded,
        rate: f64,
        ratings: &[Folding<'_>],
        at: Duration,
    ) {
        self.noticed(agent, folded.held, folded.drift);
        if let Some(decision) = folded.decision.filter(|decision| decision.residual != 0.0) {
            self.residual.record(decision.residual);
        }
        self.refill_rate.record(rate);
        #[allow(clippy::cast_precision_loss, reason = "a mean for a histogram")]
        if folded.counted > 0 {
            self.reward.record(folded.reward / folded.counted as f64);
        }
        if let Some(busiest) = &self.busiest {
            busiest.rated(agent, folded.counted, folded.reward, rate);
        }
        for Folding { delivery, .. } in ratings.iter().filter(|folding| folding.fresh) {
            let accepted = Duration::from_micros(delivery.rating.accepted_at_us());
            self.rating_to_limit.record(at.saturating_sub(accepted));
        }
    }

    /// Tells what a tick's write put in force.
    pub(super) fn moved(&self, agent: &AgentId, rate: f64) {
        self.moves.increment(1);
        if let Some(busiest) = &self.busiest {
            busiest.moved(agent, rate);
        }
    }

    /// Lets the agents rated most fade with time.
    pub(super) fn fade(&self) {
        if let Some(busiest) = &self.busiest {
            busiest.fade(tokio::time::Instant::now());
        }
    }

    /// Forgets who is rated most: partitions were given up.
    pub(super) fn gave_up_agents(&self) {
        if let Some(busiest) = &self.busiest {
            busiest.forget_all();
        }
    }

    /// Counts what a batch of writes came to.
    pub(super) fn count(&self, counts: &Counts) {
        self.writes.increment(counts.writes);
        self.counted.increment(counts.counted);
        self.skipped.increment(counts.skipped);
        self.repeats.increment(counts.repeats);
        self.conflicts.increment(counts.conflicts);
    }
}

/// What a batch of writes came to.
#[derive(Default)]
pub(super) struct Counts {
    writes: u64,
    counted: u64,
    skipped: u64,
    repeats: u64,
    conflicts: u64,
}

impl Counts {
    pub(super) fn add(&mut self, folded: &Folded) {
        self.writes += 1;
        self.counted += folded.counted;
        self.skipped += folded.skipped;
        self.repeats += folded.repeats;
        self.conflicts += folded.conflicts;
    }
}
