//! What many agents went through, kept until there is enough to learn from.
//!
//! 1. Memory is bounded: at most [`AGENTS_MAX`] agents are followed at a time and at most [`STEPS_MAX`]
//!    steps wait to be learned from. Who finds no room is left out, and may be followed later.
//! 2. A trajectory has [`TICKS_MIN`] to [`TICKS_MAX`] steps, each beginning where the one before ended.
//!    It is never the end of an agent, so it is worth what the critic says of what comes next.
//! 3. Steps are learned from in an order that depends on keys and on what was noted, not on memory.

use std::collections::BTreeMap;

use super::{ActorCritic, Batch, Drawn, End, Head, Horizon, Passes, Trajectory};

/// Steps of a trajectory at least: shorter ones would be mostly the critic's word.
pub const TICKS_MIN: usize = 16;

/// Steps of a trajectory at most: then it is complete, and its agent makes room for others.
pub const TICKS_MAX: usize = 32;

/// Agents that are followed at a time; each takes about 3 kB.
pub const AGENTS_MAX: usize = 2_048;

/// Steps that wait to be learned from at most.
pub const STEPS_MAX: usize = 1 << 16;

/// By how many versions the networks may be newer than those that acted: the ratio of probabilities that
/// PPO clips is one between neighbours.
pub const VERSIONS_MAX: u64 = 2;

/// What was seen and done at a tick, `W` numbers wide.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step<const W: usize> {
    /// What was seen.
    pub observation: [f32; W],
    /// What was done, and how likely that was.
    pub drawn: Drawn<f32>,
    /// Which networks did it.
    pub version: u64,
}

/// A step with what it led to.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Lived<const W: usize> {
    step: Step<W>,
    reward: f32,
}

/// Consecutive steps of one agent.
#[derive(Clone, Debug, PartialEq)]
struct Path<const W: usize> {
    lived: Vec<Lived<W>>,
    /// What was seen after the last one.
    after: [f32; W],
    /// Whether it grew since experience was last taken.
    grew: bool,
}

/// Steps of agents named by `K`, until [`take`](Self::take) makes a batch of them.
#[derive(Clone, Debug)]
pub struct Experience<K, const W: usize> {
    enough: usize,
    open: BTreeMap<K, Path<W>>,
    complete: Vec<Path<W>>,
    steps: usize,
}

impl<K: Ord, const W: usize> Experience<K, W> {
    /// Returns an empty one that is [`ready`](Self::ready) from `enough` steps on (at most
    /// [`STEPS_MAX`]).
    #[must_use]
    pub fn new(enough: usize) -> Self {
        let enough = enough.clamp(TICKS_MIN, STEPS_MAX);
        Self { enough, open: BTreeMap::new(), complete: Vec::new(), steps: 0 }
    }

    /// Notes that the agent `key` did `step`, got `reward` for it, and then saw `after`. Returns false
    /// when there is no room for it.
    pub fn note(&mut self, key: K, step: &Step<W>, reward: f32, after: [f32; W]) -> bool {
        if self.steps >= STEPS_MAX {
            return false;
        }
        let begun = |step: &Step<W>| {
            let lived = Vec::with_capacity(TICKS_MAX);
            Path { lived, after: step.observation, grew: true }
        };
        let mut path = match self.open.remove(&key) {
            Some(path) if path.after == step.observation => path,
            Some(broken) => {
                self.end(broken);
                begun(step)
            }
            None if self.open.len() >= AGENTS_MAX => return false,
            None => begun(step),
        };
        path.lived.push(Lived { step: *step, reward });
        (path.after, path.grew) = (after, true);
        if path.lived.len() < TICKS_MAX {
            self.open.insert(key, path);
        } else {
            self.end(path);
        }
        true
    }

    /// Follows no longer whoever was not seen since the last time: others get the room.
    pub fn sweep(&mut self) {
        let idle = self.open.extract_if(.., |_, path| !std::mem::take(&mut path.grew));
        for path in idle.map(|(_, path)| path).collect::<Vec<_>>() {
            self.end(path);
        }
    }

    fn end(&mut self, path: Path<W>) {
        if path.lived.len() >= TICKS_MIN {
            self.steps += path.lived.len();
            self.complete.push(path);
        }
    }

    /// Returns how many steps wait to be learned from.
    #[must_use]
    pub fn len(&self) -> usize {
        self.steps
    }

