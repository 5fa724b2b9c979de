//! Leases over a real Redis: two nodes and one agent, a killed gateway, a stopped one.
//!
//! `MERIT_LEASES_SECONDS` is how long the nodes contend: 5 unless set; `integration/load leases` takes
//! a minute. What Redis counted as admitted is what was taken from it and not given back: answers
//! are held against that.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use merit_integration::{
    Merit, Persistence, Redis, Role, Settings, Upstream, client::Client, keys, until,
};
use tokio::task::JoinSet;
use tower_merit::{
    AgentId, RedisStore, Tune,
    bucket::{BucketName, Limits, Tokens},
    store::{
        BucketRule, Charge, Decision, Leased, Take, contract,
        leased::{AHEAD_MAX, LEASE_TERM},
    },
};

const RATE: u32 = 400;
const CAPACITY: u32 = 800;

/// Requests at a time of one node.
const CALLERS: usize = 8;

/// Generous: these tests are about answers, not about their speed.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How long anything may take that should take milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

async fn store(redis: &Redis) -> RedisStore {
    RedisStore::builder(&redis.url()).timeout(TIMEOUT).cache_denials(false).connect().await.unwrap()
}

fn takes() -> Arc<[Take]> {
    let bucket = BucketRule {
        name: BucketName::new("default").unwrap(),
        is_default: true,
        limits: Limits::per_second(f64::from(RATE), u64::from(CAPACITY)).unwrap(),
        shadow: false,
    };
    [Take { bucket, cost: Tokens::ONE }].into()
}

/// Tokens taken from the default bucket and not given back.
async fn taken(store: &RedisStore, agent: &str) -> u64 {
    let agent = AgentId::new(agent).unwrap();
    store.load(&[agent]).await.unwrap()[0].as_ref().unwrap().demand.admitted
}

/// Half a second in which everybody asks for more than there is, and 1.5 in which the bucket refills and
/// nodes return what they took ahead.
const BURST: Duration = Duration::from_millis(500);
const ROUND: Duration = Duration::from_secs(2);

