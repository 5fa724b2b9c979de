//! What a decision costs Redis: one EVALSHA per request, and coalesced, side by side in one run.
//!
//! ```text
//! cargo build --release -p merit-integration --bin coalesce
//! target/release/coalesce [SECONDS] [ROUNDS]      # per cell and side; default 3 3
//! ```
//!
//! Starts Redis on loopback. `plain` is the token bucket everybody writes, called once per request
//! over one multiplexed connection; `merit` is [`RedisStore`] as it comes. Both decide for the same
//! agents in the same order, all admitted (limits are far above what a run asks, so that the cache of
//! denials has nothing to do), from 64 and 256 tasks that each ask one after the other. Agents are
//! drawn evenly from 10,000, or by Zipf's law with exponent 1.1. The sides take turns; figures are
//! medians over the rounds. `redis_us` is `usec` of `evalsha` from `INFO commandstats` per decision,
//! `redis_cpu_us` the server's whole CPU time. `sequential` is one task alone. Prints JSON lines.

#![allow(clippy::cast_precision_loss, clippy::unwrap_used, reason = "figures to look at")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use merit_integration::{PLAIN_LUA, Persistence, Redis};
use redis::{Script, aio::ConnectionManager};
use tokio::task::JoinSet;
use tower_merit::{
    AgentId, RedisStore, Spend,
    bucket::{BucketName, Limits, Tokens},
    store::{BucketRule, Charge, Decision, Take},
};

const AGENTS: usize = 10_000;

#[derive(Clone)]
enum Side {
    Plain(ConnectionManager, Arc<Script>, Arc<[String]>),
    Merit(RedisStore, Arc<[AgentId]>, Arc<[Take]>),
}

impl Side {
    fn name(&self) -> &'static str {
        match self {
            Self::Plain(..) => "plain",
            Self::Merit(..) => "merit",
        }
    }

    async fn decide(&self, agent: usize) -> anyhow::Result<()> {
        match self {
            Self::Plain(connection, script, keys) => {
                let mut connection = connection.clone();
                let mut call = script.key(&keys[agent]);
                let (admitted, _): (i64, i64) =
                    call.arg(9_000_000).arg(9_000_000).invoke_async(&mut connection).await?;
                ensure!(admitted == 1, "denied");
            }
            Self::Merit(store, agents, takes) => {
                let charge = Charge { agent: agents[agent].clone(), takes: Arc::clone(takes) };
                let verdict = store.spend(charge).await?;
                ensure!(verdict.decision == Decision::Admitted, "denied");
            }
        }
        Ok(())
    }
}

/// Agents in the order in which they are asked for, drawn once.
fn draw(zipf: bool) -> Arc<[usize]> {
    let weight = |rank: usize| if zipf { ((rank + 1) as f64).powf(-1.1) } else { 1.0 };
    let mut sum = 0.0;
    let sums: Vec<f64> = (0..AGENTS)
        .map(|rank| {
            sum += weight(rank);
            sum
        })
        .collect();
    let mut state = 1_u64;
    let mut next = move || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let draw = ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64 * sum;
        sums.partition_point(|sum| *sum < draw).min(AGENTS - 1)
    };
    (0..1 << 18).map(|_| next()).collect()
}

#[derive(Clone, Copy)]
struct Figures {
    per_second: f64,
    redis_us: f64,
    redis_cpu_us: f64,
    p50_us: f64,
    p99_us: f64,
}

