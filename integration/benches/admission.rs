//! What the layer costs, beside its peers, in one run.
//!
//! ```text
//! cargo bench -p merit-integration --bench admission
//! ```
//!
//! `in process`: a no-op service bare, behind `tower_governor` with headers (which knows a key from a
//! header and verifies nothing), and behind the layer with a remembered JWT, the in-process store
//! and full `RateLimit` fields; and the layer alone, with an identity and a store that answer a constant.
//! `in process, as a server calls it`: the same, with one value in the request's extensions and one
//! field on the answer, as hyper and a handler leave them there: whoever comes first into an empty map
//! pays for the map. `over redis` (a server is started on a free port): a layer written by
//! hand that makes one EVALSHA of a plain token bucket per request, and ours.
//!
//! Every body is empty and every request is admitted: limits are far above what a bench can ask.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    convert::Infallible,
    future::{Ready, ready},
    hint::black_box,
    sync::Arc,
};

use axum::body::Body;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{HeaderValue, Request, Response, header};
use merit_integration::{
    PLAIN_LUA, Persistence, Redis, SECRET,
    requests::{AGENT_HEADER, requests},
};
use redis::{Script, aio::ConnectionManager};
use tokio::{runtime::Runtime, time::Instant};
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_governor::{
    GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor,
};
use tower_merit::{
    AdmissionLayer, AdmissionService, AgentId, Bucket, Caller, Identify, JwtIdentity, MemoryStore,
    RedisStore, Spend,
    bucket::{BucketName, Limits, Tokens},
    identity::IdentityError,
    store::{BucketRule, Charge, Settlement, StoreError, Take, Verdict},
};

/// Agents that the requests are spread over.
const AGENTS: usize = 64;

async fn no_op(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::empty()))
}

async fn handler(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    let mut response = Response::new(Body::empty());
    let text = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

/// One request through a service made ready anew, as a server does.
async fn pass<S, B>(service: &S, template: &Request<()>)
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
{
    let mut request = Request::new(Body::empty());
    request.headers_mut().clone_from(template.headers());
    if template.extensions().get::<Connection>().is_some() {
        request.extensions_mut().insert(Connection);
    }
    let response = service.clone().oneshot(request).await.unwrap();
    assert!(response.status().is_success());
    black_box(response);
}

/// What a server leaves in a request's extensions.
#[derive(Clone)]
struct Connection;

#[derive(Clone)]
struct HeaderKey;

impl KeyExtractor for HeaderKey {
    type Key = String;

    fn extract<T>(&self, request: &Request<T>) -> Result<String, GovernorError> {
        let value = request.headers().get(AGENT_HEADER).ok_or(GovernorError::UnableToExtractKey)?;
        value.to_str().map(str::to_owned).map_err(|_| GovernorError::UnableToExtractKey)
    }
}

/// Knows who is asking.
struct Known(AgentId);

impl Identify for Known {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, _: &Request<B>) -> Self::Future {
        ready(Ok(self.0.clone().into()))
    }

    fn identify_now<B>(&self, _: &Request<B>, _: Instant) -> Option<Result<Caller, IdentityError>> {
        Some(Ok(self.0.clone().into()))
    }
}

/// A store that has decided.
struct Decided(Verdict);

impl Spend for Decided {
    const REMOTE: bool = false;

    type Future = Ready<Result<Verdict, StoreError>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        black_box(charge);
        ready(Ok(self.0.clone()))
    }

    fn spend_now(&self, _: &AgentId, takes: &Arc<[Take]>, _: Instant) -> Option<Verdict> {
        black_box(takes);
        Some(self.0.clone())
    }

    fn settle(&self, _: Settlement) {}
}

fn bucket() -> Bucket {
    Bucket::per_second(9_000_000.0).capacity(9_000_000)
}

