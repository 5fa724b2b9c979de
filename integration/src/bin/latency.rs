//! How long from a rating's acceptance until its agent's new limits can be read in Redis.
//!
//! ```text
//! cargo build --release --workspace --bins --features merit-sidecar/full
//! target/release/latency [RATINGS_PER_SECOND] [SECONDS] [AGENTS] [POLICY]   # default 1000 30 1000 additive
//! ```
//!
//! Starts Redis, Kafka and one `merit run --role all` on loopback, warms up for ten seconds, then
//! posts single ratings at the rate asked for. Two measures: what `merit_rating_to_limit_seconds`
//! counted for every rating, and what an onlooker saw who posts fifty ratings a second of its own
//! (one after the other) and reads Redis until the limit has changed, from the 202 on. There is no
//! onlooker but with `additive`: others need not move a limit at every rating. `ppo` is live and learns. Prints
//! one line of JSON.

#![allow(clippy::cast_precision_loss, reason = "figures to look at")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use merit_integration::{
    Kafka, Merit, Persistence, Redis, Settings, client::Client, keys, ratings::Rating,
};
use tokio::{task::JoinSet, time::MissedTickBehavior};

const WARM_UP: Duration = Duration::from_secs(10);

/// Pause between two ratings of the onlooker.
const ONLOOKER_PAUSE: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u64| {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (rate, seconds, agents) = (number(1000)?, number(30)?, number(1000)?);
    let policy = arguments.next().unwrap_or_else(|| "additive".to_owned());

    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let kafka = Kafka::start().await;
    let mut settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), "latency");
    for (name, value) in [("KIND", &*policy), ("MODE", "live"), ("SERVICE_CAPACITY", "10000")] {
        settings.environment.push((format!("MERIT__POLICY__{name}"), value.to_owned()));
    }
    let merit = Merit::start(settings).await;

    let load = Load { url: format!("{}/v1/rating", merit.ingest()), rate, agents };
    load.run(WARM_UP).await?;
    let before = buckets(&merit).await?;
    let duration = Duration::from_secs(seconds);
    let (posted, mut seen) = if policy == "additive" {
        let (posted, seen) = tokio::join!(load.run(duration), onlook(&merit, &redis, duration));
        (posted?, seen?)
    } else {
        (load.run(duration).await?, Vec::new())
    };
    let after = buckets(&merit).await?;

    let counted: Vec<(f64, f64)> =
        after.iter().zip(&before).map(|(a, b)| (a.0, a.1 - b.1)).collect();
    seen.sort_unstable();
    let at = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index")]
        let index = (seen.len().saturating_sub(1) as f64 * share) as usize;
        seen.get(index).map(|seen| seen.as_secs_f64() * 1e3)
    };
    println!(
        "{}",
        serde_json::json!({
            "policy": policy,
            "updates": merit.metric("merit_learning_updates_total").await,
            "asked_per_second": rate,
            "posted_per_second": posted as f64 / duration.as_secs_f64(),
            "agents": agents,
            "rating_to_limit_ms": {
                "p50": quantile(&counted, 0.5), "p95": quantile(&counted, 0.95),
                "p99": quantile(&counted, 0.99), "count": counted.last().map(|last| last.1),
            },
            "onlooker_ms": {
                "p50": at(0.5), "p95": at(0.95), "p99": at(0.99), "max": at(1.0), "count": seen.len(),
            },
        })
    );
    Ok(())
}

struct Load {
    url: String,
    rate: u64,
    agents: u64,
}

impl Load {
    /// Posts at the rate for `duration`; returns how many ratings were accepted.
    async fn run(&self, duration: Duration) -> anyhow::Result<u64> {
        let (client, token) = (Client::new(), keys::collector());
        let accepted = Arc::new(AtomicU64::new(0));
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / u32::try_from(self.rate)?);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut posts = JoinSet::new();
        let ends = Instant::now() + duration;
        let mut number = 0;
        while Instant::now() < ends {
            ticks.tick().await;
            // Scores around neutral, so that no rate meets its bounds and every limit changes.
            let score = if number % 2 == 0 { 3.5 } else { 2.5 };
            let rating = Rating::new(&format!("load-{}", number % self.agents), score);
            number += 1;
            let (client, url, token) = (client.clone(), self.url.clone(), token.clone());
            let accepted = Arc::clone(&accepted);
            posts.spawn(async move {
                let answer = client.post(&url, &token, &rating.json()).await?;
                ensure!(answer.status == 202, "{}", answer.text());
                accepted.fetch_add(1, Ordering::Relaxed);
                Ok(())
            });
            while let Some(done) = posts.try_join_next() {
                done??;
            }
        }
        while let Some(done) = posts.join_next().await {
            done??;
        }
        Ok(accepted.load(Ordering::Relaxed))
    }
}

/// Returns how long after each of its own 202s a reader of Redis saw the limit change.
async fn onlook(merit: &Merit, redis: &Redis, duration: Duration) -> anyhow::Result<Vec<Duration>> {
    let (client, token) = (Client::new(), keys::collector());
    let url = format!("{}/v1/rating", merit.ingest());
    let mut link = redis.connect().await;
    let mut read = async || -> anyhow::Result<Option<String>> {
        let mut command = redis::cmd("HGET");
        command.arg("tb:onlooker").arg("refill_rate");
        Ok(command.query_async(&mut link).await?)
    };
    let mut seen = Vec::new();
    let ends = Instant::now() + duration;
    let mut up = true;
    while Instant::now() < ends {
        let before = read().await?;
        let rating = Rating::new("onlooker", if up { 3.5 } else { 2.5 });
        up = !up;
        let answer = client.post(&url, &token, &rating.json()).await?;
        ensure!(answer.status == 202, "{}", answer.text());
        let accepted = Instant::now();
        while read().await? == before {
            ensure!(accepted.elapsed() < Duration::from_secs(30), "the limit never changed");
        }
        seen.push(accepted.elapsed());
        tokio::time::sleep(ONLOOKER_PAUSE).await;
    }
    Ok(seen)
}

/// Returns the cumulative histogram: upper bound in milliseconds, count up to it.
async fn buckets(merit: &Merit) -> anyhow::Result<Vec<(f64, f64)>> {
    let text = Client::new().get(&format!("{}/metrics", merit.metrics()), None).await?.text();
    let lines = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("merit_rating_to_limit_seconds_bucket{")?;
        let (_, rest) = rest.split_once("le=\"")?;
        let (bound, count) = rest.split_once("\"} ")?;
        let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
        Some((bound * 1e3, count.trim().parse().ok()?))
    });
    let buckets: Vec<(f64, f64)> = lines.collect();
    ensure!(!buckets.is_empty(), "merit_rating_to_limit_seconds is not among the metrics");
    Ok(buckets)
}

/// Returns a quantile in milliseconds, interpolated within its bucket as Prometheus does.
fn quantile(buckets: &[(f64, f64)], share: f64) -> f64 {
    let rank = share * buckets.last().map_or(0.0, |last| last.1);
    let mut lower = (0.0, 0.0);
    for &(bound, count) in buckets {
        if count >= rank {
            if bound.is_infinite() || count <= lower.1 {
                return lower.0;
            }
            return lower.0 + (bound - lower.0) * (rank - lower.1) / (count - lower.1);
        }
        lower = (bound, count);
    }
    lower.0
}
