//! The layer as a service behind it and a caller in front of it see it.

#![allow(clippy::unwrap_used)]

use std::{
    convert::Infallible,
    future::{Future, ready},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_merit::{
    AdmissionLayer, AgentId, Bucket, JwtIdentity, JwtVerifier, MemoryStore, Outage, Spend,
    bucket::Limits,
    store::{Charge, Settlement, StoreError, Verdict},
};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

fn token(claims: Value) -> String {
    let mut all = json!({ "exp": unix_now() + 600 });
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &all, &key).unwrap()
}

fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn layer_over<S: Spend>(store: S, outage: Outage) -> AdmissionLayer<S, JwtVerifier> {
    AdmissionLayer::builder(store)
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(1.0).capacity(3).named("requests"))
        .on_outage(outage)
        .build()
        .unwrap()
}

fn layer() -> AdmissionLayer<MemoryStore, JwtVerifier> {
    layer_over(MemoryStore::new(), Outage::Local)
}

fn request(authorization: Option<&str>) -> Request<Full<Bytes>> {
    let mut request = Request::builder().uri("/");
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    request.body(Full::default()).unwrap()
}

async fn hello(request: Request<Full<Bytes>>) -> Result<Response<Full<Bytes>>, Infallible> {
    let agent = request.extensions().get::<AgentId>().map(ToString::to_string);
    let body = Bytes::from(agent.unwrap_or_default());
    let upstream = ("ratelimit", "\"upstream\";r=9;t=1");
    Ok(Response::builder().header(upstream.0, upstream.1).body(Full::from(body)).unwrap())
}

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

impl Answer {
    fn problem(&self) -> Value {
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(self.headers["cache-control"], "no-store");
        serde_json::from_slice(&self.body).unwrap()
    }

    fn fields(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect()
    }
}

async fn ask<S: Spend>(
    layer: &AdmissionLayer<S, JwtVerifier>,
    authorization: Option<&str>,
) -> Answer {
    // A new service for every request, as a server makes one for every connection.
    let response = layer.layer(service_fn(hello)).oneshot(request(authorization)).await.unwrap();
    let (parts, body) = response.into_parts();
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.collect().await.unwrap().to_bytes(),
    }
}

fn bearer(agent: &str) -> String {
    format!("Bearer {}", token(json!({ "agent_id": agent })))
}

#[tokio::test(start_paused = true)]
async fn an_admitted_request_carries_its_agent_and_the_answer_its_limits() {
    let answer = ask(&layer(), Some(&bearer("a1"))).await;
    assert_eq!((answer.status, &*answer.body), (StatusCode::OK, &b"a1"[..]));
    assert_eq!(answer.fields("ratelimit"), ["\"upstream\";r=9;t=1", "\"requests\";r=2;t=1"]);
    assert_eq!(answer.fields("ratelimit-policy"), ["\"requests\";q=3;w=3"]);
}

