//! A model of the reward: ridge regression on what the policy saw and what it did.
//!
//! Over arms there is one regression on the features for each arm. Over changes there is one on the
//! features, the change and its square, so that its mean under any distribution of changes needs only
//! that distribution's first two moments. It need not be right: doubly robust estimates stay
//! unbiased where it is wrong, and are the tighter the better it is.

use crate::decisions::{Arm, Decided};

/// Weight of the penalty on squared coefficients of standardised features; the intercept has none.
const RIDGE: f64 = 1.0;

/// A distribution over actions, as far as the model needs it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Moments<'c> {
    /// Probability of each arm.
    Arms(&'c [f64]),
    /// Mean of the change, and mean of its square.
    Change(f64, f64),
}

/// A fitted model.
#[derive(Clone, Debug)]
pub(super) struct Model {
    /// Of each feature: mean, and 1 ÷ standard deviation (0 for a constant one).
    scales: Vec<(f64, f64)>,
    /// One row of coefficients for each arm; the only one over changes. Intercept first.
    coefficients: Vec<Vec<f64>>,
    /// True over changes.
    continuous: bool,
}

impl Model {
    /// Fits `rows`, which all have as many features and the same kind of action; over `arms` arms,
    /// or over changes. An arm that nobody took gets the mean reward of all.
    #[allow(clippy::cast_precision_loss, reason = "fewer rows than 2^52")]
    pub(super) fn fit<'r>(
        rows: impl Iterator<Item = &'r Decided> + Clone,
        width: usize,
        arms: Option<u16>,
    ) -> Self {
        let count = rows.clone().count().max(1) as f64;
        let mean_of = |of: &dyn Fn(&Decided) -> f64| rows.clone().map(of).sum::<f64>() / count;
        let scale = |column: &dyn Fn(&Decided) -> f64| {
            let mean = mean_of(column);
            let variance = mean_of(&|row| (column(row) - mean).powi(2));
            (mean, if variance > 1e-24 { variance.sqrt().recip() } else { 0.0 })
        };
        let mut scales: Vec<(f64, f64)> =
            (0..width).map(|at| scale(&|row| row.features[at])).collect();
        if arms.is_none() {
            scales.push(scale(&|row| row.action.change));
            scales.push(scale(&|row| row.action.change.powi(2)));
        }
        let mut model = Self { scales, coefficients: Vec::new(), continuous: arms.is_none() };
        let mean_reward = mean_of(&|row| row.reward);
        for arm in 0..arms.unwrap_or(1) {
            let taken = |row: &&Decided| {
                arms.is_none() || row.action.arm.is_some_and(|Arm { arm: taken, .. }| taken == arm)
            };
            let size = model.scales.len() + 1;
            let mut normal = Normal::new(size);
            let mut inputs = vec![0.0; size];
            for row in rows.clone().filter(taken) {
                model.inputs(
                    &row.features,
                    row.action.change,
                    row.action.change.powi(2),
                    &mut inputs,
                );
                normal.add(&inputs, row.reward - mean_reward);
            }
            let mut coefficients = normal.solve();
            coefficients[0] += mean_reward;
            model.coefficients.push(coefficients);
        }
        model
    }

    fn inputs(&self, features: &[f64], change: f64, square: f64, into: &mut [f64]) {
        into[0] = 1.0;
        let actions = if self.continuous { &[change, square][..] } else { &[] };
        let values = features.iter().chain(actions);
        for ((input, value), (mean, scale)) in into[1..].iter_mut().zip(values).zip(&self.scales) {
            *input = (value - mean) * scale;
        }
    }

    fn predict(&self, row: usize, inputs: &[f64]) -> f64 {
        self.coefficients[row].iter().zip(inputs).map(|(weight, input)| weight * input).sum()
    }

    /// Returns the reward that the model expects of the action that `row` tells.
    pub(super) fn of_action(&self, row: &Decided) -> f64 {
        let mut inputs = vec![0.0; self.scales.len() + 1];
        self.inputs(&row.features, row.action.change, row.action.change.powi(2), &mut inputs);
        self.predict(row.action.arm.map_or(0, |arm| usize::from(arm.arm)), &inputs)
    }

    /// Returns the reward that the model expects where `row` was, of actions distributed so.
    pub(super) fn of_policy(&self, row: &Decided, moments: &Moments<'_>) -> f64 {
        let mut inputs = vec![0.0; self.scales.len() + 1];
        match *moments {
            Moments::Arms(probabilities) => {
                self.inputs(&row.features, 0.0, 0.0, &mut inputs);
                let arms = probabilities.iter().enumerate();
                arms.map(|(arm, share)| share * self.predict(arm, &inputs)).sum()
            }
            Moments::Change(mean, square) => {
                self.inputs(&row.features, mean, square, &mut inputs);
                self.predict(0, &inputs)
            }
        }
    }
}

/// The normal equations of a ridge regression: (XᵀX + λI)·β = Xᵀy (Hoerl & Kennard, 1970, eq. 2.1).
struct Normal {
    size: usize,
    /// XᵀX, row by row; only the lower half is kept.
    moments: Vec<f64>,
    /// Xᵀy.
    target: Vec<f64>,
}

impl Normal {
    fn new(size: usize) -> Self {
        Self { size, moments: vec![0.0; size * size], target: vec![0.0; size] }
    }

