//! The Redis store under random concurrent operations, held to the in-process store as its model.
//!
//! A round starts many operations at once: charges of one or two buckets (one of them only watched),
//! loans, settlements both ways. Requests of one agent are decided in the order in which they came, so
//! the model, asked one after the other, says what each must be told. Between rounds operators set
//! limits and bans. Nothing refills: what time does to a level is held to the arithmetic elsewhere
//! (`contract::redis_follows_the_model`). After each round the stored counts are compared too.
//! Where refusals are remembered, requests touch one bucket: which of several is short may change while
//! a refusal is repeated.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{fmt::Write, sync::Arc, time::Duration};

use futures_util::future::join_all;
use merit_integration::{Persistence, Redis, eventually};
use tower_merit::{
    AgentId, MemoryStore, RedisStore, Tune,
    bucket::{BucketName, Limits, NanoTokens, Tokens},
    store::{
        BucketRule, Charge, Decision, Direction, Lend, Loan, Settlement, StoreError, Take,
        contract::{Draw, as_the_layer},
        redis::DENIAL_MAX,
    },
};

const AGENTS: u64 = 5;
const ROUNDS: u64 = 400;

#[derive(Clone, Debug)]
enum Operation {
    Spend(Charge),
    Lend(Charge, u32),
    Settle(Settlement),
}

fn bucket(name: &str, capacity: u64, shadow: bool) -> BucketRule {
    let limits = Limits::per_second(0.0, capacity).unwrap();
    let name = BucketName::new(name).unwrap();
    BucketRule { is_default: name.as_str() == "default", name, limits, shadow }
}

fn agent(index: u64) -> AgentId {
    AgentId::new(&format!("agent{index}")).unwrap()
}

fn takes(draw: &mut Draw, one_bucket: bool) -> Arc<[Take]> {
    let cost = [0, 1, 1, 1, 2, 3, 7, 60][usize::try_from(draw.below(8)).unwrap()];
    let take = |bucket, cost| Take { bucket, cost: Tokens::new(cost).unwrap() };
    let default = take(bucket("default", 40, false), cost);
    match draw.below(6) + u64::from(one_bucket) * 2 {
        0 => [default, take(bucket("writes", 20, false), cost)].into(),
        1 => [take(bucket("watched", 10, true), cost + 1), default].into(),
        2 => [take(bucket("writes", 20, false), 1)].into(),
        3 => [take(bucket("watched", 10, true), 1)].into(),
        _ => [default].into(),
    }
}

fn operation(draw: &mut Draw, one_bucket: bool) -> Operation {
    // The first agents are asked for most.
    let agent = agent(draw.below(AGENTS).min(draw.below(AGENTS)));
    let takes = takes(draw, one_bucket);
    match draw.below(10) {
        0 => Operation::Settle(Settlement { agent, takes, direction: Direction::TakeMore }),
        1 | 2 => Operation::Settle(Settlement { agent, takes, direction: Direction::GiveBack }),
        3 => {
            let most = u32::try_from(draw.below(12)).unwrap();
            Operation::Lend(Charge { agent, takes }, most)
        }
        _ => Operation::Spend(Charge { agent, takes }),
    }
}

async fn run<S: Lend>(store: &S, operation: &Operation) -> Option<Result<Loan, StoreError>> {
    match operation.clone() {
        Operation::Spend(charge) => {
            // A loan of nothing is what a spend is, so that both compare as one type.
            let verdict = as_the_layer(store, charge.clone()).await;
            let nothing = MemoryStore::new().lend(charge, 0).await.unwrap();
            Some(verdict.map(|verdict| {
                let mut loan = nothing;
                loan.verdict = verdict;
                loan
            }))
        }
        Operation::Lend(charge, most) => Some(store.lend(charge, most).await),
        Operation::Settle(settlement) => {
            store.settle(settlement);
            None
        }
    }
}

