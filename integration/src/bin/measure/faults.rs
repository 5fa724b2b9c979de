//! What callers see while Redis dies, freezes, fills up, is demoted, or the network to it fails.
//!
//! Each fault meets a layer of its own under open-loop load: requests come at their times, whether or
//! not earlier ones were answered. Recovery is the first answer that only Redis can give: agents that
//! nobody has heard of are given limits there when the fault ends, and ask until they see them.

use std::{
    collections::BTreeMap,
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use http::{HeaderMap, StatusCode};
use merit_integration::{Persistence, Redis};
use serde_json::json;
use tokio::{sync::watch, task::JoinSet, time::MissedTickBehavior};
use tower_merit::Outage;

use crate::{
    Arguments, crowd,
    figures::{Samples, Table, number, time},
    tools::Toxiproxy,
    wear::{Fit, Mode, Worn},
};

const MODES: [Mode; 2] = [Mode::Exact, Mode::Leased];
const POLICIES: [Outage; 3] = [Outage::Open, Outage::Closed, Outage::Local];

const AGENTS: u32 = 20;
/// Between two requests of one agent: 40 a second, twice its refill.
const PAUSE: Duration = Duration::from_millis(25);
const CAPACITY: u64 = 20;
const REFILL: u32 = 20;

/// As shipped.
const TIMEOUT: Duration = Duration::from_millis(20);

/// Load before a fault begins and after recovery.
const CALM: Duration = Duration::from_secs(2);

/// Between two requests that look for recovery.
const PROBE_EVERY: Duration = Duration::from_millis(2);
/// Agents that look for recovery; one after the other.
const PROBES: usize = 2_000;
/// What only Redis knows about them.
const PROBE_CAPACITY: u32 = 777;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// SIGKILL; after the time a new server starts, empty, without scripts.
    Killed,
    /// SIGSTOP, SIGCONT.
    Frozen,
    /// `maxmemory` of one byte, `noeviction`: every write is refused.
    Full,
    /// Made a replica of nobody: every write is refused with READONLY.
    Demoted,
    /// Answers take 100 ms ± 50 more.
    Slow,
    /// 15 ms ± 10: some answers within the deadline, some not.
    Lagging,
    /// 1 kB/s.
    Narrow,
    /// Nothing arrives any more; the connection stays open.
    Silent,
    /// The proxy cuts every connection.
    Reset,
}

const FAULTS: [Fault; 9] = [
    Fault::Killed,
    Fault::Frozen,
    Fault::Full,
    Fault::Demoted,
    Fault::Slow,
    Fault::Lagging,
    Fault::Narrow,
    Fault::Silent,
    Fault::Reset,
];

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Killed => "SIGKILL, restarted empty",
            Self::Frozen => "SIGSTOP, SIGCONT",
            Self::Full => "`maxmemory` reached, `noeviction`",
            Self::Demoted => "demoted to a replica",
            Self::Slow => "latency 100 ms ± 50",
            Self::Lagging => "latency 15 ms ± 10",
            Self::Narrow => "bandwidth 1 kB/s",
            Self::Silent => "nothing arrives",
            Self::Reset => "connections reset",
        })
    }
}

impl Fault {
    fn of_the_network(self) -> bool {
        matches!(self, Self::Slow | Self::Lagging | Self::Narrow | Self::Silent | Self::Reset)
    }

    fn lasts(self) -> Duration {
        Duration::from_secs(if self == Self::Frozen { 5 } else { 3 })
    }

    async fn begin(self, redis: &mut Redis, network: &Toxiproxy) -> anyhow::Result<()> {
        match self {
            Self::Killed => redis.kill9(),
            Self::Frozen => redis.freeze(),
            Self::Full => {
                let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
            }
            Self::Demoted => {
                let _: String = redis.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
            }
            Self::Slow => network.latency(100, 50).await?,
            Self::Lagging => network.latency(15, 10).await?,
            Self::Narrow => network.toxic("bandwidth", "upstream", &json!({"rate": 1})).await?,
            Self::Silent => network.toxic("timeout", "upstream", &json!({"timeout": 0})).await?,
            Self::Reset => {
                network.toxic("reset_peer", "downstream", &json!({"timeout": 0})).await?;
            }
        }
        Ok(())
    }

