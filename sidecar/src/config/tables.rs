//! The tables of the configuration, each key with its unit and why its default is what it is.

use std::{num::NonZeroU32, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use tower_merit::{
    Outage,
    store::leased::{AHEAD_MAX, LEASE_TERM, LEASES_MAX},
};

use super::Address;
use crate::{
    bus::duration,
    ingest::ReceiptMode,
    rating::SubjectMode,
    secret::{File, Variable},
    telemetry::{LINES_PER_PLACE, LogFormat},
};

/// `[store]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// `memory` (one process, nothing survives it) or `redis`; default memory.
    pub kind: StoreKind,
    /// Address of the Redis: `redis://…`, or `rediss://…` for TLS.
    pub url: Option<Address>,
    /// Environment variable with the address, when it carries a password.
    pub url_env: Option<Variable>,
    /// Addresses of some nodes of a Redis Cluster; the others are found through them. Of this,
    /// `url`, `url_env` and `sentinel` exactly one is set.
    pub cluster: Vec<Address>,
    /// The sentinels that know where the master is.
    pub sentinel: Option<Sentinel>,
    /// The ACL user, when it does not stand in the address; of the servers, not of the sentinels.
    pub username: Option<String>,
    /// Environment variable with the password.
    pub password_env: Option<Variable>,
    /// File with the password; a line break at its end is no part of it.
    pub password_file: Option<File>,
    /// PEM file of the authorities that may vouch for `rediss://` servers; default the system's.
    pub tls_ca_file: Option<PathBuf>,
    /// PEM file of the certificate to show to servers that ask for one.
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of that certificate's key.
    pub tls_key_file: Option<File>,
    /// The longest a decision waits for Redis; default 20ms: longer than any healthy answer takes,
    /// short enough that callers hardly notice an outage.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// What happens to requests while Redis does not answer: `open`, `closed` or `local` (default).
    pub on_outage: Outage,
    /// How many gateways share the buckets, for `local`; default 1.
    pub expected_nodes: NonZeroU32,
    /// `exact` (default): every decision is Redis's. `leased`: this process takes tokens of busy
    /// agents ahead, spends them itself and returns what is left.
    pub mode: StoreMode,
    /// How long tokens taken ahead may be spent, 10ms to 1s; default 500ms: five times what is taken
    /// ahead at the agent's pace. An operator's change is honoured within it.
    #[serde(with = "duration")]
    pub lease_term: Duration,
    /// The most requests of one agent that a lease admits without asking; default 1024.
    pub lease_ahead_max: u32,
    /// The most agents with a lease, about 400 bytes each; default 131072.
    pub lease_agents_max: usize,
}

/// `[store.sentinel]`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sentinel {
    /// What the sentinels call the master.
    pub master: String,
    /// Addresses of the sentinels: `redis://…`, or `rediss://…` for TLS, to the master as well.
    pub urls: Vec<Address>,
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
#[serde(rename_all = "lowercase")]
pub enum StoreMode {
    /// Every decision is a call.
    #[default]
    Exact,
    /// Tokens are taken ahead.
    Leased,
}

impl Default for Store {
    fn default() -> Self {
        Self {
            kind: StoreKind::Memory,
            url: None,
            url_env: None,
            cluster: Vec::new(),
            sentinel: None,
            username: None,
            password_env: None,
            password_file: None,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            timeout: Duration::from_millis(20),
            on_outage: Outage::Local,
            expected_nodes: NonZeroU32::MIN,
            mode: StoreMode::Exact,
            lease_term: LEASE_TERM,
            lease_ahead_max: AHEAD_MAX,
            lease_agents_max: LEASES_MAX,
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
    /// True for a bucket that is only watched: it refuses nothing, and what it would have refused is
    /// counted (`merit_would_deny_total`).
    #[serde(default)]
    pub shadow: bool,
    /// Whether its limits scale with the rate that the agent earned: capacity and refill_rate times
    /// that rate by the default bucket's refill_rate. Of named buckets only.
    #[serde(default)]
    pub earned: bool,
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
    /// What a rating needs a receipt for: nothing (`off`, default), to count in full (`prefer`), or to
    /// be taken at all (`require`).
    pub receipts: ReceiptMode,
    /// Environment variable with the keys of receipts, `id:secret` separated by commas; the first
    /// signs, all verify; `head -c 32 /dev/urandom | base64` makes a secret. Once there are keys the gateway issues receipts, whatever `receipts` says.
    pub receipt_keys_env: Option<Variable>,
    /// File with the keys of receipts, one a line.
    pub receipt_keys_file: Option<File>,
}

/// `[log]`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `pretty` for people (default), `json` for machines.
    pub format: LogFormat,
    /// Which events, in the form of `RUST_LOG`; default `info`.
    pub filter: String,
    /// How many lines of `info` and graver one place in the code writes in ten seconds at most; default 50, 0 is
    /// no bound. It keeps callers from filling a disk; what is left out is counted and told.
    pub lines_per_place: u32,
}

impl Default for Log {
    fn default() -> Self {
        let lines_per_place = LINES_PER_PLACE;
        Self { format: LogFormat::Pretty, filter: "info".to_owned(), lines_per_place }
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
    /// Reads a WebSocket feed of ratings and passes them on.
    Feed,
    /// Answers proxies that ask over Envoy's rate limit protocol.
    Rls,
}

impl Role {
    /// Returns its name, as `--role` has it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::Ingest => "ingest",
            Self::Tuner => "tuner",
            Self::Gateway => "gateway",
            Self::Feed => "feed",
            Self::Rls => "rls",
        }
    }

    /// Returns true when a process of this role takes ratings in.
    #[must_use]
    pub fn ingests(self) -> bool {
        matches!(self, Self::All | Self::Ingest)
    }

    /// Returns true when a process of this role reads the feed.
    #[must_use]
    pub fn bridges(self) -> bool {
        matches!(self, Self::All | Self::Feed)
    }

    /// Returns true when a process of this role sets limits.
    #[must_use]
    pub fn tunes(self) -> bool {
        matches!(self, Self::All | Self::Tuner)
    }

    /// Returns true when a process of this role answers proxies that limit requests.
    #[must_use]
    pub fn answers(self) -> bool {
        matches!(self, Self::All | Self::Rls)
    }

    /// Returns true when a process of this role limits requests.
    #[must_use]
    pub fn guards(self) -> bool {
        matches!(self, Self::All | Self::Gateway)
    }
}
