use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::time::Instant;
use tower::ServiceExt;

use tower_merit::{MemoryStore, bucket::Limits};

use super::*;
use crate::tuner::{Aim, Operator};

#[derive(Debug, thiserror::Error)]
#[error("redis at 127.0.0.1:1 is not available")]
struct Down(#[source] std::io::Error);

fn down() -> Down {
    Down(std::io::Error::other("connection refused"))
}

fn metrics() -> Exposition {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    Exposition { recorded: recorder.handle(), busiest: None }
}

async fn answer(router: &Router, request: Request<Body>) -> (u16, String) {
    let response = router.clone().oneshot(request).await.unwrap();
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn get_from(host: &str, path: &str) -> Request<Body> {
    Request::get(path).header("host", host).body(Body::empty()).unwrap()
}

async fn ready(health: Health) -> (u16, Value) {
    let (status, body) = answer(&probes(health, metrics()), get_from("x", "/readyz")).await;
    (status, serde_json::from_str(&body).unwrap())
}

#[tokio::test]
async fn a_process_is_ready_when_every_part_answers() {
    let health = Health::new()
        .part("bus", || async { Ok::<_, Down>(()) })
        .part("store", || async { Ok::<_, Down>(()) });
    let (status, body) = ready(health).await;
    assert_eq!(status, 200);
    let part = |name| json!({"name": name, "ok": true});
    let parts = [part("bus"), part("store")];
    assert_eq!(body, json!({"ready": true, "draining": false, "parts": parts}));
}

#[tokio::test]
async fn a_part_that_fails_is_named_with_its_cause() {
    let health = Health::new()
        .part("bus", || async { Ok::<_, Down>(()) })
        .part("store", || async { Err(down()) });
    let (status, body) = ready(health.clone()).await;
    assert_eq!(status, 503);
    assert_eq!(
        body["parts"][1]["error"],
        "redis at 127.0.0.1:1 is not available: connection refused"
    );
    let alive = answer(&probes(health, metrics()), get_from("x", "/healthz")).await;
    assert_eq!(alive, (200, "ok\n".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_spared_is_needed_at_the_start_and_not_later() {
    let away = Arc::new(AtomicUsize::new(1));
    let store = {
        let away = Arc::clone(&away);
        move || {
            let away = away.load(Ordering::SeqCst) > 0;
            async move { if away { Err(down()) } else { Ok(()) } }
        }
    };
    let health = Health::new().part("store", store).part("bus", || async { Ok::<_, Down>(()) });
    let health = health.spare("store");
    assert_eq!(ready(health.clone()).await.0, 503, "nothing was ever decided by this process");
    away.store(0, Ordering::SeqCst);
    tokio::time::advance(REPORT_FRESH).await;
    assert_eq!(ready(health.clone()).await.0, 200);
    away.store(1, Ordering::SeqCst);
    tokio::time::advance(REPORT_FRESH).await;
    let (status, body) = ready(health).await;
    assert_eq!(status, 200, "{body}");
    assert_eq!(
        (&body["parts"][0]["ok"], &body["parts"][0]["spared"]),
        (&json!(false), &json!(true))
    );
    assert_eq!(body["parts"][1]["spared"], Value::Null);
}

#[tokio::test(start_paused = true)]
async fn a_part_that_is_only_told_of_keeps_nobody_from_being_ready_also_when_it_never_answered() {
    let health = Health::new()
        .part("feed", || async { Err::<(), _>(down()) })
        .part("store", || async { Ok::<_, Down>(()) });
    let (status, body) = ready(health.tell_only("feed")).await;
    assert_eq!(status, 200, "{body}");
    let feed = &body["parts"][0];
    assert_eq!((&feed["ok"], &feed["spared"]), (&json!(false), &json!(true)));
    assert!(feed["error"].as_str().unwrap().contains("not available"), "{body}");
}

#[tokio::test(start_paused = true)]
async fn parts_are_asked_at_once_and_given_up_at_their_deadline() {
    let hang = || async {
        std::future::pending::<()>().await;
        Ok::<_, Down>(())
    };
    let began = Instant::now();
    let (status, body) = ready(Health::new().part("bus", hang).part("store", hang)).await;
    assert_eq!(status, 503);
    assert!(body["parts"][1]["error"].as_str().unwrap().contains("1500 ms"), "{body}");
    assert!(began.elapsed() < 2 * CHECK_DEADLINE, "one after the other");
}

#[tokio::test(start_paused = true)]
async fn many_probes_ask_the_parts_once_until_the_report_is_old() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let health = Health::new().part("bus", move || {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Ok::<_, Down>(()) }
    });
    let reports = futures_util::future::join_all((0..20).map(|_| health.report())).await;
    assert!(reports.iter().all(|report| report.ready));
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    tokio::time::advance(REPORT_FRESH).await;
    health.report().await;
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_draining_process_is_not_ready_at_once() {
    let health = Health::new().part("bus", || async { Ok::<_, Down>(()) });
    assert!(health.report().await.ready);
    health.drain();
    let (status, body) = ready(health).await;
    assert_eq!((status, &body["draining"]), (503, &json!(true)));
}

#[tokio::test]
async fn metrics_are_prometheus_text() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    ::metrics::with_local_recorder(&recorder, || ::metrics::counter!("x_total").increment(3));
    let exposition = Exposition { recorded: recorder.handle(), busiest: None };
    let router = probes(Health::new(), exposition);
    let response = router.oneshot(get_from("x", "/metrics")).await.unwrap();
    assert_eq!(response.headers()["content-type"], METRICS_TYPE);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(std::str::from_utf8(&body).unwrap().contains("x_total 3"));
}

fn admin(listen: &str, hosts: &[&str], token: Option<&str>) -> Result<Router, AdminError> {
    let config = Config {
        listen: Some(listen.parse().unwrap()),
        token_env: None,
        hosts: hosts.iter().map(ToString::to_string).collect(),
        audit_log: None,
    };
    let token = token.map(|token| AdminToken::new(token).unwrap());
    let (_, aim) = tokio::sync::watch::channel(Aim::new(
        crate::policy::Config::default(),
        Limits::per_second(20.0, 40).unwrap(),
    ));
    let console = Console {
        operator: Operator::new(MemoryStore::new(), aim),
        buckets: tokio::sync::watch::Sender::new(Arc::default()).subscribe(),
        insight: None,
        role: "all",
    };
    router(&config, token, Health::new(), metrics(), console, None::<Book<MemoryStore>>)
        .map(|(router, _)| router)
}

#[tokio::test]
async fn a_name_that_is_not_ours_is_refused_on_every_route() {
    let router = admin("127.0.0.1:9900", &["merit.internal"], None).unwrap();
    for host in [
        "localhost",
        "LOCALHOST:9900",
        "localhost.",
        "127.0.0.1:9900",
        "127.8.8.8",
        "[::1]:9900",
        "merit.internal:9900",
    ] {
        assert_eq!(answer(&router, get_from(host, "/")).await.0, 200, "{host}");
    }
    for host in [
        "evil.example",
        "localhost.evil.example",
        "10.0.0.1",
        "evil.example:9900",
        "",
        "@localhost:x",
    ] {
        for path in ["/", "/healthz", "/readyz", "/metrics", "/none"] {
            assert_eq!(answer(&router, get_from(host, path)).await.0, 421, "{host} {path}");
        }
    }
    let without = Request::get("/").body(Body::empty()).unwrap();
    assert_eq!(answer(&router, without).await.0, 421);
    let absolute = get_from("localhost", "http://evil.example/");
    assert_eq!(answer(&router, absolute).await.0, 421, "the target's host counts");
}

#[tokio::test]
async fn off_loopback_only_the_token_opens() {
    assert!(matches!(admin("0.0.0.0:9900", &[], None), Err(AdminError::Exposed)));
    let router = admin("0.0.0.0:9900", &[], Some("0123456789abcdef")).unwrap();
    for (credential, status) in [
        (None, 401),
        (Some("Bearer 0123456789abcdeF"), 401),
        (Some("Basic 0123456789abcdef"), 401),
        (Some("Bearer 0123456789abcdef"), 200),
    ] {
        let mut request = get_from("192.0.2.1:9900", "/readyz");
        if let Some(credential) = credential {
            request.headers_mut().insert("authorization", credential.parse().unwrap());
        }
        let response = router.clone().oneshot(request).await.unwrap();
        assert_eq!(response.status(), status, "{credential:?}");
        assert_eq!(response.headers().contains_key("www-authenticate"), status == 401);
    }
}

#[tokio::test]
async fn the_page_is_there_without_the_token_under_our_names_only() {
    let router = admin("0.0.0.0:9900", &[], Some("0123456789abcdef")).unwrap();
    for path in ["/", "/assets/app.js"] {
        assert_eq!(answer(&router, get_from("192.0.2.1", path)).await.0, 200, "{path}");
        assert_eq!(answer(&router, get_from("evil.example", path)).await.0, 421, "{path}");
    }
}

#[tokio::test]
async fn the_index_names_routes_that_exist() {
    let router = admin("127.0.0.1:9900", &[], None).unwrap();
    let (_, index) = answer(&router, get_from("localhost", "/")).await;
    let routes: Vec<_> = index.split_whitespace().filter(|word| word.starts_with('/')).collect();
    assert_eq!(routes.len(), 9);
    for route in routes.into_iter().filter(|route| !["/agents", "/buckets"].contains(route)) {
        assert_eq!(answer(&router, get_from("localhost", route)).await.0, 200, "{route}");
    }
    let post = Request::post("/readyz").header("host", "localhost").body(Body::empty()).unwrap();
    assert_eq!(answer(&router, post).await.0, 403, "nothing is written without a token");
}

#[tokio::test]
async fn a_write_needs_the_token_on_loopback_too_and_reading_does_not() {
    let router = admin("127.0.0.1:9900", &[], Some("0123456789abcdef")).unwrap();
    assert_eq!(answer(&router, get_from("localhost", "/readyz")).await.0, 200);
    for (credential, status) in [
        (None, 401),
        (Some("Bearer 0123456789abcdeF"), 401),
        (Some("Bearer 0123456789abcdef"), 405),
    ] {
        let mut request =
            Request::post("/readyz").header("host", "localhost").body(Body::empty()).unwrap();
        if let Some(credential) = credential {
            request.headers_mut().insert("authorization", credential.parse().unwrap());
        }
        assert_eq!(answer(&router, request).await.0, status, "{credential:?}");
    }
}

#[test]
fn a_token_that_can_be_guessed_is_refused_and_none_is_shown() {
    for text in ["", "short", "0123456789 abcdef", "0123456789abcde\u{e9}"] {
        assert!(AdminToken::new(text).is_err(), "{text}");
    }
    let token = AdminToken::new("0123456789abcdef").unwrap();
    assert_eq!(format!("{token:?}"), "AdminToken");
}
