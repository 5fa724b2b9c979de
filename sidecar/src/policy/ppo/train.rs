//! The loop: act, remember, learn; and the run that only measures.

use super::{
    Drawn, End, Head, LearnError, Learner, Passes, Report,
    environment::{Ending, Environment, Outcome, Seen},
    random::{Purpose, stream},
    rollout::{Batch, Trajectory},
};

/// An episode that ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Episode {
    /// The sum of its rewards, undiscounted.
    pub reward: f64,
    /// Its steps.
    pub steps: u64,
    /// How it ended.
    pub ending: Ending,
}

/// What one round of the loop did.
#[derive(Clone, Debug, PartialEq)]
pub struct Round {
    /// The update.
    pub report: Report,
    /// The episodes that ended in it, in order.
    pub episodes: Vec<Episode>,
}

/// Sums over the episode that a place is in.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
struct Running {
    reward: f64,
    steps: u64,
}

impl Running {
    /// Counts a step; returns the episode when it ended with it.
    fn count(&mut self, outcome: &Outcome) -> Option<Episode> {
        self.reward += f64::from(outcome.reward);
        self.steps += 1;
        if outcome.ending == Ending::Continues {
            return None;
        }
        let Self { reward, steps } = std::mem::take(self);
        Some(Episode { reward, steps, ending: outcome.ending })
    }
}

/// Where an environment is between two rounds, to be kept beside a checkpoint: then training that is
/// interrupted goes on bit for bit as if it had not been.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Scene<E> {
    environment: E,
    observations: Vec<f32>,
    running: Vec<Running>,
}

/// A learner in an environment.
///
/// A round's randomness is a function of the learner's seed and of how many updates it has made.
#[derive(Clone, Debug)]
pub struct Trainer<H: Head, E> {
    learner: Learner<H>,
    environment: E,
    horizon: usize,
    seen: Seen,
    running: Vec<Running>,
    trajectories: Vec<Trajectory<H::Action>>,
    batch: Batch<H::Action>,
}

impl<H: Head, E: Environment<Action = H::Action>> Trainer<H, E> {
    /// Returns a trainer that resets `environment` and learns after every `horizon` steps at each place.
    ///
    /// # Panics
    ///
    /// When the environment has no place, or observations of another width than the networks take.
    #[must_use]
    pub fn new(learner: Learner<H>, mut environment: E, horizon: usize) -> Self {
        let mut observations = vec![0.0; environment.places() * environment.width()];
        let mut random = stream(learner.seed(), Purpose::Environment, u64::MAX);
        environment.reset(&mut random, &mut observations);
        let running = vec![Running::default(); environment.places()];
        Self::resume(learner, Scene { environment, observations, running }, horizon)
    }

    /// Returns a trainer that goes on where [`scene`](Self::scene) was taken.
    ///
    /// # Panics
    ///
    /// As [`new`](Self::new) does, or when the scene's parts do not fit each other.
    #[must_use]
    pub fn resume(learner: Learner<H>, scene: Scene<E>, horizon: usize) -> Self {
        let Scene { environment, observations, running } = scene;
        let (places, width) = (environment.places(), environment.width());
        assert!(places > 0 && horizon > 0, "something to learn from");
        assert_eq!(width, learner.network().actor().inputs, "numbers of one observation");
        assert!(observations.len() == places * width && running.len() == places, "a whole scene");
        let finals = vec![0.0; observations.len()];
        Self {
            learner,
            environment,
            horizon,
            seen: Seen { observations, finals },
            running,
            trajectories: vec![Trajectory::new(width); places],
            batch: Batch::new(width),
        }
    }

    /// Returns the learner.
    #[must_use]
    pub fn learner(&self) -> &Learner<H> {
        &self.learner
    }

    /// Returns where the environment is.
    #[must_use]
    pub fn scene(&self) -> Scene<E>
    where
        E: Clone,
    {
        Scene {
            environment: self.environment.clone(),
            observations: self.seen.observations.clone(),
            running: self.running.clone(),
        }
    }

    /// Plays `horizon` steps at every place and learns from them.
    ///
    /// # Errors
    ///
    /// [`LearnError`] when the update was undone; the steps were played.
    pub fn round(&mut self) -> Result<Round, LearnError> {
        let episodes = self.play();
        let report = self.learner.update(&self.batch)?;
        Ok(Round { report, episodes })
    }

