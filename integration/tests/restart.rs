//! Every part restarts by itself, killed or asked to stop, and the next rating still moves the limit.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use merit_integration::{
    Kafka, Merit, Persistence, Redis, Role, Settings, Upstream,
    client::Client,
    keys,
    ratings::{Poster, Rating},
    until,
};

/// How long the loop may take to be whole again after a part came back.
const RECOVERY: Duration = Duration::from_secs(60);

/// Rates until ingest takes it: a part that just came back may still be connecting.
async fn rate_when_back(poster: &mut Poster, agent: &str) {
    let rating = Rating::new(agent, 5.0);
    let poster = tokio::sync::Mutex::new(poster);
    until("ingest takes a rating", RECOVERY, || async {
        let answer = poster.lock().await.try_rate(&rating).await.ok()?;
        match answer.status.as_u16() {
            202 => Some(()),
            503 => {
                answer.retry_after();
                None
            }
            other => panic!("{other}: {}", answer.text()),
        }
    })
    .await;
}

async fn passes(gateway: &Merit, agent: &str) {
    let url = format!("{}/hello", gateway.gateway());
    let answer = Client::new().get(&url, Some(&keys::agent(agent))).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert!(!answer.header("ratelimit").is_empty(), "{:?}", answer.headers);
}

#[tokio::test]
async fn any_part_of_the_loop_over_kafka_restarts_by_itself() {
    let mut kafka = Kafka::start().await;
    let mut redis = Redis::start(Persistence::EveryWrite).await;
    let upstream = Upstream::start();
    let settings = Settings::new(&redis.url())
        .kafka(&kafka.brokers(), "restart.ratings")
        .upstream(&upstream.url());
    let (mut ingest, mut tuner, mut gateway) = tokio::join!(
        Merit::start(settings.clone().role(Role::Ingest)),
        Merit::start(settings.clone().role(Role::Tuner)),
        Merit::start(settings.clone().role(Role::Gateway)),
    );
    let mut poster = Poster::new(&ingest.ingest());
    for agent in ["a", "b"] {
        poster.rate(agent, 5.0).await;
    }
    poster.fold.settles_in(&redis, RECOVERY).await;
    passes(&gateway, "a").await;

    for part in [&mut ingest, &mut tuner, &mut gateway] {
        part.kill9();
        part.restart().await;
        rate_when_back(&mut poster, "a").await;
        poster.fold.settles_in(&redis, RECOVERY).await;
        part.terminate().await;
        part.restart().await;
        rate_when_back(&mut poster, "a").await;
        poster.fold.settles_in(&redis, RECOVERY).await;
    }
    passes(&gateway, "a").await;

    redis.kill9();
    redis.restart().await;
    rate_when_back(&mut poster, "b").await;
    poster.fold.settles_in(&redis, RECOVERY).await;
    passes(&gateway, "b").await;

    kafka.kill9();
    passes(&gateway, "b").await;
    kafka.restart().await;
    rate_when_back(&mut poster, "b").await;
    poster.fold.settles_in(&redis, RECOVERY).await;
    for part in [&mut ingest, &mut tuner, &mut gateway] {
        part.terminate().await;
    }
}

#[tokio::test]
async fn either_part_of_the_loop_in_one_process_restarts_by_itself() {
    let mut redis = Redis::start(Persistence::EveryWrite).await;
    let mut merit = Merit::start(Settings::new(&redis.url())).await;
    let mut poster = Poster::new(&merit.ingest());
    poster.rate("a", 5.0).await;
    poster.fold.settles_in(&redis, RECOVERY).await;

    // A kill and a drained stop: offsets of the in-process bus begin at 0 again, and the source is
    // another, so that the first rating after the restart is not taken for an old one.
    merit.kill9();
    merit.restart().await;
    rate_when_back(&mut poster, "a").await;
    poster.fold.settles_in(&redis, RECOVERY).await;
    merit.terminate().await;
    merit.restart().await;
    rate_when_back(&mut poster, "a").await;
    poster.fold.settles_in(&redis, RECOVERY).await;

    redis.kill9();
    redis.restart().await;
    rate_when_back(&mut poster, "a").await;
    poster.fold.settles_in(&redis, RECOVERY).await;
}

#[tokio::test]
async fn what_ingest_acknowledged_is_folded_before_a_stopped_process_ends() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut merit = Merit::start(Settings::new(&redis.url())).await;
    let mut poster = Poster::new(&merit.ingest());
    let agents: Vec<String> = (0..20).map(|n| format!("drained-{n}")).collect();
    poster.flow(&agents, 2_000).await;
    merit.terminate().await;
    let differences = poster.fold.differences(&redis).await;
    assert!(differences.is_empty(), "{differences:#?}");
}

#[tokio::test]
async fn separate_roles_refuse_the_bus_that_ends_at_the_process() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut merit = Merit::launch(Settings::new(&redis.url()).role(Role::Ingest));
    let (status, output) = merit.ended(Duration::from_secs(20)).await;
    assert_eq!(status.code(), Some(2), "{output}");
    assert!(output.contains("in-process"), "{output}");
}
