//! A reverse proxy that wears the admission layer: what a service needs to be protected unchanged.
//!
//! 1. Admission answers first: a refused request never reaches the upstream, nor is its body read.
//! 2. Bodies stream both ways; nothing of them is kept, save one rating (at most
//!    [`TEE_BODY_MAX`] bytes) on the path of `tee_ratings`.
//! 3. Hop-by-hop fields end here (RFC 9110 section 7.6.1); `RateLimit` fields of the upstream stay,
//!    ours come after them.
//! 4. The upstream learns the agent from `x-merit-agent`; what a client sends under that name is
//!    dropped. `Host` stays the client's unless `preserve_host = false`: links and virtual hosts
//!    then work as without a gateway.
//! 5. All `X-Forwarded-*`, `Forwarded` and `X-Real-IP` of the client are dropped, however they mix
//!    `_` and `-`, and `X-Forwarded-For`, `-Proto` and `-Host` written anew, unless
//!    `trust_forwarded = true` says that a proxy of our own stands in front.
//! 6. HTTP/1.1 `Upgrade` passes, except to HTTP/2: an `h2c` connection would carry requests that
//!    admission never sees.
//! 7. `upstream` may have a path, and nothing leaves it: a target in which any server could read a
//!    `..` is answered 400 then.
//! 8. `GET /.well-known/merit/limits` is answered here and never passed on: the agent's own limits, and why
//!    they are what they are (`limits`).
//! 9. Buckets and routes change while it serves (`live`): no request notices but by what it is charged.
//! 10. The upstream is away: 502. It is silent: 504. It breaks off in the middle of a body: so do we.

mod config;

mod fields;

mod limits;

mod live;

mod passing;

mod proxy;

mod tee;

mod upgrade;

pub use config::{Config, GatewayError};
pub use fields::AGENT_FIELD;
pub use limits::{Charged, Explain, Explained, LIMITS_PAGE, Price, limits};
pub use live::Live;
pub use tee::{HandingOn, TEE_BODY_MAX, TEE_IN_FLIGHT_MAX, Tee};

use axum::Router;
use tower_merit::{AdmissionLayer, Identify, Spend};

/// Returns the routes of the gateway listener: everything goes to the upstream through `admission`, which
/// stays as it is.
///
/// Serve it with upgrades enabled and `ConnectInfo<SocketAddr>` in the extensions, as
/// `axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>())` does.
///
/// # Errors
///
/// As [`Live::new`].
pub fn router<S: Spend, I: Identify>(
    config: &Config,
    admission: AdmissionLayer<S, I>,
    tee: Option<Tee>,
) -> Result<Router, GatewayError> {
    Ok(Live::new(config, admission, Vec::new(), tee)?.router())
}

#[cfg(test)]
mod tests;
