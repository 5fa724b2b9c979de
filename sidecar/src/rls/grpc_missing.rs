//! A build without the feature `grpc`: `[rls] listen` is refused before anything starts.

use axum::Router;
use tokio_util::sync::CancellationToken;
use tower_merit::{Identify, Spend};

use super::Live;

/// Whether this build answers proxies.
pub const SUPPORTED: bool = false;

/// Returns no routes; no listener gets them, because configuration refuses one.
pub fn router<S: Spend, I: Identify, C, F>(_: Live<S, I>, _: C, _: CancellationToken) -> Router
where
    C: Fn() -> F + Send + Sync + 'static,
    F: Future<Output = bool> + Send,
{
    Router::new()
}
