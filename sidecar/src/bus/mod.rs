//! Carries ratings from ingest to the tuner: [`Publisher`] on one end, [`Consumer`] on the other.
//!
//! 1. A rating is taken when the bus has acknowledged it, not before.
//! 2. A bus is a set of partitions, each an ordered log; all ratings of an agent are on one.
//! 3. A consumer hands out [`Event`]s in order: nothing of a partition before its `Assigned`,
//!    nothing after its `Revoked`.
//! 4. What cannot be decoded is put aside with the reason, and the position moves past it only then.
//! 5. Every queue is bounded; a full one refuses and says when to come back.

pub(crate) mod duration;
pub mod in_process;
pub mod kafka;
pub mod nats;
pub mod redis_streams;
pub mod registry;

mod config;
mod decoding;
mod error;
mod leased;

pub use config::BusConfig;
pub use decoding::{Decoding, Unread};
pub use error::{BusError, Cause, PublishError};

use crate::rating::Rating;
use std::fmt;

/// The number of a partition of the bus, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition(pub u32);

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A rating with its place on the bus.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivery {
    /// The log it stands in.
    pub partition: Partition,
    /// Its place in that log; offsets grow, with gaps.
    pub offset: u64,
    /// The rating.
    pub rating: Rating,
}

/// A partition that is this consumer's from now on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The partition.
    pub partition: Partition,
    /// The first offset that its log still holds.
    pub log_start: u64,
    /// The offset that the next record will get.
    pub log_end: u64,
}

/// What a consumer has to say, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// Partitions that are ours from now on; their first records come after the next call of
    /// [`Consumer::next`], so that [`Consumer::seek`] still decides where they begin.
    Assigned(Vec<Assignment>),
    /// Partitions that are ours no longer. Nothing of them comes any more. They are given up with
    /// the next call of [`Consumer::next`]; until then what was written may still be committed.
    Revoked(Vec<Partition>),
    /// Ratings, at most `batch_max`.
    Batch {
        /// The ratings, in order within each partition. Empty when all records were put aside.
        deliveries: Vec<Delivery>,
        /// The offset after everything handed out or put aside, of each partition that moved.
        positions: Vec<(Partition, u64)>,
    },
    /// All publishers are gone and everything was handed out; only the in-process bus ends.
    Closed,
}

/// Puts ratings on the bus. Clones share one connection.
#[derive(Clone, Debug)]
pub enum Publisher {
    /// Within this process.
    InProcess(in_process::Publisher),
    /// To Redis Streams.
    Redis(redis_streams::Publisher),
    /// To NATS JetStream.
    #[cfg(feature = "nats")]
    Nats(nats::Publisher),
    /// To a Kafka topic.
    #[cfg(feature = "kafka")]
    Kafka(kafka::publisher::Publisher),
}

impl Publisher {
    /// Puts `rating` on the bus and returns when the bus has acknowledged it.
    ///
    /// # Errors
    ///
    /// When the bus is full, unreachable or refuses this rating. After
    /// [`PublishError::Unavailable`] the rating may still arrive: publish it again under the same id.
    pub async fn publish(&self, rating: &Rating) -> Result<(), PublishError> {
        match self {
            Self::InProcess(bus) => bus.publish(rating),
            Self::Redis(bus) => bus.publish(rating).await,
            #[cfg(feature = "nats")]
            Self::Nats(bus) => bus.publish(rating).await,
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.publish(rating).await,
        }
    }

    /// Returns what kind of bus it is, as OpenTelemetry names messaging systems.
    #[must_use]
    pub fn system(&self) -> &'static str {
        match self {
            Self::InProcess(_) => "in_process",
            Self::Redis(_) => "redis",
            #[cfg(feature = "nats")]
            Self::Nats(_) => "nats",
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => "kafka",
        }
    }

    /// Returns whether the bus can be reached, from a result at most two seconds old.
    ///
    /// # Errors
    ///
    /// When it did not answer within a second.
    pub async fn check(&self) -> Result<(), BusError> {
        match self {
            Self::InProcess(bus) => bus.check(),
            Self::Redis(bus) => bus.check().await,
            #[cfg(feature = "nats")]
            Self::Nats(bus) => bus.check().await,
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.check().await,
        }
    }
}

/// Takes ratings off the bus.
#[derive(Debug)]
pub enum Consumer {
    /// Within this process.
    InProcess(in_process::Consumer),
    /// From Redis Streams, by leased partitions.
    Redis(Box<redis_streams::Consumer>),
    /// From NATS JetStream, by leased partitions.
    #[cfg(feature = "nats")]
    Nats(Box<nats::Consumer>),
    /// From a Kafka topic, in a consumer group.
    #[cfg(feature = "kafka")]
    Kafka(Box<kafka::consumer::Consumer>),
}

impl Consumer {
    /// Waits for the next event. Cancel safe: what a dropped call would have returned comes with
    /// the next one. It must be called at least every `max_poll_interval`.
    ///
    /// # Errors
    ///
    /// When the bus failed for good. A bus that is merely away is waited for, and logged.
    pub async fn next(&mut self) -> Result<Event, BusError> {
        match self {
            Self::InProcess(bus) => Ok(bus.next().await),
            Self::Redis(bus) => Ok(bus.0.next().await),
            #[cfg(feature = "nats")]
            Self::Nats(bus) => Ok(bus.0.next().await),
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.next().await,
        }
    }

