//! What the actor's outputs mean: a distribution over actions, and how its parts change.

use rand::{Rng, RngExt};

use super::{Real, random::normal};

/// A distribution over actions, given by the actor's outputs for one observation and by free
/// parameters that do not depend on the observation.
pub trait Head: Copy + std::fmt::Debug + PartialEq + Send + Sync {
    /// What is done.
    type Action: Copy + std::fmt::Debug + PartialEq + Send + Sync;

    /// The name of the distribution in checkpoints.
    const NAME: &'static str;

    /// Returns how many outputs the actor has.
    fn outputs(&self) -> usize;

    /// Returns the first values of the free parameters.
    fn begin(&self) -> Vec<f64>;

    /// Brings free parameters that an optimizer moved back into their range.
    fn project<R: Real>(&self, free: &mut [R]);

    /// Returns a random action.
    fn draw<R: Real>(&self, outputs: &[R], free: &[R], random: &mut impl Rng) -> Self::Action;

    /// Returns the likeliest action.
    fn best<R: Real>(&self, outputs: &[R]) -> Self::Action;

    /// Returns the logarithm of the probability of `action`, or of its density.
    fn log_density<R: Real>(&self, outputs: &[R], free: &[R], action: &Self::Action) -> R;

    /// Returns the entropy in nats.
    fn entropy<R: Real>(&self, outputs: &[R], free: &[R]) -> R;

    /// Writes into `by_outputs`, and adds to `by_free`, how `by_log_density`·log π(action) + `by_entropy`·H
    /// changes with the outputs and the free parameters.
    fn slopes<R: Real>(
        &self,
        at: At<'_, R, Self::Action>,
        by_log_density: R,
        by_entropy: R,
        by_outputs: &mut [R],
        by_free: &mut [R],
    );
}

/// A distribution, and an action drawn from it or not.
#[derive(Clone, Copy, Debug)]
pub struct At<'a, R, A> {
    /// The actor's outputs.
    pub outputs: &'a [R],
    /// The free parameters.
    pub free: &'a [R],
    /// The action.
    pub action: &'a A,
}

/// A normal distribution over one number, whose mean is the actor's output and whose deviation is the
/// same for all observations (details 1 and 2 for continuous actions of Huang et al. 2022).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gaussian {
    /// The first logarithm of the deviation, −5 to 1.
    pub log_std: f64,
}

/// The least logarithm of a deviation: below it densities leave what `f32` can tell apart.
pub const LOG_STD_MIN: f64 = -5.0;

/// The largest logarithm of a deviation: actions are meant to lie within −1 to 1.
pub const LOG_STD_MAX: f64 = 1.0;

/// ½·ln 2π
const HALF_LN_TAU: f64 = 0.918_938_533_204_672_8;

impl Default for Gaussian {
    /// A deviation of 1: the whole range is tried.
    fn default() -> Self {
        Self { log_std: 0.0 }
    }
}

impl Head for Gaussian {
    type Action = f32;

    const NAME: &'static str = "gaussian";

    fn outputs(&self) -> usize {
        1
    }

    fn begin(&self) -> Vec<f64> {
        vec![self.log_std.clamp(LOG_STD_MIN, LOG_STD_MAX)]
    }

    fn project<R: Real>(&self, free: &mut [R]) {
        // A NaN passes: whoever looks for one must find it.
        free[0] = free[0].clamp(R::of(LOG_STD_MIN), R::of(LOG_STD_MAX));
    }

    fn draw<R: Real>(&self, outputs: &[R], free: &[R], random: &mut impl Rng) -> f32 {
        f32::of(outputs[0].wide() + free[0].wide().exp() * normal(random))
    }

    fn best<R: Real>(&self, outputs: &[R]) -> f32 {
        f32::of(outputs[0].wide())
    }

    fn log_density<R: Real>(&self, outputs: &[R], free: &[R], action: &f32) -> R {
        let z = (R::of(action.wide()) - outputs[0]) / free[0].exp();
        -R::of(0.5) * z * z - free[0] - R::of(HALF_LN_TAU)
    }

