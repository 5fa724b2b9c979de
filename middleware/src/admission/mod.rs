//! Admission: may this request pass?
//!
//! 1. No credential, or one that does not verify: 401 with `WWW-Authenticate`, no bucket touched.
//!    Verified but without a usable agent id: 403.
//! 2. The agent's bucket is charged the cost of a request (default 1; 0 only looks).
//! 3. Enough tokens: the request passes on, with the [`AgentId`](crate::AgentId) in its extensions.
//! 4. Not enough: 429 with `Retry-After`, and nothing is charged.
//! 5. Every answer carries `RateLimit` and `RateLimit-Policy`; those of the service stay.
//! 6. The store did not answer in time: [`Outage`](crate::Outage) says what happens.
//! 7. Banned agents get 403 until the ban ends.
//! 8. With [`receipts`](AdmissionBuilder::receipts), the answer to a request that passed and whose
//!    credential names a user other than the agent carries a [receipt](crate::receipt).

mod layer;

mod service;

mod refusal;

mod response;

#[cfg(feature = "grpc")]
mod grpc;

#[cfg(not(feature = "grpc"))]
#[path = "grpc_absent.rs"]
mod grpc;

mod proof;

#[cfg(feature = "axum")]
mod extract;

pub use layer::{AdmissionBuilder, AdmissionLayer, Bucket, BuildError, NoIdentity};

pub use service::{AdmissionFuture, AdmissionService};

pub use refusal::{NEVER_RETRY_SECONDS, Refusal};

pub use response::AdmissionBody;

#[cfg(feature = "axum")]
pub use extract::{Agent, NoAgent};