async fn run(
    side: &Side,
    tasks: usize,
    agents: &Arc<[usize]>,
    duration: Duration,
    redis: &Redis,
) -> anyhow::Result<Figures> {
    let before = server(redis).await?;
    let began = Instant::now();
    let mut set = JoinSet::new();
    for task in 0..tasks {
        let (side, agents) = (side.clone(), Arc::clone(agents));
        set.spawn(async move {
            let mut waits = Vec::new();
            let mut at = task * agents.len() / tasks;
            while began.elapsed() < duration {
                let asked = Instant::now();
                side.decide(agents[at % agents.len()]).await?;
                waits.push(asked.elapsed());
                at += 1;
            }
            anyhow::Ok(waits)
        });
    }
    let mut waits = Vec::new();
    while let Some(done) = set.join_next().await {
        waits.extend(done??);
    }
    let elapsed = began.elapsed();
    let after = server(redis).await?;
    let decisions = waits.len() as f64;
    waits.sort_unstable();
    let at = |percent: usize| waits[waits.len() * percent / 100].as_secs_f64() * 1e6;
    Ok(Figures {
        per_second: decisions / elapsed.as_secs_f64(),
        redis_us: (after.0 - before.0) / decisions,
        redis_cpu_us: (after.1 - before.1) * 1e6 / decisions,
        p50_us: at(50),
        p99_us: at(99),
    })
}

/// Microseconds in `evalsha` and seconds of CPU so far.
async fn server(redis: &Redis) -> anyhow::Result<(f64, f64)> {
    let stats: String = redis.ask(&["INFO", "commandstats"]).await;
    let cpu: String = redis.ask(&["INFO", "cpu"]).await;
    let evalsha = stats.lines().find_map(|line| {
        let rest = line.strip_prefix("cmdstat_evalsha:")?;
        rest.split(',').find_map(|part| part.strip_prefix("usec="))?.parse().ok()
    });
    let used = |name: &str| {
        let line = cpu.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|text| text.trim().parse::<f64>().ok()).context("INFO cpu has no such line")
    };
    Ok((evalsha.unwrap_or(0.0), used("used_cpu_user:")? + used("used_cpu_sys:")?))
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (seconds, rounds) = (Duration::from_secs(number(3)?), number(3)?);

    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let client = redis::Client::open(redis.url())?;
    let ids: Vec<String> = (0..AGENTS).map(|index| format!("agent-{index}")).collect();
    let bucket = BucketRule {
        name: BucketName::new("default")?,
        is_default: true,
        limits: Limits::per_second(9_000_000.0, 9_000_000)?,
        shadow: false,
    };
    let store = RedisStore::builder(&redis.url()).timeout(Duration::from_secs(5));
    let sides = [
        Side::Plain(
            ConnectionManager::new(client).await?,
            Arc::new(Script::new(PLAIN_LUA)),
            ids.iter().map(|id| format!("plain:{id}")).collect(),
        ),
        Side::Merit(
            store.connect().await?,
            ids.iter().map(|id| AgentId::new(id)).collect::<Result<_, _>>()?,
            [Take { bucket, cost: Tokens::ONE }].into(),
        ),
    ];

    for (traffic, agents) in [("uniform", draw(false)), ("zipf 1.1", draw(true))] {
        for tasks in [1, 64, 256] {
            let mut figures = [Vec::new(), Vec::new()];
            for side in &sides {
                run(side, tasks, &agents, Duration::from_millis(500), &redis).await?;
            }
            for _ in 0..rounds {
                for (side, figures) in sides.iter().zip(&mut figures) {
                    figures.push(run(side, tasks, &agents, seconds, &redis).await?);
                }
            }
            let of = |side: usize, figure: fn(&Figures) -> f64| {
                median(figures[side].iter().map(figure).collect())
            };
            let side = |side: usize| {
                serde_json::json!({
                    "side": sides[side].name(),
                    "decisions_per_second": of(side, |f| f.per_second),
                    "redis_us": of(side, |f| f.redis_us),
                    "redis_cpu_us": of(side, |f| f.redis_cpu_us),
                    "p50_us": of(side, |f| f.p50_us),
                    "p99_us": of(side, |f| f.p99_us),
                })
            };
            let ratio = |figure: fn(&Figures) -> f64| of(1, figure) / of(0, figure);
            println!(
                "{}",
                serde_json::json!({
                    "traffic": traffic, "tasks": tasks, "sides": [side(0), side(1)],
                    "ratio": {
                        "decisions_per_second": ratio(|f| f.per_second),
                        "redis_us": ratio(|f| f.redis_us),
                        "redis_cpu_us": ratio(|f| f.redis_cpu_us),
                        "p50_us": ratio(|f| f.p50_us),
                    },
                })
            );
        }
    }
    Ok(())
}
