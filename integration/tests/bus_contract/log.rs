//! What only a bus on a server that can be emptied or stopped is asked for.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use async_nats::jetstream;
use futures_util::StreamExt as _;
use merit_integration::{Cutter, Nats, Persistence, Redis, eventually};
use merit_sidecar::{
    bus::{
        BusConfig, Consumer, Delivery, Event, Partition, PublishError, nats,
        redis_streams::config::Config,
    },
    rating::partition_for,
};
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

fn over_nats(url: &str) -> BusConfig {
    let lease = Duration::from_secs(2);
    let delivery_timeout = Duration::from_secs(2);
    let url = url.into();
    let config = nats::config::Config { url, lease, delivery_timeout, ..Default::default() };
    BusConfig::Nats(nats::config::Config { partitions: 2, ..config })
}

async fn next(consumer: &mut Consumer) -> Event {
    timeout(PATIENCE, consumer.next()).await.expect("an event in time").expect("no failure")
}

/// Takes deliveries until one has the id `last`.
async fn until(consumer: &mut Consumer, last: &str) -> Vec<Delivery> {
    let mut found = Vec::new();
    while !found.iter().any(|delivery: &Delivery| delivery.rating.id().as_str() == last) {
        if let Event::Batch { deliveries, .. } = next(consumer).await {
            found.extend(deliveries);
        }
    }
    found
}

/// Returns an agent whose ratings are on `partition` of two.
fn agent_on(partition: u32) -> String {
    let two = 2.try_into().expect("not zero");
    let names = (0..).map(|n| format!("agent-{n}"));
    names.into_iter().find(|name| partition_for(name, two) == partition).expect("there is one")
}

