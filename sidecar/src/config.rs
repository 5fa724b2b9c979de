//! The configuration: defaults, then the file, then the environment; every fault at once.
//!
//! A value comes from the first that names it: environment (`MERIT__STORE__URL`), file, default.
//! Secrets never stand in it: `*_env` and `*_file` keys say where they are. A file that is a bucket in
//! the JSON form of a gateway (`{"bucket_name":…,"refill_rate":…,"capacity":…,"key_selector":…}`) is
//! a configuration too.

use std::{
    collections::BTreeSet,
    fs, io,
    num::NonZeroU32,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment, Provider,
    providers::{Env, Format, Serialized, Toml},
    value::Value,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tower_merit::{
    Bucket, JwtIdentity, Outage,
    bucket::{BucketName, Limits},
    identity::{IdentityConfigError, jwt::Algorithm},
};

use crate::{
    admin,
    bus::{BusConfig, duration},
    gateway, ingest, policy,
    rating::SubjectMode,
    telemetry::LogFormat,
    tuner,
};

/// What the environment variables that override the file begin with.
pub const ENV_PREFIX: &str = "MERIT__";

/// The longest configuration, bucket or secret file, in bytes.
const FILE_MAX: u64 = 1024 * 1024;

/// The whole configuration.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Config {
    /// Who is asking.
    pub identity: Identity,
    /// Where buckets live.
    pub store: Store,
    /// The buckets; exactly one is the default.
    pub bucket: Vec<BucketConfig>,
    /// What carries ratings from ingest to the tuner.
    pub bus: BusConfig,
    /// What ratings are about.
    pub ratings: Ratings,
    /// What turns ratings into limits.
    pub policy: policy::Config,
    /// How ratings are batched.
    pub tuner: tuner::Config,
    /// Where ratings come in.
    pub ingest: ingest::Config,
    /// The reverse proxy.
    pub gateway: gateway::Config,
    /// Health and metrics for machines.
    pub metrics: admin::MetricsConfig,
    /// The operator's listener.
    pub admin: admin::Config,
    /// What is written to standard error.
    pub log: Log,
}

/// `[identity]`: one for ingest and gateway.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Identity {
    /// Where the agent id stands: `jwt.claims.<path>`; the bucket's own selector when absent, and
    /// `jwt.claims.agent_id` when neither says.
    pub key_selector: Option<String>,
    /// The one algorithm that tokens are signed with: `HS256`, `RS256`, `ES256` or `EdDSA`.
    pub algorithms: Vec<String>,
    /// PEM file of the public key, for the asymmetric ones.
    pub public_key_file: Option<PathBuf>,
    /// Environment variable with the secret, at least 32 bytes, for HS256.
    pub secret_env: Option<String>,
    /// File with the secret; a line break at its end is no part of it.
    pub secret_file: Option<PathBuf>,
    /// What `iss` must be.
    pub issuer: Option<String>,
    /// What `aud` must be or contain.
    pub audience: Option<String>,
    /// Clock difference to the issuer that is forgiven; default 5s.
    pub leeway: Option<String>,
}

/// `[store]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `memory` (one process, nothing survives it) or `redis`; default memory.
    pub kind: StoreKind,
    /// Address of the Redis: `redis://…`, or `rediss://…` for TLS.
    #[serde(serialize_with = "without_password")]
    pub url: Option<String>,
    /// Environment variable with the address, when it carries a password.
    pub url_env: Option<String>,
    /// The longest a decision waits for Redis; default 20ms: longer than any healthy answer takes,
    /// short enough that callers hardly notice an outage.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// What happens to requests while Redis does not answer: `open`, `closed` or `local` (default).
    pub on_outage: Outage,
    /// How many gateways share the buckets, for `local`; default 1.
    pub expected_nodes: NonZeroU32,
    /// `exact`: one call per decision. `leased` is not in this version.
    pub mode: StoreMode,
}

/// Where buckets live.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoreKind {
    /// In this process.
    #[default]
    Memory,
    /// In Redis.
    Redis,
}

