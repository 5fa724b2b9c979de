//! `merit train`: the residual of `ppo` learns in simulated worlds, and is judged in others.
//!
//! 1. The law that learns is the law that runs (`policy::Residual` behind [`Adapted`]), and what it
//!    learns from comes the same way as in the tuner: lesson, [`Experience`], [`Student`].
//! 2. The simulator knows more than the tuner: in training, a lesson's reward is counted at the agent's
//!    true quality instead of what is believed of it. So the residual learns what to do about a belief
//!    that is wrong in ways that its observation tells of.
//! 3. One thread, and all chance from the seed: the same request gives the same bytes.
//! 4. What is shown of the result comes from worlds that no training ever uses ([`HELD_OUT`]).

mod course;

mod judge;

mod report;

use std::collections::BTreeMap;

use course::SEED_FIRST;
pub use judge::Judged;
pub use report::{TrainError, train};

use super::{actors::residual, run_actor};
use crate::policy::{
    self, Residual, ResidualState,
    ppo::{Checkpoint, Experience, Gaussian, Learner, Refused, Report, Student},
};

/// The seeds of worlds that no training uses: all below 1,000.
pub const HELD_OUT: std::ops::Range<u64> = 0..SEED_FIRST;

/// Steps that one update learns from.
const BATCH_STEPS: usize = 8_192;

/// What is to be trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Course {
    /// What all chance comes from, below 2^31.
    pub seed: u64,
    /// How many updates are made.
    pub updates: u64,
}

/// How the residual learns in training: as configuration's defaults have it, but for larger minibatches, a
/// larger step that shrinks to nothing, and a critic that may go as far as it likes: there is time.
fn config(updates: u64) -> policy::Config {
    let mut config = policy::Config::default();
    config.ppo.minibatch = 512;
    config.ppo.value_clip = 0.0;
    config.ppo.learning_rate = 1e-3;
    config.ppo.anneal_updates = updates;
    config
}

/// Is told of each update, made or refused.
type Progress<'a> = &'a mut dyn FnMut(&Student<Gaussian>, Result<Report, Refused>);

/// Trains a learner and calls `progress` after each update, made or refused.
fn learn(course: Course, progress: Progress<'_>) -> Checkpoint<Gaussian> {
    let Course { seed, updates } = course;
    let config = config(updates);
    let learner = Learner::new(policy::FIRST_HEAD, policy::OBSERVATION, config.ppo.clone(), seed);
    let mut student = Student::new(learner);
    let mut experience = Experience::new(BATCH_STEPS);
    let mut number = 0;
    while student.version() < updates {
        let world = course::world(seed, number);
        number += 1;
        let law = Residual::new(config.price(), number, student.network(), student.version());
        let teach = |tick: usize, law: &mut Residual, states: &mut [ResidualState]| {
            if student.version() >= updates {
                return;
            }
            let quality = world.quality(tick - 1);
            for (agent, state) in states.iter_mut().enumerate() {
                if let Some(lesson) = state.take_lesson() {
                    let reward = lesson.reward(quality[agent]);
                    experience.note(agent, &lesson.step, reward, lesson.after);
                }
            }
            if experience.ready() {
                let horizon = student.learner().config().horizon();
                let batch = experience.take(&student.network(), student.version(), horizon);
                let learned = student.learn(&batch);
                law.set_network(student.network(), student.version());
                progress(&student, learned);
            }
        };
        let actor = residual(&world, law.exploring(true, true)).taught(Box::new(teach));
        let _ = run_actor(Box::new(actor), &world, None);
    }
    let notes = [("course", format!("seed {seed}, {updates} updates, {number} worlds"))];
    let notes: BTreeMap<_, _> = notes.map(|(name, text)| (name.to_owned(), text)).into();
    Checkpoint {
        policy: policy::CHECKPOINT_POLICY.to_owned(),
        learner: student.learner().clone(),
        notes,
    }
}

#[cfg(test)]
mod tests;
