//! Decided and counted, and passed on: watched buckets, shadow mode, agents on the allow-list.

use crate::support::{agent, ask, builder, counted, counting, get, outcome, with_writes};
use http::{Request, StatusCode};
use http_body_util::Full;
use tower_merit::{Bucket, MemoryStore, Route, bucket::Limits};

#[tokio::test(start_paused = true)]
async fn a_watched_bucket_refuses_nothing_is_not_shown_and_counts() {
    let watched = Bucket::per_second(1.0).capacity(1).named("writes").shadow(true);
    let (layer, recorder) = counting(|| {
        builder(MemoryStore::new())
            .bucket(watched)
            .route(Route::any().bucket("writes"))
            .build()
            .unwrap()
    });
    for left in (0..10).rev() {
        let answer = ask(&layer, get("/")).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.field("ratelimit-policy"), "\"requests\";q=10;w=10");
        assert_eq!(answer.left("requests"), left);
    }
    // One that is refused anyway is no request that the watched bucket alone would have refused.
    let refused = ask(&layer, get("/")).await;
    assert_eq!(refused.problem()["violated-policies"], serde_json::json!(["requests"]));
    assert_eq!(counted(&recorder, "merit_would_deny_total{bucket=\"writes\"}"), 9);
    assert_eq!(counted(&recorder, "merit_would_deny_total{bucket=\"requests\"}"), 0);
    assert_eq!((outcome(&recorder, "admitted"), outcome(&recorder, "denied")), (10, 1));
}

#[tokio::test(start_paused = true)]
async fn in_shadow_mode_everything_passes_and_is_counted_once() {
    let store = MemoryStore::new();
    store.ban(&agent("banned"), u64::MAX);
    store.set_by_operator(&agent("a1"), Limits::per_second(1.0, 2).unwrap());
    let (layer, recorder) =
        counting(|| builder(store).shadow(true).route(Route::path("/x").cost(0)).build().unwrap());
    for _ in 0..5 {
        let answer = ask(&layer, get("/")).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"a1"[..]));
        assert_eq!(answer.field("ratelimit"), "", "shown although nothing is limited");
    }
    let nobody = Request::new(Full::default());
    let answer = ask(&layer, nobody).await;
    assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b""[..]));
    let mut request = get("/");
    request.headers_mut().insert("x-agent", "banned".parse().unwrap());
    assert_eq!(ask(&layer, request).await.status, StatusCode::OK);
    assert_eq!(ask(&layer, get("//x")).await.status, StatusCode::OK);
    let count = |name| outcome(&recorder, name);
    assert_eq!((count("admitted"), count("denied"), count("shadow_denied")), (2, 0, 3));
    assert_eq!((count("shadow_ambiguous_path"), count("ambiguous_path")), (1, 0));
    assert_eq!((count("shadow_unauthenticated"), count("unauthenticated")), (1, 0));
    assert_eq!((count("shadow_banned"), count("banned")), (1, 0));
    assert_eq!(counted(&recorder, "merit_would_deny_total{bucket=\"requests\"}"), 3);
}

#[tokio::test(start_paused = true)]
async fn one_route_may_be_watched_while_the_others_are_limited() {
    let layer =
        with_writes().route(Route::path("/new/*").bucket("writes").shadow(true)).build().unwrap();
    for _ in 0..12 {
        assert_eq!(ask(&layer, get("/new/x")).await.status, StatusCode::OK);
    }
    assert_eq!(
        ask(&layer, Request::get("/new/x").body(Full::default()).unwrap()).await.status,
        StatusCode::UNAUTHORIZED,
        "a route in shadow let a stranger pass"
    );
    // Of twelve two had tokens in `writes`; the others took nothing anywhere.
    assert_eq!(ask(&layer, get("/")).await.left("requests"), 7);
}

#[tokio::test(start_paused = true)]
async fn an_agent_on_the_allow_list_passes_uncharged_even_when_banned() {
    let store = MemoryStore::new();
    store.ban(&agent("a1"), u64::MAX);
    let (layer, recorder) = counting(|| {
        builder(store)
            .allow([agent("a1")])
            .concurrency_per_agent(1.try_into().unwrap())
            .build()
            .unwrap()
    });
    for _ in 0..20 {
        let answer = ask(&layer, get("/")).await;
        assert_eq!((answer.status, &answer.body[..]), (StatusCode::OK, &b"a1"[..]));
    }
    let mut other = get("/");
    other.headers_mut().insert("x-agent", "a11".parse().unwrap());
    assert_eq!(ask(&layer, other).await.left("requests"), 9);
    assert_eq!((outcome(&recorder, "allowed"), outcome(&recorder, "admitted")), (20, 1));
}

#[tokio::test(start_paused = true)]
async fn the_shadow_of_a_route_holds_for_no_banned_agent() {
    let store = MemoryStore::new();
    store.ban(&agent("a1"), u64::MAX);
    let layer = builder(store).route(Route::path("/new/*").shadow(true)).build().unwrap();
    assert_eq!(ask(&layer, get("/new/x")).await.status, StatusCode::FORBIDDEN);
}
