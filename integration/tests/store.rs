//! The Redis store against a real Redis: the contract of every store, and the scripts held to the
//! arithmetic.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::Duration;

use merit_integration::{Persistence, Redis, over_redis::OverRedis};
use merit_sidecar::{
    bus::{Consumer, Publisher, in_process},
    policy,
    rating::{Poster, RatingRequest},
    tuner::{Plan, Tuner},
};
use tokio_util::sync::CancellationToken;
use tower_merit::{
    AgentId, RedisStore,
    bucket::{Limits, Tokens},
    store::{Charge, Decision, Spend, Take, Tune, contract, redis::RedisStoreBuilder},
};

fn builder(redis: &Redis) -> RedisStoreBuilder {
    // Generous: these tests are about answers, not about their speed.
    RedisStore::builder(&redis.url()).timeout(Duration::from_secs(5))
}

async fn store(redis: &Redis) -> RedisStore {
    builder(redis).connect().await.unwrap()
}

#[tokio::test]
async fn the_redis_store_keeps_the_contract() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (store, builder) = (store(&redis).await, builder(&redis));
    let redis = OverRedis { store, builder, link: redis.connect().await };
    contract::run(&redis).await;
    contract::run_lending(&redis).await;
}

#[tokio::test]
async fn the_redis_store_keeps_the_contract_one_call_per_request() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let builder = builder(&redis).coalesce(false).cache_denials(false);
    let store = builder.clone().connect().await.unwrap();
    let redis = OverRedis { store, builder, link: redis.connect().await };
    contract::run(&redis).await;
    contract::run_lending(&redis).await;
}

#[tokio::test]
async fn the_scripts_compute_what_the_arithmetic_computes() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    contract::lua_agrees_with_rust(&redis.url(), 20_000).await;
    let store = builder(&redis).cache_denials(false).connect().await.unwrap();
    contract::redis_follows_the_model(&store, &redis.url(), 5_000).await;
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_sent_them_again() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    let agent: AgentId = "a1".parse().unwrap();
    for _ in 0..2 {
        let _: String = redis.ask(&["SCRIPT", "FLUSH"]).await;
        contract::spend_one(&store, &agent).await;
        contract::write_next(&store, &agent).await;
    }
}

#[tokio::test]
async fn limits_outlive_an_expired_bucket_and_waiting_washes_nobody_clean() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    let agent: AgentId = "a1".parse().unwrap();
    contract::write_next(&store, &agent).await;
    let before = redis.limits("a1").await;
    assert!(before.is_some());
    let _: i64 = redis.ask(&["DEL", "tb:a1"]).await;
    contract::spend_one(&store, &agent).await;
    assert_eq!(redis.limits("a1").await, before, "the record did not restore the limits");
    let day_ms = 24 * 3600 * 1000;
    // One token at 0.00001 a second fills in 100,000 s: longer than a day, so that is how long the
    // bucket is kept.
    let ttl: i64 = redis.ask(&["PTTL", "tb:a1"]).await;
    assert!((100_000_000 - 60_000..=100_000_000).contains(&ttl), "{ttl}");
    let ttl: i64 = redis.ask(&["PTTL", "merit:{tb:a1}"]).await;
    assert!(ttl > 89 * day_ms, "{ttl}");
}

#[tokio::test]
async fn a_store_that_was_replaced_is_noticed_before_anything_is_written_to_it() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    let agent: AgentId = "a1".parse().unwrap();
    let first = store.life().await.unwrap();
    contract::write_next(&store, &agent).await;
    redis.kill9();
    redis.restart().await;
    // A decision reconnects by itself; a write must not.
    contract::spend_one(&store, &agent).await;
    let failure = store.load(std::slice::from_ref(&agent)).await.unwrap_err();
    assert!(failure.is_transient(), "{failure}");
    store.load(std::slice::from_ref(&agent)).await.unwrap_err();
    let second = store.life().await.unwrap();
    assert_ne!(first.run_id, second.run_id);
    assert_eq!(
        store.load(&[agent]).await.unwrap()[0].as_ref().unwrap().rev,
        0,
        "the write was never saved"
    );
}

/// Folds one rating of five for each of `agents` over the real store, from 20 tokens a second.
async fn rate_once(store: &RedisStore, agents: &[&str]) {
    let (publisher, consumer) = in_process::channel(&in_process::Config::default());
    let publisher = Publisher::InProcess(publisher);
    let plan = Plan::new(policy::Config::default(), Limits::per_second(20.0, 40).unwrap());
    let tuner = Tuner::new(Consumer::InProcess(consumer), store.clone(), plan);
    for agent in agents {
        let body = format!(r#"{{"agent_id":"{agent}","user_id":"u","score":5}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        let rating = request.into_rating(Poster::new("tests").unwrap(), 1_800_000_000_000_000);
        publisher.publish(&rating.unwrap()).await.unwrap();
    }
    drop(publisher);
    tuner.run(CancellationToken::new()).await.unwrap();
}

#[tokio::test]
async fn an_agent_whose_keys_are_of_another_type_holds_up_nobody_else() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    let _: String = redis.ask(&["SET", "tb:bad", "x"]).await;
    let _: String = redis.ask(&["SET", "merit:{tb:worse}", "x"]).await;
    rate_once(&store, &["bad", "worse", "good"]).await;
    assert_eq!(redis.limits("good").await, Some(("40".to_owned(), "20.2".to_owned())));
}

