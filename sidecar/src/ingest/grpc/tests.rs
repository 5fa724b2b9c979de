use axum::body::Bytes;
use futures_util::stream;
use http_body_util::BodyExt as _;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tonic_types::StatusExt as _;
use tower::ServiceExt as _;
use tower_merit::JwtIdentity;

use super::{
    v1::{RateStreamRequest, RateStreamResponse, Rating},
    *,
};
use crate::{
    bus::{Consumer, Event, Publisher, in_process},
    ingest::{ApiKeys, Config, Receipts},
    rating::SubjectMode,
};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
const API_KEY: &str = "0123456789abcdef";

struct Edge {
    router: Router,
    consumer: Consumer,
    stop: CancellationToken,
}

fn edge_with(config: Config, capacity: usize) -> Edge {
    let (publisher, consumer) =
        in_process::channel(&in_process::Config { capacity, batch_max: 1000 });
    let verifier = JwtIdentity::hs256(SECRET).build().unwrap();
    let keys = ApiKeys::parse(&format!("feed:{API_KEY}")).unwrap();
    let (publisher, stop) = (Publisher::InProcess(publisher), CancellationToken::new());
    let receipts = Receipts::off();
    let ingest = Ingest::new(config, publisher, Some(verifier), keys, SubjectMode::Agent, receipts);
    let router = router(ingest, stop.clone());
    Edge { router, consumer: Consumer::InProcess(consumer), stop }
}

fn edge() -> Edge {
    edge_with(Config::default(), 100)
}

fn token(claims: &Value) -> String {
    let mut all = json!({"exp": 4_000_000_000_u64});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    encode(&Header::default(), &all, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn own() -> String {
    token(&json!({"sub": "u1", "scope": "ratings:write"}))
}

fn rating() -> Rating {
    Rating { agent_id: Some("a1".into()), user_id: "u1".into(), score: 5.0, ..Rating::default() }
}

fn named(n: u64) -> Rating {
    Rating { id: Some(n.to_string()), ..rating() }
}

/// Returns `bytes` as a message on the wire (gRPC over HTTP/2, "Length-Prefixed-Message").
fn framed(bytes: &[u8]) -> Bytes {
    let length = u32::try_from(bytes.len()).unwrap();
    [&[0], &length.to_be_bytes()[..], bytes].concat().into()
}

fn request(rating: Rating) -> Bytes {
    framed(&RateRequest { rating: Some(rating) }.encode_to_vec())
}

fn streamed(rating: Rating) -> Bytes {
    framed(&RateStreamRequest { rating: Some(rating) }.encode_to_vec())
}

fn call_of(method: &str, token: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(format!("/merit.rating.v1.RatingService/{method}"))
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body.into())
        .unwrap()
}

fn body_of(messages: impl IntoIterator<Item = Bytes>) -> Body {
    let messages: Vec<_> = messages.into_iter().collect();
    Body::from_stream(stream::iter(messages.into_iter().map(Ok::<_, std::convert::Infallible>)))
}

impl Edge {
    async fn send<A: Message + Default>(&self, request: Request<Body>) -> Result<A, Status> {
        let response = self.router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), 200);
        if let Some(status) = Status::from_header_map(response.headers()) {
            return Err(status);
        }
        let body = response.into_body().collect().await.unwrap();
        let status = Status::from_header_map(body.trailers().unwrap()).unwrap();
        if status.code() != Code::Ok {
            return Err(status);
        }
        Ok(A::decode(&body.to_bytes()[5..]).unwrap())
    }

    async fn rate(&self, token: &str, rating: Rating) -> Result<RateResponse, Status> {
        self.send(call_of("Rate", token, request(rating))).await
    }

    async fn stream(&self, body: Body) -> Result<RateStreamResponse, Status> {
        self.send(call_of("RateStream", &own(), body)).await
    }

    /// Returns the ids of all that is on the bus once nobody can put more there.
    async fn published(mut self) -> Vec<String> {
        self.stop.cancel();
        drop(self.router);
        let mut ids = Vec::new();
        loop {
            match self.consumer.next().await.unwrap() {
                Event::Batch { deliveries, .. } => {
                    ids.extend(deliveries.iter().map(|delivery| delivery.rating.id().to_string()));
                }
                Event::Closed => return ids,
                _ => {}
            }
        }
    }
}

/// Returns the code, the reason and the field of a refusal.
fn told(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let info = details.error_info().expect("every refusal has ErrorInfo");
    assert_eq!(info.domain, "merit");
    let violations = details.bad_request().map(|bad| bad.field_violations.clone());
    let field = violations.unwrap_or_default().first().map(|violation| violation.field.clone());
    (status.code(), info.reason.clone(), field.unwrap_or_default())
}

