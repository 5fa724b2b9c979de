//! A rating feed in another stack: `feed/server.mjs`, on Node with npm's `ws`.

use std::{path::Path, time::Duration};

use serde_json::Value;

use crate::{Folder, Process, client::Client, until};

const START_DEADLINE: Duration = Duration::from_secs(20);

/// A running feed.
#[derive(Debug)]
pub struct FeedServer {
    _process: Process,
    _folder: Folder,
    port: u16,
}

/// A rating that the feed has sent, or will.
#[derive(Clone, Debug)]
pub struct Sent {
    /// Its name.
    pub id: String,
    /// Who is rated.
    pub agent: String,
    /// What a reader of the text makes of the score.
    pub score: f64,
    /// Every byte of the frame.
    pub text: String,
}

impl FeedServer {
    /// Starts a feed with the options that the head of `feed/server.mjs` explains.
    ///
    /// # Panics
    ///
    /// When Node or `ws` is missing, or the feed does not start.
    pub async fn start(options: &Value) -> Self {
        let home = Path::new(env!("CARGO_MANIFEST_DIR")).join("feed");
        let installed = home.join("node_modules/ws").is_dir();
        assert!(installed, "npm's `ws` is missing: run npm ci in {}", home.display());
        let program = home.join("server.mjs").to_str().expect("the folder is text").to_owned();
        let folder = Folder::new("feed");
        let arguments = [program, options.to_string()];
        let process = Process::start("feed", "node", &arguments, &[], folder.path());
        // Its first line, once it listens.
        let port = until("the feed listens", START_DEADLINE, || async {
            let output = process.output();
            output.split_once('\n').map(|(port, _)| port.to_owned())
        })
        .await;
        let port = port.parse().unwrap_or_else(|_| panic!("feed: {}", process.output()));
        Self { _process: process, _folder: folder, port }
    }

    /// Returns the address of the feed with `scheme`, `ws` or `wss`.
    #[must_use]
    pub fn url(&self, scheme: &str) -> String {
        format!("{scheme}://localhost:{}/ratings", self.port)
    }

    async fn page(&self, path: &str) -> String {
        let url = format!("http://127.0.0.1:{}{path}", self.port);
        Client::new().get(&url, None).await.expect("the feed answers").text()
    }

    /// Returns every rating of the feed, in order.
    ///
    /// # Panics
    ///
    /// When the feed does not answer.
    pub async fn ratings(&self) -> Vec<Sent> {
        let rating = |line: &str| {
            let value: Value = serde_json::from_str(line).expect("the feed writes JSON");
            let text = |name: &str| value[name].as_str().expect("it is a text").to_owned();
            let score = value["score"].as_f64().expect("it is a number");
            Sent { id: text("id"), agent: text("agent"), score, text: text("text") }
        };
        self.page("/sent").await.lines().map(rating).collect()
    }

    /// Returns how often `what` happened: `connects`, `drops`, `pongs`, `refused`, `sent`.
    ///
    /// # Panics
    ///
    /// When the feed does not answer, or does not count that.
    pub async fn count(&self, what: &str) -> u64 {
        let stats: Value = serde_json::from_str(&self.page("/stats").await).expect("it is JSON");
        stats[what].as_u64().unwrap_or_else(|| panic!("{what} is not in {stats}"))
    }
}
