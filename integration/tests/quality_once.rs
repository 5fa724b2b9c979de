//! With a policy that learns quality, every acknowledged rating is learned exactly once, whatever is
//! killed meanwhile.
//!
//! The tests read the topic for themselves and fold it agent by agent. With raters' trust off, every
//! agent's estimate in Redis must equal that fold bit for bit, and its evidence must be the number of
//! its ratings on the topic: ticks, prices and learning beside it may move limits, never this.
//!
//! `MERIT_KILLS` (3) says how often the tuner is killed.

use std::{
    collections::BTreeMap,
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use merit_integration::{
    Kafka, Merit, Persistence, Redis, Role, Settings, eventually,
    ratings::{BATCH, Poster},
};
use merit_sidecar::{
    policy::{Estimator, EstimatorConfig, State},
    rating::from_bus_json,
};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};
use redis::AsyncCommands as _;

const AGENTS: usize = 60;
/// Ratings per second while they flow.
const PACE: u32 = 1_000;
/// How long the tuner may take to work off what is left on the topic.
const SETTLE: Duration = Duration::from_secs(180);
const DEADLINE: Duration = Duration::from_secs(30);
/// The shipped length of a tick, in milliseconds.
const TICK_MS: u64 = 1_000;

fn agents() -> Vec<String> {
    (0..AGENTS).map(|n| format!("agent-{n}")).collect()
}

/// What the topic says of every agent: its estimate, and how many ratings made it.
fn offline(kafka: &Kafka, topic: &str) -> BTreeMap<String, (Estimator, u32)> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("group.id", "the-test")
        .set("enable.partition.eof", "false")
        .create()
        .expect("the configuration is valid");
    let metadata = consumer.fetch_metadata(Some(topic), DEADLINE).expect("the broker answers");
    let mut from_the_start = TopicPartitionList::new();
    let mut records = 0;
    for partition in metadata.topics()[0].partitions() {
        let marks = consumer.fetch_watermarks(topic, partition.id(), DEADLINE);
        let (low, high) = marks.expect("the broker answers");
        assert_eq!(low, 0, "nothing of the topic is compacted yet");
        records += high;
        let added = from_the_start.add_partition_offset(topic, partition.id(), Offset::Beginning);
        added.expect("the beginning is an offset");
    }
    consumer.assign(&from_the_start).expect("the partitions are there");
    let config = EstimatorConfig::default();
    let mut agents: BTreeMap<String, (Estimator, u32)> = BTreeMap::new();
    for read in 0..records {
        let message = consumer.poll(DEADLINE).unwrap_or_else(|| panic!("{read} of {records}"));
        let message = message.expect("the broker answers");
        let at_ms = message.timestamp().to_millis().expect("records have a time");
        let at_ms = u64::try_from(at_ms).expect("after 1970");
        let rating = from_bus_json(message.payload().expect("a rating"), at_ms).expect("a rating");
        let agent = rating.agent().expect("it names an agent").to_string();
        let begin = || (Estimator::new(&config), 0);
        let (estimator, count) = agents.entry(agent).or_insert_with(begin);
        let at_ms = rating.accepted_at_us() / 1_000;
        estimator.learn(rating.score().value(), 1.0, at_ms, TICK_MS, &config).expect("sound");
        *count += 1;
    }
    agents
}

/// What Redis says of every agent.
async fn online(redis: &Redis) -> BTreeMap<String, Estimator> {
    let mut link = redis.connect().await;
    let mut found = BTreeMap::new();
    for agent in agents() {
        let kept: Option<String> =
            link.hget(format!("merit:{{tb:{agent}}}"), "state").await.expect("it answers");
        let Some(kept) = kept else { continue };
        let kept: serde_json::Value = serde_json::from_str(&kept).expect("a state is JSON");
        let state: State = serde_json::from_value(kept["state"].clone()).expect("of this version");
        let standing = state.standing().expect("the policy learns quality");
        found.insert(agent, standing.estimator().clone());
    }
    found
}

fn evidence(agents: &BTreeMap<String, Estimator>) -> f64 {
    agents.values().map(Estimator::evidence).sum()
}

/// Waits until the tuner learns: some evidence is other than it was.
async fn progress(redis: &Redis) {
    let before = evidence(&online(redis).await);
    eventually("the tuner learns", SETTLE, || async { evidence(&online(redis).await) > before })
        .await;
}

async fn learns_once_though_killed(kind: &str) {
    let kills: u32 = std::env::var("MERIT_KILLS")
        .map_or(3, |text| text.parse().expect("MERIT_KILLS is a number"));
    let kafka = Kafka::shared().await;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let topic = format!("learned-{kind}.ratings");
    let mut settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), &topic);
    for (name, value) in [
        ("MERIT__TUNER__REPLAY_WINDOW", "1s"),
        ("MERIT__POLICY__KIND", kind),
        ("MERIT__POLICY__SERVICE_CAPACITY", "300"),
        ("MERIT__POLICY__MODE", "live"),
        ("MERIT__POLICY__TRUST", "false"),
    ] {
        settings.environment.push((name.into(), value.into()));
    }
    let (ingest, mut tuner) = tokio::join!(
        Merit::start(settings.clone().role(Role::Ingest)),
        Merit::start(settings.clone().role(Role::Tuner)),
    );
    let enough = Arc::new(AtomicBool::new(false));
    let flow = tokio::spawn({
        let (enough, mut poster) = (Arc::clone(&enough), Poster::new(&ingest.ingest()));
        async move {
            let mut pace = tokio::time::interval(
                Duration::from_secs(1) * u32::try_from(BATCH).expect("a small number") / PACE,
            );
            while !enough.load(Ordering::SeqCst) {
                pace.tick().await;
                poster.flow(&agents(), BATCH).await;
            }
        }
    });
    for kill in 1..=kills {
        progress(&redis).await;
        // The moments of the kills must differ between runs.
        let moment = RandomState::new().build_hasher().finish() % 1_500;
        tokio::time::sleep(Duration::from_millis(moment)).await;
        tuner.kill9();
        println!("{kind}: kill {kill} of {kills}");
        tuner.restart().await;
    }
    progress(&redis).await;
    enough.store(true, Ordering::SeqCst);
    flow.await.expect("every rating was acknowledged");

    let expected = tokio::task::block_in_place(|| offline(&kafka, &topic));
    assert_eq!(expected.len(), AGENTS);
    let all: f64 = expected.values().map(|(_, count)| f64::from(*count)).sum();
    eventually("the tuner has worked off the topic", SETTLE, || async {
        evidence(&online(&redis).await) >= all
    })
    .await;
    let found = online(&redis).await;
    for (agent, (estimator, count)) in &expected {
        let found = &found[agent];
        assert_eq!(
            found.evidence(),
            f64::from(*count),
            "{agent}: ratings learned and on the topic"
        );
        let bits = |estimator: &Estimator| {
            let belief = estimator.belief();
            (belief.mean.to_bits(), belief.variance.to_bits())
        };
        assert_eq!(bits(found), bits(estimator), "{agent}: {found:?} is not {estimator:?}");
        assert_eq!(found, estimator, "{agent}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn price_learns_every_rating_once_though_the_tuner_is_killed_again_and_again() {
    learns_once_though_killed("price").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ppo_learns_every_rating_once_though_the_tuner_is_killed_again_and_again() {
    learns_once_though_killed("ppo").await;
}
