//! What a policy would have earned, from decisions that another one made: three estimators.
//!
//! With wᵢ = π(aᵢ|xᵢ) / propensityᵢ, rewards rᵢ, a model q̂ of the reward, and n decisions:
//!
//! - **IPS**, inverse propensity scoring: Σ wᵢ·rᵢ / n (Horvitz & Thompson, 1952, section 4.1).
//! - **SNIPS**, self-normalised: Σ wᵢ·rᵢ / Σ wᵢ (Swaminathan & Joachims, 2015, equation 8).
//! - **DR**, doubly robust: Σ [E_π q̂(xᵢ, ·) + wᵢ·(rᵢ − q̂(xᵢ, aᵢ))] / n (Dudík, Langford & Li, 2011,
//!   equation 2), where q̂ never saw the agent that it predicts for (cross-fitting, Chernozhukov et al.,
//!   2018, definition 3.2): else it would know the noise that it is held against.
//!
//! Intervals are of 95 %, by Student's t over agents: decisions for one agent hang together, so each
//! agent's deviations are summed before they are squared (Liang & Zeger, 1986; t with G − 1 degrees of
//! freedom for G agents: Cameron & Miller, 2015, section VI). SNIPS is linearised: its deviations are
//! wᵢ·(rᵢ − estimate) / mean w (Owen, 2013, equation 9.9). With fewer agents than [`CLUSTERS_MIN`] each
//! decision counts as independent, which is said.

use serde::Serialize;

/// Agents from which on intervals are over agents, not over decisions.
pub const CLUSTERS_MIN: usize = 30;

/// One decision as the estimators see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sample {
    /// π(a|x) ÷ propensity, at least 0.
    pub weight: f64,
    /// What it was worth.
    pub reward: f64,
    /// What the model expects of what was done.
    pub modelled: f64,
    /// What the model expects of what the policy would have done.
    pub modelled_policy: f64,
    /// The number of the agent it was for, from 0.
    pub agent: u32,
}

/// A value with its interval.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    /// Mean reward of a decision.
    pub value: f64,
    /// Lower end of the 95 % interval.
    pub low: f64,
    /// Upper end of the 95 % interval.
    pub high: f64,
    /// Standard error.
    pub standard_error: f64,
}

/// What the samples hang together by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Clusters {
    /// Decisions for one agent do.
    Agents,
    /// Nothing: there are too few agents.
    Decisions,
}

/// Samples of one policy; at least two.
#[derive(Clone, Debug)]
pub struct Samples {
    samples: Vec<Sample>,
    agents: usize,
}

impl Samples {
    /// Returns samples for agents numbered below `agents`.
    #[must_use]
    pub fn new(samples: Vec<Sample>, agents: usize) -> Self {
        debug_assert!(samples.iter().all(|sample| (sample.agent as usize) < agents));
        Self { samples, agents }
    }

    #[allow(clippy::cast_precision_loss, reason = "fewer samples than 2^52")]
    fn count(&self) -> f64 {
        self.samples.len() as f64
    }

    fn mean(&self, of: impl Fn(&Sample) -> f64) -> f64 {
        self.samples.iter().map(of).sum::<f64>() / self.count()
    }

    /// Returns what intervals are over.
    #[must_use]
    pub fn clusters(&self) -> Clusters {
        if self.agents >= CLUSTERS_MIN { Clusters::Agents } else { Clusters::Decisions }
    }

    /// Returns the estimate `value` whose deviations per decision are `deviation`, of mean 0.
    #[allow(clippy::cast_precision_loss, reason = "fewer samples than 2^52")]
    fn estimate(&self, value: f64, deviation: impl Fn(&Sample) -> f64) -> Estimate {
        let (squares, groups) = match self.clusters() {
            Clusters::Agents => {
                let mut sums = vec![None; self.agents];
                for sample in &self.samples {
                    *sums[sample.agent as usize].get_or_insert(0.0) += deviation(sample);
                }
                let sums = sums.iter().flatten();
                (sums.clone().map(|sum: &f64| sum * sum).sum::<f64>(), sums.count() as f64)
            }
            Clusters::Decisions => {
                (self.samples.iter().map(|sample| deviation(sample).powi(2)).sum(), self.count())
            }
        };
        let standard_error = (squares * groups / (groups - 1.0).max(1.0)).sqrt() / self.count();
        let half = student_975((groups - 1.0).max(1.0)) * standard_error;
        Estimate { value, low: value - half, high: value + half, standard_error }
    }

    fn of_mean(&self, of: impl Fn(&Sample) -> f64) -> Estimate {
        let value = self.mean(&of);
        self.estimate(value, |sample| of(sample) - value)
    }

    /// Returns the mean reward of what was done.
    #[must_use]
    pub fn logged(&self) -> Estimate {
        self.of_mean(|sample| sample.reward)
    }

    /// Returns the estimate by inverse propensity scoring.
    #[must_use]
    pub fn ips(&self) -> Estimate {
        self.of_mean(|sample| sample.weight * sample.reward)
    }

    /// Returns the self-normalised estimate; the weights may not all be 0.
    #[must_use]
    pub fn snips(&self) -> Estimate {
        let weight = self.mean_weight();
        let value = self.mean(|sample| sample.weight * sample.reward) / weight;
        self.estimate(value, |sample| sample.weight * (sample.reward - value) / weight)
    }

