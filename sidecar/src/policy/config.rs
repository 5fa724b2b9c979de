//! `[policy]`: which rule turns ratings into limits, and its numbers.

use serde::{Deserialize, Serialize};
use tower_merit::bucket::REFILL_RATE_MAX;

use super::AdditiveConfig;

/// The policies there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum Kind {
    /// r ← clamp(r + α·(score − 3)).
    #[default]
    Additive,
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "additive" => Ok(Self::Additive),
            "price" | "ppo" | "bandit" => {
                Err(format!("policy `{name}` is not in this version yet: use `additive`"))
            }
            _ => Err("must be `additive`".to_owned()),
        }
    }
}

/// `[policy]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Which policy: `additive`; default additive.
    pub kind: Kind,
    /// Tokens per second that one point of score above 3 is worth; default 0.1: a steady stream of
    /// fives takes an agent from 20 to 40 in a hundred ratings.
    pub alpha: f64,
    /// Least refill rate, tokens per second; default 0.5, so that nobody starves.
    pub r_min: f64,
    /// Largest refill rate, tokens per second; default 40.
    pub r_max: f64,
    /// Seconds of refill that a bucket holds; default: the bucket's configured capacity ÷ rate.
    pub burst_seconds: Option<f64>,
    /// Requests per second that the service can serve. `additive` does not use it.
    pub service_capacity: Option<f64>,
    /// How often prices and idle agents are looked at; `additive` does not use it.
    pub tick: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            kind: Kind::Additive,
            alpha: 0.1,
            r_min: 0.5,
            r_max: 40.0,
            burst_seconds: None,
            service_capacity: None,
            tick: None,
        }
    }
}

impl Config {
    /// Appends every fault, each with its full path.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        #[allow(clippy::cast_precision_loss, reason = "9 × 10^6 is exact in f64")]
        let most = REFILL_RATE_MAX as f64;
        let mut range = |name: &str, value: f64, low: f64, high: f64| {
            if !(low..=high).contains(&value) {
                faults.push(format!("{path}.{name}: must be {low} to {high}, is {value}"));
            }
        };
        range("alpha", self.alpha, 0.000_001, 1_000.0);
        range("r_min", self.r_min, 0.001, most);
        range("r_max", self.r_max, 0.001, most);
        if let Some(seconds) = self.burst_seconds {
            range("burst_seconds", seconds, 0.001, 86_400.0);
        }
        if self.r_min > self.r_max {
            let (low, high) = (self.r_min, self.r_max);
            faults.push(format!("{path}.r_min: must be at most {path}.r_max ({high}), is {low}"));
        }
    }

    pub(super) fn additive(&self) -> AdditiveConfig {
        let Self { alpha, r_min, r_max, burst_seconds, .. } = *self;
        AdditiveConfig { alpha, r_min, r_max, burst_seconds }
    }
}
