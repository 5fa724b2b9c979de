//! The configuration: defaults, then the file, then the environment; every fault at once.
//!
//! A value comes from the first that names it: environment (`MERIT__STORE__URL`), file, default.
//! Secrets never stand in it: `*_env` and `*_file` keys say where they are. A file that is a bucket in
//! the JSON form of a gateway (`{"bucket_name":…,"refill_rate":…,"capacity":…,"key_selector":…}`) is
//! a configuration too.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use figment::{
    Figment, Provider,
    providers::{Env, Format, Serialized, Toml},
    value::Value,
};
use serde::{Serialize, de::DeserializeOwned};
use tower_merit::{
    Bucket, JwtIdentity,
    bucket::Limits,
    identity::{IdentityConfigError, jwt::Algorithm},
};

use crate::{
    admin,
    bus::{BusConfig, duration},
    gateway, ingest, policy, tuner,
};

mod store;
mod tables;
mod validate;

pub use tables::{
    BucketConfig, Identity, Log, Ratings, Role, Sentinel, Store, StoreKind, StoreMode,
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
