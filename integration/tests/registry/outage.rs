//! A registry that is not there, or goes away in the middle.

use std::time::{Duration, Instant};

use merit_integration::{
    Merit, Persistence, Redis, Role, SchemaRegistry, Settings,
    client::Client,
    eventually,
    ratings::{Poster, Rating},
};
use merit_sidecar::{
    bus::{Consumer, Event},
    rating::{
        Codec, Encoding,
        confluent::{self, SchemaId, registration},
    },
};
use tokio::time::timeout;

use crate::{
    broker::{Kafka, PATIENCE, consumer, next, partition_of, publisher, rating},
    config,
};

/// Adds the ids of the next batch to `found`; nothing when none comes within `patience`.
async fn take(consumer: &mut Consumer, patience: Duration, found: &mut Vec<String>) {
    let Ok(event) = timeout(patience, consumer.next()).await else { return };
    if let Event::Batch { deliveries, .. } = event.unwrap() {
        found.extend(deliveries.iter().map(|delivery| delivery.rating.id().to_string()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_partition_waits_for_a_schema_while_the_registry_is_away_and_loses_nothing() {
    let kafka = Kafka::shared();
    let mut registry = SchemaRegistry::start().await;
    let config = config(&kafka, &registry, Encoding::Avro);
    let publisher = publisher(&config).await;
    let place = partition_of("a");
    let number = i32::try_from(place.0).unwrap();
    let other = (0..).map(|n| format!("b{n}")).find(|b| partition_of(b) != place).unwrap();
    let schema = registration(Codec::Json);
    let foreign = registry.register("foreign-value", schema.kind, schema.schema).await;
    let framed = |id: &str| confluent::encode(Codec::Json, SchemaId(foreign), &rating("a", id));
    let put = async |id: &str| kafka.produce(&config.topic, number, "k", Some(&framed(id))).await;

    let mut first = consumer(&config).await;
    publisher.publish(&rating("a", "before")).await.unwrap();
    let mut found = Vec::new();
    while found.is_empty() {
        take(&mut first, PATIENCE, &mut found).await;
    }
    registry.kill9();
    put("held-1").await;
    // Its id is known, to who writes and to who reads; but it stands behind one that waits.
    publisher.publish(&rating("a", "held-2")).await.unwrap();
    publisher.check().await.unwrap();
    for n in 0..3 {
        put(&format!("held-{}", n + 3)).await;
        publisher.publish(&rating(&other, &format!("passes-{n}"))).await.unwrap();
    }
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        take(&mut first, Duration::from_millis(200), &mut found).await;
    }
    assert_eq!(found, ["before", "passes-0", "passes-1", "passes-2"]);

    // A second member takes over some of the partitions meanwhile, and gives them back.
    let mut second = consumer(&config).await;
    let shared = async {
        loop {
            if let Event::Assigned(assigned) = next(&mut second).await
                && !assigned.is_empty()
            {
                return;
            }
        }
    };
    let asked = async {
        loop {
            let event = next(&mut first).await;
            assert!(!matches!(&event, Event::Batch { deliveries, .. } if !deliveries.is_empty()));
        }
    };
    tokio::select! {
        () = shared => {}
        () = asked => unreachable!("it has no end"),
    }
    second.close().await;

    registry.restart().await;
    let begun = Instant::now();
    let mut found = Vec::new();
    while found.iter().filter(|id: &&String| id.starts_with("held")).count() < 5 {
        assert!(begun.elapsed() < PATIENCE, "it does not go on: {found:?}");
        take(&mut first, Duration::from_millis(200), &mut found).await;
    }
    println!("going on {:?} after the registry was back", begun.elapsed());
    // What a member had that gave its partition back uncommitted comes again, from where it began; each
    // comes in order, and once from there.
    let of_place: Vec<_> =
        found.iter().filter(|id| id.starts_with("held")).map(String::as_str).collect();
    assert_eq!(of_place, ["held-1", "held-2", "held-3", "held-4", "held-5"]);
    take(&mut first, Duration::from_millis(500), &mut found).await;
    assert_eq!(found.iter().filter(|id| id.starts_with("held")).count(), 5, "and none twice");
    first.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_process_that_starts_before_the_registry_refuses_with_the_remedy_until_it_is_there() {
    let kafka = Kafka::shared();
    let mut registry = SchemaRegistry::down();
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), "early.ratings");
    settings.tables = format!("[bus.schema_registry]\nurl = \"{}\"", registry.url());
    settings.environment.push(("MERIT__BUS__ENCODING".to_owned(), "protobuf".to_owned()));
    let mut ingest = Merit::launch(settings.clone().role(Role::Ingest));
    let mut tuner = Merit::launch(settings.role(Role::Tuner));
    let url = format!("{}/readyz", ingest.metrics());
    eventually("ingest says what it waits for", PATIENCE, || async {
        let Ok(answer) = Client::new().get(&url, None).await else { return false };
        answer.status == 503
            && answer.text().contains("schema registry at http://127.0.0.1:")
            && answer.text().contains("cannot be reached")
    })
    .await;
    let mut poster = Poster::new(&ingest.ingest());
    let early = poster.try_rate(&Rating::new("early", 5.0)).await.unwrap();
    assert_eq!(early.status, 503, "{}", early.text());
    assert!(early.retry_after() >= Duration::from_secs(1));
    let said = "no rating is published without its schema's id";
    assert!(ingest.output().contains(said), "{}", ingest.output());

    registry.restart().await;
    ingest.ready().await;
    tuner.ready().await;
    poster.rate("early", 5.0).await;
    let limits = |rate: &str| Some(("40".to_owned(), rate.to_owned()));
    eventually("the rating moves the limit", PATIENCE, || async {
        redis.limits("early").await == limits("20.2")
    })
    .await;
    // From now on it is not needed.
    registry.kill9();
    poster.rate("early", 5.0).await;
    eventually("the next one too", PATIENCE, || async {
        redis.limits("early").await == limits("20.4")
    })
    .await;
    assert_eq!(Client::new().get(&url, None).await.unwrap().status, 200);
}
