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
    sync::Arc,
};

use figment::{
    Figment, Provider,
    providers::{Env, Format, Serialized, Toml},
};
use serde::Serialize;
use tower_merit::{
    ReceiptKeys,
    bucket::{BucketName, Limits},
    store::BucketRule,
};

use crate::{
    admin, bus::BusConfig, gateway, ingest, personalize, personalize::model, policy, rls, trace,
    tuner,
};

mod document;
mod fault;
mod identity;
mod routes;
mod store;
mod tables;
mod validate;

pub use crate::secret::Address;
pub use document::DocumentError;
pub use identity::{Agents, Identity, Learning};
pub use routes::{CostHeader, RouteConfig};
pub use tables::{BucketConfig, Log, Ratings, Role, Sentinel, Store, StoreKind, StoreMode};

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
    /// Requests that are charged otherwise than by the default bucket alone.
    pub route: Vec<RouteConfig>,
    /// What carries ratings from ingest to the tuner.
    pub bus: BusConfig,
    /// What ratings are about.
    pub ratings: Ratings,
    /// What turns ratings into limits.
    pub policy: policy::Config,
    /// How ratings are batched.
    pub tuner: tuner::Config,
    /// What each user would give each item.
    pub personalize: personalize::Config,
    /// Where ratings come in.
    pub ingest: ingest::Config,
    /// The WebSocket feed that is read; none unless named.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feed: Option<ingest::feed::Config>,
    /// The reverse proxy.
    pub gateway: gateway::Config,
    /// The rate limit service for proxies.
    pub rls: rls::Config,
    /// Health and metrics for machines.
    pub metrics: admin::MetricsConfig,
    /// The operator's listener.
    pub admin: admin::Config,
    /// What is written to standard error.
    pub log: Log,
    /// Which requests are traced, and where their spans go.
    pub trace: trace::Config,
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
const TABLES: [&str; 18] = [
    "identity",
    "store",
    "bucket",
    "bucket_files",
    "route",
    "bus",
    "ratings",
    "policy",
    "tuner",
    "personalize",
    "ingest",
    "feed",
    "gateway",
    "rls",
    "metrics",
    "admin",
    "log",
    "trace",
];

impl Config {
    /// Reads the file at `path` and the environment, and checks everything for `role`.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or with every fault at once.
    pub fn load(path: &Path, role: Role) -> Result<Self, ConfigError> {
        let (config, mut faults) = Self::load_unchecked(path)?;
        config.validate(role, &mut faults);
        if faults.is_empty() { Ok(config) } else { Err(ConfigError::Faults(faults)) }
    }

    /// Reads what a replay needs of the file at `path` and the environment: the policy, how
    /// personalised ratings learn, and the limits of agents that nobody rated yet. Secrets and addresses of the rest are not asked for.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or with every fault of these at once.
    pub fn load_policy(
        path: &Path,
    ) -> Result<(policy::Config, model::Config, Limits), ConfigError> {
        let (config, mut faults) = Self::load_unchecked(path)?;
        config.validate_buckets(&mut faults);
        config.policy.validate("policy", &mut faults);
        config.personalize.model.validate("personalize.model", &mut faults);
        if faults.is_empty() {
            let limits = config.default_limits();
            Ok((config.policy, config.personalize.model, limits))
        } else {
            Err(ConfigError::Faults(faults))
        }
    }

    /// Reads where a process with the file at `path` and this environment answers for itself: its
    /// metrics and its admin listener. Other tables and secrets are not looked at.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, or with every fault of these two at once.
    pub fn load_listeners(
        path: &Path,
    ) -> Result<(admin::MetricsConfig, admin::Config), ConfigError> {
        let (config, mut faults) = Self::load_unchecked(path)?;
        faults.retain(|fault| fault.starts_with("metrics") || fault.starts_with("admin"));
        match faults.is_empty() {
            true => Ok((config.metrics, config.admin)),
            false => Err(ConfigError::Faults(faults)),
        }
    }

