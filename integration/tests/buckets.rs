//! Buckets are changed while everything runs, and agents read their own limits: real gateways over one Redis.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use http::Method;
use merit_integration::{
    Merit, Persistence, Redis, Role, Settings, Upstream,
    acl::{self, GATEWAY, LIVE},
    client::{Answer, Client, request},
    eventually, keys, ports,
    ratings::Poster,
    unix_time,
};
use serde_json::{Value, json};
use tokio::task::JoinSet;

/// How long a change may take to hold everywhere.
const TAKEN_OVER: Duration = Duration::from_secs(2);
/// How long anything may take that should take less.
const DEADLINE: Duration = Duration::from_secs(20);
const TOKEN: &str = "a-token-that-only-the-tests-know";
const PAGE: &str = "/.well-known/merit/limits";

/// A process with an admin listener.
struct Node {
    merit: Merit,
    admin: String,
    client: Client,
}

impl Node {
    async fn start(settings: Settings) -> Self {
        let mut node = Self::launch(settings);
        node.merit.ready().await;
        node
    }

    fn launch(mut settings: Settings) -> Self {
        let port = ports::free();
        let listen = format!("listen = \"127.0.0.1:{port}\"\ntoken_env = \"MERIT_ADMIN_TOKEN\"");
        settings.tables = format!("[admin]\n{listen}\n\n{}", settings.tables);
        settings.environment.push(("MERIT_ADMIN_TOKEN".to_owned(), TOKEN.to_owned()));
        let admin = format!("http://127.0.0.1:{port}");
        Self { merit: Merit::launch(settings), admin, client: Client::new() }
    }

    async fn gateway(redis: &Redis, upstream: &Upstream) -> Self {
        let settings = Settings::new(&redis.url()).upstream(&upstream.url()).role(Role::Gateway);
        Self::start(settings).await
    }

    async fn admin(&self, method: Method, path: &str, body: &Value) -> Answer {
        let url = format!("{}{path}", self.admin);
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let fields = [("content-type", "application/json")];
        self.client.call(request(method, &url, Some(TOKEN), &fields, body)).await.unwrap()
    }

    async fn buckets(&self) -> Value {
        let answer = self.admin(Method::GET, "/buckets", &Value::Null).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        answer.json()
    }

    async fn put(&self, document: &Value) -> Answer {
        self.admin(Method::PUT, "/buckets", document).await
    }

    async fn ask(&self, agent: &str, path: &str) -> Answer {
        let url = format!("{}{path}", self.merit.gateway());
        self.client.get(&url, Some(&keys::agent(agent))).await.unwrap()
    }

    async fn limits(&self, agent: &str) -> Value {
        let answer = self.ask(agent, PAGE).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        assert_eq!(answer.header("cache-control"), "private, no-store");
        answer.json()
    }

    /// Waits until the revision in force here is `rev`.
    async fn goes_by(&self, rev: f64, within: Duration) {
        eventually("the node goes by the buckets", within, || async {
            self.merit.metric("merit_buckets_rev").await == Some(rev)
        })
        .await;
    }
}

fn document(rev: u64, refill_rate: f64, capacity: u64) -> Value {
    json!({
        "rev": rev,
        "buckets": [
            {"bucket_name": "moltbook-agent-bucket", "default": true, "refill_rate": refill_rate,
             "capacity": capacity, "key_selector": "jwt.claims.agent_id"},
            {"bucket_name": "writes", "refill_rate": 0.001, "capacity": 1},
        ],
        "routes": [{"path": "/v1/orders/*", "buckets": ["writes"]}],
    })
}

/// Returns the capacity that the gateway names; the upstream sends a policy of its own, which comes first.
fn capacity(answer: &Answer) -> u64 {
    let fields = answer.headers.get_all("ratelimit-policy");
    let own = fields.iter().filter_map(|field| field.to_str().ok()).find(|f| f.contains("molt"));
    let own = own.unwrap_or_else(|| panic!("{:?}", answer.headers));
    let capacity = own.split(";q=").nth(1).unwrap().split(';').next().unwrap();
    capacity.parse().unwrap()
}