/// How decisions reach the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
pub enum StoreMode {
    /// One call per decision.
    #[default]
    Exact,
}

impl TryFrom<String> for StoreMode {
    type Error = String;

    fn try_from(name: String) -> Result<Self, String> {
        match name.as_str() {
            "exact" => Ok(Self::Exact),
            "leased" => Err("mode `leased` is not in this version yet: use `exact`".to_owned()),
            other => Err(format!("mode must be `exact`, is `{other}`")),
        }
    }
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Memory,
            url: None,
            url_env: None,
            timeout: Duration::from_millis(20),
            on_outage: Outage::Local,
            expected_nodes: NonZeroU32::MIN,
            mode: StoreMode::Exact,
        }
    }
}

/// `[[bucket]]`, or a bucket file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BucketConfig {
    /// What callers read in `RateLimit` fields: letters, digits, `_` and `-`.
    pub bucket_name: String,
    /// True for the bucket that ratings move; the only one is it anyway.
    #[serde(default)]
    pub default: bool,
    /// Tokens per second of an agent that has no limits of its own.
    pub refill_rate: f64,
    /// Tokens it holds at most: the largest burst.
    pub capacity: u64,
    /// Where the agent id stands, when `[identity]` does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_selector: Option<String>,
}

/// `[ratings]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ratings {
    /// Whose limits a rating moves that names no agent: nobody's (`agent`, default), or the item's
    /// (`item`), taking the item for the agent.
    pub subject: SubjectMode,
}

/// `[log]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `pretty` for people (default), `json` for machines.
    pub format: LogFormat,
    /// Which events, in the form of `RUST_LOG`; default `info`.
    pub filter: String,
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Pretty, filter: "info".to_owned() }
    }
}

/// Part of the system that a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Everything that is configured.
    All,
    /// Takes ratings in and puts them on the bus.
    Ingest,
    /// Takes ratings off the bus and sets limits.
    Tuner,
    /// Limits requests.
    Gateway,
    /// The WebSocket bridge; not in this version.
    Feed,
    /// Envoy's rate limit service; not in this version.
    Rls,
}

impl Role {
    /// Returns true when a process of this role takes ratings in.
    #[must_use]
    pub fn ingests(self) -> bool {
        matches!(self, Self::All | Self::Ingest)
    }

    /// Returns true when a process of this role sets limits.
    #[must_use]
    pub fn tunes(self) -> bool {
        matches!(self, Self::All | Self::Tuner)
    }

