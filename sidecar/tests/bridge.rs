//! The feed bridge at its edges: real sockets, a feed and an endpoint that do what each test says.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::VecDeque,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use futures_util::{SinkExt, StreamExt};
use merit_sidecar::ingest::feed::{Bridge, Config};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_tungstenite::{
    WebSocketStream, accept_hdr_async,
    tungstenite::{
        Message,
        handshake::server::{Request, Response},
        protocol::frame::{
            Frame,
            coding::{CloseCode, Data, OpCode},
        },
    },
};

/// Nothing here takes so long, unless it never comes.
const SOON: Duration = Duration::from_secs(60);

type Client = WebSocketStream<TcpStream>;

/// A feed that hands its connections to the test.
struct Feed {
    listener: TcpListener,
}

impl Feed {
    async fn start() -> Self {
        Self { listener: TcpListener::bind("127.0.0.1:0").await.unwrap() }
    }

    fn url(&self) -> String {
        format!("ws://{}/ratings", self.listener.local_addr().unwrap())
    }

    async fn client(&self) -> Client {
        self.client_asking().await.0
    }

    /// Returns the query of the handshake, too.
    #[allow(clippy::result_large_err, reason = "the library's type")]
    async fn client_asking(&self) -> (Client, String) {
        let accepted = tokio::time::timeout(SOON, self.listener.accept()).await;
        let (stream, mut query) =
            (accepted.expect("the bridge connects").unwrap().0, String::new());
        let look = |request: &Request, response: Response| {
            query = request.uri().query().unwrap_or_default().to_owned();
            Ok(response)
        };
        let client = accept_hdr_async(stream, look).await.unwrap();
        (client, query)
    }
}

/// An endpoint that gives the answers that it was told, then 202; it keeps what it took.
#[derive(Clone)]
struct Endpoint {
    url: String,
    answers: Arc<Mutex<VecDeque<u16>>>,
    open: Arc<AtomicBool>,
    /// What it never takes: it answers 500.
    poison: &'static str,
    taken: watch::Sender<Vec<String>>,
    asked: watch::Sender<u64>,
}

impl Endpoint {
    async fn start(answers: &[u16]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = Self {
            url: format!("http://{}/v1/rating", listener.local_addr().unwrap()),
            answers: Arc::new(Mutex::new(answers.iter().copied().collect())),
            open: Arc::new(AtomicBool::new(true)),
            poison: "\"agent_id\":\"poison\"",
            taken: watch::Sender::default(),
            asked: watch::Sender::default(),
        };
        let take = async |State(endpoint): State<Self>, body: Bytes| endpoint.take(&body);
        let router = Router::new().route("/v1/rating", post(take)).with_state(endpoint.clone());
        tokio::spawn(async { axum::serve(listener, router).await });
        endpoint
    }

    fn take(&self, body: &Bytes) -> StatusCode {
        self.asked.send_modify(|asked| *asked += 1);
        let told = self.answers.lock().unwrap().pop_front();
        let closed = (!self.open.load(Ordering::SeqCst)).then_some(503);
        let bytes = self.poison.as_bytes();
        let poison = body.windows(bytes.len()).any(|part| part == bytes).then_some(500);
        let status = StatusCode::from_u16(told.or(closed).or(poison).unwrap_or(202)).unwrap();
        if status.is_success() {
            let text = String::from_utf8(body.to_vec()).unwrap();
            self.taken.send_modify(|taken| taken.push(text));
        }
        status
    }

    /// Waits until `count` ratings were taken; returns them.
    async fn has(&self, count: usize) -> Vec<String> {
        let mut taken = self.taken.subscribe();
        let waited = tokio::time::timeout(SOON, taken.wait_for(|taken| taken.len() >= count)).await;
        let Ok(seen) = waited else { panic!("{count} ratings, not {:?}", self.taken.borrow()) };
        seen.unwrap().clone()
    }

    async fn was_asked(&self, times: u64) {
        let mut asked = self.asked.subscribe();
        let waited = tokio::time::timeout(SOON, asked.wait_for(|asked| *asked >= times)).await;
        waited.expect("the bridge posts").unwrap();
    }
}

/// A dead-letter file of its own, gone with the test.
struct DeadLetters(PathBuf);

