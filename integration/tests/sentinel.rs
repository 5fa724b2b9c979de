//! The Redis store behind real sentinels: the contract, failovers of every kind, and the loop over them.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use merit_integration::{
    Kafka, Merit, Redis, RedisSentinel, Role, Settings, acl, eventually, over_redis::OverRedis,
    ratings::Poster, until,
};
use tower_merit::{
    AgentId, RedisStore,
    store::{Life, Spend, Tune, contract, redis::RedisStoreBuilder},
};

/// How long a failover may take: a bound against waiting for ever, not a promise.
const FAILOVER: Duration = Duration::from_secs(30);
/// How long the tuner may take to work off what is left.
const SETTLE: Duration = Duration::from_secs(60);

const MASTER: &str = "mymaster";

fn builder(sentinel: &RedisSentinel) -> RedisStoreBuilder {
    // Generous: these tests are about answers, not about their speed.
    RedisStore::sentinel(MASTER, sentinel.urls()).timeout(Duration::from_secs(5))
}

async fn store(sentinel: &RedisSentinel) -> RedisStore {
    builder(sentinel).connect().await.unwrap()
}

/// Holds the store to the contract of all stores, with `master` asked behind its back.
async fn keeps_the_contract(sentinel: &RedisSentinel, store: RedisStore, master: usize) {
    let (builder, link) = (builder(sentinel), sentinel.servers[master].connect().await);
    contract::run(&OverRedis { store, builder, link }).await;
}

/// Returns what a server answers; `None` while sentinels cut its connections to tell it anew.
async fn answer<T: redis::FromRedisValue>(redis: &Redis, command: &[&str]) -> Option<T> {
    let client = redis::Client::open(redis.url()).unwrap();
    let mut link = client.get_multiplexed_async_connection().await.ok()?;
    let mut asked = redis::cmd(command[0]);
    asked.arg(&command[1..]).query_async(&mut link).await.ok()
}

/// Returns what a server says of itself.
async fn role(redis: &Redis) -> Option<String> {
    let answer: Vec<redis::Value> = answer(redis, &["ROLE"]).await?;
    redis::from_redis_value(answer.into_iter().next()?).ok()
}

async fn is_master(redis: &Redis) -> bool {
    role(redis).await.as_deref() == Some("master")
}

async fn life(store: &RedisStore) -> Life {
    until("the control plane is connected", FAILOVER, || async { store.life().await.ok() }).await
}

/// Waits until decisions of a store with the shipped deadline arrive at `master`.
async fn served(quick: &RedisStore, master: &Redis) -> Duration {
    let since = Instant::now();
    let mut number = 0;
    eventually("the new master decides", FAILOVER, || {
        number += 1;
        let agent: AgentId = format!("probe-{number}").parse().unwrap();
        async move {
            quick.spend(contract::one_token(&agent)).await.is_ok()
                && is_master(master).await
                && answer::<u64>(master, &["EXISTS", &format!("tb:{agent}")]).await == Some(1)
        }
    })
    .await;
    since.elapsed()
}

#[tokio::test]
async fn the_store_keeps_the_contract_behind_sentinels_also_right_after_the_master_was_killed() {
    let mut sentinel = RedisSentinel::start().await;
    let store = store(&sentinel).await;
    let quick = RedisStore::sentinel(MASTER, sentinel.urls()).connect().await.unwrap();
    keeps_the_contract(&sentinel, store.clone(), 0).await;
    let before = life(&store).await;

    sentinel.servers[0].kill9();
    let took = served(&quick, &sentinel.servers[1]).await;
    println!("killed: decisions again after {took:?}");
    let after = life(&store).await;
    assert_ne!(before.run_id, after.run_id, "a failover is another life");
    assert_eq!(before.epoch, after.epoch, "the replica held our data");

    // A connection that was idle meanwhile learns of it by its first decision, at the latest.
    contract::spend_one(&store, &"before".parse().unwrap()).await;
    let _: String = sentinel.servers[1].ask(&["FLUSHALL"]).await;
    keeps_the_contract(&sentinel, store, 1).await;
}

#[tokio::test]
async fn a_frozen_master_is_left_and_not_returned_to_when_it_thaws() {
    let mut sentinel = RedisSentinel::start().await;
    let (store, quick) = (
        store(&sentinel).await,
        RedisStore::sentinel(MASTER, sentinel.urls()).connect().await.unwrap(),
    );
    let before = life(&store).await;
    // One sentinel less is no reason not to find the new master.
    sentinel.kill_sentinel(0);
    sentinel.servers[0].freeze();
    let took = served(&quick, &sentinel.servers[1]).await;
    println!("frozen: decisions again after {took:?}");
    assert_ne!(life(&store).await.run_id, before.run_id);
    let agent: AgentId = "written-later".parse().unwrap();
    contract::write_next(&store, &agent).await;

    sentinel.servers[0].thaw();
    let [old, new] = &sentinel.servers;
    eventually("the old master is a replica", FAILOVER, || async {
        role(old).await.as_deref() == Some("slave")
    })
    .await;
    contract::spend_one(&quick, &agent).await;
    contract::write_next(&store, &agent).await;
    assert!(new.limits("written-later").await.is_some());
    assert_eq!(served(&quick, new).await.as_secs(), 0);
}

