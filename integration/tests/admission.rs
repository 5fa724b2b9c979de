//! Buckets by route, over real Redis, through the real gateway.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::time::Duration;

use http::Method;
use http_body_util::BodyExt as _;
use merit_integration::{
    Merit, Persistence, Redis, Settings, Upstream,
    client::{Answer, Client, request},
    keys,
};
use serde_json::json;

const ROUTES: &str = r#"
[[bucket]]
bucket_name = "writes"
refill_rate = 0.001
capacity    = 3

[[bucket]]
bucket_name = "watched"
refill_rate = 0.001
capacity    = 1
shadow      = true

[[route]]
path = "/free/*"
cost = 0

[[route]]
path    = "/v1/orders/*"
methods = ["POST"]
buckets = ["writes", "watched"]

[[route]]
path        = "/batch"
cost_header = { name = "x-batch", min = 1, max = 30 }
"#;

struct Stack {
    merit: Merit,
    upstream: Upstream,
    redis: Redis,
}

impl Stack {
    async fn start(gateway: &[(&str, &str)]) -> Self {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let upstream = Upstream::start();
        let mut settings = Settings::new(&redis.url()).upstream(&upstream.url());
        settings.tables = ROUTES.to_owned();
        let key = |(key, value): &(&str, &str)| (format!("MERIT__GATEWAY__{key}"), (*value).into());
        settings.environment = gateway.iter().map(key).collect();
        Self { merit: Merit::start(settings).await, upstream, redis }
    }

    async fn ask(
        &self,
        method: Method,
        agent: &str,
        path: &str,
        fields: &[(&str, &str)],
    ) -> Answer {
        let url = format!("{}{path}", self.merit.gateway());
        let request = request(method, &url, Some(&keys::agent(agent)), fields, "");
        Client::new().call(request).await.unwrap()
    }

    async fn order(&self, agent: &str) -> Answer {
        self.ask(Method::POST, agent, "/v1/orders/7", &[]).await
    }
}

/// Returns the gateway's `RateLimit`; the upstream sends one of its own, which comes first.
fn state(answer: &Answer) -> String {
    let fields: Vec<&str> =
        answer.headers.get_all("ratelimit").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!(fields[0], "\"upstream\";r=7;t=3");
    fields[1..].join(", ")
}

#[tokio::test]
async fn a_route_takes_from_all_of_its_buckets_or_from_none() {
    let stack = Stack::start(&[]).await;
    for left in ["2", "1", "0"] {
        let answer = stack.order("a1").await;
        assert_eq!(answer.status, 200, "{}", answer.text());
        let state = state(&answer);
        assert!(state.contains(&format!("\"writes\";r={left};")), "{state}");
        assert!(!state.contains("watched"), "{state}");
    }
    let refused = stack.order("a1").await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.problem()["violated-policies"], json!(["writes"]));
    // Refilled meanwhile, at 20 a second: but never by more than it lost to the three.
    let looked = stack.ask(Method::GET, "a1", "/free/x", &[]).await;
    assert!(state(&looked).contains("\"moltbook-agent-bucket\";r="));
    assert_eq!(stack.upstream.served(), 4, "the refused one did not reach the upstream");

    // An operator's hand on the named bucket holds from the next request.
    let () = stack
        .redis
        .ask(&["HSET", "tb:a2", "writes.capacity", "1", "writes.refill_rate", "0.001"])
        .await;
    assert_eq!(stack.order("a2").await.status, 200);
    assert_eq!(stack.order("a2").await.status, 429);
}

#[tokio::test]
async fn no_spelling_of_a_path_dodges_its_bucket() {
    let stack = Stack::start(&[]).await;
    let alike = ["/V1/Orders/7/", "/v1/%6Frders/7", "/v1/orders//7"];
    for (agent, path) in ["a2", "a3", "a4"].into_iter().zip(alike) {
        let answer = stack.ask(Method::POST, agent, path, &[]).await;
        assert!(state(&answer).contains("\"writes\";r=2;"), "{path}");
    }
    let served = stack.upstream.served();
    for path in ["/free/..%2fv1/orders/7", "/free/%2e%2e/v1/orders/7", "//v1/orders/7"] {
        assert_eq!(stack.ask(Method::POST, "a1", path, &[]).await.status, 400, "{path}");
    }
    assert_eq!(stack.upstream.served(), served);
}

#[tokio::test]
async fn a_cost_from_a_field_is_taken_within_its_bounds() {
    let stack = Stack::start(&[]).await;
    let answer = stack.ask(Method::GET, "a1", "/batch", &[("x-batch", "999")]).await;
    assert!(state(&answer).contains(";r=10;"), "{}", state(&answer));
}

#[tokio::test]
async fn a_place_in_flight_is_held_until_the_answer_has_ended_and_the_allowed_need_none() {
    let gateway = [
        ("CONCURRENCY_PER_AGENT", "1"),
        ("ALLOW", r#"["vip"]"#),
        ("X_RATE_LIMIT_HEADERS", "true"),
        ("EXPOSE_HEADERS", "true"),
    ];
    let stack = Stack::start(&gateway).await;
    let url = format!("{}/trickle", stack.merit.gateway());
    let trickle = request(Method::GET, &url, Some(&keys::agent("a1")), &[], "");
    let mut answer = Client::new().send(trickle).await.unwrap();
    assert!(answer.headers().contains_key("x-ratelimit-remaining"));
    assert!(answer.headers().contains_key("access-control-expose-headers"));
    answer.body_mut().frame().await.unwrap().unwrap();
    let refused = stack.ask(Method::GET, "a1", "/", &[]).await;
    assert_eq!(refused.status, 429);
    assert_eq!(refused.problem()["violated-policies"], json!(["concurrency"]));
    assert_eq!(stack.ask(Method::GET, "a2", "/", &[]).await.status, 200);

    stack.upstream.release();
    answer.into_body().collect().await.unwrap();
    // The gateway knows the end of the answer a moment after its last byte was sent.
    let free = async { while stack.ask(Method::GET, "a1", "/", &[]).await.status != 200 {} };
    tokio::time::timeout(Duration::from_secs(20), free).await.unwrap();

    for _ in 0..45 {
        let answer = stack.ask(Method::GET, "vip", "/", &[]).await;
        assert_eq!(answer.status, 200);
    }
    let exists: bool = stack.redis.ask(&["EXISTS", "tb:vip"]).await;
    assert!(!exists, "an allowed agent was charged");
}