    async fn end(self, redis: &mut Redis, network: &Toxiproxy) -> anyhow::Result<()> {
        match self {
            Self::Killed => redis.restart().await,
            Self::Frozen => redis.thaw(),
            Self::Full => {
                let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
            }
            Self::Demoted => {
                let _: String = redis.ask(&["REPLICAOF", "NO", "ONE"]).await;
            }
            Self::Slow | Self::Lagging | Self::Narrow | Self::Silent | Self::Reset => {
                network.reset().await?;
            }
        }
        Ok(())
    }
}

pub(crate) async fn run(arguments: &mut Arguments) -> anyhow::Result<()> {
    let only: String = arguments.or(String::new())?;
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let network = Toxiproxy::start(redis.url().trim_start_matches("redis://")).await?;
    let probes = Arc::new(Probes::new());
    let mut table = Table::new([
        "fault",
        "mode",
        "policy",
        "decisions",
        "200",
        "429",
        "503",
        "most of one agent, of its limit",
        "p50",
        "p99.9",
        "worst",
        "back after",
        "503 after that",
    ]);
    for fault in FAULTS {
        for mode in MODES {
            for policy in POLICIES {
                let row = format!("{fault} {} {policy:?}", mode.word());
                if !row.contains(&only) {
                    continue;
                }
                let _: String = redis.ask(&["FLUSHALL"]).await;
                let seen = meet(fault, mode, policy, &mut redis, &network, &probes).await;
                let seen = seen.with_context(|| row)?;
                let [p50, p999, worst] = seen.samples.quantiles([0.5, 0.999, 1.0]);
                let answers = |status: u16| {
                    let status = StatusCode::from_u16(status).expect("a status");
                    seen.answers.get(&status).copied().unwrap_or_default().to_string()
                };
                table.row([
                    fault.to_string(),
                    mode.word().to_owned(),
                    format!("{policy:?}").to_lowercase(),
                    seen.answers.values().sum::<u64>().to_string(),
                    answers(200),
                    answers(429),
                    answers(503),
                    number(seen.share),
                    time(p50),
                    time(p999),
                    time(worst),
                    time(seen.back),
                    seen.late.to_string(),
                ]);
            }
        }
    }
    println!(
        "{AGENTS} agents, each {} requests/s at {REFILL}/s and {CAPACITY}, deadline {}\n\n{table}",
        1000 / PAUSE.as_millis(),
        time(TIMEOUT)
    );
    Ok(())
}

struct Seen {
    /// Answers to requests that came while the fault lasted.
    answers: BTreeMap<StatusCode, u64>,
    /// What the luckiest agent was given in that time, as a share of its bucket and refill.
    share: f64,
    /// How long decisions took from the fault's begin until the end of the run.
    samples: Samples,
    back: Duration,
    /// Answers of 503 in the two seconds after that: a busy machine misses a deadline now and then
    /// without any fault, and more of them are one.
    late: u64,
}

