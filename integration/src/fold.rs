//! The test's own account of what the ratings must have made of the limits.
//!
//! Written from the contract alone, so that it can disagree with the code under test: with policy
//! `additive` a rating moves the rate by `alpha * (score - 3)`, clamped; the capacity is what
//! `burst_seconds` of that rate make, at least one token.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// The constants of a fold, as the test configuration sets them.
#[derive(Clone, Copy, Debug)]
pub struct Additive {
    /// Tokens per second per point of score above 3.
    pub alpha: f64,
    /// The lowest rate, in tokens per second.
    pub r_min: f64,
    /// The highest rate, in tokens per second.
    pub r_max: f64,
    /// The rate an unrated agent has, in tokens per second.
    pub start: f64,
    /// Capacity per rate, in seconds.
    pub burst_seconds: f64,
}

impl Default for Additive {
    /// What [`crate::Settings`] configure: refill 20, capacity 40, alpha 0.1, within 0.5 to 40.
    fn default() -> Self {
        Self { alpha: 0.1, r_min: 0.5, r_max: 40.0, start: 20.0, burst_seconds: 2.0 }
    }
}

/// Rates of agents, folded from the ratings that were acknowledged, in their order.
#[derive(Clone, Debug, Default)]
pub struct Fold {
    additive: Additive,
    rates: BTreeMap<String, f64>,
}

impl Fold {
    /// Takes one acknowledged rating in.
    pub fn rate(&mut self, agent: &str, score: f64) {
        let Additive { alpha, r_min, r_max, start, .. } = self.additive;
        let rate = self.rates.entry(agent.to_owned()).or_insert(start);
        *rate = (*rate + alpha * (score - 3.0)).clamp(r_min, r_max);
    }

    /// Takes over an agent's rate that an operator set by hand.
    pub fn set(&mut self, agent: &str, rate: f64) {
        self.rates.insert(agent.to_owned(), rate);
    }

    /// Takes the agents of another fold in.
    pub fn merge(&mut self, other: Self) {
        self.rates.extend(other.rates);
    }

    /// Returns the agents that were rated.
    pub fn agents(&self) -> impl Iterator<Item = &str> {
        self.rates.keys().map(String::as_str)
    }

    /// Returns capacity and refill rate as Redis must hold them.
    #[must_use]
    pub fn limits(&self, agent: &str) -> (String, String) {
        let rate = self.rates.get(agent).copied().unwrap_or(self.additive.start);
        // A bucket counts whole micro-tokens per second, and its capacity follows what it counts.
        let micro = (rate * 1e6).round();
        let capacity = (micro * self.additive.burst_seconds / 1e6).floor().max(1.0);
        (format!("{capacity:.0}"), decimal(micro / 1e6))
    }

    /// Waits until Redis holds exactly these limits for every agent.
    ///
    /// # Panics
    ///
    /// When it does not by `deadline`; the message lists the first agents that differ.
    pub async fn settles_in(&self, redis: &crate::Redis, deadline: Duration) {
        let start = Instant::now();
        loop {
            let differences = self.differences(redis).await;
            if differences.is_empty() {
                return;
            }
            assert!(
                start.elapsed() < deadline,
                "after {deadline:?} {} of {} agents differ: {:#?}",
                differences.len(),
                self.rates.len(),
                &differences[..differences.len().min(10)]
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Returns the agents whose stored limits differ, as `agent: stored, expected`.
    pub async fn differences(&self, redis: &crate::Redis) -> Vec<String> {
        let mut link = redis.connect().await;
        let mut pipe = redis::pipe();
        for agent in self.agents() {
            pipe.cmd("HMGET").arg(format!("tb:{agent}")).arg("capacity").arg("refill_rate");
        }
        let stored: Vec<(Option<String>, Option<String>)> =
            pipe.query_async(&mut link).await.expect("the store answers");
        let compare = |(agent, (capacity, rate)): (&str, (Option<String>, Option<String>))| {
            let expected = self.limits(agent);
            let stored = (capacity.unwrap_or_default(), rate.unwrap_or_default());
            (stored != expected)
                .then(|| format!("{agent}: stored {stored:?}, expected {expected:?}"))
        };
        self.agents().zip(stored).filter_map(compare).collect()
    }
}

/// Returns a rate as a decimal with at most six places.
#[must_use]
pub fn decimal(rate: f64) -> String {
    let text = format!("{rate:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_printed_without_superfluous_zeros() {
        assert_eq!(decimal(20.2), "20.2");
        assert_eq!(decimal(20.0 + 0.1 + 0.2 - 0.3), "20");
        assert_eq!(decimal(0.5), "0.5");
        assert_eq!(decimal(100.0), "100");
    }

    #[test]
    fn a_fold_clamps_at_every_step_and_not_only_at_the_end() {
        let mut fold = Fold::default();
        for _ in 0..150 {
            fold.rate("a", 5.0);
        }
        fold.rate("a", 1.0);
        assert_eq!(fold.limits("a"), ("79".into(), "39.8".into()));
    }
}
