//! The bus over NATS JetStream.
//!
//! 1. A partition is a stream, `<topic>-<n>` (dots as `_`), with the one subject `<topic>.<n>`; its
//!    sequence numbers are the offsets. It is read in order by the one member that leases it.
//! 2. A rating is acknowledged when its stream has stored it, on as many servers as it has replicas.
//! 3. What is committed is purged; a stream that is full refuses, and says when to come back.
//! 4. Leases and members are in a key-value bucket that forgets after a lease; the log's name, its
//!    number of partitions and what was committed are in another that does not.
//! 5. Messages that are no ratings go to the stream `<topic>_dead`, which keeps the newest.

pub mod config;

#[cfg(feature = "nats")]
mod link;
#[cfg(feature = "nats")]
mod log;
#[cfg(feature = "nats")]
mod publisher;
#[cfg(feature = "nats")]
mod reader;

#[cfg(feature = "nats")]
pub use publisher::Publisher;

#[cfg(feature = "nats")]
pub(super) use consuming::{Consumer, consumer};

#[cfg(feature = "nats")]
mod consuming {
    use super::{config::Config, link::Link, log::JetStream};
    use crate::bus::{
        BusError,
        leased::{self, Terms},
    };
    use std::sync::Arc;

    /// Takes ratings off the streams, sharing the partitions with other members.
    #[derive(Debug)]
    pub struct Consumer(pub(in crate::bus) leased::Consumer<JetStream>);

    /// Returns the consuming end: a member, or one that `follows` beside them.
    ///
    /// # Errors
    ///
    /// When a secret cannot be read or the client refuses its settings.
    pub(in crate::bus) async fn consumer(
        config: &Config,
        follows: bool,
    ) -> Result<Consumer, BusError> {
        let log = JetStream::new(Link::open(config).await?);
        let terms = Terms {
            me: config.instance.clone().unwrap_or_else(leased::member_name),
            lease: config.lease,
            batch_max: config.batch_max,
            codec: config.codec()?,
            follows,
        };
        Ok(Consumer(leased::Consumer::new(Arc::new(log), terms)))
    }
}