/// Sends requests of ever new agents, each with a full bucket, until told to stop; every one must pass. Returns
/// when the capacity was `new` from then on.
async fn load(
    url: String,
    name: &str,
    new: u64,
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
) -> Option<Instant> {
    let (client, mut since) = (Client::new(), None);
    let mut number = 0;
    while !stop.load(Relaxed) {
        number += 1;
        let token = keys::agent(&format!("{name}-{number}"));
        let answer = client.get(&format!("{url}/v1/anything"), Some(&token)).await;
        let answer = answer.expect("no connection is broken off");
        assert_eq!(answer.status, 200, "{}", answer.text());
        match (capacity(&answer) == new, since) {
            (true, None) => since = Some(Instant::now()),
            (false, Some(_)) => panic!("{url} went back to the old buckets"),
            _ => {}
        }
        sent.fetch_add(1, Relaxed);
    }
    since
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_put_holds_on_every_gateway_within_two_seconds_and_no_request_fails() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let nodes = [Node::gateway(&redis, &upstream).await, Node::gateway(&redis, &upstream).await];
    let file = nodes[0].buckets().await;
    assert_eq!((&file["rev"], &file["source"]), (&json!(0), &json!("file")));
    assert_eq!(file["buckets"][0]["capacity"], 40);

    let (stop, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let mut loads = JoinSet::new();
    for task in 0..8 {
        let url = nodes[task % 2].merit.gateway();
        let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
        loads.spawn(async move { load(url, &format!("load{task}"), 7, stop, sent).await });
    }
    eventually("requests pass", DEADLINE, || async { sent.load(Relaxed) > 100 }).await;

    let answer = nodes[0].put(&document(0, 3.0, 7)).await;
    let put = Instant::now();
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!((&answer.json()["rev"], &answer.json()["source"]), (&json!(1), &json!("store")));
    for node in &nodes {
        node.goes_by(1.0, TAKEN_OVER).await;
        assert_eq!(node.buckets().await, answer.json());
    }
    let before = sent.load(Relaxed);
    eventually("requests pass", DEADLINE, || async { sent.load(Relaxed) > before + 200 }).await;
    stop.store(true, Relaxed);
    for since in loads.join_all().await {
        let took = since.expect("every gateway took it over") - put;
        assert!(took < TAKEN_OVER, "{took:?}");
    }

    // The route of the document charges its bucket, on both nodes together once.
    assert_eq!(nodes[0].ask("a1", "/v1/orders/7").await.status, 200);
    let refused = nodes[1].ask("a1", "/v1/orders/7").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.problem()["violated-policies"], json!(["writes"]));

    // Back to the file, by the other node.
    let answer = nodes[1].admin(Method::DELETE, "/buckets", &Value::Null).await;
    assert_eq!((answer.status.as_u16(), &answer.json()), (200, &file));
    for node in &nodes {
        node.goes_by(0.0, TAKEN_OVER).await;
        assert_eq!(capacity(&node.ask("fresh", "/v1/orders/7").await), 40);
        assert_eq!(node.merit.metric("merit_buckets_reload_total").await, Some(2.0));
    }
}

