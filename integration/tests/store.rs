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
    bucket::{BucketName, Limits, Tokens},
    store::{
        Bid, BucketRule, Change, Charge, Decision, Quote, Spend, StoreError, Take, Tune, Written,
        contract, redis::RedisStoreBuilder,
    },
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

#[tokio::test]
async fn a_node_that_only_tunes_is_not_among_those_that_use_capacity() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (store, agent) = (store(&redis).await, AgentId::new("tuned").unwrap());
    contract::write_next(&store, &agent).await;
    store.trade(&bid("tuner", None)).await.unwrap();
    store.tell_use().await.unwrap();
    assert_eq!(store.used().await.unwrap(), []);
    let told: i64 =
        raw(&redis, &["EXISTS", "merit:nodes", &format!("merit:use:{}", store.node())]).await;
    assert_eq!(told, 0);
}

/// Takes `tokens` tokens over `store`, and tells the tuners.
async fn take_and_tell(store: &RedisStore, agent: &AgentId, tokens: u64) {
    let charge = contract::one_token(agent);
    let cost = Tokens::new(tokens).unwrap();
    let takes = charge.takes.iter().map(|take| Take { cost, ..take.clone() }).collect();
    let verdict = store.spend(Charge { takes, ..charge }).await.unwrap();
    assert_eq!(verdict.decision, Decision::Admitted);
    store.tell_use().await.unwrap();
}

#[tokio::test]
async fn a_node_that_fell_silent_is_absent_until_it_goes_on_at_its_old_count() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (store, agent) = (store(&redis).await, AgentId::new("served").unwrap());
    let node = store.node().to_owned();
    take_and_tell(&store, &agent, 3).await;
    assert_eq!(store.used().await.unwrap(), [(node.clone(), 3)]);
    let key = format!("merit:use:{node}");
    let lives: i64 = raw(&redis, &["PTTL", &key]).await;
    assert!((5_000..=10_000).contains(&lives), "{lives} ms");
    // As if it had expired.
    let _: i64 = raw(&redis, &["DEL", &key]).await;
    assert_eq!(store.used().await.unwrap(), []);
    take_and_tell(&store, &agent, 1).await;
    assert_eq!(store.used().await.unwrap(), [(node, 4)]);
}

#[tokio::test]
async fn the_list_of_nodes_is_bounded_and_old_ones_are_dropped() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let agent = AgentId::new("served").unwrap();
    let crowd = "local now = redis.call('TIME')[1]
        for i = 1, 5000 do redis.call('ZADD', 'merit:nodes', now - 30, 'recent' .. i) end
        for i = 1, 5000 do redis.call('ZADD', 'merit:nodes', now - 61, 'silent' .. i) end
        return redis.call('ZCARD', 'merit:nodes')";
    let crowded: u64 = raw(&redis, &["EVAL", crowd, "0"]).await;
    assert_eq!(crowded, 10_000);
    let store = store(&redis).await;
    take_and_tell(&store, &agent, 1).await;
    let listed: Vec<String> = raw(&redis, &["ZRANGE", "merit:nodes", "0", "-1"]).await;
    assert_eq!(listed.len(), 4096);
    assert!(listed.iter().any(|node| node == store.node()));
    assert!(!listed.iter().any(|node| node.starts_with("silent")));
    assert_eq!(store.used().await.unwrap(), [(store.node().to_owned(), 1)]);
    let lives: i64 = raw(&redis, &["PTTL", "merit:nodes"]).await;
    assert!((1..=60_000).contains(&lives), "{lives} ms");
}

fn bid(who: &str, quote: Option<Quote>) -> Bid {
    Bid { who: who.to_owned(), term: Duration::from_secs(60), quote }
}

#[tokio::test]
async fn of_many_bidders_at_once_one_leads() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut bidders = tokio::task::JoinSet::new();
    for number in 0..16 {
        let store = store(&redis).await;
        bidders.spawn(async move { store.trade(&bid(&number.to_string(), None)).await.unwrap() });
    }
    let traded = bidders.join_all().await;
    assert_eq!(traded.iter().filter(|traded| traded.leads).count(), 1, "{traded:?}");
}