    /// Returns true when none waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps == 0
    }

    /// Returns how many agents are followed at the moment.
    #[must_use]
    pub fn agents(&self) -> usize {
        self.open.len()
    }

    /// Returns true when there are enough steps for an update.
    #[must_use]
    pub fn ready(&self) -> bool {
        self.steps >= self.enough
    }

    /// Makes a batch of what waits, valued by `network`, which is of `version`, and forgets it. Agents
    /// that were not seen since the last time are followed no longer. What networks older than
    /// [`VERSIONS_MAX`] did is dropped, and so is what networks did that came after these.
    ///
    /// # Panics
    ///
    /// When `network` takes observations of another width.
    pub fn take<H: Head<Action = f32>>(
        &mut self,
        network: &ActorCritic<H>,
        version: u64,
        horizon: Horizon,
    ) -> Batch<f32> {
        assert_eq!(network.critic().inputs, W, "numbers of one observation");
        self.sweep();
        self.steps = 0;
        let mut batch = Batch::new(W);
        let mut trajectory = Trajectory::new(W);
        let (mut passes, mut seen, mut values) = (Passes::default(), Vec::new(), Vec::new());
        for path in self.complete.drain(..) {
            let made = path.lived[0].step.version;
            if made > version || made + VERSIONS_MAX < version {
                continue;
            }
            seen.clear();
            seen.extend(path.lived.iter().flat_map(|lived| lived.step.observation));
            seen.extend(path.after);
            values.clear();
            network.values(&seen, &mut passes, &mut values);
            for (lived, &value) in path.lived.iter().zip(&values) {
                let Step { observation, drawn, .. } = &lived.step;
                trajectory.push(observation, value, *drawn, lived.reward, End::Continues);
            }
            trajectory.finish(values[path.lived.len()], horizon, &mut batch);
        }
        batch
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Gaussian, advantages};
    use super::*;

    const HORIZON: Horizon = Horizon { discount: 0.9, lambda: 0.8 };

    fn network() -> ActorCritic<Gaussian> {
        ActorCritic::new(Gaussian::default(), 2, 8, 1)
    }

    fn seen(n: usize) -> [f32; 2] {
        [f32::from(u16::try_from(n).unwrap()) / 100.0, 0.5]
    }

    fn step(n: usize, version: u64) -> Step<2> {
        let drawn = Drawn { action: 0.25, log_density: -1.0 };
        Step { observation: seen(n), drawn, version }
    }

    /// Notes steps `from..to` of the agent `key`, each worth its number.
    fn live(experience: &mut Experience<u32, 2>, key: u32, from: usize, to: usize) -> usize {
        let reward = |n: usize| f32::from(u16::try_from(n).unwrap());
        (from..to).filter(|&n| experience.note(key, &step(n, 1), reward(n), seen(n + 1))).count()
    }

    #[test]
    fn a_trajectory_is_worth_what_the_critic_says_of_what_came_after_it() {
        let (mut experience, network) = (Experience::new(TICKS_MAX), network());
        live(&mut experience, 7, 0, TICKS_MAX);
        assert!(experience.ready() && experience.agents() == 0);
        let batch = experience.take(&network, 1, HORIZON);
        let mut values = Vec::new();
        let rows: Vec<f32> = (0..=TICKS_MAX).flat_map(seen).collect();
        network.values(&rows, &mut Passes::default(), &mut values);
        let rewards: Vec<f32> = (0..32_u8).map(f32::from).collect();
        let ends = [End::Continues; TICKS_MAX];
        let (values, after) = values.split_at(TICKS_MAX);
        let expected = advantages(&rewards, values, &ends, after[0], HORIZON);
        assert_eq!(batch.samples().advantages, expected);
        assert_eq!(batch.samples().values, values);
        assert!(experience.is_empty() && !experience.ready());
    }

    #[test]
    fn a_step_that_does_not_begin_where_the_last_one_ended_begins_a_new_trajectory() {
        let mut experience = Experience::new(TICKS_MIN);
        live(&mut experience, 7, 0, 20);
        live(&mut experience, 7, 40, 50);
        // The first 20 are complete; 10 are too few yet.
        assert_eq!((experience.len(), experience.agents()), (20, 1));
        live(&mut experience, 7, 60, 61);
        assert_eq!(experience.len(), 20, "10 are too short a trajectory");
    }

    #[test]
    fn memory_is_bounded_and_whoever_found_no_room_is_followed_later() {
        let mut experience = Experience::new(STEPS_MAX);
        let most = u32::try_from(AGENTS_MAX).unwrap();
        for key in 0..most + 5 {
            assert_eq!(live(&mut experience, key, 0, 1), usize::from(key < most));
        }
        assert_eq!(live(&mut experience, most, 0, 1), 0);
        live(&mut experience, 0, 1, TICKS_MAX);
        assert_eq!(live(&mut experience, most, 0, 1), 1, "agent 0 made room");

        let mut experience = Experience::new(STEPS_MAX);
        for key in 0..3_000 {
            live(&mut experience, key, 0, TICKS_MAX);
        }
        assert!(experience.ready());
        assert!((STEPS_MAX..STEPS_MAX + TICKS_MAX).contains(&experience.len()));
    }

    #[test]
    fn an_agent_that_is_seen_no_more_makes_room_and_what_it_did_is_not_lost() {
        let (mut experience, network) = (Experience::new(TICKS_MIN), network());
        live(&mut experience, 1, 0, 20);
        live(&mut experience, 2, 0, 5);
        assert_eq!(experience.take(&network, 1, HORIZON).len(), 0);
        assert_eq!(experience.agents(), 2);
        live(&mut experience, 3, 0, 1);
        assert_eq!(experience.take(&network, 1, HORIZON).len(), 20);
        assert_eq!(experience.agents(), 1);
    }

    #[test]
    fn what_networks_of_long_ago_did_is_dropped() {
        let (mut experience, network) = (Experience::new(TICKS_MIN), network());
        live(&mut experience, 7, 0, TICKS_MAX);
        assert_eq!(experience.clone().take(&network, 1 + VERSIONS_MAX, HORIZON).len(), TICKS_MAX);
        assert_eq!(experience.take(&network, 2 + VERSIONS_MAX, HORIZON).len(), 0);
    }

    #[test]
    fn the_order_in_which_agents_came_between_does_not_matter_for_the_bytes() {
        let network = network();
        let batch = |keys: [u32; 3]| {
            let mut experience = Experience::new(TICKS_MIN);
            for key in keys {
                live(&mut experience, key, key as usize, key as usize + 20);
            }
            experience.take(&network, 1, HORIZON);
            experience.take(&network, 1, HORIZON)
        };
        assert_eq!(batch([1, 2, 3]), batch([3, 1, 2]));
    }
}
