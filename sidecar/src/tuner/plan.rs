//! What a loop goes by.

use tokio::sync::watch;
use tower_merit::bucket::{BucketName, Limits};

use super::{Asked, Busiest, Config};
use crate::{decisions::Log, policy, rating::SubjectMode};

/// What ratings without a receipt that holds weigh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Unproved {
    /// As much as the others: receipts are not looked at.
    #[default]
    All,
    /// [`policy::Config::unproved_weight`].
    Less,
    /// Nothing: ingest takes none, and what other producers put on the bus does not count.
    Nothing,
}

/// What a loop goes by and may go on by otherwise while it runs.
#[derive(Clone, Debug)]
pub struct Aim {
    /// The policy.
    pub policy: policy::Config,
    /// The limits of agents that have none of their own.
    pub start: Limits,
    /// Named buckets that scale with what an agent earned, as they are configured.
    pub earned: Vec<(BucketName, Limits)>,
}

impl Aim {
    /// Returns an aim by `policy` from the limits `start`, without buckets that scale.
    #[must_use]
    pub fn new(policy: policy::Config, start: Limits) -> Self {
        Self { policy, start, earned: Vec::new() }
    }
}

/// What a loop goes by.
#[derive(Debug)]
#[non_exhaustive]
pub struct Plan {
    /// Policy, start and buckets that scale.
    pub aim: Aim,
    /// Whom a rating is about.
    pub subject: SubjectMode,
    /// What ratings without a receipt that holds weigh.
    pub unproved: Unproved,
    /// How ratings and looks are batched.
    pub tuner: Config,
    /// What to go on by, while it runs.
    pub changes: Option<watch::Receiver<Aim>>,
    /// Where decisions with chance in them are logged.
    pub decisions: Option<Log>,
    /// Where people's questions come from.
    pub asks: Option<Asked>,
    /// Where the agents that are rated most are noted.
    pub busiest: Option<Busiest>,
}

impl Plan {
    /// Returns a plan by `policy` from the limits `start`; receipts are not looked at, and nothing
    /// is logged.
    #[must_use]
    pub fn new(policy: policy::Config, start: Limits) -> Self {
        Self {
            aim: Aim::new(policy, start),
            subject: SubjectMode::default(),
            unproved: Unproved::All,
            tuner: Config::default(),
            changes: None,
            decisions: None,
            asks: None,
            busiest: None,
        }
    }
}
