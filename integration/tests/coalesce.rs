//! Coalescing and the cache of denials against a real Redis: who is merged, who is answered, who is
//! charged, when callers leave, the server freezes and connections die.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use merit_integration::{Persistence, Redis, eventually};
use tokio::task::JoinSet;
use tower_merit::{
    AgentId, RedisStore, Spend, Tune,
    bucket::{BucketName, Limits, Tokens},
    store::{
        BucketRule, Charge, Decision, Direction, Settlement, StoreError, Take, Verdict,
        contract::{self, Draw},
        redis::{DENIAL_MAX, GROUPS_MAX, RedisStoreBuilder},
    },
};

fn builder(redis: &Redis) -> RedisStoreBuilder {
    // Generous: these tests are about answers, not about their speed.
    RedisStore::builder(&redis.url()).timeout(Duration::from_secs(10))
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn takes(rate: f64, capacity: u64) -> Arc<[Take]> {
    let bucket = BucketRule {
        name: BucketName::new("default").unwrap(),
        is_default: true,
        limits: Limits::per_second(rate, capacity).unwrap(),
        shadow: false,
    };
    [Take { bucket, cost: Tokens::ONE }].into()
}

fn charge(agent: &AgentId, takes: &Arc<[Take]>) -> Charge {
    Charge { agent: agent.clone(), takes: Arc::clone(takes) }
}

/// How many script calls the server has run.
async fn calls(redis: &Redis) -> u64 {
    let stats: String = redis.ask(&["INFO", "commandstats"]).await;
    let calls = stats.lines().find_map(|line| {
        line.strip_prefix("cmdstat_evalsha:calls=")?.split(',').next()?.parse().ok()
    });
    calls.unwrap_or(0)
}

/// Polls once, and leaves the future pending.
async fn start(future: &mut Asked) {
    poll_fn(|context| {
        if let Poll::Ready(answer) = future.as_mut().poll(context) {
            panic!("answered at once: {answer:?}");
        }
        Poll::Ready(())
    })
    .await;
}

type Asked = Pin<Box<dyn Future<Output = Result<Verdict, StoreError>> + Send>>;

/// Starts one request per agent while the server is frozen: the first ones are in flight, the others
/// wait.
async fn started(store: &RedisStore, agents: &[AgentId], takes: &Arc<[Take]>) -> Vec<Asked> {
    let mut asked: Vec<Asked> = Vec::new();
    for agent in agents {
        let mut future: Asked = Box::pin(store.spend(charge(agent, takes)));
        start(&mut future).await;
        asked.push(future);
    }
    asked
}

async fn level(redis: &Redis, agent: &AgentId) -> Option<tower_merit::bucket::Level> {
    contract::level_of(&mut redis.connect().await, &format!("tb:{agent}")).await
}

#[tokio::test]
async fn requests_that_wait_travel_in_one_call_and_equal_ones_as_one_group() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    let (busy, takes) = (agent("busy"), takes(0.0, 30));
    contract::spend_one(&store, &agent("warm")).await;
    let before = calls(&redis).await;
    redis.freeze();
    let asked = started(&store, &vec![busy.clone(); 50], &takes).await;
    redis.thaw();
    let mut left = Vec::new();
    for (index, asked) in asked.into_iter().enumerate() {
        let verdict = asked.await.unwrap();
        // In the order in which they came: the first thirty pass.
        assert_eq!(verdict.decision == Decision::Admitted, index < 30, "request {index}");
        left.push(verdict.first.tokens.whole());
    }
    assert!(left.iter().copied().eq((0..30).rev().chain([0; 20])), "{left:?}");
    assert_eq!(calls(&redis).await - before, 2);
    let level = level(&redis, &busy).await.unwrap();
    assert_eq!((level.admitted, level.denied), (30, 20));
}

#[tokio::test]
async fn a_call_takes_a_bounded_number_of_groups() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    contract::spend_one(&store, &agent("warm")).await;
    let count = 1 + 2 * GROUPS_MAX + 1;
    let agents: Vec<AgentId> = (0..count).map(|index| agent(&format!("a{index}"))).collect();
    let before = calls(&redis).await;
    redis.freeze();
    let asked = started(&store, &agents, &takes(0.0, 5)).await;
    redis.thaw();
    for asked in asked {
        assert_eq!(asked.await.unwrap().decision, Decision::Admitted);
    }
    assert_eq!(calls(&redis).await - before, 1 + 3);
}