async fn meet(
    fault: Fault,
    mode: Mode,
    policy: Outage,
    redis: &mut Redis,
    network: &Toxiproxy,
    probes: &Probes,
) -> anyhow::Result<Seen> {
    let mut fit = Fit::unlimited(&if fault.of_the_network() { network.url() } else { redis.url() });
    (fit.timeout, fit.on_outage) = (TIMEOUT, policy);
    (fit.refill_rate, fit.capacity) = (REFILL.into(), CAPACITY);
    let service = fit.service(mode).await?;
    let (stop, stopped) = watch::channel(false);
    let load = tokio::spawn(open_loop(service.clone(), stopped));

    tokio::time::sleep(CALM).await;
    let begun = Instant::now();
    fault.begin(redis, network).await?;
    tokio::time::sleep(fault.lasts()).await;
    let ending = Instant::now();
    fault.end(redis, network).await?;
    let ended = Instant::now();
    probes.prepare(redis).await?;
    probes.until_redis_answers(service).await?;
    let back = ended.elapsed();
    tokio::time::sleep(CALM).await;
    let _ = stop.send(true);

    let mut seen =
        Seen { answers: BTreeMap::new(), share: 0.0, samples: Samples::default(), back, late: 0 };
    let mut passed: BTreeMap<u32, f64> = BTreeMap::new();
    let mut at_last = BTreeMap::new();
    for decision in load.await? {
        if decision.begun >= begun {
            seen.samples.push(decision.took);
        }
        if decision.begun >= begun && decision.begun < ending {
            *seen.answers.entry(decision.status).or_default() += 1;
            if decision.status.is_success() {
                *passed.entry(decision.agent).or_default() += 1.0;
            }
        }
        if decision.begun > ended + back {
            *at_last.entry(decision.status).or_insert(0) += 1_u64;
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "a small number")]
    let limit = CAPACITY as f64 + f64::from(REFILL) * (ending - begun).as_secs_f64();
    seen.share = passed.values().fold(0.0, |most, &passed| f64::max(most, passed / limit));
    let of = |status| at_last.get(&status).copied().unwrap_or_default();
    ensure!(of(StatusCode::TOO_MANY_REQUESTS) > 0, "nobody is limited at the end: {at_last:?}");
    seen.late = of(StatusCode::SERVICE_UNAVAILABLE);
    Ok(seen)
}

struct Decision {
    agent: u32,
    begun: Instant,
    took: Duration,
    status: StatusCode,
}

/// Asks at fixed times until told to stop; returns when all are answered.
async fn open_loop(service: Worn, mut stopped: watch::Receiver<bool>) -> Vec<Decision> {
    let fields: Vec<Arc<HeaderMap>> =
        (0..AGENTS).map(|agent| Arc::new(crowd::fields(&crowd::name(agent)))).collect();
    let mut ticks = tokio::time::interval(PAUSE / AGENTS);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut asked = JoinSet::new();
    let mut decisions = Vec::new();
    for agent in (0..AGENTS).cycle() {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stop| *stop) => break,
        }
        #[allow(clippy::cast_possible_truncation, reason = "a small number")]
        let (mut service, fields) = (service.clone(), Arc::clone(&fields[agent as usize]));
        asked.spawn(async move {
            let begun = Instant::now();
            let status = service.ask(&fields).await.status();
            Decision { agent, begun, took: begun.elapsed(), status }
        });
        while let Some(decision) = asked.try_join_next() {
            decisions.push(decision.expect("a request does not panic"));
        }
    }
    decisions.extend(asked.join_all().await);
    decisions
}

/// Agents that only Redis knows.
struct Probes(Vec<(String, HeaderMap)>);

/// How long recovery may take before it is called a failure.
const BACK_DEADLINE: Duration = Duration::from_secs(10);

impl Probes {
    fn new() -> Self {
        let probe = |number| {
            let name = format!("probe-{number}");
            let fields = crowd::fields(&name);
            (name, fields)
        };
        Self((0..PROBES).map(probe).collect())
    }

    /// Gives them their limits.
    async fn prepare(&self, redis: &Redis) -> anyhow::Result<()> {
        let mut pipeline = redis::pipe();
        for (name, _) in &self.0 {
            let limits = [("capacity", PROBE_CAPACITY), ("refill_rate", PROBE_CAPACITY)];
            pipeline.hset_multiple(format!("tb:{name}"), &limits).ignore();
        }
        Ok(pipeline.query_async(&mut redis.connect().await).await?)
    }

    async fn until_redis_answers(&self, mut service: Worn) -> anyhow::Result<()> {
        let begun = Instant::now();
        let ours = format!("q={PROBE_CAPACITY}");
        for (_, fields) in self.0.iter().cycle() {
            let answer = service.ask(fields).await;
            let policy = answer.headers().get("ratelimit-policy");
            if policy.is_some_and(|policy| policy.to_str().is_ok_and(|text| text.contains(&ours))) {
                return Ok(());
            }
            ensure!(begun.elapsed() < BACK_DEADLINE, "Redis does not decide again");
            tokio::time::sleep(PROBE_EVERY).await;
        }
        Ok(())
    }
}
