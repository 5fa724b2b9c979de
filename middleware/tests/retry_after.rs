//! The layer for callers, on a paused clock.

#![allow(clippy::unwrap_used)]

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::{Ready, ready},
    num::NonZeroU32,
    sync::{Arc, Mutex},
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::join_all;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tower::{Layer, Service, ServiceBuilder, ServiceExt, service_fn};
use tower_merit::{
    AdmissionLayer, AgentId, Bucket, MemoryStore, RetryAfterLayer,
    identity::ExtensionIdentity,
    retry_after::{FIRST_GUESS, MAX_ATTEMPTS_DEFAULT},
};

type Body = Full<Bytes>;

/// One request as the server saw it.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    at: Duration,
    line: String,
    body: Bytes,
}

/// Answers as it is told to, then with 200; keeps what it saw. Only the instance that was ready may
/// be called.
struct Server {
    answers: Arc<Mutex<VecDeque<Response<Body>>>>,
    seen: Arc<Mutex<Vec<Seen>>>,
    started: Instant,
    ready: bool,
}

impl Server {
    fn new(answers: impl IntoIterator<Item = Response<Body>>) -> Self {
        Self {
            answers: Arc::new(Mutex::new(answers.into_iter().collect())),
            seen: Arc::default(),
            started: Instant::now(),
            ready: false,
        }
    }

    fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    fn times(&self) -> Vec<u64> {
        self.seen().iter().map(|seen| seen.at.as_secs()).collect()
    }
}

/// Clones share what they saw, and none is ready: as those of services with a permit per call.
impl Clone for Server {
    fn clone(&self) -> Self {
        Self {
            answers: Arc::clone(&self.answers),
            seen: Arc::clone(&self.seen),
            started: self.started,
            ready: false,
        }
    }
}

impl Service<Request<Body>> for Server {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        assert!(self.ready, "called without having been ready");
        self.ready = false;
        let line = format!("{} {}", request.method(), request.uri());
        let body = futures_util::FutureExt::now_or_never(request.into_body().collect());
        let body = body.unwrap().unwrap().to_bytes();
        self.seen.lock().unwrap().push(Seen { at: self.started.elapsed(), line, body });
        let answer = self.answers.lock().unwrap().pop_front();
        ready(Ok(answer.unwrap_or_else(|| Response::new(Full::from("done")))))
    }
}

fn answer(status: u16, retry_after: Option<&str>) -> Response<Body> {
    let mut response = Response::builder().status(status);
    if let Some(value) = retry_after {
        response = response.header("retry-after", value);
    }
    response.body(Full::from(format!("status {status}"))).unwrap()
}

fn refused(seconds: &str) -> Response<Body> {
    answer(429, Some(seconds))
}

fn request(method: Method) -> Request<Body> {
    let request = Request::builder().method(method).uri("http://api.example/orders");
    request.body(Full::from("the body")).unwrap()
}

/// Exact waits.
fn exact() -> RetryAfterLayer {
    RetryAfterLayer::new().jitter(0.0)
}

async fn status(layer: &RetryAfterLayer, server: &Server, method: Method) -> u16 {
    let service = layer.layer(server.clone());
    service.oneshot(request(method)).await.unwrap().status().as_u16()
}

#[tokio::test(start_paused = true)]
async fn a_429_is_waited_out_as_told_and_the_whole_request_sent_again() {
    let server = Server::new([refused("2"), refused("3")]);
    assert_eq!(status(&exact(), &server, Method::POST).await, 200);
    let seen = |seconds| Seen {
        at: Duration::from_secs(seconds),
        line: "POST http://api.example/orders".to_owned(),
        body: Bytes::from("the body"),
    };
    assert_eq!(server.seen(), [seen(0), seen(2), seen(5)]);
}

#[tokio::test(start_paused = true)]
async fn jitter_makes_waits_longer_and_never_shorter() {
    let layer = RetryAfterLayer::new().jitter(0.5);
    let mut waits = Vec::new();
    for _ in 0..50 {
        let server = Server::new([refused("10")]);
        assert_eq!(status(&layer, &server, Method::GET).await, 200);
        waits.push(server.seen()[1].at.as_millis());
    }
    // Timers are exact to the millisecond, rounded up.
    assert!(waits.iter().all(|wait| (10_000..=15_001).contains(wait)), "{waits:?}");
    assert!(waits.iter().max() > waits.iter().min(), "{waits:?}");
}

#[tokio::test(start_paused = true)]
async fn beyond_the_budget_the_answer_is_returned_at_once_and_unchanged() {
    let (started, layer) = (Instant::now(), exact().max_wait(Duration::from_secs(5)));
    let server = Server::new([refused("3"), refused("3")]);
    let response = layer.layer(server.clone()).oneshot(request(Method::GET)).await.unwrap();
    assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(response.headers()["retry-after"], "3");
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "status 429");
    assert_eq!(started.elapsed(), Duration::from_secs(3), "the second wait does not begin");
    assert_eq!(server.times(), [0, 3]);
}

