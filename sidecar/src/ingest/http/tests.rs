use std::time::Duration;

use futures_util::{StreamExt, stream};
use jsonwebtoken::{EncodingKey, Header, encode};
use tower::ServiceExt;
use tower_merit::JwtIdentity;

use super::*;
use crate::{
    bus::{Consumer, Event, Publisher, in_process},
    ingest::{ApiKeys, Config, Receipts},
    rating::{Rating, SubjectMode},
};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
const API_KEY: &str = "0123456789abcdef";
const RATING: &str = r#"{"agent_id":"a1","user_id":"u1","score":5}"#;

struct Edge {
    router: Router,
    consumer: Consumer,
}

fn edge_with(config: Config, capacity: usize, subject: SubjectMode) -> Edge {
    edge_checking(Receipts::off(), config, capacity, subject)
}

fn edge_checking(
    receipts: Receipts,
    config: Config,
    capacity: usize,
    subject: SubjectMode,
) -> Edge {
    let bus = in_process::Config { capacity, batch_max: 1000 };
    let (publisher, consumer) = in_process::channel(&bus);
    let verifier = JwtIdentity::hs256(SECRET).build().unwrap();
    let keys = ApiKeys::parse(&format!("feed:{API_KEY}")).unwrap();
    let publisher = Publisher::InProcess(publisher);
    let ingest = Ingest::new(config, publisher, Some(verifier), keys, subject, receipts);
    Edge { router: ingest.router(), consumer: Consumer::InProcess(consumer) }
}

fn edge() -> Edge {
    edge_with(Config::default(), 100, SubjectMode::Agent)
}

fn token(claims: Value) -> String {
    let mut all = json!({"exp": 4_000_000_000_u64});
    all.as_object_mut().unwrap().extend(claims.as_object().unwrap().clone());
    encode(&Header::default(), &all, &EncodingKey::from_secret(SECRET)).unwrap()
}

fn own() -> String {
    token(json!({"sub": "u1", "scope": "ratings:write"}))
}

fn any() -> String {
    token(json!({"sub": "collector", "scope": "profile ratings:write:any"}))
}

fn post_to(path: &str, token: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path)
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/json")
        .body(body.into())
        .unwrap()
}

struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

