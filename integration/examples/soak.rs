//! Ratings for a long time, while Redis and the bus die and come back.
//!
//! ```text
//! integration/load soak [SECONDS] [RATE] [AGENTS] [BUS]      # default 600 2000 1000 kafka
//! ```
//!
//! Starts Redis, the bus (`kafka`, `nats` or `redis`, where the bus is the store's server) and one `merit run --role all`,
//! posts RATE ratings a second in batches of fifty by four posters, and kills Redis with -9 after a fifth and three fifths
//! of the time, the broker after two and four. Each is back after five seconds. A poster repeats what was
//! refused under the same ids until it is taken, and folds what was acknowledged. At the end every agent's limits must
//! equal that fold in every digit: a rating lost or applied twice shows. Prints one line of JSON, with the resident
//! memory of the process in MiB every tenth of the time.

#![allow(clippy::cast_precision_loss, reason = "figures to look at")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use merit_integration::{
    Bus, Kafka, Merit, Nats, Persistence, Redis, Settings,
    fold::Fold,
    ratings::{Poster, Rating, score},
};
use tokio::{task::JoinSet, time::MissedTickBehavior};

const POSTERS: u32 = 4;
const BATCH: u32 = 50;
/// How long a server that was killed stays away.
const AWAY: Duration = Duration::from_secs(5);
/// What a poster waits before it repeats what was refused.
const PAUSE: Duration = Duration::from_millis(200);
const SETTLE: Duration = Duration::from_secs(180);
const MIB: f64 = 1024.0 * 1024.0;

/// What may be killed.
struct Servers {
    redis: Redis,
    kafka: Option<Kafka>,
    nats: Option<Nats>,
}

impl Servers {
    async fn restart_redis(&mut self) {
        self.redis.kill9();
        tokio::time::sleep(AWAY).await;
        self.redis.restart().await;
    }

    async fn restart_bus(&mut self) {
        if let Some(kafka) = &mut self.kafka {
            kafka.kill9();
            tokio::time::sleep(AWAY).await;
            kafka.restart().await;
        } else if let Some(nats) = &mut self.nats {
            nats.kill9();
            tokio::time::sleep(AWAY).await;
            nats.restart().await;
        } else {
            self.restart_redis().await;
        }
    }
}

/// Posts `rate` ratings a second of `agents` until `stop`; returns the poster, and how often a rating was refused.
async fn post(
    mut poster: Poster,
    agents: Vec<String>,
    rate: u32,
    stop: Arc<AtomicBool>,
) -> (Poster, u64, u64) {
    let mut pace = tokio::time::interval(Duration::from_secs(1) * BATCH / rate);
    // What an outage held back is not caught up with: the rate is the rate.
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut sent, mut refused) = (0_usize, 0);
    while !stop.load(Ordering::SeqCst) {
        pace.tick().await;
        let batch = (sent..sent + BATCH as usize)
            .map(|n| Rating::new(&agents[n % agents.len()], score(n)))
            .collect();
        refused += poster.rate_until_taken(batch, PAUSE).await;
        sent += BATCH as usize;
    }
    (poster, sent as u64, refused)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default: u32| {
        arguments.next().map_or(Ok(default), |text| text.parse().context("not a number"))
    };
    let (seconds, rate, agents) = (number(600)?, number(2_000)?, number(1_000)?);
    let bus = arguments.next().unwrap_or_else(|| "kafka".to_owned());

    let redis = Redis::start(Persistence::EveryWrite).await;
    let mut servers = Servers { redis, kafka: None, nats: None };
    let mut settings = Settings::new(&servers.redis.url());
    let (topic, partitions) = ("soak.ratings".to_owned(), 12);
    settings.bus = match &*bus {
        "redis" => Bus::Redis { topic, partitions },
        "nats" => {
            Bus::Nats { url: servers.nats.insert(Nats::start().await).url(), topic, partitions }
        }
        "kafka" => {
            let brokers = servers.kafka.insert(Kafka::start().await).brokers();
            Bus::Kafka { brokers, topic, partitions }
        }
        other => bail!("`{other}` keeps nothing over a restart: kafka, nats or redis"),
    };
    let merit = Merit::start(settings).await;

    let stop = Arc::new(AtomicBool::new(false));
    let mut posters = JoinSet::new();
    for number in 0..POSTERS {
        let agents = (0..agents / POSTERS).map(|n| format!("agent-{number}-{n}")).collect();
        posters.spawn(post(Poster::new(&merit.ingest()), agents, rate / POSTERS, stop.clone()));
    }
    let began = Instant::now();
    let mut resident = Vec::new();
    for tenth in 1..=10_u32 {
        // Servers go at 2, 4, 6 and 8 tenths, memory is read before.
        let until = began + Duration::from_secs(seconds.into()) * tenth / 10;
        tokio::time::sleep_until(until.into()).await;
        resident.push((merit.memory()? as f64 / MIB).round());
        match tenth {
            2 | 6 => servers.restart_redis().await,
            4 | 8 => servers.restart_bus().await,
            _ => {}
        }
    }
    stop.store(true, Ordering::SeqCst);
    let (mut fold, mut sent, mut refused) = (Fold::default(), 0, 0);
    for (mut poster, its_sent, its_refused) in posters.join_all().await {
        // One more of each: what was applied twice behind the last look shows in it.
        let agents: Vec<String> = poster.fold.agents().map(str::to_owned).collect();
        poster.flow(&agents, agents.len()).await;
        fold.merge(poster.fold);
        (sent, refused) = (sent + its_sent + agents.len() as u64, refused + its_refused);
    }
    let settling = Instant::now();
    fold.settles_in(&servers.redis, SETTLE).await;
    println!(
        "{}",
        serde_json::json!({
            "bus": bus, "seconds": seconds, "rate": rate, "agents": fold.agents().count(),
            "acknowledged": sent, "refused_and_repeated": refused,
            "settled_after_seconds": settling.elapsed().as_secs_f64(),
            "resident_mib": resident,
            "repeats_seen": merit.series(r#"merit_ratings_folded_total{outcome="repeat"}"#).await,
            "processor_seconds": merit.processor()?.as_secs_f64(),
        })
    );
    Ok(())
}