#[tokio::test(start_paused = true)]
async fn attempts_are_bounded() {
    let endless = || Server::new((0..100).map(|_| refused("0")));
    let server = endless();
    assert_eq!(status(&exact(), &server, Method::GET).await, 429);
    assert_eq!(server.seen().len(), MAX_ATTEMPTS_DEFAULT.get() as usize);
    let server = endless();
    assert_eq!(status(&exact().max_attempts(NonZeroU32::MIN), &server, Method::GET).await, 429);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_429_that_does_not_say_how_long_is_waited_out_for_longer_each_time() {
    let server = Server::new((0..3).map(|_| answer(429, None)));
    assert_eq!(status(&exact(), &server, Method::GET).await, 200);
    assert_eq!(FIRST_GUESS.as_secs(), 1);
    assert_eq!(server.times(), [0, 1, 3, 7]);
}

#[tokio::test(start_paused = true)]
async fn a_503_is_waited_out_when_it_says_so_and_the_request_may_be_repeated() {
    for (method, retry_after, sent) in [
        (Method::GET, Some("1"), 2),
        (Method::PUT, Some("1"), 2),
        (Method::GET, None, 1),
        (Method::POST, Some("1"), 1),
        (Method::PATCH, Some("1"), 1),
    ] {
        let server = Server::new([answer(503, retry_after)]);
        status(&exact(), &server, method.clone()).await;
        assert_eq!(server.seen().len(), sent, "{method} {retry_after:?}");
    }
    let server = Server::new([answer(503, Some("1"))]);
    let mut named = request(Method::POST);
    named.headers_mut().insert("idempotency-key", "\"k\"".parse().unwrap());
    let response = exact().layer(server.clone()).oneshot(named).await.unwrap();
    assert_eq!((response.status().as_u16(), server.seen().len()), (200, 2));
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_body_cannot_be_had_twice_is_sent_once() {
    let server = Server::new([refused("1"), refused("1")]);
    let once = exact().repeat_body(|_: &Body| None);
    let response = once.layer(server.clone()).oneshot(request(Method::GET)).await.unwrap();
    assert_eq!((response.status().as_u16(), server.seen().len()), (429, 1));
}

#[tokio::test(start_paused = true)]
async fn a_caller_gets_exactly_its_rate_and_no_refusal() {
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(ExtensionIdentity)
        .bucket(Bucket::per_second(2.0).capacity(5))
        .build()
        .unwrap();
    let service = ServiceBuilder::new().layer(exact()).layer(admission).service_fn(
        async |_: Request<Body>| Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())),
    );
    let started = Instant::now();
    for _ in 0..25 {
        let mut request = request(Method::POST);
        request.extensions_mut().insert(AgentId::new("a1").unwrap());
        let response = service.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    assert_eq!(started.elapsed(), Duration::from_secs(10), "5 at once, then 20 at 2 a second");
}

#[tokio::test(start_paused = true)]
async fn while_one_waits_the_others_of_the_agent_are_held_back_and_other_agents_are_not() {
    let of = |agent: &str| {
        let mut request = request(Method::GET);
        request.headers_mut().insert("authorization", format!("Bearer {agent}").parse().unwrap());
        request
    };
    let server = Server::new([refused("10")]);
    let layer = exact().share_pause();
    // A service of its own for every task, as tasks that share a layer have.
    let send = |agent| layer.layer(server.clone()).oneshot(of(agent));
    let first = tokio::spawn(send("a"));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.times(), [0]);
    let others = join_all((0..20).map(|_| send("a")));
    let (stranger, others, first) =
        tokio::join!(async { (send("b").await.unwrap().status(), server.times()) }, others, first);
    assert_eq!(stranger, (StatusCode::OK, vec![0, 1]));
    assert!(others.into_iter().all(|other| other.unwrap().status() == 200));
    assert_eq!(first.unwrap().unwrap().status(), 200);
    let times = server.times();
    assert_eq!((times.len(), &times[..2]), (23, &[0, 1][..]));
    assert!(times[2..].iter().all(|at| *at == 10), "{times:?}");
}

