//! What a request is charged: routes, several buckets, costs, outage policies by route.

use std::{future::ready, time::Duration};

use crate::support::{Named, agent, ask, builder, get, of, with, with_writes};
use http::{Method, StatusCode};
use tower_merit::{
    AdmissionLayer, Bucket, BuildError, Cost, MemoryStore, Outage, Route, Spend,
    bucket::Limits,
    store::{Charge, Settlement, StoreError, Verdict},
};

fn orders() -> Route {
    Route::path("/v1/orders/*").methods([Method::POST]).bucket("writes")
}

#[tokio::test(start_paused = true)]
async fn a_route_charges_its_bucket_and_the_default_one() {
    let layer = with_writes().route(orders()).build().unwrap();
    let answer = ask(&layer, of("POST", "/v1/orders/7")).await;
    assert_eq!(answer.field("ratelimit"), "\"requests\";r=9;t=1, \"writes\";r=1;t=1");
    assert_eq!(answer.field("ratelimit-policy"), "\"requests\";q=10;w=10, \"writes\";q=2;w=2");
    for request in [get("/v1/orders/7"), of("POST", "/v1/other")] {
        let answer = ask(&layer, request).await;
        assert!(!answer.field("ratelimit").contains("writes"), "another method or path");
    }
}

#[tokio::test(start_paused = true)]
async fn one_empty_bucket_refuses_the_request_and_the_others_keep_their_tokens() {
    let layer = with_writes().route(orders()).build().unwrap();
    for _ in 0..2 {
        assert_eq!(ask(&layer, of("POST", "/v1/orders")).await.status, StatusCode::OK);
    }
    let refused = ask(&layer, of("POST", "/v1/orders")).await;
    assert_eq!(refused.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.field("ratelimit"), "\"requests\";r=8, \"writes\";r=0;t=1");
    assert_eq!(refused.problem()["violated-policies"], serde_json::json!(["writes"]));
    assert_eq!(ask(&layer, get("/")).await.left("requests"), 7, "the refusal took one");
}

#[tokio::test(start_paused = true)]
async fn the_first_route_that_matches_decides() {
    let layer = with_writes()
        .route(Route::path("/v1/orders/preview").cost(0))
        .route(orders())
        .build()
        .unwrap();
    assert_eq!(ask(&layer, of("POST", "/v1/orders/preview")).await.left("requests"), 10);
    assert_eq!(ask(&layer, of("POST", "/v1/orders/x")).await.left("requests"), 9);
}

#[tokio::test(start_paused = true)]
async fn no_spelling_of_a_path_dodges_its_route() {
    let layer =
        with_writes().route(Route::path("/health/*").cost(0)).route(orders()).build().unwrap();
    let alike = ["/V1/Orders/", "/v1/%6frders/7", "/v1/orders//7", "/v1/orders/7;v=1"];
    for path in alike {
        let fresh = format!("agent{}", path.len());
        let mut request = of("POST", path);
        request.headers_mut().insert("x-agent", fresh.parse().unwrap());
        assert_eq!(ask(&layer, request).await.left("writes"), 1, "{path}");
    }
    for path in [
        "//v1/orders/7",
        "/health/../v1/orders/7",
        "/health/%2e%2e/v1/orders",
        "/health/..%2fv1%2forders",
        "/health/..;/v1/orders",
        "/v1%2forders",
        "/v1/orders/..%2f..%2fhealth",
    ] {
        let answer = ask(&layer, of("POST", path)).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{path}");
        answer.problem();
    }
    assert_eq!(ask(&layer, get("/")).await.left("requests"), 9, "a refused path was charged");
}

#[tokio::test(start_paused = true)]
async fn a_route_for_get_takes_head_as_well() {
    let route = Route::path("/export").methods([Method::GET]).cost(5);
    let layer = with_writes().route(route).build().unwrap();
    assert_eq!(ask(&layer, of("HEAD", "/export")).await.left("requests"), 5);
    assert_eq!(ask(&layer, of("POST", "/export")).await.left("requests"), 4);
}

#[tokio::test(start_paused = true)]
async fn a_cost_comes_from_a_field_within_bounds_or_from_a_closure() {
    let layer = with_writes()
        .route(Route::path("/batch").cost(Cost::from_header("x-size", 1, 4).unwrap()))
        .route(Route::path("/deep").cost(Cost::by(|head| match head.uri.query() {
            Some("free") => 0,
            _ => 3,
        })))
        .build()
        .unwrap();
    assert_eq!(ask(&layer, get("/batch")).await.left("requests"), 9);
    assert_eq!(ask(&layer, with(get("/batch"), "x-size", "2")).await.left("requests"), 7);
    assert_eq!(ask(&layer, with(get("/batch"), "x-size", "none")).await.left("requests"), 3);
    assert_eq!(ask(&layer, get("/deep?free")).await.left("requests"), 3);
    assert_eq!(ask(&layer, get("/deep")).await.left("requests"), 0);
}

