//! The Kafka bus against a real broker: Kafka 4, started here on a free port and stopped again.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod broker;

mod letters;

mod members;

mod outage;

use merit_sidecar::bus::{BusConfig, Event, kafka::config::Config};
use rdkafka::{
    Message as _,
    admin::{AdminClient, AdminOptions, ResourceSpecifier},
    client::DefaultClientContext,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::Duration,
};

use crate::broker::{
    Kafka, PARTITIONS, PATIENCE, deliveries, ids, next, partition_of, publisher, rating,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rating_arrives_whole_on_its_agents_partition_under_its_key() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    publisher.check().await.unwrap();
    let rating = rating("a-1", "one");
    publisher.publish(&rating).await.unwrap();
    let Event::Assigned(assigned) = next(&mut consumer).await else { panic!("not assigned first") };
    let numbers: BTreeSet<u32> = assigned.iter().map(|a| a.partition.0).collect();
    assert_eq!(numbers, (0..PARTITIONS).collect());
    let ends: u64 = assigned.iter().map(|a| a.log_end - a.log_start).sum();
    assert_eq!(ends, 1, "the log ends after the one rating");
    let (found, after) = deliveries(&mut consumer, 1).await;
    assert_eq!(found[0].rating, rating);
    assert_eq!((found[0].partition, found[0].offset), (partition_of("a-1"), 0));
    assert_eq!(after, BTreeMap::from([(partition_of("a-1"), 1)]));
    assert!(consumer.durable());
    assert_eq!(consumer.source(), "kafka-1");
    let number = i32::try_from(partition_of("a-1").0).unwrap();
    let raw = kafka.raw(&config.topic, number, 1);
    assert_eq!(raw[0].key(), Some(b"u|a-1".as_slice()));
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_topic_is_created_compacted_after_seven_days() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    publisher(&config).await;
    let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
    let dead = config.dead_topic();
    let asked = [ResourceSpecifier::Topic(&config.topic), ResourceSpecifier::Topic(&dead)];
    let found = admin.describe_configs(&asked, &AdminOptions::new()).await.unwrap();
    let value =
        |index: usize, key| found[index].as_ref().unwrap().get(key).unwrap().value.clone().unwrap();
    assert_eq!(value(0, "cleanup.policy"), "compact");
    assert_eq!(value(0, "min.compaction.lag.ms"), "604800000");
    assert_eq!(value(1, "cleanup.policy"), "delete");
    let partitions = |topic: &str| {
        admin.inner().fetch_metadata(Some(topic), PATIENCE).unwrap().topics()[0].partitions().len()
    };
    assert_eq!((partitions(&config.topic), partitions(&dead)), (12, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_and_sasl_let_in_who_knows_the_password_and_nobody_else() {
    let kafka = Kafka::start(true);
    let password = kafka.folder.join("password");
    fs::write(&password, "test-secret\n").unwrap();
    let config = kafka.secured(&password);
    let mut faults = Vec::new();
    BusConfig::Kafka(config.clone()).validate("bus", &mut faults);
    assert_eq!(faults, [""; 0]);
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    publisher.publish(&rating("a", "secret")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["secret"]);
    consumer.close().await;
    fs::write(&password, "wrong").unwrap();
    let wrong = Config { delivery_timeout: Duration::from_secs(1), ..config.clone() };
    let outsider = BusConfig::Kafka(wrong).publisher().await.unwrap();
    assert!(
        outsider.publish(&rating("a", "outside")).await.is_err(),
        "a wrong password is refused"
    );
    let untrusting = Config { ca_file: None, delivery_timeout: Duration::from_secs(1), ..config };
    fs::write(&password, "test-secret").unwrap();
    let untrusting = BusConfig::Kafka(untrusting).publisher().await.unwrap();
    assert!(untrusting.publish(&rating("a", "x")).await.is_err(), "an unknown CA is not trusted");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_right_to_create_a_missing_topic_it_says_so_and_goes_on_when_there_is_one() {
    let kafka = Kafka::start_guarded();
    let password = kafka.folder.join("password");
    fs::write(&password, "test-secret").unwrap();
    let config = kafka.secured(&password);
    let (folder, broker) = (kafka.folder.to_str().unwrap(), kafka.brokers());
    let allow = |what: &[&str], operations: &[&str]| {
        let class = "org.apache.kafka.tools.AclCommand";
        let who =
            ["--add", "--allow-principal", "User:test", "--resource-pattern-type", "prefixed"];
        let mut arguments = vec!["run", folder, class, "--bootstrap-server", &broker];
        arguments.extend(who.iter().chain(what));
        arguments.extend(operations.iter().flat_map(|operation| ["--operation", operation]));
        kafka.script(&arguments);
    };
    allow(&["--topic", &config.topic], &["Read", "Write", "Describe"]);
    allow(&["--group", &config.group], &["Read"]);

    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    let refused = publisher.publish(&rating("a", "early")).await.unwrap_err();
    let mut why = refused.to_string();
    let mut source = std::error::Error::source(&refused);
    while let Some(cause) = source {
        why = format!("{why}: {cause}");
        source = cause.source();
    }
    for part in [
        &*format!("topic {} is missing", config.topic),
        "Create",
        "12 partition(s)",
        "cleanup.policy=compact, min.compaction.lag.ms=604800000",
    ] {
        assert!(why.contains(part), "{part:?} is not in {why:?}");
    }
    let dead = config.dead_topic();
    kafka.script(&["topic", folder, &config.topic, "12", "compact"]);
    kafka.script(&["topic", folder, &dead, "1", "delete"]);
    let begun = std::time::Instant::now();
    while publisher.publish(&rating("a", "late")).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "it does not see the topic");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What is published again is under the same id, as ever.
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["late"]);
    consumer.close().await;
}
