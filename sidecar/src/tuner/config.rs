//! `[tuner]`: how ratings are batched and how much is given again after a failover.

use serde::{Deserialize, Serialize};

/// `[tuner]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seconds of ratings that are given to the store again after it failed over; default 60.
    /// Longer than the store's replication lag and snapshot interval, shorter than what replaying
    /// may cost at a restart.
    pub replay_window_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { replay_window_s: 60 }
    }
}

impl Config {
    /// Appends every fault, each with its full path.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let seconds = self.replay_window_s;
        if !(1..=86_400).contains(&seconds) {
            faults.push(format!("{path}.replay_window_s: must be 1 to 86400, is {seconds}"));
        }
    }
}
