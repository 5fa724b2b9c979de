//! What an admin listener answers, as docs/admin.md has it. What it does not know, or a later version adds,
//! is no error: members may be missing, null, or more.

use serde::Deserialize;

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Overview {
    pub(super) at_ms: Option<u64>,
    pub(super) role: Option<String>,
    pub(super) version: Option<String>,
    pub(super) uptime_seconds: Option<f64>,
    pub(super) ready: Option<bool>,
    pub(super) draining: Option<bool>,
    pub(super) parts: Option<Vec<Part>>,
    pub(super) policy: Option<PolicyHead>,
    pub(super) market: Option<Market>,
    pub(super) ratings_per_second: Option<f64>,
    pub(super) ratings_total: Option<f64>,
    pub(super) admitted_total: Option<f64>,
    pub(super) denied_total: Option<f64>,
    pub(super) used_per_second: Option<f64>,
    pub(super) rating_to_limit_seconds: Option<Quantiles>,
    pub(super) bus_lag_ratings: Option<f64>,
    pub(super) agents: Option<u64>,
    pub(super) drift: Option<Drift>,
    pub(super) events: Option<Vec<Event>>,
}

/// What one part of the process says of itself; `/readyz` has the same.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) ok: bool,
    pub(super) error: Option<String>,
    /// The process is ready without it.
    pub(super) spared: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Readiness {
    pub(super) ready: bool,
    pub(super) draining: bool,
    pub(super) parts: Vec<Part>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct PolicyHead {
    pub(super) kind: Option<String>,
    pub(super) mode: Option<String>,
    pub(super) version: Option<String>,
    pub(super) checkpoint: Option<Checkpoint>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Checkpoint {
    pub(super) path: Option<String>,
    pub(super) age_seconds: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Market {
    pub(super) price: Option<f64>,
    pub(super) use_share: Option<f64>,
    pub(super) service_capacity: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Quantiles {
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
    pub(super) p99: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Drift {
    pub(super) fall: Option<f64>,
    pub(super) rise: Option<f64>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub(super) at_ms: Option<u64>,
    pub(super) kind: Option<String>,
    pub(super) agent_id: Option<String>,
    pub(super) text: Option<String>,
}

/// `/policy`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Policy {
    #[serde(flatten)]
    pub(super) head: PolicyHead,
    pub(super) config: serde_json::Map<String, serde_json::Value>,
    pub(super) market: Option<Market>,
}

/// A page of `/agents`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Page {
    pub(super) total: u64,
    pub(super) matching: u64,
    pub(super) page: u32,
    pub(super) pages: u32,
    pub(super) age_ms: Option<u64>,
    pub(super) complete: Option<bool>,
    pub(super) agents: Vec<Row>,
}

/// One agent in a list.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Row {
    pub(super) agent_id: String,
    pub(super) refill_rate: Option<f64>,
    pub(super) capacity: Option<f64>,
    pub(super) quality: Option<f64>,
    pub(super) deviation: Option<f64>,
    pub(super) ratings: Option<f64>,
    pub(super) admitted: Option<f64>,
    pub(super) denied: Option<f64>,
    pub(super) held: Option<String>,
    pub(super) banned_until_ms: Option<u64>,
    pub(super) operator: bool,
    pub(super) rates: Option<Vec<Option<f64>>>,
    pub(super) qualities: Option<Vec<Option<f64>>>,
}

/// `/agents/{id}`.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Agent {
    #[serde(flatten)]
    pub(super) row: Row,
    pub(super) policy: Option<String>,
    pub(super) known: Option<bool>,
    pub(super) buckets: Vec<Level>,
    pub(super) why: Option<Why>,
    pub(super) moves: Option<Vec<Move>>,
}

/// One bucket of an agent.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Level {
    pub(super) bucket_name: String,
    pub(super) default: bool,
    pub(super) refill_rate: Option<f64>,
    pub(super) capacity: Option<f64>,
    pub(super) level: Option<f64>,
    pub(super) full_in_ms: Option<u64>,
    pub(super) own: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Why {
    pub(super) sentences: Vec<String>,
}

/// A decision of the tuner.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub(super) struct Move {
    pub(super) at_ms: Option<u64>,
    pub(super) cause: Option<String>,
    pub(super) score: Option<f64>,
    pub(super) from: Option<f64>,
    pub(super) to: Option<f64>,
    pub(super) held: Option<String>,
}