    fn load_unchecked(path: &Path) -> Result<(Self, Vec<String>), ConfigError> {
        let text = read(path)?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let mut faults = Vec::new();
        let base = if path.extension().is_some_and(|extension| extension == "json") {
            // A bucket file is valid configuration as it stands.
            match fault::json::<BucketConfig>(&text) {
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
        if let Err(error) = figment.data() {
            let faults = error.into_iter().map(|error| fault::of_file(&error.kind));
            return Err(ConfigError::Faults(faults.collect()));
        }
        let config = Self::read(&figment, folder, &mut faults);
        Ok((config, faults))
    }

    fn read(figment: &Figment, folder: &Path, faults: &mut Vec<String>) -> Self {
        let data = figment.data().unwrap_or_default();
        let named: BTreeSet<&String> = data.values().flat_map(|table| table.keys()).collect();
        for name in named {
            if !TABLES.contains(&name.as_str()) {
                let known = TABLES.join(", ");
                faults.push(format!("{name}: unknown table; there are {known}"));
            }
        }
        let mut bucket = match figment.find_value("bucket") {
            Ok(found) => BucketConfig::list(found, faults),
            Err(_) => Vec::new(),
        };
        let files: Vec<String> = fault::list(figment, "bucket_files", faults);
        for pattern in &files {
            bucket.extend(bucket_files(folder, pattern, faults));
        }
        if let [only] = &mut bucket[..] {
            only.default = true;
        }
        let mut policy: policy::Config = fault::table(figment, "policy", faults);
        policy.fill_in(|key| figment.contains(&format!("policy.{key}")));
        let store: Store = fault::table(figment, "store", faults);
        let mut bus = fault::table(figment, "bus", faults);
        store.lend_to(&mut bus);
        Self {
            identity: fault::table(figment, "identity", faults),
            store,
            bucket,
            route: match figment.find_value("route") {
                Ok(found) => RouteConfig::list(found, faults),
                Err(_) => Vec::new(),
            },
            bus,
            ratings: fault::table(figment, "ratings", faults),
            policy,
            tuner: fault::table(figment, "tuner", faults),
            personalize: fault::table(figment, "personalize", faults),
            ingest: fault::table(figment, "ingest", faults),
            feed: figment.contains("feed").then(|| fault::table(figment, "feed", faults)),
            gateway: fault::table(figment, "gateway", faults),
            rls: fault::table(figment, "rls", faults),
            metrics: fault::table(figment, "metrics", faults),
            admin: fault::table(figment, "admin", faults),
            log: fault::table(figment, "log", faults),
            trace: fault::table(figment, "trace", faults),
        }
    }

    /// Returns the limits of agents that have none of their own.
    #[must_use]
    pub fn default_limits(&self) -> Limits {
        let bucket = self.bucket.iter().find(|bucket| bucket.default).expect("validated");
        Limits::per_second(bucket.refill_rate, bucket.capacity).expect("validated")
    }

    /// Returns the buckets, the default one first.
    #[must_use]
    pub fn bucket_rules(&self) -> Arc<[BucketRule]> {
        let rule = |bucket: &BucketConfig| BucketRule {
            name: BucketName::new(&bucket.bucket_name).expect("validated"),
            is_default: bucket.default,
            limits: Limits::per_second(bucket.refill_rate, bucket.capacity).expect("validated"),
            shadow: bucket.shadow,
        };
        let (default, named): (Vec<_>, Vec<_>) =
            self.bucket.iter().map(rule).partition(|rule| rule.is_default);
        default.into_iter().chain(named).collect()
    }

    /// Returns what tuners go by: the policy, the limits that agents start from, and the buckets that scale.
    #[must_use]
    pub fn aim(&self) -> tuner::Aim {
        let aim = tuner::Aim::new(self.policy.clone(), self.default_limits());
        tuner::Aim { earned: self.earned_buckets(), ..aim }
    }

    /// Returns the named buckets that scale with what an agent earned, as they are configured;
    /// [`tower_merit::bucket::earned`] says what they are for an agent.
    #[must_use]
    pub fn earned_buckets(&self) -> Vec<(BucketName, Limits)> {
        let earned = self.bucket.iter().filter(|bucket| bucket.earned && !bucket.default);
        let named = |bucket: &BucketConfig| {
            let limits = Limits::per_second(bucket.refill_rate, bucket.capacity);
            (BucketName::new(&bucket.bucket_name).expect("validated"), limits.expect("validated"))
        };
        earned.map(named).collect()
    }
}

impl Ratings {
    /// Returns the keys of receipts; nothing when none are configured.
    ///
    /// # Errors
    ///
    /// With the fault and its path. No secret is repeated.
    pub fn receipt_keys(&self) -> Result<Option<ReceiptKeys>, String> {
        let (path, text) = match (&self.receipt_keys_env, &self.receipt_keys_file) {
            (None, None) if self.receipts == ingest::ReceiptMode::Off => return Ok(None),
            (Some(variable), None) => {
                let path = "ratings.receipt_keys_env";
                (path, variable.read().map_err(|error| format!("{path}: {error}"))?)
            }
            (None, Some(file)) => {
                let path = "ratings.receipt_keys_file";
                (path, file.read().map_err(|error| format!("{path}: {error}"))?)
            }
            _ => {
                return Err("ratings.receipt_keys_env: set it or receipt_keys_file for receipts, \
                            one of them"
                    .to_owned());
            }
        };
        let keys = ReceiptKeys::parse(text.expose());
        keys.map(Some).map_err(|error| format!("{path}: {error}"))
    }

    /// Returns how ingest looks at receipts.
    ///
    /// # Errors
    ///
    /// As [`Ratings::receipt_keys`].
    pub fn receipts(&self) -> Result<ingest::Receipts, String> {
        let keys = self.receipt_keys()?;
        Ok(match (keys, self.receipts) {
            (None, _) | (_, ingest::ReceiptMode::Off) => ingest::Receipts::off(),
            (Some(keys), mode) => {
                ingest::Receipts::verified_with(keys, mode == ingest::ReceiptMode::Require)
            }
        })
    }
}

fn cause(error: &ConfigError) -> String {
    std::error::Error::source(error).map(ToString::to_string).unwrap_or_default()
}

fn with_cause(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) if !error.to_string().contains(&source.to_string()) => {
            format!("{error}: {}", with_cause(source))
        }
        _ => error.to_string(),
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
            .and_then(|text| fault::json(&text));
        match bucket {
            Ok(bucket) => buckets.push(bucket),
            Err(problem) => fault(problem),
        }
    }
    buckets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ingest::ReceiptMode,
        secret::{File, Variable},
    };

    fn ratings(receipts: ReceiptMode, env: Option<&str>, file: Option<File>) -> Ratings {
        let receipt_keys_env = env.map(Variable::from);
        Ratings { receipts, receipt_keys_env, receipt_keys_file: file, ..Ratings::default() }
    }

    #[test]
    fn receipts_that_are_looked_at_need_keys_and_exactly_one_place_for_them() {
        assert!(ratings(ReceiptMode::Off, None, None).receipt_keys().unwrap().is_none());
        for table in [
            ratings(ReceiptMode::Prefer, None, None),
            ratings(ReceiptMode::Require, None, None),
            ratings(ReceiptMode::Off, Some("A"), Some("b".into())),
        ] {
            let fault = table.receipts().unwrap_err();
            assert!(fault.starts_with("ratings.receipt_keys_env: set it or"), "{fault}");
        }
        let unset = ratings(ReceiptMode::Off, Some("MERIT_TEST_NO_SUCH_VARIABLE"), None);
        assert!(unset.receipt_keys().unwrap_err().contains("MERIT_TEST_NO_SUCH_VARIABLE"));
    }

    #[test]
    fn keys_in_a_file_are_read_and_a_faulty_one_is_named_without_its_secret() {
        let folder = std::env::temp_dir();
        let file = folder.join(format!("merit-receipt-keys-{}", std::process::id()));
        fs::write(&file, "new:the secret of receipts: thirty-two bytes\r\nold:abc\n").unwrap();
        let table = ratings(ReceiptMode::Require, None, Some(File::from(&file)));
        let fault = table.receipt_keys().unwrap_err();
        assert!(fault.starts_with("ratings.receipt_keys_file: "), "{fault}");
        assert!(fault.contains("key 2") && !fault.contains("abc"), "{fault}");
        fs::write(&file, "new:the secret of receipts: thirty-two bytes\n").unwrap();
        let keys = table.receipt_keys().unwrap().unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(format!("{keys:?}"), r#"["new"]"#);
    }
}
