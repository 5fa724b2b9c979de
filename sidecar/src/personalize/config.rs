//! The `[personalize]` table.

use super::model;

/// How personalised ratings are learned.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// How the model learns, and how much it remembers.
    pub model: model::Config,
}

impl Config {
    /// Adds every fault of the table at `path` (normally `personalize`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        self.model.validate(&format!("{path}.model"), faults);
    }
}
