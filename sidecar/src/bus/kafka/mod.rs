//! The bus over a Kafka topic: an idempotent producer on one end, a consumer group on the other.
//!
//! 1. A rating is acknowledged by all in-sync replicas before `publish` returns.
//! 2. The record's key is `<user>|<agent>`, for compaction; its partition is the agent's.
//! 3. A record that is no rating goes to `<topic>.dead`, and its partition waits for that.
//! 4. Offsets are committed by the tuner alone, when its writes have succeeded.
//! 5. A broker that is away is waited for; the log says so every few seconds, no more often.

pub mod config;

#[cfg(feature = "kafka")]
mod client;
#[cfg(feature = "kafka")]
pub mod consumer;
#[cfg(feature = "kafka")]
mod dead;
#[cfg(feature = "kafka")]
mod group;
#[cfg(feature = "kafka")]
mod lookup;
#[cfg(feature = "kafka")]
pub mod publisher;
#[cfg(feature = "kafka")]
mod records;