#[tokio::test]
async fn a_request_whose_caller_left_before_its_call_was_sent_is_not_charged() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    let (busy, takes) = (agent("busy"), takes(0.0, 100));
    contract::spend_one(&store, &busy).await;
    redis.freeze();
    let mut asked = started(&store, &vec![busy.clone(); 21], &takes).await;
    drop(asked.split_off(6));
    redis.thaw();
    for asked in asked {
        asked.await.unwrap();
    }
    let level = level(&redis, &busy).await.unwrap();
    assert_eq!(level.admitted, 1 + 6);
}

#[tokio::test]
async fn callers_that_leave_while_their_calls_are_in_flight_hold_up_nobody_behind_them() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    contract::spend_one(&store, &agent("warm")).await;
    let agents: Vec<AgentId> = (0..10).map(|index| agent(&format!("a{index}"))).collect();
    redis.freeze();
    let mut asked = started(&store, &agents, &takes(0.0, 5)).await;
    drop(asked.drain(..1));
    redis.thaw();
    let began = Instant::now();
    for asked in asked {
        assert_eq!(asked.await.unwrap().decision, Decision::Admitted);
    }
    assert!(began.elapsed() < Duration::from_secs(5), "waited for the deadline of those who left");
}

#[tokio::test]
async fn calls_that_nobody_polls_any_more_hold_up_the_store_for_one_deadline_at_most() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let deadline = Duration::from_millis(200);
    let store = builder(&redis).timeout(deadline).connect().await.unwrap();
    let takes = takes(0.0, 100);
    let forgotten = [agent("forgotten")];
    let kept = started(&store, &forgotten, &takes).await;
    let began = Instant::now();
    let other = agent("other");
    while let Err(error) = store.spend(charge(&other, &takes)).await {
        assert!(matches!(error, StoreError::Timeout(_)), "{error}");
        assert!(began.elapsed() < deadline * 4, "the seats never came free");
    }
    drop(kept);
    store.spend(charge(&other, &takes)).await.unwrap();
}

#[tokio::test]
async fn every_request_keeps_its_own_deadline() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let deadline = Duration::from_millis(150);
    let store = builder(&redis).timeout(deadline).connect().await.unwrap();
    contract::spend_one(&store, &agent("warm")).await;
    redis.freeze();
    let mut asked = JoinSet::new();
    for index in 0..200 {
        let spend = store.spend(charge(&agent(&format!("a{}", index % 7)), &takes(0.0, 5)));
        asked.spawn(async move {
            let began = Instant::now();
            (spend.await, began.elapsed())
        });
    }
    while let Some(answer) = asked.join_next().await {
        let (answer, waited) = answer.unwrap();
        assert!(matches!(answer, Err(StoreError::Timeout(_))), "{answer:?}");
        assert!(waited >= deadline - Duration::from_millis(5), "{waited:?}");
        assert!(waited < deadline * 4, "{waited:?}");
    }
    redis.thaw();
    contract::spend_one(&store, &agent("warm")).await;
}

#[tokio::test]
async fn an_agent_whose_key_is_of_another_type_fails_alone_among_those_in_its_call() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    contract::spend_one(&store, &agent("warm")).await;
    let _: String = redis.ask(&["SET", "tb:bad", "x"]).await;
    let _: String = redis.ask(&["SET", "merit:{tb:worse}", "x"]).await;
    let names = ["w1", "w2", "good", "bad", "fine", "worse", "well"];
    let agents: Vec<AgentId> = names.iter().map(|name| agent(name)).collect();
    redis.freeze();
    let asked = started(&store, &agents, &takes(0.0, 5)).await;
    redis.thaw();
    for (name, asked) in names.iter().zip(asked) {
        match (*name, asked.await) {
            ("bad" | "worse", answer) => {
                assert!(matches!(answer, Err(StoreError::Malformed { .. })), "{answer:?}");
            }
            (_, answer) => assert_eq!(answer.unwrap().decision, Decision::Admitted),
        }
    }
}

