//! What the layer costs, beside its peers, in one run.
//!
//! ```text
//! cargo bench -p merit-integration --bench admission
//! ```
//!
//! `in process`: a no-op service bare, behind `tower_governor` with headers (which knows a key from a
//! header and verifies nothing), and behind the layer with a remembered JWT, the in-process store
//! and full `RateLimit` fields. `over redis` (a server is started on a free port): a layer written by
//! hand that makes one EVALSHA of a plain token bucket per request, and ours.
//!
//! Every body is empty and every request is admitted: limits are far above what a bench can ask.

#![allow(clippy::unwrap_used, missing_docs)]

use std::{
    convert::Infallible,
    hint::black_box,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::body::Body;
use criterion::{Criterion, criterion_group, criterion_main};
use http::{Request, Response, header};
use merit_integration::{Persistence, Redis};
use redis::{Script, aio::ConnectionManager};
use tokio::runtime::Runtime;
use tower::{Layer, Service, ServiceExt, service_fn, util::BoxCloneSyncService};
use tower_governor::{
    GovernorError, GovernorLayer, governor::GovernorConfigBuilder, key_extractor::KeyExtractor,
};
use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore, RedisStore};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

/// Agents that the requests are spread over.
const AGENTS: usize = 64;

fn requests() -> Vec<Request<()>> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    let request = |index| {
        let claims =
            serde_json::json!({ "agent_id": format!("agent-{index}"), "exp": now + 36_000 });
        let token = jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap();
        Request::builder()
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header("x-agent", format!("agent-{index}"))
            .body(())
            .unwrap()
    };
    (0..AGENTS).map(request).collect()
}

async fn no_op(_: Request<Body>) -> Result<Response<Body>, Infallible> {
    Ok(Response::new(Body::empty()))
}

/// One request through a service made ready anew, as a server does.
async fn pass<S, B>(service: &S, template: &Request<()>)
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: std::fmt::Debug,
{
    let mut request = Request::new(Body::empty());
    request.headers_mut().clone_from(template.headers());
    let response = service.clone().oneshot(request).await.unwrap();
    assert!(response.status().is_success());
    black_box(response);
}

#[derive(Clone)]
struct HeaderKey;

impl KeyExtractor for HeaderKey {
    type Key = String;

    fn extract<T>(&self, request: &Request<T>) -> Result<String, GovernorError> {
        let value = request.headers().get("x-agent").ok_or(GovernorError::UnableToExtractKey)?;
        value.to_str().map(str::to_owned).map_err(|_| GovernorError::UnableToExtractKey)
    }
}

fn in_process(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let requests = requests();
    let mut group = criterion.benchmark_group("in process");
    let mut next = requests.iter().cycle();

    let bare = service_fn(no_op);
    group.bench_function("no-op service", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&bare, next.next().unwrap()));
    });

    let config = GovernorConfigBuilder::default()
        .key_extractor(HeaderKey)
        .per_nanosecond(100)
        .burst_size(1_000_000)
        .use_headers()
        .finish()
        .unwrap();
    let governor = GovernorLayer::<_, _, Body>::new(config).layer(service_fn(no_op));
    group.bench_function("tower_governor with headers", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&governor, next.next().unwrap()));
    });

    let merit = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(9_000_000.0).capacity(9_000_000))
        .build()
        .unwrap()
        .layer(service_fn(no_op));
    group.bench_function("tower-merit with JWT and headers", |bencher| {
        bencher.to_async(&runtime).iter(|| pass(&merit, next.next().unwrap()));
    });
    group.finish();
}

/// The token bucket everybody writes: floats, HMGET, HSET, PEXPIRE.
const PLAIN_LUA: &str = r"
local b = redis.call('HMGET', KEYS[1], 'tokens', 'at')
local t = redis.call('TIME')
local now = t[1] + t[2] / 1e6
local capacity, rate = tonumber(ARGV[1]), tonumber(ARGV[2])
local tokens = tonumber(b[1] or capacity)
local at = tonumber(b[2] or now)
tokens = math.min(capacity, tokens + (now - at) * rate)
local ok = tokens >= 1
if ok then tokens = tokens - 1 end
redis.call('HSET', KEYS[1], 'tokens', tokens, 'at', now)
redis.call('PEXPIRE', KEYS[1], 86400000)
return {ok and 1 or 0, math.floor(tokens)}
";

type Plain = BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>;

/// One EVALSHA per request, no identity but a header, no deadline, no fallback.
fn by_hand(connection: &ConnectionManager) -> Plain {
    let (script, connection) = (Arc::new(Script::new(PLAIN_LUA)), connection.clone());
    BoxCloneSyncService::new(service_fn(move |request: Request<Body>| {
        let (script, mut connection) = (Arc::clone(&script), connection.clone());
        async move {
            let agent = request.headers()["x-agent"].to_str().unwrap();
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
    let requests = requests();
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
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(9_000_000.0).capacity(9_000_000))
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
