//! One trace from a request at the gateway over a bus to the write of a limit, as a collector sees it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use http::Method;
use merit_integration::{
    Bus, Collector, Kafka, Merit, Nats, Persistence, Redis, Role, Settings, Span, Upstream,
    client::{Answer, Client, request},
    eventually, keys,
    ratings::{Poster, Rating},
    unix_time,
};
use serde_json::{Value, json};

/// How long spans may take to come: they are exported every five seconds.
const DEADLINE: Duration = Duration::from_secs(30);

/// The kinds of spans, as OTLP numbers them.
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;

/// Asks at `path` as `token`, within the trace that `traceparent` names; with a rating, if there is one.
async fn ask(url: &str, token: &str, traceparent: &str, rating: Option<Value>) -> Answer {
    let fields = [("traceparent", traceparent), ("content-type", "application/json")];
    let (method, body) = match rating {
        Some(rating) => (Method::POST, rating.to_string()),
        None => (Method::GET, String::new()),
    };
    Client::new().call(request(method, url, Some(token), &fields, body)).await.unwrap()
}

/// One process that does everything and tees ratings, with its collector.
struct Traced {
    merit: Merit,
    collector: Collector,
    // Both are alive for as long as it is.
    _redis: Redis,
    _upstream: Upstream,
}

impl Traced {
    /// Starts it with further lines of `[trace]`.
    async fn start(lines: &str) -> Self {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let (upstream, collector) = (Upstream::start(), Collector::start().await);
        let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
        settings.tables = collector.table(lines);
        settings.tee_ratings = true;
        Self { merit: Merit::start(settings).await, collector, _redis: redis, _upstream: upstream }
    }
}

/// Returns the one span of `name`.
fn one<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name} in {spans:#?}");
    found[0]
}

/// A gateway that tees ratings onto `bus` and a tuner that takes them off it: all spans of one rating are one
/// chain.
async fn a_rating_is_followed_over(bus: Bus, system: &str) {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (upstream, collector) = (Upstream::start(), Collector::start().await);
    let mut settings = Settings::new(&redis.url());
    settings.bus = bus;
    // By chance nothing is traced: only what its caller records.
    settings.tables = collector.table("sample = 0.0");
    let tuner = Merit::start(settings.clone().role(Role::Tuner)).await;
    settings.tee_ratings = true;
    let gateway = Merit::start(settings.role(Role::Gateway).upstream(&upstream.url())).await;

    let (trace, caller) = (format!("{:032x}", 0xfeed_u64), "00f067aa0ba902b7");
    let url = format!("{}/v1/rating", gateway.gateway());
    let rating = json!({"agent_id": "alice", "user_id": "u-1", "score": 5});
    let token = |user| {
        let says = json!({"sub": user, "agent_id": "bob", "scope": "ratings:write"});
        keys::hs256(&keys::claims(&says))
    };
    let answer = ask(&url, &token("u-1"), &format!("00-{trace}-{caller}-01"), Some(rating)).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    eventually("the write of a limit is told", DEADLINE, || async {
        collector.of(&trace).len() >= 5
    })
    .await;

    let spans = collector.of(&trace);
    assert_eq!(spans.len(), 5, "{spans:#?}");
    let served = one(&spans, "POST");
    let (passed_on, sent) = (one(&spans, "upstream"), one(&spans, "send ratings"));
    let (processed, written) = (one(&spans, "process ratings"), one(&spans, "write limits"));
    assert_eq!((served.kind, served.parent.as_str()), (SERVER, caller));
    assert_eq!(served.attributes["url.path"], "/v1/rating");
    assert_eq!(served.attributes["http.response.status_code"], "201");
    assert_eq!(served.attributes["merit.listener"], "gateway");
    assert_eq!(served.attributes["service.name"], "merit");
    assert_eq!((passed_on.kind, &passed_on.parent), (CLIENT, &served.id));
    assert_eq!(passed_on.attributes["http.response.status_code"], "201");
    assert_eq!((sent.kind, &sent.parent), (PRODUCER, &served.id));
    assert_eq!(sent.attributes["messaging.system"], system);
    assert_eq!((processed.kind, &processed.parent), (CONSUMER, &sent.id));
    assert_eq!(processed.attributes["merit.agent"], "alice");
    // Additive, from 20 tokens a second by 0.1 of the reward of a 5.
    let rate: f64 = processed.attributes["merit.refill_rate"].parse().unwrap();
    assert!(rate > 20.0, "{rate}");
    assert_eq!((written.kind, &written.parent), (CLIENT, &processed.id));
    assert!(spans.iter().all(|span| !span.failed && span.time.0 <= span.time.1));
    assert!(processed.time.0 <= written.time.0 && written.time.1 <= processed.time.1);

    // What nobody records goes over the bus too, and is told to nobody.
    let quiet = format!("{:032x}", 0xbeef_u64);
    let rating = json!({"agent_id": "alice", "user_id": "u-2", "score": 5});
    ask(&url, &token("u-2"), &format!("00-{quiet}-{caller}-00"), Some(rating)).await;
    eventually("both ratings are folded", DEADLINE, || async {
        tuner.series("merit_ratings_folded_total{outcome=\"counted\"}").await == Some(2.0)
    })
    .await;
    drop((gateway, tuner));
    assert_eq!(collector.of(&quiet).len(), 0);
}

