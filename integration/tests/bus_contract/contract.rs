//! The suite.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::NonZeroU32,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use merit_integration::unix_time;
use merit_sidecar::{
    bus::{BusConfig, Consumer, Delivery, Event, Partition, PublishError, Publisher},
    rating::{Poster, Rating, RatingRequest, partition_for},
};
use tokio::{task::JoinSet, time::timeout};

use crate::server::{LEASE, PARTITIONS, Server};

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
/// Room for all that a test publishes.
const AMPLE: usize = 10_000;

pub(crate) fn rating(agent: &str, id: &str) -> Rating {
    let body = format!(r#"{{"agent_id":"{agent}","user_id":"u","score":4.5,"id":"{id}"}}"#);
    let request = RatingRequest::from_json(body.as_bytes()).expect("a sound rating");
    let now_us = u64::try_from(unix_time().as_micros()).expect("a sound clock");
    request.into_rating(Poster::new("tests").expect("a name"), now_us).expect("a sound rating")
}

async fn both(config: &BusConfig) -> (Publisher, Consumer) {
    config.both().await.expect("the bus can be used")
}

async fn next(consumer: &mut Consumer) -> Event {
    timeout(PATIENCE, consumer.next()).await.expect("an event in time").expect("no failure")
}

/// Takes the next `count` deliveries, and the positions after them.
async fn take(consumer: &mut Consumer, count: usize) -> (Vec<Delivery>, BTreeMap<Partition, u64>) {
    let (mut found, mut after) = (Vec::new(), BTreeMap::new());
    while found.len() < count {
        if let Event::Batch { deliveries, positions } = next(consumer).await {
            found.extend(deliveries);
            after.extend(positions);
        }
    }
    assert_eq!(found.len(), count);
    (found, after)
}

fn ids(deliveries: &[Delivery]) -> Vec<String> {
    deliveries.iter().map(|delivery| delivery.rating.id().to_string()).collect()
}

async fn publish_all(publisher: &Publisher, agent: &str, ids: impl Iterator<Item = String>) {
    for id in ids {
        publisher.publish(&rating(agent, &id)).await.expect("there is room");
    }
}

/// Each of many agents rates at its own pace; whatever lies between, its ratings keep their order.
pub(crate) async fn ratings_of_an_agent_come_in_order_and_everything_comes_once(server: &Server) {
    let log = server.log(AMPLE, 100);
    let (publisher, mut consumer) = both(&log.config).await;
    let (agents, each) = (20, 25);
    let mut posting = JoinSet::new();
    for agent in 0..agents {
        let publisher = publisher.clone();
        posting.spawn(async move {
            let ids = (0..each).map(|n| format!("{agent}-{n:03}"));
            publish_all(&publisher, &format!("agent-{agent}"), ids).await;
        });
    }
    let (found, after) = take(&mut consumer, agents * each).await;
    posting.join_all().await;
    let mut of: BTreeMap<String, Vec<(Partition, u64, String)>> = BTreeMap::new();
    for delivery in &found {
        let agent = delivery.rating.agent().expect("it names one").to_string();
        let id = delivery.rating.id().to_string();
        of.entry(agent).or_default().push((delivery.partition, delivery.offset, id));
    }
    assert_eq!(of.len(), agents);
    for (agent, ratings) in of {
        assert_eq!(ratings.len(), each, "{agent}");
        assert!(ratings.iter().all(|(partition, ..)| *partition == ratings[0].0), "{agent} moves");
        assert!(ratings.is_sorted_by(|a, b| a.1 < b.1 && a.2 < b.2), "{agent}: {ratings:?}");
        let last = ratings.last().expect("there are some");
        assert!(after[&last.0] > last.1, "the position is not past {last:?}");
    }
}

/// Ratings of one agent, all at once: some are refused, none that was taken is lost, and those that
/// come again are taken.
pub(crate) async fn a_full_bus_refuses_says_when_to_come_back_and_loses_nothing(server: &Server) {
    let (room, count) = (50, 400);
    let log = server.log(room, 20);
    let (publisher, mut consumer) = both(&log.config).await;
    assert!(matches!(next(&mut consumer).await, Event::Assigned(_)));
    let publish = |ids: Vec<String>| {
        let publisher = publisher.clone();
        async move {
            let mut posting = JoinSet::new();
            for id in ids {
                let publisher = publisher.clone();
                posting.spawn(async move {
                    let outcome = publisher.publish(&rating("a", &id)).await;
                    (id, outcome)
                });
            }
            posting.join_all().await
        }
    };
    let mut refused: Vec<String> = (0..count).map(|n| format!("r{n:03}")).collect();
    let (mut taken, mut found) = (BTreeSet::new(), BTreeSet::new());
    let (begun, mut was_full) = (Instant::now(), false);
    while !refused.is_empty() {
        assert!(begun.elapsed() < PATIENCE, "{} are not taken", refused.len());
        let mut again = Vec::new();
        for (id, outcome) in publish(refused).await {
            match outcome {
                Ok(()) => assert!(taken.insert(id)),
                Err(error @ PublishError::Full { .. }) => {
                    assert!(error.retry_after().is_some_and(|wait| !wait.is_zero()));
                    was_full = true;
                    again.push(id);
                }
                Err(error) => panic!("{id}: {error:?}"),
            }
        }
        refused = again;
        // What was taken is handed out; with that done with, there is room again.
        while found.len() < taken.len() {
            if let Event::Batch { deliveries, positions } = next(&mut consumer).await {
                for id in ids(&deliveries) {
                    assert!(found.insert(id.clone()), "{id} comes twice");
                }
                consumer.commit(&positions).expect("it can be committed");
            }
        }
        assert_eq!(found, taken);
    }
    assert!(was_full, "{count} ratings at once fit into {room}");
    assert_eq!(taken.len(), count);
}

pub(crate) async fn batches_are_bounded_and_what_is_paused_waits(server: &Server) {
    let (batch_max, count) = (16, 300);
    let log = server.log(AMPLE, batch_max);
    let (publisher, mut consumer) = both(&log.config).await;
    let Event::Assigned(assigned) = next(&mut consumer).await else { panic!("not assigned") };
    let all: Vec<Partition> = assigned.iter().map(|assignment| assignment.partition).collect();
    consumer.pause(&all).expect("it can pause");
    let agents = 10;
    for agent in 0..agents {
        let ids = (0..count / agents).map(|n| format!("{agent}-{n}"));
        publish_all(&publisher, &format!("agent-{agent}"), ids).await;
    }
    let waited = timeout(Duration::from_millis(500), consumer.next()).await;
    assert!(waited.is_err(), "paused, it hands out {waited:?}");
    consumer.resume(&all).expect("it can go on");
    let mut found = 0;
    while found < count {
        if let Event::Batch { deliveries, .. } = next(&mut consumer).await {
            assert!(deliveries.len() <= batch_max, "{} in one batch", deliveries.len());
            found += deliveries.len();
        }
    }
    assert_eq!(found, count);
}

pub(crate) async fn what_was_not_committed_comes_again_after_a_crash(server: &Server) {
    let log = server.log(AMPLE, 10);
    let (publisher, mut crashing) = both(&log.config).await;
    publish_all(&publisher, "a", (0..40).map(|n| format!("r{n:02}"))).await;
    let (first, after) = take(&mut crashing, 10).await;
    assert_eq!(ids(&first), (0..10).map(|n| format!("r{n:02}")).collect::<Vec<_>>());
    let positions: Vec<_> = after.into_iter().collect();
    crashing.commit(&positions).expect("it can be committed");
    take(&mut crashing, 10).await;
    drop(crashing); // gives nothing back, and what it was doing ends with it

    // The commit was under way: the heir begins where it says, or where the first began.
    let mut heir = log.config.consumer().await.expect("the bus can be used");
    let mut rest = Vec::new();
    while rest.last().is_none_or(|id| id != "r39") {
        if let Event::Batch { deliveries, .. } = next(&mut heir).await {
            rest.extend(ids(&deliveries));
        }
    }
    let from = 40 - rest.len();
    assert!(from == 0 || from == 10, "it begins at {from}");
    assert_eq!(rest, (from..40).map(|n| format!("r{n:02}")).collect::<Vec<_>>());
}

pub(crate) async fn a_seek_goes_back_to_where_it_says(server: &Server) {
    let log = server.log(AMPLE, 10);
    let (publisher, mut consumer) = both(&log.config).await;
    publish_all(&publisher, "a", (0..20).map(|n| format!("r{n:02}"))).await;
    let (found, _) = take(&mut consumer, 20).await;
    let (partition, offset) = (found[5].partition, found[5].offset);
    consumer.seek(partition, offset).expect("the partition is ours");
    let (again, _) = take(&mut consumer, 15).await;
    assert_eq!(again, found[5..]);
    consumer.seek(partition, 0).expect("the partition is ours");
    let (again, _) = take(&mut consumer, 20).await;
    assert_eq!(again, found);
}

pub(crate) async fn a_record_that_is_no_rating_is_put_aside_and_what_follows_still_comes(
    server: &Server,
) {
    let log = server.log(AMPLE, 10);
    let (publisher, mut consumer) = both(&log.config).await;
    let poison = br#"{"agent_id":"a","user_id":"u","score":"5"}"#;
    publish_all(&publisher, "a", ["before".to_owned()].into_iter()).await;
    server.put(&log, "a", poison).await;
    server.put(&log, "a", br#"{"agentId":"a","userId":"u","score":2,"id":"foreign"}"#).await;
    publish_all(&publisher, "a", ["after".to_owned()].into_iter()).await;
    let (found, after) = take(&mut consumer, 3).await;
    assert_eq!(ids(&found), ["before", "foreign", "after"]);
    assert_eq!(found[1].rating.poster().as_str(), "bus");
    assert!(after[&found[2].partition] > found[2].offset);
    let letters = server.dead_letters(&log).await;
    assert_eq!(letters.len(), 1);
    assert_eq!(letters[0].0, poison);
    assert!(letters[0].1.starts_with("score \"5\" is a string"), "{}", letters[0].1);
}

pub(crate) async fn a_consumer_that_closes_hands_its_partitions_over_at_once(server: &Server) {
    let log = server.log(AMPLE, 10);
    let (publisher, mut first) = both(&log.config).await;
    publish_all(&publisher, "a", (0..5).map(|n| format!("r{n}"))).await;
    let (_, after) = take(&mut first, 5).await;
    first.commit(&after.into_iter().collect::<Vec<_>>()).expect("it can be committed");
    first.close().await;
    let closed = Instant::now();
    publish_all(&publisher, "a", (5..8).map(|n| format!("r{n}"))).await;
    let mut second = log.config.consumer().await.expect("the bus can be used");
    let (found, _) = take(&mut second, 3).await;
    assert_eq!(ids(&found), ["r5", "r6", "r7"]);
    // Not a bound on speed: a lease that nobody gave back would have to run out first.
    assert!(closed.elapsed() < LEASE, "it waited for the lease");
}

pub(crate) async fn publishers_that_go_leave_everything_to_be_handed_out(server: &Server) {
    let log = server.log(AMPLE, 10);
    let (publisher, mut consumer) = both(&log.config).await;
    publish_all(&publisher, "a", (0..25).map(|n| format!("r{n:02}"))).await;
    drop(publisher);
    let (found, _) = take(&mut consumer, 25).await;
    assert_eq!(ids(&found), (0..25).map(|n| format!("r{n:02}")).collect::<Vec<_>>());
    assert_eq!(next(&mut consumer).await, Event::Closed);
}

/// What one member of several saw.
#[derive(Default)]
struct Seen {
    owned: BTreeSet<Partition>,
    ids: Vec<String>,
    revoked: usize,
}

async fn take_part(
    config: BusConfig,
    all: Arc<Mutex<Vec<String>>>,
    joined: Arc<AtomicBool>,
    enough: usize,
) -> Seen {
    let mut consumer = config.consumer().await.expect("the bus can be used");
    let (mut seen, begun) = (Seen::default(), Instant::now());
    let count = || all.lock().expect("nobody panics").len();
    while count() < enough {
        assert!(begun.elapsed() < PATIENCE, "{} of {enough} in time", count());
        let Ok(event) = timeout(Duration::from_millis(100), consumer.next()).await else {
            continue;
        };
        match event.expect("no failure") {
            Event::Assigned(assigned) => {
                for partition in assigned.iter().map(|assignment| assignment.partition) {
                    assert!(seen.owned.insert(partition), "{partition} is assigned twice");
                }
                joined.store(true, Ordering::SeqCst);
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
                seen.ids.extend(ids(&deliveries));
                all.lock().expect("nobody panics").extend(ids(&deliveries));
                consumer.commit(&positions).expect("it can be committed");
            }
            Event::Closed => panic!("a durable bus does not end"),
        }
    }
    consumer.close().await;
    seen
}

pub(crate) async fn members_share_the_partitions_and_between_them_deliver_everything_once(
    server: &Server,
) {
    let log = server.log(AMPLE, 50);
    let publisher = log.config.publisher().await.expect("the bus can be used");
    let (all, count) = (Arc::new(Mutex::new(Vec::new())), 600);
    let member = |joined: &Arc<AtomicBool>| {
        tokio::spawn(take_part(log.config.clone(), Arc::clone(&all), Arc::clone(joined), count))
    };
    let (one, two): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
    let is = |joined: &Arc<AtomicBool>| joined.load(Ordering::SeqCst);
    let first = member(&one);
    merit_integration::eventually("the first member joins", PATIENCE, || async { is(&one) }).await;
    let mut second = None;
    for id in 0..count {
        let agent = format!("agent-{}", id % 40);
        publisher.publish(&rating(&agent, &format!("r{id}"))).await.expect("there is room");
        match id {
            // Ratings go on flowing while the first gives partitions up and the second joins …
            200 => second = Some(member(&two)),
            // … and the last of them only when it has.
            550 => {
                merit_integration::eventually("the second joins", PATIENCE, || async { is(&two) })
                    .await;
            }
            _ => {}
        }
    }
    let first = first.await.expect("no panic");
    let second = second.expect("it was started").await.expect("no panic");
    let all = all.lock().expect("nobody panics");
    let expected: BTreeSet<String> = (0..count).map(|id| format!("r{id}")).collect();
    assert_eq!(all.iter().cloned().collect::<BTreeSet<_>>(), expected, "all of it");
    assert_eq!(all.len(), count, "what was committed before it was given up comes once");
    assert!(first.revoked > 0, "the first gave partitions up");
    assert!(!second.ids.is_empty(), "the second took part");
}

pub(crate) async fn partitions_that_are_added_while_it_runs_are_read(server: &Server) {
    let log = server.log(AMPLE, 10);
    let (publisher, mut consumer) = both(&log.config).await;
    publish_all(&publisher, "a", ["before".to_owned()].into_iter()).await;
    take(&mut consumer, 1).await;
    let more = PARTITIONS * 2;
    let grown = server.grow(&log, more).await;
    // A publisher that knows of the new ones from the start, and an agent that falls on one.
    let publisher = grown.publisher().await.expect("the bus can be used");
    let more = NonZeroU32::new(more).expect("not zero");
    let agent = (0..)
        .map(|n| format!("agent-{n}"))
        .find(|agent| partition_for(agent, more) >= PARTITIONS)
        .expect("there are agents enough");
    publish_all(&publisher, &agent, (0..3).map(|n| format!("new-{n}"))).await;
    let (found, _) = take(&mut consumer, 3).await;
    assert_eq!(ids(&found), ["new-0", "new-1", "new-2"]);
    assert!(found[0].partition.0 >= PARTITIONS);
}
