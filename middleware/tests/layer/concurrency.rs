//! How many requests of one agent are in flight: a place lasts as long as the answer's body.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::ready,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use crate::support::{self, Named, ask, builder, counting, get, outcome};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use tower::{Layer, ServiceExt, service_fn};
use tower_merit::{
    AdmissionBody, AdmissionLayer, MemoryStore, Refusal, Route, admission::CONCURRENCY_POLICY,
};

/// Frames that come one at a time; `Err` breaks off.
#[derive(Default)]
struct Stream {
    frames: VecDeque<Result<Frame<Bytes>, &'static str>>,
    knows_its_end: bool,
}

impl Body for Stream {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        Poll::Ready(self.frames.pop_front())
    }

    fn is_end_stream(&self) -> bool {
        self.knows_its_end && self.frames.is_empty()
    }
}

fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
    Ok(Frame::data(Bytes::from(text)))
}

fn layer(places: u32) -> AdmissionLayer<MemoryStore, Named> {
    builder(MemoryStore::new()).concurrency_per_agent(places.try_into().unwrap()).build().unwrap()
}

async fn open(
    layer: &AdmissionLayer<MemoryStore, Named>,
    frames: impl IntoIterator<Item = Result<Frame<Bytes>, &'static str>>,
    knows_its_end: bool,
) -> Response<AdmissionBody<Stream>> {
    let body = Stream { frames: frames.into_iter().collect(), knows_its_end };
    let body = Arc::new(Mutex::new(Some(body)));
    let service = service_fn(move |_: Request<Full<Bytes>>| {
        let body = body.lock().unwrap().take().expect("asked once");
        ready(Ok::<_, Infallible>(Response::new(body)))
    });
    layer.layer(service).oneshot(get("/")).await.unwrap()
}

async fn is_free(layer: &AdmissionLayer<MemoryStore, Named>) -> bool {
    match ask(layer, get("/")).await.status {
        StatusCode::OK => true,
        StatusCode::TOO_MANY_REQUESTS => false,
        other => panic!("{other}"),
    }
}

#[tokio::test(start_paused = true)]
async fn a_place_is_held_until_the_body_has_ended() {
    let layer = layer(1);
    let mut streaming = open(&layer, [data("a"), data("b")], false).await.into_body();
    for _ in 0..2 {
        assert!(!is_free(&layer).await);
        assert!(streaming.frame().await.unwrap().is_ok());
    }
    assert!(!is_free(&layer).await, "nobody knows yet that this was the last frame");
    assert!(streaming.frame().await.is_none());
    assert!(is_free(&layer).await);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_as_soon_as_the_end_is_known_the_body_broke_off_or_was_dropped() {
    let layer = layer(1);
    let mut known = open(&layer, [data("a")], true).await.into_body();
    assert!(!is_free(&layer).await);
    known.frame().await.unwrap().unwrap();
    assert!(is_free(&layer).await, "whoever knows the end asks for no further frame");

    let mut broken = open(&layer, [Err("reset")], false).await.into_body();
    assert!(!is_free(&layer).await);
    assert!(broken.frame().await.unwrap().is_err());
    assert!(is_free(&layer).await);

    let dropped = open(&layer, [data("a")], false).await;
    assert!(!is_free(&layer).await);
    drop(dropped);
    assert!(is_free(&layer).await);
}

#[tokio::test(start_paused = true)]
async fn a_place_is_free_when_the_caller_goes_before_the_answer() {
    let layer = layer(1);
    let never = service_fn(|_: Request<Full<Bytes>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let mut waiting = Box::pin(layer.layer(never).oneshot(get("/")));
    assert!(
        std::future::poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context).is_pending()))
            .await
    );
    assert!(!is_free(&layer).await);
    drop(waiting);
    assert!(is_free(&layer).await);
}