#[tokio::test(start_paused = true)]
async fn agents_with_api_keys_do_not_pause_each_other() {
    for (layer, field) in [
        (exact().share_pause(), "x-api-key"),
        (exact().share_pause_by([http::HeaderName::from_static("x-agent")]), "x-agent"),
    ] {
        let server = Server::new([refused("10")]);
        let of = |agent: &str| {
            let mut request = request(Method::GET);
            request.headers_mut().insert(field, agent.parse().unwrap());
            layer.layer(server.clone()).oneshot(request)
        };
        let first = tokio::spawn(of("a"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(of("b").await.unwrap().status(), StatusCode::OK);
        assert_eq!(server.times(), [0, 1], "{field}");
        first.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn without_a_shared_pause_nobody_is_held_back() {
    let server = Server::new([refused("10")]);
    let layer = exact();
    let first = tokio::spawn({
        let service = layer.layer(server.clone());
        service.oneshot(request(Method::GET))
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(status(&layer, &server, Method::GET).await, 200);
    assert_eq!(server.times(), [0, 1]);
    first.abort();
}

#[tokio::test(start_paused = true)]
async fn a_pause_longer_than_the_budget_holds_nobody_back() {
    let server = Server::new([refused("100"), refused("99")]);
    let layer = exact().share_pause();
    assert_eq!(status(&layer, &server, Method::GET).await, 429);
    assert_eq!(status(&layer, &server, Method::GET).await, 429);
    assert_eq!(server.times(), [0, 0]);
}

#[tokio::test(start_paused = true)]
async fn a_pause_that_another_request_prolongs_is_waited_out_to_its_end() {
    let layer = exact().share_pause();
    // Its budget ends before the pause: it is sent, and told to wait for longer.
    let server = Server::new([refused("5"), refused("9")]);
    let short = layer.clone().max_wait(Duration::from_secs(3));
    let first = tokio::spawn(layer.layer(server.clone()).oneshot(request(Method::GET)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(status(&short, &server, Method::GET).await, 429);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(server.times(), [0, 1, 10], "told 9 s at 1 s");
}

#[tokio::test(start_paused = true)]
async fn a_request_that_waits_holds_no_place_and_is_gone_when_it_is_dropped() {
    let server = Server::new([refused("10")]);
    let one_at_a_time =
        ServiceBuilder::new().layer(exact()).concurrency_limit(1).service(server.clone());
    let waiting = tokio::spawn(one_at_a_time.clone().oneshot(request(Method::GET)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let other = one_at_a_time.clone().oneshot(request(Method::GET)).await.unwrap();
    assert_eq!((other.status().as_u16(), server.times()), (200, vec![0, 1]));
    waiting.abort();
    assert!(waiting.await.unwrap_err().is_cancelled());
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(server.times(), [0, 1]);
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_held_back_gives_its_place_away_and_gets_one_when_it_has_waited() {
    let server = Server::new([refused("61")]);
    let layer = exact().share_pause();
    let mut service =
        ServiceBuilder::new().layer(layer).concurrency_limit(1).service(server.clone());
    // Told to wait for longer than its budget: the answer is the caller's.
    let told = service.ready().await.unwrap().call(request(Method::GET)).await.unwrap();
    assert_eq!(told.status(), StatusCode::TOO_MANY_REQUESTS);
    tokio::time::sleep(Duration::from_secs(2)).await;
    // Held back until the pause ends, and nobody else asks for readiness meanwhile.
    let held = service.ready().await.unwrap().call(request(Method::GET));
    let held = tokio::time::timeout(Duration::from_secs(600), held).await.expect("it is sent");
    assert_eq!((held.unwrap().status(), server.times()), (StatusCode::OK, vec![0, 61]));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_is_held_back_leaves_the_ready_instance_to_the_next() {
    let server = Server::new([refused("10")]);
    let pair = |server: &Server| ServiceBuilder::new().concurrency_limit(1).service(server.clone());
    let layer = exact().share_pause();
    let mut service = layer.layer(pair(&server));
    let first = tokio::spawn(service.ready().await.unwrap().call(request(Method::GET)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Held back for 9 s, and it must not keep the only place meanwhile.
    let held = tokio::spawn(service.ready().await.unwrap().call(request(Method::GET)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut other = request(Method::GET);
    *other.uri_mut() = "http://other.example/".parse().unwrap();
    let ready = tokio::time::timeout(Duration::from_secs(1), service.ready()).await.unwrap();
    assert_eq!(ready.unwrap().call(other).await.unwrap().status(), 200);
    assert_eq!(server.times(), [0, 2]);
    assert_eq!(first.await.unwrap().unwrap().status(), 200);
    assert_eq!(held.await.unwrap().unwrap().status(), 200);
    assert_eq!(server.times(), [0, 2, 10, 10]);
}

#[tokio::test]
async fn errors_pass_and_are_not_repeated() {
    let asked = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&asked);
    let broken = service_fn(move |_: Request<Body>| {
        *counted.lock().unwrap() += 1;
        ready(Err::<Response<Body>, _>("connection reset"))
    });
    let error = exact().layer(broken).oneshot(request(Method::GET)).await.unwrap_err();
    assert_eq!((error, *asked.lock().unwrap()), ("connection reset", 1));
}
