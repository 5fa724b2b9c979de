//! Who reads which partition, and from where.

use futures_util::FutureExt;
use merit_sidecar::bus::{BusError, Event, Partition, kafka::config::Config};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};
use tokio::{sync::Notify, time::timeout};

use crate::broker::{
    Kafka, PATIENCE, consumer, deliveries, ids, next, partition_of, publisher, rating,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_resume_from_the_commit() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    for id in 0..10 {
        publisher.publish(&rating("a", &format!("r{id}"))).await.unwrap();
    }
    let mut first = consumer(&config).await;
    deliveries(&mut first, 10).await;
    assert_eq!(first.lag().iter().map(|(_, lag)| lag).sum::<u64>(), 0);
    first.commit(&[(partition_of("a"), 7)]).unwrap();
    first.close().await;
    let mut second = consumer(&config).await;
    let (found, _) = deliveries(&mut second, 3).await;
    assert_eq!(ids(&found), ["r7", "r8", "r9"]);
    assert!(second.next().now_or_never().is_none(), "and nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seek_decides_where_a_partition_goes_on() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    for id in 0..10 {
        publisher.publish(&rating("a", &format!("r{id}"))).await.unwrap();
    }
    let mut consumer = consumer(&config).await;
    assert!(matches!(next(&mut consumer).await, Event::Assigned(_)));
    consumer.seek(partition_of("a"), 8).unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 2).await.0), ["r8", "r9"], "right after Assigned");
    consumer.seek(partition_of("a"), 3).unwrap();
    assert_eq!(consumer.lag().iter().map(|(_, lag)| lag).sum::<u64>(), 7);
    let back = deliveries(&mut consumer, 7).await.0;
    assert_eq!((ids(&back)[0], ids(&back)[6]), ("r3", "r9"), "later on");
    let error = consumer.seek(Partition(99), 0).unwrap_err();
    assert!(matches!(error, BusError::Seek { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_paused_partition_hands_out_nothing_until_it_is_resumed() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let mut consumer = consumer(&config).await;
    let other =
        (0..).map(|n| format!("b{n}")).find(|b| partition_of(b) != partition_of("a")).unwrap();
    next(&mut consumer).await;
    consumer.pause(&[partition_of("a")]).unwrap();
    publisher.publish(&rating("a", "held")).await.unwrap();
    publisher.publish(&rating(&other, "passes")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["passes"]);
    publisher.publish(&rating(&other, "again")).await.unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["again"]);
    consumer.resume(&[partition_of("a")]).unwrap();
    assert_eq!(ids(&deliveries(&mut consumer, 1).await.0), ["held"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_named_instance_that_comes_back_has_its_partitions_before_its_session_ends() {
    let kafka = Kafka::shared();
    let session = Duration::from_secs(30);
    let instance = Some("tuner-0".to_owned());
    let config = Config { instance, session_timeout: session, ..kafka.config() };
    let mut first = consumer(&config).await;
    assert!(matches!(next(&mut first).await, Event::Assigned(_)));
    drop(first);
    let begun = Instant::now();
    let mut second = consumer(&config).await;
    assert!(matches!(next(&mut second).await, Event::Assigned(_)));
    assert!(begun.elapsed() < session / 2, "it took {:?}", begun.elapsed());
}

/// What one member of a group saw.
#[derive(Default)]
struct Seen {
    ids: Vec<String>,
    revoked: usize,
    owned: BTreeSet<Partition>,
}

/// Consumes and commits until `enough` says so; checks that every record is of a partition that
/// was assigned and not revoked.
async fn take_part(
    config: Config,
    all: Arc<Mutex<Vec<String>>>,
    enough: usize,
    joined: Arc<Notify>,
) -> Seen {
    let mut consumer = consumer(&config).await;
    let mut seen = Seen::default();
    let begun = Instant::now();
    while all.lock().unwrap().len() < enough {
        assert!(begun.elapsed() < PATIENCE, "{} of {enough} in time", all.lock().unwrap().len());
        let Ok(event) = timeout(Duration::from_millis(100), consumer.next()).await else {
            continue;
        };
        match event.unwrap() {
            Event::Assigned(assigned) => {
                joined.notify_one();
                for partition in assigned.iter().map(|a| a.partition) {
                    assert!(seen.owned.insert(partition), "{partition} is assigned twice");
                }
            }
            Event::Revoked(revoked) => {
                seen.revoked += revoked.len();
                for partition in revoked {
                    assert!(seen.owned.remove(&partition), "{partition} was not ours");
                }
            }
            Event::Batch { deliveries, positions } => {
                for delivery in &deliveries {
                    assert!(seen.owned.contains(&delivery.partition), "{delivery:?} is not ours");
                }
                let ids = deliveries.iter().map(|d| d.rating.id().to_string());
                seen.ids.extend(ids.clone());
                all.lock().unwrap().extend(ids);
                consumer.commit(&positions).unwrap();
            }
            Event::Closed => panic!("kafka does not end"),
        }
    }
    consumer.close().await;
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_members_share_the_partitions_and_between_them_deliver_everything_once() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let all = Arc::new(Mutex::new(Vec::new()));
    let count = 1200;
    let member = |joined: &Arc<Notify>| {
        let part = take_part(config.clone(), Arc::clone(&all), count, Arc::clone(joined));
        tokio::spawn(part)
    };
    let (one, two) = (Arc::default(), Arc::default());
    let first = member(&one);
    let mut second = None;
    for id in 0..count {
        let rating = rating(&format!("agent-{}", id % 40), &format!("r{id}"));
        publisher.publish(&rating).await.unwrap();
        match id {
            0 => one.notified().await,
            // Ratings go on flowing while the first gives partitions up and the second joins …
            400 => second = Some(member(&two)),
            // … and the last of them only when it has.
            1100 => two.notified().await,
            _ => {}
        }
    }
    let (first, second) = (first.await.unwrap(), second.unwrap().await.unwrap());
    let expected: BTreeSet<String> = (0..count).map(|id| format!("r{id}")).collect();
    let all = all.lock().unwrap();
    assert_eq!(all.iter().cloned().collect::<BTreeSet<_>>(), expected, "all of it");
    assert_eq!(all.len(), count, "what was committed before it was given up comes once");
    assert!(first.revoked > 0, "the first gave partitions up");
    assert!(!second.ids.is_empty(), "the second took part");
    assert!(first.owned.is_disjoint(&second.owned), "no partition has two owners");
}
