//! Confluent's wire format over a real Kafka and a real schema registry (Apicurio, by Confluent's API), against
//! `confluent-kafka-python`'s own serialisers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[allow(dead_code, reason = "the tests of the bus use the rest")]
#[path = "../bus/broker.rs"]
mod broker;

mod frames;

mod outage;

mod serdes;

mod subjects;

use std::time::Duration;

use merit_integration::SchemaRegistry;
use merit_sidecar::{
    bus::{kafka::config::Config, registry},
    rating::Encoding,
};

use crate::broker::Kafka;

/// Returns a configuration with a topic of its own, whose records name schemas of `registry`.
fn config(kafka: &Kafka, registry: &SchemaRegistry, encoding: Encoding) -> Config {
    let schema_registry = registry::Config {
        url: registry.url().as_str().into(),
        timeout: Duration::from_secs(1),
        ..registry::Config::default()
    };
    let base = kafka.config();
    // Subjects are the registry's for good, and topics are counted from 0 in every run.
    let topic = format!("{}-{}", base.topic, encoding.name());
    Config { topic, encoding, schema_registry: Some(Box::new(schema_registry)), ..base }
}
