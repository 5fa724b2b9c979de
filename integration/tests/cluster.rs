//! The Redis store on a real cluster: the contract, a failover, slots that move, scripts that are
//! forgotten, and a shard that loses what it held.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::time::{Duration, Instant};

use merit_integration::{
    Merit, Redis, RedisCluster, Settings, acl, eventually, over_redis::OverRedis, ratings::Poster,
    until,
};
use tower_merit::{
    AgentId, RedisStore,
    store::{Decision, Life, Spend, Tune, contract, redis::RedisStoreBuilder},
};

/// How long a dead master may be missed: a bound against waiting for ever, not a promise.
const FAILOVER: Duration = Duration::from_secs(30);

fn builder(cluster: &RedisCluster) -> RedisStoreBuilder {
    // Generous: these tests are about answers, not about their speed.
    RedisStore::cluster(cluster.urls()).timeout(Duration::from_secs(5))
}

async fn store(cluster: &RedisCluster) -> RedisStore {
    builder(cluster).connect().await.unwrap()
}

/// Holds the store to the contract of all stores.
async fn keeps_the_contract(cluster: &RedisCluster, store: RedisStore) {
    let (builder, link) = (builder(cluster), cluster.connect().await);
    contract::run(&OverRedis { store, builder, link }).await;
}

async fn agent_on(cluster: &RedisCluster, master: usize, name: &str) -> AgentId {
    cluster.agent_on(master, name).await.parse().unwrap()
}

/// Spends, and returns how many whole tokens are left.
async fn spend(store: &RedisStore, agent: &AgentId) -> u64 {
    let verdict = store.spend(contract::one_token(agent)).await.unwrap();
    assert_eq!(verdict.decision, Decision::Admitted);
    verdict.first.tokens.whole()
}

/// Asks for the life of the store until it has one again.
async fn life(store: &RedisStore) -> Life {
    until("the control plane is connected", FAILOVER, || async { store.life().await.ok() }).await
}

#[tokio::test]
async fn the_store_keeps_the_contract_on_a_cluster() {
    let cluster = RedisCluster::start().await;
    let store = store(&cluster).await;
    store.ping().await.unwrap();
    keeps_the_contract(&cluster, store).await;
    for master in &cluster.masters {
        let keys: u64 = master.ask(&["DBSIZE"]).await;
        assert!(keys > 200, "a master holds {keys} of more than 1,000 keys");
    }
}

#[tokio::test]
async fn the_store_keeps_the_contract_right_after_a_master_was_killed() {
    let mut cluster = RedisCluster::start_with_replica().await;
    let store = store(&cluster).await;
    let quick = RedisStore::cluster(cluster.urls()).connect().await.unwrap();
    let agent = agent_on(&cluster, 0, "failing").await;
    contract::spend_one(&quick, &agent).await;
    contract::write_next(&store, &agent).await;
    let before = life(&store).await;
    let replica = cluster.replica.take().unwrap();
    let slot = cluster.slot(&format!("tb:{agent}")).await.to_string();
    eventually("the replica has the agent", FAILOVER, || async {
        replica.ask::<u64>(&["CLUSTER", "COUNTKEYSINSLOT", &slot]).await == 2
    })
    .await;

    cluster.masters[0].kill9();
    let killed = Instant::now();
    until("decisions are made again", FAILOVER, || async {
        quick.spend(contract::one_token(&agent)).await.ok()
    })
    .await;
    println!("decisions of the dead master's agents again after {:?}", killed.elapsed());
    let failure = store.load(std::slice::from_ref(&agent)).await.unwrap_err();
    assert!(failure.is_transient(), "{failure}");
    let after = life(&store).await;
    println!("limits written again after {:?}", killed.elapsed());
    assert_ne!(before.run_id, after.run_id, "a failover is another life");
    let record = store.load(std::slice::from_ref(&agent)).await.unwrap().remove(0).unwrap();
    assert_eq!(record.rev, 1, "the replica held the record");
    contract::write_next(&store, &agent).await;

    cluster.masters[0] = replica;
    // A connection that was idle meanwhile learns of it by its first decision, at the latest.
    for master in 0..3 {
        contract::spend_one(&store, &agent_on(&cluster, master, "before").await).await;
    }
    keeps_the_contract(&cluster, store).await;
}

/// Moves the slot of an agent from one master to another, step by step.
struct Move<'a> {
    from: &'a Redis,
    to: &'a Redis,
    slot: String,
    ids: [String; 2],
}

