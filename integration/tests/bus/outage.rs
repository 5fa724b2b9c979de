//! A broker that is killed, or not there yet.

use merit_sidecar::bus::{
    BusConfig, Consumer, Delivery, Event, Partition, PublishError, kafka::config::Config,
};
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};
use tokio::time::timeout;

use crate::broker::{Kafka, PATIENCE, deliveries, ids, next, rating};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_broker_is_unavailable_in_time_and_everything_goes_on_when_it_is_back() {
    let kafka = Kafka::start(false);
    let config = Config { delivery_timeout: Duration::from_secs(2), ..kafka.config() };
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    publisher.publish(&rating("a", "before")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["before"]);
    kafka.kill();
    for id in ["lost-1", "lost-2"] {
        let begun = Instant::now();
        let error = publisher.publish(&rating("a", id)).await.unwrap_err();
        let took = begun.elapsed();
        assert!(matches!(error, PublishError::Unavailable { .. }), "{error:?}");
        assert!(error.retry_after() >= Some(Duration::from_secs(1)));
        assert!(took < Duration::from_millis(2300), "it took {took:?}");
    }
    assert!(publisher.check().await.is_err(), "and it is not ready");
    // Nobody is told of it as an error: the consumer waits, and may lose its session meanwhile.
    if let Ok(event) = timeout(Duration::from_secs(2), consumer.next()).await {
        assert!(matches!(event.unwrap(), Event::Revoked(_)));
    }
    kafka.start_again();
    let begun = Instant::now();
    while let Err(error) = publisher.publish(&rating("a", "after")).await {
        assert!(matches!(error, PublishError::Unavailable { .. }), "{error:?}");
        assert!(begun.elapsed() < PATIENCE, "publishing does not recover");
    }
    println!("publishing again {:?} after the broker was ready", begun.elapsed());
    let mut last = String::new();
    while last != "after" {
        // What the broker did not acknowledge may still have arrived.
        let (found, _) = deliveries_after_outage(&mut consumer).await;
        last = found.last().map(|d| d.rating.id().to_string()).unwrap_or_default();
    }
    println!("consuming again {:?} after the broker was ready", begun.elapsed());
    while publisher.check().await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "readiness does not recover");
    }
}

async fn deliveries_after_outage(
    consumer: &mut Consumer,
) -> (Vec<Delivery>, BTreeMap<Partition, u64>) {
    match next(consumer).await {
        Event::Batch { deliveries, positions } => (deliveries, positions.into_iter().collect()),
        _ => Default::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ends_may_start_before_the_broker() {
    let kafka = Kafka::start(false);
    kafka.kill();
    let config = Config { delivery_timeout: Duration::from_secs(1), ..kafka.config() };
    let (publisher, mut consumer) = BusConfig::Kafka(config.clone()).both().await.unwrap();
    let error = publisher.publish(&rating("a", "early")).await.unwrap_err();
    assert!(matches!(error, PublishError::Unavailable { .. }), "{error:?}");
    assert!(publisher.check().await.is_err());
    let waiting = tokio::spawn(async move { deliveries(&mut consumer, 1).await });
    kafka.start_again();
    let begun = Instant::now();
    while publisher.publish(&rating("a", "late")).await.is_err() {
        assert!(begun.elapsed() < PATIENCE, "publishing does not begin");
    }
    assert_eq!(ids(&waiting.await.unwrap().0), ["late"]);
}
