//! The connection of decisions, over servers of every layout.

use std::{future::Future, time::Duration};

use metrics::counter;
use redis::{Cmd, RedisError, ServerErrorKind, Value};
use tokio::time::timeout;

use super::{cluster::slot_of_agent, followed::Followed, shards::Shards, topology::Topology};
use crate::{AgentId, store::StoreError};

pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = T>,
) -> Result<T, StoreError> {
    timeout(limit, call).await.map_err(|_| StoreError::Timeout(limit))
}

/// Counts a master that was replaced or restarted; `seen_by` is `decisions` or `limits`.
pub(super) fn count_failover(seen_by: &'static str) {
    counter!("merit_store_failovers_total", "seen_by" => seen_by).increment(1);
}

/// The connection of decisions. Clones share it; it finds its masters by itself.
#[derive(Clone)]
pub(super) enum Link {
    Master(Followed),
    Cluster(Shards),
}

impl Link {
    /// Begins to connect in the background.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn open(topology: &Topology) -> Self {
        match topology {
            Topology::Master(place) => Self::Master(Followed::begin(place.clone())),
            Topology::Cluster(seeds) => Self::Cluster(Shards::begin(seeds.clone())),
        }
    }

    /// Sends one command to the master of its first key and returns the answer; an error that the
    /// server answered is an error here too. Whoever calls puts a deadline around it.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, RedisError> {
        match self {
            Self::Master(followed) => followed.call(command).await,
            Self::Cluster(shards) => shards.call(command).await,
        }
    }

    /// Returns the slot that the agent's keys are in; `None` when the server is no cluster. Only
    /// agents of one slot may share a call.
    pub(super) fn slot(&self, agent: &AgentId) -> Option<u16> {
        match self {
            Self::Master(_) => None,
            Self::Cluster(_) => Some(slot_of_agent(agent.as_str())),
        }
    }

    /// Asks whether the servers serve: a master whether it is there, a cluster whether it says so of
    /// itself.
    pub(super) async fn ping(&self) -> Result<(), RedisError> {
        match self {
            Self::Master(followed) => followed.call(&redis::cmd("PING")).await.map(drop),
            Self::Cluster(shards) => {
                let mut command = redis::cmd("CLUSTER");
                let answer = shards.call_any(command.arg("INFO")).await?;
                let info: String = redis::from_redis_value(answer)?;
                if info.lines().any(|line| line.trim_end() == "cluster_state:ok") {
                    return Ok(());
                }
                let down = ServerErrorKind::ClusterDown.into();
                Err((down, "the cluster says of itself that it is down").into())
            }
        }
    }
}
