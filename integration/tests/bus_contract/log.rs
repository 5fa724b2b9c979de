//! What only a bus on a server that can be emptied or stopped is asked for.

use std::time::Duration;

use merit_integration::{Persistence, Redis};
use merit_sidecar::bus::{BusConfig, Event, PublishError, redis_streams::config::Config};
use tokio::time::timeout;

use crate::contract::{PATIENCE, rating};

fn over(redis: &Redis) -> BusConfig {
    let url = Some(redis.url().as_str().into());
    let lease = Duration::from_secs(2);
    let delivery_timeout = Duration::from_secs(1);
    BusConfig::Redis(Config { url, lease, delivery_timeout, partitions: 2, ..Default::default() })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_redis_is_another_log_and_what_comes_then_is_read_under_its_name() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (publisher, mut consumer) = over(&redis).both().await.expect("the bus can be used");
    publisher.publish(&rating("a", "before")).await.expect("there is room");
    let mut events = Vec::new();
    while !matches!(events.last(), Some(Event::Batch { .. })) {
        events
            .push(timeout(PATIENCE, consumer.next()).await.expect("in time").expect("no failure"));
    }
    let source = consumer.source().to_owned();
    let _: String = redis.ask(&["FLUSHALL"]).await;
    publisher.publish(&rating("a", "after")).await.expect("there is room");
    // Given up, taken over under another name, and only then read: nothing of it under the old one.
    let mut gave_up = false;
    loop {
        match timeout(PATIENCE, consumer.next()).await.expect("in time").expect("no failure") {
            Event::Revoked(_) => gave_up = true,
            Event::Assigned(_) => assert_ne!(consumer.source(), source),
            Event::Batch { deliveries, .. } => {
                assert!(gave_up, "read before the old log was given up");
                assert_ne!(consumer.source(), source);
                assert_eq!(deliveries[0].rating.id().as_str(), "after");
                break;
            }
            Event::Closed => panic!("a durable bus does not end"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_redis_hands_out_what_it_kept_and_gives_no_offset_twice() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (publisher, mut consumer) = over(&redis).both().await.expect("the bus can be used");
    publisher.publish(&rating("a", "kept")).await.expect("there is room");
    redis.snapshot().await;
    publisher.publish(&rating("a", "lost")).await.expect("there is room");
    let mut seen = Vec::new();
    while seen.len() < 2 {
        let event = timeout(PATIENCE, consumer.next()).await.expect("in time").expect("no failure");
        if let Event::Batch { deliveries, .. } = event {
            seen.extend(deliveries);
        }
    }
    redis.kill9();
    let refused = publisher.publish(&rating("a", "away")).await.expect_err("nobody is there");
    assert!(matches!(refused, PublishError::Unavailable { .. }), "{refused:?}");
    redis.restart().await;
    publisher.publish(&rating("a", "new")).await.expect("it is back");
    let new = loop {
        let event = timeout(PATIENCE, consumer.next()).await.expect("in time").expect("no failure");
        if let Event::Batch { deliveries, .. } = event
            && let Some(new) = deliveries.into_iter().find(|d| d.rating.id().as_str() == "new")
        {
            break new;
        }
    };
    // Whoever has folded the lost one must not take the new one for it.
    assert!(new.offset > seen[1].offset, "{new:?} is not after {:?}", seen[1]);
}
