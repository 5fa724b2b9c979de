//! The harness of the integration tests: real servers and the real `merit` binary, each in a
//! folder of its own, on free loopback ports, dead when the test is.
//!
//! Nothing here skips: a server that is missing or does not start fails the test with the command
//! that would help.

mod authority;
mod collector;
mod cutter;
mod folder;
mod installed;
mod issuer;
pub mod ports;
mod process;
mod wait;

mod envoy;
mod feed_server;
mod kafka_server;
mod merit;
mod nats_server;
mod redis_cluster;
mod redis_sentinel;
mod redis_server;
mod schema_registry;
mod upstream;
mod wall_clock;

pub mod acl;
pub mod browser;
pub mod client;
pub mod fold;
pub mod keys;
pub mod over_redis;
pub mod ratings;
pub mod requests;
pub mod sse;

/// The client that a caller with tonic generates from the `.proto`.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod rating_v1 {
    include!("../../sidecar/schema/generated/merit.rating.v1.client.rs");
}

pub use authority::Authority;
pub use collector::{Collector, Span};
pub use cutter::Cutter;
pub use envoy::Envoy;
pub use feed_server::{FeedServer, Sent};
pub use folder::Folder;
pub use issuer::{Issuer, Says};
pub use kafka_server::Kafka;
pub use merit::{Bus, Identity, Merit, Role, Settings, binary, program};
pub use nats_server::Nats;
pub use process::{Process, processor_of_the_ended};
pub use redis_cluster::RedisCluster;
pub use redis_sentinel::RedisSentinel;
pub use redis_server::{Persistence, Redis};
pub use schema_registry::{SchemaRegistry, python};
pub use upstream::Upstream;
pub use wait::{eventually, unix_time, until};
pub use wall_clock::WallClock;

/// Issuer that every test token names and every test configuration asks for.
pub const ISSUER: &str = "https://id.test.example/";
/// Audience that every test token names and every test configuration asks for.
pub const AUDIENCE: &str = "merit-test";
/// The shared secret of HS256 tokens, at least as long as the hash.
pub const SECRET: &str = "an integration test secret of more than thirty-two bytes";
/// The environment variable that carries [`SECRET`] to the binary.
pub const SECRET_ENV: &str = "MERIT_JWT_SECRET";
/// The yardstick of measurements: the token bucket everybody writes (floats, HMGET, HSET, PEXPIRE).
/// `KEYS[1]` is the bucket, `ARGV` its capacity and its tokens per second; answers 1 or 0, and what
/// is left.
pub const PLAIN_LUA: &str = include_str!("plain.lua");
