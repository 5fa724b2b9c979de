use axum::body::to_bytes;
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::{Value, json};
use tokio::time::advance;
use tower::ServiceExt as _;
use tower_merit::{AdmissionLayer, Bucket as Configured, JwtIdentity, MemoryStore, Route as Taken};

use super::{super::Config, *};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

struct Gateway {
    router: Router,
    live: Live<MemoryStore, tower_merit::JwtVerifier>,
    store: MemoryStore,
}

fn gateway() -> Gateway {
    let store = MemoryStore::new();
    let admission = AdmissionLayer::builder(store.clone())
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Configured::per_second(2.0).capacity(4).named("all"))
        .bucket(Configured::per_second(0.5).capacity(3).named("writes"))
        .bucket(Configured::per_second(1.0).named("tried-out").shadow(true))
        .route(Taken::path("/orders").bucket("writes").cost(3).default_cost(1))
        .allow([agent("free")])
        .build()
        .unwrap();
    let charges = vec![Charged {
        path: "/orders".to_owned(),
        methods: Vec::new(),
        buckets: vec!["writes".to_owned()],
        cost: Price::Tokens(3),
        default_cost: Some(1),
    }];
    let config = Config { upstream: "http://127.0.0.1:1".to_owned(), ..Config::default() };
    let live = Live::new(&config, admission, charges, None).unwrap();
    let explain: Explain = Arc::new(|_, record| Explained {
        held: "none".to_owned(),
        sentences: vec![format!("rev {}", record.rev)],
    });
    let page = limits(live.clone(), store.clone(), explain, NonZeroU32::new(8));
    Gateway { router: live.router().merge(page), live, store }
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

impl Gateway {
    async fn ask(&self, method: &str, path: &str, agent: &str) -> Response {
        let claims = json!({"agent_id": agent, "exp": 4_000_000_000_u64});
        let key = EncodingKey::from_secret(SECRET);
        let token = encode(&Header::default(), &claims, &key).unwrap();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {token}"))
            .body(Body::empty())
            .unwrap();
        self.router.clone().oneshot(request).await.unwrap()
    }

    /// Sends a request that is charged, and that the proxy itself answers when it passes: 501.
    async fn charge(&self, path: &str, agent: &str) -> u16 {
        self.ask("CONNECT", path, agent).await.status().as_u16()
    }

    async fn limits(&self, agent: &str) -> Value {
        let response = self.ask("GET", LIMITS_PAGE, agent).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["cache-control"], "private, no-store");
        let body = to_bytes(response.into_body(), 1 << 20).await.unwrap();
        serde_json::from_slice(&body).unwrap()
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_reads_its_buckets_what_charges_them_and_is_charged_nothing() {
    let gateway = gateway();
    for _ in 0..20 {
        let page = gateway.limits("fresh").await;
        assert_eq!(page["agent_id"], "fresh");
        assert_eq!((&page["ban"], &page["allowed"]), (&Value::Null, &json!(false)));
        assert_eq!(page["concurrency_per_agent"], 8);
        assert_eq!(
            (&page["held"], &page["why"]["sentences"][0]),
            (&json!("none"), &json!("rev 0"))
        );
        let expected = json!([
            {"bucket_name": "all", "default": true, "refill_rate": 2.0, "capacity": 4, "level": 4.0,
             "full_in_ms": 0, "routes": [{"path": "/orders", "methods": [], "cost": 1},
                                         {"path": "/*", "methods": [], "cost": 1}]},
            {"bucket_name": "writes", "default": false, "refill_rate": 0.5, "capacity": 3,
             "level": 3.0, "full_in_ms": 0,
             "routes": [{"path": "/orders", "methods": [], "cost": 3}]},
        ]);
        assert_eq!(page["buckets"], expected);
        assert!(page["what_to_do"].as_str().unwrap().starts_with("Nothing: there are tokens."));
        advance(REMEMBERED).await;
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_out_of_tokens_is_told_how_long_to_wait() {
    let gateway = gateway();
    for _ in 0..4 {
        assert_eq!(gateway.charge("/", "busy").await, 501);
    }
    assert_eq!(gateway.charge("/", "busy").await, 429);
    let page = gateway.limits("busy").await;
    assert_eq!(page["buckets"][0]["level"], 0.0);
    assert_eq!(page["buckets"][0]["full_in_ms"], 2_000);
    let what_to_do = page["what_to_do"].as_str().unwrap();
    assert!(what_to_do.starts_with("Wait 500 ms: bucket `all` holds less"), "{what_to_do}");
}

#[tokio::test(start_paused = true)]
async fn a_banned_agent_reads_until_when() {
    let gateway = gateway();
    let until_ms = u64::try_from(clock::unix_time().as_millis()).unwrap() + 3_600_000;
    gateway.store.ban(&agent("banned"), until_ms);
    let page = gateway.limits("banned").await;
    assert!(page["ban"]["for_ms"].as_u64().unwrap().abs_diff(3_600_000) < 60_000, "{page}");
    assert_eq!(page["buckets"][0]["level"], Value::Null);
    assert_eq!(page["buckets"][0]["capacity"], 4);
    assert!(page["what_to_do"].as_str().unwrap().starts_with("Stop sending: "));
    let free = gateway.limits("free").await;
    assert!(free["what_to_do"].as_str().unwrap().starts_with("Nothing: this agent is on the list"));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_remembered_for_a_second_for_its_agent_alone() {
    let gateway = gateway();
    gateway.limits("a").await;
    gateway.charge("/", "a").await;
    gateway.charge("/", "b").await;
    assert_eq!(gateway.limits("a").await["buckets"][0]["level"], 4.0);
    assert_eq!(gateway.limits("b").await["buckets"][0]["level"], 3.0);
    advance(REMEMBERED).await;
    // A second later both have all again, and one that asks once more has not.
    gateway.charge("/", "a").await;
    assert_eq!(gateway.limits("a").await["buckets"][0]["level"], 3.0);
}

#[tokio::test]
async fn nothing_of_the_page_is_passed_on_and_strangers_are_refused() {
    let gateway = gateway();
    let request = Request::get(LIMITS_PAGE).body(Body::empty()).unwrap();
    let refused = gateway.router.clone().oneshot(request).await.unwrap();
    assert_eq!(refused.status(), 401);
    assert!(refused.headers().contains_key("www-authenticate"));
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        assert_eq!(gateway.ask(method, LIMITS_PAGE, "a").await.status(), 405, "{method}");
    }
    assert_eq!(gateway.ask("HEAD", LIMITS_PAGE, "a").await.status(), 200);
}

#[tokio::test(start_paused = true)]
async fn buckets_that_replace_others_hold_for_the_next_request_and_none_is_lost() {
    let gateway = gateway();
    let before = gateway.live.admission();
    gateway.charge("/", "a").await;
    let buckets = [Configured::per_second(1.0).capacity(100).named("all")];
    let next = before.with_buckets(buckets, [Taken::path("/free").cost(0)]).unwrap();
    gateway.live.put(next, Vec::new());
    let page = gateway.limits("a").await;
    // Three were left of four: more room holds no more tokens.
    assert_eq!(page["buckets"].as_array().unwrap().len(), 1);
    assert_eq!(page["buckets"][0]["capacity"], 100);
    assert_eq!(page["buckets"][0]["level"], 3.0);
    assert_eq!(gateway.charge("/free", "a").await, 501);
}
