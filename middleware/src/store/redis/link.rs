//! The connection of decisions: it looks for the master, and for another when it is lost, by itself.
//!
//! A call that finds no connection waits for one; whoever calls puts a deadline around it. Of a
//! cluster the `redis` crate's own client is used: it follows MOVED and ASK.

use std::{future::Future, sync::Arc, time::Duration};

use metrics::counter;
use redis::{
    Cmd, ErrorKind, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
    cluster::ClusterConfig,
    cluster_async::ClusterConnection,
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{
    CONTROL_TIMEOUT,
    cluster::slot_of_agent,
    topology::{Place, Topology},
};
use crate::{AgentId, store::StoreError};

/// Pauses between attempts to connect: from the first to the last.
const RECONNECT_MIN: Duration = Duration::from_millis(10);
const RECONNECT_MAX: Duration = Duration::from_millis(250);

/// A connection that lasted so long was a good one: the next attempt waits the least.
const GOOD_AFTER: Duration = Duration::from_secs(1);

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

/// The connection of decisions. Clones share it.
#[derive(Clone)]
pub(super) enum Link {
    Master(Followed),
    Cluster(ClusterConnection),
}

impl Link {
    /// Begins to connect in the background.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn open(topology: &Topology) -> Self {
        match topology {
            Topology::Cluster(cluster) => Self::Cluster(
                cluster.client.get_pending_async_connection_with_config(ClusterConfig::new()),
            ),
            Topology::Master(place) => Self::Master(Followed::begin(place.clone())),
        }
    }

    /// Sends one command to the master of its keys and returns the answer; an error that the server
    /// answered is an error here too.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, RedisError> {
        match self {
            Self::Master(followed) => followed.call(command).await,
            Self::Cluster(connection) => {
                let answer = connection.clone().req_packed_command(command).await;
                answer.and_then(Value::extract_error)
            }
        }
    }

    /// Returns the slot that the agent's keys are in; `None` when the server is no cluster. Only
    /// agents of one slot may share a call.
    #[allow(dead_code, reason = "asked by decisions that share a call")]
    pub(super) fn slot(&self, agent: &AgentId) -> Option<u16> {
        match self {
            Self::Master(_) => None,
            Self::Cluster(_) => Some(slot_of_agent(agent.as_str())),
        }
    }

    /// Asks whether the servers serve: a master whether it is there, a cluster whether all of its
    /// slots are served.
    pub(super) async fn ping(&self) -> Result<(), RedisError> {
        match self {
            Self::Master(_) => self.call(&redis::cmd("PING")).await.map(drop),
            Self::Cluster(_) => {
                let mut command = redis::cmd("CLUSTER");
                let answer = self.call(command.arg("INFO")).await?;
                let info: String = redis::from_redis_value(answer)?;
                if info.lines().any(|line| line.trim_end() == "cluster_state:ok") {
                    return Ok(());
                }
                let down = ServerErrorKind::ClusterDown.into();
                Err((down, "the cluster does not serve all of its slots").into())
            }
        }
    }
}

/// A connection to one master, wherever that is. Clones share it; a task keeps it up as long as one
/// of them is there.
#[derive(Clone)]
pub(super) struct Followed {
    state: watch::Receiver<State>,
    /// The highest number of a connection that somebody found broken.
    broken: Arc<watch::Sender<u64>>,
}

#[derive(Clone)]
enum State {
    /// The first attempt since the last connection is under way: a call waits for it.
    Connecting,
    Up {
        connection: MultiplexedConnection,
        number: u64,
    },
    /// The last attempt failed: a call fails at once.
    Down(RedisError),
}

impl Followed {
    fn begin(place: Place) -> Self {
        let (publish, state) = watch::channel(State::Connecting);
        let (broken, reports) = watch::channel(0);
        tokio::spawn(Follower { place, publish, reports, address: None }.run());
        Self { state, broken: Arc::new(broken) }
    }

    async fn call(&self, command: &Cmd) -> Result<Value, RedisError> {
        let state = self.state.borrow().clone();
        let state = if matches!(state, State::Connecting) { self.outcome().await? } else { state };
        let (mut connection, number) = match state {
            State::Up { connection, number } => (connection, number),
            State::Down(error) => return Err(error),
            State::Connecting => return Err(gone()),
        };
        let answer = connection.req_packed_command(command).await.and_then(Value::extract_error);
        if let Err(error) = &answer
            && is_left(error)
        {
            debug!(%error, "bucket store connection is left");
            self.broken.send_if_modified(|highest| {
                let newer = number > *highest;
                *highest = number.max(*highest);
                newer
            });
        }
        answer
    }

    async fn outcome(&self) -> Result<State, RedisError> {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| !matches!(state, State::Connecting)).await;
        known.map(|state| state.clone()).map_err(|_| gone())
    }
}

fn gone() -> RedisError {
    (ErrorKind::Io, "the runtime that connects is gone").into()
}

/// Returns true when a server that answers so is not to be asked again: the connection is dead, or
/// it is a master no longer. Servers before 7 hide the code of an error within a script.
fn is_left(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io => true,
        ErrorKind::Server(ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown) => true,
        ErrorKind::Server(ServerErrorKind::ResponseError) => error.to_string().contains("READONLY"),
        _ => error.is_unrecoverable_error(),
    }
}

/// The task that keeps a [`Followed`] connected.
struct Follower {
    place: Place,
    publish: watch::Sender<State>,
    reports: watch::Receiver<u64>,
    /// Where the last connection went.
    address: Option<String>,
}

impl Follower {
    async fn run(mut self) {
        let (mut number, mut pause) = (0, RECONNECT_MIN);
        loop {
            let found = tokio::select! {
                // Nobody holds the connection any more.
                () = self.publish.closed() => return,
                found = timeout(CONTROL_TIMEOUT, self.place.connect()) => found,
            };
            let late = || Err((ErrorKind::Io, "no connection within 2 s").into());
            match found.unwrap_or_else(|_| late()) {
                Ok((address, connection)) => {
                    number += 1;
                    self.arrived(&address);
                    let since = Instant::now();
                    self.publish.send_replace(State::Up { connection, number });
                    if !self.ends(&address, number).await {
                        return;
                    }
                    self.publish.send_replace(State::Connecting);
                    if since.elapsed() > GOOD_AFTER {
                        pause = RECONNECT_MIN;
                        continue;
                    }
                }
                Err(error) => {
                    debug!(%error, "bucket store not connected");
                    self.publish.send_replace(State::Down(error));
                }
            }
            tokio::select! {
                () = self.publish.closed() => return,
                () = sleep(pause) => {}
            }
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    fn arrived(&mut self, address: &str) {
        match self.address.replace(address.to_owned()) {
            Some(before) if before != address => {
                count_failover("decisions");
                warn!(
                    before,
                    now = address,
                    "bucket store failed over: what the new master does not hold is lost"
                );
            }
            Some(_) => info!(address, "bucket store is connected again"),
            None => debug!(address, "bucket store is connected"),
        }
    }

    /// Waits until connection `number` is to be replaced; returns false when nobody holds it.
    async fn ends(&mut self, address: &str, number: u64) -> bool {
        tokio::select! {
            broken = self.reports.wait_for(|broken| *broken >= number) => broken.is_ok(),
            () = self.place.moves(address) => true,
        }
    }
}