#[tokio::test(start_paused = true)]
async fn the_default_bucket_may_cost_something_else_than_the_others() {
    let layer = builder(MemoryStore::new())
        .bucket(Bucket::per_second(100.0).capacity(1_000).named("tokens"))
        .route(Route::path("/chat").bucket("tokens").cost(300).default_cost(1))
        .build()
        .unwrap();
    let answer = ask(&layer, get("/chat")).await;
    assert_eq!((answer.left("requests"), answer.left("tokens")), (9, 700));
}

#[tokio::test(start_paused = true)]
async fn a_cost_above_the_capacity_passes_when_the_bucket_is_full_and_leaves_debt() {
    let layer = with_writes().route(Route::path("/huge").cost(25)).build().unwrap();
    assert_eq!(ask(&layer, get("/huge")).await.left("requests"), 0);
    let refused = ask(&layer, get("/")).await;
    assert_eq!(refused.headers["retry-after"], "16");
    tokio::time::advance(Duration::from_secs(16)).await;
    assert_eq!(ask(&layer, get("/")).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn a_layer_made_for_one_route_shares_the_buckets_and_charges_its_own_way() {
    let layer = with_writes().route(Route::path("/x").cost(0)).build().unwrap();
    let export = layer.charging(Route::any().cost(4).bucket("writes")).unwrap();
    assert_eq!(ask(&layer, get("/")).await.left("requests"), 9);
    let answer = ask(&export, get("/x")).await;
    assert_eq!((answer.left("requests"), answer.left("writes")), (5, 0));
    assert_eq!(ask(&layer, get("/")).await.left("requests"), 4);
    assert!(matches!(
        layer.charging(Route::any().bucket("nobody")),
        Err(BuildError::UnknownBucket { .. })
    ));
}

#[tokio::test(start_paused = true)]
async fn the_bucket_that_is_marked_is_the_default_whatever_its_place() {
    let store = MemoryStore::new();
    store.set_by_operator(&agent("a1"), Limits::per_second(1.0, 77).unwrap());
    let layer = AdmissionLayer::builder(store)
        .identity(Named)
        .bucket(Bucket::per_second(1.0).named("writes"))
        .bucket(Bucket::per_second(1.0).named("all").default_bucket())
        .build()
        .unwrap();
    assert_eq!(ask(&layer, get("/")).await.field("ratelimit"), "\"all\";r=76;t=1");
}

#[test]
fn buckets_and_routes_that_cannot_be_are_refused() {
    let bucket = |name: &str| Bucket::per_second(1.0).named(name);
    let twice = builder(MemoryStore::new()).bucket(bucket("requests")).build();
    assert!(matches!(twice, Err(BuildError::NameTaken { .. })));
    let defaults = builder(MemoryStore::new())
        .bucket(bucket("a").default_bucket())
        .bucket(bucket("b").default_bucket())
        .build();
    assert!(matches!(defaults, Err(BuildError::Defaults { count: 2 })));
    let named = builder(MemoryStore::new()).bucket(bucket("concurrency"));
    assert!(
        named.build().is_ok(),
        "a name like any other while requests in flight are not limited"
    );
    let named = builder(MemoryStore::new()).bucket(bucket("concurrency"));
    let named = named.concurrency_per_agent(1.try_into().unwrap());
    assert!(matches!(named.build(), Err(BuildError::NameTaken { .. })));
    for route in [
        Route::path("orders"),
        Route::path("/a").bucket("nobody"),
        Route::path("/a").cost(9_000_001),
        Route::path("/a").default_cost(9_000_001),
    ] {
        assert!(with_writes().route(route.clone()).build().is_err(), "{route:?}");
    }
    let mut many = builder(MemoryStore::new());
    let mut route = Route::any();
    for n in 0..16 {
        many = many.bucket(bucket(&format!("b{n}")));
        route = route.bucket(&format!("b{n}"));
    }
    assert!(matches!(many.route(route).build(), Err(BuildError::TooManyBuckets { count: 17, .. })));
}

/// A store that never answers in time.
struct Down;

impl Spend for Down {
    type Future = std::future::Ready<Result<Verdict, StoreError>>;

    fn spend(&self, _: Charge) -> Self::Future {
        ready(Err(StoreError::Timeout(Duration::from_millis(20))))
    }

    fn settle(&self, _: Settlement) {}
}

#[tokio::test(start_paused = true)]
async fn each_route_has_its_own_policy_for_an_outage() {
    let layer = builder(Down)
        .on_outage(Outage::Local)
        .route(Route::path("/open").on_outage(Outage::Open))
        .route(Route::path("/closed").on_outage(Outage::Closed))
        .build()
        .unwrap();
    // Before and after the breaker opened.
    for _ in 0..10 {
        assert_eq!(ask(&layer, get("/open")).await.status, StatusCode::OK);
        assert_eq!(ask(&layer, get("/closed")).await.status, StatusCode::SERVICE_UNAVAILABLE);
    }
    for _ in 0..10 {
        assert_eq!(ask(&layer, get("/")).await.status, StatusCode::OK);
    }
    assert_eq!(ask(&layer, get("/")).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(ask(&layer, get("/open")).await.status, StatusCode::OK);
}
