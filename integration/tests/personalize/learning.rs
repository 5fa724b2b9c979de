//! Every rating is learned exactly once, over every bus, whatever is killed.

use merit_integration::{
    Bus, Kafka, Merit, Nats, Persistence, Redis, Role, Settings, client::Client, keys,
};

use super::{DEADLINE, has_ratings, rate, table};

/// Two nodes learn everything beside one tuner; one of them is killed and goes on from its checkpoint.
async fn every_rating_is_learned_once_by_every_node(redis: &Redis, bus: Bus) {
    let client = Client::new();
    let settings = |role, node: &str| {
        let checkpoint = "checkpoint = \"model.chkpt\"\ncheckpoint_every = \"1s\"";
        let mut settings = Settings::new(&redis.url()).role(role);
        settings.bus = bus.clone();
        settings.tables = table(node, checkpoint);
        settings
    };
    let mut all = Merit::start(settings(Role::All, "one")).await;
    let mut other = Merit::start(settings(Role::Ingest, "two")).await;
    for n in 0..30 {
        rate(&client, if n % 2 == 0 { &all } else { &other }, &format!("u{n}"), "tea", 5.0).await;
        rate(&client, &all, &format!("u{n}"), "ink", 1.0).await;
    }
    for node in [&all, &other] {
        has_ratings(&client, node, "tea", 30).await;
        has_ratings(&client, node, "ink", 30).await;
    }
    // A record that is no rating is put aside by the tuner, and by nobody else: both learn on.
    for round in 0..2 {
        other.kill9();
        for n in 0..10 {
            rate(&client, &all, &format!("v{round}-{n}"), "tea", 4.0).await;
        }
        other.restart().await;
        has_ratings(&client, &other, "tea", 40 + 10 * round).await;
        has_ratings(&client, &all, "tea", 40 + 10 * round).await;
        has_ratings(&client, &other, "ink", 30).await;
    }
    // A restart in order, with nothing rated meanwhile, changes nothing.
    other.terminate().await;
    other.restart().await;
    has_ratings(&client, &other, "tea", 50).await;
    let url = format!("{}/v1/rating/tea?user_id=u1", other.ingest());
    let score = client.get(&url, Some(&keys::rater("u1"))).await.unwrap();
    assert_eq!(score.status, 200, "{}", score.text());
    assert!(score.json()["rating"].as_f64().unwrap() > 4.0, "{}", score.text());
    let foreign = client.get(&url, Some(&keys::rater("u2"))).await.unwrap();
    assert_eq!(foreign.status, 403);
    assert_eq!(other.metric("merit_personalize_gaps_total").await.unwrap_or_default(), 0.0);
    other.terminate().await;
    all.terminate().await;
}

#[tokio::test]
async fn over_redis_streams_every_rating_is_learned_once_by_every_node() {
    let redis = Redis::start(Persistence::EveryWrite).await;
    let bus = Bus::Redis { topic: "learned.ratings".to_owned(), partitions: 3 };
    every_rating_is_learned_once_by_every_node(&redis, bus).await;
}

#[tokio::test]
async fn over_nats_every_rating_is_learned_once_by_every_node() {
    let (redis, nats) = (Redis::start(Persistence::SnapshotOnDemand).await, Nats::start().await);
    let bus = Bus::Nats { url: nats.url(), topic: "learned.ratings".to_owned(), partitions: 3 };
    every_rating_is_learned_once_by_every_node(&redis, bus).await;
}

#[tokio::test]
async fn over_kafka_every_rating_is_learned_once_by_every_node() {
    let kafka = Kafka::shared().await;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let bus =
        Bus::Kafka { brokers: kafka.brokers(), topic: "learned.ratings".to_owned(), partitions: 3 };
    every_rating_is_learned_once_by_every_node(&redis, bus).await;
}

#[tokio::test]
async fn whoever_follows_is_no_member_and_puts_nothing_aside() {
    let redis = Redis::start(Persistence::EveryWrite).await;
    let client = Client::new();
    let mut settings = Settings::new(&redis.url());
    settings.bus = Bus::Redis { topic: "kept.ratings".to_owned(), partitions: 1 };
    settings.tables = format!("[tuner]\nreplay_window = \"1s\"\n{}", table("gone", ""));
    let mut merit = Merit::start(settings).await;
    for n in 0..20 {
        rate(&client, &merit, &format!("u{n}"), "tea", 5.0).await;
    }
    let poison = ["XADD", "kept.ratings:{0}", "*", "rating", "{"];
    let _: String = redis.ask(&poison).await;
    has_ratings(&client, &merit, "tea", 20).await;
    merit_integration::until("the tuner puts the poison aside", DEADLINE, || async {
        let dead: u64 = redis.ask(&["XLEN", "kept.ratings:dead"]).await;
        (dead > 0).then_some(())
    })
    .await;
    rate(&client, &merit, "last", "tea", 5.0).await;
    has_ratings(&client, &merit, "tea", 21).await;
    let dead: u64 = redis.ask(&["XLEN", "kept.ratings:dead"]).await;
    assert_eq!(dead, 1, "the poison was put aside once");
    let members: u64 = redis.ask(&["ZCARD", "kept.ratings:members"]).await;
    assert_eq!(members, 1, "who follows is no member");
    merit.terminate().await;
}
