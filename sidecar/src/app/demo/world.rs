//! The demo's world: agents of hidden quality, raters with moods, a stand-in API.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::Path, routing::get};
use rand::{Rng, RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tower_merit::AgentId;

use super::{DemoError, Options};
use crate::{
    clock::unix_time,
    config::{BucketConfig, Config},
    ingest,
    policy::{self, Kind},
    secret::File,
};

/// How many of the served requests are rated.
pub(super) const RATED_SHARE: f64 = 0.4;

/// Requests per second of all agents together, and of one at most.
const DEMAND_TOTAL: f64 = 750.0;
const DEMAND_MAX: f64 = 15.0;

/// An agent asks this many times what it may at first.
const DEMAND_OVER_START: f64 = 3.0;

/// Hidden quality is uniform in this range of mean scores; 3 is neutral.
const QUALITY: (f64, f64) = (1.5, 4.8);

/// Standard deviation of one rater's score around the quality.
const MOOD: f64 = 0.8;

const RATERS: usize = 200;

/// The service can serve this share of what all ask for together.
const CAPACITY_SHARE: f64 = 0.45;

/// A tick: the demo is over in half a minute.
const DECIDED_EVERY: &str = "500ms";

/// How soft the price's edge is: soft enough that who is better is also faster.
const SOFTNESS: f64 = 0.25;

/// Users who rate one agent down, whatever it serves.
pub(super) const BOMBERS: usize = 10;

/// They begin after this share of the demo.
pub(super) const BOMBED_FROM: f64 = 0.35;

/// Quality of the agent that is bombed and of its twin, who is not.
const TWINS_QUALITY: f64 = 4.4;

/// The visitor's own agent, for the `curl` lines.
pub(super) const VISITOR: &str = "you";

const ISSUER: &str = "merit-demo";
const AUDIENCE: &str = "openclaw";

/// The environment variable that no configuration file names: the demo's secret is made at start.
pub(super) struct World {
    pub(super) agents: Vec<SimulatedAgent>,
    pub(super) raters: Vec<String>,
    pub(super) demand: f64,
    pub(super) start_rate: f64,
    pub(super) capacity: f64,
    /// Who rates the first agent down; the second is its twin.
    pub(super) bombers: Vec<String>,
    pub(super) bombs: AtomicU64,
    /// Sums of the rates that the twins had at each look while one of them was bombed, µ-tokens per second.
    pub(super) twins_rates: [AtomicU64; 2],
    pub(super) shuffle: bool,
    pub(super) visitor_token: String,
    pub(super) visitor_rating_token: String,
    pub(super) failures: AtomicU64,
    first_failure: Mutex<Option<String>>,
    secret: SecretFile,
}

/// A secret in a file of its own, readable by nobody else, gone with the demo.
struct SecretFile(std::path::PathBuf);

impl Drop for SecretFile {
    fn drop(&mut self) {
        // It is in the temporary folder: leaving it behind harms nobody.
        let _ = std::fs::remove_file(&self.0);
    }
}

pub(super) struct SimulatedAgent {
    pub(super) id: AgentId,
    pub(super) quality: f64,
    pub(super) authorization: String,
    pub(super) admitted: AtomicU64,
    pub(super) denied: AtomicU64,
    scores: AtomicU64,
    ratings: AtomicU64,
}

/// What happened so far.
pub(super) struct Tally {
    pub(super) admitted: u64,
    pub(super) denied: u64,
    pub(super) ratings: u64,
}

impl SimulatedAgent {
    pub(super) fn rated(&self, score: u8) {
        self.scores.fetch_add(score.into(), Ordering::Relaxed);
        self.ratings.fetch_add(1, Ordering::Relaxed);
    }

    #[allow(clippy::cast_precision_loss, reason = "a mean to look at")]
    pub(super) fn mean_rating(&self) -> Option<f64> {
        let ratings = self.ratings.load(Ordering::Relaxed);
        (ratings > 0).then(|| self.scores.load(Ordering::Relaxed) as f64 / ratings as f64)
    }
}

impl World {
    pub(super) fn new(options: &Options) -> Result<Self, DemoError> {
        let mut rng = StdRng::seed_from_u64(options.seed);
        let secret: [u8; 32] = rand::random();
        let key = jsonwebtoken::EncodingKey::from_secret(hex(&secret).as_bytes());
        let exp = (unix_time() + options.duration + Duration::from_secs(3600)).as_secs();
        let sign = |mut claims: Value| {
            claims["iss"] = ISSUER.into();
            claims["aud"] = AUDIENCE.into();
            claims["exp"] = exp.into();
            jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)
        };
        let width = options.agents.to_string().len();
        let mut agents = Vec::new();
        for index in 1..=options.agents {
            let name = format!("agent-{index:0width$}");
            let token = sign(json!({ "agent_id": name }))?;
            let drawn = rng.random_range(QUALITY.0..QUALITY.1);
            agents.push(SimulatedAgent {
                id: AgentId::new(&name).expect("letters, digits and a dash"),
                quality: if index <= 2 { TWINS_QUALITY } else { drawn },
                authorization: format!("Bearer {token}"),
                admitted: AtomicU64::new(0),
                denied: AtomicU64::new(0),
                scores: AtomicU64::new(0),
                ratings: AtomicU64::new(0),
            });
        }
        let users = |name: &str, count| (0..count).map(|n| format!("{name}-{n}")).collect();
        let demand = (DEMAND_TOTAL / f64::from(options.agents)).min(DEMAND_MAX);
        Ok(Self {
            agents,
            raters: users("user", RATERS),
            bombers: users("bomber", BOMBERS),
            bombs: AtomicU64::new(0),
            twins_rates: [AtomicU64::new(0), AtomicU64::new(0)],
            demand,
            start_rate: demand / DEMAND_OVER_START,
            capacity: CAPACITY_SHARE * demand * f64::from(options.agents),
            shuffle: options.shuffle_ratings,
            visitor_token: sign(json!({ "agent_id": VISITOR }))?,
            visitor_rating_token: sign(json!({ "sub": "curl", "scope": "ratings:write" }))?,
            failures: AtomicU64::new(0),
            first_failure: Mutex::new(None),
            secret: write_secret(&hex(&secret)).map_err(DemoError::Output)?,
        })
    }

    /// Returns the configuration that the demo runs: what a file would say, with ports of its own.
    pub(super) fn config(&self, api: SocketAddr, feed: SocketAddr) -> Config {
        let loopback = || Some(SocketAddr::from(([127, 0, 0, 1], 0)));
        let mut config = Config::default();
        config.identity.algorithms = vec!["HS256".to_owned()];
        config.identity.secret_file = Some(File::from(&self.secret.0));
        config.identity.issuer = Some(ISSUER.to_owned());
        config.identity.audience = Some(AUDIENCE.to_owned());
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 30")]
        let capacity = (self.start_rate * 2.0).ceil() as u64;
        config.bucket = vec![BucketConfig {
            bucket_name: "requests".to_owned(),
            default: true,
            shadow: false,
            earned: false,
            refill_rate: self.start_rate,
            capacity,
            key_selector: None,
        }];
        config.policy.kind = Kind::Ppo;
        config.policy.mode = policy::shipped_mode();
        config.policy.service_capacity = Some(self.capacity);
        config.policy.tick = Some(DECIDED_EVERY.to_owned());
        config.policy.softness = SOFTNESS;
        config.policy.r_min = self.start_rate / 10.0;
        config.policy.r_max = self.demand * 2.0;
        config.ingest.listen = loopback();
        config.feed = Some(ingest::feed::Config {
            url: Some((&*format!("ws://{feed}")).into()),
            publish: true,
            ..ingest::feed::Config::default()
        });
        config.gateway.listen = loopback();
        config.gateway.upstream = format!("http://{api}");
        config.metrics.listen = loopback();
        config
    }

    pub(super) fn tally(&self) -> Tally {
        let sum = |count: fn(&SimulatedAgent) -> &AtomicU64| {
            self.agents.iter().map(|agent| count(agent).load(Ordering::Relaxed)).sum()
        };
        Tally {
            admitted: sum(|agent| &agent.admitted),
            denied: sum(|agent| &agent.denied),
            ratings: sum(|agent| &agent.ratings),
        }
    }

    pub(super) fn failed(&self, what: String) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let mut first = self.first_failure.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert(what);
    }

    pub(super) fn first_failure(&self) -> Option<String> {
        self.first_failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_secret(text: &str) -> std::io::Result<SecretFile> {
    use std::{io::Write, os::unix::fs::OpenOptionsExt};
    let name = format!("merit-demo-{}-{:016x}", std::process::id(), rand::random::<u64>());
    let path = std::env::temp_dir().join(name);
    let mut file =
        std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.write_all(text.as_bytes())?;
    Ok(SecretFile(path))
}

/// Returns the score of one rater: quality, mood, rounded to whole points (Box–Muller).
pub(super) fn score(quality: f64, rng: &mut impl Rng) -> u8 {
    let (a, b): (f64, f64) = (1.0 - rng.random::<f64>(), rng.random());
    let mood = MOOD * (-2.0 * a.ln()).sqrt() * (std::f64::consts::TAU * b).cos();
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "1 to 5")]
    let score = (quality + mood).round().clamp(1.0, 5.0) as u8;
    score
}

/// The stand-in OpenClaw API.
pub(super) fn api() -> Router {
    let item =
        async |Path(item): Path<String>| Json(json!({ "item_id": item, "title": "An item" }));
    Router::new().route("/v1/items/{item}", get(item))
}