impl DeadLetters {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("merit-feed-{}-{number}.ndjson", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn entries(&self) -> Vec<Value> {
        entries(&self.0)
    }

    fn path_of_refused(&self) -> PathBuf {
        let name = self.0.file_stem().unwrap().to_str().unwrap();
        self.0.with_file_name(format!("{name}-refused.ndjson"))
    }

    fn refused(&self) -> Vec<Value> {
        entries(&self.path_of_refused())
    }
}

fn entries(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Waits until the bridge says that it is not ready for a reason that holds `part`.
async fn says(bridge: &Bridge, part: &str) {
    let said = || bridge.status().check().is_err_and(|why| why.to_string().contains(part));
    let waiting = async {
        while !said() {
            tokio::task::yield_now().await;
        }
    };
    let waited = tokio::time::timeout(SOON, waiting).await;
    assert!(waited.is_ok(), "{:?} does not say {part}", bridge.status().check());
}

impl Drop for DeadLetters {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_file(self.path_of_refused());
    }
}

fn config(feed: &Feed, endpoint: &Endpoint, dead: &DeadLetters, more: Value) -> Config {
    let mut table = json!({
        "url": feed.url(), "forward_to": endpoint.url, "dead_letter_file": dead.0,
    });
    table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(table).unwrap()
}

fn rating(agent: &str, number: usize) -> String {
    format!(
        r#"{{"id":"e-{number}","agent_id":"{agent}","user_id":"u","score":{}}}"#,
        number % 5 + 1
    )
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(ToString::to_string).collect()
}

#[tokio::test]
async fn what_is_no_rating_is_put_aside_with_the_reason_and_the_rest_arrives_byte_for_byte() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let bridge = Bridge::start(config(&feed, &endpoint, &dead, json!({})), None).await.unwrap();
    let mut client = feed.client().await;
    let pretty = "{\n  \"agent_id\" : \"a\",\t\"user_id\":\"\\u00fc\", \"score\": 4.50 }\r\n";
    let lines = format!("{}\nnot this\n {} \n", rating("a", 1), rating("a", 2));
    let array = format!("[ {},\n{{\"agent_id\":\"c\"}} ]", rating("a", 3));
    for text in [pretty, "hello", r#"{"type":"welcome"}"#, "", &lines, &array, "{\"agent_id\":"] {
        client.send(Message::text(text)).await.unwrap();
    }
    client.send(Message::binary(rating("a", 4).into_bytes())).await.unwrap();
    let expected = [pretty, &rating("a", 1), &rating("a", 2), &rating("a", 3), &rating("a", 4)]
        .map(str::to_owned);
    assert_eq!(endpoint.has(5).await, expected);
    let entries = dead.entries();
    let of = |field: &str| -> Vec<String> {
        entries.iter().map(|entry| entry[field].as_str().unwrap().to_owned()).collect()
    };
    let frames =
        ["hello", r#"{"type":"welcome"}"#, "not this", r#"{"agent_id":"c"}"#, "{\"agent_id\":"];
    assert_eq!(of("frame"), texts(&frames));
    for (reason, part) in of("reason").iter().zip([
        "not valid JSON at line 1, column 1",
        "user_id is missing",
        "not valid JSON",
        "user_id is missing",
        "line 1, column 12",
    ]) {
        assert!(reason.contains(part), "{reason}");
    }
    assert_eq!((bridge.counts().taken, bridge.counts().refused), (5, 5));
    bridge.finish().await;
}

/// More than 10,000 ratings in a frame were once put aside as malformed, most of them for good.
#[tokio::test]
async fn a_frame_within_the_bound_may_hold_any_number_of_ratings() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let config = config(&feed, &endpoint, &dead, json!({"in_flight": 16, "queue": 700}));
    let bridge = Bridge::start(config, None).await.unwrap();
    let mut client = feed.client().await;
    let ratings: Vec<String> =
        (0..10_500).map(|number| rating(&format!("a{}", number % 100), number)).collect();
    let junk = vec!["0"; 150].join(",");
    client.send(Message::text(format!("[{junk},{}]", ratings.join(",")))).await.unwrap();
    let mut taken = endpoint.has(ratings.len()).await;
    taken.sort();
    let mut expected = ratings;
    expected.sort();
    assert!(taken == expected, "what arrived is not what was sent");
    // What is no rating costs a line each only so often.
    let entries = dead.entries();
    assert_eq!(entries.len(), 101);
    assert_eq!(entries[100]["reason"], "50 more items of this frame are no ratings");
    bridge.finish().await;
}

