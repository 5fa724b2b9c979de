//! The gateway is a good proxy: what it lets through arrives as it was sent, both ways.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use merit_integration::{
    Merit, Persistence, Redis, Settings, Upstream,
    client::{Client, request},
    keys,
    ratings::Poster,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// How long anything may take that should take milliseconds.
const DEADLINE: Duration = Duration::from_secs(20);

struct Stack {
    merit: Merit,
    upstream: Upstream,
    redis: Redis,
}

impl Stack {
    async fn start() -> Self {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let upstream = Upstream::start();
        let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
        settings.tee_ratings = true;
        Self { merit: Merit::start(settings).await, upstream, redis }
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.merit.gateway())
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future)
        .await
        .unwrap_or_else(|_| panic!("not within {DEADLINE:?}: {what}"))
}

/// A body whose parts the test sends one by one, chunked on the wire.
type Parts = tokio::sync::mpsc::Sender<Bytes>;

/// Sends a request with a body still to come on a connection of its own.
async fn open(
    stack: &Stack,
    path: &str,
) -> (Parts, tokio::task::JoinHandle<http::Response<hyper::body::Incoming>>) {
    let line = TcpStream::connect(stack.merit.gateway_address()).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(line)).await.unwrap();
    tokio::spawn(connection);
    let (parts, mut rest) = tokio::sync::mpsc::channel::<Bytes>(4);
    let stream = futures_util::stream::poll_fn(move |context| rest.poll_recv(context));
    let body = StreamBody::new(stream.map(|part| Ok::<_, std::io::Error>(Frame::data(part))));
    let request = Request::post(path)
        .header("host", stack.merit.gateway_address())
        .header("authorization", format!("Bearer {}", keys::agent("streamer")))
        .body(body)
        .unwrap();
    let answer =
        tokio::spawn(async move { sender.send_request(request).await.expect("an answer") });
    (parts, answer)
}

#[tokio::test]
async fn a_request_arrives_as_it_was_sent_and_its_answer_too() {
    let stack = Stack::start().await;
    let fields = [
        ("x-custom", "kept"),
        ("content-type", "text/plain"),
        ("connection", "x-hop"),
        ("x-hop", "for the gateway alone"),
        ("te", "trailers"),
    ];
    let token = keys::agent("caller");
    let url = stack.url("/some/path%20with/escapes?q=a%26b&q=2");
    let put = request(Method::PUT, &url, Some(&token), &fields, "the body");
    let answer = Client::new().call(put).await.unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());

    let told = answer.json();
    assert_eq!(told["method"], "PUT");
    assert!(
        told["path"].as_str().unwrap().ends_with("/some/path%20with/escapes?q=a%26b&q=2"),
        "{told}"
    );
    assert_eq!(told["body"], "the body");
    assert_eq!(told["headers"]["x-custom"], "kept");
    assert_eq!(told["headers"]["x-hop"], Value::Null, "RFC 9110 section 7.6.1");

    assert_eq!(answer.header("x-upstream"), "kept");
    assert_eq!(answer.headers.get_all("set-cookie").iter().count(), 2);
    for (name, upstreams) in
        [("ratelimit", "\"upstream\";r=7;t=3"), ("ratelimit-policy", "\"upstream\";q=9;w=3")]
    {
        let all: Vec<&str> =
            answer.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        let all = all.join(", ");
        assert!(all.contains(upstreams), "{name}: {all}");
        assert!(all.contains("moltbook-agent-bucket"), "{name}: {all}");
    }
}

#[tokio::test]
async fn a_large_chunked_answer_passes_whole() {
    let stack = Stack::start().await;
    let get = request(Method::GET, &stack.url("/large"), Some(&keys::agent("a")), &[], "");
    let mut answer = Client::new().send(get).await.unwrap();
    let mut length = 0;
    while let Some(frame) = soon("the next part", answer.body_mut().frame()).await {
        length += frame.unwrap().data_ref().map_or(0, Bytes::len);
    }
    assert_eq!(length, Upstream::LARGE_BYTES);
}

#[tokio::test]
async fn a_large_chunked_request_passes_whole() {
    let stack = Stack::start().await;
    let (parts, answer) = open(&stack, "/swallow").await;
    let part = Bytes::from(vec![b'y'; 1 << 20]);
    for _ in 0..32 {
        soon("room for the next part", parts.send(part.clone())).await.unwrap();
    }
    drop(parts);
    let answer = soon("the answer", answer).await.unwrap();
    let told = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(told, (32 << 20).to_string());
}

