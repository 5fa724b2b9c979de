//! The bus over Redis Streams: the smallest real deployment needs Redis alone.
//!
//! 1. A partition is a stream, `<topic>:{<n>}`, read in order by the one member that leases it.
//! 2. A rating is acknowledged when the server has it; how much that is worth is the server's
//!    `appendonly` and `appendfsync`, and `replicas` here.
//! 3. An entry has the fields `rating` and `n`, its count within the partition. An entry by somebody
//!    else needs `rating` only, and the server's own id (`XADD … *`).
//! 4. What is committed is removed; a partition that is full refuses, and says when to come back.
//! 5. Entries that are no ratings go to the stream `<topic>:dead`, which keeps the newest.

pub mod config;

mod link;
mod log;
mod publisher;

pub use publisher::Publisher;

use super::{
    BusError,
    leased::{self, Terms},
};
use config::Config;
use std::sync::Arc;

/// Takes ratings off the streams, sharing the partitions with other members.
#[derive(Debug)]
pub struct Consumer(pub(super) leased::Consumer<log::Streams>);

/// Returns the consuming end: a member, or one that `follows` beside them.
///
/// # Errors
///
/// When the address or a secret cannot be used, or this build lacks the encoding.
pub(super) fn consumer(config: &Config, follows: bool) -> Result<Consumer, BusError> {
    let log = log::Streams::new(config)?;
    let terms = Terms {
        me: config.instance.clone().unwrap_or_else(leased::member_name),
        lease: config.lease,
        batch_max: config.batch_max,
        codec: config.codec()?,
        follows,
    };
    Ok(Consumer(leased::Consumer::new(Arc::new(log), terms)))
}