#[tokio::test]
async fn without_coalescing_every_request_is_a_call() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).coalesce(false).connect().await.unwrap();
    let takes = takes(0.0, 100);
    contract::spend_one(&store, &agent("busy")).await;
    let before = calls(&redis).await;
    let mut asked = JoinSet::new();
    for _ in 0..40 {
        asked.spawn(store.spend(charge(&agent("busy"), &takes)));
    }
    while let Some(answer) = asked.join_next().await {
        answer.unwrap().unwrap();
    }
    assert_eq!(calls(&redis).await - before, 40);
}

#[derive(Default)]
struct Tally {
    admitted: u64,
    /// Left, or failed: charged or not.
    unknown: u64,
    failed: u64,
}

/// Asks `times` times for tokens of a few agents, and leaves every fourth request after a few polls.
async fn hammer(store: RedisStore, takes: Arc<[Take]>, seed: u64, times: u64) -> Tally {
    let (mut draw, mut tally) = (Draw::new(seed), Tally::default());
    for _ in 0..times {
        let agent = agent(&format!("a{}", draw.below(AGENTS)));
        let mut spend = pin!(store.spend(charge(&agent, &takes)));
        let polls = if draw.below(4) == 0 { draw.below(3) } else { u64::MAX };
        let mut polled = 0;
        let answer = poll_fn(|context| {
            if polled == polls {
                return Poll::Ready(None);
            }
            polled += 1;
            spend.as_mut().poll(context).map(Some)
        });
        match answer.await {
            None if polls == 0 => {}
            None => tally.unknown += 1,
            Some(Ok(verdict)) => {
                assert_eq!(verdict.decision, Decision::Admitted);
                tally.admitted += 1;
            }
            Some(Err(error)) => {
                assert!(error.is_transient(), "{error}");
                tally.unknown += 1;
                tally.failed += 1;
            }
        }
    }
    tally
}

const AGENTS: u64 = 40;

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_lost_or_minted_while_callers_leave_and_connections_die() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).timeout(Duration::from_secs(2)).connect().await.unwrap();
    let takes = takes(0.0, 1_000_000);
    let mut hammers = JoinSet::new();
    for seed in 0..64 {
        hammers.spawn(hammer(store.clone(), Arc::clone(&takes), seed, 400));
    }
    let (mut tally, mut kills) = (Tally::default(), 0);
    let mut link = redis.connect().await;
    let mut pause = tokio::time::interval(Duration::from_millis(20));
    while !hammers.is_empty() {
        tokio::select! {
            done = hammers.join_next() => {
                let one = done.expect("not empty").expect("a hammer panicked");
                tally.admitted += one.admitted;
                tally.unknown += one.unknown;
                tally.failed += one.failed;
            }
            _ = pause.tick() => {
                let mut kill = redis::cmd("CLIENT");
                kill.arg("KILL").arg("TYPE").arg("normal").arg("SKIPME").arg("yes");
                kills += kill.query_async::<u64>(&mut link).await.unwrap();
            }
        }
    }
    assert!(kills > 0 && tally.failed > 0, "nothing died: {kills} kills, {} failed", tally.failed);
    // Connected anew, for good; and whatever was in flight has reached the server before this.
    contract::spend_one(&store, &agent("last")).await;
    let mut taken = 0;
    for index in 0..AGENTS {
        let agent = agent(&format!("a{index}"));
        store.spend(charge(&agent, &takes)).await.unwrap();
        let level = level(&redis, &agent).await.unwrap();
        let capacity = takes[0].bucket.limits.capacity().nano().0;
        let gone = u64::try_from(capacity - level.tokens.0).unwrap() / 1_000_000_000;
        assert_eq!(gone, level.admitted, "{agent}");
        taken += gone - 1;
    }
    let (admitted, unknown) = (tally.admitted, tally.unknown);
    assert!(
        (admitted..=admitted + unknown).contains(&taken),
        "{admitted} were told yes and {unknown} cannot know, but {taken} tokens are gone"
    );
}

