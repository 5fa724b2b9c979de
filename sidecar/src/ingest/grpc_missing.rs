//! A build without the feature `grpc`: `[ingest] grpc_listen` is refused before anything starts.

use axum::Router;
use tokio_util::sync::CancellationToken;

use super::Ingest;

/// Whether this build takes ratings over gRPC.
pub const SUPPORTED: bool = false;

/// Returns no routes; no listener gets them, because configuration refuses one.
pub fn router(_ingest: Ingest, _stop: CancellationToken) -> Router {
    Router::new()
}
