//! Merit as the rate limit service of a real Envoy, and over gRPC as any proxy asks.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderValue, Method, uri::PathAndQuery};
use merit_integration::{
    Envoy, Merit, Persistence, Redis, Role, Settings, Upstream,
    client::{Answer, Client, request},
    eventually, keys, ports,
};
use merit_sidecar::rls::proto::{
    Code, Entry, RateLimitDescriptor, RateLimitRequest, RateLimitResponse,
};
use serde_json::json;
use tonic::{client::Grpc, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_prost::ProstCodec;

const DEADLINE: Duration = Duration::from_secs(30);
const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";

/// Redis, Merit as its rate limit service, and where that listens.
struct Stand {
    merit: Merit,
    port: u16,
    redis: Redis,
}

impl Stand {
    async fn start(role: Role, rls: &str, on_outage: &'static str) -> Self {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let port = ports::free();
        let mut settings = Settings::new(&redis.url()).role(role);
        settings.on_outage = on_outage;
        settings.tables = format!(
            "[rls]\nlisten = \"127.0.0.1:{port}\"\ndomain = \"api\"\n{rls}\n\
             [[bucket]]\nbucket_name = \"writes\"\nrefill_rate = 0.01\ncapacity = 3\n\
             [[route]]\npath = \"/v1/orders/*\"\nmethods = [\"POST\"]\nbuckets = [\"writes\"]\n\
             [[route]]\npath = \"/v1/talk\"\ncost_header = {{ name = \"x-most\", max = 30 }}\n\
             settle_header = \"x-used\"\nstrip_settle_header = true\n"
        );
        Self { merit: Merit::start(settings).await, port, redis }
    }

    async fn channel(&self) -> Channel {
        let url = format!("http://127.0.0.1:{}", self.port);
        Channel::from_shared(url).unwrap().connect().await.expect("the listener is there")
    }

    /// An Envoy that asks it, for the service at `upstream`.
    async fn envoy(&self, upstream: &Upstream) -> Envoy {
        Envoy::start(port_of(&upstream.url()), self.port, |text| text).await
    }
}

fn port_of(url: &str) -> u16 {
    url.rsplit(':').next().unwrap().parse().unwrap()
}

async fn get(envoy: &Envoy, token: &str) -> Answer {
    let url = format!("{}/echo", envoy.url());
    Client::new().get(&url, Some(token)).await.unwrap()
}

/// Returns every `RateLimit` field of an answer: the stand-in sends one as well.
fn states(answer: &Answer) -> String {
    let fields = answer.headers.get_all("ratelimit").iter();
    fields.map(|field| field.to_str().unwrap()).collect::<Vec<_>>().join(", ")
}

#[tokio::test]
async fn envoy_passes_an_agent_until_its_bucket_is_empty_and_says_why() {
    let stand = Stand::start(Role::Rls, "identify = \"request\"", "local").await;
    let upstream = Upstream::start();
    let envoy = stand.envoy(&upstream).await;
    let (client, token, url) = (Client::new(), keys::agent("a1"), format!("{}/echo", envoy.url()));
    // The first request may find the service's health still unknown.
    eventually("envoy reaches merit", DEADLINE, || async {
        get(&envoy, &keys::agent("a0")).await.status == 200
    })
    .await;
    let (began, before) = (Instant::now(), upstream.served());
    let (mut passed, mut denied) = (0_u32, None);
    for _ in 0..120 {
        let answer = client.get(&url, Some(&token)).await.unwrap();
        match answer.status.as_u16() {
            200 => {
                passed += 1;
                let state = states(&answer);
                assert!(state.contains("\"moltbook-agent-bucket\";r="), "{state}");
            }
            429 => denied = Some(answer),
            status => panic!("{status}: {}", envoy.output()),
        }
    }
    // 20 a second and 40 at once, as `Settings` has it.
    let most = 40.0 + 20.0 * began.elapsed().as_secs_f64();
    assert!(passed >= 40 && f64::from(passed) <= most, "{passed} of at most {most}");
    assert_eq!(upstream.served() - before, u64::from(passed), "what is refused goes nowhere");
    let denied = denied.expect("more than forty were asked for at once");
    assert_eq!(denied.header("content-type"), "application/problem+json");
    assert_eq!(denied.header("retry-after"), "1");
    assert_eq!(states(&denied), "\"moltbook-agent-bucket\";r=0;t=1");
    assert_eq!(denied.json()["violated-policies"], json!(["moltbook-agent-bucket"]));
    // Others have tokens of their own, and who proves nothing has none.
    assert_eq!(get(&envoy, &keys::agent("a2")).await.status, 200);
    assert_eq!(client.get(&url, None).await.unwrap().status, 401);
    let forged = get(&envoy, &format!("{}x", keys::agent("a3"))).await;
    assert_eq!((forged.status.as_u16(), &forged.json()["status"]), (429, &json!(401)));
    // Bytes that are no text: the proxy must not take an error of ours for a yes.
    let mut odd = request(Method::GET, &url, None, &[], Bytes::new());
    let value = HeaderValue::from_bytes(b"Bearer \xff\xfe").unwrap();
    odd.headers_mut().insert("authorization", value);
    let answer = client.call(odd).await.unwrap();
    assert_eq!((answer.status.as_u16(), &answer.json()["status"]), (429, &json!(401)));
    let order = format!("{}/v1/orders/7", envoy.url());
    let mut statuses = Vec::new();
    for _ in 0..4 {
        let answer = client.post(&order, &keys::agent("a4"), &json!({})).await.unwrap();
        statuses.push((answer.status.as_u16(), states(&answer).contains("\"writes\"")));
    }
    assert_eq!(statuses.pop(), Some((429, true)));
    assert!(statuses.iter().all(|(status, named)| *status != 429 && *named), "{statuses:?}");
}

#[tokio::test]
async fn a_grpc_call_that_may_not_pass_ends_with_resource_exhausted() {
    let stand = Stand::start(Role::Rls, "identify = \"request\"", "local").await;
    let upstream = Upstream::start();
    let envoy = stand.envoy(&upstream).await;
    let channel = Channel::from_shared(envoy.url()).unwrap().connect().await.unwrap();
    let mut grpc = Grpc::new(channel);
    let mut codes = BTreeMap::new();
    for _ in 0..60 {
        let mut request = tonic::Request::new(());
        let token = format!("Bearer {}", keys::agent("a1")).parse().unwrap();
        request.metadata_mut().insert("authorization", token);
        let path = PathAndQuery::from_static("/shop.v1.Shop/Buy");
        grpc.ready().await.unwrap();
        let refused = grpc.unary(request, path, ProstCodec::<(), ()>::default()).await;
        let status = refused.expect_err("the stand-in speaks no gRPC");
        if status.code() == tonic::Code::ResourceExhausted {
            let told = status.metadata();
            assert!(told.contains_key("retry-after"), "{status:?}");
            assert_eq!(told.get("content-type").unwrap(), "application/grpc", "{status:?}");
        }
        *codes.entry(format!("{:?}", status.code())).or_insert(0) += 1;
    }
    assert!(codes["ResourceExhausted"] >= 10, "{codes:?}");
}

#[tokio::test]
async fn a_rating_moves_what_envoy_lets_through() {
    let stand = Stand::start(Role::All, "identify = \"request\"", "local").await;
    let upstream = Upstream::start();
    let envoy = stand.envoy(&upstream).await;
    let policy =
        async || get(&envoy, &keys::agent("a1")).await.header("ratelimit-policy").to_owned();
    eventually("envoy reaches merit", DEADLINE, || async { !policy().await.is_empty() }).await;
    let before = policy().await;
    let rating = json!({"agent_id": "a1", "user_id": "u1", "score": 5.0});
    let url = format!("{}/v1/rating", stand.merit.ingest());
    let posted = Client::new().post(&url, &keys::rater("u1"), &rating).await.unwrap();
    assert_eq!(posted.status, 202);
    eventually("the rating shows", DEADLINE, || async { policy().await != before }).await;
}

#[tokio::test]
async fn without_redis_the_outage_policy_decides_and_without_merit_envoy_refuses() {
    for (on_outage, status) in [("closed", 429), ("local", 200)] {
        let mut stand = Stand::start(Role::Rls, "identify = \"request\"", on_outage).await;
        let upstream = Upstream::start();
        let envoy = stand.envoy(&upstream).await;
        let token = keys::agent("a1");
        eventually("envoy reaches merit", DEADLINE, || async {
            get(&envoy, &token).await.status == 200
        })
        .await;
        stand.redis.kill9();
        let answer = get(&envoy, &token).await;
        assert_eq!(answer.status.as_u16(), status, "{on_outage}: {:?}", answer.headers);
        if status == 429 {
            assert_eq!(answer.json()["status"], json!(503));
            assert!(!answer.header("retry-after").is_empty());
        }
        stand.merit.terminate().await;
        let answer = get(&envoy, &token).await;
        assert!(answer.status.is_server_error(), "{on_outage}: {}", answer.status);
    }
}

async fn ask(
    channel: &Channel,
    request: RateLimitRequest,
) -> Result<RateLimitResponse, tonic::Status> {
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path =
        PathAndQuery::from_static("/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
    let codec = ProstCodec::<RateLimitRequest, RateLimitResponse>::default();
    grpc.unary(tonic::Request::new(request), path, codec).await.map(tonic::Response::into_inner)
}

fn about(agents: usize) -> RateLimitRequest {
    let descriptor = |_| RateLimitDescriptor {
        entries: vec![Entry { key: "agent".to_owned(), value: Bytes::from_static(b"a1") }],
        ..RateLimitDescriptor::default()
    };
    let descriptors = (0..agents).map(descriptor).collect();
    RateLimitRequest { domain: "api".to_owned(), descriptors, hits_addend: 0 }
}

#[tokio::test]
async fn a_proxy_that_knows_the_agent_names_it() {
    let stand = Stand::start(Role::Rls, "", "local").await;
    let channel = stand.channel().await;
    let answer = ask(&channel, about(1)).await.unwrap();
    assert_eq!(answer.overall_code(), Code::Ok);
    assert_eq!(answer.statuses[0].limit_remaining, 39);
    // What would be settled at the end is reserved whole, and stands.
    let mut talk = about(1);
    let path = Entry { key: "path".to_owned(), value: Bytes::from_static(b"/v1/talk") };
    talk.descriptors[0].entries.push(path);
    talk.descriptors[0].entries[0].value = Bytes::from_static(b"a2");
    let answer = ask(&channel, talk).await.unwrap();
    assert_eq!(answer.statuses[0].limit_remaining, 10);
    // The same bucket as everybody's who asks that Redis.
    assert!(stand.redis.ask::<bool>(&["EXISTS", "tb:a1"]).await);
    let refused = ask(&channel, about(257)).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    assert_eq!(refused.message(), "descriptors: at most 256 a request, not 257");
    let mut grpc = Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let path = PathAndQuery::from_static("/envoy.service.ratelimit.v3.RateLimitService/No");
    let codec = ProstCodec::<RateLimitRequest, RateLimitResponse>::default();
    let refused = grpc.unary(tonic::Request::new(about(1)), path, codec).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    let counted = stand.merit.series("merit_rls_descriptors_total{outcome=\"ok\"}").await;
    assert_eq!(counted, Some(2.0));
}

#[tokio::test]
async fn buckets_that_are_changed_are_in_force_for_proxies_too() {
    let (redis, port, admin) =
        (Redis::start(Persistence::SnapshotOnDemand).await, ports::free(), ports::free());
    let mut settings = Settings::new(&redis.url()).role(Role::Rls);
    settings.tables = format!(
        "[rls]\nlisten = \"127.0.0.1:{port}\"\n\n\
         [admin]\nlisten = \"127.0.0.1:{admin}\"\ntoken_env = \"MERIT_ADMIN_TOKEN\"\n"
    );
    let token = "a-token-of-an-operator";
    settings.environment.push(("MERIT_ADMIN_TOKEN".to_owned(), token.to_owned()));
    let merit = Merit::start(settings).await;
    let stand = Stand { merit, port, redis };
    let channel = stand.channel().await;
    let left = async || ask(&channel, about(1)).await.unwrap().statuses[0].limit_remaining;
    assert_eq!(left().await, 39);
    let document = json!({"rev": 0, "routes": [], "buckets": [
        {"bucket_name": "moltbook-agent-bucket", "default": true, "refill_rate": 0.01,
         "capacity": 5, "key_selector": "jwt.claims.agent_id"},
    ]});
    let url = format!("http://127.0.0.1:{admin}/buckets");
    let fields = [("content-type", "application/json")];
    let put = request(Method::PUT, &url, Some(token), &fields, document.to_string());
    let answer = Client::new().call(put).await.unwrap();
    assert!(answer.status.is_success(), "{}", answer.text());
    eventually("the buckets are in force", DEADLINE, || async { left().await <= 5 }).await;
}

#[tokio::test]
async fn health_says_serving_and_then_no_more() {
    let mut stand = Stand::start(Role::Rls, "", "local").await;
    let channel = stand.channel().await;
    for service in ["", SERVICE] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let mut health = HealthClient::new(channel.clone());
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service:?}");
    }
    let request = HealthCheckRequest { service: SERVICE.to_owned() };
    let mut watch = HealthClient::new(channel).watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let ending = stand.merit.terminate();
    let told = async { watch.message().await.unwrap().unwrap().status() };
    let (_, told) = tokio::join!(ending, told);
    assert_eq!(told, ServingStatus::NotServing);
}

#[tokio::test]
async fn a_role_without_its_listener_and_an_unknown_key_are_refused_at_once() {
    let faults = [
        ("", "rls.listen: must be set for role `rls`"),
        ("[rls]\nlisten = \"127.0.0.1:1\"\nagent_key = \"\"\n", "rls.agent_key: is empty"),
        ("[rls]\nlisten = \"127.0.0.1:1\"\nagents = 1\n", "rls.agents"),
    ];
    for (table, fault) in faults {
        let mut settings = Settings::new("redis://127.0.0.1:1").role(Role::Rls);
        settings.tables = table.to_owned();
        let mut merit = Merit::launch(settings);
        let (status, said) = merit.ended(DEADLINE).await;
        assert_eq!(status.code(), Some(2), "{table:?}: {said}");
        assert!(said.contains(fault), "{table:?}: {said}");
    }
}
