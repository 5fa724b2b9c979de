//! What is not a rating, or comes from one who may not rate, is answered with the field at fault
//! and moves nothing.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{collections::BTreeSet, time::Duration};

use bytes::Bytes;
use http::Method;
use jsonwebtoken::{Algorithm, EncodingKey};
use merit_integration::{
    Bus, Identity, Merit, Persistence, Redis, Settings, Upstream,
    client::{Answer, Client, request},
    eventually, keys,
    ratings::Poster,
};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(20);

/// One process that does everything, over a Redis of its own.
struct Stack {
    merit: Merit,
    upstream: Upstream,
    redis: Redis,
}

impl Stack {
    async fn start(identity: Identity) -> Self {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let upstream = Upstream::start();
        let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
        settings.identity = identity;
        Self { merit: Merit::start(settings).await, upstream, redis }
    }

    async fn post(&self, token: Option<&str>, fields: &[(&str, &str)], body: &[u8]) -> Answer {
        let url = format!("{}/v1/rating", self.merit.ingest());
        let body = Bytes::copy_from_slice(body);
        let request = request(Method::POST, &url, token, fields, body);
        Client::new().call(request).await.expect("ingest answers")
    }

    async fn post_json(&self, token: Option<&str>, body: &str) -> Answer {
        self.post(token, &[("content-type", "application/json")], body.as_bytes()).await
    }

    /// Rates once more and looks which agents have limits: those that the test expects and no other.
    async fn only_these_were_rated(&self, agents: &[(&str, &str)]) {
        let mut poster = Poster::new(&self.merit.ingest());
        poster.rate("marker", 5.0).await;
        poster.fold.settles_in(&self.redis, DEADLINE).await;
        let rated: BTreeSet<String> = self.redis.ask(&["KEYS", "tb:*"]).await;
        let expected = agents.iter().map(|(agent, _)| *agent).chain(["marker"]);
        assert_eq!(rated, expected.map(|agent| format!("tb:{agent}")).collect());
        for (agent, rate) in agents {
            assert_eq!(
                self.redis.limits(agent).await.map(|(_, rate)| rate).as_deref(),
                Some(*rate)
            );
        }
    }
}

fn rating(changes: &Value) -> String {
    let mut rating = json!({"agent_id": "victim", "user_id": "u1", "score": 5});
    for (name, value) in changes.as_object().into_iter().flatten() {
        match value {
            Value::Null => drop(rating.as_object_mut().map(|rating| rating.remove(name))),
            value => rating[name] = value.clone(),
        }
    }
    rating.to_string()
}