impl Move<'_> {
    async fn begin(&self) {
        let [from, to] = &self.ids;
        for (node, state, id) in [(self.to, "IMPORTING", from), (self.from, "MIGRATING", to)] {
            let _: String = node.ask(&["CLUSTER", "SETSLOT", &self.slot, state, id]).await;
        }
    }

    async fn key(&self, key: &str) {
        let port = self.to.port().to_string();
        let _: String = self.from.ask(&["MIGRATE", "127.0.0.1", &port, key, "0", "5000"]).await;
    }

    async fn end(&self) {
        for node in [self.to, self.from] {
            let command = ["CLUSTER", "SETSLOT", &self.slot, "NODE", &self.ids[1]];
            let _: String = node.ask(&command).await;
        }
    }
}

#[tokio::test]
async fn no_decision_and_no_write_fails_or_counts_twice_while_a_slot_moves() {
    let cluster = RedisCluster::start().await;
    // As a user with the rights that docs/redis.md names for a cluster, and no others.
    for master in &cluster.masters {
        acl::allow(master, &[&acl::GATEWAY[..], &acl::USAGE, &acl::TUNER, &acl::CLUSTER].concat())
            .await;
    }
    let store = RedisStore::cluster(cluster.urls()).username("merit").password("hunter2");
    let store = store.timeout(Duration::from_secs(5)).connect().await.unwrap();
    store.begin_epoch("e").await.unwrap();
    store.life().await.unwrap();
    store.note_progress(&[("s/0".to_owned(), 1)]).await.unwrap();
    assert_eq!(store.progress().await.unwrap().len(), 1);
    let agent = agent_on(&cluster, 0, "moving").await;
    contract::write_next(&store, &agent).await;
    let first = spend(&store, &agent).await;
    let (from, to) = (&cluster.masters[0], &cluster.masters[1]);
    let slot = cluster.slot(&format!("tb:{agent}")).await.to_string();
    let ids = [from.ask(&["CLUSTER", "MYID"]).await, to.ask(&["CLUSTER", "MYID"]).await];
    let moving = Move { from, to, slot, ids };

    moving.begin().await;
    assert_eq!(spend(&store, &agent).await, first - 1, "the old master still has both keys");
    moving.key(&format!("tb:{agent}")).await;
    // One key here, one there: TRYAGAIN, until the other has followed.
    let record = format!("merit:{{tb:{agent}}}");
    tokio::join!(
        async { assert_eq!(spend(&store, &agent).await, first - 2) },
        contract::write_next(&store, &agent),
        moving.key(&record),
    );
    // Both keys are there, and the slot is not yet: ASK.
    contract::write_next(&store, &agent).await;
    let spends = (0..20).map(|_| {
        let store = store.clone();
        let charge = contract::one_token(&agent);
        tokio::spawn(async move { store.spend(charge).await.unwrap().decision })
    });
    for spent in spends.collect::<Vec<_>>() {
        assert_eq!(spent.await.unwrap(), Decision::Admitted);
    }
    let left = spend(&store, &agent).await;
    moving.end().await;
    // MOVED: decisions follow; the control plane first asks who the masters are.
    assert_eq!(spend(&store, &agent).await, left - 1);
    let before = life(&store).await;
    contract::write_next(&store, &agent).await;
    assert_eq!(life(&store).await, before, "nothing was lost: it is the same life");
    let level = contract::level_of(&mut cluster.connect().await, &format!("tb:{agent}")).await;
    assert_eq!(level.unwrap().admitted, 25, "{level:?}");
}

#[tokio::test]
async fn a_master_that_forgot_the_scripts_is_sent_them_again() {
    let cluster = RedisCluster::start().await;
    let store = store(&cluster).await;
    for (index, master) in cluster.masters.iter().enumerate() {
        let agent = agent_on(&cluster, index, "flushed").await;
        contract::spend_one(&store, &agent).await;
        contract::write_next(&store, &agent).await;
        let _: String = master.ask(&["SCRIPT", "FLUSH"]).await;
        assert_eq!(spend(&store, &agent).await, 99);
        let _: String = master.ask(&["SCRIPT", "FLUSH"]).await;
        contract::write_next(&store, &agent).await;
    }
}

/// Notes the same progress of two logs on all masters.
async fn note(store: &RedisStore, offset: u64) {
    let progress = [("k/0".to_owned(), offset), ("k/1".to_owned(), offset)];
    store.note_progress(&progress).await.unwrap();
}

