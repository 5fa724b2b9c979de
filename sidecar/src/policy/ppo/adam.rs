//! The optimizer: Adam, and the bound on a gradient's length before it.

use ndarray::ArrayView1;

use super::Real;

/// How fast the mean of gradients forgets.
const BETA_1: f64 = 0.9;

/// How fast the mean of their squares forgets.
const BETA_2: f64 = 0.999;

/// ε: detail 3 of Huang et al. 2022, where the usual 10⁻⁸ is larger.
pub const EPSILON: f64 = 1e-5;

/// What torch adds to a norm before it divides by it.
const NORM_MIN: f64 = 1e-6;

/// The moments of Adam (Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization", algorithm 1).
#[derive(Clone, Debug, PartialEq)]
pub struct Adam<R = f32> {
    first: Vec<R>,
    second: Vec<R>,
    steps: u64,
}

impl<R: Real> Adam<R> {
    /// Returns the optimizer of `parameters` parameters that has taken no step.
    #[must_use]
    pub fn new(parameters: usize) -> Self {
        Self { first: vec![R::zero(); parameters], second: vec![R::zero(); parameters], steps: 0 }
    }

    /// Returns an optimizer that goes on from these moments after `steps` steps.
    pub(super) fn resume(first: Vec<R>, second: Vec<R>, steps: u64) -> Self {
        debug_assert_eq!(first.len(), second.len());
        Self { first, second, steps }
    }

    /// Returns the means of the gradients, m.
    #[must_use]
    pub fn first(&self) -> &[R] {
        &self.first
    }

    /// Returns the means of their squares, v.
    #[must_use]
    pub fn second(&self) -> &[R] {
        &self.second
    }

    /// Returns how many steps were taken.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// Moves `parameters` against `gradient`: θ ← θ − rate·m̂ / (√v̂ + ε).
    pub fn step(&mut self, parameters: &mut [R], gradient: &[R], rate: f64) {
        debug_assert!(parameters.len() == gradient.len() && gradient.len() == self.first.len());
        self.steps += 1;
        // Beyond 2^31 steps both corrections are 1.
        let steps = i32::try_from(self.steps).unwrap_or(i32::MAX);
        let (one, two) = (1.0 - BETA_1.powi(steps), (1.0 - BETA_2.powi(steps)).sqrt());
        // θ − (rate/one)·m / (√v/two + ε), with everything that is the same for all taken out.
        let (rate, scale, epsilon) = (R::of(rate / one), R::of(1.0 / two), R::of(EPSILON));
        let (keep_1, add_1) = (R::of(BETA_1), R::of(1.0 - BETA_1));
        let (keep_2, add_2) = (R::of(BETA_2), R::of(1.0 - BETA_2));
        let moments = self.first.iter_mut().zip(&mut self.second);
        for ((parameter, &slope), (first, second)) in
            parameters.iter_mut().zip(gradient).zip(moments)
        {
            *first = keep_1 * *first + add_1 * slope;
            *second = keep_2 * *second + add_2 * slope * slope;
            *parameter -= rate * *first / (second.sqrt() * scale + epsilon);
        }
    }
}

/// Shortens `gradient` to a length of at most `most` (Pascanu et al. 2013; over all parameters at once,
/// detail 11 of Huang et al. 2022). Returns its length before.
pub fn clip_norm<R: Real>(gradient: &mut [R], most: f64) -> f64 {
    let view = ArrayView1::from(&*gradient);
    let norm = view.dot(&view).wide().sqrt();
    let scale = most / (norm + NORM_MIN);
    if scale < 1.0 {
        let scale = R::of(scale);
        gradient.iter_mut().for_each(|slope| *slope *= scale);
    }
    norm
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_steps_are_those_of_the_algorithm_worked_out_by_hand() {
        let (mut parameters, mut adam) = (vec![1.0_f64], Adam::new(1));
        adam.step(&mut parameters, &[0.5], 0.1);
        // m̂ = 0.5 and v̂ = 0.25.
        let first = 1.0 - 0.1 * 0.5 / (0.5 + 1e-5);
        assert!((parameters[0] - first).abs() < 1e-15);
        adam.step(&mut parameters, &[-1.0], 0.1);
        let m = (0.9 * 0.05 - 0.1) / (1.0 - 0.81);
        let v = (0.999 * 0.000_25 + 0.001) / (1.0 - 0.998_001);
        assert!((parameters[0] - (first - 0.1 * m / (f64::sqrt(v) + 1e-5))).abs() < 1e-12);
        assert_eq!(adam.steps(), 2);
    }

    #[test]
    fn it_finds_the_bottom_of_a_long_narrow_valley() {
        let (mut parameters, mut adam) = (vec![3.0_f64, -2.0], Adam::new(2));
        for _ in 0..4_000 {
            let gradient = [2.0 * (parameters[0] - 1.0), 200.0 * (parameters[1] - 0.5)];
            adam.step(&mut parameters, &gradient, 0.01);
        }
        assert!((parameters[0] - 1.0).abs() < 1e-3 && (parameters[1] - 0.5).abs() < 1e-3);
    }

    #[test]
    fn a_long_gradient_is_shortened_and_a_short_one_left() {
        let mut gradient = [3.0_f64, 4.0];
        assert_eq!(clip_norm(&mut gradient, 0.5), 5.0);
        assert!((gradient[0] - 0.3).abs() < 1e-6 && (gradient[1] - 0.4).abs() < 1e-6);
        let mut gradient = [0.3_f64, 0.4];
        clip_norm(&mut gradient, 0.6);
        assert_eq!(gradient, [0.3, 0.4]);
        assert!(clip_norm(&mut [f32::NAN, 1.0], 0.5).is_nan());
    }
}