#[tokio::test]
async fn a_price_that_is_none_is_replaced_and_a_key_of_another_type_is_told() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    let quote = Some(Quote { price: 0.25, use_share: 0.9 });
    for price in ["high", "nan", "-1", ""] {
        let fields = ["HSET", "merit:price", "price", price, "use_share", "0.5"];
        let _: i64 = raw(&redis, &fields).await;
        let traded = store.trade(&bid("tuner", None)).await.unwrap();
        assert_eq!((traded.leads, traded.quote), (true, None), "{price:?}");
        assert_eq!(store.trade(&bid("tuner", quote)).await.unwrap().quote, quote);
    }
    let _: String = raw(&redis, &["SET", "merit:price", "x"]).await;
    let error = store.trade(&bid("tuner", quote)).await.unwrap_err();
    assert!(matches!(error, StoreError::Malformed { .. }), "{error}");
    // Nobody else is the worse for it.
    let _: String = raw(&redis, &["SET", "tb:bad", "x"]).await;
    let agents = ["bad", "good"].map(|name| AgentId::new(name).unwrap());
    contract::spend_one(&store, &agents[1]).await;
    let demand = store.demand(&agents).await.unwrap();
    assert!(matches!(demand[0], Err(StoreError::Malformed { .. })), "{demand:?}");
    assert_eq!(demand[1].as_ref().unwrap().admitted, 1);
}

/// The bucket `writes`, of which agents have ten tokens unless they have earned others.
fn writes() -> BucketRule {
    let name = BucketName::new("writes").unwrap();
    let limits = Limits::per_second(0.00001, 10).unwrap();
    BucketRule { name, is_default: false, limits, shadow: false }
}

/// Writes the next limits of `agent`, and those of its bucket `writes`.
async fn write_writes(store: &RedisStore, agent: &AgentId, capacity: u64) {
    let rev = store.load(std::slice::from_ref(agent)).await.unwrap()[0].as_ref().unwrap().rev;
    let limits = Limits::per_second(0.00001, capacity).unwrap();
    let named = vec![(writes().name, limits)];
    let change = Change { named, ..contract::next_change(agent, rev) };
    let written = store.write(&[change]).await.unwrap().remove(0).unwrap();
    assert!(matches!(written, Written::Done { .. }), "{written:?}");
}

/// Returns the capacity in force of the bucket `writes`, by taking a token of it.
async fn capacity_of_writes(store: &RedisStore, agent: &AgentId) -> u64 {
    let takes = [Take { bucket: writes(), cost: Tokens::ONE }].into();
    let verdict = store.spend(Charge { agent: agent.clone(), takes }).await.unwrap();
    verdict.first.limits.capacity().get()
}

#[tokio::test]
async fn named_limits_outlive_an_expired_bucket_whoever_set_them() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = store(&redis).await;
    for (name, spends_first) in [("spends", true), ("writes", false)] {
        let agent = AgentId::new(name).unwrap();
        let key = format!("tb:{agent}");
        write_writes(&store, &agent, 2000).await;
        let _: i64 = raw(&redis, &["DEL", &key]).await;
        assert_eq!(capacity_of_writes(&store, &agent).await, 2000, "{name}");

        // An operator writes numbers as operators do.
        let set = ["HSET", &key, "writes.capacity", "300.0", "writes.refill_rate", "1e-5"];
        let _: i64 = raw(&redis, &set).await;
        write_writes(&store, &agent, 3000).await;
        let _: i64 = raw(&redis, &["DEL", &key]).await;
        if spends_first {
            assert_eq!(capacity_of_writes(&store, &agent).await, 300, "{name}");
        }
        for _ in 0..2 {
            write_writes(&store, &agent, 4000).await;
            assert_eq!(capacity_of_writes(&store, &agent).await, 300, "{name}");
        }
        // Removed by whoever set them, as docs/redis.md says: ratings move the bucket again.
        let record = format!("merit:{{tb:{agent}}}");
        let _: i64 = raw(&redis, &["HDEL", &record, "writes.written"]).await;
        let _: i64 = raw(&redis, &["HDEL", &key, "writes.capacity", "writes.refill_rate"]).await;
        write_writes(&store, &agent, 5000).await;
        assert_eq!(capacity_of_writes(&store, &agent).await, 5000, "{name}");
        write_writes(&store, &agent, 6000).await;
        assert_eq!(capacity_of_writes(&store, &agent).await, 6000, "{name}");
    }
}
