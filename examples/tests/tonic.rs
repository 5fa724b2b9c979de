//! A real tonic server behind the layer, and what real clients read.

#![allow(clippy::unwrap_used)]

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode, Version};
use hyper_util::{client::legacy::Client, rt::TokioExecutor};
use merit_examples::{SECRET, token};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{
    Code, Status,
    transport::{Channel, Server},
};
use tonic_health::{
    pb::{HealthCheckRequest, health_client::HealthClient},
    server::health_reporter,
};
use tonic_types::StatusExt;
use tower_merit::{AdmissionLayer, AgentId, Bucket, JwtIdentity, MemoryStore};

const CHECK: &str = "/grpc.health.v1.Health/Check";

/// A service with one token a hundred seconds, two at once.
async fn serve(store: MemoryStore) -> SocketAddr {
    let admission = AdmissionLayer::builder(store)
        .identity(JwtIdentity::hs256(SECRET))
        .bucket(Bucket::per_second(0.01).capacity(2).named("calls"))
        .build()
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder().layer(admission).add_service(health_reporter().1);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

async fn check(address: SocketAddr, authorization: Option<&str>) -> Result<(), Status> {
    let channel = Channel::from_shared(format!("http://{address}")).unwrap();
    let mut client = HealthClient::new(channel.connect().await.unwrap());
    let mut request = tonic::Request::new(HealthCheckRequest::default());
    if let Some(value) = authorization {
        request.metadata_mut().insert("authorization", value.parse().unwrap());
    }
    client.check(request).await.map(drop)
}

fn bearer(agent: &str) -> String {
    format!("Bearer {}", token(agent).unwrap())
}

#[tokio::test]
async fn a_client_reads_the_wait_and_the_bucket_from_a_denial() {
    let address = serve(MemoryStore::new()).await;
    let alice = bearer("alice");
    for _ in 0..2 {
        check(address, Some(&alice)).await.unwrap();
    }
    let status = check(address, Some(&alice)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    let wait = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!((90..=100).contains(&wait.as_secs()), "{wait:?}");
    let violations = status.get_details_quota_failure().unwrap().violations;
    assert_eq!(violations.len(), 1);
    assert_eq!(violations[0].subject, "bucket:calls");
    let field = |name| status.metadata().get(name).unwrap().to_str().unwrap().to_owned();
    let seconds = wait.as_millis().div_ceil(1000).to_string();
    assert_eq!(field("retry-after"), seconds);
    assert_eq!(field("ratelimit"), format!("\"calls\";r=0;t={seconds}"));
    assert!(check(address, Some(&bearer("bob"))).await.is_ok(), "another agent's bucket");
}

#[tokio::test]
async fn whoever_is_not_known_or_banned_reads_so() {
    let (store, agent) = (MemoryStore::new(), AgentId::new("mallory").unwrap());
    store.ban(&agent, u64::MAX / 2);
    let address = serve(store).await;
    let nobody = check(address, None).await.unwrap_err();
    assert_eq!(nobody.code(), Code::Unauthenticated);
    assert!(nobody.metadata().get("www-authenticate").is_some());
    let banned = check(address, Some(&bearer("mallory"))).await.unwrap_err();
    assert_eq!(banned.code(), Code::PermissionDenied);
    assert!(banned.get_details_retry_info().is_none(), "waiting as told does not help");
}

#[tokio::test]
async fn a_refusal_is_headers_alone_and_others_still_read_http() {
    let address = serve(MemoryStore::new()).await;
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http::<Full<Bytes>>();
    let ask = async |kind: &str| {
        let request =
            Request::post(format!("http://{address}{CHECK}")).header("content-type", kind);
        let answer = client.request(request.body(Full::default()).unwrap());
        tokio::time::timeout(Duration::from_secs(20), answer).await.unwrap().unwrap()
    };
    let refused = ask("application/grpc+proto").await;
    assert_eq!((refused.version(), refused.status()), (Version::HTTP_2, StatusCode::OK));
    assert_eq!(refused.headers()["content-type"], "application/grpc");
    assert_eq!(refused.headers()["grpc-status"], "16");
    assert_eq!(refused.headers()["cache-control"], "no-store", "a status of 200");
    assert!(hyper::body::Body::is_end_stream(refused.body()), "Trailers-Only ends the stream");
    let body = refused.into_body().collect().await.unwrap();
    assert!(body.trailers().is_none());
    for kind in ["application/json", "application/grpc-web+proto"] {
        let refused = ask(kind).await;
        assert_eq!(refused.status(), StatusCode::UNAUTHORIZED, "{kind}");
        assert_eq!(refused.headers()["content-type"], "application/problem+json");
    }
}
