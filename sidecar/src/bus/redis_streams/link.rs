//! A connection that is opened when it is needed, and opened anew after it failed.

use crate::bus::Cause;
use redis::{
    AsyncConnectionConfig, Client, Cmd, Pipeline, Script, Value,
    aio::{ConnectionLike as _, MultiplexedConnection},
};
use std::{sync::Arc, time::Duration};
use tokio::{sync::Mutex, time::timeout};

/// How long connecting may take.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

/// A connection. Clones share it.
#[derive(Clone)]
pub(super) struct Link {
    client: Client,
    /// The connection with its number.
    open: Arc<Mutex<(u64, Option<MultiplexedConnection>)>>,
    deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("no answer within {deadline_ms} ms")]
struct Late {
    deadline_ms: u128,
}

impl Link {
    /// Returns a link whose every call must be answered within `deadline`.
    pub(super) fn new(client: Client, deadline: Duration) -> Self {
        Self { client, open: Arc::default(), deadline }
    }

    /// Returns host and port, for messages.
    pub(super) fn address(&self) -> String {
        self.client.get_connection_info().addr().to_string()
    }

    async fn connection(&self) -> Result<(u64, MultiplexedConnection), Cause> {
        let mut open = self.open.lock().await;
        if let (number, Some(connection)) = &*open {
            return Ok((*number, connection.clone()));
        }
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(CONNECT_DEADLINE))
            .set_response_timeout(Some(self.deadline));
        let connecting = self.client.get_multiplexed_async_connection_with_config(&config);
        let connection = timeout(CONNECT_DEADLINE, connecting)
            .await
            .map_err(|_| Late { deadline_ms: CONNECT_DEADLINE.as_millis() })??;
        *open = (open.0 + 1, Some(connection.clone()));
        Ok((open.0, connection))
    }

    /// Forgets the connection `number`, unless there is a newer one.
    async fn forget(&self, number: u64) {
        let mut open = self.open.lock().await;
        if open.0 == number {
            open.1 = None;
        }
    }

    /// Sends `pipeline` and returns the answers, of which each may be an error of the server's.
    pub(super) async fn ask(&self, pipeline: &Pipeline) -> Result<Vec<Value>, Cause> {
        let (number, mut connection) = self.connection().await?;
        let count = pipeline.len();
        let asked = timeout(self.deadline, connection.req_packed_commands(pipeline, 0, count));
        match asked.await {
            Ok(Ok(answers)) => Ok(answers),
            Ok(Err(error)) => {
                self.forget(number).await;
                Err(error.into())
            }
            Err(_) => {
                self.forget(number).await;
                Err(Late { deadline_ms: self.deadline.as_millis() }.into())
            }
        }
    }

    /// Sends `commands` and returns their answers; the first error of the server's is one here.
    pub(super) async fn ask_all(&self, commands: Vec<Cmd>) -> Result<Vec<Value>, Cause> {
        let mut pipeline = Pipeline::with_capacity(commands.len());
        for command in commands {
            pipeline.add_command(command);
        }
        let answers = self.ask(&pipeline).await?;
        answers.into_iter().map(|answer| answer.extract_error().map_err(Into::into)).collect()
    }

    /// Runs `script` once for each of the keys and arguments; each answer may be an error of the
    /// server's.
    ///
    /// A server that does not know the script, because it was restarted, is told and asked again:
    /// it did nothing.
    pub(super) async fn run(&self, lua: &Lua, calls: &[Call]) -> Result<Vec<Value>, Cause> {
        let mut pipeline = Pipeline::with_capacity(calls.len());
        for call in calls {
            pipeline.add_command(lua.command(call));
        }
        let mut answers = self.ask(&pipeline).await?;
        let unknown: Vec<usize> =
            (0..answers.len()).filter(|&place| is_no_script(&answers[place])).collect();
        if unknown.is_empty() {
            return Ok(answers);
        }
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(lua.code);
        self.ask_all(vec![load]).await?;
        let mut again = Pipeline::with_capacity(unknown.len());
        for &place in &unknown {
            again.add_command(lua.command(&calls[place]));
        }
        for (place, answer) in unknown.into_iter().zip(self.ask(&again).await?) {
            answers[place] = answer;
        }
        Ok(answers)
    }

    /// As [`Link::run`], for one call: the answer, unless it is an error.
    pub(super) async fn run_one(&self, lua: &Lua, call: Call) -> Result<Value, Cause> {
        let answers = self.run(lua, &[call]).await?;
        let answer = answers.into_iter().next().unwrap_or(Value::Nil);
        answer.extract_error().map_err(Into::into)
    }
}

fn is_no_script(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(error) if error.code() == "NOSCRIPT")
}

/// A script, and what it is known by.
pub(super) struct Lua {
    code: &'static str,
    script: Script,
}

impl Lua {
    pub(super) fn new(code: &'static str) -> Self {
        Self { code, script: Script::new(code) }
    }

    fn command(&self, call: &Call) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.script.get_hash()).arg(call.keys.len()).arg(&call.keys);
        for argument in &call.arguments {
            command.arg(argument.as_slice());
        }
        command
    }
}

/// Keys and arguments of a script.
#[derive(Debug, Default)]
pub(super) struct Call {
    keys: Vec<String>,
    arguments: Vec<Vec<u8>>,
}

impl Call {
    pub(super) fn keys(keys: impl IntoIterator<Item = String>) -> Self {
        Self { keys: keys.into_iter().collect(), arguments: Vec::new() }
    }

    pub(super) fn arg(mut self, argument: impl ToString) -> Self {
        self.arguments.push(argument.to_string().into_bytes());
        self
    }

    pub(super) fn bytes(mut self, argument: Vec<u8>) -> Self {
        self.arguments.push(argument);
        self
    }
}
