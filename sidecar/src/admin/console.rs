//! What an operator asks of agents and does to them: the JSON routes of the admin listener.
//!
//! 1. Everything is read from the store, over a connection of its own: any process answers for all agents.
//! 2. A write is noted before it is done and after; what cannot be noted is not done.
//! 3. What only a running tuner knows is asked of it, if it runs here, and absent otherwise.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::{
        ConnectInfo, DefaultBodyLimit, Path, Query, State,
        rejection::{BytesRejection, QueryRejection},
    },
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use http::{StatusCode, header};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::{sync::watch, time::Instant};
use tower_merit::{
    AgentId,
    bucket::{BucketName, Limits, LimitsError, Tokens},
    store::{
        BucketRule, Charge, Decision, Held, Record, Spend, StoreError, TAKES_MAX, Take, Tune,
        Verdict,
    },
};

use super::{
    Health, audit,
    audit::{Audit, Entry},
    measured::Measured,
    refuse,
    roster::{self, Roster, rounded, row_of},
};
use crate::{
    bus::duration,
    clock::unix_ms,
    policy::{Kind, Mode},
    tuner::{self, Insight, OperateError, Operator},
};

/// The longest body of a write, in bytes.
const BODY_MAX: usize = 64 * 1024;

/// The longest ban: ten years. A longer one is meant for ever, and is refused so that nobody believes it.
const BAN_MAX: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// What the console needs of the process.
#[derive(Debug)]
pub struct Console<T> {
    /// Does what an operator decides; its store's connection is used by nobody else.
    pub operator: Operator<T>,
    /// The buckets in force, the default one first.
    pub buckets: watch::Receiver<Arc<[BucketRule]>>,
    /// The tuner of this process, if it has one.
    pub insight: Option<Insight>,
    /// Which part of the system this process is, for example `all`.
    pub role: &'static str,
}

struct Shared<T> {
    console: Console<T>,
    roster: Arc<Roster>,
    audit: Arc<Audit>,
    health: Health,
    metrics: PrometheusHandle,
    began: Instant,
}

type Desk<T> = State<Arc<Shared<T>>>;

impl<T: Tune + Spend + Clone> Console<T> {
    /// Returns the routes, and what keeps the table of agents: a future that runs as long as they are served.
    /// Writes are noted in `audit`.
    pub(super) fn routes(
        self,
        audit: Arc<Audit>,
        health: Health,
        metrics: PrometheusHandle,
    ) -> (Router, impl Future<Output = ()> + Send + 'static) {
        let roster = Roster::new();
        let keeping = Arc::clone(&roster).keep(self.operator.clone());
        let began = Instant::now();
        let shared = Shared { console: self, roster, audit, health, metrics, began };
        let routes = Router::new()
            .route("/overview", get(overview::<T>))
            .route("/agents", get(agents::<T>))
            .route("/agents/{agent_id}", get(one_agent::<T>))
            .route("/agents/{agent_id}/{action}", post(act::<T>))
            .route("/policy", get(policy::<T>))
            .route("/audit", get(newest::<T>))
            .layer(DefaultBodyLimit::max(BODY_MAX))
            .with_state(Arc::new(shared));
        (routes, keeping)
    }
}

/// Why a request got no answer.
enum Fault {
    Store(StoreError),
    Operate(OperateError),
    Bad(StatusCode, String),
    Audit(io::Error),
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    fn unprocessable(text: impl Into<String>) -> Self {
        Self::Bad(StatusCode::UNPROCESSABLE_ENTITY, text.into())
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Store(StoreError::Malformed { .. })
            | Self::Operate(
                OperateError::Store(StoreError::Malformed { .. }) | OperateError::Outlived,
            ) => StatusCode::CONFLICT,
            Self::Bad(status, _) => *status,
            Self::Store(_) | Self::Operate(_) | Self::Audit(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Store(error) | Self::Operate(OperateError::Store(error)) => {
                write!(f, "{}", crate::causes::with_causes(error))
            }
            Self::Operate(error) => write!(f, "{error}"),
            Self::Bad(_, text) => f.write_str(text),
            Self::Audit(error) => {
                write!(f, "nothing was done, because admin.audit_log cannot be written: {error}")
            }
        }
    }
}

impl IntoResponse for Fault {
    fn into_response(self) -> Response {
        refuse(self.status(), &self.to_string())
    }
}

