//! Programs that are not ours: where they are, and how they are started.

use std::{
    net::Ipv4Addr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use http::Method;
use merit_integration::{Folder, Process, client, ports};
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// How long a server may take until it listens.
const LISTEN_DEADLINE: Duration = Duration::from_secs(20);

/// The variable that names the folder of the Go programs; `integration/load` builds them.
const TOOLS: &str = "MERIT_TOOLS";

/// Returns the path of a program that `integration/load` built.
pub(crate) fn tool(name: &str) -> anyhow::Result<String> {
    let folder = std::env::var_os(TOOLS).with_context(|| format!("{TOOLS} is not set"))?;
    let path = PathBuf::from(folder).join(name);
    ensure!(path.exists(), "{} is missing: integration/load builds it", path.display());
    Ok(path.to_str().context("the path is not text")?.to_owned())
}

/// A process that listens on a port of its own, in a folder of its own.
pub(crate) struct Server {
    process: Process,
    pub(crate) port: u16,
    // After the process: fields drop in order.
    _folder: Folder,
}

impl Server {
    /// Starts another subcommand of this program, told its port as the last argument.
    pub(crate) async fn own(name: &str, arguments: &[&str]) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?;
        let program = program.to_str().context("the path is not text")?;
        let port = ports::free();
        let mut arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        arguments.push(port.to_string());
        Self::start(name, program, &arguments, &[], Folder::new(name), port).await
    }

    /// Starts a program that was told to listen on `port`.
    pub(crate) async fn start(
        name: &str,
        program: &str,
        arguments: &[String],
        environment: &[(String, String)],
        folder: Folder,
        port: u16,
    ) -> anyhow::Result<Self> {
        let process = Process::start(name, program, arguments, environment, folder.path());
        let mut server = Self { process, port, _folder: folder };
        let begun = Instant::now();
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.is_err() {
            let ended = server.process.exited();
            ensure!(
                ended.is_none() && begun.elapsed() < LISTEN_DEADLINE,
                "{name} does not listen: {}",
                server.process.output()
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        Ok(server)
    }

    /// Returns the processor time it has used, which what else runs on the machine hardly changes.
    pub(crate) fn processor(&self) -> anyhow::Result<Duration> {
        self.process.processor()
    }
}

/// A `toxiproxy` before Redis: what the network between node and server may do.
pub(crate) struct Toxiproxy {
    server: Server,
    client: client::Client,
    port: u16,
}

/// The one proxy's name.
const PROXY: &str = "redis";

impl Toxiproxy {
    /// Starts it before the server at `upstream`, `host:port`.
    pub(crate) async fn start(upstream: &str) -> anyhow::Result<Self> {
        let control = ports::free();
        let arguments = ["-host", "127.0.0.1", "-port", &control.to_string()];
        let arguments = arguments.map(ToString::to_string);
        let program = tool("toxiproxy-server")?;
        let folder = Folder::new("toxiproxy");
        let server = Server::start("toxiproxy", &program, &arguments, &[], folder, control).await?;
        let proxy = Self { server, client: client::Client::new(), port: ports::free() };
        let listen = format!("127.0.0.1:{}", proxy.port);
        proxy
            .post("/proxies", &json!({"name": PROXY, "listen": listen, "upstream": upstream}))
            .await?;
        Ok(proxy)
    }

    /// Returns the URL of Redis behind the proxy.
    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    /// Adds a toxic to what flows one way, `upstream` (to Redis) or `downstream`.
    pub(crate) async fn toxic(
        &self,
        kind: &str,
        way: &str,
        attributes: &Value,
    ) -> anyhow::Result<()> {
        let toxic = json!({"type": kind, "stream": way, "attributes": attributes});
        self.post(&format!("/proxies/{PROXY}/toxics"), &toxic).await
    }

    /// Lets answers take this much longer, in milliseconds.
    pub(crate) async fn latency(&self, mean: u32, jitter: u32) -> anyhow::Result<()> {
        let attributes = json!({"latency": mean, "jitter": jitter});
        self.toxic("latency", "downstream", &attributes).await
    }

    /// Takes all toxics away.
    pub(crate) async fn reset(&self) -> anyhow::Result<()> {
        self.post("/reset", &json!({})).await
    }

    async fn post(&self, path: &str, body: &Value) -> anyhow::Result<()> {
        let url = format!("http://127.0.0.1:{}{path}", self.server.port);
        let request = client::request(Method::POST, &url, None, &[], body.to_string());
        let answer = self.client.call(request).await?;
        ensure!(answer.status.is_success(), "{path}: {} {}", answer.status, answer.text());
        Ok(())
    }
}
