//! The real `merit` binary under test, with a configuration of its own.

use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
    process::ExitStatus,
    time::{Duration, SystemTime},
};

use crate::{AUDIENCE, Folder, ISSUER, Process, SECRET, SECRET_ENV, client::Client, ports, until};

/// How long a process may take until every configured part is connected.
const READY_DEADLINE: Duration = Duration::from_secs(60);
/// How long a process may take to drain after SIGTERM.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// What builds the binary that the tests run.
const BUILD: &str = "cargo build --workspace --bins --tests --features merit-sidecar/full";

/// What a process does, as `--role` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Everything that is configured.
    All,
    /// Takes ratings.
    Ingest,
    /// Turns ratings into limits.
    Tuner,
    /// Guards the upstream.
    Gateway,
    /// Reads a feed and passes its ratings on.
    Feed,
    /// Answers proxies.
    Rls,
}

/// How ratings travel from ingest to tuner.
#[derive(Clone, Debug)]
pub enum Bus {
    /// Within the process.
    InProcess,
    /// Over streams of the Redis that the store is in, with leases of two seconds.
    Redis {
        /// What the names of its keys begin with.
        topic: String,
        /// Partitions.
        partitions: u16,
    },
    /// Over NATS JetStream, with leases of two seconds.
    Nats {
        /// URL of the server.
        url: String,
        /// What the names of its subjects begin with.
        topic: String,
        /// Partitions.
        partitions: u16,
    },
    /// Over Kafka.
    Kafka {
        /// Address of the broker.
        brokers: String,
        /// Topic and, with `-tuners` behind it, consumer group.
        topic: String,
        /// Partitions of the topic, when Merit creates it.
        partitions: u16,
    },
}

/// How tokens are verified.
#[derive(Clone, Debug)]
pub enum Identity {
    /// HS256 with [`SECRET`] from the environment.
    Secret,
    /// A public key in a file, for the named algorithm.
    PublicKey {
        /// `RS256`, `ES256` or `EdDSA`.
        algorithm: &'static str,
        /// PEM.
        file: PathBuf,
    },
    /// A key set behind a URL, fetched anew every second.
    KeySet {
        /// Its address.
        url: String,
    },
}

/// What a test configures; the rest is as shipped.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What the process does.
    pub role: Role,
    /// How tokens are verified.
    pub identity: Identity,
    /// URL of Redis.
    pub redis: String,
    /// The lines of `[store]` that say where Redis is, when `redis` does not.
    pub store: Option<String>,
    /// What an unreachable store makes of a request.
    pub on_outage: &'static str,
    /// How ratings travel.
    pub bus: Bus,
    /// Where the gateway forwards to; without it role `all` has no gateway.
    pub upstream: Option<String>,
    /// Whether the gateway takes ratings that the upstream accepts.
    pub tee_ratings: bool,
    /// Further tables of the configuration, such as `[[route]]`.
    pub tables: String,
    /// Further variables of the environment, such as `MERIT__TUNER__BATCH_MAX`.
    pub environment: Vec<(String, String)>,
    /// The program and arguments that the process is started through, such as `unshare -rm`; they must
    /// become it in the end. Nothing unless said.
    pub through: Vec<String>,
}

impl Settings {
    /// Returns settings for one process that does everything over `redis`, in-process bus.
    #[must_use]
    pub fn new(redis: &str) -> Self {
        Self {
            role: Role::All,
            identity: Identity::Secret,
            redis: redis.to_owned(),
            store: None,
            on_outage: "local",
            bus: Bus::InProcess,
            upstream: None,
            tee_ratings: false,
            tables: String::new(),
            environment: Vec::new(),
            through: Vec::new(),
        }
    }

    /// Returns these settings with ratings travelling over `topic` of a Kafka broker, whose
    /// consumer group is `<topic>-tuners`.
    #[must_use]
    pub fn kafka(mut self, brokers: &str, topic: &str) -> Self {
        self.bus =
            Bus::Kafka { brokers: brokers.to_owned(), topic: topic.to_owned(), partitions: 4 };
        self
    }

    /// Returns these settings for another role.
    #[must_use]
    pub fn role(mut self, role: Role) -> Self {
        self.role = role;
        self
    }

    /// Returns these settings with a gateway in front of `upstream`.
    #[must_use]
    pub fn upstream(mut self, upstream: &str) -> Self {
        self.upstream = Some(upstream.to_owned());
        self
    }

