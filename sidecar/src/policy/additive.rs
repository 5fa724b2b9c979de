//! The rule everybody starts with: r ← clamp(r + α·(score − 3), r_min, r_max).
//!
//! It integrates: any agent rated above 3 drifts to `r_max` in the end, and every rater counts the
//! same. Good enough where capacity is plentiful and raters are honest.

use tower_merit::bucket::Limits;

use super::{Burst, State};

/// The score that moves nothing.
const NEUTRAL: f64 = 3.0;

/// What `additive` is tuned by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdditiveConfig {
    /// Tokens per second that one point of score above 3 is worth.
    pub alpha: f64,
    /// The least rate, in tokens per second.
    pub r_min: f64,
    /// The largest rate, in tokens per second.
    pub r_max: f64,
    /// Seconds of refill that a bucket holds; as configured for the bucket when absent.
    pub burst_seconds: Option<f64>,
}

/// The additive rule.
#[derive(Clone, Debug)]
pub struct Additive {
    config: AdditiveConfig,
    start: f64,
    burst: Burst,
}

impl Additive {
    /// Returns the rule for agents that start from `configured`.
    #[must_use]
    pub fn new(config: AdditiveConfig, configured: Limits) -> Self {
        let burst = config.burst_seconds.map_or(Burst::of(configured), Burst::of_seconds);
        Self { config, start: configured.refill().tokens(), burst }
    }

    pub(super) fn begin(&self) -> State {
        State::Additive { rate: self.start, burst: self.burst }
    }

    /// An operator's capacity is part of the new start: the burst is what the two numbers say.
    pub(super) fn adopt(&self, limits: Limits) -> State {
        State::Additive { rate: limits.refill().tokens(), burst: Burst::of(limits) }
    }

    pub(super) fn fold(&self, rate: &mut f64, score: f64) -> f64 {
        let AdditiveConfig { alpha, r_min, r_max, .. } = self.config;
        let reward = score - NEUTRAL;
        *rate = (*rate + alpha * reward).clamp(r_min, r_max);
        reward
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn additive(alpha: f64) -> Additive {
        let config = AdditiveConfig { alpha, r_min: 0.5, r_max: 40.0, burst_seconds: None };
        Additive::new(config, Limits::per_second(20.0, 40).unwrap())
    }

    fn after(alpha: f64, scores: impl IntoIterator<Item = f64>) -> f64 {
        let policy = additive(alpha);
        let mut rate = 20.0;
        for score in scores {
            policy.fold(&mut rate, score);
        }
        rate
    }

    #[test]
    fn a_score_of_five_is_worth_two_alpha_and_a_three_nothing() {
        assert_eq!(after(0.1, [5.0]), 20.2);
        assert_eq!(after(0.1, [1.0]), 19.8);
        assert_eq!(after(0.1, [3.0; 100]), 20.0);
    }

    #[test]
    fn the_rate_stays_within_its_range() {
        assert_eq!(after(1.0, [5.0; 1000]), 40.0);
        assert_eq!(after(1.0, [1.0; 1000]), 0.5);
    }

    #[test]
    fn it_reaches_95_percent_of_the_range_after_as_many_ratings_as_the_prototype_measured() {
        // POLICY section 1: from 5 to 38 at mean 4.5 and α = 0.1, about 256 ratings of noise around
        // 4.5; without noise it is (38 − 5) / 0.15 = 220.
        let policy = additive(0.1);
        let mut rate = 5.0;
        let ratings = (1..).find(|_| {
            policy.fold(&mut rate, 4.5);
            rate >= 38.0
        });
        // One more for the binary 0.15 that falls short of it.
        assert_eq!(ratings, Some(221));
    }
}
