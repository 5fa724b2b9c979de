//! What an agent is told of its own limits: which buckets it has and how full they are, what charges them, what
//! moved it, and what to do.
//!
//! 1. The agent is learned as admission learns it, and refused as there. Nothing is charged: a page for those
//!    who meet a 429 must answer those who have no tokens left, and the banned.
//! 2. An agent's answer is remembered for [`REMEMBERED`], so that looking at it costs the store no more than one
//!    request a second and agent; at most [`AGENTS_MAX`] are, and at most [`LOOKS_MAX`] looks go on at a time.
//! 3. Buckets that are only watched are not shown, as nowhere else. A level is what the store holds: tokens
//!    that gateways with leases took ahead are not in it.
//! 4. The store does not answer: 503. It does not let this process read records: everything but why.

use std::{
    num::{NonZeroU32, NonZeroUsize},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Body, extract::State, response::Response, routing::get};
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, header};
use lru::LruCache;
use metrics::counter;
use serde::Serialize;
use tokio::{
    sync::{OnceCell, Semaphore},
    time::Instant,
};
use tower_merit::{
    AgentId, Identify, Problem, Spend, Tune,
    bucket::{Limits, Tokens},
    problem::REDUCED_CAPACITY,
    store::{BucketRule, Charge, Decision, Held, Record, StoreError, TAKES_MAX, Take},
};
use tracing::{debug, warn};

use super::{Live, live::InForce};
use crate::clock;

/// Where the page is. The suffix `merit` is not registered (RFC 8615 section 3.1).
pub const LIMITS_PAGE: &str = "/.well-known/merit/limits";

/// How long an agent's answer is remembered.
const REMEMBERED: Duration = Duration::from_secs(1);

/// The most agents whose answers are remembered: about a kilobyte each.
const AGENTS_MAX: NonZeroUsize = NonZeroUsize::new(4096).expect("not zero");

/// The most looks at the store that go on at a time: further ones are told to come back.
const LOOKS_MAX: usize = 64;

/// When to come back after that, or when the store was away, in seconds.
const RETRY_SECONDS: u64 = 1;

/// What requests of one route are charged, as callers read it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Charged {
    /// The pattern of their path.
    pub path: String,
    /// Their methods; empty: all.
    pub methods: Vec<String>,
    /// The named buckets that are charged beside the default one.
    #[serde(skip)]
    pub buckets: Vec<String>,
    /// What a request costs in them, and in the default bucket unless that has a cost of its own.
    pub cost: Price,
    /// What it costs in the default bucket.
    #[serde(skip)]
    pub default_cost: Option<u64>,
}

/// What a request costs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Price {
    /// So many tokens.
    Tokens(u64),
    /// What the request says in a field, within bounds.
    Stated {
        /// The field.
        header: String,
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
}

/// What the control plane says of an agent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explained {
    /// What an operator did to its rate: `none`, `frozen` or `override`.
    pub held: String,
    /// What moved it, for people.
    pub sentences: Vec<String>,
}

/// Reads an agent's record for people.
pub type Explain = Arc<dyn Fn(&AgentId, &Record) -> Explained + Send + Sync>;

/// Returns the route of the page, for the listener of `live`: limits are read from `store`, `explain` says what
/// moved them, and `concurrency` is how many requests an agent may have in flight there.
pub fn limits<S, I, T>(
    live: Live<S, I>,
    store: T,
    explain: Explain,
    concurrency: Option<NonZeroU32>,
) -> Router
where
    S: Spend,
    I: Identify,
    T: Spend + Tune + Sync,
{
    let page = Page {
        live,
        store,
        explain,
        concurrency,
        remembered: Mutex::new(LruCache::new(AGENTS_MAX)),
        looks: Semaphore::new(LOOKS_MAX),
        warned: AtomicBool::new(false),
    };
    let answer = async |State(page): State<Arc<Page<S, I, T>>>, request: Request<Body>| {
        // Bodies are no business of this page, and cannot be waited beside.
        let (head, _) = request.into_parts();
        page.answer(Request::from_parts(head, ())).await
    };
    Router::new()
        .route(LIMITS_PAGE, get(answer))
        .method_not_allowed_fallback(async || {
            Problem::new(StatusCode::METHOD_NOT_ALLOWED, "limits are read with GET")
                .into_response()
                .map(Body::from)
        })
        .with_state(Arc::new(page))
}

