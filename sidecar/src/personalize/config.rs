//! The `[personalize]` table.

use std::{path::PathBuf, time::Duration};

use super::{events, model};
use crate::bus::duration;

/// The longest name of a node, in characters.
const NODE_MAX: usize = 64;
/// The range of the time between checkpoints.
const EVERY_MIN: Duration = Duration::from_secs(1);
const EVERY_MAX: Duration = Duration::from_secs(24 * 3600);
/// The longest that an answer may be kept.
const AGE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);
/// The most items that one request may ask for.
const BATCH_MAX: usize = 1_000;

/// Whether and how personalised ratings are learned and told.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether this process learns them and answers: on the listener of ingest, on the gateway's; false.
    pub enabled: bool,
    /// A name that no other node has, of letters, digits, `.`, `_` and `-`: over Kafka it names the node's
    /// consumer group. Absent: host name and role, which two of one role on one host would share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The file that holds what was learned, of this node alone. Absent: a restart learns anew from
    /// what the bus still holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub checkpoint: Option<PathBuf>,
    /// How often it is written, 1s..=1d. A restart reads again what came since; over Redis Streams and NATS it must
    /// be shorter than the tuners' replay window, after which ratings are removed.
    #[serde(with = "duration")]
    pub checkpoint_every: Duration,
    /// How long a client may keep a personal score; 5s, so that a page that is looked at again shows what
    /// was rated meanwhile.
    #[serde(with = "duration")]
    pub max_age: Duration,
    /// How long caches may keep an item's popularity; 1h, as it moves little.
    #[serde(with = "duration")]
    pub item_max_age: Duration,
    /// Most items that one request may ask for, 1..=1000; 100 is a page of a shop.
    pub batch_max: usize,
    /// How the model learns, and how much it remembers.
    pub model: model::Config,
    /// How scores are told as they change, on the gateway's listener.
    pub events: events::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            node: None,
            checkpoint: None,
            checkpoint_every: Duration::from_secs(30),
            max_age: Duration::from_secs(5),
            item_max_age: Duration::from_secs(3600),
            batch_max: 100,
            model: model::Config::default(),
            events: events::Config::default(),
        }
    }
}

impl Config {
    /// Adds every fault of the table at `path` (normally `personalize`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(node) = &self.node {
            let named = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if !(1..=NODE_MAX).contains(&node.len()) || !node.chars().all(named) {
                faults.push(format!(
                    "{path}.node: must be 1 to {NODE_MAX} letters, digits and `._-`, is {node:?}"
                ));
            }
        }
        if self.checkpoint.as_ref().is_some_and(|file| file.file_name().is_none()) {
            faults.push(format!("{path}.checkpoint: must name a file"));
        }
        let lasts = [
            ("checkpoint_every", self.checkpoint_every, EVERY_MIN, EVERY_MAX),
            ("max_age", self.max_age, Duration::ZERO, AGE_MAX),
            ("item_max_age", self.item_max_age, Duration::ZERO, AGE_MAX),
        ];
        for (key, value, low, high) in lasts {
            if !(low..=high).contains(&value) {
                let [low, high, value] = [low, high, value].map(duration::format);
                faults.push(format!("{path}.{key}: must be {low}..={high}, is {value}"));
            }
        }
        if !(1..=BATCH_MAX).contains(&self.batch_max) {
            let found = self.batch_max;
            faults.push(format!("{path}.batch_max: must be 1..={BATCH_MAX}, is {found}"));
        }
        self.model.validate(&format!("{path}.model"), faults);
        self.events.validate(&format!("{path}.events"), faults);
    }

    /// Returns the node's name in a process of `role`.
    #[must_use]
    pub fn node_name(&self, role: &str) -> String {
        if let Some(name) = &self.node {
            return name.clone();
        }
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let named = |c: &char| c.is_ascii_alphanumeric() || "._-".contains(*c);
        let host: String = host.trim().chars().filter(named).take(NODE_MAX).collect();
        if host.is_empty() { role.to_owned() } else { format!("{host}-{role}") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_off_by_default_and_every_fault_is_named_at_once() {
        let mut faults = Vec::new();
        Config::default().validate("personalize", &mut faults);
        assert!(!Config::default().enabled && faults.is_empty(), "{faults:?}");
        let wrong = Config {
            node: Some("a b".to_owned()),
            checkpoint: Some("/".into()),
            checkpoint_every: Duration::ZERO,
            max_age: Duration::MAX,
            item_max_age: Duration::MAX,
            batch_max: 0,
            model: model::Config { factors: 0, ..model::Config::default() },
            ..Config::default()
        };
        wrong.validate("personalize", &mut faults);
        assert_eq!(faults.len(), 7, "{faults:#?}");
        assert!(faults[0].starts_with("personalize.node: ") && faults[0].contains("a b"));
        assert!(faults[6].starts_with("personalize.model.factors: "), "{}", faults[6]);
    }

    #[test]
    fn a_node_has_a_name_that_a_consumer_group_may_have() {
        let named = Config { node: Some("eu-1".to_owned()), ..Config::default() };
        assert_eq!(named.node_name("gateway"), "eu-1");
        let name = Config::default().node_name("gateway");
        assert!(name.ends_with("gateway") && !name.contains(['\n', ' ']), "{name:?}");
    }
}
