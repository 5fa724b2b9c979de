//! A real single-node Kafka broker, started by `kafka-local.sh`.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
    time::Duration,
};

use tokio::sync::OnceCell;

use crate::{
    Folder, ports,
    process::{self, print_tail},
};

/// Waits until the process is gone, or left to whoever has to reap it.
const KILL_AND_WAIT: &str = "kill -9 \"$1\" || exit 1
while grep -qs '^State:[[:space:]]*[^ZX]' /proc/\"$1\"/status; do sleep 0.02; done";

/// A broker on a port and in a folder of its own.
#[derive(Debug)]
pub struct Kafka {
    folder: Folder,
    port: u16,
    watchdog: Child,
}

impl Kafka {
    /// Starts a broker and waits until it serves.
    ///
    /// # Panics
    ///
    /// When Java or the jars are missing (`integration/kafka-local.sh jars`), or the broker does
    /// not come up.
    pub async fn start() -> Self {
        let folder = Folder::new("kafka");
        let watchdog = watch(folder.path()).expect("sh is there");
        let mut kafka = Self { folder, port: ports::free_run(2), watchdog };
        kafka.restart().await;
        kafka
    }

    /// Returns the broker that all tests of one binary share: it is started by the first that
    /// asks, and killed when the binary ends. Tests on it use topics and groups of their own.
    pub async fn shared() -> Arc<Self> {
        static SHARED: OnceCell<Arc<Kafka>> = OnceCell::const_new();
        SHARED.get_or_init(|| async { Arc::new(Self::start().await) }).await.clone()
    }

    /// Starts the broker again after [`Kafka::kill9`], on the same port and folder.
    ///
    /// # Panics
    ///
    /// When it does not come up.
    pub async fn restart(&mut self) {
        let (folder, port) = (self.folder.path().to_owned(), self.port.to_string());
        let started = tokio::task::spawn_blocking(move || {
            script(&["start".as_ref(), folder.as_os_str(), port.as_ref()])
        })
        .await
        .expect("the script does not panic");
        if let Err(error) = started {
            print_tail("kafka", &self.output());
            panic!("kafka did not start: {error}");
        }
    }

    /// Returns the broker's address.
    #[must_use]
    pub fn brokers(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Kills the broker with SIGKILL.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn kill9(&mut self) {
        let pid = self.id();
        let killed = Command::new("sh")
            .args(["-c", KILL_AND_WAIT, "kill", &pid])
            .status()
            .expect("sh is there");
        assert!(killed.success(), "the broker {pid} does not run");
        let _ = std::fs::remove_file(self.folder.path().join("kafka.pid"));
    }

    fn id(&self) -> String {
        let id = std::fs::read_to_string(self.folder.path().join("kafka.pid"))
            .expect("a started broker left its process id");
        id.trim().to_owned()
    }

    /// Returns the processor time that the broker has used since its start.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    ///
    /// # Panics
    ///
    /// When it was killed.
    pub fn processor(&self) -> anyhow::Result<Duration> {
        process::processor(self.id().parse()?)
    }

    /// Returns what the broker has printed since its last start.
    #[must_use]
    pub fn output(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("kafka.log")).unwrap_or_default()
    }
}

impl Drop for Kafka {
    fn drop(&mut self) {
        if std::thread::panicking() {
            print_tail("kafka", &self.output());
        }
        // The end of its input is the watchdog's order to kill the broker; then it ends itself.
        drop(self.watchdog.stdin.take());
        let _ = self.watchdog.wait();
    }
}

/// Starts a shell that kills the broker of `folder` once the test binary is gone: the broker is
/// not our child (the script's is), so no parent-death signal reaches it.
fn watch(folder: &Path) -> io::Result<Child> {
    use std::os::unix::process::CommandExt as _;
    Command::new("sh")
        .args([
            "-c",
            "cat >/dev/null; test -e \"$1/kafka.pid\" && kill -9 \"$(cat \"$1/kafka.pid\")\" 2>/dev/null; rm -rf \"$1\"",
            "watchdog",
        ])
        .arg(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        // A group of its own: Ctrl-C in the terminal reaches the test binary, not its watchdog.
        .process_group(0)
        .spawn()
}

fn script(arguments: &[&std::ffi::OsStr]) -> io::Result<()> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("kafka-local.sh");
    let output = Command::new(path).args(arguments).stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}
