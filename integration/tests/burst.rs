//! Two gateways over one Redis: no agent gets more than its bucket holds, and every refusal tells
//! the truth about the wait.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use merit_integration::{
    Merit, Persistence, Redis, Settings, Upstream,
    client::{Answer, Client},
    keys,
};
use tokio::{sync::Barrier, task::JoinSet};

const AGENTS: usize = 100;
const BURST: usize = 50;
/// A burst goes on until the agent was refused once: on a slow machine the bucket of 40 refills
/// while 50 requests are served. Nobody gets 20 requests a second past this many.
const BURST_MAX: usize = 2_000;
const CAPACITY: f64 = 40.0;
const REFILL: f64 = 20.0;

struct Outcome {
    agent: usize,
    admitted: u32,
    refused: u32,
    elapsed: Duration,
    after_the_wait: Answer,
}

/// One agent: its burst over both gateways at once, then the wait it was told, then one call.
async fn burst(agent: usize, urls: [String; 2], start: Arc<Barrier>) -> Outcome {
    let token = keys::agent(&format!("burster-{agent}"));
    start.wait().await;
    let began = Instant::now();
    let half = |url: String| {
        let (client, token) = (Client::new(), token.clone());
        async move {
            let (mut admitted, mut refused, mut wait) = (0_u32, 0_u32, None);
            for sent in 0..BURST_MAX / 2 {
                if sent >= BURST / 2 && refused > 0 {
                    break;
                }
                let answer = client.get(&url, Some(&token)).await.expect("the gateway answers");
                match answer.status.as_u16() {
                    200 => admitted += 1,
                    429 => {
                        refused += 1;
                        wait = Some((answer.retry_after(), Instant::now()));
                        let problem = answer.problem();
                        let exact = problem["retry_after_ms"].as_u64().map(Duration::from_millis);
                        assert!(exact <= Some(answer.retry_after()), "{problem}");
                        assert!(exact > Some(Duration::ZERO), "{problem}");
                    }
                    other => panic!("{other}: {}", answer.text()),
                }
            }
            (admitted, refused, wait)
        }
    };
    let [first, second] = urls;
    let (a, b) = tokio::join!(half(first.clone()), half(second));
    let elapsed = began.elapsed();
    let (wait, told_at) = a.2.expect("the burst goes on until it is refused");
    tokio::time::sleep_until((told_at + wait).into()).await;
    let after_the_wait =
        Client::new().get(&first, Some(&token)).await.expect("the gateway answers");
    Outcome { agent, admitted: a.0 + b.0, refused: a.1 + b.1, elapsed, after_the_wait }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_agents_through_two_gateways_get_what_their_buckets_hold_and_no_more() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
    // What is measured is the bucket, not what happens when a busy machine misses the deadline.
    settings.on_outage = "closed";
    settings.environment.push(("MERIT__STORE__TIMEOUT".into(), "10s".into()));
    let (one, other) = tokio::join!(Merit::start(settings.clone()), Merit::start(settings));

    let start = Arc::new(Barrier::new(AGENTS));
    let mut bursts = JoinSet::new();
    for agent in 0..AGENTS {
        let urls = [format!("{}/a", one.gateway()), format!("{}/b", other.gateway())];
        bursts.spawn(burst(agent, urls, start.clone()));
    }
    let outcomes = bursts.join_all().await;
    assert_eq!(outcomes.len(), AGENTS);

    for Outcome { agent, admitted, refused, elapsed, after_the_wait } in &outcomes {
        let most = CAPACITY + REFILL * elapsed.as_secs_f64();
        let admitted = f64::from(*admitted);
        assert!(
            (CAPACITY..=most).contains(&admitted),
            "agent {agent}: {admitted} admitted in {elapsed:?}, at most {most}"
        );
        assert!(*refused >= 1);
        assert_eq!(after_the_wait.status, 200, "agent {agent} waited as told");
    }
    let admitted: u32 = outcomes.iter().map(|outcome| outcome.admitted + 1).sum();
    assert_eq!(upstream.served(), u64::from(admitted), "a refused request reached the upstream");
}
