//! Envoy's rate limit service protocol, as far as the comparison needs it: one descriptor, one answer.

use axum::{Router, routing::post};
use http::uri::PathAndQuery;
use tonic::{Request, Response, Status, client, server, server::UnaryService, transport::Channel};
use tonic_prost::ProstCodec;

const PATH: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// `RateLimitResponse.Code.OK`.
pub(crate) const OK: i32 = 1;

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RateLimitRequest {
    #[prost(string, tag = "1")]
    pub(crate) domain: String,
    #[prost(message, repeated, tag = "2")]
    pub(crate) descriptors: Vec<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Descriptor {
    #[prost(message, repeated, tag = "1")]
    pub(crate) entries: Vec<Entry>,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct Entry {
    #[prost(string, tag = "1")]
    pub(crate) key: String,
    #[prost(string, tag = "2")]
    pub(crate) value: String,
}

#[derive(Clone, PartialEq, prost::Message)]
pub(crate) struct RateLimitResponse {
    #[prost(int32, tag = "1")]
    pub(crate) overall_code: i32,
}

/// Asks once over `channel`.
pub(crate) async fn ask(
    channel: &mut client::Grpc<Channel>,
    request: Request<RateLimitRequest>,
) -> anyhow::Result<i32> {
    channel.ready().await?;
    let codec = ProstCodec::<RateLimitRequest, RateLimitResponse>::default();
    let answer = channel.unary(request, PathAndQuery::from_static(PATH), codec).await?;
    Ok(answer.into_inner().overall_code)
}

/// A server of the protocol that says yes to whoever reaches it: the layer before it decides.
pub(crate) fn router() -> Router {
    Router::new().route(
        PATH,
        post(async |request: http::Request<axum::body::Body>| {
            let codec = ProstCodec::<RateLimitResponse, RateLimitRequest>::default();
            let answer = server::Grpc::new(codec).unary(Yes, request).await;
            answer.map(axum::body::Body::new)
        }),
    )
}

struct Yes;

impl UnaryService<RateLimitRequest> for Yes {
    type Response = RateLimitResponse;
    type Future = std::future::Ready<Result<Response<RateLimitResponse>, Status>>;

    fn call(&mut self, _: Request<RateLimitRequest>) -> Self::Future {
        std::future::ready(Ok(Response::new(RateLimitResponse { overall_code: OK })))
    }
}