#[tokio::test]
async fn a_rating_is_followed_over_kafka() {
    let kafka = Kafka::shared().await;
    let (brokers, topic) = (kafka.brokers(), "traced".to_owned());
    a_rating_is_followed_over(Bus::Kafka { brokers, topic, partitions: 2 }, "kafka").await;
}

#[tokio::test]
async fn a_rating_is_followed_over_redis_streams() {
    let bus = Bus::Redis { topic: "traced".to_owned(), partitions: 2 };
    a_rating_is_followed_over(bus, "redis").await;
}

#[tokio::test]
async fn a_rating_is_followed_over_nats() {
    let nats = Nats::start().await;
    let bus = Bus::Nats { url: nats.url(), topic: "traced".to_owned(), partitions: 2 };
    a_rating_is_followed_over(bus, "nats").await;
}

#[tokio::test]
async fn the_upstream_hangs_below_the_gateway_and_a_refusal_is_a_span_too() {
    let mut traced = Traced::start("sample = 0.0").await;
    let Traced { merit, collector, .. } = &mut traced;
    let trace = format!("{:032x}", 0xcafe_u64);
    let traceparent = format!("00-{trace}-00f067aa0ba902b7-01");
    let url = format!("{}/v1/products", merit.gateway());
    let answer = ask(&url, &keys::agent("alice"), &traceparent, None).await;
    // The stand-in says what it was asked.
    let told = answer.json()["headers"]["traceparent"].to_string();
    let refused = ask(&url, "no token", &traceparent, None).await;
    assert_eq!((answer.status.as_u16(), refused.status.as_u16()), (200, 401));
    // A process that ends exports what it has.
    merit.terminate().await;
    let spans = collector.of(&trace);
    assert_eq!(spans.len(), 3, "{spans:#?}");
    let passed_on = one(&spans, "upstream");
    assert!(told.contains(&format!("00-{trace}-{}-01", passed_on.id)), "{told}");
    let codes = |span: &&Span| span.attributes["http.response.status_code"].clone();
    let mut served: Vec<String> =
        spans.iter().filter(|span| span.name == "GET").map(|span| codes(&span)).collect();
    served.sort_unstable();
    assert_eq!(served, ["200", "401"]);
}