#[tokio::test]
async fn a_malformed_rating_is_answered_with_the_field_at_fault() {
    let stack = Stack::start(Identity::Secret).await;
    let token = keys::collector();
    let cases = [
        ("score", rating(&json!({"score": 0}))),
        ("score", rating(&json!({"score": 6}))),
        ("score", rating(&json!({"score": -1}))),
        ("score", rating(&json!({"score": 5.000_001}))),
        ("score", rating(&json!({"score": "5"}))),
        ("score", rating(&json!({"score": true}))),
        ("score", rating(&json!({"score": null}))),
        ("score", r#"{"agent_id":"victim","user_id":"u1","score":NaN}"#.into()),
        ("score", r#"{"agent_id":"victim","user_id":"u1","score":1e999}"#.into()),
        ("agent_id", rating(&json!({"agent_id": null}))),
        ("agent_id", rating(&json!({"agent_id": ""}))),
        ("agent_id", rating(&json!({"agent_id": "two words"}))),
        ("agent_id", rating(&json!({"agent_id": ":victim"}))),
        ("agent_id", rating(&json!({"agent_id": "victim:"}))),
        ("agent_id", rating(&json!({"agent_id": "x".repeat(129)}))),
        ("agent_id", rating(&json!({"agent_id": "victim\nEVAL"}))),
        ("agent_id", rating(&json!({"agent_id": "vic}tim"}))),
        ("agent_id", rating(&json!({"agent_id": 7}))),
        ("user_id", rating(&json!({"user_id": null}))),
        ("timestamp", rating(&json!({"timestamp": keys::now() + 3600}))),
        ("timestamp", rating(&json!({"timestamp": (keys::now() + 3600) * 1000}))),
        ("timestamp", rating(&json!({"timestamp": "2999-01-01T00:00:00Z"}))),
        ("timestamp", rating(&json!({"timestamp": "tomorrow"}))),
        ("score", r#"{"agent_id":"victim","user_id":"u1","score":5,"score":1}"#.into()),
        ("agent_id", r#"{"agent_id":"victim","agent_id":"b","user_id":"u1","score":5}"#.into()),
        ("agentId", r#"{"agent_id":"victim","agentId":"b","user_id":"u1","score":5}"#.into()),
    ];
    for (field, body) in &cases {
        let answer = stack.post_json(Some(&token), body).await;
        assert!([400, 422].contains(&answer.status.as_u16()), "{}: {body}", answer.status);
        let problem = answer.problem();
        assert_eq!(problem["field"], *field, "{body}: {problem}");
        assert!(problem["detail"].as_str().is_some_and(|text| text.contains(field)), "{problem}");
    }
    stack.only_these_were_rated(&[]).await;
}

#[tokio::test]
async fn a_body_that_is_no_rating_at_all_is_refused_for_what_it_is() {
    let stack = Stack::start(Identity::Secret).await;
    let token = keys::collector();
    for body in ["", "{", "[]", "null", "{\"agent_id\":\"victim\"", "\u{feff}{}", "not json"] {
        let answer = stack.post_json(Some(&token), body).await;
        assert!([400, 422].contains(&answer.status.as_u16()), "{}: {body:?}", answer.status);
        answer.problem();
    }
    let not_text = stack.post(
        Some(&token),
        &[("content-type", "application/json")],
        b"{\"agent_id\":\"vic\xfftim\",\"user_id\":\"u\",\"score\":5}",
    );
    let answer = not_text.await;
    assert!([400, 422].contains(&answer.status.as_u16()), "{}", answer.status);
    answer.problem();

    for kind in [None, Some("text/plain"), Some("application/x-www-form-urlencoded")] {
        let fields: Vec<_> = kind.iter().map(|kind| ("content-type", *kind)).collect();
        let answer = stack.post(Some(&token), &fields, rating(&json!({})).as_bytes()).await;
        assert_eq!(answer.status, 415, "{kind:?}: {}", answer.text());
        answer.problem();
    }
    let with_charset = [("content-type", "application/json; charset=utf-8")];
    let body = rating(&json!({"agent_id": "charset"}));
    let answer = stack.post(Some(&token), &with_charset, body.as_bytes()).await;
    assert_eq!(answer.status, 202, "{}", answer.text());
    stack.only_these_were_rated(&[("charset", "20.2")]).await;
}

#[tokio::test]
async fn a_body_of_ten_megabytes_is_refused_without_being_read() {
    let stack = Stack::start(Identity::Secret).await;
    let token = keys::collector();
    let padded = rating(&json!({"context": {"padding": "x".repeat(10_000_000)}}));
    for path in ["rating", "ratings"] {
        let url = format!("{}/v1/{path}", stack.merit.ingest());
        let fields = [("content-type", "application/json")];
        let large = request(Method::POST, &url, Some(&token), &fields, padded.clone());
        // The server may answer and close before we have sent everything.
        if let Ok(answer) = Client::new().call(large).await {
            assert_eq!(answer.status, 413, "{}", answer.text());
            answer.problem();
        }
    }
    // The answer itself, with the body announced and not sent.
    let answer = announced(&stack, &token, 10_000_000).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    stack.only_these_were_rated(&[]).await;
}

/// Sends the head of a request with a body of `length` bytes, and returns the answer.
async fn announced(stack: &Stack, token: &str, length: usize) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let address = stack.merit.ingest();
    let address = address.strip_prefix("http://").unwrap();
    let mut line = tokio::net::TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/rating HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {token}\r\n\
         content-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    );
    line.write_all(head.as_bytes()).await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(DEADLINE, line.read(&mut answer)).await;
    let read = read.expect("the answer does not wait for the body").unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn a_repeat_with_the_same_id_counts_once() {
    let stack = Stack::start(Identity::Secret).await;
    let token = keys::collector();
    let send = async |fields: &[(&str, &str)], body: &str| {
        let mut all = vec![("content-type", "application/json")];
        all.extend(fields);
        let answer = stack.post(Some(&token), &all, body.as_bytes()).await;
        assert_eq!(answer.status, 202, "{}", answer.text());
        answer.json()["id"].as_str().unwrap().to_owned()
    };
    let named = rating(&json!({"agent_id": "named", "id": "event-1"}));
    assert_eq!(send(&[], &named).await, "event-1");
    assert_eq!(send(&[], &named).await, "event-1");
    // The same name with another body: the first wins.
    send(&[], &rating(&json!({"agent_id": "named", "id": "event-1", "score": 1}))).await;

    let header = [("idempotency-key", "event-2")];
    for _ in 0..2 {
        let body = rating(&json!({"agent_id": "header"}));
        assert_eq!(send(&header, &body).await, "event-2");
    }

    // A rating that brings its own time is named by its content.
    let timed = rating(&json!({"agent_id": "timed", "timestamp": keys::now()}));
    assert_eq!(send(&[], &timed).await, send(&[], &timed).await);

    // Two ratings without a name are two ratings.
    let nameless = rating(&json!({"agent_id": "nameless"}));
    assert_ne!(send(&[], &nameless).await, send(&[], &nameless).await);

    let expected = [("named", "20.2"), ("header", "20.2"), ("timed", "20.2"), ("nameless", "20.4")];
    stack.only_these_were_rated(&expected).await;
}

#[tokio::test]
async fn a_rater_speaks_for_itself_and_nobody_rates_itself() {
    let stack = Stack::start(Identity::Secret).await;
    let own = rating(&json!({"agent_id": "judged", "user_id": "u1"}));
    let answer = stack.post_json(Some(&keys::rater("u1")), &own).await;
    assert_eq!(answer.status, 202, "{}", answer.text());

    let other = rating(&json!({"user_id": "u2"}));
    let answer = stack.post_json(Some(&keys::rater("u1")), &other).await;
    assert_eq!(answer.status, 403, "{}", answer.text());
    assert_eq!(answer.problem()["field"], "user_id");

    let any = json!({"sub": "u1", "scope": "ratings:write:any", "agent_id": "victim"});
    for body in [rating(&json!({})), rating(&json!({"agent_id": null, "agentId": "victim"}))] {
        let answer = stack.post_json(Some(&keys::hs256(&keys::claims(&any))), &body).await;
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert!(
            answer.problem()["detail"].as_str().unwrap().contains("agent"),
            "{}",
            answer.text()
        );
    }

    for scope in
        [json!({"sub": "u1"}), json!({"sub": "u1", "scope": "ratings:writes ratings:read"})]
    {
        let token = keys::hs256(&keys::claims(&scope));
        let answer = stack.post_json(Some(&token), &rating(&json!({}))).await;
        assert_eq!(answer.status, 403, "{}", answer.text());
        assert!(answer.text().contains("ratings:write"), "{}", answer.text());
        answer.problem();
    }
    stack.only_these_were_rated(&[("judged", "20.2")]).await;
}

#[tokio::test]
async fn a_batch_is_answered_item_by_item_and_its_good_ratings_count() {
    let stack = Stack::start(Identity::Secret).await;
    let url = format!("{}/v1/ratings", stack.merit.ingest());
    let good = |agent: &str| json!({"agent_id": agent, "user_id": "u1", "score": 5});
    let batch = json!([good("first"), {"agent_id": "victim", "user_id": "u1", "score": 9}, 7, good("last")]);
    let answer = Client::new().post(&url, &keys::collector(), &batch).await.unwrap();
    assert_eq!(answer.status, 207, "{}", answer.text());
    let told = answer.json();
    let results = told["results"].as_array().expect("a batch is answered per item");
    let statuses: Vec<u64> = results.iter().filter_map(|r| r["status"].as_u64()).collect();
    assert_eq!(statuses.len(), 4, "{told}");
    assert_eq!((statuses[0], statuses[3]), (202, 202), "{told}");
    assert!(statuses[1] >= 400 && statuses[2] >= 400, "{told}");
    assert_eq!(results[1]["field"], "score", "{told}");

    let lines = format!("{}\n{}\n", good("line-1"), good("line-2"));
    let fields = [("content-type", "application/x-ndjson")];
    let token = keys::collector();
    let lines = request(Method::POST, &url, Some(&token), &fields, lines);
    let answer = Client::new().call(lines).await.unwrap();
    assert_eq!(answer.status, 202, "{}", answer.text());
    let rated = ["first", "last", "line-1", "line-2"].map(|agent| (agent, "20.2"));
    stack.only_these_were_rated(&rated).await;
}

/// Sends a token to ingest and to the gateway; both must refuse it as no credential at all.
async fn refused_everywhere(stack: &Stack, kind: &str, token: Option<&str>) {
    let served = stack.upstream.served();
    let url = format!("{}/hello", stack.merit.gateway());
    let from_gateway = Client::new().get(&url, token).await.unwrap();
    let from_ingest = stack.post_json(token, &rating(&json!({}))).await;
    for answer in [from_gateway, from_ingest] {
        assert_eq!(answer.status, 401, "{kind}: {}", answer.text());
        assert!(answer.header("www-authenticate").starts_with("Bearer"), "{:?}", answer.headers);
        answer.problem();
        if let Some(token) = token {
            assert!(!answer.text().contains(token), "the answer repeats the token");
        }
    }
    assert_eq!(stack.upstream.served(), served, "{kind} reached the upstream");
}

fn claims(changes: Value) -> Value {
    let mut claims =
        keys::claims(&json!({"sub": "u1", "agent_id": "victim", "scope": "ratings:write:any"}));
    for (name, value) in changes.as_object().unwrap() {
        claims[name] = value.clone();
    }
    // A claim set to null is a claim left out.
    claims.as_object_mut().unwrap().retain(|_, value| !value.is_null());
    claims
}

#[tokio::test]
async fn a_forged_expired_or_foreign_token_is_no_credential() {
    let stack = Stack::start(Identity::Secret).await;
    let good = claims(json!({}));
    let other = EncodingKey::from_secret(b"another secret of more than thirty-two bytes");
    let expired = keys::now() - 3600;
    refused_everywhere(&stack, "none", None).await;
    for (kind, token) in [
        ("unsigned", keys::unsigned(&good)),
        ("another key", keys::signed(Algorithm::HS256, &good, &other)),
        ("expired", keys::hs256(&claims(json!({"exp": expired})))),
        ("no expiry", keys::hs256(&claims(json!({"exp": null})))),
        ("text expiry", keys::hs256(&claims(json!({"exp": "9999999999"})))),
        ("not yet", keys::hs256(&claims(json!({"nbf": keys::now() + 3600})))),
        ("other issuer", keys::hs256(&claims(json!({"iss": "https://evil.example/"})))),
        ("no issuer", keys::hs256(&claims(json!({"iss": null})))),
        ("other audience", keys::hs256(&claims(json!({"aud": "elsewhere"})))),
        ("no audience", keys::hs256(&claims(json!({"aud": null})))),
        ("longer hash", {
            let secret = EncodingKey::from_secret(merit_integration::SECRET.as_bytes());
            keys::signed(Algorithm::HS512, &good, &secret)
        }),
        ("cut", keys::hs256(&good).rsplit_once('.').unwrap().0.to_owned()),
        ("garbage", "x.y.z".into()),
    ] {
        refused_everywhere(&stack, kind, Some(&token)).await;
    }
    stack.only_these_were_rated(&[]).await;
}

#[tokio::test]
async fn a_public_key_is_not_an_hmac_secret() {
    let pair = keys::KeyPair::generate(Algorithm::RS256);
    let file = pair.public_key_file.clone();
    let stack = Stack::start(Identity::PublicKey { algorithm: "RS256", file }).await;
    let good = claims(json!({}));
    refused_everywhere(&stack, "confused", Some(&pair.confused(&good))).await;
    refused_everywhere(&stack, "unsigned", Some(&keys::unsigned(&good))).await;
    refused_everywhere(&stack, "HS256", Some(&keys::hs256(&good))).await;
    let stranger = keys::KeyPair::generate(Algorithm::RS256);
    refused_everywhere(&stack, "another key", Some(&stranger.sign(&good))).await;

    let url = format!("{}/hello", stack.merit.gateway());
    let honest = Client::new().get(&url, Some(&pair.sign(&good))).await.unwrap();
    assert_eq!(honest.status, 200, "{}", honest.text());
}

#[tokio::test]
async fn keys_on_curves_are_honoured_too() {
    for (algorithm, name) in [(Algorithm::ES256, "ES256"), (Algorithm::EdDSA, "EdDSA")] {
        let pair = keys::KeyPair::generate(algorithm);
        let file = pair.public_key_file.clone();
        let stack = Stack::start(Identity::PublicKey { algorithm: name, file }).await;
        let good = claims(json!({}));
        let url = format!("{}/hello", stack.merit.gateway());
        let honest = Client::new().get(&url, Some(&pair.sign(&good))).await.unwrap();
        assert_eq!(honest.status, 200, "{name}: {}", honest.text());
        refused_everywhere(&stack, "confused", Some(&pair.confused(&good))).await;
        let stranger = keys::KeyPair::generate(algorithm);
        refused_everywhere(&stack, "another key", Some(&stranger.sign(&good))).await;
    }
}

/// Two thousand records that are no rating, on the bus itself, and as many requests that are refused: what the
/// process says of them fits on a few pages.
#[tokio::test]
async fn a_flood_of_garbage_writes_a_bounded_number_of_log_lines() {
    const GARBAGE: usize = 2_000;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
    settings.bus = Bus::Redis { topic: "flooded".to_owned(), partitions: 1 };
    let merit = Merit::start(settings).await;
    let began = std::time::Instant::now();
    let mut connection = redis.connect().await;
    for number in 0..GARBAGE {
        let add: redis::RedisResult<String> = redis::cmd("XADD")
            .arg(&["flooded:{0}", "*", "rating", &format!("garbage {number}")])
            .query_async(&mut connection)
            .await;
        add.unwrap();
    }
    let client = Client::new();
    for number in 0..GARBAGE {
        let url = format!("{}/v1/products?{number}", merit.gateway());
        let answer = client.get(&url, Some(&format!("no.token.{number}"))).await.unwrap();
        assert_eq!(answer.status, 401);
    }
    eventually("all garbage is put aside", DEADLINE, || async {
        let dead: Option<usize> = redis.ask(&["XLEN", "flooded:dead"]).await;
        dead == Some(GARBAGE)
    })
    .await;
    // A window of ten seconds began at most once in each.
    let windows = usize::try_from(began.elapsed().as_secs() / 10).unwrap() + 1;
    let output = merit.output();
    let of_garbage = output.lines().filter(|line| line.contains("is no rating")).count();
    assert!((1..=50 * windows).contains(&of_garbage), "{of_garbage} in {windows} windows");
    let lines = output.lines().count();
    assert!(lines <= 50 * windows + 60, "{lines} lines: {output}");
}