    /// Returns true when a process of this role limits requests.
    #[must_use]
    pub fn guards(self) -> bool {
        matches!(self, Self::All | Self::Gateway)
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Everything that is wrong, each with its full path.
    #[error("configuration has {} fault(s):\n  {}", .0.len(), .0.join("\n  "))]
    Faults(Vec<String>),
}

/// The tables of the file, and `bucket_files`.
const TABLES: [&str; 13] = [
    "identity",
    "store",
    "bucket",
    "bucket_files",
    "bus",
    "ratings",
    "policy",
    "tuner",
    "ingest",
    "gateway",
    "metrics",
    "admin",
    "log",
];

/// Tables that the contract names and this version does not have.
const LATER: [&str; 2] = ["route", "feed"];

impl Config {
    /// Reads the file at `path` and the environment, and checks everything for `role`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or with every fault at once.
    pub fn load(path: &Path, role: Role) -> Result<Self, ConfigError> {
        let text = read(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut faults = Vec::new();
        let base = if path.extension().is_some_and(|extension| extension == "json") {
            // A bucket file is valid configuration as it stands.
            match serde_json::from_str::<BucketConfig>(&text) {
                Ok(bucket) => Figment::from(Serialized::default("bucket", vec![bucket])),
                Err(error) => {
                    return Err(ConfigError::Faults(vec![format!(
                        "{}: not a bucket in JSON: {error}",
                        path.display()
                    )]));
                }
            }
        } else {
            Figment::from(Toml::string(&text))
        };
        let figment = base.merge(Env::prefixed(ENV_PREFIX).split("__"));
        let config = Self::read(&figment, folder, &mut faults);
        config.validate(role, &mut faults);
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
    }

    fn read(figment: &Figment, folder: &Path, faults: &mut Vec<String>) -> Self {
        match figment.data() {
            Err(error) => {
                faults.extend(error.into_iter().map(|error| format!("file: {}", error.kind)));
            }
            Ok(data) => {
                let named: BTreeSet<&String> =
                    data.values().flat_map(|table| table.keys()).collect();
                for name in named {
                    if LATER.contains(&name.as_str()) {
                        faults.push(format!("{name}: not in this version yet: remove it"));
                    } else if !TABLES.contains(&name.as_str()) {
                        let known = TABLES.join(", ");
                        faults.push(format!("{name}: unknown table; there are {known}"));
                    }
                }
            }
        }
        let mut bucket: Vec<BucketConfig> = table(figment, "bucket", faults);
        let files: Vec<String> = table(figment, "bucket_files", faults);
        for pattern in &files {
            bucket.extend(bucket_files(folder, pattern, faults));
        }
        if let [only] = &mut bucket[..] {
            only.default = true;
        }
        Self {
            identity: table(figment, "identity", faults),
            store: table(figment, "store", faults),
            bucket,
            bus: table(figment, "bus", faults),
            ratings: table(figment, "ratings", faults),
            policy: table(figment, "policy", faults),
            tuner: table(figment, "tuner", faults),
            ingest: table(figment, "ingest", faults),
            gateway: table(figment, "gateway", faults),
            metrics: table(figment, "metrics", faults),
            admin: table(figment, "admin", faults),
            log: table(figment, "log", faults),
        }
    }

    fn validate(&self, role: Role, faults: &mut Vec<String>) {
        match role {
            Role::Feed | Role::Rls => {
                faults.push(format!("role: `{role:?}` is not in this version yet").to_lowercase());
            }
            _ => {}
        }
        self.validate_buckets(faults);
        self.validate_store(role, faults);
        self.bus.validate("bus", faults);
        self.policy.validate("policy", faults);
        self.tuner.validate("tuner", faults);
        self.ingest.validate("ingest", faults);
        self.gateway.validate("gateway", faults);
        self.metrics.validate("metrics", faults);
        self.admin.validate("admin", faults);
        let listens = |on: bool, listen: bool| on && listen;
        if listens(role.ingests(), self.ingest.listen.is_some())
            || listens(role.guards(), self.gateway.listen.is_some())
        {
            self.validate_identity(faults);
        }
        if role == Role::Ingest && self.ingest.listen.is_none() {
            faults.push("ingest.listen: must be set for role `ingest`".to_owned());
        }
        if role == Role::Gateway && self.gateway.listen.is_none() {
            faults.push("gateway.listen: must be set for role `gateway`".to_owned());
        }
        if role != Role::All && matches!(self.bus, BusConfig::InProcess(_)) && role != Role::Gateway
        {
            faults.push(format!(
                "bus.kind: `in-process` carries nothing between processes: role `{}` needs another bus",
                format!("{role:?}").to_lowercase()
            ));
        }
    }

    fn validate_buckets(&self, faults: &mut Vec<String>) {
        let mut names = BTreeSet::new();
        for (index, bucket) in self.bucket.iter().enumerate() {
            let path = format!("bucket[{index}]");
            if let Err(error) = BucketName::new(&bucket.bucket_name) {
                faults.push(format!("{path}.bucket_name: {error}"));
            }
            if !names.insert(&bucket.bucket_name) {
                faults.push(format!("{path}.bucket_name: {:?} stands twice", bucket.bucket_name));
            }
            if let Err(error) = Limits::per_second(bucket.refill_rate, bucket.capacity) {
                faults.push(format!("{path}: {error}"));
            } else if bucket.refill_rate < 0.000_001 || bucket.capacity == 0 {
                faults.push(format!(
                    "{path}: would let nothing pass: refill_rate and capacity must be above 0"
                ));
            }
        }
        match self.bucket.iter().filter(|bucket| bucket.default).count() {
            _ if self.bucket.is_empty() => {
                faults.push("bucket: at least one [[bucket]] or bucket_files is needed".to_owned());
            }
            1 => {}
            count => {
                faults
                    .push(format!("bucket: exactly one must have `default = true`, {count} have"));
            }
        }
        if self.bucket.len() > 1 {
            faults.push(
                "bucket: this version charges the default bucket only: remove the others"
                    .to_owned(),
            );
        }
        let selectors: BTreeSet<&str> = self.selectors().collect();
        if selectors.len() > 1 {
            let all: Vec<&str> = selectors.into_iter().collect();
            faults.push(format!(
                "bucket.key_selector: all buckets share one selector, found `{}`",
                all.join("`, `")
            ));
        }
    }

    fn selectors(&self) -> impl Iterator<Item = &str> {
        let own = self.identity.key_selector.as_deref();
        let buckets = self.bucket.iter().filter_map(|bucket| bucket.key_selector.as_deref());
        // `[identity]` decides when it says; buckets among themselves must agree either way.
        own.into_iter().take(1).chain(buckets.filter(move |_| own.is_none()))
    }

    /// Returns the path of the claim that names the agent.
    ///
    /// # Errors
    ///
    /// When the selector is of a kind that this version does not have.
    pub fn claim(&self) -> Result<&str, String> {
        let selector = self.selectors().next().unwrap_or("jwt.claims.agent_id");
        selector.strip_prefix("jwt.claims.").ok_or_else(|| {
            format!("identity.key_selector: `{selector}` is not in this version: use `jwt.claims.<path>`")
        })
    }

    fn validate_store(&self, role: Role, faults: &mut Vec<String>) {
        let store = &self.store;
        match store.kind {
            StoreKind::Redis => {
                if store.url.is_some() == store.url_env.is_some() {
                    faults.push("store.url: set it or store.url_env, one of them".to_owned());
                }
                if let Err(fault) = self.redis_url() {
                    faults.push(fault);
                }
            }
            StoreKind::Memory if role != Role::All => faults.push(format!(
                "store.kind: `memory` is shared by nobody: role `{}` needs `redis`",
                format!("{role:?}").to_lowercase()
            )),
            StoreKind::Memory => {}
        }
        let (least, most) = (Duration::from_millis(1), Duration::from_secs(10));
        if !(least..=most).contains(&store.timeout) {
            let found = duration::format(store.timeout);
            faults.push(format!("store.timeout: must be 1ms to 10s, is {found}"));
        }
    }

    fn validate_identity(&self, faults: &mut Vec<String>) {
        for (name, value) in
            [("issuer", &self.identity.issuer), ("audience", &self.identity.audience)]
        {
            if value.as_deref().is_none_or(str::is_empty) {
                faults.push(format!(
                    "identity.{name}: must be set: tokens for others must not pass here"
                ));
            }
        }
        if let Err(fault) = self.identity() {
            faults.push(fault);
        }
    }

    /// Returns how tokens are verified, with the key read from where the configuration says.
    ///
    /// # Errors
    ///
    /// With the fault and its path.
    pub fn identity(&self) -> Result<JwtIdentity, String> {
        let Identity { issuer, audience, leeway, .. } = &self.identity;
        let mut identity = match self.identity.algorithm()? {
            Algorithm::HS256 => JwtIdentity::hs256(self.identity.secret()?),
            algorithm => {
                let path = self.identity.public_key_file.as_deref();
                let path =
                    path.ok_or("identity.public_key_file: must be set for this algorithm")?;
                let pem = read(path).map_err(|error| {
                    format!("identity.public_key_file: {error}: {}", cause(&error))
                })?;
                JwtIdentity::public_key(algorithm, pem)
            }
        };
        identity = identity.claim(self.claim()?);
        if let Some(issuer) = issuer {
            identity = identity.issuer(issuer);
        }
        if let Some(audience) = audience {
            identity = identity.audience(audience);
        }
        if let Some(text) = leeway {
            let leeway = duration::parse(text)
                .filter(|leeway| *leeway <= Duration::from_secs(300))
                .ok_or(format!("identity.leeway: must be 0s to 5m, is {text:?}"))?;
            identity = identity.leeway(leeway);
        }
        let fault = |error: IdentityConfigError| format!("identity: {error}");
        identity.clone().build().map_err(fault).map(|_| identity)
    }

    /// Returns the default bucket, as a layer takes it.
    #[must_use]
    pub fn default_bucket(&self) -> Bucket {
        let bucket = self.bucket.iter().find(|bucket| bucket.default).expect("validated");
        Bucket::per_second(bucket.refill_rate).capacity(bucket.capacity).named(&bucket.bucket_name)
    }

    /// Returns the limits of agents that have none of their own.
    #[must_use]
    pub fn default_limits(&self) -> Limits {
        let bucket = self.bucket.iter().find(|bucket| bucket.default).expect("validated");
        Limits::per_second(bucket.refill_rate, bucket.capacity).expect("validated")
    }

    /// Returns the address of Redis.
    ///
    /// # Errors
    ///
    /// When the variable that holds it is not set.
    pub fn redis_url(&self) -> Result<String, String> {
        match (&self.store.url, &self.store.url_env) {
            (Some(url), _) => Ok(url.clone()),
            (None, Some(name)) => std::env::var(name)
                .map_err(|_| format!("store.url_env: environment variable {name} is not set")),
            (None, None) => Ok("redis://127.0.0.1:6379".to_owned()),
        }
    }

    /// Returns what is legal and odd.
    #[must_use]
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let mut warn = |on: bool, text: &str| {
            if on {
                warnings.push(text.to_owned());
            }
        };
        warn(
            self.store.kind == StoreKind::Memory,
            "store.kind: `memory`: limits and levels are lost when the process ends",
        );
        warn(
            matches!(self.bus, BusConfig::InProcess(_)),
            "bus.kind: `in-process`: ratings on their way are lost when the process ends (at most once)",
        );
        warn(
            self.store.on_outage == Outage::Open,
            "store.on_outage: `open`: nobody is limited while Redis does not answer",
        );
        let limits = self.default_limits();
        let start = limits.refill().tokens();
        warn(
            !(self.policy.r_min..=self.policy.r_max).contains(&start),
            "policy: the default bucket's refill_rate lies outside [r_min, r_max]: an agent jumps there with its first rating",
        );
        warn(
            self.metrics.listen.is_none(),
            "metrics.listen: not set: nobody can see how it is doing",
        );
        warn(
            self.ingest.listen.is_none() && self.gateway.tee_ratings.is_none(),
            "ingest.listen: not set, nor gateway.tee_ratings: no rating comes in here",
        );
        warnings
    }
}

impl Identity {
    fn algorithm(&self) -> Result<Algorithm, String> {
        const KNOWN: &str = "`HS256`, `RS256`, `ES256` or `EdDSA`";
        match &self.algorithms[..] {
            [one] => match one.as_str() {
                "HS256" => Ok(Algorithm::HS256),
                "RS256" => Ok(Algorithm::RS256),
                "ES256" => Ok(Algorithm::ES256),
                "EdDSA" => Ok(Algorithm::EdDSA),
                other => Err(format!("identity.algorithms: must be one of {KNOWN}, is {other:?}")),
            },
            list => {
                Err(format!("identity.algorithms: must name one of {KNOWN}, names {}", list.len()))
            }
        }
    }

