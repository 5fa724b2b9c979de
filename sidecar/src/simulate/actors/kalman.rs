//! The prototype's estimate of quality: a Kalman filter per agent, with trust in raters and a
//! Page-Hinkley alarm where asked for.
//!
//! Kept apart from `policy`, whose estimator it is the yardstick of: what the simulation says of it
//! is what the numpy prototype said.

use crate::simulate::world::{IDENTITIES_MAX, Ratings, USERS};

/// What is believed of an agent that nobody rated: mean and variance of its quality.
const PRIOR: (f64, f64) = (3.5, 0.6);
/// How much the variance grows in a tick.
const GROWTH: f64 = 1.5e-4;
/// The most it grows to.
const VARIANCE_MAX: f64 = 1.0;
/// Variance of a rating around the quality: the user's noise and bias.
const NOISE: f64 = 1.2;
/// What a rater's mean squared residual begins at, and its range.
const RESIDUAL: (f64, f64, f64) = (1.3, 0.2, 12.0);
/// How fast a rater's mean squared residual follows.
const RESIDUAL_RATE: f64 = 0.15;
/// A rater with a larger mean squared residual counts less, by the third power.
const RESIDUAL_TRUSTED: f64 = 1.8;
/// The largest residual that counts, where raters are trusted by theirs.
const RESIDUAL_CLIP: f64 = 2.5;
/// Page-Hinkley (Page, "Continuous inspection schemes", 1954): what a rating must exceed to count,
/// in standard deviations, and the sum that is an alarm.
const ALARM: (f64, f64) = (0.35, 6.0);
/// The variance after an alarm.
const VARIANCE_ALARMED: f64 = 0.35;

#[derive(Clone, Debug)]
pub(super) struct Kalman {
    pub(super) mean: Vec<f64>,
    pub(super) variance: Vec<f64>,
    careful: Option<Careful>,
    /// Sums of this tick by agent: weights, and weighted residuals.
    weights: Vec<f64>,
    residuals: Vec<f64>,
    rated: Vec<u32>,
}

/// What the filter remembers where it trusts nobody blindly.
#[derive(Clone, Debug)]
struct Careful {
    squares: Vec<f64>,
    steps: Vec<(u32, f64)>,
    up: Vec<f64>,
    down: Vec<f64>,
}

impl Kalman {
    /// Returns the filter of `agents`; `careful` with trust in raters and alarms.
    pub(super) fn new(agents: usize, careful: bool) -> Self {
        let careful = careful.then(|| Careful {
            squares: vec![RESIDUAL.0; (USERS + IDENTITIES_MAX) as usize],
            steps: Vec::new(),
            up: vec![0.0; agents],
            down: vec![0.0; agents],
        });
        Self {
            mean: vec![PRIOR.0; agents],
            variance: vec![PRIOR.1; agents],
            careful,
            weights: vec![0.0; agents],
            residuals: vec![0.0; agents],
            rated: Vec::new(),
        }
    }

    /// Folds one tick's ratings, all at once (Kalman, "A new approach to linear filtering and
    /// prediction problems", 1960, for a random walk and one measurement: their weighted mean).
    pub(super) fn fold(&mut self, ratings: &Ratings) {
        for variance in &mut self.variance {
            *variance = (*variance + GROWTH).min(VARIANCE_MAX);
        }
        for n in 0..ratings.len() {
            let (agent, weight) = (ratings.agents[n], ratings.weights[n]);
            let (weight, residual) =
                self.weigh(agent, ratings.raters[n], ratings.scores[n], weight);
            let agent = agent as usize;
            if self.weights[agent] == 0.0 {
                self.rated.push(ratings.agents[n]);
            }
            self.weights[agent] += weight;
            self.residuals[agent] += weight * residual;
        }
        for agent in std::mem::take(&mut self.rated) {
            let agent = agent as usize;
            let weight = std::mem::take(&mut self.weights[agent]);
            let residual = std::mem::take(&mut self.residuals[agent]);
            let total = self.variance[agent] * weight + NOISE;
            let gain = self.variance[agent] * weight / total;
            self.mean[agent] = (self.mean[agent] + gain * residual / weight).clamp(1.0, 5.0);
            self.variance[agent] *= NOISE / total;
            if let Some(careful) = &mut self.careful
                && careful.alarmed(agent, weight, residual)
            {
                self.variance[agent] = self.variance[agent].max(VARIANCE_ALARMED);
            }
        }
        if let Some(careful) = &mut self.careful {
            for (rater, step) in careful.steps.drain(..) {
                careful.squares[rater as usize] += step;
            }
            for rater in &ratings.raters {
                let square = &mut careful.squares[*rater as usize];
                *square = square.clamp(RESIDUAL.1, RESIDUAL.2);
            }
        }
    }

