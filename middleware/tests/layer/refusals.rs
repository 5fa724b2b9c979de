//! What a caller reads when it is refused, and what may be made of that.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::support::{self, ask, builder, counting, get, outcome, with, with_writes};
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, Version};
use http_body_util::Full;
use tower::service_fn;
use tower_merit::{Bucket, BuildError, MemoryStore, Refusal, Route};

#[tokio::test(start_paused = true)]
async fn a_hook_sees_why_and_may_change_everything_and_is_asked_after_it_was_counted() {
    let counted = Arc::new(AtomicU64::new(0));
    let calls = Arc::clone(&counted);
    let (layer, recorder) = counting(|| {
        builder(MemoryStore::new())
            .on_refusal(move |refusal, response| {
                calls.fetch_add(1, Ordering::Relaxed);
                let Refusal::Denied { retry_after, violated, .. } = refusal else {
                    return response;
                };
                assert_eq!(response.headers()["retry-after"], retry_after.to_string());
                let text = format!("{} wait {retry_after}", violated[0]);
                Response::builder().status(420).body(Bytes::from(text)).unwrap()
            })
            .build()
            .unwrap()
    });
    for _ in 0..10 {
        ask(&layer, get("/")).await;
    }
    assert_eq!(counted.load(Ordering::Relaxed), 0, "asked although nothing was refused");
    let refused = ask(&layer, get("/")).await;
    assert_eq!((refused.status.as_u16(), &refused.body[..]), (420, &b"requests wait 1"[..]));
    let nobody = ask(&layer, Request::new(Full::default())).await;
    assert_eq!(nobody.status, StatusCode::UNAUTHORIZED);
    assert!(nobody.headers.contains_key("www-authenticate"));
    assert_eq!((outcome(&recorder, "denied"), outcome(&recorder, "unauthenticated")), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn jitter_makes_a_wait_longer_never_shorter_and_all_numbers_agree() {
    let layer = builder(MemoryStore::new())
        .retry_jitter(Duration::from_secs(5))
        .x_rate_limit_headers(true)
        .route(Route::path("/all").cost(10))
        .build()
        .unwrap();
    ask(&layer, get("/all")).await;
    let mut waits = BTreeSet::new();
    for _ in 0..200 {
        let refused = ask(&layer, get("/")).await;
        let problem = refused.problem();
        let wait_ms = problem["retry_after_ms"].as_u64().unwrap();
        assert!((1_000..=6_000).contains(&wait_ms), "{wait_ms}");
        let seconds = wait_ms.div_ceil(1_000);
        assert_eq!(refused.headers["retry-after"], seconds.to_string());
        assert_eq!(refused.field("ratelimit"), format!("\"requests\";r=0;t={seconds}"));
        assert_eq!(refused.headers["x-ratelimit-reset"], seconds.to_string());
        waits.insert(wait_ms);
    }
    // 200 draws from 5,001: all alike once in 5,001^199.
    assert!(waits.len() > 1);
    let hours = builder(MemoryStore::new()).retry_jitter(Duration::from_secs(3_601)).build();
    assert!(matches!(hours, Err(BuildError::Jitter)));
}

#[tokio::test(start_paused = true)]
async fn x_rate_limit_fields_tell_of_the_bucket_that_is_nearest_to_its_end() {
    let layer = with_writes()
        .x_rate_limit_headers(true)
        .route(Route::path("/w").bucket("writes"))
        .build()
        .unwrap();
    let x = |answer: &support::Answer| {
        ["limit", "remaining", "reset"].map(|name| answer.field(&format!("x-ratelimit-{name}")))
    };
    assert_eq!(x(&ask(&layer, get("/")).await), ["10", "9", "1"]);
    assert_eq!(x(&ask(&layer, get("/w")).await), ["2", "1", "1"]);
    ask(&layer, get("/w")).await;
    let refused = ask(&layer, get("/w")).await;
    assert_eq!(
        (refused.status, x(&refused)),
        (StatusCode::TOO_MANY_REQUESTS, ["2", "0", "1"].map(Into::into))
    );
    let plain = with_writes().rate_limit_headers(false).build().unwrap();
    assert!(
        ask(&plain, get("/")).await.headers.keys().all(|name| !name.as_str().contains("ratelimit"))
    );
}

#[tokio::test(start_paused = true)]
async fn scripts_of_other_origins_may_read_the_fields_where_that_is_wanted() {
    let layer = builder(MemoryStore::new())
        .expose_headers(true)
        .route(Route::path("/all").cost(10))
        .build()
        .unwrap();
    for status in [StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let answer = ask(&layer, get("/all")).await;
        assert_eq!(answer.status, status);
        let names = answer.field("access-control-expose-headers");
        assert_eq!(names, "RateLimit, RateLimit-Policy, Retry-After");
    }
}

#[tokio::test(start_paused = true)]
async fn the_trace_a_request_belongs_to_reaches_the_service() {
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let service = service_fn(async |request: Request<Full<Bytes>>| {
        let same = request.headers().clone();
        let mut response = Response::new(Full::<Bytes>::default());
        *response.headers_mut() = same;
        Ok::<_, std::convert::Infallible>(response)
    });
    let layer = builder(MemoryStore::new()).build().unwrap();
    let request = with(with(get("/"), "traceparent", trace), "tracestate", "a=b,c=d");
    let answer = support::ask_of(&layer, service, request).await;
    assert_eq!(answer.field("traceparent"), trace);
    assert_eq!(answer.field("tracestate"), "a=b,c=d");
}

#[tokio::test(start_paused = true)]
async fn every_field_of_a_real_answer_is_a_structured_list() {
    let layer = with_writes()
        .bucket(Bucket::per_second(0.000_001).capacity(9_000_000).named("month"))
        .concurrency_per_agent(3.try_into().unwrap())
        .route(Route::any().bucket("writes").bucket("month"))
        .build()
        .unwrap();
    let parse = |value: &HeaderValue| {
        sfv::Parser::new(value.as_bytes()).parse::<sfv::List>().unwrap().len()
    };
    for members in [4, 4, 3] {
        let answer = ask(&layer, get("/")).await;
        assert_eq!(parse(&answer.headers["ratelimit"]), members, "{}", answer.field("ratelimit"));
        assert_eq!(parse(&answer.headers["ratelimit-policy"]), 4);
    }
}

#[tokio::test(start_paused = true)]
async fn of_two_limiters_the_stricter_is_told() {
    let layer = builder(MemoryStore::new()).x_rate_limit_headers(true).build().unwrap();
    for (theirs, told) in
        [(&["3"][..], "5/3"), (&["70"], "10/8"), (&["x"], "10/7"), (&["1", "2"], "10/6")]
    {
        let service = service_fn(|_: Request<Full<Bytes>>| {
            let mut response = Response::builder().header("x-ratelimit-limit", "5");
            for value in theirs {
                response = response.header("x-ratelimit-remaining", *value);
            }
            std::future::ready(Ok::<_, std::convert::Infallible>(
                response.body(Full::<Bytes>::default()).unwrap(),
            ))
        });
        let answer = support::ask_of(&layer, service, get("/")).await;
        let fields = ["limit", "remaining"].map(|n| answer.field(&format!("x-ratelimit-{n}")));
        assert_eq!(fields.join("/"), told, "{theirs:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn every_refusal_that_waiting_helps_is_spread_and_can_be_read_by_scripts() {
    let store = MemoryStore::new();
    store.ban(&support::agent("a1"), u64::MAX / 2);
    let layer = builder(store)
        .retry_jitter(Duration::from_secs(3_600))
        .expose_headers(true)
        .build()
        .unwrap();
    let mut waits = BTreeSet::new();
    for _ in 0..50 {
        let banned = ask(&layer, get("/")).await;
        assert_eq!(banned.status, StatusCode::FORBIDDEN);
        assert_eq!(banned.field("access-control-expose-headers"), "Retry-After");
        waits.insert(banned.field("retry-after"));
    }
    // 50 draws from an hour: all alike once in 3,600^49.
    assert!(waits.len() > 1);
    let nobody = ask(&layer, Request::new(Full::default())).await;
    assert_eq!(nobody.field("access-control-expose-headers"), "");
}

#[tokio::test(start_paused = true)]
async fn who_says_grpc_and_cannot_speak_it_is_refused_like_anybody() {
    let layer = builder(MemoryStore::new()).build().unwrap();
    let stranger = |method: &str, version| {
        let request = Request::builder().method(method).version(version);
        request.header("content-type", "application/grpc").body(Full::default()).unwrap()
    };
    for (method, version) in
        [("GET", Version::HTTP_11), ("POST", Version::HTTP_11), ("GET", Version::HTTP_2)]
    {
        let refused = ask(&layer, stranger(method, version)).await;
        assert_eq!(refused.status, StatusCode::UNAUTHORIZED, "{method} {version:?}");
        refused.problem();
    }
}

#[tokio::test(start_paused = true)]
async fn a_refused_head_has_the_fields_of_the_get_and_no_content() {
    let layer = builder(MemoryStore::new()).build().unwrap();
    for _ in 0..10 {
        ask(&layer, get("/")).await;
    }
    let (full, head) = (ask(&layer, get("/")).await, ask(&layer, support::of("HEAD", "/")).await);
    assert_eq!((full.status, head.status), (StatusCode::TOO_MANY_REQUESTS, full.status));
    assert_eq!(head.body, Bytes::new());
    assert_eq!(head.field("content-length"), full.body.len().to_string());
    for name in ["content-type", "retry-after", "ratelimit", "cache-control"] {
        assert_eq!(head.field(name), full.field(name), "{name}");
    }
}