    /// Returns the HS256 secret.
    ///
    /// # Errors
    ///
    /// When it is not where the configuration says.
    pub fn secret(&self) -> Result<Vec<u8>, String> {
        match (&self.secret_env, &self.secret_file) {
            (Some(name), None) => std::env::var(name).map(String::into_bytes).map_err(|_| {
                format!("identity.secret_env: environment variable {name} is not set")
            }),
            (None, Some(path)) => match read(path) {
                Ok(text) => Ok(text.trim_end_matches(['\r', '\n']).as_bytes().to_vec()),
                Err(error) => Err(format!("identity.secret_file: {error}: {}", cause(&error))),
            },
            _ => {
                Err("identity.secret_env: set it or secret_file for HS256, one of them".to_owned())
            }
        }
    }

    /// Returns the secret to sign development tokens with.
    ///
    /// # Errors
    ///
    /// When tokens are not signed with a secret, or it is not there.
    pub fn signing_secret(&self) -> Result<Vec<u8>, String> {
        match self.algorithm()? {
            Algorithm::HS256 => self.secret(),
            other => Err(format!(
                "identity.algorithms: tokens are signed with {other:?}, whose private key is not here; only HS256 tokens can be made"
            )),
        }
    }
}

fn cause(error: &ConfigError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

/// Reads one table. Each key that cannot be read becomes a fault and is left out, so that the next
/// faulty one is found as well; what cannot be read at all is replaced by the default.
fn table<T: DeserializeOwned + Default>(
    figment: &Figment,
    name: &str,
    faults: &mut Vec<String>,
) -> T {
    let Ok(mut found) = figment.find_value(name) else { return T::default() };
    loop {
        let error = match found.deserialize::<T>() {
            Ok(table) => return table,
            Err(error) => error,
        };
        let path = [&[name.to_owned()], &error.path[..]].concat().join(".");
        faults.push(format!("{path}: {}", error.kind));
        let left_out = match (&mut found, error.path.first()) {
            (Value::Dict(_, keys), Some(key)) => keys.remove(key),
            _ => None,
        };
        if left_out.is_none() {
            return T::default();
        }
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::File { path: path.to_owned(), source };
    let size = fs::metadata(path).map_err(failed)?.len();
    if size > FILE_MAX {
        let kind = io::ErrorKind::FileTooLarge;
        return Err(failed(io::Error::new(kind, format!("larger than {FILE_MAX} bytes"))));
    }
    fs::read_to_string(path).map_err(failed)
}

/// Reads the bucket files that `pattern` names: a path, or a folder with one `*` in the file's name.
fn bucket_files(folder: &Path, pattern: &str, faults: &mut Vec<String>) -> Vec<BucketConfig> {
    let mut fault = |problem: String| faults.push(format!("bucket_files: {pattern}: {problem}"));
    let path = folder.join(pattern);
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
    let mut paths = vec![path.clone()];
    if let Some((before, after)) = name.split_once('*') {
        let parent = path.parent().unwrap_or(Path::new("."));
        let entries = match fs::read_dir(parent) {
            Ok(entries) => entries,
            Err(error) => {
                fault(error.to_string());
                return Vec::new();
            }
        };
        let matches = |path: &PathBuf| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| {
                name.len() >= before.len() + after.len()
                    && name.starts_with(before)
                    && name.ends_with(after)
            })
        };
        paths = entries.flatten().map(|entry| entry.path()).filter(matches).collect();
        paths.sort();
        if paths.is_empty() {
            fault("matches no file".to_owned());
        }
    }
    let mut buckets = Vec::new();
    for path in paths {
        let bucket = read(&path)
            .map_err(|error| format!("{error}: {}", cause(&error)))
            .and_then(|text| serde_json::from_str(&text).map_err(|error| error.to_string()));
        match bucket {
            Ok(bucket) => buckets.push(bucket),
            Err(problem) => fault(problem),
        }
    }
    buckets
}

fn without_password<S: serde::Serializer>(
    url: &Option<String>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    match url {
        Some(url) => {
            let shown = match (url.split_once("://"), url.rsplit_once('@')) {
                (Some((scheme, _)), Some((_, host))) => format!("{scheme}://***@{host}"),
                _ => url.clone(),
            };
            serializer.serialize_some(&shown)
        }
        None => serializer.serialize_none(),
    }
}
