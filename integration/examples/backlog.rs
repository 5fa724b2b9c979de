//! How many ratings a core of the tuner works off: a topic that is full already, broker and Redis not
//! counted.
//!
//! ```text
//! integration/load backlog [POLICY] [RATINGS] [AGENTS]      # default ppo 500000 10000
//! ```
//!
//! Starts Redis and Kafka on loopback, puts ratings of agents drawn from Zipf(1.1) on a topic of four
//! partitions, then starts one `merit run --role tuner` and waits until all are folded and written. What
//! it took is the processor time of that process, from its first rating on. `ppo` is live and learns. Prints
//! one line of JSON. With `additive` Redis is emptied then under the loop, and `rebuilt_seconds` is the time from
//! there until every agent's limits are again those of a fold of the topic.

#![allow(clippy::cast_precision_loss, reason = "figures to look at")]

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use merit_integration::{Kafka, Merit, Persistence, Redis, Role, Settings, fold::Fold};
use merit_sidecar::rating::{Poster, RatingRequest, to_bus_json};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use rdkafka::{
    ClientConfig,
    producer::{BaseRecord, DefaultProducerContext, Producer as _, ThreadedProducer},
};

const TOPIC: &str = "backlog.ratings";
const PARTITIONS: usize = 4;
const EXPONENT: f64 = 1.1;
const USERS: u32 = 20_000;
const DEADLINE: Duration = Duration::from_secs(600);
const SETTLE: Duration = Duration::from_secs(60);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let policy = arguments.next().unwrap_or_else(|| "ppo".to_owned());
    let mut number = |default: usize| {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (ratings, agents) = (number(500_000)?, number(10_000)?);

    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let kafka = Kafka::start().await;
    let mut settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), TOPIC);
    for (name, value) in [("KIND", &*policy), ("MODE", "live"), ("SERVICE_CAPACITY", "50000")] {
        settings.environment.push((format!("MERIT__POLICY__{name}"), value.to_owned()));
    }
    // It makes the topic.
    Merit::start(settings.clone().role(Role::Ingest)).await.terminate().await;
    let brokers = kafka.brokers();
    let fold = tokio::task::spawn_blocking(move || fill(&brokers, ratings, agents)).await??;

    let tuner = Merit::start(settings.role(Role::Tuner)).await;
    let folded = || async { tuner.metric("merit_ratings_folded_total").await.unwrap_or_default() };
    let deadline = Instant::now() + DEADLINE;
    let began = (Instant::now(), tuner.processor()?.as_secs_f64(), folded().await);
    loop {
        tokio::time::sleep(Duration::from_millis(20)).await;
        if folded().await >= ratings as f64 {
            break;
        }
        if Instant::now() > deadline {
            bail!("{} of {ratings} ratings were folded: {}", folded().await, tuner.output());
        }
    }
    let seconds = began.0.elapsed().as_secs_f64();
    let processor = tuner.processor()?.as_secs_f64() - began.1;
    let worked = ratings as f64 - began.2;
    let writes = tuner.metric("merit_limit_writes_total").await;
    let mut rebuilt_seconds = None;
    if policy == "additive" {
        fold.settles_in(&redis, SETTLE).await;
        let emptied = Instant::now();
        let _: String = redis.ask(&["FLUSHALL"]).await;
        fold.settles_in(&redis, DEADLINE).await;
        rebuilt_seconds = Some(emptied.elapsed().as_secs_f64());
    }
    println!(
        "{}",
        serde_json::json!({
            "policy": policy, "rebuilt_seconds": rebuilt_seconds, "ratings": ratings, "agents": agents, "folded_in_the_window": worked,
            "seconds": seconds, "processor_seconds": processor,
            "ratings_per_processor_second": worked / processor,
            "ratings_per_second": worked / seconds,
            "writes": writes,
            "updates": tuner.metric("merit_learning_updates_total").await,
        })
    );
    Ok(())
}

/// Puts `ratings` on the topic, each agent's on one partition, and returns what they make of the limits.
fn fill(brokers: &str, ratings: usize, agents: usize) -> anyhow::Result<Fold> {
    let producer: ThreadedProducer<DefaultProducerContext> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("linger.ms", "20")
        .set("queue.buffering.max.messages", "1000000")
        .create()?;
    let mut sums = Vec::with_capacity(agents);
    let mut sum = 0.0;
    for rank in 1..=agents {
        sum += (rank as f64).powf(-EXPONENT);
        sums.push(sum);
    }
    let mut random = StdRng::seed_from_u64(1);
    let mut fold = Fold::default();
    let poster = Poster::new("backlog").context("a name")?;
    let now_us = u64::try_from(merit_sidecar::clock::unix_time().as_micros())?;
    for number in 0..ratings {
        let drawn = random.random::<f64>() * sum;
        let agent = sums.partition_point(|&sum| sum < drawn).min(agents - 1);
        let (user, score) = (random.random_range(0..USERS), random.random_range(1..=5_u32));
        fold.rate(&format!("agent-{agent}"), score.into());
        let body = format!(
            r#"{{"agent_id":"agent-{agent}","user_id":"user-{user}","score":{score},"id":"b{number}"}}"#
        );
        let rating =
            RatingRequest::from_json(body.as_bytes())?.into_rating(poster.clone(), now_us)?;
        let (key, payload) = (format!("user|agent-{agent}"), to_bus_json(&rating));
        let mut record = BaseRecord::to(TOPIC)
            .key(&key)
            .payload(&payload)
            .partition(i32::try_from(agent % PARTITIONS)?);
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((_, back)) => {
                    record = back;
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
    producer.flush(Duration::from_secs(120))?;
    Ok(fold)
}
