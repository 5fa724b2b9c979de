//! Proof of interaction, from the answer that carries it to the limit that it moves.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    convert::Infallible,
    future::{Ready, ready},
};

use axum::{Router, body::Body};
use http::{Request, Response};
use http_body_util::BodyExt;
use jsonwebtoken::{EncodingKey, Header, encode};
use merit_sidecar::{
    bus::{Consumer, Publisher, in_process},
    ingest::{self, ApiKeys, Ingest, Receipts},
    policy,
    rating::SubjectMode,
    tuner::{Plan, Tuner, TunerError},
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower::{Layer, ServiceExt, service_fn};
use tower_merit::{
    AdmissionLayer, AgentId, Bucket, Caller, Identify, JwtIdentity, MemoryStore, ReceiptKeys, Tune,
    bucket::Limits, identity::IdentityError, receipt::RECEIPT_FIELD,
};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

fn keys() -> ReceiptKeys {
    ReceiptKeys::parse("k1:the secret of receipts: thirty-two bytes").unwrap()
}

/// Every request is one of agent `a1` for user `u1`.
struct OfOneUser;

impl Identify for OfOneUser {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, _: &Request<B>) -> Self::Future {
        let mut caller = Caller::from(AgentId::new("a1").unwrap());
        caller.rater = Some("u1".into());
        ready(Ok(caller))
    }
}

/// Returns the receipts of `count` answers.
async fn served(count: usize) -> Vec<String> {
    let layer = AdmissionLayer::builder(MemoryStore::new())
        .identity(OfOneUser)
        .bucket(Bucket::per_second(1.0).capacity(100))
        .receipts(keys())
        .build()
        .unwrap();
    let service = layer.layer(service_fn(async |_: Request<Body>| {
        Ok::<_, Infallible>(Response::new(Body::empty()))
    }));
    let mut receipts = Vec::new();
    for _ in 0..count {
        let answer = service.clone().oneshot(Request::new(Body::empty())).await.unwrap();
        receipts.push(answer.headers()[RECEIPT_FIELD].to_str().unwrap().to_owned());
    }
    receipts
}

struct Loop {
    edge: Router,
    store: MemoryStore,
    running: JoinHandle<Result<(), TunerError>>,
}

impl Loop {
    fn start(receipts: Receipts) -> Self {
        let (publisher, consumer) = in_process::channel(&in_process::Config::default());
        let store = MemoryStore::new();
        let (consumer, subject) = (Consumer::InProcess(consumer), SubjectMode::Agent);
        let start = Limits::per_second(20.0, 40).unwrap();
        let mut plan = Plan::new(policy::Config::default(), start);
        plan.subject = subject;
        let tuner = Tuner::new(consumer, store.clone(), plan);
        let ingest = Ingest::new(
            ingest::Config::default(),
            Publisher::InProcess(publisher),
            Some(JwtIdentity::hs256(SECRET).build().unwrap()),
            ApiKeys::default(),
            subject,
            receipts,
        );
        let running = tokio::spawn(tuner.run(CancellationToken::new()));
        Self { edge: ingest.router(), store, running }
    }

    /// Rates agent `a1` with 5 as `user`; returns the answer.
    async fn rate(&self, user: &str, id: &str, receipt: Option<&str>) -> (u16, Value) {
        let claims = json!({"exp": 4_000_000_000_u64, "sub": user, "scope": "ratings:write"});
        let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).unwrap();
        let body = json!({
            "agent_id": "a1", "user_id": user, "score": 5, "id": id, "receipt": receipt,
        });
        let request = Request::post("/v1/rating")
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        let answer = self.edge.clone().oneshot(request).await.unwrap();
        let status = answer.status().as_u16();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Returns the rate of `a1` once all that was accepted is folded: 20, and 0.2 for each.
    async fn rate_in_force(self) -> Option<String> {
        drop(self.edge);
        self.running.await.unwrap().unwrap();
        let records = self.store.load(&[AgentId::new("a1").unwrap()]).await.unwrap();
        records[0].as_ref().unwrap().limits.map(|limits| limits.refill().to_string())
    }
}

#[tokio::test]
async fn a_receipt_moves_a_limit_once_whatever_the_names_of_the_ratings() {
    let running = Loop::start(Receipts::verified_with(keys(), true));
    let receipts = served(2).await;
    for (id, receipt) in [("r1", 0), ("r2", 0), ("r3", 0), ("r4", 1), ("r4", 1)] {
        let (status, answer) = running.rate("u1", id, Some(&receipts[receipt])).await;
        assert_eq!((status, answer), (202, json!({"id": id, "receipted": true})));
    }
    assert_eq!(running.rate_in_force().await.as_deref(), Some("20.4"), "two were served");
}

#[tokio::test]
async fn where_receipts_are_required_invented_users_move_nothing() {
    let running = Loop::start(Receipts::verified_with(keys(), true));
    let stolen = served(1).await.remove(0);
    for number in 0..50 {
        let user = format!("sybil-{number}");
        for receipt in [None, Some("made up"), Some(&*stolen)] {
            let receipt = receipt.map(|receipt| receipt.replace(' ', "-"));
            let (status, problem) = running.rate(&user, "r", receipt.as_deref()).await;
            assert_eq!((status, &problem["field"]), (422, &json!("receipt")), "{problem}");
        }
    }
    assert_eq!(running.rate_in_force().await, None);
}

#[tokio::test]
async fn where_receipts_are_preferred_a_rating_without_one_is_taken_and_marked() {
    let running = Loop::start(Receipts::verified_with(keys(), false));
    let receipt = served(1).await.remove(0);
    for (user, receipt, receipted) in [
        ("u1", Some(&*receipt), true),
        ("u2", Some(&*receipt), false),
        ("u3", None, false),
        ("u4", Some("made-up"), false),
    ] {
        let (status, answer) = running.rate(user, "r", receipt).await;
        assert_eq!((status, answer), (202, json!({"id": "r", "receipted": receipted})));
    }
    assert_eq!(running.rate_in_force().await.as_deref(), Some("20.8"));
}