fn answer(body: Value) -> Response {
    ([(header::CACHE_CONTROL, "no-store")], Json(body)).into_response()
}

fn query<Q>(query: Result<Query<Q>, QueryRejection>) -> Result<Q, Fault> {
    let bad =
        |rejection: QueryRejection| Fault::Bad(StatusCode::BAD_REQUEST, rejection.body_text());
    query.map(|Query(query)| query).map_err(bad)
}

fn agent_of(text: &str) -> Result<AgentId, Fault> {
    let bad = |error| Fault::Bad(StatusCode::BAD_REQUEST, format!("agent_id: {error}"));
    AgentId::new(text).map_err(bad)
}

async fn agents<T: Tune + Spend + Clone>(
    State(desk): Desk<T>,
    asked: Result<Query<roster::Query>, QueryRejection>,
) -> Result<Response, Fault> {
    let asked = query(asked)?;
    let page = desk.roster.page(&asked).await;
    let page = page.map_err(|fault| Fault::Bad(StatusCode::BAD_REQUEST, fault.to_string()))?;
    match page {
        Some(page) => Ok(answer(json!(page))),
        None => {
            let detail = "the bucket store does not answer: no agent is known yet".to_owned();
            Err(Fault::Bad(StatusCode::SERVICE_UNAVAILABLE, detail))
        }
    }
}

async fn one_agent<T: Tune + Spend + Clone>(
    State(desk): Desk<T>,
    Path(agent): Path<String>,
) -> Result<Response, Fault> {
    Ok(answer(desk.agent(&agent_of(&agent)?).await?))
}