struct Page<S, I, T> {
    live: Live<S, I>,
    store: T,
    explain: Explain,
    concurrency: Option<NonZeroU32>,
    remembered: Mutex<LruCache<AgentId, Remembered>>,
    looks: Semaphore,
    /// Whether it was said that records cannot be read.
    warned: AtomicBool,
}

/// An agent's answer, for whoever asks meanwhile too.
struct Remembered {
    at: Instant,
    told: Arc<OnceCell<Told>>,
}

/// What an agent is told.
#[derive(Clone)]
enum Told {
    Limits(Bytes),
    /// The store did not answer.
    Away,
    /// Too many looks go on.
    Busy,
}

impl<S: Spend, I: Identify, T: Spend + Tune + Sync> Page<S, I, T> {
    async fn answer(&self, request: Request<()>) -> Response {
        let in_force = self.live.in_force();
        let caller = match in_force.layer.learn(&request).await {
            Ok(caller) => caller,
            Err(refusal) => return refusal.map(Body::from),
        };
        let told = self.remembered(&caller.agent, Instant::now());
        let (outcome, response) = match told
            .get_or_init(|| self.look(&in_force, &caller.agent))
            .await
        {
            Told::Limits(json) => ("told", told_as(json.clone())),
            Told::Away => ("away", later("limits cannot be read while the bucket store is away")),
            Told::Busy => ("busy", later("too many agents read their limits just now")),
        };
        counter!("merit_limits_page_total", "outcome" => outcome).increment(1);
        response
    }

    /// Returns where the agent's answer is, or will be.
    fn remembered(&self, agent: &AgentId, now: Instant) -> Arc<OnceCell<Told>> {
        // A panic elsewhere leaves whole entries behind: every change here is one step.
        let mut remembered = self.remembered.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = remembered.get(agent)
            && now.saturating_duration_since(known.at) < REMEMBERED
        {
            return Arc::clone(&known.told);
        }
        let told = Arc::new(OnceCell::new());
        remembered.put(agent.clone(), Remembered { at: now, told: Arc::clone(&told) });
        told
    }

    async fn look(&self, in_force: &InForce<S, I>, agent: &AgentId) -> Told {
        let Ok(_place) = self.looks.try_acquire() else { return Told::Busy };
        let rules = in_force.layer.buckets().iter().filter(|rule| !rule.shadow);
        let mut rules: Vec<&BucketRule> = rules.collect();
        rules.sort_by_key(|rule| !rule.is_default);
        let (levels, record) = tokio::join!(self.levels(agent, &rules), self.store.look(agent));
        let levels = match levels {
            Ok(levels) => levels,
            Err(error) => {
                debug!(%error, "limits not read");
                return Told::Away;
            }
        };
        let record = record.inspect_err(|error| self.unread(error)).ok();
        let unix_ms = clock::unix_ms();
        let explained = record.as_ref().map(|record| (self.explain)(agent, record));
        let page = Shown {
            agent_id: agent.as_str(),
            at_ms: unix_ms,
            allowed: in_force.layer.allows(agent),
            buckets: shown(&rules, &levels, record.as_ref(), &in_force.charges),
            ban: levels.banned_for_ms.map(|for_ms| Ban { until_ms: unix_ms + for_ms, for_ms }),
            concurrency_per_agent: self.concurrency,
            held: explained.as_ref().map(|explained| explained.held.as_str()),
            why: explained.as_ref().map(|explained| Why { sentences: &explained.sentences }),
            what_to_do: String::new(),
        };
        let page = Shown { what_to_do: what_to_do(&page), ..page };
        Told::Limits(serde_json::to_vec(&page).expect("names and numbers are JSON").into())
    }

