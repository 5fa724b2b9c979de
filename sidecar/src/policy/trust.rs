//! How much a rater counts: less, the further its ratings lie from what everybody else says.
//!
//! Of each rater a running mean of its squared residuals is kept; its weight is
//! min(1, [`FAIR`] / mean)³. Soft state: bounded by [`RATERS_MAX`], forgotten at a restart, and no part
//! of what is applied exactly once.

use std::num::NonZeroUsize;

use lru::LruCache;

use super::{Belief, estimator::single};

/// How many raters are remembered, the ones that rated last; one takes about 50 bytes.
pub const RATERS_MAX: NonZeroUsize = NonZeroUsize::new(500_000).expect("above 0");

/// The mean squared residual up to which a rater counts in full: honest raters have 1.2 (taste and
/// leaning), with half as much again for raters who are stricter than most.
pub const FAIR: f64 = 1.8;

/// Of a rater that nobody knows yet: it weighs 0.42. A few ratings that others share make it count in full,
/// and ten users who come to rate one agent down do less harm until they are found out.
const BEGIN: f64 = 2.4;

/// Share of the running mean that one rating replaces.
const SHARE: f64 = 0.15;

/// The mean lies within these: a rater who was wrong can come back, and one who was right can fall.
const MEAN_MIN: f64 = 0.2;
const MEAN_MAX: f64 = 12.0;

/// The raters that are remembered.
#[derive(Debug)]
pub struct Raters {
    /// Without a bound of its own, so that it grows as raters come; `weigh` bounds it.
    known: LruCache<u64, f32>,
    most: NonZeroUsize,
}

impl Default for Raters {
    fn default() -> Self {
        Self::with_capacity(RATERS_MAX)
    }
}

impl Raters {
    /// Returns a memory of at most `raters`.
    #[must_use]
    pub fn with_capacity(raters: NonZeroUsize) -> Self {
        Self { known: LruCache::unbounded(), most: raters }
    }

    /// Returns how many raters are remembered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.known.len()
    }

    /// Returns true when no rater is remembered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.known.is_empty()
    }

    /// Returns what a rating by `rater` weighs, above 0 to 1, by what it rated before this one; then
    /// takes this one in: `score` for an agent of whom `belief` was held until now.
    ///
    /// The squared residual less the belief's variance is an estimate of the rater's own variance;
    /// what is not finite teaches nothing.
    pub fn weigh(&mut self, rater: u64, score: f64, belief: Belief) -> f64 {
        let mean = self.known.get_or_insert_mut(rater, || single(BEGIN));
        let before = f64::from(*mean);
        let residual = score - belief.mean;
        let seen = (residual * residual - belief.variance).clamp(0.0, MEAN_MAX);
        if seen.is_finite() {
            let after = before + SHARE * (seen - before);
            *mean = single(after.clamp(MEAN_MIN, MEAN_MAX));
        }
        if self.known.len() > self.most.get() {
            self.known.pop_lru();
        }
        weight(before)
    }

    /// Returns what a rating by `rater` would weigh now.
    #[must_use]
    pub fn weight(&self, rater: u64) -> f64 {
        weight(self.known.peek(&rater).map_or(BEGIN, |mean| f64::from(*mean)))
    }
}

/// Returns min(1, fair / mean)³ (POLICY section 2; the prototype's `Kalman.update`).
fn weight(mean_squared_residual: f64) -> f64 {
    (FAIR / mean_squared_residual).min(1.0).powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BELIEF: Belief = Belief { mean: 4.0, variance: 0.1 };

    #[test]
    fn an_unknown_rater_counts_by_half_or_so_and_one_far_off_less_each_time() {
        // By hand: 2.4 → 2.4 + 0.15·((1 − 4)² − 0.1 − 2.4) = 3.375 → 3.375 + 0.15·(8.9 − 3.375) = 4.20375.
        let mut raters = Raters::default();
        let weights = [0; 3].map(|_| raters.weigh(7, 1.0, BELIEF));
        let expected =
            [(1.8_f64 / 2.4).powi(3), (1.8_f64 / 3.375).powi(3), (1.8_f64 / 4.203_75).powi(3)];
        for (weight, expected) in weights.into_iter().zip(expected) {
            assert!((weight - expected).abs() < 1e-6, "{weight} is not {expected}");
        }
        let unknown = raters.weigh(8, 4.0, BELIEF);
        assert!((unknown - 0.421_875).abs() < 1e-6, "each rater for itself: {unknown}");
        // Four ratings as others rate make it count in full.
        let known = [0; 4].map(|_| raters.weigh(8, 4.0, BELIEF));
        assert_eq!(known[3], 1.0, "{known:?}");
    }

    #[test]
    fn a_rater_who_agrees_again_counts_again() {
        let mut raters = Raters::default();
        for _ in 0..50 {
            raters.weigh(7, 1.0, BELIEF);
        }
        assert!(raters.weight(7) < 0.01);
        let back = (1..100).find(|_| raters.weigh(7, 4.0, BELIEF) == 1.0);
        assert!(back.is_some_and(|ratings| (5..20).contains(&ratings)), "{back:?}");
    }

    #[test]
    fn the_memory_is_bounded_and_keeps_who_rated_last() {
        let mut raters = Raters::with_capacity(NonZeroUsize::new(2).unwrap());
        for _ in 0..9 {
            raters.weigh(1, 1.0, BELIEF);
        }
        raters.weigh(2, 4.0, BELIEF);
        assert!(raters.weigh(1, 1.0, BELIEF) < 0.1);
        raters.weigh(3, 4.0, BELIEF);
        assert_eq!(raters.len(), 2);
        assert!(raters.weight(1) < 0.1, "rated later than 2");
    }

    #[test]
    fn what_is_not_finite_teaches_nothing() {
        let mut raters = Raters::default();
        let broken = Belief { mean: f64::NAN, variance: f64::INFINITY };
        for (score, belief) in [(f64::NAN, BELIEF), (3.0, broken), (f64::INFINITY, broken)] {
            raters.weigh(7, score, belief);
            let (weight, unknown) = (raters.weight(7), raters.weight(8));
            assert!((weight - unknown).abs() < 1e-6, "{weight} is not that of an unknown rater");
        }
    }
}
