//! A real `nats-server` with JetStream, which tests may kill and start again on the same port.

use std::time::Duration;

use tokio::sync::OnceCell;

use crate::{Folder, Process, eventually, installed::script, ports};

/// How long a server may take to accept connections.
const START_DEADLINE: Duration = Duration::from_secs(20);

/// A `nats-server` on a port and in a folder of its own.
#[derive(Debug)]
pub struct Nats {
    process: Option<Process>,
    // After the process: fields drop in order, and the server writes into its folder.
    folder: Folder,
    port: u16,
    options: Vec<String>,
}

impl Nats {
    /// Starts a server and waits until it accepts connections.
    ///
    /// # Panics
    ///
    /// When `integration/nats-server.sh` finds and builds none, or it does not come up.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// Starts a server with further options, such as `--user u --pass p`.
    ///
    /// # Panics
    ///
    /// As [`Nats::start`].
    pub async fn start_with(options: &[&str]) -> Self {
        let options = options.iter().map(ToString::to_string).collect();
        let (folder, port) = (Folder::new("nats"), ports::free());
        let mut nats = Self { process: None, folder, port, options };
        nats.restart().await;
        nats
    }

    /// Starts the server again after [`Nats::kill9`], on the same port and folder.
    ///
    /// # Panics
    ///
    /// When it runs already or does not come up.
    pub async fn restart(&mut self) {
        assert!(self.process.is_none(), "the server runs already");
        let store = self.folder.path().join("store");
        let port = self.port.to_string();
        let fixed = ["--addr", "127.0.0.1", "--port", &port, "--jetstream", "--store_dir"];
        let mut arguments: Vec<String> = fixed.iter().map(ToString::to_string).collect();
        arguments.push(store.to_str().expect("the folder's name is text").to_owned());
        arguments.extend(self.options.iter().cloned());
        let started = Process::start("nats", binary().await, &arguments, &[], self.folder.path());
        let process = self.process.insert(started);
        let address = ("127.0.0.1", self.port);
        eventually("nats-server accepts connections", START_DEADLINE, || {
            if let Some(status) = process.exited() {
                panic!("nats-server ended with {status}: {}", process.output());
            }
            async move { tokio::net::TcpStream::connect(address).await.is_ok() }
        })
        .await;
    }

    /// Returns the server's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Returns the server's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Copies what the server has stored; it must not be running.
    ///
    /// # Panics
    ///
    /// When it runs, or the folder cannot be copied.
    pub fn keep_a_copy(&self) {
        assert!(self.process.is_none(), "the server runs");
        self.copy("store", "kept");
    }

    /// Puts back what was copied last, as a server does that lost what it had not written yet.
    ///
    /// # Panics
    ///
    /// When it runs, or nothing was copied.
    pub fn fall_back(&self) {
        assert!(self.process.is_none(), "the server runs");
        self.copy("kept", "store");
    }

    fn copy(&self, from: &str, to: &str) {
        let (from, to) = (self.folder.path().join(from), self.folder.path().join(to));
        let _ = std::fs::remove_dir_all(&to);
        let copied = std::process::Command::new("cp").arg("-a").args([&from, &to]).status();
        assert!(copied.expect("cp is there").success(), "{} is not copied", from.display());
    }

    /// Kills the server with SIGKILL.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn kill9(&mut self) {
        self.process.take().expect("the server runs").kill9();
    }
}

/// Returns the server's binary; the first to ask may wait for it to be built.
async fn binary() -> &'static str {
    static BINARY: OnceCell<String> = OnceCell::const_new();
    BINARY.get_or_init(|| script("nats-server.sh", &[])).await
}
