//! Connections: one that reconnects by itself for decisions, one that never does for the control plane.

use std::{future::Future, time::Duration};

use redis::{
    AsyncConnectionConfig, Cmd, Pipeline, RedisError, Value,
    aio::{ConnectionLike, ConnectionManager, MultiplexedConnection},
};

use super::{
    CONTROL_TIMEOUT, RedisStore, SET_LIMITS_LUA,
    wire::{is_fault, is_no_script, is_wrong_type},
};
use crate::{AgentId, store::StoreError};

/// The control plane's own connection. It does not reconnect by itself: a server that was replaced
/// may have lost writes, and whoever writes must learn of it before writing on.
pub(super) enum Control {
    /// Not yet used.
    Fresh,
    Up(MultiplexedConnection),
    /// Broken until [`Tune::life`] connects anew.
    Broken,
}

pub(super) fn script_load(code: &str) -> Cmd {
    let mut command = redis::cmd("SCRIPT");
    command.arg("LOAD").arg(code);
    command
}

/// The connection of decisions: cheap to clone, reconnects by itself, pipelines.
#[derive(Clone)]
pub(super) struct Link {
    connection: ConnectionManager,
}

impl Link {
    pub(super) fn new(connection: ConnectionManager) -> Self {
        Self { connection }
    }

    /// Runs one command; an error that the server answered is an error here too.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, RedisError> {
        let mut connection = self.connection.clone();
        connection.req_packed_command(command).await.and_then(Value::extract_error)
    }

    /// Returns the slot of an agent's keys, which all groups of one call must share; `None` when the
    /// server is no cluster.
    #[allow(clippy::unused_self, reason = "a cluster's link knows")]
    pub(super) fn slot(&self, _: &AgentId) -> Option<u16> {
        None
    }
}

pub(super) async fn within<T>(
    limit: Duration,
    call: impl Future<Output = T>,
) -> Result<T, StoreError> {
    tokio::time::timeout(limit, call).await.map_err(|_| StoreError::Timeout(limit))
}

impl RedisStore {
    /// Opens the control plane's connection.
    pub(super) async fn connect_control(&self) -> Result<MultiplexedConnection, StoreError> {
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONTROL_TIMEOUT))
            .set_response_timeout(None);
        let client = &self.inner.client;
        within(CONTROL_TIMEOUT, client.get_multiplexed_async_connection_with_config(&config))
            .await?
            .map_err(|error| self.unavailable(error))
    }

    /// Sends a pipeline over the control plane's connection; any failure of it breaks the connection,
    /// so that nothing more is written before the store was asked which life this is.
    pub(super) async fn control_all(&self, pipeline: &Pipeline) -> Result<Vec<Value>, StoreError> {
        let mut control = self.inner.control.lock().await;
        let mut connection = match &*control {
            Control::Up(connection) => connection.clone(),
            Control::Broken => return Err(StoreError::Lost),
            Control::Fresh => {
                let connection = self.connect_control().await?;
                *control = Control::Up(connection.clone());
                connection
            }
        };
        let answers = self.pipelined(&mut connection, pipeline).await;
        answers.inspect_err(|_| *control = Control::Broken)
    }

    /// Sends a pipeline, once more when the server has lost the scripts. An answer that faults one
    /// agent's data stays among the answers; any other error is the store's.
    async fn pipelined(
        &self,
        connection: &mut MultiplexedConnection,
        pipeline: &Pipeline,
    ) -> Result<Vec<Value>, StoreError> {
        let count = pipeline.cmd_iter().count();
        for _ in 0..2 {
            let sent = connection.req_packed_commands(pipeline, 0, count);
            let answers = within(CONTROL_TIMEOUT, sent).await?;
            let answers = answers.map_err(|error| self.unavailable(error))?;
            let error = |answer: &Value| answer.clone().extract_error().err();
            let mut faults = answers.iter().filter(|answer| is_fault(answer)).filter_map(error);
            match faults.find(|error| !is_wrong_type(error)) {
                None => return Ok(answers),
                Some(error) if is_no_script(&error) => {
                    let load = script_load(SET_LIMITS_LUA);
                    let loaded = connection.req_packed_command(&load);
                    let loaded = within(CONTROL_TIMEOUT, loaded).await?;
                    loaded
                        .and_then(Value::extract_error)
                        .map_err(|error| self.unavailable(error))?;
                }
                Some(error) => return Err(self.unavailable(error)),
            }
        }
        Err(StoreError::Malformed { what: "NOSCRIPT right after SCRIPT LOAD".to_owned() })
    }

    /// Runs one command over the control plane's connection.
    pub(super) async fn control(&self, command: &Cmd) -> Result<Value, StoreError> {
        let mut pipeline = redis::pipe();
        pipeline.add_command(command.clone());
        let mut answers = self.control_all(&pipeline).await?;
        answers.pop().ok_or_else(|| StoreError::Malformed { what: "nothing".to_owned() })
    }
}
