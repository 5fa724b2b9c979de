//! Charges that are corrected: refunds, reservations, and what the service says it really cost.

use std::{
    convert::Infallible,
    future::ready,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use crate::support::{self, Named, ask, ask_of, builder, get};
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody};
use tower::{Layer, ServiceExt, service_fn};
use tower_merit::{
    AdmissionLayer, Bucket, MemoryStore, Reservation, Route, Spend,
    store::{Charge, Settlement, StoreError, Verdict},
};

const USED: HeaderName = HeaderName::from_static("x-tokens-used");

/// Requests count as one, tokens (a thousand of them) as the route says.
fn chat(route: impl Fn(Route) -> Route) -> AdmissionLayer<MemoryStore, Named> {
    over(MemoryStore::new(), route)
}

fn over<S: Spend>(store: S, route: impl Fn(Route) -> Route) -> AdmissionLayer<S, Named> {
    let chat = Route::path("/chat").bucket("tokens").cost(300).default_cost(1);
    builder(store)
        .bucket(Bucket::per_second(0.001).capacity(1_000).named("tokens"))
        .route(route(chat))
        .route(Route::path("/look").bucket("tokens").cost(0))
        .build()
        .unwrap()
}

async fn left<S: Spend>(layer: &AdmissionLayer<S, Named>) -> (u64, u64) {
    let answer = ask(layer, get("/look")).await;
    (answer.left("requests"), answer.left("tokens"))
}

/// Passes a request, and returns its reservation.
async fn reserve<S: Spend>(layer: &AdmissionLayer<S, Named>) -> Reservation {
    let found = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&found);
    let service = service_fn(move |request: Request<Full<Bytes>>| {
        *keep.lock().unwrap() = request.extensions().get::<Reservation>().cloned();
        ready(Ok::<_, Infallible>(Response::new(Full::<Bytes>::default())))
    });
    assert_eq!(ask_of(layer, service, get("/chat")).await.status, StatusCode::OK);
    found.lock().unwrap().take().expect("the route reserves")
}

#[tokio::test(start_paused = true)]
async fn what_was_too_much_comes_back_and_what_was_too_little_is_taken_once() {
    let layer = chat(|route| route.reserve(true));
    let reservation = reserve(&layer).await;
    assert_eq!((reservation.reserved(), left(&layer).await), (300, (9, 700)));
    assert!(reservation.clone().settle(120));
    assert_eq!(left(&layer).await, (9, 880), "the default bucket counts requests");
    assert!(!reservation.settle(0) && !reservation.refund(), "settled before");
    assert_eq!(left(&layer).await, (9, 880));

    let more = reserve(&layer).await;
    assert!(more.settle(1_000));
    assert_eq!(left(&layer).await, (8, 0));
    let denied = ask(&layer, get("/chat")).await;
    assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS, "880 - 1,000 is debt");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_settles_stands_and_the_exact_cost_changes_nothing() {
    let layer = chat(|route| route.reserve(true));
    drop(reserve(&layer).await);
    assert_eq!(left(&layer).await, (9, 700));
    assert!(reserve(&layer).await.settle(300));
    assert_eq!(left(&layer).await, (8, 400));
}

#[tokio::test(start_paused = true)]
async fn a_refund_gives_everything_back() {
    let layer = chat(|route| route.reserve(true));
    assert!(reserve(&layer).await.refund());
    assert_eq!(left(&layer).await, (10, 1_000));
}

#[tokio::test(start_paused = true)]
async fn nothing_comes_back_of_a_watched_bucket_that_took_nothing() {
    let switch = Switch::default();
    let chat = Route::any().bucket("watched").bucket("tokens").cost(60).default_cost(1);
    let layer = builder(switch.clone())
        .bucket(Bucket::per_second(0.001).capacity(100).named("watched").shadow(true))
        .bucket(Bucket::per_second(0.001).capacity(1_000).named("tokens"))
        .route(chat.reserve(true))
        .build()
        .unwrap();
    let (whole, short) = (reserve(&layer).await, reserve(&layer).await);
    assert!(whole.settle(0) && short.refund());
    let settled = switch.settled.lock().unwrap();
    let names = |settlement: &Settlement| {
        let takes = settlement.takes.iter();
        takes.map(|take| take.bucket.name.to_string()).collect::<Vec<_>>()
    };
    // The second found 40 of 100 there: it passed, and took nothing in that one.
    assert_eq!(names(&settled[0]), ["watched", "tokens"]);
    assert_eq!(names(&settled[1]), ["requests", "tokens"]);
}

type Answered = std::future::Ready<Result<Response<Full<Bytes>>, &'static str>>;