#[tokio::test]
async fn what_is_faulty_or_too_late_changes_nothing() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let node = Node::gateway(&redis, &upstream).await;
    let faulty = json!({
        "rev": 0,
        "buckets": [
            {"bucket_name": "moltbook-agent-bucket", "refill_rate": 20, "capacity": 40, "default": true},
            {"bucket_name": "writes", "refill_rate": 2, "capacity": 9_000_001, "key_selector": "peer.ip"},
        ],
        "routes": [{"path": "v1", "methods": ["post"], "buckets": ["reads"]}],
    });
    let answer = node.put(&faulty).await;
    assert_eq!(answer.status, 422);
    let problem = answer.problem();
    let told: Vec<&str> =
        problem["faults"].as_array().unwrap().iter().flat_map(Value::as_str).collect();
    for (told, said) in told.iter().zip([
        "bucket[1].key_selector: must be `jwt.claims.agent_id`",
        "bucket[1].capacity: must be at most 9000000, is 9000001",
        "route[0].methods: \"post\" is no method",
        "route[0].path: \"v1\" must begin with",
    ]) {
        assert!(told.starts_with(said), "{said}: {told}");
    }
    assert_eq!(told.len(), 4, "{told:?}");
    let exists: u64 = redis.ask(&["EXISTS", "merit:buckets"]).await;
    assert_eq!(exists, 0, "something was stored");

    assert_eq!(node.put(&document(0, 5.0, 10)).await.status, 200);
    let late = node.put(&document(0, 9.0, 90)).await;
    assert_eq!(late.status, 409);
    assert_eq!(late.problem()["rev"], 1);
    assert_eq!(node.buckets().await["buckets"][0]["capacity"], 10);
    let bucket = node.admin(Method::GET, "/buckets/writes", &Value::Null).await;
    assert_eq!(bucket.json()["capacity"], 1);
    let missing = node.admin(Method::GET, "/buckets/none", &Value::Null).await;
    assert_eq!(missing.status, 404);
    missing.problem();
}

#[tokio::test]
async fn what_was_put_outlives_every_process_and_what_cannot_be_used_leaves_the_last_good_one() {
    let mut redis = Redis::start(Persistence::EveryWrite).await;
    let upstream = Upstream::start();
    let mut node = Node::gateway(&redis, &upstream).await;
    assert_eq!(node.put(&document(0, 5.0, 10)).await.status, 200);
    node.goes_by(1.0, TAKEN_OVER).await;
    node.merit.terminate().await;
    redis.kill9();
    redis.restart().await;
    node.merit.restart().await;
    // From the first request on.
    assert_eq!(capacity(&node.ask("a1", "/").await), 10);
    assert_eq!(node.buckets().await["rev"], 1);

    // A newer version wrote this one.
    let newer = ["HSET", "merit:buckets", "rev", "2", "text", r#"{"form":2,"buckets":{}}"#];
    let _: u64 = redis.ask(&newer).await;
    let unusable = r#"merit_buckets_reload_total{outcome="unusable"}"#;
    eventually("the node has read it", TAKEN_OVER, || async {
        node.merit.series(unusable).await == Some(1.0)
    })
    .await;
    assert_eq!(capacity(&node.ask("a2", "/").await), 10);
    assert_eq!(node.admin(Method::GET, "/buckets", &Value::Null).await.status, 500);
    // It is put right over the same way, and by then was not told a second time.
    assert_eq!(node.put(&document(2, 5.0, 11)).await.status, 200);
    node.goes_by(3.0, TAKEN_OVER).await;
    assert_eq!(capacity(&node.ask("a3", "/").await), 11);
    assert_eq!(node.merit.series(unusable).await, Some(1.0));

    // A store that is away when a gateway starts is waited for by nobody.
    node.merit.terminate().await;
    redis.kill9();
    let settings = Settings::new(&redis.url()).upstream(&upstream.url()).role(Role::Gateway);
    let node = Node::launch(settings);
    let url = format!("{}/", node.merit.gateway());
    let by_the_file = merit_integration::until("the gateway serves", DEADLINE, || async {
        node.client.get(&url, Some(&keys::agent("a4"))).await.ok().filter(|a| a.status == 200)
    })
    .await;
    assert_eq!(capacity(&by_the_file), 40);
    redis.restart().await;
    node.goes_by(3.0, DEADLINE).await;
    assert_eq!(capacity(&node.ask("a5", "/").await), 11);
}

#[tokio::test]
async fn requests_in_flight_count_across_a_change_and_end_under_their_own_rules() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url()).role(Role::Gateway);
    settings.environment = vec![("MERIT__GATEWAY__CONCURRENCY_PER_AGENT".into(), "1".into())];
    let node = Node::start(settings).await;
    let url = format!("{}/held", node.merit.gateway());
    let held =
        tokio::spawn(
            async move { Client::new().get(&url, Some(&keys::agent("slow"))).await.unwrap() },
        );
    upstream.holding().await;
    assert_eq!(node.put(&document(0, 5.0, 10)).await.status, 200);
    node.goes_by(1.0, TAKEN_OVER).await;
    let second = node.ask("slow", "/").await;
    assert_eq!(second.status, 429);
    assert_eq!(second.problem()["violated-policies"], json!(["concurrency"]));
    upstream.release();
    let answer = held.await.unwrap();
    assert_eq!((answer.status.as_u16(), answer.text().as_str()), (200, "done"));
    assert_eq!(capacity(&answer), 40, "it ends under the rules that it came under");
    assert_eq!(node.ask("slow", "/").await.status, 200);
    // `concurrency` is a policy's name here, so it can be no bucket's.
    let mut taken = document(1, 5.0, 10);
    taken["buckets"][1]["bucket_name"] = json!("concurrency");
    taken["routes"] = json!([]);
    assert_eq!(node.put(&taken).await.status, 422);
}

