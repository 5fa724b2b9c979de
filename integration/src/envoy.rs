//! A real Envoy in front of a service, asking Merit.

use std::{path::Path, time::Duration};

use tokio::sync::OnceCell;

use crate::{Folder, Process, eventually, installed::script, ports};

/// How long it may take to accept connections.
const START_DEADLINE: Duration = Duration::from_secs(60);

/// An Envoy with a listener of its own, as `deploy/envoy.yaml` has it.
#[derive(Debug)]
pub struct Envoy {
    process: Process,
    // After the process: fields drop in order.
    _folder: Folder,
    port: u16,
}

impl Envoy {
    /// Starts one in front of the service at `service`, which asks the Merit at `merit`, both loopback ports. `change` may alter
    /// its configuration.
    ///
    /// # Panics
    ///
    /// When `integration/python.sh` installs none, or it does not come up.
    pub async fn start(service: u16, merit: u16, change: impl FnOnce(String) -> String) -> Self {
        let (port, admin) = (ports::free(), ports::free());
        let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/envoy.yaml");
        let mut text = std::fs::read_to_string(shipped).expect("deploy/envoy.yaml can be read");
        for (from, to) in [(10_000, port), (9903, admin), (3000, service), (8084, merit)] {
            let (from, to) = (format!("port_value: {from}}}"), format!("port_value: {to}}}"));
            assert_eq!(text.matches(&from).count(), 1, "deploy/envoy.yaml: {from}");
            text = text.replace(&from, &to);
        }
        let folder = Folder::new("envoy");
        let file = folder.write("envoy.yaml", &change(text));
        let file = file.to_str().expect("the folder's name is text");
        let arguments =
            ["-c", file, "--use-dynamic-base-id", "--concurrency", "1", "-l", "warning"];
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        let mut process = Process::start("envoy", binary().await, &arguments, &[], folder.path());
        eventually("envoy accepts connections", START_DEADLINE, || {
            if let Some(status) = process.exited() {
                panic!("envoy ended with {status}: {}", process.output());
            }
            async move { tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok() }
        })
        .await;
        Self { process, _folder: folder, port }
    }

    /// Returns the URL of its listener.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Returns what it has written.
    #[must_use]
    pub fn output(&self) -> String {
        self.process.output()
    }
}

/// Returns the program; the first to ask may wait for it to be installed.
async fn binary() -> &'static str {
    static BINARY: OnceCell<String> = OnceCell::const_new();
    let find = || async {
        let python = script("python.sh", &["envoy"]).await;
        let folder = Path::new(&python).parent().expect("a program is in a folder");
        folder.join("envoy").to_str().expect("the folder's name is text").to_owned()
    };
    BINARY.get_or_init(find).await
}