/// Answers with a status, or with 0 not at all.
fn answering(status: u16) -> impl Fn(Request<Full<Bytes>>) -> Answered + Clone {
    move |_| {
        ready(match status {
            0 => Err("broken"),
            status => Ok(Response::builder().status(status).body(Full::default()).unwrap()),
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_or_is_answered_5xx_gets_its_tokens_back_where_that_is_wanted() {
    let refunds = chat(|route| route.refund_on_5xx(true));
    for (status, kept) in [(500, false), (503, false), (0, false), (404, true), (200, true)] {
        let before = left(&refunds).await;
        let service = service_fn(answering(status));
        let response = refunds.layer(service).oneshot(get("/chat")).await;
        assert_eq!(response.is_err(), status == 0);
        let taken = if kept { (1, 300) } else { (0, 0) };
        let after = left(&refunds).await;
        assert_eq!((before.0 - after.0, before.1 - after.1), taken, "{status}");
    }
    let keeps = chat(|route| route);
    keeps.layer(service_fn(answering(500))).oneshot(get("/chat")).await.unwrap();
    assert_eq!(left(&keeps).await, (9, 700));
}

#[tokio::test(start_paused = true)]
async fn a_field_of_the_answer_settles_and_may_be_taken_out() {
    for strip in [false, true] {
        let layer = chat(|route| route.settle_from(USED).strip_settle_field(strip));
        for (value, tokens) in [("50", 950), ("many", 650), ("-1", 350)] {
            let service = service_fn(|_: Request<Full<Bytes>>| {
                let response = Response::builder().header(USED, value).body(Full::default());
                ready(Ok::<_, Infallible>(response.unwrap()))
            });
            let answer = ask_of(&layer, service, get("/chat")).await;
            assert_eq!(answer.headers.contains_key(USED), !strip);
            assert_eq!(left(&layer).await.1, tokens, "{value}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_trailer_at_the_end_of_a_streamed_answer_settles() {
    for (strip, trailer, tokens) in [(false, "450", 550), (true, "0", 1_000), (true, "", 700)] {
        let layer = chat(|route| route.settle_from(USED).strip_settle_field(strip));
        let service = service_fn(|_: Request<Full<Bytes>>| {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-other", "1".parse().unwrap());
            if !trailer.is_empty() {
                trailers.insert(USED, trailer.parse().unwrap());
            }
            let frames = [Frame::data(Bytes::from("a")), Frame::trailers(trailers)];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
            ready(Ok::<_, Infallible>(Response::new(body)))
        });
        let response = layer.layer(service).oneshot(get("/chat")).await.unwrap();
        assert_eq!(left(&layer).await.1, 700, "settled before the end");
        let body = response.into_body().collect().await.unwrap();
        assert_eq!(left(&layer).await.1, tokens);
        let trailers = body.trailers().unwrap();
        assert_eq!(trailers.contains_key(USED), !strip && !trailer.is_empty());
        assert!(trailers.contains_key("x-other"));
    }
}

fn metered(route: impl Fn(Route) -> Route) -> AdmissionLayer<MemoryStore, Named> {
    let cost = tower_merit::Cost::from_header("x-max-tokens", 100, 800).unwrap();
    chat(|chat| route(chat.cost(cost.clone()).settle_from(USED)))
}

#[tokio::test(start_paused = true)]
async fn who_hangs_up_before_the_settlement_or_states_no_cost_does_not_choose_its_price() {
    let streaming = || {
        service_fn(|_: Request<Full<Bytes>>| {
            let frames = [Frame::data(Bytes::from("a")), Frame::trailers(HeaderMap::new())];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
            ready(Ok::<_, Infallible>(Response::new(body)))
        })
    };
    let stated = || support::with(get("/chat"), "x-max-tokens", "100");
    // Nothing stated: the most is reserved.
    let layer = metered(|route| route);
    let answer = layer.layer(streaming()).oneshot(get("/chat")).await.unwrap();
    answer.into_body().collect().await.unwrap();
    assert_eq!(left(&layer).await.1, 200);
    // Hung up after the first data, before any data, and before the answer.
    for polls in [1, 0] {
        let layer = metered(|route| route);
        let answer = layer.layer(streaming()).oneshot(stated()).await.unwrap();
        assert_eq!(left(&layer).await.1, 900);
        let mut body = answer.into_body();
        for _ in 0..polls {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        assert_eq!(left(&layer).await.1, 200, "{polls}");
    }
    let layer = metered(|route| route.unsettled_cost(500));
    let silent = service_fn(|_: Request<Full<Bytes>>| {
        std::future::pending::<Result<Response<Full<Bytes>>, Infallible>>()
    });
    let mut waiting = Box::pin(layer.layer(silent).oneshot(stated()));
    assert!(support::once(&mut waiting).await.is_pending());
    drop(waiting);
    assert_eq!(left(&layer).await.1, 500);
    // The service has ended its answer and said nothing: what was charged stands.
    let layer = metered(|route| route);
    let answer = layer.layer(streaming()).oneshot(stated()).await.unwrap();
    answer.into_body().collect().await.unwrap();
    assert_eq!(left(&layer).await.1, 900);
}

#[tokio::test(start_paused = true)]
async fn who_has_the_whole_answer_has_not_hung_up_although_nobody_asked_for_its_end() {
    // As a server does it: of an answer over HTTP/1 with a length it writes as many bytes and asks for no more.
    let proxied = |stated: bool| {
        service_fn(move |_: Request<Full<Bytes>>| {
            let frames = [Frame::data(Bytes::from("ab")), Frame::data(Bytes::from("cd"))];
            let body = StreamBody::new(stream::iter(frames.map(Ok::<_, Infallible>)));
            let answer = if stated {
                Response::builder().header("content-length", 4)
            } else {
                Response::builder()
            };
            ready(Ok::<_, Infallible>(answer.body(body).unwrap()))
        })
    };
    let request = |method: &str, version| {
        let mut request = support::with(support::of(method, "/chat"), "x-max-tokens", "100");
        *request.version_mut() = version;
        request
    };
    for (stated, method, version, polls, tokens) in [
        (true, "GET", Version::HTTP_11, 2, 900),
        (true, "GET", Version::HTTP_11, 1, 200),
        (false, "GET", Version::HTTP_11, 2, 200),
        // A server of HTTP/2 asks until the end, where the field may still come.
        (true, "GET", Version::HTTP_2, 2, 200),
        (false, "HEAD", Version::HTTP_11, 0, 900),
        (false, "HEAD", Version::HTTP_2, 0, 900),
    ] {
        let layer = metered(|route| route);
        let answer = layer.layer(proxied(stated)).oneshot(request(method, version)).await.unwrap();
        let mut body = answer.into_body();
        for _ in 0..polls {
            body.frame().await.unwrap().unwrap();
        }
        drop(body);
        let case = format!("{method} {version:?}, {polls} frames, length stated: {stated}");
        assert_eq!(left(&layer).await.1, tokens, "{case}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_field_is_taken_out_of_the_trailers_too_and_where_nothing_was_charged() {
    let service = || {
        service_fn(|_: Request<Full<Bytes>>| {
            let mut trailers = HeaderMap::new();
            trailers.insert(USED, "7".parse().unwrap());
            let body =
                StreamBody::new(stream::iter([Ok::<_, Infallible>(Frame::trailers(trailers))]));
            ready(Ok::<_, Infallible>(Response::builder().header(USED, "50").body(body).unwrap()))
        })
    };
    let charged = chat(|route| route.settle_from(USED).strip_settle_field(true));
    let chat = Route::path("/chat").settle_from(USED).strip_settle_field(true);
    let allowed = builder(MemoryStore::new()).allow([support::agent("a1")]).route(chat);
    for layer in [charged, allowed.build().unwrap()] {
        let response = layer.layer(service()).oneshot(get("/chat")).await.unwrap();
        assert!(!response.headers().contains_key(USED));
        let body = response.into_body().collect().await.unwrap();
        assert!(!body.trailers().unwrap().contains_key(USED));
    }
}

/// A store that fails when told to, and remembers what was settled with it.
#[derive(Clone, Default)]
struct Switch {
    store: MemoryStore,
    down: Arc<AtomicBool>,
    settled: Arc<Mutex<Vec<Settlement>>>,
}

impl Spend for Switch {
    type Future = std::future::Ready<Result<Verdict, StoreError>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        match self.down.load(Ordering::Relaxed) {
            true => ready(Err(StoreError::Timeout(Duration::from_millis(20)))),
            false => self.store.spend(charge),
        }
    }

    fn settle(&self, settlement: Settlement) {
        self.settled.lock().unwrap().push(settlement.clone());
        self.store.settle(settlement);
    }
}

#[tokio::test(start_paused = true)]
async fn a_charge_is_corrected_where_it_was_decided() {
    let switch = Switch::default();
    let layer = over(switch.clone(), |route| route.reserve(true));
    let of_the_store = reserve(&layer).await;
    switch.down.store(true, Ordering::Relaxed);
    let of_this_node = reserve(&layer).await;
    assert!(of_this_node.settle(100));
    assert_eq!(switch.settled.lock().unwrap().len(), 0, "the store knew nothing of it");
    assert_eq!(left(&layer).await, (9, 900), "this node's own buckets");
    switch.down.store(false, Ordering::Relaxed);
    assert!(of_the_store.settle(100));
    assert_eq!(switch.settled.lock().unwrap().len(), 1);
    // The breaker opened or not: ask until a probe has closed it.
    assert_eq!(left(&layer).await, (9, 900));
}
