//! Streams and tickets as a browser sees them, on a clock that stands still.

use futures_util::StreamExt as _;
use http_body_util::BodyExt as _;
use serde_json::Value;
use tower::ServiceExt as _;
use tower_merit::JwtIdentity;

use super::*;
use crate::{
    bus::Partition,
    personalize::{
        Positions,
        model::{Config as ModelConfig, Model},
    },
};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";
const STREAM: &str = "/events/personalized-rating";

struct Gateway {
    personalized: Personalized,
    routes: Router,
    positions: Positions,
    stop: CancellationToken,
}

impl Gateway {
    fn new(config: &Config) -> Self {
        let mut model = Model::new(ModelConfig::default());
        for (user, item, score) in [("ann", "tea", 5.0), ("bob", "tea", 1.0), ("ann", "ink", 2.0)] {
            model.learn(Key::user(user), Key::item(item), &[], score);
        }
        let personalized = Personalized::with(model, config);
        personalized.ring().of_log("s1");
        let verifier = JwtIdentity::hs256(SECRET).build().unwrap();
        let (viewers, stop) = (Viewers::new(Some(verifier)), CancellationToken::new());
        let routes = personalized.events(config, viewers, Tickets::memory(), stop.clone());
        Self { personalized, routes, positions: Positions::of("s1"), stop }
    }

    fn rated(&mut self, item: &str) {
        let partition = Partition(0);
        let offset = self.positions.next(partition).unwrap_or(0);
        self.positions.advance(partition, offset + 1);
        let ring = self.personalized.ring();
        ring.append(vec![ring.event(item, (partition, offset), &self.positions)]);
        ring.tell();
    }

    async fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Response {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        let request = request.body(Body::empty()).unwrap();
        self.routes.clone().oneshot(request).await.unwrap()
    }

    async fn listen(&self, query: &str, token: &str) -> Response {
        let bearer = format!("Bearer {token}");
        self.ask("GET", &format!("{STREAM}{query}"), &[("authorization", &bearer)]).await
    }
}

fn token_for(subject: Option<&str>, seconds: u64) -> String {
    let mut claims = serde_json::json!({"exp": unix_time().as_secs() + seconds});
    if let Some(subject) = subject {
        claims["sub"] = subject.into();
    }
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
}

fn token(subject: &str) -> String {
    token_for(Some(subject), 3600)
}

async fn json(response: Response) -> Value {
    let body = response.into_body().collect().await.unwrap().to_bytes();
    serde_json::from_slice(&body).unwrap()
}

/// Reads pieces of a stream; the first one says when to come back.
struct Reading(axum::body::BodyDataStream);

impl Reading {
    async fn of(response: Response) -> Self {
        assert_eq!(response.status(), StatusCode::OK);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["cache-control"], "no-store");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let mut reading = Self(response.into_body().into_data_stream());
        assert_eq!(reading.piece().await.unwrap(), "retry: 3000\n\n");
        reading
    }

    async fn piece(&mut self) -> Option<String> {
        let piece = self.0.next().await?;
        Some(String::from_utf8(piece.unwrap().to_vec()).unwrap())
    }
}

#[tokio::test(start_paused = true)]
async fn each_viewer_is_told_an_own_score_in_an_unnamed_event_with_an_id() {
    let mut gateway = Gateway::new(&Config::default());
    let mut readings = Vec::new();
    for viewer in ["ann", "bob"] {
        readings.push((viewer, Reading::of(gateway.listen("", &token(viewer)).await).await));
    }
    gateway.rated("tea");
    for (viewer, reading) in &mut readings {
        let piece = reading.piece().await.unwrap();
        let lines: Vec<&str> = piece.lines().collect();
        assert_eq!(lines.len(), 3, "{piece:?}");
        assert!(lines[0].starts_with("id: ") && lines[2].is_empty(), "{piece:?}");
        let data: Value = serde_json::from_str(lines[1].strip_prefix("data: ").unwrap()).unwrap();
        let model = gateway.personalized.model();
        let score =
            crate::personalize::scores::told(model.predict(Key::user(viewer), Key::item("tea")));
        assert_eq!(data, serde_json::json!({"item_id": "tea", "rating": score}));
    }
    // Silence is broken by comments without an id.
    assert_eq!(readings[0].1.piece().await.unwrap(), ": keep-alive\n\n");
}

