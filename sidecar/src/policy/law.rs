//! What every policy has in common: what it sees, what it decides, and when it is asked.
//!
//! 1. A law is pure: no clock, network, environment or global randomness. Time arrives in
//!    [`Vote::at_ms`] and [`Asked::seconds`], seeds in the law's configuration.
//! 2. Same law, same state, same calls in the same order: the same decisions, bit for bit.
//! 3. A law never fails. Input that is not finite or out of range moves nothing, and
//!    [`Decision::held`] names it.

use serde::{Serialize, de::DeserializeOwned};
use tower_merit::bucket::Limits;

/// One rating as a policy sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vote {
    /// The score, 1 to 5.
    pub score: f64,
    /// Who rated: a keyed hash of the user id.
    pub rater: u64,
    /// When Merit took the rating in, in Unix milliseconds.
    pub at_ms: u64,
    /// How much it counts, 0 to 1: the rater's trust times what its receipt is worth.
    pub weight: f64,
}

/// What all agents share at a moment.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Market {
    /// What a token costs, in points of score above 3; at least 0.
    pub price: f64,
    /// Use as a share of the service's capacity; at least 0.
    pub use_share: f64,
    /// Length of a tick, in milliseconds; at least 1.
    pub tick_ms: u64,
}

/// What an agent asked for since it was last looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Asked {
    /// Tokens taken.
    pub admitted: f64,
    /// Tokens refused. A law counts at most as many as were admitted: retrying earns nothing.
    pub denied: f64,
    /// Seconds since it was last looked at.
    pub seconds: f64,
    /// Share of the bucket that is full, 0 to 1.
    pub level: f64,
}

/// A change of an agent's quality (or of what its users expect), as a detector reports it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drift {
    /// Mean score before the change.
    pub before: f64,
    /// Mean score after it, as far as is known.
    pub after: f64,
    /// Ratings since the change, as far as the detector can place it.
    pub ratings: f64,
    /// How sure the detector is, in its own unit: for the mixture the odds of a recent change
    /// against none, for Page-Hinkley its statistic in standard deviations.
    pub evidence: f64,
}

/// Why a guardrail stood in for a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Reason {
    /// A score that is not a number in 1 to 5: the vote counts for nothing.
    Score,
    /// A weight that is not a number in 0 to 1: the vote counts for nothing.
    Weight,
    /// A price, use or tick that is not finite: the last one that was is used.
    Market,
    /// A count that is not a finite number from 0 on: the counts are ignored.
    Asked,
    /// The agent's own numbers were not finite: its estimate starts again.
    State,
    /// The policy's action (a residual, an arm, a weight of its network) was not finite: the base
    /// law decides.
    Action,
    /// The agent has too few ratings to be moved.
    Evidence,
    /// An operator froze the agent or everybody.
    Frozen,
    /// An operator set the rate by hand.
    Override,
    /// The kill switch is on: the base law decides.
    Killed,
    /// Shadow mode: the decision is logged, the base law decides.
    Shadow,
}

impl Reason {
    /// Returns its name, as metrics and logs say it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Score => "score",
            Self::Weight => "weight",
            Self::Market => "market",
            Self::Asked => "asked",
            Self::State => "state",
            Self::Action => "action",
            Self::Evidence => "evidence",
            Self::Frozen => "frozen",
            Self::Override => "override",
            Self::Killed => "killed",
            Self::Shadow => "shadow",
        }
    }

    /// Returns true when something is wrong, false when the guardrail did what was asked of it.
    #[must_use]
    pub fn is_fault(self) -> bool {
        matches!(
            self,
            Self::Score | Self::Weight | Self::Market | Self::Asked | Self::State | Self::Action
        )
    }
}

/// What a policy decided for one agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// The rate in force from now on, in tokens per second: after all guardrails.
    pub rate: f64,
    /// What the base law asks for, in tokens per second: within its range, not limited in step.
    pub base: f64,
    /// What the learned part adds to the logarithm of the rate: the Δ log r of `ppo`, the log
    /// multiplier of `bandit`, and 0 of laws that have none. In shadow mode too, where it is not
    /// applied.
    pub residual: f64,
    /// What the moment was worth: score − 3 at a vote, served·(m − 3 − p) per second at a tick.
    pub reward: f64,
    /// The change of quality that this very call found.
    pub drift: Option<Drift>,
    /// Probability (of an arm) or density (of a residual) of the action; 1 when there is no chance
    /// in it.
    pub propensity: f64,
    /// The guardrail that stood in, if one did; of several, the one that something was wrong for.
    pub held: Option<Reason>,
}

/// A law: pure and seeded. `State` is all it remembers of one agent.
pub trait Law {
    /// One agent's state: plain data, small, written beside the agent's limits.
    type State: Clone + Serialize + DeserializeOwned;

    /// Returns the state of an agent that nobody rated yet.
    fn begin(&self, start: Limits) -> Self::State;

    /// Takes over the limits that an operator set: a new start, from which the law goes on.
    fn adopt(&self, state: &mut Self::State, limits: Limits);

    /// Decides at a rating of this agent, at once.
    fn vote(&self, state: &mut Self::State, vote: Vote, market: &Market) -> Decision;

    /// Decides at a tick: the price and the agent's demand moved.
    fn tick(&self, state: &mut Self::State, asked: Asked, market: &Market) -> Decision;
}