/// Sets limits or a ban in both, or does nothing.
async fn operate(draw: &mut Draw, redis: &Redis, model: &MemoryStore) -> Option<String> {
    let index = draw.below(AGENTS);
    let (agent, key) = (agent(index), format!("tb:agent{index}"));
    match draw.below(6) {
        0 => {
            let capacity = draw.below(80);
            let text = capacity.to_string();
            let _: i64 = redis.ask(&["HSET", &key, "capacity", &text, "refill_rate", "0"]).await;
            model.set_by_operator(&agent, Limits::per_second(0.0, capacity).unwrap());
            Some(format!("capacity of {agent} := {capacity}"))
        }
        1 => {
            let until = [0, u64::from(u32::MAX) * 1000][usize::from(draw.below(3) == 0)];
            let _: i64 = redis.ask(&["HSET", &key, "banned_until", &until.to_string()]).await;
            model.ban(&agent, until);
            Some(format!("ban of {agent} until {until}"))
        }
        _ => None,
    }
}

/// What a ban tells is how long it lasts, and clocks differ. A refusal that is repeated tells what was
/// held when it was made: of those, levels are not compared.
fn comparable(answer: Option<Result<Loan, StoreError>>, repeats: bool) -> Option<Loan> {
    answer.map(|answer| {
        let mut loan = answer.unwrap();
        match &mut loan.verdict.decision {
            Decision::Banned { for_ms } => *for_ms = 1,
            Decision::Denied { .. } if repeats => loan.verdict.first.tokens = NanoTokens(0),
            _ => {}
        }
        loan
    })
}

async fn follow(seed: u64, cache_denials: bool) {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let builder = RedisStore::builder(&redis.url()).timeout(Duration::from_secs(10));
    let store = builder.cache_denials(cache_denials).connect().await.unwrap();
    let (model, mut draw, mut log) = (MemoryStore::new(), Draw::new(seed), String::new());
    let agents: Vec<AgentId> = (0..AGENTS).map(agent).collect();
    for round in 0..ROUNDS {
        if let Some(done) = operate(&mut draw, &redis, &model).await {
            writeln!(log, "round {round}: {done}").unwrap();
            // Refusals are repeated for a tenth of a second, whatever operators do meanwhile.
            tokio::time::pause();
            tokio::time::advance(DENIAL_MAX).await;
            tokio::time::resume();
        }
        let count = 1 + draw.below(40);
        let mut operations: Vec<Operation> =
            (0..count).map(|_| operation(&mut draw, cache_denials)).collect();
        // A look at the end of each agent's queue: what was settled before is settled.
        let look: Arc<[Take]> =
            [Take { bucket: bucket("default", 40, false), cost: Tokens::ZERO }].into();
        operations.extend(agents.iter().map(|agent| {
            Operation::Spend(Charge { agent: agent.clone(), takes: Arc::clone(&look) })
        }));
        let answers = join_all(operations.iter().map(|operation| run(&store, operation))).await;
        for (operation, answer) in operations.iter().zip(answers) {
            let expected = run(&model, operation).await;
            let answer = comparable(answer, cache_denials);
            let expected = comparable(expected, cache_denials);
            writeln!(log, "round {round}: {operation:?} -> {answer:?}").unwrap();
            if answer != expected {
                let last: Vec<&str> = log.lines().rev().take(60).collect();
                let last: Vec<&str> = last.into_iter().rev().collect();
                panic!("seed {seed}: expected {expected:?}\n{}", last.join("\n"));
            }
        }
        if !cache_denials {
            let (stored, expected) =
                (demands(&store, &agents).await, demands(&model, &agents).await);
            assert_eq!(stored, expected, "seed {seed}, round {round}");
        }
    }
    let expected = demands(&model, &agents).await;
    eventually("what was refused here is counted there", Duration::from_secs(10), || async {
        demands(&store, &agents).await == expected
    })
    .await;
}

async fn demands<T: Tune>(store: &T, agents: &[AgentId]) -> Vec<(u64, u64)> {
    let records = store.load(agents).await.unwrap().into_iter();
    records.map(|record| record.unwrap().demand).map(|d| (d.admitted, d.denied)).collect()
}

#[tokio::test]
async fn random_operations_at_once_are_answered_as_if_one_came_after_the_other() {
    for seed in 1..=3 {
        follow(seed, false).await;
    }
}

#[tokio::test]
async fn remembered_refusals_answer_as_redis_would() {
    for seed in 4..=6 {
        follow(seed, true).await;
    }
}