/// Everything of a flow arrives, each agent's in order, though every connection of the consumer breaks
/// again and again.
async fn broken_off(server: &BusConfig, through: &BusConfig, cutter: &Cutter) {
    let publisher = server.publisher().await.expect("the bus can be used");
    let mut consumer = through.consumer().await.expect("the bus can be used");
    assert!(matches!(next(&mut consumer).await, Event::Assigned(_)));
    let count = 6_000;
    let publishing = tokio::spawn(async move {
        for number in 0..count {
            let (agent, id) = (format!("agent-{}", number % 7), format!("r{number:05}"));
            publisher.publish(&rating(&agent, &id)).await.expect("there is room");
        }
    });
    let cutting = async {
        while !publishing.is_finished() {
            tokio::time::sleep(Duration::from_millis(150)).await;
            cutter.cut();
        }
    };
    let mut seen: BTreeSet<String> = BTreeSet::new();
    let mut newest: BTreeMap<String, String> = BTreeMap::new();
    let taking = async {
        while seen.len() < count {
            let Event::Batch { deliveries, .. } = next(&mut consumer).await else { continue };
            for delivery in deliveries {
                let agent = delivery.rating.agent().expect("it names one").to_string();
                let id = delivery.rating.id().to_string();
                if seen.insert(id.clone()) {
                    let before = newest.insert(agent, id.clone());
                    assert!(before.is_none_or(|before| before < id), "{id} is out of order");
                }
            }
        }
    };
    tokio::join!(cutting, taking);
    publishing.await.expect("no panic");
    assert_eq!(seen.len(), count);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_connections_that_break_lose_nothing() {
    let nats = Nats::start().await;
    let cutter = Cutter::start(nats.port()).await;
    let through = format!("nats://{}", cutter.address());
    broken_off(&over_nats(&nats.url()), &over_nats(&through), &cutter).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_connections_that_break_lose_nothing() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let cutter = Cutter::start(redis.port()).await;
    let url = Some(format!("redis://{}", cutter.address()).as_str().into());
    let BusConfig::Redis(config) = over(&redis) else { unreachable!("it is over Redis") };
    let through = BusConfig::Redis(Config { url, ..config });
    broken_off(&over(&redis), &through, &cutter).await;
}

/// Reads on after the newest ratings were lost: what got their offsets is read under another name.
async fn new_under_another_name(consumer: &mut Consumer, source: &str) {
    loop {
        let Event::Batch { deliveries, .. } = next(consumer).await else { continue };
        if deliveries.iter().any(|delivery| delivery.rating.id().as_str() == "new-0") {
            break;
        }
    }
    assert_ne!(consumer.source(), source, "it has the offset of a lost one under the same name");
}

/// A log whose offsets come from a clock needs no other name: what comes next is behind what was lost anyway, and the other
/// partitions are not read again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_that_lost_its_newest_ratings_goes_on_behind_them_under_the_same_name() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (publisher, mut consumer) = over(&redis).both().await.expect("it can be used");
    let publish = async |agent: &str, id: &str| {
        publisher.publish(&rating(agent, id)).await.expect("it is taken");
    };
    for number in 0..20 {
        publish(&format!("agent-{number}"), &format!("other-{number}")).await;
    }
    publish("a", "kept").await;
    publish("a", "lost").await;
    let mut seen = 0;
    while seen < 22 {
        if let Event::Batch { deliveries, .. } = next(&mut consumer).await {
            seen += deliveries.len();
        }
    }
    let source = consumer.source().to_owned();
    let streams: Vec<String> = redis.ask(&["KEYS", "*:{*}"]).await;
    let mut of_a = None;
    for stream in streams {
        let kind: String = redis.ask(&["TYPE", &stream]).await;
        if kind != "stream" {
            continue;
        }
        type Entry = (String, Vec<String>);
        let entries: Vec<Entry> = redis.ask(&["XRANGE", &stream, "-", "+"]).await;
        let at = |id: &str| {
            let named = |(_, fields): &&Entry| {
                fields.iter().any(|field| field.contains(&format!("\"{id}\"")))
            };
            entries.iter().find(named).map(|(id, _)| id.clone())
        };
        if let (Some(kept), Some(lost)) = (at("kept"), at("lost")) {
            of_a = Some((stream, kept, lost));
        }
    }
    let (stream, kept, lost) = of_a.expect("both are on one stream");
    // As after a snapshot that is older than the last rating; then as if the whole stream were gone.
    for (round, whole) in [(0, false), (1, true)] {
        if whole {
            let _: u64 = redis.ask(&["DEL", &stream]).await;
        } else {
            let _: u64 = redis.ask(&["XDEL", &stream, &lost]).await;
            let _: String = redis.ask(&["XSETID", &stream, &kept]).await;
        }
        let asked = async || -> String {
            let info: Vec<redis::Value> = redis.ask(&["XINFO", "STREAM", &stream]).await;
            let place = info.iter().position(|value| {
                redis::from_redis_value::<String>(value.clone())
                    .is_ok_and(|name| name == "last-generated-id")
            });
            redis::from_redis_value(info[place.unwrap() + 1].clone()).unwrap()
        };
        let reads = async {
            loop {
                let Event::Batch { deliveries, .. } = next(&mut consumer).await else {
                    panic!("partitions were given up");
                };
                let ids: Vec<&str> =
                    deliveries.iter().map(|one| one.rating.id().as_str()).collect();
                assert!(ids.iter().all(|id| id.starts_with("new-")), "read again: {ids:?}");
                if ids.contains(&format!("new-{round}").as_str()) {
                    break;
                }
            }
        };
        let goes_on = async {
            eventually("the stream goes on behind what was lost", PATIENCE, || async {
                let exists: bool = redis.ask(&["EXISTS", &stream]).await;
                exists && asked().await >= lost
            })
            .await;
            publish("a", &format!("new-{round}")).await;
        };
        tokio::join!(reads, goes_on);
        assert_eq!(consumer.source(), source);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nats_that_lost_its_newest_ratings_is_another_log() {
    let mut nats = Nats::start().await;
    let (publisher, mut consumer) = over_nats(&nats.url()).both().await.expect("it can be used");
    let publish = async |id: String| {
        eventually("it is taken", PATIENCE, || {
            let (publisher, rating) = (publisher.clone(), rating("a", &id));
            async move { publisher.publish(&rating).await.is_ok() }
        })
        .await;
    };
    publish("kept".to_owned()).await;
    until(&mut consumer, "kept").await;
    nats.kill9();
    nats.keep_a_copy();
    nats.restart().await;
    for number in 0..5 {
        publish(format!("lost-{number}")).await;
    }
    until(&mut consumer, "lost-4").await;
    let source = consumer.source().to_owned();
    nats.kill9();
    nats.fall_back();
    nats.restart().await;
    let reading = tokio::spawn(async move {
        new_under_another_name(&mut consumer, &source).await;
    });
    // They get the offsets of the lost ones, and must not be taken for them.
    for number in 0..5 {
        publish(format!("new-{number}")).await;
    }
    reading.await.expect("no panic");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_nats_stream_that_was_made_anew_is_another_log_though_nobody_looked_meanwhile() {
    let nats = Nats::start().await;
    let config = over_nats(&nats.url());
    let (publisher, mut consumer) = config.both().await.expect("it can be used");
    let agent = agent_on(1);
    for number in 0..3 {
        publisher.publish(&rating(&agent, &format!("old-{number}"))).await.expect("there is room");
    }
    let found = until(&mut consumer, "old-2").await;
    let after = found.last().expect("some").offset + 1;
    consumer.commit(&[(Partition(1), after)]).expect("it can be committed");
    let source = consumer.source().to_owned();
    consumer.close().await;
    let client = async_nats::connect(nats.url()).await.expect("the server answers");
    let streams = jetstream::new(client);
    let names: Vec<String> =
        streams.stream_names().map(|name| name.expect("a name")).collect().await;
    let of_one = names.iter().find(|name| name.ends_with("-1")).expect("partition 1 has one");
    streams.delete_stream(of_one).await.expect("it is deleted");
    // More than were committed: their number tells nothing.
    for number in 0..10 {
        eventually("it is taken", PATIENCE, || {
            let (publisher, rating) = (publisher.clone(), rating(&agent, &format!("new-{number}")));
            async move { publisher.publish(&rating).await.is_ok() }
        })
        .await;
    }
    let mut heir = config.consumer().await.expect("it can be used");
    let found = until(&mut heir, "new-9").await;
    assert_ne!(heir.source(), source);
    let mut ids: Vec<String> = found.iter().map(|d| d.rating.id().to_string()).collect();
    ids.dedup();
    assert_eq!(ids, (0..10).map(|n| format!("new-{n}")).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_with_an_id_that_no_server_gives_stops_nobody_else() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (publisher, mut consumer) = over(&redis).both().await.expect("the bus can be used");
    let (bad, good) = (agent_on(0), agent_on(1));
    publisher.publish(&rating(&bad, "before")).await.expect("there is room");
    until(&mut consumer, "before").await;
    // Nanoseconds, say.
    let stream = format!("{}:{{0}}", Config::default().topic);
    let _: String = redis.ask(&["XADD", &stream, "1700000000000000000-0", "rating", "{}"]).await;
    publisher.publish(&rating(&good, "beside")).await.expect("the other has room");
    until(&mut consumer, "beside").await;
    let refused =
        publisher.publish(&rating(&bad, "after")).await.expect_err("it could not be read");
    assert!(format!("{refused:?}").contains("delete the stream"), "{refused:?}");
    // Longer than a lease: the other partition stays ours.
    tokio::time::sleep(Duration::from_secs(3)).await;
    publisher.publish(&rating(&good, "still")).await.expect("the other has room");
    until(&mut consumer, "still").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_was_set_back_fills_no_millisecond() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (publisher, mut consumer) = over(&redis).both().await.expect("the bus can be used");
    let agent = agent_on(0);
    publisher.publish(&rating(&agent, "before")).await.expect("there is room");
    // An hour ahead, as many as a millisecond has room for: the server counts on from there.
    let ahead = merit_integration::unix_time() + Duration::from_secs(3600);
    let (stream, id) = (format!("{}:{{0}}", Config::default().topic), (1 << 20) - 2);
    let id = format!("{}-{id}", ahead.as_millis());
    let foreign = r#"{"agent_id":"a","user_id":"u","score":2,"id":"foreign"}"#;
    let _: String = redis.ask(&["XADD", &stream, &id, "rating", foreign]).await;
    for number in 0..5 {
        publisher.publish(&rating(&agent, &format!("r{number}"))).await.expect("there is room");
    }
    let found = until(&mut consumer, "r4").await;
    let ids: Vec<&str> = found.iter().map(|delivery| delivery.rating.id().as_str()).collect();
    assert_eq!(ids, ["before", "foreign", "r0", "r1", "r2", "r3", "r4"]);
    assert!(found.is_sorted_by(|a, b| a.offset < b.offset), "{found:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_without_memory_is_read_and_gets_room_again() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let config = over(&redis);
    let (publisher, consumer) = config.both().await.expect("the bus can be used");
    drop(consumer);
    let agent = agent_on(0);
    let count = 1_000;
    for number in 0..count {
        let id = format!("r{number:04}");
        publisher.publish(&rating(&agent, &id)).await.expect("there is room");
    }
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = publisher.publish(&rating(&agent, "more")).await.expect_err("there is no room");
    assert!(matches!(refused, PublishError::Full { .. }), "{refused:?}");
    // Nobody has a lease; whoever comes now gets one, reads and makes room.
    let mut consumer = config.consumer().await.expect("the bus can be used");
    let found = until(&mut consumer, &format!("r{:04}", count - 1)).await;
    assert_eq!(found.len(), count);
    let after = found.last().expect("some").offset + 1;
    consumer.commit(&[(Partition(0), after)]).expect("it can be committed");
    let stream = format!("{}:{{0}}", Config::default().topic);
    eventually("what was committed is removed", PATIENCE, || async {
        redis.ask::<usize>(&["XLEN", &stream]).await < count / 2
    })
    .await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    publisher.publish(&rating(&agent, "more")).await.expect("there is room");
    until(&mut consumer, "more").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_nats_finds_too_large_is_cut_and_its_lost_stream_is_made_again() {
    let nats = Nats::start().await;
    let (publisher, mut consumer) = over_nats(&nats.url()).both().await.expect("it can be used");
    publisher.publish(&rating("a", "before")).await.expect("there is room");
    until(&mut consumer, "before").await;
    let client = async_nats::connect(nats.url()).await.expect("the server answers");
    let room = client.server_info().max_payload;
    let streams = jetstream::new(client);
    let topic = nats::config::Config::default().topic;
    let dead = format!("{}_dead", topic.replace('.', "_"));
    let put = async |bytes: usize| {
        let payload = vec![b'x'; bytes];
        let subject = format!("{topic}.{}", partition_for("a", 2.try_into().expect("not zero")));
        streams.publish(subject, payload.into()).await.expect("sent").await.expect("stored");
    };
    put(room).await;
    publisher.publish(&rating("a", "after")).await.expect("there is room");
    until(&mut consumer, "after").await;
    let letter = async |number: u64| {
        let stream = streams.get_stream(&dead).await.expect("it is there");
        stream.get_raw_message(number).await.expect("the letter is there")
    };
    let cut = letter(1).await;
    assert!(cut.payload.len() < room && cut.payload.len() > room / 2, "{}", cut.payload.len());
    assert_eq!(
        cut.headers.get("Merit-Value-Cut").map(async_nats::HeaderValue::as_str),
        Some("true")
    );

    streams.delete_stream(&dead).await.expect("it is deleted");
    put(10).await;
    publisher.publish(&rating("a", "later")).await.expect("there is room");
    until(&mut consumer, "later").await;
    assert_eq!(letter(1).await.payload.len(), 10);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_nobody_takes_holds_its_own_partition_alone() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (publisher, mut consumer) = over(&redis).both().await.expect("the bus can be used");
    let (held, free) = (agent_on(0), agent_on(1));
    let topic = Config::default().topic;
    // The key is taken by something else: no letter can be put there.
    let dead = format!("{topic}:dead");
    let _: String = redis.ask(&["SET", &dead, "mine"]).await;
    publisher.publish(&rating(&held, "before")).await.expect("there is room");
    let stream = format!("{topic}:{{0}}");
    let _: String = redis.ask(&["XADD", &stream, "*", "rating", "no rating"]).await;
    publisher.publish(&rating(&held, "behind")).await.expect("there is room");
    until(&mut consumer, "before").await;
    for number in 0..3 {
        let id = format!("beside-{number}");
        publisher.publish(&rating(&free, &id)).await.expect("there is room");
        let found = until(&mut consumer, &id).await;
        assert!(found.iter().all(|delivery| delivery.partition == Partition(1)), "{found:?}");
    }
    let _: u64 = redis.ask(&["DEL", &dead]).await;
    let found = until(&mut consumer, "behind").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(redis.ask::<u64>(&["XLEN", &dead]).await, 1);
}