    /// Returns what a rating weighs, and its residual.
    fn weigh(&mut self, agent: u32, rater: u32, score: f64, receipt: f64) -> (f64, f64) {
        let residual = score - self.mean[agent as usize];
        let Some(careful) = &mut self.careful else { return (receipt, residual) };
        let square = careful.squares[rater as usize];
        let weight = (RESIDUAL_TRUSTED / square).min(1.0).powi(3);
        let explained = residual * residual - self.variance[agent as usize];
        // A rater who rates twice in a tick is judged by what was known before it.
        let step = RESIDUAL_RATE * (explained.clamp(0.0, RESIDUAL.2) - square);
        careful.steps.push((rater, step));
        (weight * receipt, residual.clamp(-RESIDUAL_CLIP, RESIDUAL_CLIP))
    }
}

impl Careful {
    /// Returns whether the agent's residuals have added up too far on one side.
    fn alarmed(&mut self, agent: usize, weight: f64, residual: f64) -> bool {
        let (slack, limit) = ALARM;
        let deviation = residual / NOISE.sqrt();
        let (up, down) = (&mut self.up[agent], &mut self.down[agent]);
        *up = (*up + deviation - slack * weight).max(0.0);
        *down = (*down - deviation - slack * weight).max(0.0);
        let alarmed = *up > limit || *down > limit;
        if alarmed {
            (*up, *down) = (0.0, 0.0);
        }
        alarmed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ratings(of: &[(u32, u32, f64)]) -> Ratings {
        Ratings {
            agents: of.iter().map(|(agent, ..)| *agent).collect(),
            raters: of.iter().map(|(_, rater, _)| *rater).collect(),
            scores: of.iter().map(|(.., score)| *score).collect(),
            weights: vec![1.0; of.len()],
        }
    }

    #[test]
    fn ratings_of_one_tick_count_as_their_mean_with_so_much_less_noise() {
        let mut filter = Kalman::new(2, false);
        filter.fold(&ratings(&[(0, 1, 5.0), (0, 2, 4.0)]));
        // By hand: v = 0.60015, R = 1.2, two ratings of mean residual 1.
        let gain = 0.60015 * 2.0 / (0.60015 * 2.0 + 1.2);
        assert!((filter.mean[0] - (3.5 + gain)).abs() < 1e-12);
        assert!((filter.variance[0] - 0.60015 * (1.0 - gain)).abs() < 1e-12);
        assert_eq!((filter.mean[1], filter.variance[1]), (3.5, 0.60015));
    }

    #[test]
    fn a_bomber_of_many_good_agents_soon_weighs_little() {
        let mut filter = Kalman::new(100, true);
        let mut blind = Kalman::new(100, false);
        for round in 0..40u32 {
            for agent in 0..100 {
                // Nine honest users who say 4 or 5, and one that says 1 to everybody.
                let honest = |n: u32| (agent, agent * 9 + n, f64::from(4 + (n + round) % 2));
                let mut votes: Vec<_> = (0..9).map(honest).collect();
                votes.push((agent, 2400, 1.0));
                filter.fold(&ratings(&votes));
                blind.fold(&ratings(&votes));
            }
        }
        assert!(filter.mean.iter().all(|mean| *mean > 4.35), "{:?}", &filter.mean[..3]);
        assert!(blind.mean.iter().all(|mean| *mean < 4.25), "{:?}", &blind.mean[..3]);
    }

    #[test]
    fn a_fall_raises_the_alarm_and_the_filter_learns_fast_again() {
        let mut filter = Kalman::new(1, true);
        for n in 0..200u32 {
            filter.fold(&ratings(&[(0, n, f64::from(4 + n % 2))]));
        }
        let before = filter.variance[0];
        let alarmed = (0..30u32).find(|n| {
            filter.fold(&ratings(&[(0, 300 + n, 2.0)]));
            filter.variance[0] > 2.0 * before
        });
        assert!(alarmed.is_some_and(|ratings| ratings < 10), "{alarmed:?}");
    }
}
