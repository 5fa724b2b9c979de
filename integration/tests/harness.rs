//! The harness keeps its promises: what it kills is dead, what it restarts remembers.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use merit_integration::{Folder, Kafka, Persistence, Process, Redis, eventually, keys};
use std::time::Duration;

#[tokio::test]
async fn a_killed_redis_comes_back_with_its_last_snapshot_and_nothing_later() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let _: () = redis.ask(&["SET", "before", "1"]).await;
    redis.snapshot().await;
    let _: () = redis.ask(&["SET", "after", "1"]).await;
    redis.kill9();
    redis.restart().await;
    let kept: (Option<u8>, Option<u8>) = redis.ask(&["MGET", "before", "after"]).await;
    assert_eq!(kept, (Some(1), None));
}

#[tokio::test]
async fn a_redis_that_persists_every_write_loses_none() {
    let mut redis = Redis::start(Persistence::EveryWrite).await;
    let _: () = redis.ask(&["SET", "a", "1"]).await;
    redis.kill9();
    redis.restart().await;
    assert_eq!(redis.ask::<Option<u8>>(&["GET", "a"]).await, Some(1));
}

#[tokio::test]
async fn a_killed_broker_serves_again_on_the_same_port() {
    let mut kafka = Kafka::start().await;
    let address = kafka.brokers();
    kafka.kill9();
    assert!(tokio::net::TcpStream::connect(&address).await.is_err(), "the broker lives");
    kafka.restart().await;
    assert!(tokio::net::TcpStream::connect(&address).await.is_ok());
}

#[tokio::test]
async fn a_child_outlives_the_thread_that_ordered_it_and_not_its_owner() {
    let folder = Folder::new("sleeper");
    let path = folder.path().to_owned();
    let order = move || Process::start("sleeper", "sleep", &["600".to_owned()], &[], &path);
    let mut sleeper = std::thread::spawn(order).join().expect("the thread ends well");
    let proc = format!("/proc/{}", sleeper.id());
    assert!(sleeper.exited().is_none(), "it died with the thread");
    drop(sleeper);
    eventually("the child is gone", Duration::from_secs(5), || {
        let gone = !std::path::Path::new(&proc).exists();
        async move { gone }
    })
    .await;
}

#[test]
fn keys_of_every_kind_sign_tokens_that_differ_in_their_header() {
    use jsonwebtoken::Algorithm::{ES256, EdDSA, RS256};
    let claims = keys::claims(&serde_json::json!({"sub": "u"}));
    for algorithm in [RS256, ES256, EdDSA] {
        let pair = keys::KeyPair::generate(algorithm);
        let header = jsonwebtoken::decode_header(pair.sign(&claims)).unwrap();
        assert_eq!(header.alg, algorithm);
    }
}