    /// Looks into all of the agent's buckets, as many at a time as go into one charge.
    async fn levels(&self, agent: &AgentId, rules: &[&BucketRule]) -> Result<Levels, StoreError> {
        let mut levels = Levels::default();
        for some in rules.chunks(TAKES_MAX) {
            let look = |rule: &&BucketRule| Take { bucket: (*rule).clone(), cost: Tokens::ZERO };
            let takes = some.iter().map(look).collect();
            let verdict = self.store.spend(Charge { agent: agent.clone(), takes }).await?;
            if let Decision::Banned { for_ms } = verdict.decision {
                levels.banned_for_ms = Some(for_ms);
                return Ok(levels);
            }
            levels.held.extend(verdict.held());
        }
        Ok(levels)
    }

    fn unread(&self, error: &StoreError) {
        if !self.warned.swap(true, Ordering::Relaxed) {
            warn!(
                %error,
                cause = std::error::Error::source(error).map(ToString::to_string),
                "agents' records not read: the page of limits does not say what moved them"
            );
        }
    }
}

fn told_as(json: Bytes) -> Response {
    let mut response = Response::new(Body::from(json));
    let fields = response.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    fields.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-store"));
    response
}

fn later(detail: &str) -> Response {
    let title = "Request cannot be satisfied due to temporary server capacity constraints";
    let problem = Problem::typed(StatusCode::SERVICE_UNAVAILABLE, REDUCED_CAPACITY, title, detail);
    let mut response = problem.into_response().map(Body::from);
    response.headers_mut().insert(header::RETRY_AFTER, RETRY_SECONDS.into());
    response
}

/// What the store said of an agent's buckets.
#[derive(Default)]
struct Levels {
    /// In the order of the rules; nothing of a banned agent, whose buckets are not touched.
    held: Vec<Held>,
    banned_for_ms: Option<u64>,
}

#[derive(Serialize)]
struct Shown<'a> {
    agent_id: &'a str,
    at_ms: u64,
    allowed: bool,
    buckets: Vec<Bucket<'a>>,
    ban: Option<Ban>,
    concurrency_per_agent: Option<NonZeroU32>,
    held: Option<&'a str>,
    why: Option<Why<'a>>,
    what_to_do: String,
}

#[derive(Serialize)]
struct Bucket<'a> {
    bucket_name: &'a str,
    default: bool,
    refill_rate: f64,
    capacity: u64,
    /// Tokens, below 0 in debt; unknown of a banned agent.
    level: Option<f64>,
    full_in_ms: Option<u64>,
    routes: Vec<Route<'a>>,
    #[serde(skip)]
    limits: Limits,
}

#[derive(Serialize)]
struct Route<'a> {
    path: &'a str,
    methods: &'a [String],
    cost: Price,
}

#[derive(Serialize)]
struct Ban {
    until_ms: u64,
    for_ms: u64,
}

#[derive(Serialize)]
struct Why<'a> {
    sentences: &'a [String],
}

fn shown<'a>(
    rules: &[&'a BucketRule],
    levels: &Levels,
    record: Option<&Record>,
    charges: &'a [Charged],
) -> Vec<Bucket<'a>> {
    let one = |(index, rule): (usize, &&'a BucketRule)| {
        let held = levels.held.get(index);
        let own = record.and_then(|record| record.limits).filter(|_| rule.is_default);
        let limits = held.map(|held| held.limits).or(own).unwrap_or(rule.limits);
        Bucket {
            bucket_name: rule.name.as_str(),
            default: rule.is_default,
            refill_rate: limits.refill().tokens(),
            capacity: limits.capacity().get(),
            level: held.map(|held| tokens(held.tokens.0)),
            full_in_ms: held.and_then(Held::full_in_ms),
            routes: routes(rule, charges),
            limits,
        }
    };
    rules.iter().enumerate().map(one).collect()
}

