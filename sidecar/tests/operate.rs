//! An operator beside a tuner that is at work: neither loses what the other did.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use merit_sidecar::{
    bus::{Consumer, Publisher, in_process},
    policy::{Config, Hold, Kind, Policy, State},
    rating::{Poster, Rating, RatingRequest},
    tuner::{self, Aim, Cause, Operator, Plan, Tuner},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower_merit::{AgentId, MemoryStore, bucket::Limits};

const RATINGS: u64 = 3_000;

fn start() -> Limits {
    Limits::per_second(20.0, 40).unwrap()
}

fn rating(number: u64) -> Rating {
    let score = 1 + number % 5;
    let body = format!(
        r#"{{"agent_id":"a","user_id":"u{}","score":{score},"id":"i{number}"}}"#,
        number % 40
    );
    let request = RatingRequest::from_json(body.as_bytes()).unwrap();
    request
        .into_rating(Poster::new("tests").unwrap(), 1_800_000_000_000_000 + number * 50_000)
        .unwrap()
}

/// Without ticks that last: only ratings move what is known of an agent.
fn config() -> Config {
    Config {
        kind: Kind::Price,
        service_capacity: Some(100.0),
        trust: false,
        tick: Some("60s".to_owned()),
        ..Config::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_rating_is_lost_or_doubled_while_an_operator_freezes_and_lets_go() {
    let (publisher, consumer) = in_process::channel(&in_process::Config::default());
    let publisher = Publisher::InProcess(publisher);
    let store = MemoryStore::new();
    let mut plan = Plan::new(config(), start());
    let (insight, asks) = tuner::insight();
    plan.asks = Some(asks);
    let tuner = Tuner::new(Consumer::InProcess(consumer), store.clone(), plan);
    let running = tokio::spawn(tuner.run(CancellationToken::new()));
    let (_, aim) = watch::channel(Aim::new(config(), start()));
    let operator = Operator::new(store.clone(), aim);
    let agent = AgentId::new("a").unwrap();

    let done = AtomicBool::new(false);
    let rates = async {
        for number in 0..RATINGS {
            publisher.publish(&rating(number)).await.unwrap();
            if number % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        done.store(true, Ordering::Relaxed);
    };
    let mut deeds = 0;
    let operates = async {
        while !done.load(Ordering::Relaxed) {
            deeds += 1;
            operator.freeze(&agent, deeds % 2 == 1).await.unwrap();
            if deeds % 7 == 0 {
                operator.set(&agent, None, Limits::per_second(10.0, 20).unwrap()).await.unwrap();
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        operator.freeze(&agent, true).await.unwrap();
    };
    tokio::join!(rates, operates);
    assert!(deeds > 20, "{deeds} deeds are no race");
    // The operator's last word holds, whatever is still on the bus.
    drop(publisher);
    let moves = insight.moves(&agent).await;
    running.await.unwrap().unwrap();
    let record = operator.record(&agent).await.unwrap();
    let state = tuner::state_of(&record).unwrap();
    assert_eq!(state.hold(), Hold::Frozen);
    if let Some(moves) = moves {
        assert!(moves.iter().any(|one| one.cause == Cause::Rating), "{moves:?}");
    }

    // What is known of its quality is a fold of all ratings, once each and in order.
    let policy = Policy::new(&config(), start());
    let mut alone: State = policy.begin();
    for number in 0..RATINGS {
        policy.fold(&mut alone, &rating(number));
    }
    let [kept, alone] = [&state, &alone].map(|state| state.standing().unwrap().estimator());
    assert_eq!(kept.evidence(), alone.evidence());
    assert_eq!(kept.belief().mean.to_bits(), alone.belief().mean.to_bits());
    assert_eq!(kept.belief().variance.to_bits(), alone.belief().variance.to_bits());
}