    fn toml(&self, ports: &Ports) -> String {
        let mut text = String::new();
        let mut line = |args: std::fmt::Arguments<'_>| {
            text.write_fmt(args).expect("writing to a String does not fail");
            text.push('\n');
        };
        line(format_args!("[identity]\nkey_selector = \"jwt.claims.agent_id\""));
        line(format_args!("issuer = \"{ISSUER}\"\naudience = \"{AUDIENCE}\""));
        match &self.identity {
            Identity::Secret => {
                line(format_args!("algorithms = [\"HS256\"]\nsecret_env = \"{SECRET_ENV}\""));
            }
            Identity::PublicKey { algorithm, file } => line(format_args!(
                "algorithms = [\"{algorithm}\"]\npublic_key_file = \"{}\"",
                file.display()
            )),
            Identity::KeySet { url } => {
                line(format_args!("jwks_url = \"{url}\"\njwks_refresh = \"1s\""));
            }
        }
        let url = format!("url = \"{}\"", self.redis);
        let store = self.store.as_ref().unwrap_or(&url);
        line(format_args!("\n[store]\nkind = \"redis\"\n{store}"));
        line(format_args!("on_outage = \"{}\"", self.on_outage));
        line(format_args!("\n[[bucket]]\nbucket_name = \"moltbook-agent-bucket\"\ndefault = true"));
        line(format_args!("refill_rate = 20\ncapacity = 40"));
        match &self.bus {
            Bus::InProcess => line(format_args!("\n[bus]\nkind = \"in-process\"")),
            Bus::Redis { topic, partitions } => line(format_args!(
                "\n[bus]\nkind = \"redis\"\ntopic = \"{topic}\"\n\
                 partitions = {partitions}\nlease = \"2s\""
            )),
            Bus::Nats { url, topic, partitions } => line(format_args!(
                "\n[bus]\nkind = \"nats\"\nurl = \"{url}\"\ntopic = \"{topic}\"\n\
                 partitions = {partitions}\nlease = \"2s\""
            )),
            Bus::Kafka { brokers, topic, partitions } => line(format_args!(
                "\n[bus]\nkind = \"kafka\"\nbrokers = \"{brokers}\"\ntopic = \"{topic}\"\n\
                 generation = 1\npartitions = {partitions}\ngroup = \"{topic}-tuners\""
            )),
        }
        line(format_args!("\n[policy]\nkind = \"additive\"\nalpha = 0.1\nr_min = 0.5\nr_max = 40"));
        if matches!(self.role, Role::All | Role::Ingest) {
            line(format_args!("\n[ingest]\nlisten = \"127.0.0.1:{}\"", ports.ingest));
            line(format_args!("grpc_listen = \"127.0.0.1:{}\"", ports.grpc));
        }
        if let (Some(upstream), Role::All | Role::Gateway) = (&self.upstream, self.role) {
            line(format_args!("\n[gateway]\nlisten = \"127.0.0.1:{}\"", ports.gateway));
            line(format_args!("upstream = \"{upstream}\""));
            if self.tee_ratings {
                line(format_args!("tee_ratings = \"/v1/rating\""));
            }
        }
        line(format_args!("\n[metrics]\nlisten = \"127.0.0.1:{}\"", ports.metrics));
        line(format_args!("\n{}", self.tables));
        text
    }
}

#[derive(Clone, Copy, Debug)]
struct Ports {
    gateway: u16,
    ingest: u16,
    grpc: u16,
    metrics: u16,
}

/// A running `merit run`.
#[derive(Debug)]
pub struct Merit {
    process: Option<Process>,
    // After the process: fields drop in order.
    folder: Folder,
    ports: Ports,
    settings: Settings,
}

impl Merit {
    /// Starts the binary and waits until `/readyz` says that every part is connected.
    ///
    /// # Panics
    ///
    /// When the binary is missing, ends, or is not ready in time.
    pub async fn start(settings: Settings) -> Self {
        let mut merit = Self::launch(settings);
        merit.ready().await;
        merit
    }

    /// Starts the binary and does not wait.
    ///
    /// # Panics
    ///
    /// When the binary is missing.
    #[must_use]
    pub fn launch(settings: Settings) -> Self {
        let ports = Ports {
            gateway: ports::free(),
            ingest: ports::free(),
            grpc: ports::free(),
            metrics: ports::free(),
        };
        let folder = Folder::new("merit");
        folder.write("merit.toml", &settings.toml(&ports));
        let mut merit = Self { process: None, folder, ports, settings };
        merit.spawn();
        merit
    }