fn count(status: &Status, name: &str) -> u64 {
    let details = status.get_error_details();
    details.error_info().unwrap().metadata[name].parse().unwrap()
}

#[tokio::test]
async fn an_accepted_rating_is_on_the_bus_under_the_name_in_the_answer() {
    let edge = edge();
    let answer = edge.rate(&own(), rating()).await.unwrap();
    assert!(answer.moves_a_limit && answer.receipted.is_none());
    let item = Rating { agent_id: None, item_id: Some("film-7".into()), ..rating() };
    let of_item = edge.rate(API_KEY, item).await.unwrap();
    assert!(!of_item.moves_a_limit);
    let mut keyed = call_of("Rate", &own(), request(rating()));
    keyed.headers_mut().insert("idempotency-key", "\"e7\"".parse().unwrap());
    assert_eq!(edge.send::<RateResponse>(keyed).await.unwrap().id, "e7");
    assert_eq!(edge.published().await, [answer.id, of_item.id, "e7".to_owned()]);
}

#[tokio::test]
async fn a_refusal_has_its_code_its_reason_and_the_field_at_fault() {
    let edge = edge();
    let refused =
        async |token: &str, rating: Rating| told(&edge.rate(token, rating).await.unwrap_err());
    let told_of = |code, reason: &str, field: &str| (code, reason.to_owned(), field.to_owned());
    for (change, field) in [
        (Rating { score: 6.0, ..rating() }, "rating.score"),
        (Rating { agent_id: Some("a 1".into()), ..rating() }, "rating.agent_id"),
        (Rating { user_id: String::new(), ..rating() }, "rating.user_id"),
        (Rating { timestamp_ms: Some(9_999_999_999_999), ..rating() }, "rating.timestamp_ms"),
    ] {
        let expected = told_of(Code::InvalidArgument, "INVALID", field);
        assert_eq!(refused(&own(), change).await, expected);
    }
    let other = Rating { user_id: "u2".into(), ..rating() };
    let denied = |reason| told_of(Code::PermissionDenied, reason, "");
    assert_eq!(refused(&own(), other).await, denied("OTHER_USER"));
    let agent = token(&json!({"sub": "u1", "agent_id": "a1", "scope": "ratings:write"}));
    assert_eq!(refused(&agent, rating()).await, denied("OWN_AGENT"));
    assert_eq!(refused(&token(&json!({"sub": "u1"})), rating()).await, denied("SCOPE"));
    let unknown = told_of(Code::Unauthenticated, "UNAUTHENTICATED", "");
    assert_eq!(refused("nonsense", rating()).await, unknown);
    assert_eq!(edge.published().await, [""; 0]);
}