    fn add(&mut self, inputs: &[f64], target: f64) {
        for (row, left) in inputs.iter().enumerate() {
            let moments = &mut self.moments[row * self.size..][..=row];
            for (moment, right) in moments.iter_mut().zip(inputs) {
                *moment += left * right;
            }
            self.target[row] += left * target;
        }
    }

    /// Returns β by Cholesky's decomposition; the penalty makes the matrix positive definite. The
    /// intercept is penalised by a millionth, so that an arm without rows has a solution: zero.
    fn solve(self) -> Vec<f64> {
        let Self { size, moments: mut lower, target: mut solution } = self;
        for at in 0..size {
            lower[at * size + at] += if at == 0 { RIDGE * 1e-6 } else { RIDGE };
        }
        for row in 0..size {
            for column in 0..=row {
                let done: f64 =
                    (0..column).map(|k| lower[row * size + k] * lower[column * size + k]).sum();
                let rest = lower[row * size + column] - done;
                lower[row * size + column] = if row == column {
                    rest.max(f64::MIN_POSITIVE).sqrt()
                } else {
                    rest / lower[column * size + column]
                };
            }
        }
        for row in 0..size {
            let done: f64 = (0..row).map(|k| lower[row * size + k] * solution[k]).sum();
            solution[row] = (solution[row] - done) / lower[row * size + row];
        }
        for row in (0..size).rev() {
            let done: f64 = (row + 1..size).map(|k| lower[k * size + row] * solution[k]).sum();
            solution[row] = (solution[row] - done) / lower[row * size + row];
        }
        solution
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;
    use crate::decisions::{Action, tests::row};

    #[test]
    fn the_normal_equations_are_solved() {
        // Computed by hand: XᵀX + λI = [[2 + 1e-6, 1], [1, 1 + 1]], Xᵀy = [3, 2].
        let mut normal = Normal::new(2);
        normal.add(&[1.0, 0.0], 1.0);
        normal.add(&[1.0, 1.0], 2.0);
        let solution = normal.solve();
        assert!((solution[0] - 4.0 / 3.0).abs() < 1e-5, "{solution:?}");
        assert!((solution[1] - 1.0 / 3.0).abs() < 1e-5, "{solution:?}");
    }

    fn rows(arms: bool, reward: impl Fn(&[f64], f64) -> f64) -> Vec<Decided> {
        let mut rng = StdRng::seed_from_u64(7);
        let draw = |_| {
            let features: Vec<f64> = (0..3).map(|_| rng.random_range(-1.0..1.0)).collect();
            let arm: u16 = rng.random_range(0..3);
            let change = if arms { f64::from(arm) * 0.1 } else { rng.random_range(-0.25..0.25) };
            let arm = arms.then_some(Arm { arm, arms: 3 });
            let reward = reward(&features, change);
            Decided { features, action: Action { change, arm }, reward, ..row() }
        };
        (0..20_000).map(draw).collect()
    }

    #[test]
    fn a_linear_reward_is_learned_for_each_arm_and_averaged_by_its_probability() {
        let truth = |x: &[f64], change: f64| 1.0 + change * 10.0 * x[0] - 2.0 * x[1];
        let rows = rows(true, truth);
        let model = Model::fit(rows.iter(), 3, Some(3));
        for row in rows.iter().take(50) {
            let wanted = truth(&row.features, row.action.change);
            assert!((model.of_action(row) - wanted).abs() < 1e-2);
            let mixed = model.of_policy(row, &Moments::Arms(&[0.5, 0.0, 0.5]));
            let wanted = (truth(&row.features, 0.0) + truth(&row.features, 0.2)) / 2.0;
            assert!((mixed - wanted).abs() < 1e-2, "{mixed} {wanted}");
        }
    }

    #[test]
    fn a_reward_quadratic_in_the_change_is_averaged_by_two_moments() {
        let truth = |x: &[f64], change: f64| 0.5 + x[2] + 2.0 * change - 8.0 * change * change;
        let rows = rows(false, truth);
        let model = Model::fit(rows.iter(), 3, None);
        for row in rows.iter().take(50) {
            assert!((model.of_action(row) - truth(&row.features, row.action.change)).abs() < 1e-2);
            // Mean 0.1, variance 0.01: the mean of the square is 0.02.
            let mixed = model.of_policy(row, &Moments::Change(0.1, 0.02));
            let wanted = 0.5 + row.features[2] + 0.2 - 0.16;
            assert!((mixed - wanted).abs() < 1e-2, "{mixed} {wanted}");
        }
    }

    #[test]
    fn an_arm_that_nobody_took_and_a_constant_feature_are_no_trouble() {
        let mut rows = rows(true, |_, _| 2.0);
        rows.retain(|row| row.action.arm.unwrap().arm != 1);
        rows.iter_mut().for_each(|row| row.features[0] = 1.0);
        let model = Model::fit(rows.iter(), 3, Some(3));
        for probabilities in [[0.0, 1.0, 0.0], [0.3, 0.3, 0.4]] {
            let expected = model.of_policy(&rows[0], &Moments::Arms(&probabilities));
            assert!((expected - 2.0).abs() < 1e-3, "{expected}");
        }
    }
}