#[tokio::test(start_paused = true)]
async fn a_stream_about_items_is_silent_about_others_and_goes_on_behind_the_last_id() {
    let mut gateway = Gateway::new(&Config::default());
    let mut reading =
        Reading::of(gateway.listen("?item_id=ink&item_id=pen", &token("ann")).await).await;
    gateway.rated("tea");
    gateway.rated("ink");
    let piece = reading.piece().await.unwrap();
    assert!(piece.contains("ink") && !piece.contains("tea"), "{piece}");
    let id = piece.lines().next().unwrap().strip_prefix("id: ").unwrap().to_owned();
    gateway.rated("pen");
    gateway.rated("tea");
    let bearer = format!("Bearer {}", token("ann"));
    let fields = [("authorization", &*bearer), ("last-event-id", &*id)];
    for (path, fields) in [
        (STREAM.to_owned(), &fields[..]),
        (format!("{STREAM}?last_event_id={id}"), &fields[..1]),
        (format!("{STREAM}?last_event_id=old"), &fields[..]),
    ] {
        let mut reading = Reading::of(gateway.ask("GET", &path, fields).await).await;
        let piece = reading.piece().await.unwrap();
        let data: Vec<&str> = piece.lines().filter(|line| line.starts_with("data")).collect();
        assert_eq!(data.len(), 2, "{piece}");
        assert!(data[0].contains("pen") && data[1].contains("tea"), "{piece}");
        assert!(!piece.contains(": reset"), "{piece}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_ends_with_its_token_and_with_the_process() {
    let gateway = Gateway::new(&Config::default());
    let mut reading = Reading::of(gateway.listen("", &token_for(Some("ann"), 20)).await).await;
    let began = Instant::now();
    assert_eq!(reading.piece().await.unwrap(), ": keep-alive\n\n");
    assert_eq!(reading.piece().await, None);
    assert!((18..=20).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    let mut reading = Reading::of(gateway.listen("", &token("ann")).await).await;
    gateway.stop.cancel();
    assert_eq!(reading.piece().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_ticket_opens_one_stream_of_its_viewer() {
    let mut gateway = Gateway::new(&Config::default());
    let bearer = format!("Bearer {}", token_for(Some("bob"), 40));
    let answer = gateway.ask("POST", "/events/ticket", &[("authorization", &bearer)]).await;
    assert_eq!(
        (answer.status(), &answer.headers()["cache-control"]),
        (StatusCode::CREATED, &"no-store".parse().unwrap())
    );
    let answer = json(answer).await;
    assert_eq!(answer["expires_in"], 60);
    let path = format!("{STREAM}?ticket={}", answer["ticket"].as_str().unwrap());
    let mut reading = Reading::of(gateway.ask("GET", &path, &[]).await).await;
    gateway.rated("tea");
    let piece = reading.piece().await.unwrap();
    let bob = gateway.personalized.model().predict(Key::user("bob"), Key::item("tea"));
    assert!(piece.contains(&format!("{}", crate::personalize::scores::told(bob))), "{piece}");
    let again = gateway.ask("GET", &path, &[]).await;
    assert_eq!(again.status(), StatusCode::UNAUTHORIZED, "it opens one stream");
    assert!(!json(again).await.to_string().contains(answer["ticket"].as_str().unwrap()));
    // The stream ends when the token does that the ticket was asked for with.
    while let Some(piece) = reading.piece().await {
        assert_eq!(piece, ": keep-alive\n\n");
    }
}

#[tokio::test(start_paused = true)]
async fn a_viewer_that_asks_for_ticket_after_ticket_is_told_to_wait_and_others_are_not() {
    let gateway = Gateway::new(&Config::default());
    let ask = async |who: &str| {
        let bearer = format!("Bearer {}", token(who));
        gateway.ask("POST", "/events/ticket", &[("authorization", &bearer)]).await
    };
    for _ in 0..TICKETS_BURST {
        assert_eq!(ask("bob").await.status(), StatusCode::CREATED);
    }
    let refused = ask("bob").await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(ask("ann").await.status(), StatusCode::CREATED);
    tokio::time::advance(Duration::from_secs(1)).await;
    assert_eq!(ask("bob").await.status(), StatusCode::CREATED);
    assert_eq!(ask("bob").await.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn who_may_not_listen_is_told_why() {
    let gateway = Gateway::new(&Config { items_max: 2, ..Config::default() });
    for (response, status) in [
        (gateway.ask("GET", STREAM, &[]).await, 401),
        (gateway.listen("", "x.y.z").await, 401),
        (gateway.ask("GET", &format!("{STREAM}?ticket=none"), &[]).await, 401),
        (gateway.listen("", &token_for(None, 60)).await, 403),
        (gateway.listen("?item_id=a&item_id=b&item_id=c", &token("ann")).await, 400),
        (gateway.listen("?item_id=a%0Ab", &token("ann")).await, 400),
        (gateway.ask("POST", "/events/ticket", &[]).await, 401),
    ] {
        assert_eq!(response.status(), status);
        assert_eq!(response.headers()["content-type"], "application/problem+json");
    }
    assert_eq!(gateway.ask("GET", "/events/ticket", &[]).await.status(), 405);
    assert_eq!(gateway.ask("GET", "/events/other", &[]).await.status(), 404);
}

#[tokio::test(start_paused = true)]
async fn streams_are_bounded_per_viewer_and_per_node_and_a_closed_one_makes_room() {
    let config = Config { connections_max: 3, connections_per_viewer: 2, ..Config::default() };
    let gateway = Gateway::new(&config);
    let first = gateway.listen("", &token("ann")).await;
    let second = gateway.listen("", &token("ann")).await;
    let third = gateway.listen("", &token("ann")).await;
    assert_eq!((first.status(), second.status()), (StatusCode::OK, StatusCode::OK));
    assert_eq!(third.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(third.headers()["retry-after"], "5");
    let bob = gateway.listen("", &token("bob")).await;
    let cy = gateway.listen("", &token("cy")).await;
    assert_eq!((bob.status(), cy.status()), (StatusCode::OK, StatusCode::SERVICE_UNAVAILABLE));
    drop((first, bob));
    assert_eq!(gateway.listen("", &token("ann")).await.status(), StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn scripts_of_allowed_origins_may_read_and_others_may_not() {
    let allow_origins = vec!["https://shop.example".to_owned()];
    let gateway = Gateway::new(&Config { allow_origins, ..Config::default() });
    for (origin, may) in
        [("https://shop.example", true), ("https://shop.example.evil", false), ("null", false)]
    {
        for (method, path) in [("OPTIONS", STREAM), ("GET", STREAM), ("POST", "/events/ticket")] {
            let response = gateway.ask(method, path, &[("origin", origin)]).await;
            let allowed = response.headers().get("access-control-allow-origin");
            assert_eq!(
                allowed.map(|a| a.to_str().unwrap()),
                may.then_some(origin),
                "{method} {path}"
            );
            assert!(response.headers().get_all("vary").iter().any(|vary| vary == "origin"));
        }
    }
    let nobody = Gateway::new(&Config::default());
    let response = nobody.ask("OPTIONS", STREAM, &[("origin", "https://shop.example")]).await;
    assert!(response.headers().get("access-control-allow-origin").is_none());
}

#[tokio::test(start_paused = true)]
async fn a_reader_that_does_not_read_is_told_the_newest_and_costs_nobody_an_event() {
    let mut gateway = Gateway::new(&Config { buffer: 100, behind_max: 10, ..Config::default() });
    let mut slow = Reading::of(gateway.listen("", &token("bob")).await).await;
    let mut quick = Reading::of(gateway.listen("", &token("ann")).await).await;
    let mut told = 0;
    for n in 0..5_000 {
        gateway.rated(if n % 2 == 0 { "tea" } else { "ink" });
        told += quick.piece().await.unwrap().matches("data: ").count();
    }
    assert_eq!(told, 5_000);
    let piece = slow.piece().await.unwrap();
    assert!(
        piece.starts_with(": reset\n\n"),
        "it fell further behind than the buffer goes: {piece}"
    );
    assert_eq!(piece.matches("data: ").count(), 2, "{piece}");
    for _ in 0..50 {
        gateway.rated("tea");
    }
    let piece = slow.piece().await.unwrap();
    assert_eq!((piece.matches("data: ").count(), piece.contains("reset")), (1, false), "{piece}");
    gateway.rated("pen");
    assert!(slow.piece().await.unwrap().contains("pen"), "it has caught up");
}