#[tokio::test]
async fn the_tuner_goes_on_from_what_was_put() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let node = Node::start(Settings::new(&redis.url()).upstream(&upstream.url())).await;
    let mut poster = Poster::new(&node.merit.ingest());
    let limits = async |agent: &str, prefix: &str| {
        let key = format!("tb:{agent}");
        let fields = ["refill_rate", "capacity"].map(|field| format!("{prefix}{field}"));
        let found: Vec<Option<f64>> = redis.ask(&["HMGET", &key, &fields[0], &fields[1]]).await;
        found
    };
    poster.rate("before", 5.0).await;
    eventually("the rating counts", DEADLINE, || async {
        limits("before", "").await == [Some(20.2), Some(40.0)]
    })
    .await;

    let mut earned = document(0, 10.0, 20);
    earned["buckets"][1] =
        json!({"bucket_name": "writes", "refill_rate": 2, "capacity": 4, "earned": true});
    assert_eq!(node.put(&earned).await.status, 200);
    node.goes_by(1.0, TAKEN_OVER).await;
    // Who was rated before keeps what it has; newcomers start from the new limits.
    assert_eq!(limits("before", "").await, [Some(20.2), Some(40.0)]);
    poster.rate("after", 5.0).await;
    eventually("the rating counts", DEADLINE, || async {
        limits("after", "").await == [Some(10.2), Some(20.0)]
    })
    .await;
    // Two a second for who has ten.
    assert_eq!(limits("after", "writes.").await[0], Some(2.04));
    poster.rate("before", 5.0).await;
    eventually("the rating counts", DEADLINE, || async {
        limits("before", "writes.").await[0] == Some(4.08)
    })
    .await;
}