#[tokio::test(start_paused = true)]
async fn a_layer_cloned_per_connection_still_limits() {
    let layer = layer();
    for left in [2, 1, 0] {
        let answer = ask(&layer.clone(), Some(&bearer("a1"))).await;
        assert!(answer.fields("ratelimit")[1].contains(&format!("r={left};")));
    }
    assert_eq!(
        ask(&layer.clone(), Some(&bearer("a1"))).await.status,
        StatusCode::TOO_MANY_REQUESTS
    );
    assert_eq!(
        ask(&layer, Some(&bearer("a2"))).await.status,
        StatusCode::OK,
        "another agent's bucket"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refusal_says_how_long_to_wait_and_that_wait_is_enough() {
    let layer = layer();
    for _ in 0..3 {
        ask(&layer, Some(&bearer("a1"))).await;
    }
    tokio::time::advance(Duration::from_millis(300)).await;
    let answer = ask(&layer, Some(&bearer("a1"))).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.fields("ratelimit"), ["\"requests\";r=0;t=1"]);
    let problem = answer.problem();
    assert_eq!(problem["type"], "https://iana.org/assignments/http-problem-types#quota-exceeded");
    assert_eq!(problem["retry_after_ms"], 700);
    assert_eq!(problem["violated-policies"], json!(["requests"]));
    tokio::time::advance(Duration::from_millis(699)).await;
    assert_eq!(ask(&layer, Some(&bearer("a1"))).await.status, StatusCode::TOO_MANY_REQUESTS);
    tokio::time::advance(Duration::from_millis(1)).await;
    assert_eq!(ask(&layer, Some(&bearer("a1"))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn without_a_credential_it_is_401_and_no_bucket_is_touched() {
    let store = MemoryStore::new();
    let layer = layer_over(store.clone(), Outage::Local);
    let answer = ask(&layer, None).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    // RFC 6750 section 3.1: no error code when no credential was presented.
    assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"merit\"");
    let answer = ask(&layer, Some("Bearer not.a.token")).await;
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    let challenge = answer.headers["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    assert_eq!(answer.problem()["status"], 401);
    assert!(store.is_empty());
}

#[tokio::test]
async fn a_true_token_without_a_usable_agent_is_403() {
    let layer = layer();
    for claims in [json!({}), json!({ "agent_id": 7 }), json!({ "agent_id": "a b" })] {
        let answer = ask(&layer, Some(&format!("Bearer {}", token(claims)))).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN);
        assert!(answer.problem()["detail"].as_str().unwrap().contains("agent_id"));
    }
}

#[tokio::test]
async fn two_authorization_fields_are_refused_and_not_chosen_between() {
    let mut both = request(Some(&bearer("a1")));
    both.headers_mut().append(header::AUTHORIZATION, bearer("a2").parse().unwrap());
    let response = layer().layer(service_fn(hello)).oneshot(both).await.unwrap();
    assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn a_banned_agent_gets_403_until_the_ban_ends() {
    let store = MemoryStore::new();
    store.ban(&AgentId::new("a1").unwrap(), (unix_now() + 3600) * 1000);
    let answer = ask(&layer_over(store, Outage::Local), Some(&bearer("a1"))).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn an_agent_whose_limits_let_nothing_pass_is_not_told_to_come_back_soon() {
    let store = MemoryStore::new();
    let agent = AgentId::new("a1").unwrap();
    store.set_by_operator(&agent, Limits::per_second(0.0, 0).unwrap());
    let answer = ask(&layer_over(store, Outage::Local), Some(&bearer("a1"))).await;
    assert_eq!(answer.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(answer.headers["retry-after"], "86400");
}

/// A store that fails as often as it is told, and counts how often it was asked.
#[derive(Clone, Default)]
struct Failing {
    asked: Arc<AtomicUsize>,
    works: Option<MemoryStore>,
}

impl Spend for Failing {
    type Future = std::pin::Pin<Box<dyn Future<Output = Result<Verdict, StoreError>> + Send>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match &self.works {
            Some(store) => Box::pin(store.spend(charge)),
            None => Box::pin(ready(Err(StoreError::Timeout(Duration::from_millis(20))))),
        }
    }

    fn settle(&self, settlement: Settlement) {
        if let Some(store) = &self.works {
            store.settle(settlement);
        }
    }
}

#[tokio::test]
async fn while_the_store_fails_open_passes_and_closed_answers_503() {
    let answer = ask(&layer_over(Failing::default(), Outage::Open), Some(&bearer("a1"))).await;
    assert_eq!(answer.status, StatusCode::OK);
    let answer = ask(&layer_over(Failing::default(), Outage::Closed), Some(&bearer("a1"))).await;
    assert_eq!(answer.status, StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(answer.headers["retry-after"], "1");
    answer.problem();
}

#[tokio::test]
async fn while_the_store_fails_local_limits_each_agent_on_this_node() {
    let layer = layer_over(Failing::default(), Outage::Local);
    let mut statuses = Vec::new();
    for _ in 0..5 {
        statuses.push(ask(&layer, Some(&bearer("a1"))).await.status.as_u16());
    }
    assert_eq!(statuses, [200, 200, 200, 429, 429]);
}

/// A store that works until it is told to fail, in the way it is told.
#[derive(Clone)]
struct Switch {
    store: MemoryStore,
    fails: Arc<AtomicUsize>,
    asked: Arc<AtomicUsize>,
}

impl Switch {
    const WORKS: usize = 0;
    const TIMES_OUT: usize = 1;
    const HOLDS_NONSENSE: usize = 2;

    fn new(store: &MemoryStore) -> Self {
        Self { store: store.clone(), fails: Arc::default(), asked: Arc::default() }
    }
}

impl Spend for Switch {
    type Future = std::future::Ready<Result<Verdict, StoreError>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        self.asked.fetch_add(1, Ordering::Relaxed);
        match self.fails.load(Ordering::Relaxed) {
            Self::WORKS => self.store.spend(charge),
            Self::TIMES_OUT => ready(Err(StoreError::Timeout(Duration::from_millis(20)))),
            _ => ready(Err(StoreError::Malformed { what: "a key that is no hash".to_owned() })),
        }
    }

    fn settle(&self, settlement: Settlement) {
        if self.fails.load(Ordering::Relaxed) == Self::WORKS {
            self.store.settle(settlement);
        }
    }
}

#[tokio::test]
async fn the_node_takes_its_share_of_the_last_limits_it_saw() {
    let (store, agent) = (MemoryStore::new(), AgentId::new("a1").unwrap());
    store.set_by_operator(&agent, Limits::per_second(1.0, 8).unwrap());
    let switch = Switch::new(&store);
    let layer = AdmissionLayer::builder(switch.clone())
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(1.0).capacity(3))
        .expected_nodes(2.try_into().unwrap())
        .build()
        .unwrap();
    assert_eq!(ask(&layer, Some(&bearer("a1"))).await.status, StatusCode::OK);
    switch.fails.store(Switch::TIMES_OUT, Ordering::Relaxed);
    let mut admitted = 0;
    for _ in 0..20 {
        admitted += usize::from(ask(&layer, Some(&bearer("a1"))).await.status == StatusCode::OK);
    }
    assert_eq!(admitted, 4, "half of a capacity of 8");
}

#[tokio::test]
async fn a_ban_holds_while_the_store_fails_and_ends_when_the_store_says_so() {
    let (store, agent) = (MemoryStore::new(), AgentId::new("a1").unwrap());
    store.ban(&agent, (unix_now() + 3600) * 1000);
    let switch = Switch::new(&store);
    let layer = layer_over(switch.clone(), Outage::Local);
    assert_eq!(ask(&layer, Some(&bearer("a1"))).await.status, StatusCode::FORBIDDEN);
    switch.fails.store(Switch::TIMES_OUT, Ordering::Relaxed);
    assert_eq!(ask(&layer, Some(&bearer("a1"))).await.status, StatusCode::FORBIDDEN);
    switch.fails.store(Switch::WORKS, Ordering::Relaxed);
    store.ban(&agent, 0);
    assert_eq!(ask(&layer, Some(&bearer("a1"))).await.status, StatusCode::OK);
    switch.fails.store(Switch::TIMES_OUT, Ordering::Relaxed);
    assert_eq!(ask(&layer, Some(&bearer("a1"))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn one_agents_malformed_bucket_does_not_open_the_breaker_for_all() {
    let switch = Switch::new(&MemoryStore::new());
    switch.fails.store(Switch::HOLDS_NONSENSE, Ordering::Relaxed);
    let layer = layer_over(switch.clone(), Outage::Open);
    for _ in 0..50 {
        ask(&layer, Some(&bearer("a1"))).await;
    }
    assert_eq!(switch.asked.load(Ordering::Relaxed), 50);
}

#[tokio::test]
async fn a_store_that_keeps_failing_is_left_alone() {
    let store = Failing::default();
    let asked = Arc::clone(&store.asked);
    let layer = layer_over(store, Outage::Open);
    for _ in 0..100 {
        ask(&layer, Some(&bearer("a1"))).await;
    }
    // Five failures open the breaker; a hundred requests take well under the ten probe intervals
    // that would double that.
    let asked = asked.load(Ordering::Relaxed);
    assert!((5..=15).contains(&asked), "asked {asked} times");
}

/// Ready only once, as a service with a permit per call is.
#[derive(Clone, Default)]
struct ReadyOnce {
    ready: bool,
}

impl Service<Request<Full<Bytes>>> for ReadyOnce {
    type Response = Response<Full<Bytes>>;
    type Error = Infallible;
    type Future = std::future::Ready<Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Full<Bytes>>) -> Self::Future {
        assert!(self.ready, "the service that was called is not the one that was ready");
        self.ready = false;
        ready(Ok(Response::new(Full::default())))
    }
}

#[tokio::test]
async fn the_instance_that_was_ready_is_the_one_that_is_called() {
    // The clone that stays behind must not inherit readiness it was not given.
    #[derive(Default)]
    struct Fresh(ReadyOnce);
    impl Clone for Fresh {
        fn clone(&self) -> Self {
            Self::default()
        }
    }
    impl Service<Request<Full<Bytes>>> for Fresh {
        type Response = Response<Full<Bytes>>;
        type Error = Infallible;
        type Future = std::future::Ready<Result<Self::Response, Infallible>>;
        fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
            self.0.poll_ready(context)
        }
        fn call(&mut self, request: Request<Full<Bytes>>) -> Self::Future {
            self.0.call(request)
        }
    }
    let mut service = layer().layer(Fresh::default());
    for _ in 0..2 {
        let response =
            service.ready().await.unwrap().call(request(Some(&bearer("a1")))).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
}