    fn spawn(&mut self) {
        assert!(self.process.is_none(), "merit runs already");
        let role = match self.settings.role {
            Role::All => "all",
            Role::Ingest => "ingest",
            Role::Tuner => "tuner",
            Role::Gateway => "gateway",
            Role::Feed => "feed",
            Role::Rls => "rls",
        };
        let mut environment = vec![(SECRET_ENV.to_owned(), SECRET.to_owned())];
        environment.extend(self.settings.environment.iter().cloned());
        let binary = binary();
        let program = binary.to_str().expect("the target folder's name is text");
        let run = [program, "run", "--config", "merit.toml", "--role", role].map(str::to_owned);
        let command: Vec<String> = self.settings.through.iter().cloned().chain(run).collect();
        let (program, arguments) = command.split_first().expect("there is a program");
        let name = format!("merit-{role}");
        self.process =
            Some(Process::start(&name, program, arguments, &environment, self.folder.path()));
    }

    /// Waits until `/readyz` answers 200.
    ///
    /// # Panics
    ///
    /// When the process ends or is not ready in time.
    pub async fn ready(&mut self) {
        let url = format!("{}/readyz", self.metrics());
        let client = Client::new();
        let process = self.process.as_mut().expect("merit runs");
        until("merit is ready", READY_DEADLINE, || {
            if let Some(status) = process.exited() {
                panic!("merit ended with {status}: {}", process.output());
            }
            let (client, url) = (client.clone(), url.clone());
            async move { client.get(&url, None).await.ok().filter(|a| a.status == 200) }
        })
        .await;
    }

    /// Starts the binary again, on the same ports and configuration, and waits until it is ready.
    ///
    /// # Panics
    ///
    /// When it runs already or does not get ready.
    pub async fn restart(&mut self) {
        self.spawn();
        self.ready().await;
    }

    /// Kills the process with SIGKILL.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn kill9(&mut self) {
        self.process.take().expect("merit runs").kill9();
    }

    /// Sends SIGHUP: the process reads its configuration again.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn hangup(&mut self) {
        self.process.as_mut().expect("merit runs").signal("HUP");
    }

    /// Stops the process where it stands: it holds what it has and does nothing.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn freeze(&mut self) {
        self.process.as_mut().expect("merit runs").signal("STOP");
    }

    /// Lets a frozen process go on.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn thaw(&mut self) {
        self.process.as_mut().expect("merit runs").signal("CONT");
    }

    /// Sends SIGTERM and does not wait.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn ask_to_stop(&mut self) {
        self.process.as_mut().expect("merit runs").signal("TERM");
    }

    /// Waits until the process has ended by itself, with exit code 0.
    ///
    /// # Panics
    ///
    /// When it has not, or ended with another code.
    pub async fn stopped(&mut self) {
        let process = self.process.as_mut().expect("merit runs");
        let status = process.wait(STOP_DEADLINE).await;
        assert!(status.success(), "merit ended with {status}: {}", process.output());
        self.process = None;
    }

    /// Sends SIGTERM and waits for the end.
    ///
    /// # Panics
    ///
    /// When the process does not end in time, or with another exit code than 0.
    pub async fn terminate(&mut self) {
        self.ask_to_stop();
        self.stopped().await;
    }

    /// Waits for the end of a process that should not run on; returns its exit status and output.
    ///
    /// # Panics
    ///
    /// When it runs on past the deadline.
    pub async fn ended(&mut self, deadline: Duration) -> (ExitStatus, String) {
        let process = self.process.as_mut().expect("merit was started");
        let status = process.wait(deadline).await;
        (status, process.output())
    }

    /// Returns the processor time that the process has used.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn processor(&self) -> anyhow::Result<Duration> {
        self.process.as_ref().expect("merit runs").processor()
    }

    /// Returns the memory that is in use by the process, in bytes.
    ///
    /// # Errors
    ///
    /// When the system does not tell.
    ///
    /// # Panics
    ///
    /// When it is not running.
    pub fn memory(&self) -> anyhow::Result<u64> {
        self.process.as_ref().expect("merit runs").memory()
    }

    /// Returns the URL of ingest.
    #[must_use]
    pub fn ingest(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.ingest)
    }

    /// Returns the URL of ingest over gRPC.
    #[must_use]
    pub fn grpc(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.grpc)
    }

    /// Returns the folder that the process runs in.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Returns the address of the gateway.
    #[must_use]
    pub fn gateway_address(&self) -> String {
        format!("127.0.0.1:{}", self.ports.gateway)
    }

    /// Returns the URL of the gateway.
    #[must_use]
    pub fn gateway(&self) -> String {
        format!("http://{}", self.gateway_address())
    }

    /// Returns the URL of the metrics listener.
    #[must_use]
    pub fn metrics(&self) -> String {
        format!("http://127.0.0.1:{}", self.ports.metrics)
    }

    async fn metrics_page(&self) -> String {
        let url = format!("{}/metrics", self.metrics());
        Client::new().get(&url, None).await.expect("the metrics listener answers").text()
    }

    /// Returns the value of an unlabelled metric, or the sum over its labels.
    ///
    /// # Panics
    ///
    /// When the metrics listener does not answer.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let page = self.metrics_page().await;
        let values: Vec<f64> = page
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.rsplit_once(' '))
            .filter(|(series, _)| series.split('{').next() == Some(name))
            .filter_map(|(_, value)| value.parse().ok())
            .collect();
        (!values.is_empty()).then(|| values.iter().sum())
    }

    /// Returns the value of the series `series`, named as on the metrics page: `name{label="value"}`.
    ///
    /// # Panics
    ///
    /// When the metrics listener does not answer.
    pub async fn series(&self, series: &str) -> Option<f64> {
        let page = self.metrics_page().await;
        let mut lines = page.lines().filter_map(|line| line.rsplit_once(' '));
        lines.find(|(found, _)| *found == series).and_then(|(_, value)| value.parse().ok())
    }

    /// Returns what the process has printed since its first start.
    #[must_use]
    pub fn output(&self) -> String {
        self.process.as_ref().map(Process::output).unwrap_or_default()
    }
}

