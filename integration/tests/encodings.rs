//! Ratings on the bus in every encoding, and a topic that has seen them all.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use merit_integration::{Kafka, Merit, Persistence, Redis, Settings, ratings::Poster};
use rdkafka::{
    ClientConfig, Message as _, Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _},
};

const DEADLINE: Duration = Duration::from_secs(60);
const TOPIC: &str = "encoded.ratings";
/// How many ratings each encoding carries.
const EACH: usize = 20;

/// Returns the first bytes of `count` records of the topic, in the order of its one partition.
fn beginnings(kafka: &Kafka, count: usize) -> Vec<[u8; 2]> {
    let consumer: BaseConsumer = ClientConfig::new()
        .set("bootstrap.servers", kafka.brokers())
        .set("group.id", "the-test")
        .create()
        .expect("the configuration is valid");
    let mut whole = TopicPartitionList::new();
    whole.add_partition_offset(TOPIC, 0, Offset::Beginning).expect("the beginning is an offset");
    consumer.assign(&whole).expect("the partition is there");
    let mut found = Vec::new();
    while found.len() < count {
        let record = consumer.poll(DEADLINE).unwrap_or_else(|| panic!("{} records", found.len()));
        let record = record.expect("the broker answers");
        found.push(record.payload().expect("a rating")[..2].try_into().expect("two bytes"));
    }
    found
}

#[tokio::test]
async fn a_topic_that_has_seen_all_encodings_is_folded_and_rebuilt_from_its_start() {
    let kafka = Kafka::shared().await;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let settings = |encoding: &str| {
        let mut settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), TOPIC);
        let bus = |key: &str, value: &str| (format!("MERIT__BUS__{key}"), value.to_owned());
        settings.environment = vec![bus("ENCODING", encoding), bus("PARTITIONS", "1")];
        settings
    };
    let mut fold = merit_integration::fold::Fold::default();
    for encoding in ["json", "avro", "protobuf"] {
        let mut merit = Merit::start(settings(encoding)).await;
        let mut poster = Poster::new(&merit.ingest());
        poster.fold = fold;
        for n in 0..EACH {
            poster.rate("encoded", 1.0 + (n % 5) as f64).await;
        }
        poster.fold.settles_in(&redis, DEADLINE).await;
        fold = poster.fold;
        merit.terminate().await;
    }
    let found = beginnings(&kafka, 3 * EACH);
    let (json, rest) = found.split_at(EACH);
    let (avro, protobuf) = rest.split_at(EACH);
    assert!(json.iter().all(|first| first[0] == b'{'), "{json:?}");
    assert!(avro.iter().all(|first| *first == [0xC3, 0x01]), "{avro:?}");
    // Field 1, a text: the id.
    assert!(protobuf.iter().all(|first| first[0] == 0x0A), "{protobuf:?}");

    // Redis comes back empty: everything is read again, by the encoding that each record is in.
    let _: () = redis.ask(&["FLUSHALL"]).await;
    let mut merit = Merit::start(settings("protobuf")).await;
    fold.settles_in(&redis, DEADLINE).await;
    for encoding in ["json", "avro"] {
        let series = format!("merit_bus_other_encoding_total{{encoding=\"{encoding}\"}}");
        assert_eq!(merit.series(&series).await, Some(EACH as f64), "{series}");
    }
    assert_eq!(merit.metric("merit_ratings_dead_total").await.unwrap_or_default(), 0.0);
    merit.terminate().await;
}
