//! A real `redis-server`, which tests may kill, freeze and start again on the same port.

use std::time::Duration;

use crate::{Folder, Process, eventually, ports};

/// How long a server may take to answer its first PING.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// What a server writes to disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Persistence {
    /// Nothing by itself; `BGSAVE` writes the snapshot that a restart reads.
    SnapshotOnDemand,
    /// Every write, before it is answered.
    EveryWrite,
}

/// A `redis-server` on a port and in a folder of its own.
#[derive(Debug)]
pub struct Redis {
    process: Option<Process>,
    // After the process: fields drop in order, and the server writes into its folder.
    folder: Folder,
    port: u16,
    persistence: Persistence,
    options: Vec<String>,
}

impl Redis {
    /// Starts a server and waits for its first answer.
    ///
    /// # Panics
    ///
    /// When `redis-server` is missing or does not come up (`apt-get install redis-server`).
    pub async fn start(persistence: Persistence) -> Self {
        Self::start_with(persistence, &[]).await
    }

    /// Starts a server with further options, such as `--maxmemory 10mb`, and waits for its first
    /// answer.
    ///
    /// # Panics
    ///
    /// As [`Redis::start`].
    pub async fn start_with(persistence: Persistence, options: &[&str]) -> Self {
        let options = options.iter().map(ToString::to_string).collect();
        let (folder, port) = (Folder::new("redis"), ports::free());
        let mut redis = Self { process: None, folder, port, persistence, options };
        redis.restart().await;
        redis
    }

    /// Starts the server again after [`Redis::kill9`], on the same port and folder.
    ///
    /// # Panics
    ///
    /// When it runs already or does not come up.
    pub async fn restart(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        let port = self.port.to_string();
        let appendonly = match self.persistence {
            Persistence::SnapshotOnDemand => "no",
            Persistence::EveryWrite => "yes",
        };
        let folder = self.folder.path().to_str().expect("the folder's name is text");
        let arguments = [
            "--port",
            &port,
            "--bind",
            "127.0.0.1",
            "--dir",
            folder,
            "--save",
            "",
            "--appendonly",
            appendonly,
            "--appendfsync",
            "always",
            "--daemonize",
            "no",
        ];
        let mut arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        arguments.extend(self.options.iter().cloned());
        self.process =
            Some(Process::start("redis", "redis-server", &arguments, &[], self.folder.path()));
        let url = self.url();
        let process = self.process.as_mut().expect("it was just started");
        eventually("redis-server answers PING", START_DEADLINE, || {
            if let Some(status) = process.exited() {
                panic!("redis-server ended with {status}: {}", process.output());
            }
            let url = url.clone();
            async move {
                let Ok(client) = redis::Client::open(url) else {
                    return false;
                };
                let Ok(mut link) = client.get_multiplexed_async_connection().await else {
                    return false;
                };
                redis::cmd("PING").query_async::<String>(&mut link).await.is_ok()
            }
        })
        .await;
    }

    /// Returns the server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Returns the server's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Kills the server with SIGKILL.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn kill9(&mut self) {
        self.process.take().expect("the server runs").kill9();
    }

    /// Stops the server's clock: it holds its connections and answers nothing.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn freeze(&mut self) {
        self.process.as_mut().expect("the server runs").signal("STOP");
    }

    /// Lets a frozen server go on.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn thaw(&mut self) {
        self.process.as_mut().expect("the server runs").signal("CONT");
    }

    /// Returns the processor time that the server has used since its start.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn processor(&self) -> anyhow::Result<Duration> {
        self.process.as_ref().expect("the server runs").processor()
    }

    /// Opens a connection for the test's own questions.
    ///
    /// # Panics
    ///
    /// When the server does not answer.
    pub async fn connect(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.url())
            .expect("the URL is well formed")
            .get_multiplexed_async_connection()
            .await
            .expect("the server answers")
    }

    /// Runs one command and returns its answer.
    ///
    /// # Panics
    ///
    /// When the server does not answer, or answers with an error or another type.
    pub async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut link = self.connect().await;
        let mut request = redis::cmd(command[0]);
        for argument in &command[1..] {
            request.arg(argument);
        }
        request
            .query_async(&mut link)
            .await
            .unwrap_or_else(|error| panic!("{command:?} failed: {error}"))
    }

    /// Returns the limits of an agent's default bucket: capacity and refill rate, as stored.
    pub async fn limits(&self, agent: &str) -> Option<(String, String)> {
        let (capacity, refill_rate): (Option<String>, Option<String>) =
            self.ask(&["HMGET", &format!("tb:{agent}"), "capacity", "refill_rate"]).await;
        Some((capacity?, refill_rate?))
    }

    /// Writes a snapshot and waits until it is on disk.
    pub async fn snapshot(&self) {
        let _: String = self.ask(&["SAVE"]).await;
    }
}