/// Returns the `merit` binary that was built beside this test, or that of the folder `MERIT_BIN`.
///
/// # Panics
///
/// When there is none, or it is older than the code it is built from.
#[must_use]
pub fn binary() -> PathBuf {
    program("merit", &["middleware/src", "sidecar/src"])
}

/// Returns the program `name` of the workspace that was built beside this test from `sources`, files and
/// folders named from the workspace's root.
///
/// With `MERIT_BIN` it is that of this folder, however old: whoever sets it says which code to measure.
///
/// # Panics
///
/// When there is none, or it is older than the code it is built from.
#[must_use]
pub fn program(name: &str, sources: &[&str]) -> PathBuf {
    if let Some(folder) = std::env::var_os("MERIT_BIN") {
        // Absolute, because the program starts in a folder of its own.
        let binary = std::path::absolute(Path::new(&folder).join(name));
        let binary = binary.expect("MERIT_BIN names a folder");
        assert!(binary.is_file(), "MERIT_BIN has no {}", binary.display());
        return binary;
    }
    let test = std::env::current_exe().expect("a running test has a path");
    // Tests are in target/<profile>/deps, examples in target/<profile>/examples, tools one level up,
    // beside it.
    let folder = test.parent().expect("a file is in a folder");
    let below = folder.ends_with("deps") || folder.ends_with("examples");
    let folder = if below { folder.parent().unwrap_or(folder) } else { folder };
    let binary = folder.join(name);
    let built = binary.metadata().and_then(|file| file.modified()).unwrap_or_else(|error| {
        panic!("{}: {error}; build it first: {BUILD}", binary.display());
    });
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let (changed, newest) = sources
        .iter()
        .filter_map(|source| newest(&root.join(source)))
        .max()
        .expect("the sources are there");
    assert!(built >= changed, "{name} is older than {}; run {BUILD}", newest.display());
    binary
}

fn newest(source: &Path) -> Option<(SystemTime, PathBuf)> {
    if source.is_file() {
        return Some((source.metadata().ok()?.modified().ok()?, source.to_owned()));
    }
    let entries = std::fs::read_dir(source).ok()?.flatten();
    // Modules of tests are no part of the binary.
    let part =
        |entry: &std::fs::DirEntry| !entry.file_name().to_string_lossy().starts_with("tests");
    entries.filter(part).filter_map(|entry| newest(&entry.path())).max()
}
