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

#[cfg(test)]
mod tests {
    use rand::{Rng, RngExt};

    use super::super::{Config, Copies, Gaussian, Room, Single};
    use super::*;

    /// Counts its steps; every third one ends the episode, one way or the other.
    #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
    struct Count {
        steps: u8,
        terminates: bool,
        drift: f32,
    }

    impl Single for Count {
        type Action = f32;
        const WIDTH: usize = 2;

        fn reset(&mut self, random: &mut impl Rng, observation: &mut [f32]) {
            (self.steps, self.drift) = (0, random.random());
            observation.copy_from_slice(&[0.0, self.drift]);
        }

        fn step(&mut self, _: &f32, _: &mut impl Rng, observation: &mut [f32]) -> Outcome {
            self.steps += 1;
            observation.copy_from_slice(&[f32::from(self.steps), self.drift]);
            let ending = match (self.steps, self.terminates) {
                (3, true) => Ending::Terminated,
                (3, false) => Ending::Truncated,
                _ => Ending::Continues,
            };
            Outcome { reward: 1.0, ending }
        }
    }

    fn trainer(seed: u64) -> Trainer<Gaussian, Copies<Count>> {
        // With λ = 0 a return is a reward and what the critic says of what comes next.
        let config = Config { hidden: 8, lambda: 0.0, discount: 0.9, ..Config::default() };
        let copies = [false, true].map(|terminates| Count { steps: 0, terminates, drift: 0.0 });
        let learner = Learner::new(Gaussian::default(), 2, config, seed);
        Trainer::new(learner, Copies(copies.into()), 5)
    }

    #[test]
    fn returns_go_on_from_the_final_observation_of_what_was_cut_off_and_from_nothing_after_an_end()
    {
        let mut trainer = trainer(1);
        let first = trainer.scene();
        let episodes = trainer.play();
        let network = trainer.learner.network();
        let worth =
            |steps: u8, drift: f32| network.value(&[f32::from(steps), drift], &mut Room::default());
        for (place, terminates) in [(0, false), (1, true)] {
            let rows = place * 5..place * 5 + 5;
            let seen: Vec<&[f32]> = trainer.batch.observations.chunks(2).collect();
            let seen = &seen[rows.clone()];
            let counts: Vec<f32> = seen.iter().map(|row| row[0]).collect();
            assert_eq!(counts, [0.0, 1.0, 2.0, 0.0, 1.0]);
            let (old, new) = (seen[0][1], seen[3][1]);
            assert_eq!(old, first.observations[place * 2 + 1]);
            assert_ne!(old, new, "another episode");
            let end = if terminates { 0.0 } else { worth(3, old) };
            // The last step goes on: what the place sees now is step 2 of the new episode.
            let next = [worth(1, old), worth(2, old), end, worth(1, new), worth(2, new)];
            for (found, next) in trainer.batch.returns[rows].iter().zip(next) {
                assert!((found - (1.0 + 0.9 * next)).abs() < 1e-6, "{found}");
            }
        }
        let ended = |ending| Episode { reward: 3.0, steps: 3, ending };
        assert_eq!(episodes, [ended(Ending::Truncated), ended(Ending::Terminated)]);
    }

    #[test]
    fn an_episode_goes_on_over_rounds_and_restarts() {
        let mut trainer = trainer(2);
        trainer.round().unwrap();
        let text = serde_json::to_string(&trainer.scene()).unwrap();
        let scene = serde_json::from_str(&text).unwrap();
        let mut resumed = Trainer::resume(trainer.learner().clone(), scene, 5);
        let (one, two) = (trainer.round().unwrap(), resumed.round().unwrap());
        assert_eq!(one, two);
        // Two steps of the first round and one of the second.
        assert!(one.episodes.iter().all(|episode| episode.steps == 3));
        assert_eq!(one.episodes.len(), 4);
        assert_eq!(trainer.scene(), resumed.scene());
    }

    #[test]
    fn every_round_has_random_numbers_of_its_own() {
        let mut trainer = trainer(3);
        let mut drifts = Vec::new();
        for _ in 0..3 {
            trainer.round().unwrap();
            drifts.extend(trainer.batch.observations.chunks(2).map(|row| row[1].to_bits()));
        }
        drifts.sort_unstable();
        drifts.dedup();
        // Two places that begin an episode at steps 0, 3, 6, 9 and 12 of 15.
        assert_eq!(drifts.len(), 10);
    }

    #[test]
    fn an_evaluation_counts_every_place_alike_and_ends_when_episodes_do_not() {
        let trainer = trainer(4);
        let copies = || trainer.scene().environment;
        for choice in [Choice::Best, Choice::Drawn] {
            let found = evaluate(trainer.learner(), copies(), choice, 4, 1_000, 1);
            assert_eq!(found.len(), 8);
            let cut = found.iter().filter(|episode| episode.ending == Ending::Truncated).count();
            assert_eq!(cut, 4);
        }
        assert_eq!(evaluate(trainer.learner(), copies(), Choice::Best, 4, 7, 1).len(), 4);
    }
}
