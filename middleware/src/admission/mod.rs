//! Admission: may this request pass?
//!
//! 1. No credential, or one that does not verify: 401 with `WWW-Authenticate`, no bucket touched.
//!    Verified but without a usable agent id: 403.
//! 2. Agents on the allow-list pass, and are charged nothing.
//! 3. As many requests of the agent in flight on this node as may be: 429, nothing is charged.
//! 4. The agent's default bucket and those of the request's [`Route`] are charged what the request
//!    costs (default 1; 0 only looks).
//! 5. Enough tokens in all of them: the request passes on, with the [`AgentId`](crate::AgentId) in
//!    its extensions.
//! 6. Not enough: 429 with `Retry-After`, and nothing is charged in any of them.
//! 7. Where buckets were asked or requests in flight counted, the answer carries `RateLimit` and
//!    `RateLimit-Policy`; those of the service stay. Other refusals say `Retry-After` when waiting
//!    helps, and agents on the allow-list and requests passed in an outage are told nothing.
//! 8. The store did not answer in time: [`Outage`](crate::Outage) says what happens.
//! 9. Banned agents get 403 until the ban ends.
//! 10. With [`receipts`](AdmissionBuilder::receipts), the answer to a request that passed, that was
//!     really charged tokens and has not got them back, and whose credential names a user other than the agent carries a [receipt](crate::receipt).
//! 11. In shadow mode all of this is decided and counted, and the request passes on. The shadow of
//!     one route is about rules 3 and 6 only.
//!
//! A connection that is upgraded (WebSocket) was one request: it is charged once, and holds a place
//! among those in flight until its 101 is answered.

mod bucket;

mod cost;

mod path;

mod route;

mod plan;

mod builder;

mod layer;

mod concurrency;

mod service;

mod reservation;

mod refusal;

#[cfg(feature = "grpc")]
mod grpc;

#[cfg(not(feature = "grpc"))]
#[path = "grpc_absent.rs"]
mod grpc;

mod proof;

mod response;

mod fields;

mod body;

mod metrics;

#[cfg(feature = "axum")]
mod extract;

pub use bucket::Bucket;

pub use cost::Cost;

pub use route::{ROUTES_MAX, Route};

pub use builder::{AdmissionBuilder, BuildError, NoIdentity, RETRY_JITTER_MAX};

pub use layer::AdmissionLayer;

pub use concurrency::CONCURRENCY_POLICY;

pub use service::{AdmissionFuture, AdmissionService};

pub use reservation::Reservation;

pub use refusal::{NEVER_RETRY_SECONDS, Refusal};

pub use body::AdmissionBody;

#[cfg(feature = "axum")]
pub use extract::{Agent, NoAgent};