async fn policy<T: Tune + Spend + Clone>(State(desk): Desk<T>) -> Response {
    let operator = &desk.console.operator;
    let (config, policy) = (operator.config(), operator.policy());
    answer(json!({
        "kind": config.kind,
        "mode": config.mode,
        "version": policy.version(),
        "market": desk.market().await,
        "checkpoint": desk.checkpoint(),
        "config": config,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Newest {
    limit: Option<usize>,
}

async fn newest<T: Tune + Spend + Clone>(
    State(desk): Desk<T>,
    asked: Result<Query<Newest>, QueryRejection>,
) -> Result<Response, Fault> {
    let limit = query(asked)?.limit.unwrap_or(50);
    if !(1..=audit::KEPT).contains(&limit) {
        let fault = format!("limit: must be 1 to {}, is {limit}", audit::KEPT);
        return Err(Fault::Bad(StatusCode::BAD_REQUEST, fault));
    }
    Ok(answer(json!({"entries": desk.audit.newest(limit)})))
}

async fn overview<T: Tune + Spend + Clone>(State(desk): Desk<T>) -> Response {
    let text = desk.metrics.render();
    let measured = Measured::read(&text);
    let operator = &desk.console.operator;
    let (report, market, events) = tokio::join!(desk.health.report(), desk.market(), async {
        match &desk.console.insight {
            Some(insight) => insight.happenings().await,
            None => None,
        }
    });
    let tunes = desk.console.insight.is_some();
    let here = |value: Option<f64>| value.filter(|_| tunes);
    let passed = ["admitted", "allowed", "outage_open"];
    let refused = ["denied", "in_flight", "banned", "outage_closed"];
    let decided = |outcomes: &[&str]| measured.of("merit_decisions_total", "outcome", outcomes);
    let latency = |quantile| measured.quantile("merit_rating_to_limit_seconds", quantile);
    let latency = latency(0.5).map(|p50| {
        let of = |quantile| latency(quantile).map(rounded_fine);
        json!({"p50": rounded_fine(p50), "p95": of(0.95), "p99": of(0.99)})
    });
    let drift = |direction| measured.of("merit_drift_total", "direction", &[direction]);
    let agents = desk.roster.known().map(|agents| agents as u64);
    let agents = agents.or_else(|| whole(here(measured.total("merit_tuner_agents"))));
    let config = operator.config();
    answer(json!({
        "at_ms": unix_ms(),
        "role": desk.console.role,
        "version": env!("CARGO_PKG_VERSION"),
        "uptime_seconds": rounded(desk.began.elapsed().as_secs_f64()),
        "ready": report.ready,
        "draining": report.draining,
        "parts": report.parts,
        "policy": {
            "kind": config.kind,
            "mode": config.mode,
            "version": operator.policy().version(),
            "checkpoint": desk.checkpoint(),
        },
        "market": market,
        "ratings_per_second": measured.total("rating_rate").map(rounded),
        "ratings_total":
            whole(here(measured.of("merit_ratings_folded_total", "outcome", &["counted"]))),
        "admitted_total": whole(decided(&passed)),
        "denied_total": whole(decided(&refused)),
        "used_per_second": desk.used_per_second(&measured),
        "rating_to_limit_seconds": latency,
        "bus_lag_ratings": whole(here(measured.total("merit_bus_lag_ratings"))),
        "agents": agents,
        "drift": {
            "fall": whole(here(drift("fall").or(Some(0.0)))),
            "rise": whole(here(drift("rise").or(Some(0.0)))),
        },
        "events": events,
    }))
}

/// A count, as counters and gauges hold it.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(count: Option<f64>) -> Option<u64> {
    count.map(|count| count as u64)
}

fn rounded_fine(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e6
}

impl<T: Tune + Spend + Clone> Shared<T> {
    /// Returns what capacity costs; nothing with a policy that knows no price, or while the store is away.
    async fn market(&self) -> Option<Value> {
        let operator = &self.console.operator;
        let config = operator.config();
        if config.kind == Kind::Additive {
            return None;
        }
        let quote = operator.quote().await.ok()?;
        quote.map(|quote| {
            json!({
                "price": rounded(quote.price),
                "use_share": rounded(quote.use_share),
                "service_capacity": config.service_capacity,
            })
        })
    }

    /// Returns the tokens that all nodes take per second, where that is known: it is what use of the
    /// capacity is made of.
    fn used_per_second(&self, measured: &Measured<'_>) -> Option<f64> {
        let capacity = self.console.operator.config().service_capacity?;
        measured.total("merit_use_share").map(|share| rounded(share * capacity))
    }

    /// Returns the checkpoint that is configured, and how old it is.
    fn checkpoint(&self) -> Option<Value> {
        let config = self.console.operator.config();
        let path = config.checkpoint.filter(|_| config.kind == Kind::Ppo)?;
        let age = std::fs::metadata(&path).and_then(|about| about.modified()).ok();
        let age = age.and_then(|at| at.elapsed().ok()).map(|age| rounded(age.as_secs_f64()));
        Some(json!({"path": path, "age_seconds": age, "applied": config.mode == Mode::Live}))
    }

    /// Returns one agent, read now.
    async fn agent(&self, agent: &AgentId) -> Result<Value, Fault> {
        let operator = &self.console.operator;
        let record = operator.record(agent).await?;
        let mut policy = operator.policy();
        if let Some(state) = tuner::state_of(&record).as_ref().and_then(|state| state.standing()) {
            let market = *policy.market();
            policy.see(crate::policy::Market { price: state.price(), ..market });
        }
        let row = row_of(agent, &record, &policy, operator.start());
        let state = match (tuner::state_of(&record), record.limits) {
            (Some(state), _) => state,
            (None, Some(limits)) => policy.adopt(limits),
            (None, None) => policy.begin(),
        };
        let mut why = policy.why(&state);
        if record.operator {
            why.sentences.insert(
                0,
                "An operator set its limits by hand; the next rating moves them on from there."
                    .to_owned(),
            );
            why.refill_rate = row.refill_rate;
        }
        if let Some(until) = row.banned_until_ms {
            let left = Duration::from_millis(until.saturating_sub(unix_ms())).as_secs();
            why.sentences
                .insert(0, format!("It is banned for another {left} s: every request is refused."));
        }
        let rules = self.rules();
        let (held, banned) = self.held(agent, &rules).await?;
        let buckets: Vec<Value> = rules
            .iter()
            .zip(&held)
            .map(|(rule, held)| {
                // Of a banned agent the store tells the configured limits; those of its default bucket are on record.
                let kept = record.limits.filter(|_| banned && rule.is_default);
                let limits = kept.unwrap_or(held.limits);
                // The policy's own limits are the agent's also where they equal the configured ones.
                let own = limits != rule.limits || (rule.is_default && record.rev > 0);
                json!({
                    "bucket_name": rule.name.as_str(),
                    "default": rule.is_default,
                    "refill_rate": rounded(limits.refill().tokens()),
                    "capacity": limits.capacity().get(),
                    // Of a banned agent's buckets nobody is told.
                    "level": (!banned).then(|| level(held)),
                    "full_in_ms": held.full_in_ms().filter(|_| !banned),
                    "own": own,
                })
            })
            .collect();
        let moves = match &self.console.insight {
            Some(insight) => insight.moves(agent).await,
            None => None,
        };
        let mut body = json!(row);
        let more = json!({
            "rev": record.rev,
            "policy": operator.config().kind,
            "known": record.rev > 0 || record.limits.is_some(),
            "buckets": buckets,
            "history": self.roster.history(agent).await,
            "why": why,
            "moves": moves,
        });
        if let (Value::Object(body), Value::Object(more)) = (&mut body, more) {
            body.extend(more);
        }
        Ok(body)
    }

    /// Returns the buckets in force: one answer goes by one set of them.
    fn rules(&self) -> Arc<[BucketRule]> {
        Arc::clone(&self.console.buckets.borrow())
    }

    /// Returns what the agent holds in each bucket, without taking anything; and whether it is banned, of
    /// which only the configured limits are told.
    async fn held(
        &self,
        agent: &AgentId,
        rules: &[BucketRule],
    ) -> Result<(Vec<Held>, bool), StoreError> {
        let take = |bucket: &BucketRule| Take { bucket: bucket.clone(), cost: Tokens::ZERO };
        let (mut all, mut banned) = (Vec::with_capacity(rules.len()), false);
        // As many at a time as go into one charge.
        for some in rules.chunks(TAKES_MAX) {
            let takes: Arc<[Take]> = some.iter().map(take).collect();
            let charge = Charge { agent: agent.clone(), takes };
            let Verdict { decision, first, rest, .. } =
                self.console.operator.store().spend(charge).await?;
            debug_assert!(!matches!(decision, Decision::Denied { .. }), "a look is never refused");
            banned |= matches!(decision, Decision::Banned { .. });
            all.push(first);
            all.extend(rest);
        }
        Ok((all, banned))
    }

    /// Does what was asked, noted before and after.
    async fn noted(
        &self,
        entry: Entry,
        deed: impl Future<Output = Result<(), Fault>>,
    ) -> Result<(), Fault> {
        let entry = self.audit.begin(entry).await.map_err(Fault::Audit)?;
        let done = deed.await;
        let outcome = match &done {
            Ok(()) => "done".to_owned(),
            Err(fault) => fault.to_string(),
        };
        self.audit.end(entry, outcome).await;
        done
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people to look at")]
fn level(held: &Held) -> f64 {
    rounded(held.tokens.0 as f64 / 1e9)
}

/// What `set` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SetBody {
    refill_rate: Option<f64>,
    capacity: Option<u64>,
    bucket_name: Option<String>,
}

/// What `ban` takes.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BanBody {
    #[serde(rename = "for")]
    lasts: Option<String>,
    until_ms: Option<u64>,
}

fn parsed<B: for<'de> Deserialize<'de>>(body: &Bytes) -> Result<B, Fault> {
    serde_json::from_slice(body).map_err(|error| Fault::unprocessable(format!("body: {error}")))
}

/// The body of an action that needs none: empty, or an empty object.
fn nothing(body: &Bytes) -> Result<(), Fault> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Nothing {}
    if body.is_empty() { Ok(()) } else { parsed::<Nothing>(body).map(drop) }
}

async fn act<T: Tune + Spend + Clone>(
    State(desk): Desk<T>,
    Path((agent, action)): Path<(String, String)>,
    peer: Option<axum::Extension<ConnectInfo<SocketAddr>>>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    let agent = agent_of(&agent)?;
    let body = body.map_err(|error| Fault::Bad(error.status(), error.body_text()))?;
    let operator = &desk.console.operator;
    let from = peer.map(|axum::Extension(ConnectInfo(peer))| peer.ip().to_string());
    let entry = |action: &'static str, detail: Value| Entry {
        at_ms: 0,
        action,
        agent_id: Some(agent.to_string()),
        detail,
        outcome: String::new(),
        from,
    };
    let operate = Fault::Operate;
    match action.as_str() {
        "set" => {
            let asked: SetBody = parsed(&body)?;
            let (bucket, limits) = desk.limits(&agent, &asked).await?;
            let detail = json!({
                "bucket_name": bucket.as_ref().map(BucketName::as_str),
                "refill_rate": limits.refill().tokens(),
                "capacity": limits.capacity().get(),
            });
            let deed = async { operator.set(&agent, bucket, limits).await.map_err(operate) };
            desk.noted(entry("set", detail), deed).await?;
        }
        "freeze" | "unfreeze" => {
            nothing(&body)?;
            let frozen = action == "freeze";
            let deed = async { operator.freeze(&agent, frozen).await.map_err(operate) };
            let name = if frozen { "freeze" } else { "unfreeze" };
            desk.noted(entry(name, json!({})), deed).await?;
        }
        "ban" => {
            let until_ms = until(&parsed(&body)?)?;
            let deed = async { operator.ban(&agent, until_ms).await.map_err(operate) };
            desk.noted(entry("ban", json!({"until_ms": until_ms})), deed).await?;
        }
        "unban" => {
            nothing(&body)?;
            let deed = async { operator.ban(&agent, 0).await.map_err(operate) };
            desk.noted(entry("unban", json!({})), deed).await?;
        }
        "reset" => {
            nothing(&body)?;
            let deed = async { operator.reset(&agent).await.map_err(operate) };
            desk.noted(entry("reset", json!({})), deed).await?;
        }
        _ => {
            let detail = "no such action: set, freeze, unfreeze, ban, unban and reset are";
            return Err(Fault::Bad(StatusCode::NOT_FOUND, detail.to_owned()));
        }
    }
    Ok(answer(desk.agent(&agent).await?))
}

impl<T: Tune + Spend + Clone> Shared<T> {
    /// Returns which bucket is to get which limits; a half that is not named stays.
    async fn limits(
        &self,
        agent: &AgentId,
        asked: &SetBody,
    ) -> Result<(Option<BucketName>, Limits), Fault> {
        let SetBody { refill_rate, capacity, bucket_name } = asked;
        if refill_rate.is_none() && capacity.is_none() {
            return Err(Fault::unprocessable(
                "refill_rate: missing, and capacity as well: name one",
            ));
        }
        let rules = self.rules();
        let place = match bucket_name {
            None => rules.iter().position(|rule| rule.is_default),
            Some(name) => rules.iter().position(|rule| rule.name.as_str() == name),
        };
        let Some(place) = place else {
            let names: Vec<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
            let names = names.join(", ");
            return Err(Fault::unprocessable(format!("bucket_name: must be one of {names}")));
        };
        let rule = &rules[place];
        let record: Record = self.console.operator.record(agent).await?;
        let now = match (rule.is_default, record.limits) {
            // Also of a banned agent, of which a look tells nothing.
            (true, Some(limits)) => limits,
            _ => {
                self.held(agent, &rules).await?.0.get(place).map_or(rule.limits, |held| held.limits)
            }
        };
        let rate = refill_rate.unwrap_or(now.refill().tokens());
        let capacity = capacity.unwrap_or(now.capacity().get());
        let limits = Limits::per_second(rate, capacity);
        let limits = limits.map_err(|error| {
            let field = match error {
                LimitsError::Capacity { .. } => "capacity",
                _ => "refill_rate",
            };
            Fault::unprocessable(format!("{field}: {error}"))
        })?;
        Ok(((!rule.is_default).then(|| rule.name.clone()), limits))
    }
}

/// Returns when a ban ends.
fn until(asked: &BanBody) -> Result<u64, Fault> {
    let most = u64::try_from(BAN_MAX.as_millis()).unwrap_or(u64::MAX);
    let now = unix_ms();
    let until = match (&asked.lasts, asked.until_ms) {
        (Some(lasts), None) => {
            let lasts =
                duration::parse(lasts).filter(|lasts| !lasts.is_zero()).ok_or_else(|| {
                    Fault::unprocessable(format!(
                        "for: must be like 90s, 15m, 1h or 7d, is {lasts:?}"
                    ))
                })?;
            now.saturating_add(u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX))
        }
        (None, Some(until)) => until,
        _ => return Err(Fault::unprocessable("for: name either it or until_ms")),
    };
    if until <= now {
        let fault = format!("until_ms: must be in the future (it is {now} now), is {until}");
        return Err(Fault::unprocessable(fault));
    }
    if until - now > most {
        return Err(Fault::unprocessable("for: must be at most 3650d"));
    }
    Ok(until)
}

#[cfg(test)]
mod tests;