    /// Returns the name of this log of ratings: offsets of another source mean something else.
    #[must_use]
    pub fn source(&self) -> &str {
        match self {
            Self::InProcess(bus) => bus.source(),
            Self::Redis(bus) => bus.0.source(),
            #[cfg(feature = "nats")]
            Self::Nats(bus) => bus.0.source(),
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.source(),
        }
    }

    /// Makes `partition`, which ends below `next` because it lost its newest ratings, give only offsets from there on;
    /// returns whether it does. Then nothing that comes is taken for what was there before, and reading goes on.
    pub async fn go_on(&mut self, partition: Partition, next: u64) -> bool {
        match self {
            Self::Redis(bus) => bus.0.go_on(partition, next).await,
            #[cfg(feature = "nats")]
            Self::Nats(bus) => bus.0.go_on(partition, next).await,
            _ => false,
        }
    }

    /// Says that `partition` ends below what was read of it, and cannot go on behind that: what comes now would be taken
    /// for what was there before. Returns whether the log gets another name for that; then everything is revoked, and
    /// assigned again under it.
    pub fn renew(&mut self, partition: Partition) -> bool {
        match self {
            Self::InProcess(_) => false,
            Self::Redis(bus) => {
                bus.0.renew(partition);
                true
            }
            #[cfg(feature = "nats")]
            Self::Nats(bus) => {
                bus.0.renew(partition);
                true
            }
            // Its name is the generation in the configuration.
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => false,
        }
    }

    /// Starts to store `positions` (next offsets) as where to resume; does not wait for it.
    ///
    /// A commit that the broker refuses is logged and counted; the next one covers it. Partitions
    /// that are not ours are left out.
    ///
    /// # Errors
    ///
    /// When the commit could not even be sent.
    pub fn commit(&mut self, positions: &[(Partition, u64)]) -> Result<(), BusError> {
        match self {
            Self::InProcess(bus) => bus.commit(positions),
            Self::Redis(bus) => {
                bus.0.commit(positions);
                Ok(())
            }
            #[cfg(feature = "nats")]
            Self::Nats(bus) => {
                bus.0.commit(positions);
                Ok(())
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.commit(positions),
        }
    }

    /// Continues `partition` from `offset`; nothing else of it is handed out from now on.
    ///
    /// # Errors
    ///
    /// When the partition is not ours, or the bus keeps nothing to go back to.
    pub fn seek(&mut self, partition: Partition, offset: u64) -> Result<(), BusError> {
        match self {
            Self::InProcess(bus) => bus.seek(partition, offset),
            Self::Redis(bus) => bus.0.seek(partition, offset),
            #[cfg(feature = "nats")]
            Self::Nats(bus) => bus.0.seek(partition, offset),
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.seek(partition, offset),
        }
    }

    /// Hands out nothing of `partitions` until [`Consumer::resume`].
    ///
    /// # Errors
    ///
    /// When the client refuses.
    pub fn pause(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        match self {
            Self::InProcess(bus) => bus.set_paused(partitions, true),
            Self::Redis(bus) => {
                bus.0.set_paused(partitions, true);
                Ok(())
            }
            #[cfg(feature = "nats")]
            Self::Nats(bus) => {
                bus.0.set_paused(partitions, true);
                Ok(())
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.pause(partitions),
        }
    }

    /// Hands out `partitions` again.
    ///
    /// # Errors
    ///
    /// When the client refuses.
    pub fn resume(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        match self {
            Self::InProcess(bus) => bus.set_paused(partitions, false),
            Self::Redis(bus) => {
                bus.0.set_paused(partitions, false);
                Ok(())
            }
            #[cfg(feature = "nats")]
            Self::Nats(bus) => {
                bus.0.set_paused(partitions, false);
                Ok(())
            }
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.resume(partitions),
        }
    }

    /// Returns how many records of each of our partitions were not handed out yet, as far as known.
    #[must_use]
    pub fn lag(&self) -> Vec<(Partition, u64)> {
        match self {
            Self::InProcess(bus) => bus.lag(),
            Self::Redis(bus) => bus.0.lag(),
            #[cfg(feature = "nats")]
            Self::Nats(bus) => bus.0.lag(),
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.lag(),
        }
    }

    /// Returns true when ratings survive this process and can be handed out again.
    #[must_use]
    pub fn durable(&self) -> bool {
        match self {
            Self::InProcess(_) => false,
            Self::Redis(_) => true,
            #[cfg(feature = "nats")]
            Self::Nats(_) => true,
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => true,
        }
    }

    /// Gives all partitions back, so that others need not wait for the session to time out.
    pub async fn close(self) {
        match self {
            Self::InProcess(bus) => drop(bus),
            Self::Redis(bus) => bus.0.close().await,
            #[cfg(feature = "nats")]
            Self::Nats(bus) => bus.0.close().await,
            #[cfg(feature = "kafka")]
            Self::Kafka(bus) => bus.close().await,
        }
    }
}
