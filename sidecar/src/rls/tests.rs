use std::{collections::BTreeMap, future::Ready};

use tower_merit::{
    Bucket, Caller, MemoryStore, PeerIdentity, Route, admission::AdmissionBuilder,
    identity::IdentityError,
};

use super::{
    proto::{Entry, RateLimitDescriptor, UInt64Value},
    *,
};

/// Nobody is asked: the proxy names agents.
#[derive(Clone, Debug)]
enum Nobody {}

impl Identify for Nobody {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, _: &Request<B>) -> Self::Future {
        match *self {}
    }
}

fn builder<I: Identify>(callers: Callers<I>) -> AdmissionBuilder<MemoryStore, Callers<I>> {
    AdmissionLayer::builder(MemoryStore::new())
        .identity(callers)
        .bucket(Bucket::per_second(0.001).capacity(10).named("requests"))
        .bucket(Bucket::per_second(0.001).capacity(2).named("orders"))
        .cost(cost(1))
        .x_rate_limit_headers(true)
        .route(
            Route::path("/orders/*").methods([http::Method::POST]).bucket("orders").cost(cost(1)),
        )
}

fn named(config: &Config) -> Live<MemoryStore, Nobody> {
    let layer = builder(Callers::<Nobody>::named()).build().unwrap();
    Live::new(config, &"jwt.claims.agent_id".parse().unwrap(), layer, false)
}

fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry = |(key, value): &(&str, &str)| Entry {
        key: (*key).into(),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    RateLimitDescriptor {
        entries: entries.iter().map(entry).collect(),
        ..RateLimitDescriptor::default()
    }
}

fn asking(descriptors: Vec<RateLimitDescriptor>) -> RateLimitRequest {
    RateLimitRequest { domain: "api".into(), descriptors, hits_addend: 0 }
}

fn left(answer: &RateLimitResponse) -> Vec<(Code, u32)> {
    answer.statuses.iter().map(|status| (status.code(), status.limit_remaining)).collect()
}

fn fields(answer: &RateLimitResponse) -> BTreeMap<&str, &str> {
    answer.response_headers_to_add.iter().map(|field| (&*field.key, &*field.value)).collect()
}

#[tokio::test]
async fn an_agents_bucket_runs_out_and_the_caller_reads_why() {
    let live = named(&Config::default());
    let request = asking(vec![descriptor(&[("agent", "a1")])]);
    for spent in 1..=10 {
        let answer = live.decide(&request).await;
        assert_eq!(answer.overall_code(), Code::Ok);
        assert_eq!(left(&answer), [(Code::Ok, 10 - spent)]);
        assert!(fields(&answer).contains_key("ratelimit"), "{answer:?}");
        assert!(!fields(&answer).keys().any(|name| name.starts_with("x-")), "{answer:?}");
        assert_eq!(answer.raw_body, Bytes::new());
    }
    let answer = live.decide(&request).await;
    assert_eq!(answer.overall_code(), Code::OverLimit);
    let fields = fields(&answer);
    let wait: i64 = fields["retry-after"].parse().unwrap();
    assert!((999..=1000).contains(&wait), "{wait}");
    assert_eq!(answer.statuses[0].duration_until_reset.unwrap().seconds, wait);
    assert_eq!(fields["content-type"], "application/problem+json");
    assert!(fields["ratelimit"].starts_with("\"requests\";r=0;t="), "{fields:?}");
    assert!(!fields.contains_key("content-length"), "the proxy counts for itself");
    let problem: serde_json::Value = serde_json::from_slice(&answer.raw_body).unwrap();
    assert_eq!(problem["violated-policies"], serde_json::json!(["requests"]));
    // Somebody else has tokens of their own.
    let other = live.decide(&asking(vec![descriptor(&[("agent", "a2")])])).await;
    assert_eq!(left(&other), [(Code::Ok, 9)]);
}

