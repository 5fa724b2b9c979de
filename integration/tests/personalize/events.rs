//! Streams of two gateways over one Redis: told once, wherever a client goes on.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use merit_integration::{
    Bus, Merit, Persistence, Redis, Role, Settings, Upstream, client::Client, keys, sse::Sse,
};
use serde_json::json;

use super::{has_ratings, rate, table};

/// Two gateways and what feeds them.
struct Shop {
    redis: Redis,
    upstream: Upstream,
    ingest: Merit,
    gateways: [Merit; 2],
    client: Client,
}

impl Shop {
    async fn open(events: &str) -> Self {
        let redis = Redis::start(Persistence::EveryWrite).await;
        let upstream = Upstream::start();
        let settings = |role, node: &str| {
            let mut settings = Settings::new(&redis.url()).role(role).upstream(&upstream.url());
            settings.bus = Bus::Redis { topic: "shop.ratings".to_owned(), partitions: 4 };
            settings.tables = format!("{}[personalize.events]\n{events}", table(node, ""));
            settings
        };
        let ingest = Merit::start(settings(Role::All, "all")).await;
        let gateways = [
            Merit::start(settings(Role::Gateway, "one")).await,
            Merit::start(settings(Role::Gateway, "two")).await,
        ];
        Self { redis, upstream, ingest, gateways, client: Client::new() }
    }

    fn stream(&self, gateway: usize, query: &str) -> String {
        format!("{}/events/personalized-rating{query}", self.gateways[gateway].gateway())
    }

    async fn listen(&self, gateway: usize, query: &str, last: Option<&str>) -> Sse {
        let (url, token) = (self.stream(gateway, query), keys::rater("ann"));
        Sse::open(&self.client, &url, Some(&token), last).await.unwrap()
    }

    async fn close(mut self) {
        for merit in &mut self.gateways {
            merit.terminate().await;
        }
        self.ingest.terminate().await;
    }
}

#[tokio::test]
async fn a_client_that_goes_on_at_the_other_gateway_is_told_every_rating_once() {
    const RATINGS: usize = 240;
    let shop = Shop::open("connections_per_viewer = 100").await;
    // So that there is an id to go on from.
    let mut stream = shop.listen(0, "", None).await;
    rate(&shop.client, &shop.ingest, "u", "first", 3.0).await;
    let mut last = stream.next().await.unwrap().unwrap().id;
    assert_eq!(stream.retry_ms, Some(3000));
    drop(stream);
    let rating = async {
        for n in 0..RATINGS {
            // Every rating another item: each must come once. They go to all four partitions.
            rate(&shop.client, &shop.ingest, "u", &format!("item-{n}"), 4.0).await;
        }
    };
    let listening = async {
        let (mut told, mut gateway) = (BTreeMap::<String, usize>::new(), 1);
        while told.len() < RATINGS {
            let mut stream = shop.listen(gateway, "", Some(&last)).await;
            for _ in 0..7 {
                let event = stream.next().await.unwrap().unwrap();
                let item = event.data["item_id"].as_str().unwrap().to_owned();
                *told.entry(item).or_default() += 1;
                assert_ne!(event.id, last, "each event has an id of its own");
                last = event.id;
                if told.len() == RATINGS {
                    break;
                }
            }
            assert!(!stream.comments.iter().any(|c| c == "reset"), "{:?}", stream.comments);
            gateway = 1 - gateway;
        }
        told
    };
    let ((), told) = tokio::join!(rating, listening);
    let twice: Vec<_> = told.iter().filter(|(_, count)| **count > 1).collect();
    assert!(twice.is_empty() && told.len() == RATINGS, "{twice:?} were told twice");
    // Nothing is left.
    let mut stream = shop.listen(0, "", Some(&last)).await;
    rate(&shop.client, &shop.ingest, "u", "the end", 4.0).await;
    assert_eq!(stream.next().await.unwrap().unwrap().data["item_id"], "the end");
    drop(stream);
    assert_eq!(shop.upstream.served(), 0, "streams are Merit's own");
    shop.close().await;
}

