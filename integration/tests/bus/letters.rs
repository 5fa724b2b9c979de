//! Records that are no ratings: put aside, and what happens where nobody takes them.

use merit_sidecar::bus::{Consumer, Event, Partition, kafka::config::Config};
use rdkafka::{
    Message as _,
    admin::{AdminClient, AdminOptions, AlterConfig, ResourceSpecifier},
    client::DefaultClientContext,
    message::{Headers as _, OwnedMessage},
    producer::{FutureProducer, FutureRecord},
};
use std::{collections::BTreeSet, time::Instant};

use crate::broker::{
    Kafka, PARTITIONS, PATIENCE, consumer, deliveries, ids, next, partition_of, publisher, rating,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn poison_goes_to_the_dead_letters_and_what_follows_still_comes() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let place = partition_of("a");
    let number = i32::try_from(place.0).unwrap();
    publisher.publish(&rating("a", "before")).await.unwrap();
    let poison = br#"{"agent_id":"a","user_id":"u","score":"5"}"#;
    kafka.produce(&config.topic, number, "the-key", Some(poison)).await;
    kafka.produce(&config.topic, number, "u|a", None).await; // a tombstone is no poison
    kafka.produce(&config.topic, number, "k", Some(b"\xff\xfe")).await;
    kafka
        .produce(&config.topic, number, "k", Some(br#"{"agentId":"a","userId":"u","score":2}"#))
        .await;
    publisher.publish(&rating("a", "after")).await.unwrap();
    let mut consumer = consumer(&config).await;
    let (found, after) = deliveries(&mut consumer, 3).await;
    assert_eq!(after[&place], 6, "the position is past poison and tombstone");
    assert_eq!(found.iter().map(|d| d.offset).collect::<Vec<_>>(), [0, 4, 5]);
    assert_eq!((ids(&found)[0], ids(&found)[2]), ("before", "after"));
    assert_eq!(found[1].rating.poster().as_str(), "bus", "a foreign producer's plain rating");
    let letters = kafka.raw(&config.dead_topic(), 0, 2);
    assert_eq!(letters[0].key(), Some(b"the-key".as_slice()));
    assert_eq!(letters[0].payload(), Some(poison.as_slice()));
    let header = |letter: usize, key: &str| {
        let headers = letters[letter].headers().unwrap();
        let found = headers.iter().find(|header| header.key == key).unwrap();
        String::from_utf8(found.value.unwrap().to_vec()).unwrap()
    };
    assert_eq!(header(0, "merit-partition"), number.to_string());
    assert_eq!(header(0, "merit-offset"), "1");
    assert_eq!(header(0, "merit-topic"), config.topic);
    assert!(header(0, "merit-reason").starts_with("score \"5\" is a string"));
    assert_eq!(
        (header(1, "merit-offset").as_str(), letters[1].payload()),
        ("3", Some(b"\xff\xfe".as_slice()))
    );
}

/// Puts a record on the topic that is as large as the broker takes: up to 1,048,588 bytes.
async fn produce_large(kafka: &Kafka, topic: &str, partition: Partition, key: &str, value: &[u8]) {
    let large: FutureProducer =
        kafka.client().set("message.max.bytes", "2000000").create().unwrap();
    let number = i32::try_from(partition.0).unwrap();
    let record = FutureRecord::to(topic).partition(number).key(key).payload(value);
    large.send(record, PATIENCE).await.unwrap();
}

fn has_header(letter: &OwnedMessage, key: &str) -> bool {
    letter.headers().unwrap().iter().any(|header| header.key == key)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_poison_record_is_put_aside_whole_where_the_broker_takes_it_and_cut_where_not() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    let place = partition_of("a");
    // Below librdkafka's default of 1,000,000 bytes alone, above it with headers …
    produce_large(&kafka, &config.topic, place, "k", &vec![b'x'; 1_020_000]).await;
    // … too large for the broker with headers: because of the value, and because of the key.
    produce_large(&kafka, &config.topic, place, "k", &vec![b'x'; 1_048_450]).await;
    let key = "k".repeat(1_048_450);
    produce_large(&kafka, &config.topic, place, &key, b"poison").await;
    publisher.publish(&rating("a", "after")).await.unwrap();
    let mut consumer = consumer(&config).await;
    let (found, after) = deliveries(&mut consumer, 1).await;
    assert_eq!((ids(&found), after[&place]), (vec!["after"], 4));
    let mut letters = kafka.raw(&config.dead_topic(), 0, 3);
    letters.sort_by_key(|letter| {
        let headers = letter.headers().unwrap();
        let offset = headers.iter().find(|header| header.key == "merit-offset").unwrap();
        offset.value.unwrap().to_vec()
    });
    let length = |letter: &OwnedMessage| letter.payload().unwrap().len();
    let cut = |letter| (has_header(letter, "merit-value-cut"), has_header(letter, "merit-key-cut"));
    assert_eq!((length(&letters[0]), cut(&letters[0])), (1_020_000, (false, false)));
    assert_eq!((length(&letters[1]), cut(&letters[1])), (64 * 1024, (true, false)));
    assert_eq!(letters[2].payload(), Some(b"poison".as_slice()));
    assert_eq!(letters[2].key(), Some(&key.as_bytes()[..1024]));
    assert_eq!(cut(&letters[2]), (false, true));
}

/// Gives the topic of dead letters a bound of `bytes` for one record.
async fn bound_dead_letters(kafka: &Kafka, config: &Config, bytes: &str) {
    let admin: AdminClient<DefaultClientContext> = kafka.client().create().unwrap();
    let dead = config.dead_topic();
    let bound = AlterConfig::new(ResourceSpecifier::Topic(&dead)).set("max.message.bytes", bytes);
    let altered = admin.alter_configs(&[bound], &AdminOptions::new()).await.unwrap();
    assert!(altered.iter().all(Result::is_ok), "{altered:?}");
}

/// Takes events until one is `enough`.
async fn follow(consumer: &mut Consumer, mut enough: impl FnMut(&Event) -> bool) {
    let begun = Instant::now();
    while !enough(&next(consumer).await) {
        assert!(begun.elapsed() < PATIENCE, "it does not come");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_letter_that_nobody_takes_holds_its_own_partition_alone() {
    let kafka = Kafka::shared();
    let config = kafka.config();
    let publisher = publisher(&config).await;
    bound_dead_letters(&kafka, &config, "100").await; // less than the headers alone
    let place = partition_of("a");
    let other =
        (0..).map(|n| format!("b{n}")).find(|b| partition_of(b) != partition_of("a")).unwrap();
    publisher.publish(&rating("a", "held-1")).await.unwrap();
    let number = i32::try_from(place.0).unwrap();
    kafka.produce(&config.topic, number, "k", Some(b"poison")).await;
    let mut first = consumer(&config).await;
    assert!(matches!(next(&mut first).await, Event::Assigned(_)));
    for id in ["passes-1", "passes-2"] {
        publisher.publish(&rating(&other, id)).await.unwrap();
        follow(&mut first, |event| {
            let Event::Batch { deliveries, positions } = event else { panic!("{event:?}") };
            assert!(positions.iter().all(|(p, next)| *p != place || *next == 1), "{event:?}");
            ids(deliveries).contains(&id)
        })
        .await;
    }
    publisher.publish(&rating("a", "held-2")).await.unwrap();
    // The poison does not keep the group from sharing the partitions anew, twice.
    let joining = consumer(&config).await;
    let second = tokio::spawn(async move {
        let mut second = joining;
        follow(&mut second, |event| matches!(event, Event::Assigned(a) if !a.is_empty())).await;
        second
    });
    let mut owned: BTreeSet<Partition> = (0..PARTITIONS).map(Partition).collect();
    let mut share = |event: &Event| {
        match event {
            Event::Revoked(revoked) => owned.retain(|p| !revoked.contains(p)),
            Event::Assigned(assigned) => owned.extend(assigned.iter().map(|a| a.partition)),
            _ => {}
        }
        owned.len()
    };
    follow(&mut first, |event| share(event) < PARTITIONS as usize).await;
    // It goes on being asked while the second waits for what it gave up.
    let second = {
        let asked = async {
            loop {
                next(&mut first).await;
            }
        };
        tokio::select! {
            second = second => second.unwrap(),
            () = asked => unreachable!("it has no end"),
        }
    };
    second.close().await;
    follow(&mut first, |event| share(event) == PARTITIONS as usize).await;
    bound_dead_letters(&kafka, &config, "1000000").await;
    follow(
        &mut first,
        |event| matches!(event, Event::Batch { positions, .. } if positions.contains(&(place, 3))),
    )
    .await;
    let letter = kafka.raw(&config.dead_topic(), 0, 1).remove(0);
    assert_eq!(
        (letter.key(), letter.payload()),
        (Some(b"k".as_slice()), Some(b"poison".as_slice()))
    );
}