    fn entropy<R: Real>(&self, _outputs: &[R], free: &[R]) -> R {
        free[0] + R::of(0.5 + HALF_LN_TAU)
    }

    fn slopes<R: Real>(
        &self,
        at: At<'_, R, f32>,
        by_log_density: R,
        by_entropy: R,
        by_outputs: &mut [R],
        by_free: &mut [R],
    ) {
        let deviation = at.free[0].exp();
        let z = (R::of(at.action.wide()) - at.outputs[0]) / deviation;
        by_outputs[0] = by_log_density * z / deviation;
        by_free[0] += by_log_density * (z * z - R::one()) + by_entropy;
    }
}

/// A choice among `actions` numbered from 0, whose unnormalised log-probabilities are the outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Categorical {
    /// How many actions there are, at least 1.
    pub actions: usize,
}

/// Returns ln Σ eˣ, without overflow.
fn log_sum<R: Real>(logits: &[R]) -> R {
    // Not `max`, which would lose a NaN.
    let top = logits.iter().fold(R::neg_infinity(), |top, &x| if x <= top { top } else { x });
    top + logits.iter().fold(R::zero(), |sum, &x| sum + (x - top).exp()).ln()
}

impl Head for Categorical {
    type Action = usize;

    const NAME: &'static str = "categorical";

    fn outputs(&self) -> usize {
        self.actions
    }

    fn begin(&self) -> Vec<f64> {
        Vec::new()
    }

    fn project<R: Real>(&self, _free: &mut [R]) {}

    fn draw<R: Real>(&self, outputs: &[R], _free: &[R], random: &mut impl Rng) -> usize {
        let total = log_sum(outputs);
        let mut left: f64 = random.random();
        for (action, &logit) in outputs.iter().enumerate() {
            left -= (logit - total).exp().wide();
            if left < 0.0 {
                return action;
            }
        }
        outputs.len() - 1
    }

    fn best<R: Real>(&self, outputs: &[R]) -> usize {
        (1..outputs.len()).fold(0, |best, n| if outputs[n] > outputs[best] { n } else { best })
    }

    fn log_density<R: Real>(&self, outputs: &[R], _free: &[R], action: &usize) -> R {
        outputs[*action] - log_sum(outputs)
    }

    fn entropy<R: Real>(&self, outputs: &[R], _free: &[R]) -> R {
        let total = log_sum(outputs);
        outputs.iter().fold(R::zero(), |sum, &x| sum - (x - total).exp() * (x - total))
    }

