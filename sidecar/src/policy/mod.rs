//! Policies: from ratings to limits, pure and seeded.
//!
//! A policy sees ratings and its own state of one agent, and nothing else: no clock, no network, no
//! environment. The same ratings in the same order give the same limits, bit for bit, whoever folds
//! them and however they fell into batches.

mod additive;
mod burst;
mod config;
pub mod ppo;

pub use additive::{Additive, AdditiveConfig};
pub use burst::Burst;
pub use config::{Config, Kind};

use serde::{Deserialize, Serialize};
use tower_merit::bucket::{Limits, MicroTokensPerSecond};

use crate::rating::Rating;

/// What a policy remembers of one agent; written beside the agent's limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "lowercase")]
pub enum State {
    /// Of [`Additive`].
    Additive {
        /// Refill rate, in tokens per second.
        rate: f64,
        /// How the capacity follows the rate.
        burst: Burst,
    },
}

/// The policy in force.
#[derive(Clone, Debug)]
pub enum Policy {
    /// r ← clamp(r + α·(score − 3)).
    Additive(Additive),
}

impl Policy {
    /// Returns the policy that `config` names, for agents that start from `configured`.
    #[must_use]
    pub fn new(config: &Config, configured: Limits) -> Self {
        match config.kind {
            Kind::Additive => Self::Additive(Additive::new(config.additive(), configured)),
        }
    }

    /// Returns the state of an agent that nobody rated yet and that has no limits of its own.
    #[must_use]
    pub fn begin(&self) -> State {
        match self {
            Self::Additive(policy) => policy.begin(),
        }
    }

    /// Returns the state of an agent whose limits somebody else set: `limits` are its new start.
    #[must_use]
    pub fn adopt(&self, limits: Limits) -> State {
        match self {
            Self::Additive(policy) => policy.adopt(limits),
        }
    }

    /// Folds one rating into the state. Returns the reward it was worth.
    pub fn fold(&self, state: &mut State, rating: &Rating) -> f64 {
        match (self, state) {
            (Self::Additive(policy), State::Additive { rate, .. }) => {
                policy.fold(rate, rating.score().value())
            }
        }
    }

    /// Returns the limits that the state asks for.
    #[must_use]
    pub fn limits(&self, state: &State) -> Limits {
        match state {
            State::Additive { rate, burst } => burst.limits(rate_of(*rate)),
        }
    }
}

/// Returns `rate` as the bucket counts it. A policy's rate is clamped to its configured range, which
/// validation keeps within the bucket's.
fn rate_of(rate: f64) -> MicroTokensPerSecond {
    MicroTokensPerSecond::from_tokens(rate).expect("clamped to [r_min, r_max]")
}