#[tokio::test]
async fn callers_cannot_make_it_export_without_bound_nor_choose_the_trace_when_told_so() {
    let mut traced = Traced::start("sample = 1.0\nfollow = false\nper_second = 2").await;
    let Traced { merit, collector, .. } = &mut traced;
    let theirs = format!("{:032x}", 0xf00d_u64);
    let url = format!("{}/v1/products", merit.gateway());
    let began = std::time::Instant::now();
    for n in 0..50 {
        let traceparent = format!("00-{theirs}-00f067aa0ba902b7-01");
        let fields = [("traceparent", traceparent.as_str()), ("tracestate", "theirs=1")];
        let token = keys::agent(&format!("agent-{n}"));
        let asked = request(Method::GET, &url, Some(&token), &fields, String::new());
        let told = Client::new().call(asked).await.unwrap().json()["headers"].to_string();
        // Of a trace that begins here, what their system said of theirs is no part.
        assert_eq!(told.contains("theirs=1"), told.contains(&theirs), "{told}");
    }
    let url = format!("{}/v1/ratings", merit.ingest());
    let lines = (0..100).map(|n| json!({"agent_id": "a", "user_id": format!("u{n}"), "score": 5}));
    let many = Value::Array(lines.collect());
    let second = unix_time().as_secs();
    eventually("another second with traces left", DEADLINE, || async {
        unix_time().as_secs() > second
    })
    .await;
    let fields = [("content-type", "application/json")];
    let batch = request(Method::POST, &url, Some(&keys::collector()), &fields, many.to_string());
    assert_eq!(Client::new().call(batch).await.unwrap().status, 202);
    let seconds = began.elapsed().as_secs() + 2;
    let left_out = merit.metric("merit_traces_left_out_total").await.unwrap_or(0.0);
    merit.terminate().await;
    let served = collector.all().iter().filter(|span| span.name == "GET").count() as u64;
    assert!((2..=2 * seconds).contains(&served), "{served} in {seconds} s");
    assert_eq!(served as f64 + left_out, 50.0);
    assert_eq!(collector.of(&theirs).len(), 0);
    let sent = collector.all().iter().filter(|span| span.name == "send ratings").count();
    assert!((1..=20 * seconds).contains(&(sent as u64)), "{sent} ratings of a batch of 100");
}

#[tokio::test]
async fn a_rating_hangs_below_no_trace_that_the_gateway_does_not_follow() {
    let mut traced = Traced::start("sample = 0.0\nfollow = false").await;
    let Traced { merit, collector, .. } = &mut traced;
    let says = json!({"sub": "u-1", "agent_id": "bob", "scope": "ratings:write"});
    let token = keys::hs256(&keys::claims(&says));
    let traceparent = format!("00-{:032x}-00f067aa0ba902b7-01", 0xdead_u64);
    let rating = json!({"agent_id": "alice", "user_id": "u-1", "score": 5});
    let url = format!("{}/v1/rating", merit.gateway());
    let answer = ask(&url, &token, &traceparent, Some(rating)).await;
    assert_eq!(answer.status, 201, "{}", answer.text());
    eventually("the rating is folded", DEADLINE, || async {
        merit.series("merit_ratings_folded_total{outcome=\"counted\"}").await == Some(1.0)
    })
    .await;
    merit.terminate().await;
    assert_eq!(collector.all().len(), 0, "{:#?}", collector.all());
}

#[tokio::test]
async fn without_its_collector_everything_else_goes_on() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut settings = Settings::new(&redis.url());
    let nobody = merit_integration::ports::free();
    settings.tables = format!("[trace]\nendpoint = \"http://127.0.0.1:{nobody}\"\nsample = 1.0\n");
    let mut merit = Merit::start(settings).await;
    let mut poster = Poster::new(&merit.ingest());
    for n in 0..20 {
        let answer = poster.try_rate(&Rating::new(&format!("agent-{n}"), 5.0)).await.unwrap();
        assert_eq!(answer.status, 202, "{}", answer.text());
    }
    eventually("all ratings are folded", DEADLINE, || async {
        merit.series("merit_ratings_folded_total{outcome=\"counted\"}").await == Some(20.0)
    })
    .await;
    merit.terminate().await;
}
