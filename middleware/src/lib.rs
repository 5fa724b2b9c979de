//! Rate limits that AI agents earn: a Tower layer for axum, tonic and hyper services.
//!
//! The layer learns the agent from its JWT, takes a token from the agent's bucket, and passes the
//! request on or answers 429 with `Retry-After`. Buckets live in Redis, shared by every node; the
//! Merit sidecar sets each agent's refill rate and capacity there, live, from users' ratings. The
//! two halves never call each other: without a sidecar the configured limits hold.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore};
//!
//! let store = MemoryStore::new(); // or RedisStore::connect("redis://127.0.0.1:6379").await?
//! let admission = AdmissionLayer::builder(store)
//!     .identity(JwtIdentity::hs256(b"a secret of at least thirty-two bytes").claim("agent_id"))
//!     .bucket(Bucket::per_second(20.0).capacity(40))
//!     .build()?;
//! let app: Router = Router::new().route("/", get(async || "hello")).layer(admission);
//! # let _ = app;
//! # Ok::<(), tower_merit::BuildError>(())
//! ```
//!
//! In the order in which a request meets them, and [`retry_after`] for the callers' side:

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

mod agent;

pub mod problem;

pub mod identity;

pub mod bucket;

pub mod store;

mod outage;

pub mod receipt;

pub mod admission;

pub mod retry_after;

pub use admission::{
    AdmissionBody, AdmissionLayer, AdmissionService, Bucket, BuildError, Cost, Refusal,
    Reservation, Route,
};
pub use agent::{AGENT_ID_MAX, AgentId, AgentIdError};
pub use identity::{
    ApiKeyIdentity, Caller, Identify, JwtIdentity, JwtVerifier, PeerAddr, PeerIdentity,
};
pub use outage::{FAILURES_TO_OPEN, Outage, PROBE_INTERVAL};
pub use problem::Problem;
pub use receipt::ReceiptKeys;
pub use retry_after::RetryAfterLayer;
pub use store::{MemoryStore, RedisStore, Spend, Tune};
