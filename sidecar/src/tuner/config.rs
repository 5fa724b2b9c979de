//! `[tuner]`: how ratings are batched and how much is given again after a failover.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::bus::duration;

/// Bounds of `agents_max`: the least is the largest batch there is, so that a batch never pushes its own
/// agents out.
const AGENTS_LEAST: usize = 10_000;
const AGENTS_MOST: usize = 100_000_000;

/// `[tuner]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How much of the ratings is given to the store again after it failed over; default 60s.
    /// Longer than the store's replication lag and snapshot interval, shorter than what replaying
    /// may cost at a restart.
    #[serde(with = "duration")]
    pub replay_window: Duration,
    /// How many agents are looked at in a tick although nobody rates them: what they ask for, and what
    /// the price makes of it. Default 2000, at most 100000.
    pub looks: u32,
    /// How many agents are kept in memory; beyond it the one rated least recently is forgotten, and read
    /// again when it is rated. Default 200000, 10000 to 100000000. One takes some 930 bytes
    /// (docs/benchmarks.md).
    pub agents_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { replay_window: Duration::from_secs(60), looks: 2_000, agents_max: 200_000 }
    }
}

impl Config {
    /// Appends every fault, each with its full path.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(24 * 3600));
        if !(least..=most).contains(&self.replay_window) {
            let found = duration::format(self.replay_window);
            faults.push(format!("{path}.replay_window: must be 1s to 1d, is {found}"));
        }
        if self.looks > 100_000 {
            faults.push(format!("{path}.looks: must be at most 100000, is {}", self.looks));
        }
        if !(AGENTS_LEAST..=AGENTS_MOST).contains(&self.agents_max) {
            faults.push(format!(
                "{path}.agents_max: must be {AGENTS_LEAST} to {AGENTS_MOST}, is {}",
                self.agents_max
            ));
        }
    }
}
