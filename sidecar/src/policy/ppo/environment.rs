//! What PPO learns in: a world of many places that move in step.

use rand::Rng;

use super::random::Random;

/// What a step led to, at one place.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// What it was worth.
    pub reward: f32,
    /// What came after it.
    pub ending: Ending,
}

/// Whether an episode goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// It does.
    #[default]
    Continues,
    /// It is over, and nothing more could be earned in it.
    Terminated,
    /// It was cut off, and would have gone on from its final observation.
    Truncated,
}

/// What all places see after a step, row by row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    /// What each place sees now: the first observation of a new episode where the old one ended.
    pub observations: Vec<f32>,
    /// What an episode that was [truncated](Ending::Truncated) would have gone on from; other rows are
    /// not looked at.
    pub finals: Vec<f32>,
}

/// A world of [`places`](Self::places) places that move in step: independent copies of a small one
/// ([`Copies`]), or agents that share a service's capacity and its price.
///
/// All its randomness comes from the generator it is given; a copy of it goes on as it would have.
pub trait Environment {
    /// What can be done at a place.
    type Action;

    /// Returns how many places there are; it never changes.
    fn places(&self) -> usize;

    /// Returns how many numbers an observation has; it never changes.
    fn width(&self) -> usize;

    /// Begins an episode at every place and writes what each sees into `observations`
    /// (places × width).
    fn reset(&mut self, random: &mut Random, observations: &mut [f32]);

    /// Does `actions`, one at each place, and writes what they led to. Where an episode ended, the next
    /// one begins. Both vectors of `seen` have places × width numbers, `outcomes` one entry per place.
    fn step(
        &mut self,
        actions: &[Self::Action],
        random: &mut Random,
        seen: &mut Seen,
        outcomes: &mut [Outcome],
    );
}

/// A world of one place.
pub trait Single {
    /// What can be done.
    type Action;

    /// Numbers per observation.
    const WIDTH: usize;

    /// Begins an episode and writes what is seen first.
    fn reset(&mut self, random: &mut impl Rng, observation: &mut [f32]);

    /// Does `action` and writes what is seen after it. Is not called again after an end without
    /// [`reset`](Self::reset).
    fn step(
        &mut self,
        action: &Self::Action,
        random: &mut impl Rng,
        observation: &mut [f32],
    ) -> Outcome;
}

/// Independent copies of a small world.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Copies<E>(pub Vec<E>);

impl<E: Single> Environment for Copies<E> {
    type Action = E::Action;

    fn places(&self) -> usize {
        self.0.len()
    }

    fn width(&self) -> usize {
        E::WIDTH
    }

    fn reset(&mut self, random: &mut Random, observations: &mut [f32]) {
        for (copy, row) in self.0.iter_mut().zip(observations.chunks_exact_mut(E::WIDTH)) {
            copy.reset(random, row);
        }
    }

    fn step(
        &mut self,
        actions: &[E::Action],
        random: &mut Random,
        seen: &mut Seen,
        outcomes: &mut [Outcome],
    ) {
        let rows = seen.observations.chunks_exact_mut(E::WIDTH);
        let rows = rows.zip(seen.finals.chunks_exact_mut(E::WIDTH));
        let copies = self.0.iter_mut().zip(actions).zip(outcomes).zip(rows);
        for (((copy, action), outcome), (row, last)) in copies {
            *outcome = copy.step(action, random, row);
            if outcome.ending != Ending::Continues {
                last.copy_from_slice(row);
                copy.reset(random, row);
            }
        }
    }
}