#[tokio::test]
async fn the_first_words_of_an_answer_arrive_before_the_last_are_spoken() {
    let stack = Stack::start().await;
    let get = request(Method::GET, &stack.url("/trickle"), Some(&keys::agent("a")), &[], "");
    let mut answer = soon("the head", Client::new().send(get)).await.unwrap();
    let first = soon("the first words", answer.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "one\n");
    stack.upstream.release();
    let rest = soon("the rest", answer.into_body().collect()).await.unwrap();
    assert_eq!(rest.to_bytes(), "two\n");
}

#[tokio::test]
async fn the_first_words_of_a_request_are_answered_before_the_last_are_sent() {
    let stack = Stack::start().await;
    let (parts, answer) = open(&stack, "/mirror").await;
    parts.send("one".into()).await.unwrap();
    let mut answer = soon("the head", answer).await.unwrap();
    for word in ["one", "two", "three"] {
        let back = soon(word, answer.body_mut().frame()).await.unwrap().unwrap();
        assert_eq!(back.into_data().unwrap(), word);
        let next = match word {
            "one" => "two",
            "two" => "three",
            _ => break,
        };
        parts.send(next.into()).await.unwrap();
    }
    drop(parts);
    let rest = soon("the end", answer.into_body().collect()).await.unwrap();
    assert!(rest.to_bytes().is_empty());
}

/// Asks for a WebSocket on a raw connection; returns the answer's head and the connection.
async fn websocket(stack: &Stack, token: &str) -> (String, TcpStream) {
    let mut line = TcpStream::connect(stack.merit.gateway_address()).await.unwrap();
    let ask = format!(
        "GET /ws HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {token}\r\n\
         connection: Upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
         sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    );
    line.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon("the head", line.read_u8()).await.expect("a whole head"));
    }
    (String::from_utf8(head).unwrap(), line)
}

#[tokio::test]
async fn a_websocket_passes_and_its_bytes_go_both_ways() {
    let stack = Stack::start().await;
    let (head, mut line) = websocket(&stack, &keys::agent("chatter")).await;
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    assert!(
        head.to_lowercase().contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="),
        "{head}"
    );
    for words in [&b"\x81\x05hello"[..], b"\x82\x03\x00\xff\x01"] {
        line.write_all(words).await.unwrap();
        let mut back = vec![0; words.len()];
        soon("the echo", line.read_exact(&mut back)).await.unwrap();
        assert_eq!(back, words);
    }
    let (head, _) = websocket(&stack, "not a token").await;
    assert!(head.starts_with("HTTP/1.1 401"), "{head}");
}

#[tokio::test]
async fn a_rating_that_the_upstream_accepts_is_taken_by_merit_too() {
    let stack = Stack::start().await;
    let rater = json!({"sub": "u1", "agent_id": "their-agent", "scope": "ratings:write"});
    let token = keys::hs256(&keys::claims(&rater));
    let url = stack.url("/v1/rating");
    let post = async |body: Value| Client::new().post(&url, &token, &body).await.unwrap();

    let taken = post(json!({"agent_id": "teed", "user_id": "u1", "score": 5})).await;
    assert_eq!((taken.status.as_u16(), taken.text().as_str()), (201, "taken by the upstream"));
    let refused =
        post(json!({"agent_id": "refused", "user_id": "u1", "score": 5, "refuse": true})).await;
    assert_eq!(refused.status, 422);
    // Accepted by an upstream that is less strict than Merit: its answer stands, no limit moves.
    for body in [
        json!({"agent_id": "too-good", "user_id": "u1", "score": 9}),
        json!({"agent_id": "spoken-for", "user_id": "u2", "score": 5}),
        json!({"agent_id": "their-agent", "user_id": "u1", "score": 5}),
        json!({"something": "else"}),
    ] {
        assert_eq!(post(body.clone()).await.status, 201, "{body}");
    }
    assert_eq!(stack.upstream.served(), 6);

    let mut poster = Poster::new(&stack.merit.ingest());
    poster.rate("marker", 5.0).await;
    poster.fold.rate("teed", 5.0);
    poster.fold.settles_in(&stack.redis, DEADLINE).await;
    for agent in ["refused", "too-good", "spoken-for", "their-agent"] {
        let moved = stack.redis.limits(agent).await.is_some_and(|(_, rate)| rate != "20");
        assert!(!moved, "a rating of {agent} was taken");
    }
}

