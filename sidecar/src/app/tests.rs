use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use axum::{body::Body, routing::post};
use http::{Request, StatusCode};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;
use tokio::sync::oneshot;
use tower::ServiceExt as _;
use tower_merit::{Bucket, JwtIdentity, MemoryStore, bucket::Limits};

use super::*;

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

/// A process without listeners.
fn running(drains: bool) -> Running {
    Running {
        addresses: Vec::new(),
        stop: CancellationToken::new(),
        stop_tuner: CancellationToken::new(),
        bridge: None,
        servers: JoinSet::new(),
        handing_on: None,
        tuner: JoinSet::new(),
        node: JoinSet::new(),
        drains,
        store: Store::Memory(MemoryStore::new()),
        health: None,
        aims: watch::Sender::new(tuner::Aim::new(
            crate::policy::Config::default(),
            Limits::per_second(1.0, 1).unwrap(),
        )),
        following: JoinSet::new(),
        logging: None,
    }
}

/// A gateway that answers ratings long before `tee` has taken them.
async fn hasty_gateway(tee: gateway::Tee) -> Router {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let config = gateway::Config {
        upstream: format!("http://{}", listener.local_addr().unwrap()),
        tee_ratings: Some("/v1/rating".to_owned()),
        tee_timeout: Duration::from_millis(10),
        ..gateway::Config::default()
    };
    let api = Router::new().fallback(post(async |_: String| StatusCode::CREATED));
    tokio::spawn(async move { axum::serve(listener, api).await.unwrap() });
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(1.0))
        .build()
        .unwrap();
    gateway::router(&config, admission, Some(tee)).unwrap()
}

#[tokio::test]
async fn the_tuner_is_stopped_after_the_last_rating_was_handed_on() {
    let (finish, finished) = oneshot::channel::<()>();
    let once = Mutex::new(Some(finished));
    let happened = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&happened);
    let tee = gateway::Tee::new(move |_| {
        let finished = once.lock().unwrap().take().unwrap();
        let log = Arc::clone(&log);
        async move {
            finished.await.unwrap();
            log.lock().unwrap().push("handed on");
            Ok(())
        }
    });
    let mut running = running(false);
    running.handing_on = Some(tee.handing_on());
    let claims = json!({"agent_id": "a1", "exp": 4_000_000_000_u64});
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).unwrap();
    let rating = Request::post("/v1/rating")
        .header("authorization", format!("Bearer {token}"))
        .body(Body::from("{}"))
        .unwrap();
    let answer = hasty_gateway(tee).await.oneshot(rating).await.unwrap();
    assert_eq!(answer.status(), StatusCode::CREATED);

    let (stop_tuner, log) = (running.stop_tuner.clone(), Arc::clone(&happened));
    running.tuner.spawn(async move {
        stop_tuner.cancelled().await;
        log.lock().unwrap().push("tuner stopped");
        Ok(())
    });
    let mut stopping = std::pin::pin!(running.stop());
    assert!(futures_util::poll!(&mut stopping).is_pending());
    finish.send(()).unwrap();
    stopping.await;
    assert_eq!(*happened.lock().unwrap(), ["handed on", "tuner stopped"]);
}

#[tokio::test(start_paused = true)]
async fn a_tuner_that_is_cancelled_late_still_ends_in_order() {
    let mut running = running(true);
    let (stop_tuner, ended) = (running.stop_tuner.clone(), Arc::new(AtomicBool::new(false)));
    let in_order = Arc::clone(&ended);
    running.tuner.spawn(async move {
        // The bus never ends here, as when somebody keeps a publisher.
        stop_tuner.cancelled().await;
        tokio::time::sleep(TUNER_LAST / 2).await;
        in_order.store(true, Ordering::SeqCst);
        Ok(())
    });
    running.stop().await;
    assert!(ended.load(Ordering::SeqCst));
}
