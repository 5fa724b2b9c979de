//! Everything on loopback, for a program that puts load on it.
//!
//! ```text
//! integration/load k6 ratings|burst        # or: stand [BUS] COMMAND ARGUMENTS…
//! ```
//!
//! Starts Redis, the bus (`kafka`, `redis`, `nats` or `in-process`), an upstream, one `merit run --role all`, and then the
//! command with `MERIT_INGEST`, `MERIT_GATEWAY`, `MERIT_METRICS`, `MERIT_SECRET`, `MERIT_ISSUER`, `MERIT_AUDIENCE` and
//! `MERIT_COLLECTOR` (a token that may name any rater) in its environment. When the command ends it prints what the tuner
//! counted from a rating's acceptance to its limit, as one line of JSON, and ends as the command did.
//!
//! With `REDIS_SYNC=always` Redis writes every change to the disk before it answers, which every limit waits for; without,
//! it writes snapshots.

use anyhow::Context;
use merit_integration::{
    AUDIENCE, Bus, ISSUER, Kafka, Merit, Nats, Persistence, Redis, SECRET, Settings, Upstream, keys,
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

    let ended = Command::new(&program)
        .args(arguments)
        .env("MERIT_INGEST", merit.ingest())
        .env("MERIT_GATEWAY", merit.gateway())
        .env("MERIT_METRICS", merit.metrics())
        .env("MERIT_SECRET", SECRET)
        .env("MERIT_ISSUER", ISSUER)
        .env("MERIT_AUDIENCE", AUDIENCE)
        .env("MERIT_COLLECTOR", keys::collector())
        .status()
        .await
        .with_context(|| format!("{program} does not start"))?;
    let quantile = async |name: &str| merit.series(name).await;
    println!(
        "{}",
        serde_json::json!({
            "bus": bus,
            "folded": merit.metric("merit_ratings_folded_total").await,
            "seconds_in_limit": quantile("merit_rating_to_limit_seconds_sum").await,
            "processor_seconds": merit.processor()?.as_secs_f64(),
        })
    );
    drop((kafka, nats));
    std::process::exit(ended.code().unwrap_or(1));
}