#[tokio::test(start_paused = true)]
async fn too_many_in_flight_is_a_refusal_of_its_own_and_charges_nothing() {
    let (layer, recorder) = counting(|| {
        builder(MemoryStore::new())
            .concurrency_per_agent(2.try_into().unwrap())
            .on_refusal(|refusal, response| {
                assert_eq!(*refusal, Refusal::TooManyInFlight { limit: 2 });
                response
            })
            .build()
            .unwrap()
    });
    let first = open(&layer, [], false).await;
    let fields = first.headers();
    assert_eq!(
        fields["ratelimit-policy"],
        "\"requests\";q=10;w=10, \"concurrency\";q=2;qu=\"concurrent-requests\""
    );
    assert_eq!(fields["ratelimit"], "\"requests\";r=9;t=1, \"concurrency\";r=1");
    let _second = open(&layer, [], false).await;
    for _ in 0..5 {
        let refused = ask(&layer, get("/")).await;
        assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(refused.headers["retry-after"], "1");
        let problem = refused.problem();
        assert_eq!(problem["violated-policies"], serde_json::json!([CONCURRENCY_POLICY]));
        assert_eq!(
            problem["type"],
            "https://iana.org/assignments/http-problem-types#quota-exceeded"
        );
        assert_eq!(refused.field("ratelimit"), "\"concurrency\";r=0");
    }
    let mut other = get("/");
    other.headers_mut().insert("x-agent", "a2".parse().unwrap());
    assert_eq!(ask(&layer, other).await.left("requests"), 9, "another agent has its own places");
    drop(first);
    assert_eq!(ask(&layer, get("/")).await.left("requests"), 7, "a refusal was charged");
    assert_eq!((outcome(&recorder, "in_flight"), outcome(&recorder, "admitted")), (5, 4));
}

#[tokio::test(start_paused = true)]
async fn a_denied_request_holds_no_place() {
    let layer = builder(MemoryStore::new())
        .concurrency_per_agent(1.try_into().unwrap())
        .route(Route::path("/all").cost(10))
        .build()
        .unwrap();
    assert_eq!(ask(&layer, get("/all")).await.status, StatusCode::OK);
    for _ in 0..3 {
        let denied = ask(&layer, get("/")).await;
        assert_eq!(denied.problem()["violated-policies"], serde_json::json!(["requests"]));
    }
}

/// Learns the agent once it is told to.
struct Slow(std::sync::Arc<tokio::sync::Notify>);

impl tower_merit::Identify for Slow {
    type Future = std::pin::Pin<
        Box<
            dyn Future<Output = Result<tower_merit::Caller, tower_merit::identity::IdentityError>>
                + Send,
        >,
    >;

    fn identify<B>(&self, request: &http::Request<B>) -> Self::Future {
        let known = request.headers().contains_key("known");
        let told = std::sync::Arc::clone(&self.0);
        Box::pin(async move {
            if !known {
                told.notified().await;
            }
            Ok(tower_merit::AgentId::new("a1").unwrap().into())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_whose_decision_takes_time_holds_no_place_of_the_service_behind() {
    use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit};

    let told = std::sync::Arc::new(tokio::sync::Notify::new());
    let layer = tower_merit::AdmissionLayer::builder(tower_merit::MemoryStore::new())
        .identity(Slow(std::sync::Arc::clone(&told)))
        .bucket(tower_merit::Bucket::per_second(1.0).capacity(10))
        .build()
        .unwrap();
    let mut service = layer.layer(ConcurrencyLimit::new(tower::service_fn(support::hello), 1));
    let request = |name: &'static str| support::with(support::get("/"), name, "1");
    let slow = service.ready().await.unwrap().call(request("unknown"));
    let mut slow = Box::pin(slow);
    assert!(support::once(&mut slow).await.is_pending());
    let mut other = service.clone();
    let ready = support::once(&mut Box::pin(other.ready())).await.is_ready();
    assert!(ready, "a request that nobody knows holds the only place");
    let known = other.call(request("known"));
    told.notify_one();
    assert!(support::once(&mut slow).await.is_pending(), "passed without a place");
    assert_eq!(known.await.unwrap().status(), 200);
    assert_eq!(slow.await.unwrap().status(), 200);
}

#[tokio::test]
async fn a_request_that_is_refused_at_once_leaves_no_place_of_the_service_behind_taken() {
    use tower::{Layer, Service, ServiceExt, limit::ConcurrencyLimit};

    let layer = tower_merit::AdmissionLayer::builder(tower_merit::MemoryStore::new())
        .identity(tower_merit::JwtIdentity::hs256(b"a secret of at least thirty-two bytes"))
        .bucket(tower_merit::Bucket::per_second(1.0).capacity(10))
        .build()
        .unwrap();
    let mut service = layer.layer(ConcurrencyLimit::new(tower::service_fn(support::hello), 1));
    let answer = service.ready().await.unwrap().call(support::get("/")).await.unwrap();
    assert_eq!(answer.status(), 401);
    // The first instance lives on, as that of an idle connection does.
    let mut other = service.clone();
    let ready = support::once(&mut Box::pin(other.ready())).await.is_ready();
    assert!(ready, "a stranger who was refused holds the only place");
}