#[tokio::test]
async fn a_frame_beyond_the_bound_is_refused_unread_and_the_next_connection_goes_on() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let config = config(&feed, &endpoint, &dead, json!({"max_frame_bytes": 2000}));
    let bridge = Bridge::start(config, None).await.unwrap();
    let mut client = feed.client().await;
    client.send(Message::text(rating("a", 1))).await.unwrap();
    client.send(Message::text("x".repeat(2001))).await.unwrap();
    let closed = loop {
        match client.next().await {
            Some(Ok(Message::Close(frame))) => break frame.unwrap(),
            Some(Ok(_)) => {}
            other => panic!("{other:?} instead of a close frame"),
        }
    };
    assert_eq!(closed.code, CloseCode::Size);
    let mut client = feed.client().await;
    client.send(Message::text(rating("a", 2))).await.unwrap();
    assert_eq!(endpoint.has(2).await, [rating("a", 1), rating("a", 2)]);
    let [entry] = &dead.entries()[..] else { panic!("{:?}", dead.entries()) };
    assert_eq!(entry["reason"], "frame is longer than 2000 bytes, the bound");
    assert_eq!((&entry["bytes"], &entry["frame"]), (&json!(2001), &json!("")));
    bridge.finish().await;
}

/// The same frame once ended every connection to a feed that goes on from an id.
#[tokio::test]
async fn a_frame_that_cannot_be_read_does_not_come_for_ever_and_a_gap_is_told() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let more = json!({"resume_query": "after", "max_frame_bytes": 2000});
    let bridge = Bridge::start(config(&feed, &endpoint, &dead, more), None).await.unwrap();
    let bad = || Frame::message(b"\xff\xfe".as_slice(), OpCode::Data(Data::Text), true);
    let (mut client, query) = feed.client_asking().await;
    assert_eq!(query, "");
    client.send(Message::text(rating("a", 1))).await.unwrap();
    for (message, code) in [
        (Message::Frame(bad()), CloseCode::Invalid),
        (Message::text("x".repeat(2001)), CloseCode::Size),
        (Message::Frame(bad()), CloseCode::Invalid),
    ] {
        client.send(message).await.unwrap();
        let closed = loop {
            match client.next().await {
                Some(Ok(Message::Close(frame))) => break frame.unwrap(),
                Some(Ok(_)) => {}
                other => panic!("{other:?} instead of a close frame"),
            }
        };
        assert_eq!(closed.code, code);
        let query;
        (client, query) = feed.client_asking().await;
        // The third time it is not asked to go on.
        let is_third = dead.entries().len() == 3;
        assert_eq!(query, if is_third { "" } else { "after=e%2D1" });
    }
    says(&bridge, "after id \"e-1\"").await;
    client.send(Message::text(rating("a", 7))).await.unwrap();
    assert_eq!(endpoint.has(2).await, [rating("a", 1), rating("a", 7)]);
    assert!(bridge.status().check().is_ok(), "{:?}", bridge.status().check());
    client.close(None).await.unwrap();
    // From then on it goes on as before.
    let (_client, query) = feed.client_asking().await;
    assert_eq!(query, "after=e%2D7");
    bridge.finish().await;
}

#[tokio::test]
async fn a_feed_that_says_nothing_is_left_and_one_that_answers_pings_is_kept() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let config = config(&feed, &endpoint, &dead, json!({"silence": "1s"}));
    let bridge = Bridge::start(config, None).await.unwrap();
    // It is not even read from: no pong comes.
    let silent = feed.client().await;
    let mut client = feed.client().await;
    // Ten pings of the bridge are more than the silence it bears.
    let mut pings = 0;
    while pings < 10 {
        match client.next().await {
            Some(Ok(Message::Ping(_))) => pings += 1,
            other => panic!("{other:?} instead of a ping"),
        }
    }
    assert!(bridge.status().check().is_ok());
    client.send(Message::text(rating("a", 1))).await.unwrap();
    assert_eq!(endpoint.has(1).await, [rating("a", 1)]);
    drop(silent);
    // It says goodbye.
    let goodbye = async {
        loop {
            match client.next().await {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code,
                Some(Ok(_)) => {}
                other => panic!("{other:?} instead of a goodbye"),
            }
        }
    };
    let (code, ()) = tokio::join!(goodbye, bridge.finish());
    assert_eq!(code, CloseCode::Normal);
}

