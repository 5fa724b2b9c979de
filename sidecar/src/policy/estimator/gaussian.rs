//! One Gaussian belief about an agent's quality, moved by ratings: the Kalman filter of a random
//! walk seen through noise.
//!
//! Kept in single precision, computed in double: 8 bytes, and the rounding (1 part in 10⁷) is far
//! below the noise of one rating.

use super::{Belief, single};
use crate::rating::{SCORE_MAX, SCORE_MIN};

/// A mean and a variance, in points of score and their square.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gaussian {
    pub(super) mean: f32,
    pub(super) variance: f32,
}

impl Gaussian {
    pub(super) fn new(belief: Belief) -> Self {
        Self { mean: single(belief.mean), variance: single(belief.variance) }
    }

    pub(super) fn belief(self) -> Belief {
        Belief { mean: f64::from(self.mean), variance: f64::from(self.variance) }
    }

    /// Lets the quality walk: v ← min(v + `by`, `most`).
    ///
    /// Kalman (1960), "A New Approach to Linear Filtering and Prediction Problems", theorem 3, for a
    /// scalar state that is a random walk: the prediction.
    pub(super) fn widen(&mut self, by: f64, most: f64) {
        self.variance = single((f64::from(self.variance) + by).min(most));
    }

    /// Learns one `score` seen through noise of variance `noise`. Returns its predictive density
    /// N(score; m, v + noise), without the constant 1/√2π.
    ///
    /// Kalman (1960), theorem 3, the correction: s = v + R, k = v/s, m ← m + k·e, v ← (1 − k)·v. The
    /// mean stays within the scale of scores.
    pub(super) fn learn(&mut self, score: f64, noise: f64) -> f64 {
        let Belief { mean, variance } = self.belief();
        let spread = variance + noise;
        let error = score - mean;
        let gain = variance / spread;
        self.mean = single((mean + gain * error).clamp(SCORE_MIN, SCORE_MAX));
        self.variance = single(variance * (1.0 - gain));
        (-0.5 * error * error / spread).exp() / spread.sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_rating_moves_it_by_the_gain_and_a_second_by_less() {
        // By hand, v = 0.6 and R = 1.2: s = 1.8, k = 1/3; m = 3.5 + 1.5/3 = 4, v = 0.4. Then
        // s = 1.6, k = 1/4; m = 4 − 2/4 = 3.5, v = 0.3.
        let mut known = Gaussian::new(Belief { mean: 3.5, variance: 0.6 });
        let first = known.learn(5.0, 1.2);
        // e^(−2.25/3.6)/√1.8 = 0.5352614285 / 1.3416407865.
        assert!((first - 0.398_960_3).abs() < 1e-6, "{first}");
        assert!((known.mean - 4.0).abs() < 1e-6 && (known.variance - 0.4).abs() < 1e-6);
        known.learn(2.0, 1.2);
        assert!((known.mean - 3.5).abs() < 1e-6 && (known.variance - 0.3).abs() < 1e-6);
    }

    #[test]
    fn without_a_walk_it_is_the_precision_weighted_mean() {
        // Bayes: precision 1/0.6 + n/1.2, mean (3.5/0.6 + Σ/1.2) ÷ precision.
        let scores = [4.0, 5.0, 3.0, 4.0, 4.0, 2.0, 5.0];
        let mut known = Gaussian::new(Belief { mean: 3.5, variance: 0.6 });
        for score in scores {
            known.learn(score, 1.2);
        }
        let precision = 1.0 / 0.6 + 7.0 / 1.2;
        let mean = (3.5 / 0.6 + 27.0 / 1.2) / precision;
        assert!((f64::from(known.mean) - mean).abs() < 1e-5);
        assert!((f64::from(known.variance) - 1.0 / precision).abs() < 1e-6);
    }

    #[test]
    fn a_walk_between_ratings_settles_where_gain_and_walk_meet() {
        // The steady state of v ← v·R/(v + R) + q solves v² − q·v − q·R = 0 (the scalar Riccati
        // equation); v is the variance before a rating.
        let (walk, noise) = (1e-3, 1.2);
        let mut known = Gaussian::new(Belief { mean: 3.5, variance: 0.6 });
        for _ in 0..5_000 {
            known.widen(walk, 1.0);
            known.learn(3.5, noise);
        }
        known.widen(walk, 1.0);
        let steady = (walk + (walk * walk + 4.0 * walk * noise).sqrt()) / 2.0;
        assert!((f64::from(known.variance) / steady - 1.0).abs() < 1e-4);
    }
}
