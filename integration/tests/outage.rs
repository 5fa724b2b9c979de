//! Redis or Kafka die and come back while requests flow.
//!
//! The layer's answers follow the outage policy; how long its decisions took is printed
//! (`cargo test -- --nocapture`), and held only to a bound that a blocked call would break.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Request, Response, StatusCode};
use merit_integration::{
    AUDIENCE, ISSUER, Kafka, Merit, Persistence, Redis, SECRET, Settings, eventually, keys,
    ratings::{Poster, Rating},
    until,
};
use tokio::task::JoinSet;
use tower::{Layer as _, service_fn};
use tower_merit::{
    AdmissionLayer, Bucket, JwtIdentity, Outage, RedisStore, store::redis::DENIAL_MAX,
};

/// What one decision may take, as shipped.
const STORE_TIMEOUT: Duration = Duration::from_millis(20);
/// The issue asks for 99.9 % of decisions within the deadline plus 5 ms on an idle machine. This is
/// what the busiest machine keeps unless decisions wait for the dead server.
const P999_MAX: Duration = Duration::from_millis(500);
/// How long each state lasts.
const PHASE: Duration = Duration::from_secs(2);
const AGENTS: usize = 8;
const CAPACITY: u32 = 40;
const REFILL: u32 = 20;
const BACK_DEADLINE: Duration = Duration::from_secs(5);

#[derive(Clone, Copy)]
struct Decision {
    agent: usize,
    begun: Instant,
    took: Duration,
    status: StatusCode,
    retry_after: bool,
}

/// Asks the layer again and again as `agent` until told to stop.
async fn ask<S, B>(mut service: S, agent: usize, stop: Arc<AtomicBool>) -> Vec<Decision>
where
    S: tower::Service<Request<()>, Response = Response<B>, Error = Infallible>,
{
    let authorization = format!("Bearer {}", keys::agent(&format!("caller-{agent}")));
    let mut pace = tokio::time::interval(Duration::from_millis(4));
    let mut decisions = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        pace.tick().await;
        let request = Request::builder().header("authorization", &authorization).body(());
        let request = request.expect("a well-formed request");
        let begun = Instant::now();
        std::future::poll_fn(|context| service.poll_ready(context))
            .await
            .unwrap_or_else(|e| match e {});
        let response = service.call(request).await.unwrap_or_else(|e| match e {});
        let retry_after = response.headers().contains_key("retry-after");
        let (took, status) = (begun.elapsed(), response.status());
        decisions.push(Decision { agent, begun, took, status, retry_after });
    }
    decisions
}

fn report(what: &str, decisions: &[Decision]) {
    let mut took: Vec<Duration> = decisions.iter().map(|decision| decision.took).collect();
    took.sort_unstable();
    let at = |per_mille: usize| took[(took.len() * per_mille / 1000).min(took.len() - 1)];
    let (p50, p999, max) = (at(500), at(999), at(1000));
    println!("{what}: {} decisions, p50 {p50:?}, p99.9 {p999:?}, max {max:?}", took.len());
    assert!(p999 <= P999_MAX, "{what}: p99.9 of decisions is {p999:?}");
}

fn within(decisions: &[Decision], from: Instant, to: Instant) -> Vec<Decision> {
    let inside = |d: &&Decision| d.begun >= from && d.begun + d.took <= to;
    decisions.iter().filter(inside).copied().collect()
}

fn follow(policy: Outage, outage: &[Decision], lasted: Duration) {
    assert!(outage.len() >= AGENTS * 20, "only {} decisions in {lasted:?}", outage.len());
    let statuses: std::collections::BTreeSet<u16> =
        outage.iter().map(|decision| decision.status.as_u16()).collect();
    match policy {
        Outage::Open => assert_eq!(statuses, [200].into(), "open passes everything"),
        Outage::Closed => {
            assert_eq!(statuses, [503].into(), "closed refuses everything");
            assert!(outage.iter().all(|decision| decision.retry_after), "503 says when to retry");
        }
        Outage::Local => {
            assert_eq!(statuses, [200, 429].into(), "local limits on this node");
            for agent in 0..AGENTS {
                let passed = outage.iter().filter(|d| d.agent == agent && d.status == 200).count();
                let most = f64::from(CAPACITY) + f64::from(REFILL) * lasted.as_secs_f64();
                let passed = f64::from(u32::try_from(passed).expect("a small number"));
                assert!(passed <= most, "agent {agent}: {passed} passed, at most {most}");
            }
        }
        other => panic!("{other:?} is a policy that this test does not know"),
    }
}