#[tokio::test]
async fn a_shard_that_lost_everything_is_another_life_in_which_every_log_is_read_from_its_start() {
    let cluster = RedisCluster::start().await;
    let store = store(&cluster).await;
    assert_eq!(store.life().await.unwrap().epoch, None);
    store.begin_epoch("e1").await.unwrap();
    let before = store.life().await.unwrap();
    note(&store, 5).await;
    assert_eq!(store.progress().await.unwrap().len(), 2);

    let _: String = cluster.masters[1].ask(&["FLUSHALL"]).await;
    let after = store.life().await.unwrap();
    assert_eq!(after.epoch, before.epoch, "agents of the other shards keep what they earned");
    assert_ne!(after.run_id, before.run_id);
    assert_eq!(store.progress().await.unwrap(), []);
    assert_eq!(store.life().await.unwrap(), after, "it is told once");
    note(&store, 6).await;
    assert_eq!(store.progress().await.unwrap()[0], ("k/0".to_owned(), 6));

    for master in &cluster.masters {
        let _: String = master.ask(&["FLUSHALL"]).await;
    }
    assert_eq!(store.life().await.unwrap().epoch, None, "nothing is left of the epoch");
    // Noted by a tuner that has not seen yet that it is of an epoch that is over.
    note(&store, 7).await;
    store.begin_epoch("e2").await.unwrap();
    assert_eq!(store.life().await.unwrap().epoch.as_deref(), Some("e2"));
    assert_eq!(store.progress().await.unwrap(), []);
}

#[tokio::test]
async fn a_shard_that_went_back_in_time_takes_the_progress_back() {
    let mut cluster = RedisCluster::start().await;
    let store = store(&cluster).await;
    store.begin_epoch("e1").await.unwrap();
    let before = store.life().await.unwrap();
    note(&store, 5).await;
    cluster.masters[2].snapshot().await;
    note(&store, 50).await;
    cluster.masters[2].kill9();
    cluster.masters[2].restart().await;
    let after = life(&store).await;
    assert_eq!(after.epoch, before.epoch);
    assert_ne!(after.run_id, before.run_id);
    let progress = until("the shard serves again", FAILOVER, || async {
        match store.progress().await {
            Ok(progress) => Some(progress),
            Err(_) => store.life().await.ok().and(None),
        }
    })
    .await;
    assert_eq!(progress, [("k/0".to_owned(), 5), ("k/1".to_owned(), 5)]);
}

#[tokio::test]
async fn a_frozen_master_holds_up_its_own_agents_only() {
    let mut cluster = RedisCluster::start().await;
    let store = RedisStore::cluster(cluster.urls()).timeout(Duration::from_secs(1));
    let store = store.connect().await.unwrap();
    let (frozen, other) =
        (agent_on(&cluster, 1, "frozen").await, agent_on(&cluster, 2, "other").await);
    contract::spend_one(&store, &frozen).await;
    contract::spend_one(&store, &other).await;
    cluster.masters[1].freeze();
    let (mut held_up, mut took) = (tokio::task::JoinSet::new(), Vec::new());
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    // Longer than the others need to take the frozen one for dead.
    while took.len() < 250 {
        pace.tick().await;
        held_up.spawn(store.spend(contract::one_token(&frozen)));
        let asked = Instant::now();
        store.spend(contract::one_token(&other)).await.unwrap();
        took.push(asked.elapsed());
    }
    while let Some(frozen) = held_up.join_next().await {
        assert!(frozen.unwrap().is_err(), "a frozen master answered");
    }
    cluster.masters[1].thaw();
    took.sort_unstable();
    println!(
        "a master frozen: of the others' decisions p50 {:?}, longest {:?}",
        took[125], took[249]
    );
    contract::spend_one(&store, &frozen).await;
    contract::spend_one(&store, &other).await;
}

#[tokio::test]
async fn the_loop_runs_over_a_cluster() {
    let cluster = RedisCluster::start().await;
    let mut settings = Settings::new("");
    settings.store = Some(format!("cluster = [\"{}\"]", cluster.urls().join("\", \"")));
    let merit = Merit::start(settings).await;
    let mut poster = Poster::new(&merit.ingest());
    for master in 0..3 {
        poster.rate(&cluster.agent_on(master, "rated").await, 5.0).await;
    }
    for agent in poster.fold.agents() {
        let key = format!("tb:{agent}");
        until("the rating is in force", FAILOVER, || async {
            let stored: (Option<String>, Option<String>) =
                cluster.ask(&["HMGET", &key, "capacity", "refill_rate"]).await;
            (stored == (Some("40".into()), Some("20.2".into()))).then_some(())
        })
        .await;
    }
}

#[tokio::test]
async fn a_cluster_that_is_not_there_is_named_in_the_error() {
    let gone = format!("redis://127.0.0.1:{}", merit_integration::ports::free());
    let error = RedisStore::cluster([gone.clone()]).connect().await.unwrap_err();
    let shown = format!("{error:?} {error}");
    assert!(shown.contains(gone.trim_start_matches("redis://")), "{shown}");
}