    fn play(&mut self) -> Vec<Episode> {
        let (seed, updates) = (self.learner.seed(), self.learner.updates());
        let mut acting = stream(seed, Purpose::Actions, updates);
        let mut moving = stream(seed, Purpose::Environment, updates);
        let (places, width) = (self.environment.places(), self.environment.width());
        let network = self.learner.network();
        let mut passes = Passes::default();
        let mut outcomes = vec![Outcome::default(); places];
        let (mut drawn, mut actions) = (Vec::new(), Vec::new());
        let (mut values, mut beyond) = (Vec::new(), Vec::new());
        let mut before = Vec::new();
        let mut episodes = Vec::new();
        for _ in 0..self.horizon {
            before.clone_from(&self.seen.observations);
            drawn.clear();
            values.clear();
            network.draws(&before, &mut passes, &mut acting, &mut drawn);
            network.values(&before, &mut passes, &mut values);
            actions.clear();
            actions.extend(drawn.iter().map(|drawn: &Drawn<_, _>| drawn.action));
            self.environment.step(&actions, &mut moving, &mut self.seen, &mut outcomes);
            beyond.clear();
            if outcomes.iter().any(|outcome| outcome.ending == Ending::Truncated) {
                network.values(&self.seen.finals, &mut passes, &mut beyond);
            }
            for (place, outcome) in outcomes.iter().enumerate() {
                let end = match outcome.ending {
                    Ending::Continues => End::Continues,
                    Ending::Terminated => End::Terminated,
                    Ending::Truncated => End::Truncated(beyond[place]),
                };
                self.trajectories[place].push(
                    &before[place * width..(place + 1) * width],
                    values[place],
                    drawn[place],
                    outcome.reward,
                    end,
                );
                episodes.extend(self.running[place].count(outcome));
            }
        }
        values.clear();
        network.values(&self.seen.observations, &mut passes, &mut values);
        self.batch.clear();
        let horizon = self.learner.config().horizon();
        for (trajectory, &after) in self.trajectories.iter_mut().zip(&values) {
            trajectory.finish(after, horizon, &mut self.batch);
        }
        episodes
    }
}

/// How actions are chosen in a run that measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// The likeliest.
    Best,
    /// As in training.
    Drawn,
}

/// Plays `episodes` episodes at every place of a fresh `environment`, and returns them all.
///
/// Every place contributes the same number, so that short episodes do not count more often for being
/// over sooner. The run ends after `steps_max` steps at each place even if episodes are missing.
pub fn evaluate<H: Head, E: Environment<Action = H::Action>>(
    learner: &Learner<H>,
    mut environment: E,
    choice: Choice,
    episodes: usize,
    steps_max: u64,
    seed: u64,
) -> Vec<Episode> {
    let (places, width) = (environment.places(), environment.width());
    let mut random = stream(seed, Purpose::Evaluation, 0);
    let mut acting = stream(seed, Purpose::Evaluation, 1);
    let mut seen =
        Seen { observations: vec![0.0; places * width], finals: vec![0.0; places * width] };
    environment.reset(&mut random, &mut seen.observations);
    let mut outcomes = vec![Outcome::default(); places];
    let mut running = vec![Running::default(); places];
    let mut done = vec![Vec::with_capacity(episodes); places];
    let mut passes = Passes::default();
    let (mut actions, mut drawn) = (Vec::new(), Vec::new());
    for _ in 0..steps_max {
        if done.iter().all(|done| done.len() >= episodes) {
            break;
        }
        actions.clear();
        match choice {
            Choice::Best => learner.network().bests(&seen.observations, &mut passes, &mut actions),
            Choice::Drawn => {
                drawn.clear();
                learner.network().draws(&seen.observations, &mut passes, &mut acting, &mut drawn);
                actions.extend(drawn.iter().map(|drawn| drawn.action));
            }
        }
        environment.step(&actions, &mut random, &mut seen, &mut outcomes);
        for (place, outcome) in outcomes.iter().enumerate() {
            let (ended, done) = (running[place].count(outcome), &mut done[place]);
            if done.len() < episodes {
                done.extend(ended);
            }
        }
    }
    done.concat()
}