#[tokio::test]
async fn a_rating_counts_once_though_an_operator_set_only_half_of_the_limits() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    let _: i64 = redis.ask(&["HSET", "tb:narrow", "capacity", "10"]).await;
    let _: i64 = redis.ask(&["HSET", "tb:slow", "refill_rate", "2"]).await;
    rate_once(&store, &["narrow", "slow"]).await;
    assert_eq!(redis.limits("narrow").await, Some(("10".to_owned(), "20.2".to_owned())));
    // 40 tokens at 2 a second are a burst of 20 seconds.
    assert_eq!(redis.limits("slow").await, Some(("44".to_owned(), "2.2".to_owned())));
}

/// The trait bounds that generic code relies on.
#[test]
fn the_store_can_be_shared_and_sent() {
    fn shared<S: Spend + Tune + Clone + Send + Sync>() {}
    shared::<RedisStore>();
}

/// Asks the server behind the store's back.
async fn raw<T: redis::FromRedisValue>(redis: &Redis, command: &[&str]) -> T {
    let mut asked = redis::cmd(command[0]);
    asked.arg(&command[1..]);
    asked.query_async(&mut redis.connect().await).await.unwrap()
}

#[tokio::test]
async fn a_ban_for_ever_is_one_agents_and_writes_go_on() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    for until in ["inf", "1e30", "99999999999999999999"] {
        let agent = AgentId::new(&format!("banned-{}", until.len())).unwrap();
        let (bucket, record) = (format!("tb:{agent}"), format!("merit:{{tb:{agent}}}"));
        let _: i64 = raw(&redis, &["HSET", &bucket, "banned_until", until]).await;
        let _: i64 = raw(&redis, &["HSET", &record, "banned_until", until]).await;
        let verdict = store.spend(contract::one_token(&agent)).await.unwrap();
        let Decision::Banned { for_ms } = verdict.decision else { panic!("{until}: {verdict:?}") };
        assert!(for_ms > 1 << 50, "{until}: {for_ms}");
        let lives: i64 = raw(&redis, &["PTTL", &bucket]).await;
        assert!(lives > 0, "{until}: an expired agent's ban is kept for ever");
        contract::write_next(&store, &agent).await;
        let kept: String = raw(&redis, &["HGET", &record, "written"]).await;
        let rate: String = raw(&redis, &["HGET", &bucket, "refill_rate"]).await;
        assert!(kept.ends_with(&rate), "{until}: the record says {kept}, the bucket {rate}");
    }
    let agent = AgentId::new("banned-word").unwrap();
    let record = format!("merit:{{tb:{agent}}}");
    let _: i64 = raw(&redis, &["HSET", &record, "banned_until", "forever"]).await;
    contract::write_next(&store, &agent).await;
    contract::spend_one(&store, &agent).await;
}

#[tokio::test]
async fn what_an_operator_sets_on_an_expired_bucket_washes_nobody_clean() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    for (name, set) in [("ban", "banned_until"), ("other", "writes.capacity")] {
        let agent = AgentId::new(&format!("expired-{name}")).unwrap();
        let bucket = format!("tb:{agent}");
        contract::write_next(&store, &agent).await;
        let earned: String = raw(&redis, &["HGET", &bucket, "capacity"]).await;
        let _: i64 = raw(&redis, &["DEL", &bucket]).await;
        let _: i64 = raw(&redis, &["HSET", &bucket, set, "7"]).await;
        let verdict = store.spend(contract::one_token(&agent)).await.unwrap();
        assert_eq!(verdict.first.limits.capacity().to_string(), earned, "{name}");
        let lives: i64 = raw(&redis, &["PTTL", &bucket]).await;
        assert!(lives > 0, "{name}: kept for ever");
    }
}

#[tokio::test]
async fn a_look_at_an_expired_bucket_does_not_keep_it_for_ever() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (store, agent) = (store(&redis).await, AgentId::new("looked-at").unwrap());
    contract::write_next(&store, &agent).await;
    let _: i64 = raw(&redis, &["DEL", "tb:looked-at"]).await;
    let charge = contract::one_token(&agent);
    let look = charge.takes.iter().map(|take| Take { cost: Tokens::ZERO, ..take.clone() });
    let look = Charge { agent: agent.clone(), takes: look.collect() };
    assert_eq!(store.spend(look).await.unwrap().decision, Decision::Admitted);
    let (there, lives): (i64, i64) = (
        raw(&redis, &["EXISTS", "tb:looked-at"]).await,
        raw(&redis, &["PTTL", "tb:looked-at"]).await,
    );
    assert!(there == 0 || lives > 0, "restored, and never to expire");
}

#[tokio::test]
async fn a_level_that_is_no_number_is_not_spent_from() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (store, agent) = (store(&redis).await, AgentId::new("not-a-number").unwrap());
    let script = "return redis.call('HSET', 'tb:not-a-number', 'held', struct.pack('<dddddd', 0/0, 0/0, 0, 0, 5, 1))";
    let _: i64 = raw(&redis, &["EVAL", script, "0"]).await;
    contract::spend_one(&store, &agent).await;
    let level = contract::level_of(&mut redis.connect().await, "tb:not-a-number").await.unwrap();
    assert_eq!(level.tokens.whole(), 999);
}
