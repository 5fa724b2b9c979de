//! What is counted of decisions. Labels are outcomes and configured names, never agents or paths.

use metrics::{Counter, Histogram, IntoF64, counter, histogram};

use super::refusal::{REASONS, Refusal};
use crate::store::{Held, Verdict};

/// Handles taken once: a lookup by name would cost more than a decision.
pub(super) struct Metrics {
    pub(super) admitted: Counter,
    pub(super) allowed: Counter,
    pub(super) outage_open: Counter,
    refused: [Counter; REASONS.len()],
    shadowed: [Counter; REASONS.len()],
    utilization: Histogram,
    /// From the request to the decision, where somebody had to be asked: of what is decided at once it
    /// would cost as much as what it measures.
    pub(super) seconds: Histogram,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let decided = |outcome: String| counter!("merit_decisions_total", "outcome" => outcome);
        Self {
            admitted: decided("admitted".to_owned()),
            allowed: decided("allowed".to_owned()),
            outage_open: decided("outage_open".to_owned()),
            refused: REASONS.map(|reason| decided(reason.to_owned())),
            shadowed: REASONS.map(|reason| decided(format!("shadow_{reason}"))),
            utilization: histogram!("bucket_utilization"),
            seconds: histogram!("merit_decision_seconds"),
        }
    }

    /// Counts a refusal, or in shadow mode what would have been one.
    pub(super) fn refused(&self, refusal: &Refusal, shadow: bool) {
        let counters = if shadow { &self.shadowed } else { &self.refused };
        counters[refusal.index()].increment(1);
    }

    pub(super) fn utilization(&self, verdict: &Verdict) {
        for held in verdict.held() {
            self.utilization.record(Utilization(held));
        }
    }
}

/// Worked out when somebody records it.
struct Utilization<'a>(&'a Held);

impl IntoF64 for Utilization<'_> {
    fn into_f64(self) -> f64 {
        self.0.utilization()
    }
}
