//! What the loop counts and measures.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::agents::{Folded, Folding};
use crate::clock::unix_time;

pub(super) struct Metrics {
    pub(super) update_latency: Histogram,
    pub(super) rating_to_limit: Histogram,
    pub(super) refill_rate: Histogram,
    pub(super) reward: Histogram,
    pub(super) counted: Counter,
    pub(super) skipped: Counter,
    pub(super) repeats: Counter,
    pub(super) conflicts: Counter,
    pub(super) without_agent: Counter,
    pub(super) writes: Counter,
    pub(super) stale: Counter,
    pub(super) set_aside: Counter,
    pub(super) store_failures: Counter,
    pub(super) rewinds: Counter,
    pub(super) lag: Gauge,
    pub(super) agents: Gauge,
    pub(super) stopped_partitions: Gauge,
}

impl Metrics {
    pub(super) fn new() -> Self {
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
            stale: counter!("merit_limit_writes_stale_total"),
            set_aside: counter!("merit_ratings_set_aside_total"),
            store_failures: counter!("merit_tuner_store_failures_total"),
            rewinds: counter!("merit_tuner_rewinds_total"),
            lag: gauge!("merit_bus_lag_ratings"),
            agents: gauge!("merit_tuner_agents"),
            stopped_partitions: gauge!("merit_tuner_stopped_partitions"),
        }
    }

    pub(super) fn applied(&self, folded: &Folded, rate: f64, ratings: &[Folding<'_>]) {
        self.writes.increment(1);
        self.counted.increment(folded.counted);
        self.skipped.increment(folded.skipped);
        self.repeats.increment(folded.repeats);
        self.conflicts.increment(folded.conflicts);
        self.refill_rate.record(rate);
        #[allow(clippy::cast_precision_loss, reason = "a mean for a histogram")]
        if folded.counted > 0 {
            self.reward.record(folded.reward / folded.counted as f64);
        }
        let now = unix_time();
        for Folding { delivery, .. } in ratings.iter().filter(|folding| folding.fresh) {
            let accepted = Duration::from_micros(delivery.rating.accepted_at_us());
            self.rating_to_limit.record(now.saturating_sub(accepted));
        }
    }
}