#[tokio::test]
async fn path_and_method_choose_the_route() {
    let live = named(&Config::default());
    let order =
        |method| descriptor(&[("agent", "a1"), ("path", "/orders/7?deep=1"), ("method", method)]);
    for code in [Code::Ok, Code::Ok, Code::OverLimit] {
        let answer = live.decide(&asking(vec![order("POST")])).await;
        assert_eq!(answer.overall_code(), code);
        assert!(fields(&answer)["ratelimit"].contains("\"orders\""));
    }
    let answer = live.decide(&asking(vec![order("GET")])).await;
    assert_eq!(left(&answer), [(Code::Ok, 7)], "neither the bucket nor what was refused");
}

#[tokio::test]
async fn hits_multiply_and_those_of_a_descriptor_are_its_own() {
    let live = named(&Config::default());
    let mut request = asking(vec![descriptor(&[("agent", "a1")])]);
    request.hits_addend = 4;
    assert_eq!(left(&live.decide(&request).await), [(Code::Ok, 6)]);
    request.descriptors[0].hits_addend = Some(UInt64Value { value: 0 });
    assert_eq!(left(&live.decide(&request).await), [(Code::Ok, 6)], "zero looks");
    request.descriptors[0].hits_addend = Some(UInt64Value { value: u64::MAX });
    assert_eq!(live.decide(&request).await.overall_code(), Code::OverLimit);
    request.descriptors[0].hits_addend = Some(UInt64Value { value: 5 });
    request.descriptors[0].is_negative_hits = true;
    assert_eq!(left(&live.decide(&request).await), [(Code::Ok, 6)], "neither given back nor taken");
}

#[tokio::test]
async fn a_look_tells_whether_anything_is_left() {
    let live = named(&Config::default());
    let mut request = asking(vec![descriptor(&[("agent", "a1")])]);
    request.hits_addend = 10;
    assert_eq!(left(&live.decide(&request).await), [(Code::Ok, 0)]);
    request.descriptors[0].hits_addend = Some(UInt64Value { value: 0 });
    let answer = live.decide(&request).await;
    assert_eq!(left(&answer), [(Code::OverLimit, 0)]);
    assert_eq!(fields(&answer)["content-type"], "application/problem+json");
    assert!(!answer.raw_body.is_empty());
}

/// A proxy may be told to pass `content-type` on; gRPC's way to refuse is an answer with status 200.
#[tokio::test]
async fn a_caller_that_speaks_grpc_is_refused_like_any_other() {
    let live = named(&Config::default());
    let entries = [("agent", "a1"), ("content-type", "application/grpc")];
    let mut request = asking(vec![descriptor(&entries)]);
    request.hits_addend = 10;
    assert_eq!(live.decide(&request).await.overall_code(), Code::Ok);
    let answer = live.decide(&request).await;
    assert_eq!(answer.overall_code(), Code::OverLimit);
    assert_eq!(fields(&answer)["content-type"], "application/problem+json");
}

#[tokio::test]
async fn each_descriptor_is_a_limit_of_its_own() {
    let live = named(&Config::default());
    let mut both = asking(vec![descriptor(&[("agent", "a1")]), descriptor(&[("agent", "a2")])]);
    both.descriptors[1].hits_addend = Some(UInt64Value { value: 10 });
    let answer = live.decide(&both).await;
    assert_eq!(left(&answer), [(Code::Ok, 9), (Code::Ok, 0)]);
    let answer = live.decide(&both).await;
    assert_eq!(answer.overall_code(), Code::OverLimit);
    assert_eq!(left(&answer), [(Code::Ok, 8), (Code::OverLimit, 0)]);
    assert!(fields(&answer).contains_key("retry-after"), "told of what was over: {answer:?}");
}

#[tokio::test]
async fn what_is_about_no_agent_is_no_limit_of_ours() {
    let live = named(&Config { domain: Some("api".into()), ..Config::default() });
    let anonymous = asking(vec![descriptor(&[("generic_key", "slow")])]);
    let elsewhere =
        RateLimitRequest { domain: "mail".into(), ..asking(vec![descriptor(&[("agent", "a1")])]) };
    for request in [anonymous, elsewhere, asking(Vec::new())] {
        let answer = live.decide(&request).await;
        assert_eq!(answer.overall_code(), Code::Ok, "{request:?}");
        assert_eq!(answer.statuses.len(), request.descriptors.len());
        assert_eq!(answer.response_headers_to_add, []);
    }
    let answer = live.decide(&asking(vec![descriptor(&[("agent", "a1")])])).await;
    assert_eq!(left(&answer), [(Code::Ok, 9)], "nothing was charged before");
}