#[tokio::test]
async fn one_sentinel_that_missed_the_failover_moves_nobody_back() {
    let mut sentinel = RedisSentinel::start().await;
    let before = RedisStore::sentinel(MASTER, sentinel.urls()).connect().await.unwrap();
    sentinel.servers[0].kill9();
    served(&before, &sentinel.servers[1]).await;
    sentinel.add_cut_off().await;
    let [_, first, second, cut_off] = sentinel.urls().try_into().unwrap();
    let urls = [cut_off.clone(), first, second];
    // Patient, as this is about the answer: a master that is left fails at once, because nobody knows another.
    let store = RedisStore::sentinel(MASTER, urls).timeout(Duration::from_secs(5));
    let store = store.connect().await.unwrap();
    served(&store, &sentinel.servers[1]).await;

    // The one that names the old master is the only one that answers.
    sentinel.freeze_sentinel(1);
    sentinel.freeze_sentinel(2);
    let agent: AgentId = "kept".parse().unwrap();
    let until = Instant::now() + Duration::from_secs(4);
    let mut decided = 0;
    while Instant::now() < until {
        store.spend(contract::one_token(&agent)).await.expect("the master that serves is kept");
        decided += 1;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(decided > 20, "{decided}");
    let mut link =
        redis::Client::open(cut_off).unwrap().get_multiplexed_async_connection().await.unwrap();
    let mut asked = redis::cmd("SENTINEL");
    asked.arg("GET-MASTER-ADDR-BY-NAME").arg(MASTER);
    let (_, port): (String, u16) = asked.query_async(&mut link).await.unwrap();
    assert_eq!(port, sentinel.servers[0].port(), "it was to name the old master all the while");
}

#[tokio::test]
async fn a_master_that_becomes_a_replica_while_it_serves_is_left() {
    let sentinel = RedisSentinel::start().await;
    // As a user with the rights that docs/redis.md names behind sentinels, and no others.
    for server in &sentinel.servers {
        acl::allow(server, &[&acl::GATEWAY[..], &acl::USAGE, &acl::TUNER, &acl::SENTINEL].concat())
            .await;
    }
    let user = RedisStore::sentinel(MASTER, sentinel.urls()).username("merit").password("hunter2");
    let store = user.clone().timeout(Duration::from_secs(5)).connect().await.unwrap();
    let quick = user.connect().await.unwrap();
    let before = life(&store).await;
    let agent: AgentId = "a1".parse().unwrap();
    contract::write_next(&store, &agent).await;
    contract::spend_one(&quick, &agent).await;
    sentinel.order_failover().await;
    let took = served(&quick, &sentinel.servers[1]).await;
    println!("ordered: decisions at the new master after {took:?}");
    let after = life(&store).await;
    assert_ne!(before.run_id, after.run_id);
    contract::write_next(&store, &agent).await;
}

#[tokio::test]
async fn a_master_that_the_sentinels_do_not_know_is_named_in_the_error() {
    let sentinel = RedisSentinel::start().await;
    let error = RedisStore::sentinel("other", sentinel.urls()).connect().await.unwrap_err();
    let shown = format!("{error:?} {error}");
    assert!(shown.contains("other behind") && shown.contains("No such master"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ratings_whose_effect_a_failover_lost_are_folded_again_and_the_others_are_not() {
    let (kafka, mut sentinel) = tokio::join!(Kafka::shared(), RedisSentinel::start());
    let urls = sentinel.urls().join("\", \"");
    let mut settings = Settings::new("").kafka(&kafka.brokers(), "failover.ratings");
    settings.store = Some(format!("sentinel = {{ master = \"{MASTER}\", urls = [\"{urls}\"] }}"));
    settings.environment.push(("MERIT__TUNER__REPLAY_WINDOW".into(), "1s".into()));
    let (ingest, tuner) = tokio::join!(
        Merit::start(settings.clone().role(Role::Ingest)),
        Merit::start(settings.clone().role(Role::Tuner)),
    );
    let mut poster = Poster::new(&ingest.ingest());
    let agents: Vec<String> = (0..20).map(|n| format!("agent-{n}")).collect();
    poster.flow(&agents, 1_000).await;
    let [master, replica] = &sentinel.servers;
    poster.fold.settles_in(master, SETTLE).await;
    // The copy that takes over must know how far it got.
    eventually("progress has reached the replica", SETTLE, || async {
        let stored: Vec<(String, u64)> = replica.ask(&["HGETALL", "merit:progress"]).await;
        stored.len() == 4 && stored.iter().all(|(_, offset)| *offset > 0)
    })
    .await;

    // From here on the replica gets nothing; the sentinels would mend that, but only after seconds.
    let _: String = replica.ask(&["REPLICAOF", "127.0.0.1", "1"]).await;
    let mut silent = Poster::new(&ingest.ingest());
    let lost: Vec<String> = (0..20).map(|n| format!("silent-{n}")).collect();
    silent.flow(&lost, 200).await;
    poster.flow(&agents, 200).await;
    silent.fold.settles_in(master, SETTLE).await;
    poster.fold.settles_in(master, SETTLE).await;
    assert!(replica.limits("silent-0").await.is_none(), "the replica lost nothing");
    sentinel.servers[0].kill9();
    let killed = Instant::now();

    let replica = &sentinel.servers[1];
    silent.fold.settles_in(replica, SETTLE).await;
    poster.fold.settles_in(replica, SETTLE).await;
    println!("everything that was lost is in force again after {:?}", killed.elapsed());
    // What was folded twice behind the last look shows in one more rating of every agent.
    poster.flow(&agents, agents.len()).await;
    poster.fold.settles_in(replica, SETTLE).await;
    silent.fold.settles_in(replica, SETTLE).await;
    let failovers = tuner.metric("merit_store_failovers_total").await;
    assert!(failovers.is_some_and(|failovers| failovers >= 1.0), "{failovers:?}");
    assert!(tuner.output().contains("lost a master"), "{}", tuner.output());
}