#[tokio::test]
async fn an_agent_reads_its_own_limits_and_why_whatever_they_are() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let node = Node::gateway(&redis, &upstream).await;
    assert_eq!(node.put(&document(0, 0.5, 2)).await.status, 200);
    node.goes_by(1.0, TAKEN_OVER).await;

    let fresh = node.limits("fresh").await;
    assert_eq!((&fresh["agent_id"], &fresh["held"]), (&json!("fresh"), &json!("none")));
    let default = &fresh["buckets"][0];
    assert_eq!((&default["level"], &default["full_in_ms"]), (&json!(2.0), &json!(0)));
    assert_eq!(default["routes"].as_array().unwrap().len(), 2);
    let writes = json!([{"path": "/v1/orders/*", "methods": [], "cost": 1}]);
    assert_eq!(
        (&fresh["buckets"][1]["bucket_name"], &fresh["buckets"][1]["routes"]),
        (&json!("writes"), &writes)
    );
    assert!(!fresh["why"]["sentences"].as_array().unwrap().is_empty(), "{fresh}");

    while node.ask("denied", "/").await.status == 200 {}
    let refused = node.ask("denied", "/").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.problem()["limits"], PAGE);
    assert_eq!(
        refused.header("link"),
        format!("<{PAGE}>; rel=\"help\"; type=\"application/json\"")
    );
    let denied = node.limits("denied").await;
    assert!(denied["buckets"][0]["level"].as_f64().unwrap() < 1.0, "{denied}");
    let what_to_do = denied["what_to_do"].as_str().unwrap();
    assert!(what_to_do.starts_with("Wait ") && what_to_do.contains("moltbook"), "{what_to_do}");

    let until_ms = (unix_time() + Duration::from_secs(3600)).as_millis().to_string();
    let _: u64 = redis.ask(&["HSET", "tb:banned", "banned_until", &until_ms]).await;
    let forbidden = node.ask("banned", "/").await;
    assert_eq!(forbidden.status, 403);
    assert_eq!(forbidden.problem()["limits"], PAGE);
    let banned = node.limits("banned").await;
    assert!(
        banned["ban"]["until_ms"].as_u64().unwrap().abs_diff(until_ms.parse().unwrap()) < 5_000
    );
    assert!(banned["what_to_do"].as_str().unwrap().starts_with("Stop sending"), "{banned}");

    // Neither costs a token, nor does any of it reach the upstream, nor do strangers see anything.
    let served = upstream.served();
    for _ in 0..50 {
        node.limits("looks").await;
    }
    assert_eq!(node.limits("looks").await["buckets"][0]["level"], 2.0);
    let url = format!("{}{PAGE}", node.merit.gateway());
    let stranger = node.client.get(&url, None).await.unwrap();
    assert_eq!(stranger.status, 401);
    assert!(!stranger.header("www-authenticate").is_empty());
    stranger.problem();
    let token = keys::agent("looks");
    let posted = node.client.post(&url, &token, &json!({})).await.unwrap();
    assert_eq!(posted.status, 405);
    assert_eq!(upstream.served(), served);
}

#[tokio::test]
async fn with_the_rights_that_are_documented_a_gateway_does_all_of_it_and_with_fewer_limits_hold() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    acl::allow(&redis, &[&GATEWAY[..], &LIVE].concat()).await;
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url()).role(Role::Gateway);
    settings.store = Some(format!(
        "url = \"{}\"\nusername = \"merit\"\npassword_env = \"REDIS_PASSWORD\"",
        redis.url()
    ));
    settings.environment = vec![("REDIS_PASSWORD".into(), "hunter2".into())];
    let mut node = Node::start(settings).await;
    assert_eq!(node.put(&document(0, 5.0, 10)).await.status, 200);
    node.goes_by(1.0, TAKEN_OVER).await;
    assert_eq!(node.limits("a1").await["held"], "none");

    node.merit.terminate().await;
    acl::allow(&redis, &GATEWAY).await;
    node.merit.restart().await;
    assert_eq!(capacity(&node.ask("a2", "/").await), 40);
    let page = node.limits("a2").await;
    assert_eq!((&page["held"], &page["why"]), (&Value::Null, &Value::Null));
    assert_eq!(page["buckets"][0]["capacity"], 40);
    let told = node.merit.output();
    assert_eq!(told.matches("buckets not read: those in force stay").count(), 1, "{told}");
}

#[tokio::test]
async fn without_the_page_its_path_is_the_upstreams() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let upstream = Upstream::start();
    let mut settings = Settings::new(&redis.url()).upstream(&upstream.url()).role(Role::Gateway);
    settings.environment = vec![("MERIT__GATEWAY__LIMITS_PAGE".into(), "false".into())];
    let node = Node::start(settings).await;
    let answer = node.ask("a1", PAGE).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["path"], PAGE);
    let until_ms = (unix_time() + Duration::from_secs(3600)).as_millis().to_string();
    let _: u64 = redis.ask(&["HSET", "tb:banned", "banned_until", &until_ms]).await;
    let forbidden = node.ask("banned", "/").await;
    assert_eq!(forbidden.problem().get("limits"), None);
    assert_eq!(forbidden.header("link"), "");
}