#[tokio::test]
async fn garbage_never_passes() {
    let live = named(&Config::default());
    for entries in [
        &[("agent", "")][..],
        &[("agent", "no spaces please")],
        &[("agent", "a1"), ("agent", "a2")],
        &[("agent", "a1"), ("agent", "a1")],
        &[("agent", "key-of-a-partner")],
        &[("agent", "ip-203.0.113.9")],
        &[("agent", "a1"), ("path", "/orders/1"), ("path", "/")],
        &[("agent", "a1"), ("path", "orders")],
        &[("agent", "a1"), ("path", "/a b")],
        &[("agent", "a1"), ("path", "/orders//../7"), ("method", "POST")],
        &[("agent", "a1"), ("method", "G ET")],
        &[("agent", "a1"), ("remote_address", "here")],
        &[("agent", "a1"), ("x-size", "1\n2")],
    ] {
        let answer = live.decide(&asking(vec![descriptor(entries)])).await;
        assert_eq!(answer.overall_code(), Code::OverLimit, "{entries:?}");
        let problem: serde_json::Value = serde_json::from_slice(&answer.raw_body).unwrap();
        assert!(problem["status"].as_u64().unwrap() < 429, "{entries:?}: {problem}");
    }
    // What a caller sends may be no text at all: Envoy passes it on as it is.
    for key in ["agent", "path", "method", "remote_address", "x-size\n"] {
        let mut one = descriptor(&[("agent", "a1")]);
        one.entries.retain(|entry| entry.key != key);
        one.entries.push(Entry { key: key.to_owned(), value: Bytes::from_static(b"\xff\n") });
        let answer = live.decide(&asking(vec![one])).await;
        assert_eq!(answer.overall_code() == Code::OverLimit, key != "x-size\n", "{key}");
    }
    let many: Vec<(String, &str)> = (0..100).map(|n| (format!("x-{n}"), "1")).collect();
    let mut entries: Vec<(&str, &str)> = many.iter().map(|(key, one)| (&**key, *one)).collect();
    entries.push(("agent", "a1"));
    let answer = live.decide(&asking(vec![descriptor(&entries)])).await;
    assert_eq!(answer.overall_code(), Code::OverLimit);
    let answer = live.decide(&asking(vec![descriptor(&[("agent", "a1")])])).await;
    assert_eq!(left(&answer), [(Code::Ok, 8)], "nobody was charged for what was refused");
}

#[tokio::test]
async fn a_caller_proves_itself_by_what_the_proxy_passes_on() {
    let config = Config { identify: Identified::Request, ..Config::default() };
    let layer = builder(Callers::proved_to(PeerIdentity::new())).build().unwrap();
    let live = Live::new(&config, &"peer.ip".parse().unwrap(), layer, true);
    let from = |address| asking(vec![descriptor(&[("remote_address", address), ("agent", "a1")])]);
    let answer = live.decide(&from("192.0.2.7")).await;
    assert_eq!(left(&answer), [(Code::Ok, 9)]);
    assert_eq!(fields(&answer)["x-ratelimit-remaining"], "9");
    let answer = live.decide(&from("192.0.2.8")).await;
    assert_eq!(left(&answer), [(Code::Ok, 9)], "an entry `agent` names nobody here");
    let answer = live.decide(&asking(vec![descriptor(&[("agent", "a1")])])).await;
    assert!(fields(&answer).is_empty(), "about nobody: {answer:?}");
}

#[tokio::test]
async fn other_buckets_are_in_force_from_one_request_to_the_next() {
    let live = named(&Config::default());
    let request = asking(vec![descriptor(&[("agent", "a1")])]);
    assert_eq!(left(&live.decide(&request).await), [(Code::Ok, 9)]);
    let fewer = [Bucket::per_second(0.001).capacity(3)];
    live.put(live.admission().with_buckets(fewer, []).unwrap());
    assert_eq!(left(&live.decide(&request).await), [(Code::Ok, 2)]);
}
