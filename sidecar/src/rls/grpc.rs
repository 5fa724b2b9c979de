//! `envoy.service.ratelimit.v3.RateLimitService` over gRPC, with health beside it.

use std::{future::Future, pin::Pin};

use axum::{Router, body::Body, extract::State, response::Response, routing::post};
use http::Request;
use metrics::histogram;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::{Status, server};
use tonic_prost::ProstCodec;
use tower_merit::{Identify, Spend};

use super::{
    Live,
    proto::{RateLimitRequest, RateLimitResponse},
};
use crate::grpc_health;

/// Whether this build answers proxies.
pub const SUPPORTED: bool = true;

/// The name of the service, as the `.proto` has it.
const SERVICE: &str = "envoy.service.ratelimit.v3.RateLimitService";

/// The most descriptors of a request: a proxy's configuration makes a handful.
const DESCRIPTORS_MAX: usize = 256;

/// Returns the routes of the listener. Health says `SERVING` while `serves` does, asked once a second, until
/// `stop` is cancelled; it must be called within a tokio runtime.
pub fn router<S: Spend, I: Identify, C, F>(
    live: Live<S, I>,
    serves: C,
    stop: CancellationToken,
) -> Router
where
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = bool> + Send,
{
    Router::new()
        .route(
            "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit",
            post(should_rate_limit::<S, I>),
        )
        .route_service(
            "/grpc.health.v1.Health/{method}",
            grpc_health::follow(SERVICE, serves, stop),
        )
        .fallback(async || Status::unimplemented("no such method here").into_http::<Body>())
        .with_state(live)
}

async fn should_rate_limit<S: Spend, I: Identify>(
    State(live): State<Live<S, I>>,
    request: Request<Body>,
) -> Response {
    let began = Instant::now();
    let codec = ProstCodec::<RateLimitResponse, RateLimitRequest>::default();
    let response = server::Grpc::new(codec).unary(Asked(live), request).await;
    histogram!("merit_rls_seconds").record(began.elapsed());
    response.map(Body::new)
}

/// One call.
struct Asked<S, I>(Live<S, I>);

impl<S: Spend, I: Identify> server::UnaryService<RateLimitRequest> for Asked<S, I> {
    type Response = RateLimitResponse;
    type Future =
        Pin<Box<dyn Future<Output = Result<tonic::Response<RateLimitResponse>, Status>> + Send>>;

    fn call(&mut self, request: tonic::Request<RateLimitRequest>) -> Self::Future {
        let (live, request) = (self.0.clone(), request.into_inner());
        Box::pin(async move {
            let count = request.descriptors.len();
            if count > DESCRIPTORS_MAX {
                let detail =
                    format!("descriptors: at most {DESCRIPTORS_MAX} a request, not {count}");
                return Err(Status::invalid_argument(detail));
            }
            Ok(tonic::Response::new(live.decide(&request).await))
        })
    }
}