#[tokio::test]
async fn a_message_is_not_read_before_its_sender_is_known() {
    let body = Body::from_stream(stream::once(async {
        panic!("the body was read");
        #[allow(unreachable_code, reason = "gives the stream its type")]
        Ok::<Bytes, std::convert::Infallible>(Bytes::new())
    }));
    let refused = edge().send::<RateResponse>(call_of("Rate", "nonsense", body)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
}

#[tokio::test]
async fn what_is_no_message_is_refused_for_what_it_is() {
    let edge = edge();
    let send = async |body: Body| {
        told(&edge.send::<RateResponse>(call_of("Rate", &own(), body)).await.unwrap_err())
    };
    let garbage = send(framed(b"\xff\xff\xff").into()).await;
    assert_eq!((garbage.0, garbage.1.as_str()), (Code::InvalidArgument, "PROTOBUF"));
    let nothing = send(framed(b"").into()).await;
    assert_eq!((nothing.0, nothing.2.as_str()), (Code::InvalidArgument, "rating"));
    assert_eq!(send(Body::empty()).await.0, Code::Unimplemented);
    let two = body_of([request(rating()), request(rating())]);
    assert_eq!(send(two).await.0, Code::Unimplemented);
    let long = Rating { user_id: "u".repeat(70_000), ..rating() };
    let long = send(request(long).into()).await;
    assert_eq!((long.0, long.1.as_str()), (Code::ResourceExhausted, "TOO_LARGE"));
    let mut packed = call_of("Rate", &own(), request(rating()));
    packed.headers_mut().insert("grpc-encoding", "gzip".parse().unwrap());
    let packed = edge.send::<RateResponse>(packed).await.unwrap_err();
    assert_eq!(packed.code(), Code::Unimplemented);
    assert_eq!(edge.published().await, [""; 0]);
}

#[tokio::test]
async fn a_full_bus_says_when_to_come_back_and_under_which_name() {
    let edge = edge_with(Config::default(), 1);
    edge.rate(&own(), rating()).await.unwrap();
    let full = edge.rate(&own(), named(7)).await.unwrap_err();
    let details = full.get_error_details();
    assert_eq!(told(&full).0, Code::ResourceExhausted);
    let wait = details.retry_info().unwrap().retry_delay.unwrap();
    assert_eq!(wait, Duration::from_secs(1));
    assert_eq!(details.error_info().unwrap().metadata["id"], "7");
}

#[tokio::test]
async fn a_bus_whose_reader_is_gone_is_unavailable() {
    let mut edge = edge();
    // Of another bus: that of this edge is dropped here.
    edge.consumer = super::tests::edge().consumer;
    let refused = edge.rate(&own(), rating()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.get_error_details().retry_info().is_some());
}

#[tokio::test]
async fn a_stream_goes_on_after_a_rating_that_is_refused_for_what_it_says() {
    let edge = edge();
    let mut messages: Vec<_> = (0..10).map(|n| streamed(named(n))).collect();
    messages[3] = streamed(Rating { score: 9.0, ..named(3) });
    messages[5] = framed(b"\xff\xff\xff");
    messages[6] = streamed(Rating { user_id: "u2".into(), ..named(6) });
    let answer = edge.stream(body_of(messages)).await.unwrap();
    assert_eq!((answer.accepted, answer.refused, answer.without_agent), (7, 3, 0));
    let listed: Vec<_> = answer
        .refusals
        .iter()
        .map(|refusal| (refusal.index, Code::from(refusal.code), refusal.field.as_str()))
        .collect();
    let expected = [
        (3, Code::InvalidArgument, "score"),
        (5, Code::InvalidArgument, ""),
        (6, Code::PermissionDenied, "user_id"),
    ];
    assert_eq!(listed, expected);
    assert_eq!(edge.published().await, ["0", "1", "2", "4", "7", "8", "9"]);
}

#[tokio::test]
async fn a_stream_keeps_its_order_and_lists_a_hundred_refusals_at_most() {
    let edge = edge_with(Config { rater_rate: 0.0, ..Config::default() }, 10_000);
    let messages = (0..5000).map(|n| match n % 2 {
        0 => streamed(named(n)),
        _ => streamed(Rating { score: 0.0, ..named(n) }),
    });
    let answer = edge.stream(body_of(messages)).await.unwrap();
    assert_eq!((answer.accepted, answer.refused, answer.refusals.len()), (2500, 2500, 100));
    let order: Vec<u64> = edge.published().await.iter().map(|id| id.parse().unwrap()).collect();
    assert!(order.is_sorted() && order.len() == 2500);
}

#[tokio::test]
async fn a_full_bus_ends_a_stream_where_it_can_be_gone_on_with() {
    let edge = edge_with(Config::default(), 5);
    let mut messages: Vec<_> = (0..10).map(|n| streamed(named(n))).collect();
    messages[2] = streamed(Rating { score: 9.0, ..named(2) });
    let full = edge.stream(body_of(messages)).await.unwrap_err();
    assert_eq!(told(&full).0, Code::ResourceExhausted);
    assert!(full.get_error_details().retry_info().is_some());
    assert_eq!(["accepted", "refused", "next"].map(|name| count(&full, name)), [5, 1, 6]);
    assert_eq!(edge.published().await, ["0", "1", "3", "4", "5"]);
}

/// A stream whose sender falls silent after `messages`, and a word when it does.
fn silent_after(messages: Vec<Bytes>) -> (Body, tokio::sync::oneshot::Receiver<()>) {
    let (silent, is_silent) = tokio::sync::oneshot::channel();
    let end = stream::once(async move {
        // Not every test waits for it.
        let _ = silent.send(());
        std::future::pending::<Result<Bytes, std::convert::Infallible>>().await
    });
    let messages = stream::iter(messages.into_iter().map(Ok));
    (Body::from_stream(futures_util::StreamExt::chain(messages, end)), is_silent)
}

#[tokio::test(start_paused = true)]
async fn a_silent_stream_is_ended_and_so_is_one_that_lasts_beyond_its_callers_deadline() {
    let edge = edge();
    let (body, _) = silent_after(vec![streamed(named(0))]);
    let silent = edge.stream(body).await.unwrap_err();
    assert_eq!((silent.code(), count(&silent, "next")), (Code::DeadlineExceeded, 1));
    let (body, _) = silent_after(vec![streamed(named(1))]);
    let mut bounded = call_of("RateStream", &own(), body);
    bounded.headers_mut().insert("grpc-timeout", "250m".parse().unwrap());
    let began = Instant::now();
    let late = edge.send::<RateStreamResponse>(bounded).await.unwrap_err();
    assert_eq!((late.code(), count(&late, "accepted")), (Code::DeadlineExceeded, 1));
    assert!(began.elapsed() < Duration::from_secs(1), "the clock is paused, and ours is 10 s");
    assert_eq!(edge.published().await, ["0", "1"]);
}

#[tokio::test]
async fn when_the_process_stops_a_stream_is_told_where_to_go_on() {
    let edge = edge();
    let (body, is_silent) = silent_after((0..3).map(|n| streamed(named(n))).collect());
    let stop = edge.stop.clone();
    let stopping = tokio::spawn(async move {
        is_silent.await.unwrap();
        stop.cancel();
    });
    let stopped = edge.stream(body).await.unwrap_err();
    stopping.await.unwrap();
    assert_eq!((stopped.code(), count(&stopped, "next")), (Code::Unavailable, 3));
    assert!(stopped.get_error_details().retry_info().is_some());
    assert_eq!(edge.published().await, ["0", "1", "2"]);
}

#[tokio::test]
async fn streams_and_calls_in_flight_are_bounded() {
    let config = Config { max_streams_in_flight: 1, max_in_flight: 2, ..Config::default() };
    let edge = edge_with(config, 100);
    let (body, is_silent) = silent_after(vec![streamed(named(0))]);
    let first = tokio::spawn(edge.router.clone().oneshot(call_of("RateStream", &own(), body)));
    is_silent.await.unwrap();
    // One rater has an eighth of the places, at least one; others find the rest, here none.
    let other = token(&json!({"sub": "u2", "scope": "ratings:write"}));
    for (who, reason) in [(own(), "CROWDED"), (other, "BUSY")] {
        let body = body_of([streamed(named(1))]);
        let second = edge.send::<RateStreamResponse>(call_of("RateStream", &who, body)).await;
        let second = second.unwrap_err();
        assert_eq!(told(&second), (Code::ResourceExhausted, reason.into(), String::new()));
        assert!(second.get_error_details().retry_info().is_some());
    }
    edge.rate(&own(), rating()).await.unwrap();
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    edge.stream(body_of([streamed(named(1))])).await.unwrap();
}

#[tokio::test]
async fn what_is_no_grpc_and_what_is_no_method_is_told_so() {
    let edge = edge();
    let mut json = call_of("Rate", &own(), "{}");
    json.headers_mut().insert("content-type", "application/json".parse().unwrap());
    let response = edge.router.clone().oneshot(json).await.unwrap();
    assert_eq!(response.status(), 415);
    let unknown = edge.send::<RateResponse>(call_of("Praise", &own(), Body::empty())).await;
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}

#[test]
fn the_callers_timeout_is_read_as_the_protocol_writes_it() {
    let read = |text: &str| {
        let mut head = HeaderMap::new();
        head.insert("grpc-timeout", text.parse().unwrap());
        grpc_timeout(&head)
    };
    assert_eq!(read("3H"), Some(Duration::from_secs(3 * 3600)));
    assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
    assert_eq!(read("250m"), Some(Duration::from_millis(250)));
    assert_eq!(read("1u"), Some(Duration::from_micros(1)));
    for text in ["", "m", "5", "+5S", "-5S", "999999999S", "5s", "5 S"] {
        assert_eq!(read(text), None, "{text}");
    }
}

#[tokio::test]
async fn what_is_taken_and_refused_is_counted_as_over_http() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let edge = edge();
    edge.rate(&own(), rating()).await.unwrap();
    edge.rate(&own(), Rating { score: 9.0, ..rating() }).await.unwrap_err();
    edge.rate("nonsense", rating()).await.unwrap_err();
    let stream = [streamed(rating()), framed(b"\xff")];
    edge.stream(body_of(stream)).await.unwrap();
    let text = recorder.handle().render();
    for line in [
        "merit_ratings_accepted_total 2",
        "merit_ratings_refused_total{reason=\"invalid\"} 1",
        "merit_ratings_refused_total{reason=\"unauthenticated\"} 1",
        "merit_ratings_refused_total{reason=\"protobuf\"} 1",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