#[tokio::test]
async fn a_full_queue_stops_the_reading_and_nothing_is_lost() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    endpoint.open.store(false, Ordering::SeqCst);
    let config = config(&feed, &endpoint, &dead, json!({"queue": 50, "in_flight": 16}));
    let bridge = Bridge::start(config, None).await.unwrap();
    let mut client = feed.client().await;
    // 32 MiB: more than sockets and libraries hold on their way.
    let long = |number: usize| rating(&format!("a{number}"), number) + &" ".repeat(32 << 10);
    let sender = tokio::spawn(async move {
        for number in 0..1000 {
            client.send(Message::text(long(number))).await.unwrap();
        }
        client
    });
    endpoint.was_asked(3).await;
    assert!(!sender.is_finished(), "the feed could send all of it");
    assert!(bridge.counts().taken < 100, "{:?}", bridge.counts());
    endpoint.open.store(true, Ordering::SeqCst);
    let mut taken = endpoint.has(1000).await;
    let mut expected: Vec<String> = (0..1000).map(long).collect();
    taken.sort();
    expected.sort();
    assert!(taken == expected, "what arrived is not what was sent");
    drop(sender.await.unwrap());
    bridge.finish().await;
}

#[tokio::test]
async fn an_endpoint_that_refuses_one_rating_gets_the_next_and_one_that_refuses_us_is_waited_for() {
    let answers = [422, 401, 302, 500, 408, 202, 403, 404, 405, 409, 407, 410, 202];
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&answers).await, DeadLetters::new());
    let config = config(&feed, &endpoint, &dead, json!({"in_flight": 1}));
    let bridge = Bridge::start(config, None).await.unwrap();
    let mut client = feed.client().await;
    for number in 1..=4 {
        client.send(Message::text(rating("a", number))).await.unwrap();
    }
    assert_eq!(endpoint.has(2).await, [rating("a", 2), rating("a", 4)]);
    let entries = dead.refused();
    assert_eq!(entries.len(), 2, "{entries:?}");
    for (entry, number, status) in [(&entries[0], 1, "422"), (&entries[1], 3, "409")] {
        assert_eq!(entry["frame"], rating("a", number));
        let reason = entry["reason"].as_str().unwrap();
        assert!(reason.starts_with(&format!("endpoint answered {status}")), "{reason}");
    }
    bridge.finish().await;
}

/// It once held back every other one, after the next 4096.
#[tokio::test]
async fn a_rating_that_the_endpoint_never_takes_holds_back_no_other_and_is_given_up_at_last() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let config = config(&feed, &endpoint, &dead, json!({"give_up_after": "1s", "in_flight": 16}));
    let bridge = Bridge::start(config, None).await.unwrap();
    let mut client = feed.client().await;
    client.send(Message::text(rating("poison", 0))).await.unwrap();
    for number in 1..=6000 {
        let agent = format!("a{}", number % 100);
        client.send(Message::text(rating(&agent, number))).await.unwrap();
    }
    endpoint.has(6000).await;
    // Nothing speaks for giving up while nothing else is taken.
    let mut number = 6000;
    while dead.refused().is_empty() {
        number += 1;
        client.send(Message::text(rating("a", number))).await.unwrap();
        endpoint.has(number).await;
    }
    let [entry] = &dead.refused()[..] else { panic!("{:?}", dead.refused()) };
    assert_eq!(entry["frame"], rating("poison", 0));
    let reason = entry["reason"].as_str().unwrap();
    assert!(reason.starts_with("given up after") && reason.contains("answered 500"), "{reason}");
    bridge.finish().await;
}

#[tokio::test]
async fn an_endpoint_that_is_down_gives_up_nothing() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let config = config(&feed, &endpoint, &dead, json!({"give_up_after": "1s"}));
    let bridge = Bridge::start(config, None).await.unwrap();
    let mut client = feed.client().await;
    let send = |number: usize| Message::text(rating(&format!("a{}", number % 8), number));
    for number in 0..8 {
        client.send(send(number)).await.unwrap();
    }
    endpoint.has(8).await;
    endpoint.open.store(false, Ordering::SeqCst);
    for number in 8..16 {
        client.send(send(number)).await.unwrap();
    }
    // Seven tries of each of the four that are out take longer than the second after which one is given up.
    endpoint.was_asked(8 + 32).await;
    endpoint.open.store(true, Ordering::SeqCst);
    endpoint.has(16).await;
    assert_eq!((dead.refused().len(), bridge.counts().refused), (0, 0));
    bridge.finish().await;
}

