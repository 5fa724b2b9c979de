//! A connection to one master, wherever that is: it looks for the master, and for another when it is
//! lost, by itself.
//!
//! A call waits for the first attempt to connect, and fails at once while attempts fail; whoever
//! calls puts a deadline around it.

use std::{sync::Arc, time::Duration};

use redis::{
    Cmd, ErrorKind, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tracing::{debug, info, warn};

use super::{CONTROL_TIMEOUT, link::count_failover, topology::Place};

/// Pauses between attempts to connect: from the first to the last.
pub(super) const RECONNECT_MIN: Duration = Duration::from_millis(10);
pub(super) const RECONNECT_MAX: Duration = Duration::from_millis(250);

/// How often a connection is tried, so that a request after a quiet time does not find it dead: 1 s.
const BEAT_EVERY: Duration = Duration::from_secs(1);

/// A connection that lasted so long was a good one: the next attempt is made at once.
const GOOD_AFTER: Duration = Duration::from_secs(1);

/// The connection. Clones share it; a task keeps it up as long as one of them is there.
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
    /// Begins to connect in the background.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn begin(place: Place) -> Self {
        let (publish, state) = watch::channel(State::Connecting);
        let (broken, reports) = watch::channel(0);
        tokio::spawn(Follower { place, publish, reports, address: None }.run());
        Self { state, broken: Arc::new(broken) }
    }

    /// Sends one command; an error that the server answered is an error here too.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, number) = self.connection().await?;
        let answer = connection.req_packed_command(command).await.and_then(Value::extract_error);
        self.judge(number, answer)
    }

    /// Sends one command for a slot that the server has only in part yet. Both go in one write: an
    /// `ASKING` holds for the command behind it, whoever sent that.
    pub(super) async fn call_asking(&self, command: &Cmd) -> Result<Value, RedisError> {
        let (mut connection, number) = self.connection().await?;
        let mut pipeline = redis::pipe();
        pipeline.cmd("ASKING").add_command(command.clone());
        let answers = connection.req_packed_commands(&pipeline, 0, 2).await;
        let answer = answers.and_then(|mut answers| {
            answers.pop().map_or_else(|| Err(gone()), Value::extract_error)
        });
        self.judge(number, answer)
    }

    /// Reports the connection when the answer says that it is to be left.
    fn judge(&self, number: u64, answer: Result<Value, RedisError>) -> Result<Value, RedisError> {
        answer.inspect_err(|error| {
            if is_left(error) {
                debug!(%error, "bucket store connection is left");
                self.broken.send_if_modified(|highest| {
                    let newer = number > *highest;
                    *highest = number.max(*highest);
                    newer
                });
            }
        })
    }

    async fn connection(&self) -> Result<(MultiplexedConnection, u64), RedisError> {
        let state = self.state.borrow().clone();
        let state = if matches!(state, State::Connecting) { self.outcome().await? } else { state };
        match state {
            State::Up { connection, number } => Ok((connection, number)),
            State::Down(error) => Err(error),
            State::Connecting => Err(gone()),
        }
    }

    async fn outcome(&self) -> Result<State, RedisError> {
        let mut state = self.state.clone();
        let known = state.wait_for(|state| !matches!(state, State::Connecting)).await;
        known.map(|state| state.clone()).map_err(|_| gone())
    }
}

pub(super) fn gone() -> RedisError {
    (ErrorKind::Io, "the runtime that connects is gone").into()
}

/// Returns true when a server that answers so is not to be asked again: the connection is dead, or
/// it is a master no longer. Servers before 7 hide the code of an error within a script.
pub(super) fn is_left(error: &RedisError) -> bool {
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
                    let beats = connection.clone();
                    self.publish.send_replace(State::Up { connection, number });
                    if !self.ends(&address, number, beats).await {
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
    async fn ends(
        &mut self,
        address: &str,
        number: u64,
        connection: MultiplexedConnection,
    ) -> bool {
        tokio::select! {
            broken = self.reports.wait_for(|broken| *broken >= number) => broken.is_ok(),
            () = self.place.moves(address) => true,
            () = dies(connection) => true,
        }
    }
}

/// Waits until a connection that nobody else may be using is found dead.
async fn dies(mut connection: MultiplexedConnection) {
    loop {
        sleep(BEAT_EVERY).await;
        let beat = connection.req_packed_command(&redis::cmd("PING")).await;
        if beat.and_then(Value::extract_error).is_err_and(|error| is_left(&error)) {
            return;
        }
    }
}
