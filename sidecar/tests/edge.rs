//! The gateway's tee wired to ingest, as the application does it: a rating posted to an existing API
//! through the gateway is on the bus under the same rules as one posted to Merit.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use axum::{Router, body::Body, routing::post};
use http::{Request, StatusCode};
use jsonwebtoken::{EncodingKey, Header, encode};
use merit_sidecar::{
    bus::{Consumer, Event, Publisher, in_process},
    gateway::{self, Tee},
    ingest::{self, ApiKeys, Ingest},
    rating::{Rating, SubjectMode},
};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tower::ServiceExt;
use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, JwtVerifier, MemoryStore};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

fn verifier() -> JwtVerifier {
    JwtIdentity::hs256(SECRET).build().unwrap()
}

fn token(sub: &str, agent: &str) -> String {
    let claims =
        json!({"exp": 4_000_000_000_u64, "sub": sub, "agent_id": agent, "scope": "ratings:write"});
    encode(&Header::default(), &claims, &EncodingKey::from_secret(SECRET)).unwrap()
}

struct Edge {
    router: Router,
    consumer: Consumer,
}

async fn edge(answer: StatusCode) -> Edge {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let api = Router::new().route("/v1/rating", post(async move |_: String| (answer, "theirs")));
    tokio::spawn(async move { axum::serve(listener, api).await.unwrap() });

    let (publisher, consumer) = in_process::channel(&in_process::Config::default());
    let publisher = Publisher::InProcess(publisher);
    let keys = ApiKeys::default();
    let ingest = Ingest::new(
        ingest::Config::default(),
        publisher,
        Some(verifier()),
        keys,
        SubjectMode::Agent,
        ingest::Receipts::off(),
    );
    let tee = Tee::new(move |request| {
        let ingest = ingest.clone();
        async move { ingest.take(&request).await.map(drop).map_err(|refusal| refusal.reason()) }
    });
    let admission = AdmissionLayer::builder(MemoryStore::new())
        .identity(verifier())
        .bucket(Bucket::per_second(20.0).capacity(40))
        .build()
        .unwrap();
    let config = gateway::Config {
        upstream: format!("http://{upstream}"),
        tee_ratings: Some("/v1/rating".to_owned()),
        ..gateway::Config::default()
    };
    let router = gateway::router(&config, admission, Some(tee)).unwrap();
    Edge { router, consumer: Consumer::InProcess(consumer) }
}

impl Edge {
    async fn rate(&self, token: &str, body: &Value) -> StatusCode {
        let request = Request::post("/v1/rating")
            .header("authorization", format!("Bearer {token}"))
            .header("idempotency-key", "e1")
            .header("content-type", "application/json")
            .body(Body::from(body.to_string()))
            .unwrap();
        self.router.clone().oneshot(request).await.unwrap().status()
    }

    /// Returns all that is on the bus once nobody can put more there.
    async fn published(mut self) -> Vec<Rating> {
        drop(self.router);
        let mut ratings = Vec::new();
        loop {
            match self.consumer.next().await.unwrap() {
                Event::Batch { deliveries, .. } => {
                    ratings.extend(deliveries.into_iter().map(|delivery| delivery.rating));
                }
                Event::Closed => return ratings,
                _ => {}
            }
        }
    }
}

#[tokio::test]
async fn a_rating_that_the_api_accepts_is_on_the_bus_under_its_key_and_poster() {
    let edge = edge(StatusCode::CREATED).await;
    let rating = json!({"agent_id": "a2", "user_id": "u1", "score": 5});
    assert_eq!(edge.rate(&token("u1", "a1"), &rating).await, StatusCode::CREATED);
    let published = edge.published().await;
    assert_eq!(published.len(), 1);
    assert_eq!((published[0].id().as_str(), published[0].poster().as_str()), ("e1", "u1"));
}

#[tokio::test]
async fn what_ingest_would_refuse_passes_to_the_api_and_moves_nothing() {
    let edge = edge(StatusCode::OK).await;
    for rating in [
        json!({"agent_id": "a2", "user_id": "somebody-else", "score": 5}),
        json!({"agent_id": "a1", "user_id": "u1", "score": 5}),
        json!({"agent_id": "a2", "user_id": "u1", "score": 6}),
        json!("no rating at all"),
    ] {
        assert_eq!(edge.rate(&token("u1", "a1"), &rating).await, StatusCode::OK, "{rating}");
    }
    assert_eq!(edge.published().await, []);
}

#[tokio::test]
async fn what_the_api_refuses_moves_nothing() {
    let edge = edge(StatusCode::CONFLICT).await;
    let rating = json!({"agent_id": "a2", "user_id": "u1", "score": 5});
    assert_eq!(edge.rate(&token("u1", "a1"), &rating).await, StatusCode::CONFLICT);
    assert_eq!(edge.published().await, []);
}