/// Asks in bursts until told to stop.
async fn contend(
    leased: Leased<RedisStore>,
    began: Instant,
    stop: Arc<AtomicBool>,
    admitted: Arc<AtomicU64>,
) {
    let (agent, takes) = (AgentId::new("contended").unwrap(), takes());
    let mut pace = tokio::time::interval(Duration::from_millis(4));
    while !stop.load(Relaxed) {
        pace.tick().await;
        if began.elapsed().as_millis() % ROUND.as_millis() >= BURST.as_millis() {
            continue;
        }
        let charge = Charge { agent: agent.clone(), takes: Arc::clone(&takes) };
        if contract::as_the_layer(&leased, charge).await.unwrap().decision == Decision::Admitted {
            admitted.fetch_add(1, Relaxed);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_contend_for_an_agent_never_admit_more_than_its_bucket() {
    let seconds = std::env::var("MERIT_LEASES_SECONDS").map_or(5, |text| text.parse().unwrap());
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let nodes = [Leased::new(store(&redis).await), Leased::new(store(&redis).await)];
    let (stop, mut callers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    let admitted: [Arc<AtomicU64>; 2] = Default::default();
    let began = Instant::now();
    for (node, admitted) in nodes.iter().zip(&admitted) {
        for _ in 0..CALLERS {
            callers.spawn(contend(node.clone(), began, Arc::clone(&stop), Arc::clone(admitted)));
        }
    }
    let total = || admitted.iter().map(|count| count.load(Relaxed)).sum::<u64>();
    // Read before the clock is, and Redis counts whole milliseconds: no bound is too narrow for it.
    let most = || {
        let milliseconds = u64::try_from(began.elapsed().as_millis()).expect("a short test");
        u64::from(CAPACITY) + (milliseconds * u64::from(RATE)).div_ceil(1000) + 1
    };
    let mut looks = tokio::time::interval(Duration::from_millis(50));
    while began.elapsed() < Duration::from_secs(seconds) {
        looks.tick().await;
        let (so_far, most) = (total(), most());
        assert!(so_far <= most, "{so_far} admitted, the bucket gave at most {most}");
    }
    stop.store(true, Relaxed);
    while let Some(caller) = callers.join_next().await {
        caller.unwrap();
    }
    let (all, most) = (total(), most());
    for node in &nodes {
        node.close().await.unwrap();
    }
    assert_eq!(taken(nodes[0].store(), "contended").await, all, "tokens were lost or found");
    for node in &nodes {
        node.store().tell_use().await.unwrap();
    }
    // What leases returned is taken off what is taken next, and never off what was told.
    let told: u64 = nodes[0].used().await.unwrap().iter().map(|(_, used)| used).sum();
    let held = 2 * u64::from(AHEAD_MAX + 1);
    assert!((all..=all + held).contains(&told), "{told} told as used, {all} admitted");
    let share = |node: usize| admitted[node].load(Relaxed) as f64 / all as f64;
    println!(
        "{seconds} s: {all} admitted of at most {most}, shares {:.3} and {:.3}",
        share(0),
        share(1)
    );
    assert!(all as f64 > 0.7 * most as f64, "{all} admitted of {most}");
    assert!((0.25..=0.75).contains(&share(0)), "a node was starved");
}

#[tokio::test]
async fn limits_written_elsewhere_and_a_ban_hold_within_a_second() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let leased = Leased::new(store(&redis).await);
    let (agent, takes) = (AgentId::new("a1").unwrap(), takes());
    let ask = async || {
        let charge = Charge { agent: agent.clone(), takes: Arc::clone(&takes) };
        contract::as_the_layer(&leased, charge).await.unwrap()
    };
    let mut pace = tokio::time::interval(Duration::from_millis(2));
    for _ in 0..200 {
        pace.tick().await;
        ask().await;
    }
    // Another node's control plane, and an operator.
    contract::write_next(&store(&redis).await, &agent).await;
    let changed = Instant::now();
    while ask().await.first.limits == takes[0].bucket.limits {
        pace.tick().await;
    }
    assert!(changed.elapsed() <= LEASE_TERM + Duration::from_millis(500), "{changed:?}");
    let _: i64 = redis.ask(&["HSET", "tb:a1", "banned_until", "9000000000000"]).await;
    let changed = Instant::now();
    while !matches!(ask().await.decision, Decision::Banned { .. }) {
        pace.tick().await;
    }
    assert!(changed.elapsed() <= LEASE_TERM + Duration::from_millis(500), "{changed:?}");
    leased.close().await.unwrap();
}

/// Gets from a gateway as `agent`, until told to stop or the gateway is gone. Returns how many
/// requests were admitted, and how many had no answer.
async fn get(url: String, agent: &'static str, stop: Arc<AtomicBool>) -> (u64, u64) {
    let (client, token) = (Client::new(), keys::agent(agent));
    let mut pace = tokio::time::interval(Duration::from_millis(10));
    let mut admitted = 0;
    while !stop.load(Relaxed) {
        pace.tick().await;
        match client.get(&url, Some(&token)).await {
            Ok(answer) if answer.status == 200 => admitted += 1,
            Ok(answer) => assert_eq!(answer.status, 429),
            Err(_) => return (admitted, 1),
        }
    }
    (admitted, 0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_gateway_costs_at_most_its_lease_and_a_stopped_one_nothing() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let gateway = || {
        let mut settings =
            Settings::new(&redis.url()).upstream(&upstream.url()).role(Role::Gateway);
        settings.environment.push(("MERIT__STORE__MODE".to_owned(), "leased".to_owned()));
        settings.environment.push(("MERIT__STORE__TIMEOUT".to_owned(), "5s".to_owned()));
        Merit::start(settings)
    };
    let (mut dies, mut lives) = tokio::join!(gateway(), gateway());
    let store = store(&redis).await;
    // More than all callers can ask: a drained bucket lends nothing ahead.
    let _: i64 = redis.ask(&["HSET", "tb:a1", "capacity", "9000", "refill_rate", "9000"]).await;

    let (stop, mut callers) = (Arc::new(AtomicBool::new(false)), JoinSet::new());
    for merit in [&dies, &lives] {
        for _ in 0..CALLERS {
            let url = format!("{}/fast", merit.gateway());
            callers.spawn(get(url, "a1", Arc::clone(&stop)));
        }
    }
    until("both gateways decide on their own", DEADLINE, || async {
        let here = "merit_lease_decisions_total";
        let (first, second) = (dies.metric(here).await?, lives.metric(here).await?);
        (first > 500.0 && second > 500.0).then_some(())
    })
    .await;
    assert!(dies.metric("merit_lease_lent_total").await.unwrap() > 0.0, "nothing was taken ahead");
    dies.kill9();
    tokio::time::sleep(2 * LEASE_TERM).await;
    stop.store(true, Relaxed);
    let (mut admitted, mut unanswered) = (0, 0);
    while let Some(caller) = callers.join_next().await {
        let (its, lost) = caller.unwrap();
        admitted += its;
        unanswered += lost;
    }
    // The one that lives is told to stop, and returns what it holds.
    lives.terminate().await;
    let lost = taken(&store, "a1").await - admitted;
    println!("{admitted} admitted, {lost} lost with the killed gateway, {unanswered} unanswered");
    assert_eq!(unanswered, CALLERS as u64);
    // Sized for 200 ms of at most what all of its callers can ask; far below what a lease may be.
    let lease = CALLERS as u64 * 20 + 1;
    assert!(lease < u64::from(AHEAD_MAX));
    assert!(lost <= lease + unanswered, "{lost} tokens lost");
}