#[tokio::test]
async fn a_ticket_of_one_gateway_opens_one_stream_at_the_other() {
    let shop = Shop::open("").await;
    let ask = format!("{}/events/ticket", shop.gateways[0].gateway());
    let answer = shop.client.post(&ask, &keys::rater("ann"), &json!({})).await.unwrap();
    assert_eq!(answer.status, 201, "{}", answer.text());
    let ticket = answer.json()["ticket"].as_str().unwrap().to_owned();
    let stored: Vec<String> = shop.redis.ask(&["KEYS", "merit:ticket:*"]).await;
    assert!(stored.len() == 1 && !stored[0].contains(&ticket), "{stored:?}");
    let left: i64 = shop.redis.ask(&["PTTL", &stored[0]]).await;
    assert!((1..=60_000).contains(&left), "{left} ms");
    let url = shop.stream(1, &format!("?ticket={ticket}"));
    let mut stream = Sse::open(&shop.client, &url, None, None).await.unwrap();
    rate(&shop.client, &shop.ingest, "bob", "tea", 5.0).await;
    assert_eq!(stream.next().await.unwrap().unwrap().data["item_id"], "tea");
    for gateway in 0..2 {
        let url = shop.stream(gateway, &format!("?ticket={ticket}"));
        let again = Sse::open(&shop.client, &url, None, None).await.unwrap_err().to_string();
        assert!(again.starts_with("401") && !again.contains(&ticket), "{again}");
    }
    for merit in &shop.gateways {
        assert!(!merit.output().contains(&ticket), "tickets are not logged");
    }
    drop(stream);
    shop.close().await;
}

#[tokio::test]
async fn a_stream_ends_when_its_token_does() {
    let shop = Shop::open("").await;
    let token = keys::hs256(&keys::claims(&json!({"sub": "ann", "exp": keys::now() + 4})));
    let began = Instant::now();
    let mut stream =
        Sse::open(&shop.client, &shop.stream(0, ""), Some(&token), None).await.unwrap();
    assert_eq!(stream.next().await.unwrap(), None);
    let lasted = began.elapsed();
    assert!((2..=6).contains(&lasted.as_secs()), "{lasted:?}");
    shop.close().await;
}

#[tokio::test]
async fn whatever_an_item_is_called_it_is_told_as_text_on_one_line() {
    let shop = Shop::open("").await;
    let mut stream = shop.listen(0, "", None).await;
    let hostile = [
        "<script>alert(1)</script>",
        "\"}\\n\\ndata: {\"item_id\":\"x\"",
        "'; DROP TABLE items; --",
        "\u{202e}txt.exe\u{2066}",
        "a\u{2028}data: b\u{2029}",
        "id: 7",
        "%0d%0a%0d%0a",
    ];
    for item in hostile {
        rate(&shop.client, &shop.ingest, "u", item, 2.0).await;
        let event = stream.next().await.unwrap().unwrap();
        assert_eq!(event.data["item_id"], item);
    }
    // Whose lines would break is refused at the edge.
    let body = json!({"user_id": "u", "item_id": "a\nb", "rating": 4});
    let url = format!("{}/v1/rating", shop.ingest.ingest());
    let answer = shop.client.post(&url, &keys::collector(), &body).await.unwrap();
    assert_eq!(
        (answer.status.as_u16(), answer.problem()["field"].as_str()),
        (422, Some("item_id"))
    );
    drop(stream);
    shop.close().await;
}

#[tokio::test]
async fn the_score_of_who_rated_comes_within_milliseconds_and_knows_the_rating() {
    let shop = Shop::open("").await;
    for n in 0..20 {
        rate(&shop.client, &shop.ingest, &format!("u{n}"), "tea", 5.0).await;
    }
    has_ratings(&shop.client, &shop.ingest, "tea", 20).await;
    let mut stream = shop.listen(0, "?item_id=tea", None).await;
    let mut before = f64::MAX;
    for _ in 0..3 {
        let began = Instant::now();
        rate(&shop.client, &shop.ingest, "ann", "ink", 1.0).await;
        rate(&shop.client, &shop.ingest, "ann", "tea", 1.0).await;
        let event = stream.next().await.unwrap().unwrap();
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
        assert_eq!(event.data["item_id"], "tea");
        let score = event.data["rating"].as_f64().unwrap();
        assert!(score < before, "ann dislikes tea more with each rating: {score}, {before}");
        before = score;
    }
    drop(stream);
    shop.close().await;
}