    /// Returns the doubly robust estimate.
    #[must_use]
    pub fn dr(&self) -> Estimate {
        self.of_mean(doubly_robust)
    }

    /// Returns the doubly robust estimate less the mean reward of what was done: what switching
    /// would gain. Both are of the same decisions, so its interval is tighter than theirs together.
    #[must_use]
    pub fn gain(&self) -> Estimate {
        self.of_mean(|sample| doubly_robust(sample) - sample.reward)
    }

    /// Returns what the model alone says (the direct method): biased by whatever it misses.
    #[must_use]
    pub fn model(&self) -> f64 {
        self.mean(|sample| sample.modelled_policy)
    }

    /// Returns the mean weight, with its interval: 1 where propensities are right and the log has
    /// tried all that the policy would do.
    #[must_use]
    pub fn weights(&self) -> Estimate {
        self.of_mean(|sample| sample.weight)
    }

    /// Returns the mean weight.
    #[must_use]
    pub fn mean_weight(&self) -> f64 {
        self.mean(|sample| sample.weight)
    }

    /// Returns the largest weight.
    #[must_use]
    pub fn largest_weight(&self) -> f64 {
        self.samples.iter().map(|sample| sample.weight).fold(0.0, f64::max)
    }

    /// Returns how many decisions of the policy's own the log is worth: (Σ w)² / Σ w² (Kish, 1965,
    /// section 11.7); 0 when all weights are.
    #[must_use]
    pub fn effective(&self) -> f64 {
        let squares: f64 = self.samples.iter().map(|sample| sample.weight.powi(2)).sum();
        let sum = self.mean_weight() * self.count();
        if squares > 0.0 { sum * sum / squares } else { 0.0 }
    }
}

fn doubly_robust(sample: &Sample) -> f64 {
    sample.modelled_policy + sample.weight * (sample.reward - sample.modelled)
}

/// Returns the 0.975 quantile of Student's t with `freedom` degrees of freedom (Abramowitz & Stegun,
/// 1964, 26.7.5); within 0.001 from 10 on.
fn student_975(freedom: f64) -> f64 {
    /// The same of the normal distribution.
    const Z: f64 = 1.959_963_984_540_054;
    let z = |power: i32| Z.powi(power);
    let first = (z(3) + Z) / 4.0;
    let second = (5.0 * z(5) + 16.0 * z(3) + 3.0 * Z) / 96.0;
    let third = (3.0 * z(7) + 19.0 * z(5) + 17.0 * z(3) - 15.0 * Z) / 384.0;
    Z + first / freedom + second / freedom.powi(2) + third / freedom.powi(3)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(weight: f64, reward: f64, agent: u32) -> Sample {
        Sample { weight, reward, modelled: 0.5, modelled_policy: 0.75, agent }
    }

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, quantile) in [(10.0, 2.2281), (29.0, 2.0452), (99.0, 1.9842), (1e9, 1.96)] {
            assert!((student_975(freedom) - quantile).abs() < 1e-3, "{freedom}");
        }
    }

    #[test]
    fn the_three_estimators_are_what_their_formulas_give_by_hand() {
        let samples = vec![
            sample(2.0, 1.0, 0),
            sample(0.0, 5.0, 1),
            sample(1.0, 0.0, 0),
            sample(0.5, 2.0, 1),
        ];
        let samples = Samples::new(samples, 2);
        assert_eq!(samples.clusters(), Clusters::Decisions);
        // Σ w·r = 2 + 0 + 0 + 1 = 3; Σ w = 3.5; Σ w² = 5.25.
        assert_eq!(samples.ips().value, 0.75);
        assert!((samples.snips().value - 3.0 / 3.5).abs() < 1e-12);
        // 0.75 + (2·0.5 + 0·4.5 + 1·(−0.5) + 0.5·1.5) / 4.
        assert!((samples.dr().value - (0.75 + 1.25 / 4.0)).abs() < 1e-12);
        assert!((samples.gain().value - (1.0625 - 2.0)).abs() < 1e-12);
        assert!((samples.effective() - 12.25 / 5.25).abs() < 1e-12);
        assert_eq!((samples.mean_weight(), samples.largest_weight()), (0.875, 2.0));
        // Deviations of w·r from 0.75: 1.25, −0.75, −0.75, 0.25; variance 2.75 / 3.
        let error = (2.75_f64 / 3.0 / 4.0).sqrt();
        assert!((samples.ips().standard_error - error).abs() < 1e-12);
    }

    #[test]
    fn copies_of_a_decision_for_the_same_agent_make_no_interval_tighter() {
        let single: Vec<Sample> =
            (0..40).map(|agent| sample(1.0, f64::from(agent % 7), agent)).collect();
        let tenfold: Vec<Sample> = single.iter().flat_map(|one| [*one; 10]).collect();
        let (single, tenfold) = (Samples::new(single, 40), Samples::new(tenfold, 40));
        assert_eq!(tenfold.clusters(), Clusters::Agents);
        let (once, ten) = (single.ips(), tenfold.ips());
        assert!((once.standard_error - ten.standard_error).abs() < 1e-12, "{once:?} {ten:?}");
        assert!((once.value - ten.value).abs() < 1e-12);
    }
}
