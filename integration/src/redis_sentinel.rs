//! A real master with a replica, and three Redis Sentinels that watch over them.

use std::{collections::HashMap, time::Duration};

use crate::{Folder, Persistence, Process, Redis, eventually, ports, redis_cluster::in_step};

/// What the sentinels call the master.
const MASTER: &str = "mymaster";

/// How long the sentinels may take to find each other: they say hello every two seconds.
const FORMED: Duration = Duration::from_secs(30);

const SENTINELS: usize = 3;

/// A master, its replica, and their sentinels.
#[derive(Debug)]
pub struct RedisSentinel {
    /// The two servers; the first is the master at the start.
    pub servers: [Redis; 2],
    sentinels: Vec<Sentinel>,
}

#[derive(Debug)]
struct Sentinel {
    process: Process,
    port: u16,
    // After the process: fields drop in order, and a sentinel writes into its folder.
    _folder: Folder,
}

impl RedisSentinel {
    /// Starts everything, and waits until the sentinels could agree on a failover.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub async fn start() -> Self {
        let options = ["--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1"];
        let (master, replica) = tokio::join!(
            Redis::start_with(Persistence::SnapshotOnDemand, &options),
            Redis::start_with(Persistence::SnapshotOnDemand, &options),
        );
        let port = master.port().to_string();
        let _: String = replica.ask(&["REPLICAOF", "127.0.0.1", &port]).await;
        in_step(&replica).await;
        let sentinels = (0..SENTINELS).map(|_| Sentinel::start(master.port())).collect();
        let mut all = Self { servers: [master, replica], sentinels };
        all.formed().await;
        all
    }

    /// Waits until every sentinel knows the others and both servers.
    async fn formed(&mut self) {
        for sentinel in &mut self.sentinels {
            let process = &mut sentinel.process;
            let url = format!("redis://127.0.0.1:{}", sentinel.port);
            eventually("the sentinels know each other", FORMED, || {
                if let Some(status) = process.exited() {
                    panic!("a sentinel ended with {status}: {}", process.output());
                }
                let url = url.clone();
                async move {
                    let Some(state) = state(&url).await else { return false };
                    let is = |name: &str, value: &str| state.get(name).is_some_and(|v| v == value);
                    is("num-other-sentinels", "2") && is("num-slaves", "1") && is("flags", "master")
                }
            })
            .await;
        }
    }

    /// Returns the addresses of the sentinels.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.sentinels
            .iter()
            .map(|sentinel| format!("redis://127.0.0.1:{}", sentinel.port))
            .collect()
    }

    /// Kills one sentinel.
    pub fn kill_sentinel(&mut self, index: usize) {
        self.sentinels[index].process.kill9();
    }

    /// Freezes one sentinel; a frozen one answers nobody, and learns nothing.
    pub fn freeze_sentinel(&mut self, index: usize) {
        self.sentinels[index].process.signal("STOP");
    }

    /// Starts one sentinel more, which hears nothing of the others when the first server is dead: it names that for
    /// ever. It comes last.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub async fn add_cut_off(&mut self) {
        let mut sentinel = Sentinel::start(self.servers[0].port());
        let url = format!("redis://127.0.0.1:{}", sentinel.port);
        eventually("the sentinel answers", FORMED, || {
            if let Some(status) = sentinel.process.exited() {
                panic!("a sentinel ended with {status}: {}", sentinel.process.output());
            }
            let url = url.clone();
            async move { state(&url).await.is_some() }
        })
        .await;
        self.sentinels.push(sentinel);
    }

    /// Orders a failover though nothing failed.
    ///
    /// # Panics
    ///
    /// When the first sentinel refuses.
    pub async fn order_failover(&self) {
        let mut link = redis::Client::open(self.urls()[0].clone())
            .expect("the URL is well formed")
            .get_multiplexed_async_connection()
            .await
            .expect("the sentinel answers");
        let mut command = redis::cmd("SENTINEL");
        command.arg("FAILOVER").arg(MASTER);
        command.exec_async(&mut link).await.expect("the sentinel obeys");
    }
}

impl Sentinel {
    fn start(master: u16) -> Self {
        let (folder, port) = (Folder::new("sentinel"), ports::free());
        let config = format!(
            "port {port}\nbind 127.0.0.1\ndir {}\nsentinel monitor {MASTER} 127.0.0.1 {master} 2\n\
             sentinel down-after-milliseconds {MASTER} 500\nsentinel failover-timeout {MASTER} 1000\n",
            folder.path().display()
        );
        let config = folder.write("sentinel.conf", &config);
        let config = config.to_str().expect("the folder's name is text").to_owned();
        let arguments = [config, "--sentinel".to_owned()];
        let process = Process::start("sentinel", "redis-server", &arguments, &[], folder.path());
        Self { process, port, _folder: folder }
    }
}

async fn state(url: &str) -> Option<HashMap<String, String>> {
    let client = redis::Client::open(url).ok()?;
    let mut link = client.get_multiplexed_async_connection().await.ok()?;
    let mut command = redis::cmd("SENTINEL");
    command.arg("MASTER").arg(MASTER);
    command.query_async(&mut link).await.ok()
}
