//! Records that are no ratings: set aside on the dead-letter topic with the reason, and the loop
//! goes on.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, time::Duration};

use merit_integration::{Kafka, Merit, Persistence, Redis, Settings, ratings::Poster};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
    message::Headers as _,
    producer::{FutureProducer, FutureRecord},
};

const DEADLINE: Duration = Duration::from_secs(30);
const TOPIC: &str = "poisoned.ratings";
const PARTITIONS: i32 = 4;

fn poison() -> Vec<Vec<u8>> {
    let mut records: Vec<Vec<u8>> = [
        "not json",
        "{}",
        "[]",
        "",
        r#"{"agent_id":"victim","user_id":"u","score":6}"#,
        r#"{"agent_id":"two words","user_id":"u","score":5}"#,
        r#"{"agent_id":"victim","user_id":"u","score":"5"}"#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    records.push(vec![0xff; 600_000]);
    records.push(b"\x00\x00\x00\x00\x01{}".to_vec());
    records
}

async fn produce(kafka: &Kafka, records: &[Vec<u8>]) {
    let producer: FutureProducer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .create()
        .expect("the configuration is valid");
    for (number, payload) in records.iter().enumerate() {
        for partition in 0..PARTITIONS {
            let key = format!("poison|{number}|{partition}");
            let record = FutureRecord::to(TOPIC).key(&key).payload(payload).partition(partition);
            producer.send(record, DEADLINE).await.expect("the broker takes any bytes");
        }
    }
    // A deletion, as log compaction knows it: no payload at all.
    let deletion = FutureRecord::<str, [u8]>::to(TOPIC).key("poison|deleted").partition(0);
    producer.send(deletion, DEADLINE).await.expect("the broker takes a deletion");
}

/// Returns the distinct payloads on the dead-letter topic, each of which must give a reason.
fn dead(kafka: &Kafka, expected: usize) -> BTreeSet<Vec<u8>> {
    let topic = format!("{TOPIC}.dead");
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("group.id", "the-test")
        .create()
        .expect("the configuration is valid");
    let metadata = consumer.fetch_metadata(Some(&topic), DEADLINE).expect("the broker answers");
    let mut from_the_start = TopicPartitionList::new();
    for partition in metadata.topics()[0].partitions() {
        let added = from_the_start.add_partition_offset(&topic, partition.id(), Offset::Beginning);
        added.expect("the beginning is an offset");
    }
    consumer.assign(&from_the_start).expect("the partitions are there");
    let (mut payloads, mut seen) = (BTreeSet::new(), 0);
    while seen < expected {
        let message =
            consumer.poll(DEADLINE).unwrap_or_else(|| panic!("{seen} of {expected} records"));
        let message = message.expect("the broker answers");
        let headers = message.headers().expect("a dead record gives a reason");
        let told = (0..headers.count()).filter_map(|n| headers.get(n).value);
        assert!(told.into_iter().any(|value| value.len() > 5), "a dead record gives no reason");
        payloads.insert(message.payload().unwrap_or_default().to_vec());
        seen += 1;
    }
    payloads
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_record_is_set_aside_and_the_ratings_around_it_count() {
    let kafka = Kafka::shared().await;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), TOPIC);
    let mut merit = Merit::start(settings).await;
    let mut poster = Poster::new(&merit.ingest());
    let agents: Vec<String> = (0..40).map(|n| format!("agent-{n}")).collect();

    poster.flow(&agents, 400).await;
    let records = poison();
    produce(&kafka, &records).await;
    poster.flow(&agents, 400).await;
    poster.fold.settles_in(&redis, DEADLINE).await;

    let expected: BTreeSet<Vec<u8>> = records.iter().cloned().collect();
    let count = records.len() * usize::try_from(PARTITIONS).unwrap();
    let set_aside = tokio::task::block_in_place(|| dead(&kafka, count));
    assert_eq!(set_aside, expected);
    let rated: BTreeSet<String> = redis.ask(&["KEYS", "tb:*"]).await;
    assert_eq!(rated, agents.iter().map(|agent| format!("tb:{agent}")).collect());

    // A tuner that starts again does not trip over what it has passed.
    merit.kill9();
    merit.restart().await;
    poster.flow(&agents, 400).await;
    poster.fold.settles_in(&redis, DEADLINE).await;
}