async fn redis_fails_and_comes_back(policy: Outage) {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let store = RedisStore::builder(&redis.url()).timeout(STORE_TIMEOUT).connect().await;
    let identity = JwtIdentity::hs256(SECRET).claim("agent_id").issuer(ISSUER).audience(AUDIENCE);
    let layer = AdmissionLayer::builder(store.expect("redis answers"))
        .identity(identity)
        .bucket(Bucket::per_second(f64::from(REFILL)).capacity(u64::from(CAPACITY)))
        .on_outage(policy)
        .build()
        .expect("the layer is complete");

    let stop = Arc::new(AtomicBool::new(false));
    let mut callers = JoinSet::new();
    for agent in 0..AGENTS {
        let service = layer.layer(service_fn(async |_: Request<_>| {
            Ok::<_, Infallible>(Response::new(http_body_util::Empty::<bytes::Bytes>::new()))
        }));
        callers.spawn(ask(service, agent, stop.clone()));
    }

    // Decisions are the server's again once it knows an agent that it did not know.
    let decides = async |redis: &Redis| {
        let _: i64 = redis.ask(&["DEL", "tb:caller-0"]).await;
        let back = Instant::now();
        eventually("redis decides again", BACK_DEADLINE, || async {
            redis.ask::<i64>(&["EXISTS", "tb:caller-0"]).await == 1
        })
        .await;
        back.elapsed()
    };
    decides(&redis).await;
    tokio::time::sleep(PHASE).await;

    redis.kill9();
    let killed = Instant::now();
    tokio::time::sleep(PHASE).await;
    let restarting = Instant::now();
    redis.restart().await;
    let after_restart = decides(&redis).await;
    tokio::time::sleep(PHASE).await;

    redis.freeze();
    let frozen = Instant::now();
    tokio::time::sleep(PHASE).await;
    let thawing = Instant::now();
    redis.thaw();
    let after_thaw = decides(&redis).await;
    tokio::time::sleep(PHASE / 2).await;
    stop.store(true, Ordering::Relaxed);
    let decisions: Vec<Decision> = callers.join_all().await.into_iter().flatten().collect();

    println!("{policy:?}: back {after_restart:?} after the restart, {after_thaw:?} after the thaw");
    report(&format!("{policy:?}, all"), &decisions);
    for (what, from, to) in [("killed", killed, restarting), ("frozen", frozen, thawing)] {
        let outage = within(&decisions, from, to);
        report(&format!("{policy:?}, {what}"), &outage);
        // A refusal of before may be repeated without asking Redis, for as long as that.
        let settled = from + DENIAL_MAX;
        follow(policy, &within(&outage, settled, to), to - settled);
    }
    let last = decisions.iter().map(|decision| decision.begun).max().expect("they were asked");
    let end = within(&decisions, last - PHASE / 4, last);
    // A decision that a busy machine held up for longer than the deadline follows the policy.
    let odd = end.iter().filter(|d| ![200, 429].contains(&d.status.as_u16())).count();
    assert!(odd * 100 <= end.len(), "not back to normal: {odd} of {}", end.len());
    assert!(end.iter().any(|d| d.status == 429), "nobody is limited any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_open_layer_passes_everything_and_limits_again_when_redis_is_back() {
    redis_fails_and_comes_back(Outage::Open).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_closed_layer_answers_503_and_serves_again_when_redis_is_back() {
    redis_fails_and_comes_back(Outage::Closed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_redis_the_local_layer_limits_by_itself_until_redis_is_back() {
    redis_fails_and_comes_back(Outage::Local).await;
}

/// Posts a rating until it is taken, with the name it had the first time: a rating that was
/// answered 503 may be on the topic all the same.
async fn rate_until_taken(poster: &mut Poster, rating: &Rating) -> usize {
    let refused = AtomicUsize::new(0);
    let poster = tokio::sync::Mutex::new(poster);
    until("ingest takes the rating", Duration::from_secs(90), || async {
        let answer = poster.lock().await.try_rate(rating).await.expect("ingest answers");
        if answer.status == 202 {
            return Some(());
        }
        assert_eq!(answer.status, 503, "{}", answer.text());
        answer.problem();
        assert!(answer.retry_after() >= Duration::from_secs(1));
        refused.fetch_add(1, Ordering::Relaxed);
        None
    })
    .await;
    refused.into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_kafka_ingest_answers_503_and_nothing_that_it_acknowledged_is_lost() {
    let mut kafka = Kafka::start().await;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let settings = Settings::new(&redis.url()).kafka(&kafka.brokers(), "outage.ratings");
    let merit = Merit::start(settings).await;
    let agents: Vec<String> = (0..20).map(|n| format!("agent-{n}")).collect();

    let mut before = Poster::new(&merit.ingest());
    before.flow(&agents, 1_000).await;

    // Ratings flow when the broker dies, and go on while it is away.
    let mut during = Poster::new(&merit.ingest());
    let (url, stop) = (merit.ingest(), Arc::new(AtomicBool::new(false)));
    let posting = tokio::spawn({
        let stop = stop.clone();
        async move {
            let (mut refused, mut sent) = (0, 0);
            while !stop.load(Ordering::Relaxed) {
                let rating = Rating::new(&format!("flowing-{}", sent % 7), 3.3);
                refused += rate_until_taken(&mut during, &rating).await;
                sent += 1;
            }
            (during, refused)
        }
    });
    eventually("ratings flow", Duration::from_secs(20), || async {
        redis.limits("flowing-6").await.is_some()
    })
    .await;
    kafka.kill9();
    let mut probe = Poster::new(&url);
    until("ingest says that the bus is gone", Duration::from_secs(60), || {
        let rating = Rating::new("probe", 3.0);
        let mut probe = probe.clone();
        async move {
            let answer = probe.try_rate(&rating).await.expect("ingest answers");
            (answer.status == 503).then(|| answer.retry_after())
        }
    })
    .await;
    kafka.restart().await;
    rate_until_taken(&mut probe, &Rating::new("probe", 3.0)).await;
    stop.store(true, Ordering::Relaxed);
    let (during, refused) = posting.await.expect("the flow does not fail");
    assert!(refused >= 1, "the flow never met the outage");

    let mut after = before.clone();
    after.flow(&agents, 1_000).await;
    let mut fold = after.fold;
    fold.merge(during.fold);
    fold.settles_in(&redis, Duration::from_secs(60)).await;
}
