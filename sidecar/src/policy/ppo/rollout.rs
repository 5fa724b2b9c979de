//! What happened, kept until it is learned from: a trajectory per place, a batch of them all.

use super::{
    Drawn, End, Real,
    gae::{Horizon, advantages},
    loss::Samples,
};

/// What one place (one agent, one cart) saw, did and got, in order.
#[derive(Clone, Debug, PartialEq)]
pub struct Trajectory<A, R = f32> {
    width: usize,
    observations: Vec<R>,
    drawn: Vec<Drawn<A, R>>,
    values: Vec<R>,
    rewards: Vec<R>,
    ends: Vec<End<R>>,
}

impl<A: Copy, R: Real> Trajectory<A, R> {
    /// Returns a trajectory without steps, of observations of `width` numbers.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self {
            width,
            observations: Vec::new(),
            drawn: Vec::new(),
            values: Vec::new(),
            rewards: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// Returns how many steps it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.drawn.len()
    }

    /// Returns true before the first step.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.drawn.is_empty()
    }

    /// Appends a step: at `observation`, worth `value` to the critic, `drawn` was done, which gave
    /// `reward` and led to `end`.
    ///
    /// # Panics
    ///
    /// When `observation` is not as wide as the trajectory.
    pub fn push(
        &mut self,
        observation: &[R],
        value: R,
        drawn: Drawn<A, R>,
        reward: R,
        end: End<R>,
    ) {
        assert_eq!(observation.len(), self.width, "numbers of one observation");
        self.observations.extend_from_slice(observation);
        self.drawn.push(drawn);
        self.values.push(value);
        self.rewards.push(reward);
        self.ends.push(end);
    }

    /// Moves all steps into `batch`, with their advantages and returns. `after` is the critic's value
    /// of what the last step led to, used when that step [continues](End::Continues).
    ///
    /// # Panics
    ///
    /// When `batch` is of another width.
    pub fn finish(&mut self, after: R, horizon: Horizon, batch: &mut Batch<A, R>) {
        assert_eq!(self.width, batch.width, "numbers of one observation");
        let advantages = advantages(&self.rewards, &self.values, &self.ends, after, horizon);
        batch.observations.append(&mut self.observations);
        batch.actions.extend(self.drawn.iter().map(|drawn| drawn.action));
        batch.log_densities.extend(self.drawn.iter().map(|drawn| drawn.log_density));
        batch.returns.extend(advantages.iter().zip(&self.values).map(|(&a, &v)| a + v));
        batch.advantages.extend(advantages);
        batch.values.append(&mut self.values);
        self.drawn.clear();
        self.rewards.clear();
        self.ends.clear();
    }
}

/// Samples of any number of trajectories, ready to learn from.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch<A, R = f32> {
    pub(super) width: usize,
    pub(super) observations: Vec<R>,
    pub(super) actions: Vec<A>,
    pub(super) log_densities: Vec<R>,
    pub(super) values: Vec<R>,
    pub(super) advantages: Vec<R>,
    pub(super) returns: Vec<R>,
}

impl<A: Copy, R: Real> Batch<A, R> {
    /// Returns a batch without samples, of observations of `width` numbers.
    #[must_use]
    pub fn new(width: usize) -> Self {
        Self {
            width,
            observations: Vec::new(),
            actions: Vec::new(),
            log_densities: Vec::new(),
            values: Vec::new(),
            advantages: Vec::new(),
            returns: Vec::new(),
        }
    }

