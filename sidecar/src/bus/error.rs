//! Errors of the bus, classified for the caller: is it worth coming back, and when?

use super::Partition;
use crate::rating::NoEncoding;
use std::time::Duration;

/// What lies beneath an error of the bus.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why a rating was not put on the bus.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// The queue to the bus is full.
    #[error("bus is full; come back in {} ms", retry_after.as_millis())]
    Full {
        /// When to come back.
        retry_after: Duration,
    },
    /// The bus did not acknowledge in time. The rating may still arrive.
    #[error("bus did not acknowledge; come back in {} ms", retry_after.as_millis())]
    Unavailable {
        /// When to come back.
        retry_after: Duration,
        /// What the client said.
        #[source]
        source: Cause,
    },
    /// The bus will never take this rating.
    #[error("bus refuses the rating")]
    Refused {
        /// What the client said.
        #[source]
        source: Cause,
    },
}

impl PublishError {
    /// Returns when the same rating may be taken; nothing when it never will.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Full { retry_after } | Self::Unavailable { retry_after, .. } => {
                Some(*retry_after)
            }
            Self::Refused { .. } => None,
        }
    }
}

/// Why the bus does not work.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// The build lacks this bus.
    #[error("bus `{kind}` needs a build with `--features {kind}`")]
    NeedsFeature {
        /// The kind of bus, which is the feature's name too.
        kind: &'static str,
    },
    /// The in-process bus was asked to connect two processes.
    #[error(
        "bus `in-process` ends where the process ends; run all roles in one, or choose `redis`, `kafka` or `nats`"
    )]
    OneProcess,
    /// The client refuses its configuration.
    #[error("bus.{key}: {problem}")]
    Config {
        /// The key below `bus`.
        key: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// The bus could not be reached.
    #[error("bus at {address} is not reachable")]
    Unavailable {
        /// Where it should be.
        address: String,
        /// What the client said.
        #[source]
        source: Cause,
    },
    /// The schema registry has not given our schema its id.
    #[error("schema registry does not let ratings be published")]
    Schema {
        /// Why not, and what to do.
        #[source]
        source: Cause,
    },
    /// A partition is not where the caller wants it to be.
    #[error("partition {partition} cannot continue from offset {offset}")]
    Seek {
        /// The partition.
        partition: Partition,
        /// The offset.
        offset: u64,
        /// Why not.
        #[source]
        source: Cause,
    },
    /// The client refuses what was asked of it.
    #[error("bus client cannot {action}")]
    Client {
        /// What was asked.
        action: &'static str,
        /// What it said.
        #[source]
        source: Cause,
    },
    /// The client gave up for good; only a new one can go on.
    #[error("bus client failed for good")]
    Fatal {
        /// What it said.
        #[source]
        source: Cause,
    },
}

impl From<NoEncoding> for BusError {
    fn from(lacking: NoEncoding) -> Self {
        Self::Config { key: "encoding", problem: lacking.to_string() }
    }
}

impl BusError {
    /// Returns true when the same call may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Schema { .. })
    }
}
