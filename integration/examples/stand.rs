//! Everything on loopback, for a program that puts load on it.
//!
//! ```text
//! integration/load k6 ratings|burst|grpc, integration/load singles      # or: stand [BUS] COMMAND ARGUMENTS…
//! ```
//!
//! Starts Redis, the bus (`kafka`, `redis`, `nats` or `in-process`), an upstream, one `merit run --role all`, and then the
//! command with `MERIT_INGEST`, `MERIT_GRPC`, `MERIT_GATEWAY`, `MERIT_METRICS`, `MERIT_SECRET`, `MERIT_ISSUER`,
//! `MERIT_AUDIENCE` and `MERIT_COLLECTOR` (a token that may name any rater) in its environment. When the command ends it prints
//! as one line of JSON what the tuner counted from a rating's acceptance to its limit, how many ratings were not folded
//! yet, and the processor time that everybody took while the command ran; and ends as the command did.
//!
//! With `REDIS_SYNC=always` Redis writes every change to the disk before it answers, which every limit waits for; without,
//! it writes snapshots.

use std::time::{Duration, Instant};

use anyhow::Context;
use merit_integration::{
    AUDIENCE, Bus, ISSUER, Kafka, Merit, Nats, Persistence, Redis, SECRET, Settings, Upstream,
    keys, processor_of_the_ended,
};
use tokio::process::Command;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let bus = arguments.next().context("which bus? kafka, redis, nats or in-process")?;
    let program = arguments.next().context("which command?")?;

    let persistence = match std::env::var("REDIS_SYNC").as_deref() {
        Ok("always") => Persistence::EveryWrite,
        _ => Persistence::SnapshotOnDemand,
    };
    let redis = Redis::start(persistence).await;
    let upstream = Upstream::start();
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
    let (mut kafka, mut nats) = (None, None);
    let (topic, partitions) = ("load.ratings".to_owned(), 12);
    settings.bus = match &*bus {
        "in-process" => Bus::InProcess,
        "redis" => Bus::Redis { topic, partitions },
        "nats" => Bus::Nats { url: nats.insert(Nats::start().await).url(), topic, partitions },
        "kafka" => {
            let brokers = kafka.insert(Kafka::start().await).brokers();
            Bus::Kafka { brokers, topic, partitions }
        }
        other => anyhow::bail!("`{other}` is no bus: kafka, redis, nats or in-process"),
    };
    // Rates stay off their bounds and move by whole tokens, so that every rating changes what is seen.
    for (name, value) in [("R_MAX", "100000"), ("ALPHA", "1")] {
        settings.environment.push((format!("MERIT__POLICY__{name}"), value.to_owned()));
    }
    let merit = Merit::start(settings).await;

    // Of the load itself it is known once it has ended.
    let used = || -> anyhow::Result<[Duration; 4]> {
        let broker = kafka.as_ref().map_or(Ok(Duration::ZERO), Kafka::processor)?;
        Ok([merit.processor()?, broker, redis.processor()?, processor_of_the_ended()?])
    };
    let (began, before) = (Instant::now(), used()?);
    let ended = Command::new(&program)
        .args(arguments)
        .env("MERIT_INGEST", merit.ingest())
        .env("MERIT_GRPC", merit.grpc())
        .env("MERIT_GATEWAY", merit.gateway())
        .env("MERIT_METRICS", merit.metrics())
        .env("MERIT_SECRET", SECRET)
        .env("MERIT_ISSUER", ISSUER)
        .env("MERIT_AUDIENCE", AUDIENCE)
        .env("MERIT_COLLECTOR", keys::collector())
        .status()
        .await
        .with_context(|| format!("{program} does not start"))?;
    let seconds = began.elapsed().as_secs_f64();
    let after = used()?;
    let [merit_took, kafka_took, redis_took, load_took] =
        std::array::from_fn(|at| (after[at] - before[at]).as_secs_f64());
    let metric = async |name: &str| merit.metric(name).await;
    println!(
        "{}",
        serde_json::json!({
            "bus": bus,
            "accepted": metric("merit_ratings_accepted_total").await,
            "folded": metric("merit_ratings_folded_total").await,
            "seconds_in_limit": metric("merit_rating_to_limit_seconds_sum").await,
            "seconds": seconds,
            "processor_seconds": {
                "merit": merit_took, "kafka": kafka_took, "redis": redis_took, "load": load_took,
            },
        })
    );
    drop((kafka, nats));
    std::process::exit(ended.code().unwrap_or(1));
}