#[tokio::test]
async fn a_refusal_is_repeated_without_asking_and_counted_all_the_same() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    let (agent, takes) = (agent("eager"), takes(0.00001, 1));
    contract::spend_one(&store, &agent).await;
    store.spend(charge(&agent, &takes)).await.unwrap();
    let before = calls(&redis).await;
    let mut told = u64::MAX;
    for _ in 0..50 {
        let verdict = store.spend(charge(&agent, &takes)).await.unwrap();
        let Decision::Denied { wait_ms: Some(wait_ms) } = verdict.decision else {
            panic!("{verdict:?}")
        };
        assert!(verdict.first.short && wait_ms <= told, "{verdict:?}");
        told = wait_ms;
    }
    // One call per lifetime of the entry, however long this machine took for fifty requests.
    assert!(calls(&redis).await - before < 10);
    eventually("Redis has counted all refusals", Duration::from_secs(10), || async {
        let record = store.load(std::slice::from_ref(&agent)).await.unwrap().remove(0).unwrap();
        record.demand.admitted + record.demand.denied == 52
    })
    .await;
}

#[tokio::test]
async fn a_refusal_is_not_repeated_for_longer_than_it_is_true() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    let takes = takes(40.0, 1);
    for round in 0..10 {
        let agent = agent(&format!("a{round}"));
        store.spend(charge(&agent, &takes)).await.unwrap();
        let verdict = store.spend(charge(&agent, &takes)).await.unwrap();
        let Decision::Denied { wait_ms: Some(wait_ms) } = verdict.decision else {
            continue; // This machine slept through the refill.
        };
        assert!(wait_ms <= 25);
        // Time itself is what this test waits for.
        tokio::time::sleep(Duration::from_millis(wait_ms)).await;
        let verdict = store.spend(charge(&agent, &takes)).await.unwrap();
        assert_eq!(verdict.decision, Decision::Admitted, "round {round}");
    }
}

/// Lets time pass on tokio's clock, not on the server's.
async fn pass(duration: Duration) {
    tokio::time::pause();
    tokio::time::advance(duration).await;
    tokio::time::resume();
}

#[tokio::test]
async fn raised_limits_are_seen_a_tenth_of_a_second_after_a_refusal() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    let (agent, takes) = (agent("raised"), takes(0.0, 1));
    store.spend(charge(&agent, &takes)).await.unwrap();
    let verdict = store.spend(charge(&agent, &takes)).await.unwrap();
    assert_eq!(verdict.decision, Decision::Denied { wait_ms: None });
    let _: i64 = redis.ask(&["HSET", "tb:raised", "capacity", "5", "refill_rate", "9000000"]).await;
    pass(DENIAL_MAX).await;
    let before = calls(&redis).await;
    // The first settles the time before at the old limits.
    store.spend(charge(&agent, &takes)).await.unwrap();
    assert_eq!(calls(&redis).await, before + 1, "Redis was not asked");
}

#[tokio::test]
async fn tokens_given_back_here_end_the_refusals_of_their_agent() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    let (agent, takes) = (agent("back"), takes(0.0, 1));
    for round in 0..20 {
        let verdict = store.spend(charge(&agent, &takes)).await.unwrap();
        assert_eq!(verdict.decision, Decision::Admitted, "round {round}");
        let verdict = store.spend(charge(&agent, &takes)).await.unwrap();
        assert_eq!(verdict.decision, Decision::Denied { wait_ms: None }, "round {round}");
        let (agent, takes) = (agent.clone(), Arc::clone(&takes));
        store.settle(Settlement { agent, takes, direction: Direction::GiveBack });
    }
}

#[tokio::test]
async fn another_cost_of_a_refused_agent_is_asked_for() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = builder(&redis).connect().await.unwrap();
    let (agent, one) = (agent("mixed"), takes(0.0, 3));
    let mut two = one.to_vec();
    two[0].cost = Tokens::new(2).unwrap();
    let two: Arc<[Take]> = two.into();
    store.spend(charge(&agent, &two)).await.unwrap();
    let verdict = store.spend(charge(&agent, &two)).await.unwrap();
    assert_eq!(verdict.decision, Decision::Denied { wait_ms: None });
    let verdict = store.spend(charge(&agent, &one)).await.unwrap();
    assert_eq!(verdict.decision, Decision::Admitted);
}
