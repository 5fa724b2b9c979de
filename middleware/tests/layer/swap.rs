//! Other buckets in place of the ones that a layer was built with, and the page that refusals name.

use std::sync::{Arc, Mutex};

use crate::support::{agent, ask, ask_of, builder, get, hello, of, with_writes};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use tower::{Layer, ServiceExt, service_fn};
use tower_merit::{Bucket, BuildError, MemoryStore, Reservation, Route};

fn requests(rate: f64, capacity: u64) -> Bucket {
    Bucket::per_second(rate).capacity(capacity).named("requests")
}

#[tokio::test(start_paused = true)]
async fn other_buckets_clamp_what_an_agent_holds_and_never_add_to_it() {
    let before = builder(MemoryStore::new()).build().unwrap();
    assert_eq!(ask(&before, get("/")).await.left("requests"), 9);
    let wide = before.with_buckets([requests(1.0, 100)], []).unwrap();
    assert_eq!(ask(&wide, get("/")).await.left("requests"), 8);
    let narrow = wide.with_buckets([requests(1.0, 3)], []).unwrap();
    assert_eq!(ask(&narrow, get("/")).await.left("requests"), 2);
    // Two generations at a time, as on two nodes: the narrow one was the last to clamp.
    assert_eq!(ask(&wide, get("/")).await.left("requests"), 1);
    assert_eq!(ask(&wide, get("/")).await.left("requests"), 0);
    assert_eq!(ask(&narrow, get("/")).await.status, StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test(start_paused = true)]
async fn routes_are_replaced_with_the_buckets_and_what_a_layer_was_told_otherwise_stays() {
    let before = with_writes().cost(2).allow([agent("free")]).build().unwrap();
    let buckets = || [requests(1.0, 10), Bucket::per_second(1.0).capacity(1).named("reads")];
    let after = before.with_buckets(buckets(), [Route::path("/r").bucket("reads")]).unwrap();
    assert_eq!(after.buckets().len(), 2);
    assert_eq!(ask(&after, get("/")).await.left("requests"), 8, "the cost is the layer's");
    assert_eq!(ask(&after, get("/r")).await.left("reads"), 0);
    assert_eq!(ask(&after, get("/r")).await.status, StatusCode::TOO_MANY_REQUESTS);
    assert!(after.allows(&agent("free")) && !after.allows(&agent("a1")));
    let unknown = after.with_buckets(buckets(), [Route::path("/").bucket("writes")]);
    assert!(matches!(unknown, Err(BuildError::UnknownBucket { .. })));
    assert!(matches!(after.with_buckets([], []), Err(BuildError::NoBucket)));
}

#[tokio::test(start_paused = true)]
async fn a_request_in_flight_counts_whichever_buckets_it_came_under() {
    let one = 1.try_into().unwrap();
    let before = builder(MemoryStore::new()).concurrency_per_agent(one).build().unwrap();
    let streams = service_fn(async |_: Request<Full<Bytes>>| {
        Ok::<_, std::convert::Infallible>(Response::new(Full::from("not read yet")))
    });
    let answer = before.layer(streams).oneshot(get("/")).await.unwrap();
    let after = before.with_buckets([requests(1.0, 5)], []).unwrap();
    assert_eq!(ask(&after, get("/")).await.status, StatusCode::TOO_MANY_REQUESTS);
    drop(answer);
    assert_eq!(ask(&after, get("/")).await.status, StatusCode::OK);
    assert_eq!(ask(&before, get("/")).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn what_was_reserved_under_old_rules_goes_back_to_the_bucket_that_it_was_taken_from() {
    let route = Route::path("/w").bucket("writes").cost(2).reserve(true);
    let before = with_writes().route(route).build().unwrap();
    let kept: Arc<Mutex<Option<Reservation>>> = Arc::default();
    let keep = Arc::clone(&kept);
    let service = service_fn(move |request: Request<Full<Bytes>>| {
        *keep.lock().unwrap() = request.extensions().get::<Reservation>().cloned();
        hello(request)
    });
    let answer = ask_of(&before, service, of("GET", "/w")).await;
    assert_eq!(answer.left("writes"), 0);
    let after = before.with_buckets([requests(1.0, 10)], []).unwrap();
    drop(before);
    let reservation = kept.lock().unwrap().take().unwrap();
    assert!(reservation.refund());
    assert_eq!(ask(&after, get("/")).await.left("requests"), 9);
    let again = after.with_buckets(
        [requests(1.0, 10), Bucket::per_second(1.0).capacity(2).named("writes")],
        [Route::any().bucket("writes").cost(0)],
    );
    assert_eq!(ask(&again.unwrap(), get("/")).await.left("writes"), 2);
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_for_a_limit_or_a_ban_is_told_where_to_read_why_and_nobody_else() {
    let store = MemoryStore::new();
    let layer = builder(store.clone()).limits_page("/limits").build().unwrap();
    let link = "</limits>; rel=\"help\"; type=\"application/json\"";
    for _ in 0..10 {
        assert_eq!(ask(&layer, get("/")).await.field("link"), "");
    }
    let denied = ask(&layer, get("/")).await;
    assert_eq!(denied.status, StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(
        (&denied.problem()["limits"], denied.field("link")),
        (&"/limits".into(), link.into())
    );
    store.ban(&agent("a1"), u64::MAX);
    let banned = ask(&layer, get("/")).await;
    assert_eq!(banned.status, StatusCode::FORBIDDEN);
    assert_eq!(
        (&banned.problem()["limits"], banned.field("link")),
        (&"/limits".into(), link.into())
    );
    let mut stranger = get("/");
    stranger.headers_mut().clear();
    let stranger = ask(&layer, stranger).await;
    assert_eq!(stranger.status, StatusCode::UNAUTHORIZED);
    assert_eq!((stranger.problem().get("limits"), stranger.field("link")), (None, String::new()));

    for path in ["", "limits", "/a>b", "/a b", "/ü", "/a\nb"] {
        let refused = builder(MemoryStore::new()).limits_page(path).build();
        assert!(matches!(refused, Err(BuildError::LimitsPage { .. })), "{path:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn who_asks_is_learned_without_a_charge_and_refused_as_at_admission() {
    let layer = builder(MemoryStore::new()).build().unwrap();
    let request = Request::get("/").header("x-agent", "a1").body(()).unwrap();
    for _ in 0..20 {
        assert_eq!(layer.learn(&request).await.unwrap().agent, agent("a1"));
    }
    assert_eq!(ask(&layer, get("/")).await.left("requests"), 9);
    let stranger = Request::get("/").body(()).unwrap();
    let refused = layer.learn(&stranger).await.unwrap_err();
    assert_eq!(refused.status(), StatusCode::UNAUTHORIZED);
    assert!(refused.headers().contains_key("www-authenticate"));
}
