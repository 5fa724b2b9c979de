//! What a decision costs that a lease answers, beside the service without a limit.
//!
//! ```text
//! cargo bench -p merit-integration --bench leased --features merit-sidecar/full
//! ```
//!
//! `decision`: a charge of one bucket, by the in-process store, by a lease over it, and by a lease
//! over a real Redis (started on a free port). `layer`: a no-op service bare and behind the layer
//! with a remembered JWT and full `RateLimit` fields, over the same stores. Renewals in the background
//! are part of what is measured.
//!
//! Every request is admitted: limits are far above what a bench can ask.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{convert::Infallible, hint::black_box, sync::Arc, time::Duration};

use axum::body::Body;
use criterion::{
    BenchmarkGroup, Criterion, criterion_group, criterion_main, measurement::WallTime,
};
use http::{Request, Response};
use merit_integration::{Persistence, Redis, SECRET, requests::requests};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_merit::{
    AdmissionLayer, AgentId, Bucket, JwtIdentity, MemoryStore, RedisStore, Spend,
    bucket::{BucketName, Limits, Tokens},
    store::{BucketRule, Charge, Decision, Leased, Take},
};

/// Agents that the requests are spread over.
const AGENTS: usize = 64;

const CAPACITY: u64 = 9_000_000;

const TIMEOUT: Duration = Duration::from_secs(5);

fn charges() -> Vec<Charge> {
    let bucket = BucketRule {
        name: BucketName::new("default").unwrap(),
        is_default: true,
        limits: Limits::per_second(CAPACITY as f64, CAPACITY).unwrap(),
        shadow: false,
    };
    let takes: Arc<[Take]> = [Take { bucket, cost: Tokens::ONE }].into();
    let agent = |index| AgentId::new(&format!("agent-{index}")).unwrap();
    (0..AGENTS).map(|index| Charge { agent: agent(index), takes: Arc::clone(&takes) }).collect()
}

fn decide<S: Spend>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    name: &str,
    store: &S,
) {
    let charges = charges();
    let mut next = charges.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher.to_async(runtime).iter(|| {
            let decision = store.spend(next.next().unwrap().clone());
            async { assert_eq!(decision.await.unwrap().decision, Decision::Admitted) }
        });
    });
}

async fn no_op(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::empty()))
}

/// One request through a service made ready anew, as a server does.
fn pass<S, B>(group: &mut BenchmarkGroup<'_, WallTime>, runtime: &Runtime, name: &str, service: &S)
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
{
    let requests = requests(AGENTS);
    let mut next = requests.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher.to_async(runtime).iter(|| {
            let mut request = Request::new(Body::empty());
            request.headers_mut().clone_from(next.next().unwrap().headers());
            async {
                let response = service.clone().oneshot(request).await.unwrap();
                assert!(response.status().is_success());
                black_box(response);
            }
        });
    });
}

fn behind<S: Spend>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    runtime: &Runtime,
    name: &str,
    store: S,
) {
    let admission = AdmissionLayer::builder(store)
        .identity(JwtIdentity::hs256(SECRET.as_bytes()))
        .bucket(Bucket::per_second(CAPACITY as f64).capacity(CAPACITY))
        .build()
        .unwrap();
    pass(group, runtime, name, &admission.layer(service_fn(no_op)));
}

fn leased(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let _entered = runtime.enter();
    let server = runtime.block_on(Redis::start(Persistence::SnapshotOnDemand));
    let redis = || {
        // Patient: a busy machine shall not turn the bench into one of the outage policy.
        let store = RedisStore::builder(&server.url()).timeout(TIMEOUT).cache_denials(false);
        runtime.block_on(store.connect()).unwrap()
    };

    let mut group = criterion.benchmark_group("decision");
    decide(&mut group, &runtime, "in-process store", &MemoryStore::new());
    decide(
        &mut group,
        &runtime,
        "lease over the in-process store",
        &Leased::new(MemoryStore::new()),
    );
    decide(&mut group, &runtime, "lease over redis", &Leased::new(redis()));
    group.finish();

    let mut group = criterion.benchmark_group("layer");
    pass(&mut group, &runtime, "no-op service", &service_fn(no_op));
    behind(&mut group, &runtime, "in-process store", MemoryStore::new());
    behind(
        &mut group,
        &runtime,
        "lease over the in-process store",
        Leased::new(MemoryStore::new()),
    );
    behind(&mut group, &runtime, "lease over redis", Leased::new(redis()));
    group.finish();
}

criterion_group!(benches, leased);
criterion_main!(benches);