/// A revoked key once put the whole stream aside, at full speed.
#[tokio::test]
async fn while_the_endpoint_takes_nothing_from_us_ratings_wait_and_one_reason_is_told() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[403; 24]).await, DeadLetters::new());
    let bridge = Bridge::start(config(&feed, &endpoint, &dead, json!({})), None).await.unwrap();
    let mut client = feed.client().await;
    for number in 0..40 {
        client.send(Message::text(rating(&format!("a{}", number % 8), number))).await.unwrap();
    }
    says(&bridge, "endpoint answered 403").await;
    says(&bridge, "check what the token").await;
    assert_eq!(endpoint.has(40).await.len(), 40);
    assert_eq!((dead.refused().len(), bridge.counts().refused), (0, 0));
    assert!(bridge.status().check().is_ok(), "{:?}", bridge.status().check());
    bridge.finish().await;
}

/// A full file of refused ratings was once overwritten by later ones.
#[tokio::test]
async fn a_full_dead_letter_file_holds_the_bridge_back_until_it_is_moved_away() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[422; 9]).await, DeadLetters::new());
    let config = config(&feed, &endpoint, &dead, json!({"dead_letter_max_bytes": 1 << 20}));
    let bridge = Bridge::start(config, None).await.unwrap();
    let mut client = feed.client().await;
    let long = |number| rating("a", number) + &" ".repeat(300 << 10);
    for number in 0..9 {
        client.send(Message::text(long(number))).await.unwrap();
    }
    client.send(Message::text(rating("a", 9))).await.unwrap();
    let mut kept = Vec::new();
    // Three fit into a file.
    for _ in 0..2 {
        says(&bridge, "-refused.ndjson is full: move it away").await;
        kept.extend(dead.refused());
        let away = dead.0.with_extension("away");
        std::fs::rename(dead.path_of_refused(), &away).unwrap();
        std::fs::remove_file(away).unwrap();
        let ends = async {
            while bridge.status().check().is_err() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(SOON, ends).await.expect("the bridge goes on");
    }
    assert_eq!(endpoint.has(1).await, [rating("a", 9)]);
    kept.extend(dead.refused());
    let kept: Vec<&str> = kept.iter().map(|entry| entry["frame"].as_str().unwrap()).collect();
    assert_eq!(kept.len(), 9);
    assert!((0..9).zip(kept).all(|(number, kept)| kept == long(number)));
    bridge.finish().await;
}

#[tokio::test]
async fn a_bridge_that_stops_delivers_what_waits_in_memory() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    endpoint.open.store(false, Ordering::SeqCst);
    let bridge = Bridge::start(config(&feed, &endpoint, &dead, json!({})), None).await.unwrap();
    let mut client = feed.client().await;
    for number in 0..200 {
        client.send(Message::text(rating(&format!("a{}", number % 9), number))).await.unwrap();
    }
    // Our ping is answered when all before it was read.
    client.send(Message::Ping(Bytes::from_static(b"read?"))).await.unwrap();
    while !matches!(client.next().await, Some(Ok(Message::Pong(_)))) {}
    let reading = tokio::spawn(async move { while let Some(Ok(_)) = client.next().await {} });
    endpoint.open.store(true, Ordering::SeqCst);
    bridge.finish().await;
    assert_eq!(endpoint.taken.borrow().len(), 200);
    reading.await.unwrap();
}

#[tokio::test]
async fn a_feed_that_must_be_asked_is_told_the_last_id() {
    let (feed, endpoint, dead) =
        (Feed::start().await, Endpoint::start(&[]).await, DeadLetters::new());
    let subscribe = r#"{"type":"subscribe","after":"{last_id}"}"#;
    let config = config(&feed, &endpoint, &dead, json!({"subscribe": subscribe}));
    let bridge = Bridge::start(config, None).await.unwrap();
    for after in ["", "e-1", "e-2"] {
        let mut client = feed.client().await;
        let Some(Ok(Message::Text(text))) = client.next().await else { panic!("no subscription") };
        assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["after"], after);
        let number = after.chars().last().map_or(0, |digit| digit.to_digit(10).unwrap());
        let number = usize::try_from(number).unwrap() + 1;
        client.send(Message::text(rating("a", number))).await.unwrap();
        assert_eq!(endpoint.has(number).await.len(), number);
        client.close(None).await.unwrap();
    }
    bridge.finish().await;
}