/// Returns nano-tokens as tokens, to the thousandth: a level moves while it is read.
#[allow(clippy::cast_precision_loss, reason = "below 2^53")]
fn tokens(nano: i64) -> f64 {
    (nano as f64 / 1e6).round() / 1e3
}

/// Returns the routes that charge a bucket, in the order in which they are tried.
fn routes<'a>(rule: &BucketRule, charges: &'a [Charged]) -> Vec<Route<'a>> {
    let names = |charged: &&Charged| charged.buckets.iter().any(|name| name == rule.name.as_str());
    let route = |charged: &'a Charged| Route {
        path: &charged.path,
        methods: &charged.methods,
        cost: match charged.default_cost.filter(|_| rule.is_default) {
            Some(tokens) => Price::Tokens(tokens),
            None => charged.cost.clone(),
        },
    };
    if !rule.is_default {
        return charges.iter().filter(names).map(route).collect();
    }
    let rest = Route { path: "/*", methods: &[], cost: Price::Tokens(1) };
    charges.iter().map(route).chain([rest]).collect()
}

/// Returns what the agent's developer should do, in a sentence or two.
fn what_to_do(page: &Shown<'_>) -> String {
    if page.allowed {
        return "Nothing: this agent is on the list of those that are charged nothing.".to_owned();
    }
    if let Some(ban) = &page.ban {
        return format!(
            "Stop sending: this agent is banned for another {}, and every request is refused until then. \
             Whoever runs this service can say what led to it.",
            lasting(ban.for_ms)
        );
    }
    let closed = |bucket: &&Bucket<'_>| {
        bucket.limits.capacity() == Tokens::ZERO || bucket.limits.refill().micro() == 0
    };
    if let Some(bucket) = page.buckets.iter().find(closed) {
        return format!(
            "Waiting does not help: bucket `{}` lets nothing pass at its present limits. Ask whoever runs \
             this service.",
            bucket.bucket_name
        );
    }
    let waits = page.buckets.iter().filter_map(|bucket| Some((bucket, wait_ms(bucket)?)));
    if let Some((bucket, wait_ms)) = waits.max_by_key(|(_, wait_ms)| *wait_ms) {
        return format!(
            "Wait {}: bucket `{}` holds less than one token. It gains {} a second, so send no faster than \
             that, and wait as long as `Retry-After` says.",
            lasting(wait_ms),
            bucket.bucket_name,
            bucket.limits.refill(),
        );
    }
    let Some(bucket) = page.buckets.iter().find(|bucket| bucket.default) else {
        // Only watched: it refuses nothing.
        return "Nothing: there are tokens.".to_owned();
    };
    let (rate, capacity) = (bucket.limits.refill(), bucket.limits.capacity());
    let moves = match page.held {
        Some("frozen") => " Its rate is frozen: ratings are counted and do not move it.",
        Some("override") => " Its rate was set by hand: ratings do not move it.",
        _ => " Better ratings raise what it may send.",
    };
    format!(
        "Nothing: there are tokens. Up to {capacity} at once and {rate} a second lastingly are there for \
         this agent.{moves}"
    )
}

/// Returns the milliseconds until a bucket holds one token, if it does not.
fn wait_ms(bucket: &Bucket<'_>) -> Option<u64> {
    let missing = 1.0 - bucket.level?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "above 0, and `as` saturates"
    )]
    (missing > 0.0).then(|| (missing * 1000.0 / bucket.limits.refill().tokens()).ceil() as u64)
}

/// Returns a time as people say it, rounded up.
fn lasting(milliseconds: u64) -> String {
    match milliseconds {
        0..1_000 => format!("{milliseconds} ms"),
        1_000..120_000 => format!("{} s", milliseconds.div_ceil(1_000)),
        120_000..7_200_000 => format!("{} min", milliseconds.div_ceil(60_000)),
        _ => format!("{} h", milliseconds.div_ceil(3_600_000)),
    }
}

#[cfg(test)]
mod tests;