#[tokio::test]
async fn one_agent_spends_nothing_of_another() {
    let stack = Stack::start().await;
    let client = Client::new();
    let url = stack.url("/hello");
    let greedy = keys::agent("greedy");
    let mut refused = 0;
    for _ in 0..2_000 {
        refused += u32::from(client.get(&url, Some(&greedy)).await.unwrap().status == 429);
        if refused > 5 {
            break;
        }
    }
    assert!(refused > 5, "the greedy agent is never refused");
    let answer = client.get(&url, Some(&keys::agent("modest"))).await.unwrap();
    assert_eq!(answer.status, 200);
    let own: Vec<&str> =
        answer.headers.get_all("ratelimit").iter().filter_map(|v| v.to_str().ok()).collect();
    assert!(own.join(", ").contains("r=39"), "{own:?}");
}

#[tokio::test]
async fn who_is_nobody_gets_401_and_who_is_no_agent_gets_403() {
    let stack = Stack::start().await;
    let client = Client::new();
    let nobody = client.get(&stack.url("/hello"), None).await.unwrap();
    assert_eq!(nobody.status, 401);
    assert!(nobody.header("www-authenticate").starts_with("Bearer"), "{:?}", nobody.headers);
    nobody.problem();

    for agent in [
        json!(null),
        json!(7),
        json!(["a"]),
        json!("two words"),
        json!("-a"),
        json!("x".repeat(129)),
        json!("ip-10-0-0-1"),
        json!("key-partner"),
    ] {
        let mut claims = keys::claims(&json!({"sub": "u1"}));
        if !agent.is_null() {
            claims["agent_id"] = agent.clone();
        }
        let answer = client.get(&stack.url("/hello"), Some(&keys::hs256(&claims))).await.unwrap();
        assert_eq!(answer.status, 403, "{agent}: {}", answer.text());
        assert!(
            answer.problem()["detail"].as_str().unwrap().contains("agent_id"),
            "{}",
            answer.text()
        );
    }
    assert_eq!(stack.upstream.served(), 0);
    assert!(stack.redis.ask::<Vec<String>>(&["KEYS", "*tb:*"]).await.is_empty());
}

#[tokio::test]
async fn an_upstream_that_is_gone_is_answered_502() {
    let Stack { merit, upstream, redis: _redis } = Stack::start().await;
    let url = format!("{}/hello", merit.gateway());
    let client = Client::new();
    assert_eq!(client.get(&url, Some(&keys::agent("a"))).await.unwrap().status, 200);
    let address = upstream.url().trim_start_matches("http://").to_owned();
    drop(upstream);
    merit_integration::eventually("the upstream is gone", DEADLINE, || async {
        TcpStream::connect(&address).await.is_err()
    })
    .await;
    let answer = client.get(&url, Some(&keys::agent("a"))).await.unwrap();
    assert_eq!(answer.status, 502, "{}", answer.text());
    answer.problem();
}

#[tokio::test]
async fn a_gateway_asked_to_stop_finishes_what_it_began_and_takes_nothing_new() {
    let mut stack = Stack::start().await;
    let get = request(Method::GET, &stack.url("/held"), Some(&keys::agent("a")), &[], "");
    let held = tokio::spawn(async move { Client::new().call(get).await });
    soon("the request is in flight", stack.upstream.holding()).await;
    stack.merit.ask_to_stop();
    let address = stack.merit.gateway_address();
    merit_integration::eventually("new connections are refused", DEADLINE, || async {
        TcpStream::connect(&address).await.is_err()
    })
    .await;
    stack.upstream.release();
    let answer =
        soon("the answer", held).await.unwrap().expect("the request in flight is answered");
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "done"));
    stack.merit.stopped().await;
}

#[tokio::test]
async fn an_answer_that_does_not_end_delays_the_stop_by_the_time_to_drain_alone() {
    let mut stack = Stack::start().await;
    let get = request(Method::GET, &stack.url("/trickle"), Some(&keys::agent("a")), &[], "");
    let mut answer = soon("the head", Client::new().send(get)).await.unwrap();
    let first = soon("the first words", answer.body_mut().frame()).await.unwrap().unwrap();
    assert_eq!(first.into_data().unwrap(), "one\n");
    let asked = std::time::Instant::now();
    stack.merit.ask_to_stop();
    stack.merit.stopped().await;
    // 10 s to drain; the tuner ends at once, because nobody holds the bus.
    assert!(asked.elapsed() < Duration::from_secs(15), "stopped after {:?}", asked.elapsed());
    assert!(answer.into_body().collect().await.is_err(), "a cut answer passed for a whole one");
}