    fn slopes<R: Real>(
        &self,
        at: At<'_, R, usize>,
        by_log_density: R,
        by_entropy: R,
        by_outputs: &mut [R],
        _by_free: &mut [R],
    ) {
        let total = log_sum(at.outputs);
        let entropy = self.entropy(at.outputs, at.free);
        for (n, (slope, &logit)) in by_outputs.iter_mut().zip(at.outputs).enumerate() {
            let log = logit - total;
            let probability = log.exp();
            let chosen = if n == *at.action { R::one() } else { R::zero() };
            *slope = by_log_density * (chosen - probability)
                - by_entropy * probability * (log + entropy);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::random::{Purpose, stream};
    use super::*;

    /// Both slopes against central differences, for each output and each free parameter.
    fn slopes_hold<H: Head>(head: H, outputs: &[f64], free: &[f64], action: H::Action) {
        for (by_log, by_entropy) in [(1.0, 0.0), (0.0, 1.0), (-0.7, 0.3)] {
            let mut by_outputs = vec![f64::NAN; outputs.len()];
            let mut by_free = vec![0.0; free.len()];
            let at = At { outputs, free, action: &action };
            head.slopes(at, by_log, by_entropy, &mut by_outputs, &mut by_free);
            let value = |outputs: &[f64], free: &[f64]| {
                by_log * head.log_density(outputs, free, &action)
                    + by_entropy * head.entropy(outputs, free)
            };
            for n in 0..outputs.len() {
                let moved = |step: f64| {
                    let mut outputs = outputs.to_vec();
                    outputs[n] += step;
                    value(&outputs, free)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope - by_outputs[n]).abs() < 1e-8, "{head:?} output {n}");
            }
            for n in 0..free.len() {
                let moved = |step: f64| {
                    let mut free = free.to_vec();
                    free[n] += step;
                    value(outputs, &free)
                };
                let slope = (moved(1e-5) - moved(-1e-5)) / 2e-5;
                assert!((slope - by_free[n]).abs() < 1e-8, "{head:?} free parameter {n}");
            }
        }
    }

    #[test]
    fn slopes_are_those_of_finite_differences() {
        for (mean, log_std, action) in [(0.3, -0.5, 0.9), (0.3, -0.5, -1.4), (-0.1, 0.4, -0.1)] {
            slopes_hold(Gaussian::default(), &[mean], &[log_std], action);
        }
        for action in 0..3 {
            slopes_hold(Categorical { actions: 3 }, &[0.2, -1.3, 0.9], &[], action);
        }
    }

    #[test]
    fn densities_integrate_and_probabilities_sum_to_one_and_entropy_is_their_mean_surprise() {
        let (outputs, free) = ([0.25_f64], [-0.5_f64]);
        let (mut mass, mut surprise) = (0.0, 0.0);
        for n in -60_000..60_000 {
            let log = Gaussian::default().log_density(&outputs, &free, &(n as f32 * 1e-4));
            mass += log.exp() * 1e-4;
            surprise -= log * log.exp() * 1e-4;
        }
        assert!((mass - 1.0).abs() < 1e-5, "{mass}");
        assert!((surprise - Gaussian::default().entropy(&outputs, &free)).abs() < 1e-4);

        let (head, logits) = (Categorical { actions: 3 }, [700.0, 701.0, 698.5]);
        let logs = [0, 1, 2].map(|action| head.log_density(&logits, &[], &action));
        assert!((logs.iter().map(|log: &f64| log.exp()).sum::<f64>() - 1.0).abs() < 1e-12);
        let surprise = -logs.iter().map(|log| log * log.exp()).sum::<f64>();
        assert!((surprise - head.entropy(&logits, &[])).abs() < 1e-12);
    }

    #[test]
    fn actions_are_drawn_as_often_as_their_probabilities_say() {
        let mut random = stream(9, Purpose::Actions, 0);
        let (head, logits) = (Categorical { actions: 3 }, [0.0_f32, 1.0, -1.0]);
        let mut counts = [0.0; 3];
        (0..100_000).for_each(|_| counts[head.draw(&logits, &[], &mut random)] += 1e-5);
        for (action, count) in counts.into_iter().enumerate() {
            let expected = head.log_density(&logits, &[], &action).exp().wide();
            assert!((count - expected).abs() < 0.006, "{action}: {count} for {expected}");
        }
        let drawn = (0..100_000)
            .map(|_| f64::from(Gaussian::default().draw(&[0.5_f64], &[-1.0], &mut random)) - 0.5);
        let variance = drawn.map(|x| x * x).sum::<f64>() / 1e5;
        assert!((variance / (-2.0_f64).exp() - 1.0).abs() < 0.02, "{variance}");
    }

    #[test]
    fn the_deviation_stays_in_its_range_and_a_nan_stays_a_nan() {
        for (value, expected) in [(3.0, LOG_STD_MAX), (-9.0, LOG_STD_MIN), (0.5, 0.5)] {
            let mut free = [value];
            Gaussian::default().project(&mut free);
            assert_eq!(free, [expected]);
        }
        let mut free = [f32::NAN];
        Gaussian::default().project(&mut free);
        assert!(free[0].is_nan());
        assert!(log_sum(&[0.0, f32::NAN, 1.0]).is_nan());
    }
}