/// The layer around `inner`, with an identity and a store that cost next to nothing.
fn alone<T>(inner: T) -> AdmissionService<T, Decided, Known> {
    let agent: AgentId = "agent-1".parse().unwrap();
    let limits = Limits::per_second(9_000_000.0, 9_000_000).unwrap();
    let name = BucketName::new("default").unwrap();
    let bucket_rule = BucketRule { name, is_default: true, limits, shadow: false };
    let takes = Arc::new([Take { bucket: bucket_rule, cost: Tokens::ONE }]);
    let charge = Charge { agent: agent.clone(), takes };
    let verdict = MemoryStore::new().spend(charge).into_inner().unwrap();
    let layer = AdmissionLayer::builder(Decided(verdict)).identity(Known(agent)).bucket(bucket());
    layer.build().unwrap().layer(inner)
}

fn in_process(criterion: &mut Criterion) {
    let mut requests = requests(AGENTS);
    compare(criterion, "in process", service_fn(no_op), &requests);
    for request in &mut requests {
        request.extensions_mut().insert(Connection);
    }
    compare(criterion, "in process, as a server calls it", service_fn(handler), &requests);
}

fn compare<T>(criterion: &mut Criterion, group: &str, service: T, requests: &[Request<()>])
where
    T: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone,
    T::Future: Send,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let mut group = criterion.benchmark_group(group);
    let mut next = requests.iter().cycle();

    group.bench_function("no-op service", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&service, next.next().unwrap()));
    });

    let config = GovernorConfigBuilder::default()
        .key_extractor(HeaderKey)
        .per_nanosecond(100)
        .burst_size(1_000_000)
        .use_headers()
        .finish()
        .unwrap();
    let governor = GovernorLayer::<_, _, Body>::new(config).layer(service.clone());
    group.bench_function("tower_governor with headers", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&governor, next.next().unwrap()));
    });

    let merit = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET.as_bytes()))
        .bucket(bucket())
        .build()
        .unwrap()
        .layer(service.clone());
    group.bench_function("tower-merit with JWT and headers", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&merit, next.next().unwrap()));
    });

    let alone = alone(service);
    group.bench_function("tower-merit's layer alone", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&alone, next.next().unwrap()));
    });
    group.finish();
}

type Plain = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// One EVALSHA per request, no identity but a header, no deadline, no fallback.
fn by_hand(connection: &ConnectionManager) -> Plain {
    let (script, connection) = (Arc::new(Script::new(PLAIN_LUA)), connection.clone());
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let (script, mut connection) = (Arc::clone(&script), connection.clone());
        async move {
            let agent = request.headers()[AGENT_HEADER].to_str().unwrap();
            let key = format!("plain:{agent}");
            let answer: (i64, i64) = script
                .key(key)
                .arg(9_000_000)
                .arg(9_000_000)
                .invoke_async(&mut connection)
                .await
                .unwrap();
            assert_eq!(answer.0, 1);
            no_op(request).await
        }
    }))
}

fn over_redis(criterion: &mut Criterion) {
    let runtime = Runtime::new().unwrap();
    let server = runtime.block_on(Redis::start(Persistence::SnapshotOnDemand));
    let requests = requests(AGENTS);
    let mut group = criterion.benchmark_group("over redis");
    let mut next = requests.iter().cycle();

    let connection = runtime.block_on(async {
        let client = redis::Client::open(server.url()).unwrap();
        ConnectionManager::new(client).await.unwrap()
    });
    let plain = by_hand(&connection);
    group.bench_function("by hand, one EVALSHA per request", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&plain, next.next().unwrap()));
    });

    let store = runtime.block_on(RedisStore::connect(&server.url())).unwrap();
    let merit = AdmissionLayer::builder(store)
        .identity(JwtIdentity::hs256(SECRET.as_bytes()))
        .bucket(bucket())
        .build()
        .unwrap();
    let merit = runtime.block_on(async { merit.layer(service_fn(no_op)) });
    group.bench_function("tower-merit with JWT and headers", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&merit, next.next().unwrap()));
    });
    group.finish();
}

criterion_group!(benches, in_process, over_redis);
criterion_main!(benches);
