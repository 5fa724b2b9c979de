//! Our schema among the versions of its subject: the registry's compatibility, and who may register.

use std::{error::Error as _, time::Duration};

use merit_integration::{SchemaRegistry, eventually};
use merit_sidecar::{
    bus::{BusConfig, Publisher, kafka::config::Config},
    rating::{Codec, Encoding, confluent::registration},
};

use crate::{
    broker::{Kafka, PATIENCE, deliveries, ids, rating},
    config,
};

/// Returns why the publisher may not publish, with its causes.
async fn refused(publisher: &Publisher) -> String {
    let error = publisher.check().await.expect_err("it may not publish");
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

async fn becomes_ready(publisher: &Publisher) {
    eventually("the publisher may publish", PATIENCE, || async { publisher.check().await.is_ok() })
        .await;
}

async fn begin(config: &Config) -> Publisher {
    let patient = Config { delivery_timeout: Duration::from_secs(30), ..config.clone() };
    BusConfig::Kafka(patient).publisher().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_schema_that_breaks_its_subject_is_refused_by_name_until_somebody_lets_it_in() {
    let (kafka, registry) = (Kafka::shared(), SchemaRegistry::shared().await);
    let config = config(&kafka, &registry, Encoding::Avro);
    let subject = format!("{}-value", config.topic);
    let numbers = r#"{"type":"record","name":"Rating","namespace":"merit.rating.v1","fields":[
        {"name":"user_id","type":"int"}]}"#;
    registry.register(&subject, "AVRO", numbers).await;
    registry.compatibility(&subject, "BACKWARD").await;
    let publisher = begin(&config).await;
    let said = refused(&publisher).await;
    assert!(said.contains(&format!("subject {subject} of the schema registry refuses")), "{said}");
    assert!(said.contains("or change the subject's compatibility"), "{said}");
    publisher.publish(&rating("a", "early")).await.unwrap_err();
    registry.compatibility(&subject, "NONE").await;
    becomes_ready(&publisher).await;
    publisher.publish(&rating("a", "late")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_schema_is_the_next_version_of_an_older_one_under_full_compatibility() {
    let (kafka, registry) = (Kafka::shared(), SchemaRegistry::shared().await);
    let config = config(&kafka, &registry, Encoding::Avro);
    let subject = format!("{}-value", config.topic);
    let older = r#"{"type":"record","name":"Rating","namespace":"merit.rating.v1","fields":[
        {"name":"agent_id","type":["null","string"],"default":null},
        {"name":"user_id","type":"string"},{"name":"score","type":"double"}]}"#;
    registry.register(&subject, "AVRO", older).await;
    registry.compatibility(&subject, "FULL_TRANSITIVE").await;
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    publisher.publish(&rating("a", "next")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["next"]);
    consumer.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_register_waits_for_somebody_who_does_in_either_form() {
    let (kafka, registry) = (Kafka::shared(), SchemaRegistry::shared().await);
    for form in 0..2 {
        let mut config = config(&kafka, &registry, Encoding::Protobuf);
        let subject = format!("by-hand.{form}");
        let table = config.schema_registry.as_mut().unwrap();
        table.register = false;
        table.subject = Some(subject.clone());
        let publisher = begin(&config).await;
        let said = refused(&publisher).await;
        assert!(said.contains(&format!("subject {subject} of the schema registry does not hold")));
        assert!(said.contains("register = true"), "{said}");
        let schema = registration(Codec::Protobuf);
        let text = [schema.schema, schema.or.unwrap()][form];
        registry.register(&subject, "PROTOBUF", text).await;
        becomes_ready(&publisher).await;
        publisher.publish(&rating("a", "registered")).await.unwrap();
    }
}