    /// Returns how many samples it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.actions.len()
    }

    /// Returns true when it has no sample.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.actions.is_empty()
    }

    /// Forgets all samples and keeps their room.
    pub fn clear(&mut self) {
        self.observations.clear();
        self.actions.clear();
        for column in
            [&mut self.log_densities, &mut self.values, &mut self.advantages, &mut self.returns]
        {
            column.clear();
        }
    }

    /// Returns what the loss is computed from.
    #[must_use]
    pub fn samples(&self) -> Samples<'_, A, R> {
        Samples {
            observations: &self.observations,
            actions: &self.actions,
            log_densities: &self.log_densities,
            values: &self.values,
            advantages: &self.advantages,
            returns: &self.returns,
        }
    }

    /// Replaces the samples by those of `other` at `places`.
    pub(super) fn gather(&mut self, other: &Self, places: &[usize]) {
        self.clear();
        for &n in places {
            let row = n * self.width..(n + 1) * self.width;
            self.observations.extend_from_slice(&other.observations[row]);
            self.actions.push(other.actions[n]);
            self.log_densities.push(other.log_densities[n]);
            self.values.push(other.values[n]);
            self.advantages.push(other.advantages[n]);
            self.returns.push(other.returns[n]);
        }
    }

    /// Returns what of the samples is not a finite number, if anything is.
    pub(super) fn not_finite(&self) -> Option<&'static str> {
        let columns = [
            ("an observation", &self.observations),
            ("a log-probability", &self.log_densities),
            ("a value", &self.values),
            ("an advantage", &self.advantages),
            ("a return", &self.returns),
        ];
        let wrong = |column: &&(_, &Vec<R>)| column.1.iter().any(|number| !number.is_finite());
        columns.iter().find(wrong).map(|(name, _)| *name)
    }

    /// Returns how much of the returns' variance the critic foresaw: 1 is all, 0 no more than their mean
    /// says; 0 when all returns are equal.
    pub(super) fn explained_variance(&self) -> f64 {
        let variance = |numbers: &mut dyn Iterator<Item = f64>| {
            let (mut count, mut mean, mut squares) = (0.0, 0.0, 0.0);
            for number in numbers {
                count += 1.0;
                let distance = number - mean;
                mean += distance / count;
                squares += distance * (number - mean);
            }
            squares / count
        };
        let all = variance(&mut self.returns.iter().map(|r| r.wide()));
        let pairs = self.returns.iter().zip(&self.values);
        let missed = variance(&mut pairs.map(|(r, v)| r.wide() - v.wide()));
        if all > 0.0 { 1.0 - missed / all } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HORIZON: Horizon = Horizon { discount: 0.5, lambda: 1.0 };

    fn drawn(action: usize) -> Drawn<usize, f64> {
        Drawn { action, log_density: -(action as f64) }
    }

    #[test]
    fn trajectories_of_many_places_become_one_batch_and_start_anew() {
        let (mut batch, mut trajectory) = (Batch::new(2), Trajectory::new(2));
        trajectory.push(&[1.0, 2.0], 0.5, drawn(1), 1.0, End::Continues);
        trajectory.push(&[3.0, 4.0], 0.25, drawn(2), 2.0, End::Truncated(4.0));
        trajectory.finish(f64::NAN, HORIZON, &mut batch);
        assert!(trajectory.is_empty());
        trajectory.push(&[5.0, 6.0], 1.0, drawn(3), 1.0, End::Continues);
        trajectory.finish(2.0, HORIZON, &mut batch);
        assert_eq!(batch.len(), 3);
        assert_eq!(batch.returns, [1.0 + 0.5 * (2.0 + 0.5 * 4.0), 2.0 + 0.5 * 4.0, 2.0]);
        assert_eq!(batch.advantages, [2.5, 3.75, 1.0]);
        assert_eq!(batch.log_densities, [-1.0, -2.0, -3.0]);
        let mut picked = Batch::new(2);
        picked.gather(&batch, &[2, 0]);
        assert_eq!(picked.observations, [5.0, 6.0, 1.0, 2.0]);
        assert_eq!(picked.actions, [3, 1]);
        assert_eq!(picked.returns, [2.0, 3.0]);
    }

    #[test]
    fn a_critic_that_foresaw_all_explains_all_and_a_constant_one_nothing() {
        let mut batch = Batch::<usize, f64>::new(1);
        batch.returns = vec![1.0, 2.0, 4.0];
        batch.values = vec![1.0, 2.0, 4.0];
        assert_eq!(batch.explained_variance(), 1.0);
        batch.values = vec![7.0; 3];
        assert!(batch.explained_variance().abs() < 1e-12);
        batch.returns = vec![3.0; 3];
        assert_eq!(batch.explained_variance(), 0.0);
    }

    #[test]
    fn what_is_not_finite_is_named() {
        let mut batch = Batch::<usize, f64>::new(1);
        batch.returns = vec![1.0, f64::NAN];
        assert_eq!(batch.not_finite(), Some("a return"));
        batch.observations = vec![f64::INFINITY];
        assert_eq!(batch.not_finite(), Some("an observation"));
    }
}