impl Edge {
    async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let body = serde_json::from_slice(&body).unwrap();
        Answer { status: parts.status.as_u16(), headers: parts.headers, body }
    }

    async fn rate(&self, token: &str, body: &str) -> Answer {
        self.send(post_to("/v1/rating", token, body.to_owned())).await
    }

    async fn batch(&self, token: &str, body: impl Into<Body>) -> Answer {
        self.send(post_to("/v1/ratings", token, body)).await
    }

    /// Returns all that is on the bus once nobody can put more there.
    async fn published(mut self) -> Vec<Rating> {
        drop(self.router);
        let mut ratings = Vec::new();
        loop {
            match self.consumer.next().await.unwrap() {
                Event::Batch { deliveries, .. } => {
                    ratings.extend(deliveries.into_iter().map(|delivery| delivery.rating));
                }
                Event::Closed => return ratings,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn an_accepted_rating_is_on_the_bus_under_the_name_in_the_answer() {
    let edge = edge();
    let answer = edge.rate(&own(), RATING).await;
    assert_eq!(answer.status, 202, "{}", answer.body);
    let published = edge.published().await;
    assert_eq!(published.len(), 1);
    assert_eq!(answer.body, json!({"id": published[0].id().as_str()}));
    assert_eq!(published[0].poster().as_str(), "u1");
    assert_eq!(published[0].agent().unwrap().as_str(), "a1");
    assert_eq!(published[0].score().value(), 5.0);
}

#[tokio::test]
async fn a_rating_that_moves_no_limit_is_taken_and_the_answer_says_so() {
    let body = r#"{"user_id":"u1","item_id":"film-7","timestamp":1700000000,"rating":4}"#;
    let answer = edge().rate(&own(), body).await;
    assert_eq!((answer.status, &answer.body["moves"]), (202, &Value::Null));
    assert!(answer.body["note"].as_str().unwrap().contains("no limit"));
    let items = edge_with(Config::default(), 9, SubjectMode::Item);
    assert_eq!(items.rate(&own(), body).await.body.get("moves"), None);
}

#[tokio::test]
async fn bad_fields_are_refused_with_their_name_and_nothing_reaches_the_bus() {
    let edge = edge();
    let long = format!(r#"{{"agent_id":"{}","user_id":"u1","score":5}}"#, "x".repeat(129));
    for (body, status, field) in [
        (r#"{"agent_id":"a1","user_id":"u1","score":0}"#, 422, "score"),
        (r#"{"agent_id":"a1","user_id":"u1","score":6}"#, 422, "score"),
        (r#"{"agent_id":"a1","user_id":"u1","score":NaN}"#, 400, "score"),
        (r#"{"agent_id":"a1","user_id":"u1","score":"5"}"#, 422, "score"),
        (r#"{"agent_id":"a1","user_id":"u1"}"#, 422, "score"),
        (r#"{"user_id":"u1","score":5}"#, 422, "agent_id"),
        (r#"{"agent_id":"a1","score":5}"#, 422, "user_id"),
        (r#"{"agent_id":"a 1","user_id":"u1","score":5}"#, 422, "agent_id"),
        (r#"{"agent_id":":a1","user_id":"u1","score":5}"#, 422, "agent_id"),
        (r#"{"agent_id":"a1:","user_id":"u1","score":5}"#, 422, "agent_id"),
        (r#"{"agent_id":"a1\n","user_id":"u1","score":5}"#, 422, "agent_id"),
        (r#"{"agentId":"","user_id":"u1","score":5}"#, 422, "agentId"),
        (&long, 422, "agent_id"),
        (r#"{"agent_id":"a1","user_id":"u1","score":5,"timestamp":9999999999}"#, 422, "timestamp"),
        (r#"{"agent_id":"a1","user_id":"u1","score":5,"score":5}"#, 422, "score"),
        (r#"{"agent_id":"a1","user_id":"u1","score":5,"rating":5}"#, 422, "rating"),
        (r#"{"agent_id":"a1","user_id":"u1","score":5,"id":"a b"}"#, 422, "id"),
    ] {
        let answer = edge.rate(&own(), body).await;
        assert_eq!((answer.status, &answer.body["field"]), (status, &json!(field)), "{body}");
        assert_eq!(answer.headers["content-type"], "application/problem+json");
    }
    assert_eq!(edge.published().await, []);
}

#[tokio::test]
async fn broken_json_is_400_with_the_place() {
    let edge = edge();
    for body in ["", "{", "{\"agent_id\":\"a1\",\n}", "hello", "{} {}", "\u{0}"] {
        let answer = edge.rate(&own(), body).await;
        assert_eq!(answer.status, 400, "{body}");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains("line") && detail.contains("column"), "{detail}");
    }
    let array = edge.rate(&own(), "[]").await;
    assert_eq!(array.status, 422);
    assert_eq!(edge.published().await, []);
}

#[tokio::test]
async fn a_large_body_is_413_and_not_read_when_it_says_its_length() {
    let edge = edge();
    let body = Body::from_stream(stream::once(async {
        panic!("the body was read");
        #[allow(unreachable_code, reason = "gives the stream its type")]
        Ok::<Bytes, std::convert::Infallible>(Bytes::new())
    }));
    let mut request = post_to("/v1/rating", &own(), body);
    request.headers_mut().insert("content-length", "10485760".parse().unwrap());
    let answer = edge.send(request).await;
    assert_eq!(answer.status, 413);
    assert!(answer.body["detail"].as_str().unwrap().contains("65536"));
}

#[tokio::test]
async fn a_large_body_that_hides_its_length_is_413_after_the_limit() {
    let edge = edge();
    for path in ["/v1/rating", "/v1/ratings"] {
        let chunk = Bytes::from(vec![b' '; 1 << 20]);
        let read = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counter = Arc::clone(&read);
        let chunks = stream::iter(0..100).map(move |_| {
            counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok::<_, std::convert::Infallible>(chunk.clone())
        });
        let answer = edge.send(post_to(path, &own(), Body::from_stream(chunks))).await;
        assert_eq!(answer.status, 413, "{path}");
        let read = read.load(std::sync::atomic::Ordering::Relaxed);
        assert!(read <= 9, "{path}: read {read} MiB of 100");
    }
}

#[tokio::test(start_paused = true)]
async fn a_body_that_never_ends_is_408_at_the_deadline() {
    let edge = edge();
    let body = Body::from_stream(stream::pending::<Result<Bytes, std::convert::Infallible>>());
    let answer = edge.send(post_to("/v1/rating", &own(), body)).await;
    assert_eq!(answer.status, 408);
}

#[tokio::test]
async fn another_content_type_is_415_and_named() {
    let edge = edge();
    for (path, kind, status) in [
        ("/v1/rating", Some("text/plain"), 415),
        ("/v1/rating", Some("application/x-www-form-urlencoded"), 415),
        ("/v1/rating", Some("application/x-ndjson"), 415),
        ("/v1/rating", Some("application/+json"), 415),
        ("/v1/rating", None, 415),
        ("/v1/ratings", Some("text/csv"), 415),
        ("/v1/rating", Some("Application/JSON; charset=utf-8"), 202),
        ("/v1/rating", Some("application/vnd.openclaw+json"), 202),
    ] {
        let mut request = post_to(path, &own(), RATING);
        request.headers_mut().remove("content-type");
        if let Some(kind) = kind {
            request.headers_mut().insert("content-type", kind.parse().unwrap());
        }
        let answer = edge.send(request).await;
        assert_eq!(answer.status, status, "{path} {kind:?}");
        if status == 415 {
            assert_eq!(answer.body["field"], "content-type");
            let detail = answer.body["detail"].as_str().unwrap();
            assert!(detail.contains(kind.unwrap_or("missing")), "{detail}");
        }
    }
    let mut compressed = post_to("/v1/rating", &own(), RATING);
    compressed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
    assert_eq!(edge.send(compressed).await.body["field"], "content-encoding");
}

#[tokio::test]
async fn without_a_credential_that_verifies_the_answer_is_401_with_a_challenge() {
    let edge = edge();
    let mut nobody = post_to("/v1/rating", "", RATING);
    nobody.headers_mut().remove("authorization");
    let answer = edge.send(nobody).await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.headers["www-authenticate"], "Bearer realm=\"merit\"");

    let other = EncodingKey::from_secret(b"another secret of thirty-two bytes!!");
    let claims = json!({"exp": 4_000_000_000_u64, "sub": "u1", "scope": "ratings:write"});
    let forged = encode(&Header::default(), &claims, &other).unwrap();
    let expired = token(json!({"sub": "u1", "scope": "ratings:write", "exp": 1}));
    let string = token(json!({"sub": "u1", "scope": "ratings:write", "exp": "4000000000"}));
    let unsigned = "eyJhbGciOiJub25lIn0.eyJleHAiOjQwMDAwMDAwMDAsInN1YiI6InUxIiwic2NvcGUiOiJyYXRpbmdzOndyaXRlIn0.";
    for token in [&*forged, &expired, &string, unsigned, "garbage"] {
        let answer = edge.rate(token, RATING).await;
        assert_eq!(answer.status, 401, "{token}");
        let challenge = answer.headers["www-authenticate"].to_str().unwrap();
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
    }
    for beside in [None, Some(&*forged)] {
        let mut wrong_key = post_to("/v1/rating", beside.unwrap_or_default(), RATING);
        wrong_key.headers_mut().insert("x-api-key", "not-a-key".parse().unwrap());
        if beside.is_none() {
            wrong_key.headers_mut().remove("authorization");
        }
        assert_eq!(edge.send(wrong_key).await.status, 401, "{beside:?}");
    }
    assert_eq!(edge.published().await, []);
}

#[tokio::test]
async fn the_key_of_an_agent_does_not_spoil_the_bearer_beside_it() {
    let edge = edge();
    for bearer in [&*own(), API_KEY] {
        let mut teed = post_to("/v1/rating", bearer, RATING);
        teed.headers_mut().insert("x-api-key", "the key of an agent".parse().unwrap());
        assert_eq!(edge.send(teed).await.status, 202, "{bearer}");
    }
    let posters: Vec<String> =
        edge.published().await.iter().map(|rating| rating.poster().to_string()).collect();
    assert_eq!(posters, ["u1", "key-feed"]);
}

#[tokio::test]
async fn a_rater_speaks_for_itself_unless_it_may_name_others() {
    let edge = edge();
    let other = r#"{"agent_id":"a1","user_id":"u2","score":5}"#;
    let refused = edge.rate(&own(), other).await;
    assert_eq!((refused.status, &refused.body["field"]), (403, &json!("user_id")));
    let unscoped = edge.rate(&token(json!({"sub": "u1", "scope": "ratings"})), RATING).await;
    assert_eq!(unscoped.status, 403);
    let challenge = unscoped.headers["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("insufficient_scope"), "{challenge}");
    assert_eq!(edge.rate(&token(json!({"scope": "ratings:write"})), RATING).await.status, 403);

    assert_eq!(edge.rate(&any(), other).await.status, 202);
    assert_eq!(edge.rate(API_KEY, other).await.status, 202);
    let mut with_key = post_to("/v1/rating", "", other);
    with_key.headers_mut().remove("authorization");
    with_key.headers_mut().insert("x-api-key", API_KEY.parse().unwrap());
    assert_eq!(edge.send(with_key).await.status, 202);
    let posters: Vec<String> =
        edge.published().await.iter().map(|rating| rating.poster().to_string()).collect();
    assert_eq!(posters, ["collector", "key-feed", "key-feed"]);
}

#[tokio::test]
async fn no_agent_rates_itself_whatever_its_scope() {
    for scope in ["ratings:write", "ratings:write:any"] {
        let edge = edge();
        let agent = token(json!({"sub": "u1", "agent_id": "a1", "scope": scope}));
        let answer = edge.rate(&agent, RATING).await;
        assert_eq!((answer.status, &answer.body["field"]), (403, &json!("agent_id")));
        let other = r#"{"agent_id":"a2","user_id":"u1","score":5}"#;
        assert_eq!(edge.rate(&agent, other).await.status, 202);
    }
    let items = edge_with(Config::default(), 9, SubjectMode::Item);
    let agent = token(json!({"sub": "u1", "agent_id": "a1", "scope": "ratings:write"}));
    let item = r#"{"item_id":"a1","user_id":"u1","score":5}"#;
    assert_eq!(items.rate(&agent, item).await.status, 403);
}

#[tokio::test]
async fn the_idempotency_key_names_the_event_and_may_not_contradict_the_body() {
    let edge = edge();
    let send = async |key: &str, body: &str| {
        let mut request = post_to("/v1/rating", &own(), body.to_owned());
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        edge.send(request).await
    };
    let named = r#"{"agent_id":"a1","user_id":"u1","score":5,"id":"e1"}"#;
    assert_eq!(send("\"e7\"", RATING).await.body["id"], "e7");
    assert_eq!(send("e1", named).await.body["id"], "e1");
    let differs = send("e2", named).await;
    assert_eq!((differs.status, &differs.body["field"]), (400, &json!("id")));
    let malformed = send("\"e1", RATING).await;
    assert_eq!((malformed.status, &malformed.body["field"]), (400, &json!("idempotency-key")));
}

const EVENT: &str = r#"{"specversion":"1.0","id":"1","source":"/feed","type":"rating","data":{"agent_id":"a1","user_id":"u1","score":5}}"#;

fn event_to(path: &str, kind: &str, body: impl Into<Body>) -> Request<Body> {
    let mut request = post_to(path, &own(), body);
    request.headers_mut().insert("content-type", kind.parse().unwrap());
    request
}

#[tokio::test]
async fn a_cloud_event_is_one_rating_in_every_mode() {
    let edge = edge();
    let structured = "application/cloudevents+json; charset=utf-8";
    let first = edge.send(event_to("/v1/rating", structured, EVENT)).await;
    assert_eq!(first.status, 202, "{}", first.body);
    let mut binary = post_to("/v1/rating", &own(), RATING);
    for (field, value) in
        [("specversion", "1.0"), ("id", "1"), ("source", "/feed"), ("type", "rating")]
    {
        let name: http::HeaderName = format!("ce-{field}").parse().unwrap();
        binary.headers_mut().insert(name, value.parse().unwrap());
    }
    let second = edge.send(binary).await;
    let kind = "application/cloudevents-batch+json";
    let bad = EVENT.replace("\"id\":\"1\",", "");
    let batch = edge.send(event_to("/v1/ratings", kind, format!("[{EVENT},{bad}]"))).await;
    assert_eq!((second.status, batch.status), (202, 207));
    let results = &batch.body["results"];
    assert_eq!((&results[1]["status"], &results[1]["field"]), (&json!(400), &json!("id")));
    let names = [&first.body["id"], &second.body["id"], &results[0]["id"]];
    assert!(names[0].as_str().unwrap().starts_with("e-") && names.iter().all(|n| *n == names[0]));
    assert_eq!(edge.published().await.len(), 3, "the tuner drops repeats");
}

#[tokio::test]
async fn a_cloud_event_in_the_wrong_place_or_named_twice_is_refused() {
    let edge = edge();
    for (path, kind, body, status) in [
        ("/v1/rating", "application/cloudevents-batch+json", format!("[{EVENT}]"), 415),
        ("/v1/ratings", "application/cloudevents+json", EVENT.to_owned(), 415),
        ("/v1/rating", "application/cloudevents+json", RATING.to_owned(), 400),
        ("/v1/rating", "application/cloudevents+json", EVENT.replace("5", "6"), 422),
    ] {
        let answer = edge.send(event_to(path, kind, body)).await;
        assert_eq!(answer.status, status, "{path} {kind}: {}", answer.body);
    }
    let mut keyed = event_to("/v1/rating", "application/cloudevents+json", EVENT);
    keyed.headers_mut().insert("idempotency-key", "k".parse().unwrap());
    assert_eq!(edge.send(keyed).await.status, 400);
    assert_eq!(edge.published().await, []);
}

#[tokio::test]
async fn a_full_bus_is_503_with_the_wait_and_the_id_to_repeat() {
    let edge = edge_with(Config::default(), 1, SubjectMode::Agent);
    assert_eq!(edge.rate(&own(), RATING).await.status, 202);
    let full = edge.rate(&own(), RATING).await;
    assert_eq!((full.status, &full.headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert!(full.body["id"].as_str().unwrap().starts_with("r-"));
    assert_eq!(edge.published().await.len(), 1);
}

#[tokio::test]
async fn a_bus_whose_reader_is_gone_is_503() {
    let Edge { router, consumer } = edge();
    drop(consumer);
    let response = router.oneshot(post_to("/v1/rating", &own(), RATING)).await.unwrap();
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
}

#[tokio::test]
async fn a_batch_answers_for_every_item_in_its_order() {
    let edge = edge();
    let body = r#"[
        {"agent_id":"a1","user_id":"u1","score":5,"id":"x1"},
        {"agent_id":"a1","user_id":"u1","score":7},
        {"agent_id":"a1","user_id":"u2","score":5},
        {"agent_id":"a1","user_id":"u1","score":4,"id":"x2"},
        7
    ]"#;
    let answer = edge.batch(&own(), body).await;
    assert_eq!(answer.status, 207);
    let results = answer.body["results"].as_array().unwrap();
    let statuses: Vec<_> = results.iter().map(|item| item["status"].as_u64().unwrap()).collect();
    assert_eq!(statuses, [202, 422, 403, 202, 422]);
    assert_eq!((&results[0]["id"], &results[1]["field"]), (&json!("x1"), &json!("score")));
    assert_eq!(results[2]["field"], "user_id");
    let names: Vec<String> =
        edge.published().await.iter().map(|rating| rating.id().to_string()).collect();
    assert_eq!(names, ["x1", "x2"]);
}

#[tokio::test]
async fn lines_stand_for_themselves_and_keep_the_order_of_each_agent() {
    let edge = edge_with(Config { rater_rate: 0.0, ..Config::default() }, 1000, SubjectMode::Agent);
    let line = |n: usize| {
        format!("{{\"agent_id\":\"a{}\",\"user_id\":\"u1\",\"score\":3,\"id\":\"{n}\"}}\n", n % 7)
    };
    let mut body: String = (0..500).map(line).collect();
    body.push_str("{broken\n");
    let mut request = post_to("/v1/ratings", &own(), body);
    request.headers_mut().insert("content-type", "application/x-ndjson".parse().unwrap());
    let answer = edge.send(request).await;
    assert_eq!((answer.status, &answer.body["results"][500]["status"]), (207, &json!(400)));
    let published = edge.published().await;
    assert_eq!(published.len(), 500);
    for agent in 0..7 {
        let of_agent = published.iter().filter(|rating| {
            rating.agent().is_some_and(|name| name.as_str() == format!("a{agent}"))
        });
        let order: Vec<usize> = of_agent.map(|r| r.id().as_str().parse().unwrap()).collect();
        assert!(order.is_sorted() && order.len() > 70, "agent {agent}: {order:?}");
    }
}

#[tokio::test]
async fn a_batch_is_202_when_all_is_taken_and_503_when_the_bus_took_nothing() {
    let edge = edge_with(Config::default(), 2, SubjectMode::Agent);
    let two = format!("[{RATING},{RATING}]");
    assert_eq!(edge.batch(&own(), two.clone()).await.status, 202);
    let full = edge.batch(&own(), two).await;
    assert_eq!((full.status, &full.headers["retry-after"]), (503, &"1".parse().unwrap()));
    assert_eq!(full.body["results"][1]["status"], 503);
    assert!(full.body["results"][1]["id"].is_string());
}

#[tokio::test]
async fn a_batch_that_is_partly_taken_says_when_to_send_the_rest() {
    let edge = edge_with(Config::default(), 1, SubjectMode::Agent);
    let answer = edge.batch(&own(), format!("[{RATING},{RATING}]")).await;
    assert_eq!((answer.status, &answer.headers["retry-after"]), (207, &"1".parse().unwrap()));
}

#[tokio::test]
async fn a_batch_is_bounded_in_its_items_and_takes_no_idempotency_key() {
    let edge = edge_with(Config { max_batch: 2, ..Config::default() }, 9, SubjectMode::Agent);
    let three = format!("[{RATING},{RATING},{RATING}]");
    assert_eq!(edge.batch(&own(), three).await.status, 413);
    assert_eq!(edge.batch(&own(), "[]").await.status, 422);
    assert_eq!(edge.batch(&own(), "[{]").await.status, 400);
    let mut keyed = post_to("/v1/ratings", &own(), format!("[{RATING}]"));
    keyed.headers_mut().insert("idempotency-key", "k".parse().unwrap());
    assert_eq!(edge.send(keyed).await.status, 400);
    assert_eq!(edge.published().await, []);
}

#[tokio::test]
async fn beyond_the_requests_in_flight_the_answer_is_503_at_once() {
    let edge = edge_with(Config { max_in_flight: 1, ..Config::default() }, 9, SubjectMode::Agent);
    let (arrived, arrival) = tokio::sync::oneshot::channel();
    let body = Body::from_stream(stream::once(async move {
        arrived.send(()).unwrap();
        std::future::pending::<Result<Bytes, std::convert::Infallible>>().await
    }));
    let slow = tokio::spawn(edge.router.clone().oneshot(post_to("/v1/rating", &own(), body)));
    arrival.await.unwrap();
    let busy = edge.rate(&own(), RATING).await;
    assert_eq!((busy.status, &busy.headers["retry-after"]), (503, &"1".parse().unwrap()));
    slow.abort();
    assert!(slow.await.unwrap_err().is_cancelled());
    assert_eq!(edge.rate(&own(), RATING).await.status, 202, "the place is free again");
}

#[tokio::test]
async fn what_is_no_route_is_a_problem_too() {
    let edge = edge();
    let get = Request::get("/v1/rating").body(Body::empty()).unwrap();
    let answer = edge.send(get).await;
    assert_eq!((answer.status, &answer.headers["allow"]), (405, &"POST".parse().unwrap()));
    let elsewhere = Request::post("/rating").body(Body::empty()).unwrap();
    assert_eq!(edge.send(elsewhere).await.status, 404);
}

#[tokio::test(start_paused = true)]
async fn counts_and_the_rate_of_the_last_ten_seconds_are_exported() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let _installed = metrics::set_default_local_recorder(&recorder);
    let edge = edge();
    for _ in 0..5 {
        edge.rate(&own(), RATING).await;
    }
    edge.rate(&own(), "{}").await;
    tokio::time::sleep(Duration::from_millis(1100)).await; // paused: only the meter's tick is awaited
    let text = recorder.handle().render();
    for line in [
        "rating_rate 0.5",
        "merit_ratings_accepted_total 5",
        "merit_ratings_refused_total{reason=\"invalid\"} 1",
        "merit_ingest_seconds_count 6",
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rater_that_posts_too_many_is_told_when_to_come_back_and_others_are_not_in_its_way() {
    let config = Config {
        rater_rate: 0.5,
        rater_burst: 3,
        collector_rate: Some(1.0),
        collector_burst: 2,
        ..Config::default()
    };
    let edge = edge_with(config, 100, SubjectMode::Agent);
    let other = token(json!({"sub": "u2", "scope": "ratings:write"}));
    // What is refused for another reason costs nothing.
    for _ in 0..5 {
        assert_eq!(
            edge.rate(&own(), r#"{"agent_id":"a1","user_id":"u1","score":9}"#).await.status,
            422
        );
    }
    for _ in 0..3 {
        assert_eq!(edge.rate(&own(), RATING).await.status, 202);
    }
    let refused = edge.rate(&own(), RATING).await;
    assert_eq!((refused.status, &refused.headers["retry-after"]), (429, &"2".parse().unwrap()));
    assert!(
        refused.body["type"].as_str().unwrap().ends_with("#quota-exceeded"),
        "{}",
        refused.body
    );
    let theirs = r#"{"agent_id":"a1","user_id":"u2","score":5}"#;
    assert_eq!(edge.rate(&other, theirs).await.status, 202);
    tokio::time::advance(Duration::from_secs(2)).await;
    assert_eq!(edge.rate(&own(), RATING).await.status, 202);
    // In a batch, each rating for itself: what is left is taken, the rest is named.
    let batch = format!("[{theirs},{RATING},{theirs}]");
    let answer = edge.batch(&any(), batch).await;
    let statuses: Vec<u64> = answer.body["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [202, 202, 429], "{}", answer.body);
    // A batch of which none is taken is refused as one rating is.
    let answer = edge.batch(&any(), format!("[{theirs},{RATING}]")).await;
    assert_eq!((answer.status, &answer.headers["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(edge.published().await.len(), 7);
}

/// Fifteen seconds without a bus once emptied the bucket of a rater that tried again.
#[tokio::test(start_paused = true)]
async fn what_the_bus_does_not_take_costs_a_rater_nothing() {
    let config = Config { rater_rate: 0.5, rater_burst: 2, ..Config::default() };
    let mut edge = edge_with(config, 1, SubjectMode::Agent);
    assert_eq!(edge.rate(&own(), RATING).await.status, 202);
    for _ in 0..10 {
        let full = edge.rate(&own(), RATING).await;
        assert_eq!(full.status, 503, "{}", full.body);
    }
    while !matches!(edge.consumer.next().await.unwrap(), Event::Batch { .. }) {}
    assert_eq!(edge.rate(&own(), RATING).await.status, 202);
    assert_eq!(edge.rate(&own(), RATING).await.status, 429, "it has spent what it has");
}
