//! The `[feed]` table.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use crate::{
    bus::duration,
    secret::{Address, File, Variable},
};

/// How a WebSocket feed is read, and where its ratings go.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of the feed: `wss://…`, or `ws://…` to this machine.
    pub url: Option<Address>,
    /// PEM file of the only authorities that may vouch for `url`; the system's when absent.
    pub ca_file: Option<PathBuf>,
    /// Fields of the handshake, each from the environment or a file: `"X-Key" = { env = "…" }`.
    pub headers: BTreeMap<String, Source>,
    /// Name of the query parameter that carries the id of the last rating taken, for feeds that
    /// can go on from there; none unless named.
    pub resume_query: Option<String>,
    /// Text that is sent once connected, for feeds that must be asked; `{last_id}` in it becomes the
    /// id of the last rating taken, or nothing. No secret: it stands here.
    pub subscribe: Option<String>,
    /// How long the feed may say nothing, not even a pong, 1s to 1h; default 30s: three pings of ours.
    #[serde(with = "duration")]
    pub silence: Duration,
    /// Longest frame, in bytes, 1024 to 16777216; default 1 MiB: a longer one ends the connection.
    pub max_frame_bytes: usize,
    /// Where each rating is posted: `https://…`, or `http://…` to this machine.
    pub forward_to: Option<Address>,
    /// PEM file of the only authorities that may vouch for `forward_to`; the system's when absent.
    pub forward_ca_file: Option<PathBuf>,
    /// Environment variable with the bearer token for `forward_to`; none unless named.
    pub api_key_env: Option<Variable>,
    /// File with that token; a line break at its end is no part of it.
    pub api_key_file: Option<File>,
    /// How long one post may take, 100ms to 5m; default 10s.
    #[serde(with = "duration")]
    pub timeout: Duration,
    /// How long a rating is posted again that the endpoint never takes, while it takes others, 1s to 7d;
    /// default 5m. Then it is put aside. An endpoint that takes nothing is waited for without end.
    #[serde(with = "duration")]
    pub give_up_after: Duration,
    /// Most posts at a time, 1 to 64; default 4: an agent has one at a time, however many there are.
    pub in_flight: usize,
    /// Whether ratings go onto Merit's own bus.
    pub publish: bool,
    /// Who posts them there, 1 to 64 characters of `[A-Za-z0-9._-]`: ids are scoped by it. Default
    /// `feed`.
    pub name: String,
    /// Most ratings that wait in memory, 1 to 1000000, each KiB of a longer one counts; default 10000.
    /// With a spool they wait there.
    pub queue: u32,
    /// Folder in which ratings wait until they are delivered; in memory when absent.
    pub spool_dir: Option<PathBuf>,
    /// Most bytes in that folder, from 64 MiB on; default 1 GiB: a million ratings of a KiB.
    pub spool_max_bytes: u64,
    /// File for frames that hold no rating; `dead.ndjson` in `spool_dir` when absent, and without that
    /// only the reason is logged. Ratings that cannot be delivered go beside it, into a file whose name
    /// has `-refused` before its ending.
    pub dead_letter_file: Option<PathBuf>,
    /// Longest that each of them gets, in bytes, from 1 MiB on; default 16 MiB. Then the first becomes
    /// `<file>.1`; the other takes no more, and ratings wait, until it is moved away.
    pub dead_letter_max_bytes: u64,
}

/// Where the value of a field stands: one of them.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Source {
    /// Environment variable.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Variable>,
    /// File; a line break at its end is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<File>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            ca_file: None,
            headers: BTreeMap::new(),
            resume_query: None,
            subscribe: None,
            silence: Duration::from_secs(30),
            max_frame_bytes: 1 << 20,
            forward_to: None,
            forward_ca_file: None,
            api_key_env: None,
            api_key_file: None,
            timeout: Duration::from_secs(10),
            give_up_after: Duration::from_secs(300),
            in_flight: 4,
            publish: false,
            name: "feed".to_owned(),
            queue: 10_000,
            spool_dir: None,
            spool_max_bytes: 1 << 30,
            dead_letter_file: None,
            dead_letter_max_bytes: 16 << 20,
        }
    }
}

impl Config {
    /// Adds every fault of the table at `path` (normally `feed`) to `faults`. Secrets and
    /// certificates are read for it.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        super::plan::Plan::new(self, path, faults);
    }

    /// Adds what is legal and odd in the table at `path` (normally `feed`) to `warnings`.
    pub fn warn(&self, path: &str, warnings: &mut Vec<String>) {
        let odd = [
            (
                self.spool_dir.is_none(),
                "spool_dir: not set: ratings that wait are lost when the process is killed",
            ),
            (
                self.dead_letters().is_none(),
                "dead_letter_file: not set: of what cannot be delivered only the reason is logged",
            ),
            (
                self.publish && self.forward_to.is_some(),
                "publish: beside forward_to: when that leads to this Merit, each rating counts twice",
            ),
        ];
        let odd = odd.into_iter().filter(|(is_so, _)| *is_so);
        warnings.extend(odd.map(|(_, text)| format!("{path}.{text}")));
    }

    /// Returns where what cannot be delivered goes.
    pub(super) fn dead_letters(&self) -> Option<PathBuf> {
        let beside = || self.spool_dir.as_ref().map(|folder| folder.join("dead.ndjson"));
        self.dead_letter_file.clone().or_else(beside)
    }
}
