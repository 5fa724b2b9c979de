//! A partitioned log with one leased owner per partition: what Redis Streams and NATS JetStream have
//! in common.
//!
//! 1. Whoever consumes is a member; a member that is silent for a lease is none any more.
//! 2. Members share the partitions evenly: in the order of their names, each claims as many as are
//!    its due, renews them three times in a lease, and gives up what is too much.
//! 3. Only the owner reads a partition, in order, from where it was last committed or sought.
//! 4. A lease that could not be renewed in time is given up here before others may claim it. Clocks
//!    may disagree: then two read for a moment, and the store's own fence keeps one from writing.
//! 5. Whoever follows ([`Terms::follows`]) reads all partitions beside the members: it leases, commits and puts
//!    aside nothing, so it holds nothing back, and what is removed before it reads it, it misses.
//! 6. Each read says which log it read. One that was lost and made anew, or that lost its newest records, is
//!    another log: its offsets are given twice. The member that notices gives it another name, and what is
//!    still there is read again under that.
//! 7. What ails one partition leaves that one out, and no other.

mod consumer;
mod keep;
mod sizes;

pub(in crate::bus) use consumer::Consumer;
pub(in crate::bus) use sizes::Sizes;

use super::{Cause, Partition};
use crate::{rating::Codec, trace::TraceContext};
use std::time::Duration;

/// A record as it lies on the log.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Its place; the next one has a larger one.
    pub(super) offset: u64,
    /// How many records were put on the partition before it, and itself, where that is known.
    pub(super) number: Option<u64>,
    /// When the log took it, in Unix milliseconds.
    pub(super) taken_ms: u64,
    /// What was put there; `None` when it has no field of the name we know.
    pub(super) payload: Option<Vec<u8>>,
    /// The span that it was put there in.
    pub(super) trace: Option<TraceContext>,
}

/// What one read found.
#[derive(Debug, Default)]
pub(super) struct Read {
    /// The log that it read.
    pub(super) source: String,
    /// Records of each partition that had some, in order.
    pub(super) records: Vec<(Partition, Vec<Record>)>,
    /// Partitions that could not be read.
    pub(super) faults: Vec<(Partition, Cause)>,
    /// Partitions whose last record that was read is another one now.
    pub(super) lost: Vec<Partition>,
}

/// Where the log of a partition begins and ends.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Bounds {
    /// The first offset that it still holds; 0 when nothing was ever removed.
    pub(super) start: u64,
    /// An offset above those of all records, and at most that of the next one.
    pub(super) end: u64,
    /// The number of the newest record.
    pub(super) newest: u64,
    /// How many records it holds from `committed` on, at most.
    pub(super) unread: u64,
    /// Where whoever had it before would have gone on.
    pub(super) committed: Option<u64>,
    /// Whether it was made anew since its name was drawn.
    pub(super) anew: bool,
}

/// What is known of a log as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    /// Its name, drawn at random when it was made.
    pub(super) source: String,
    /// How many partitions it has; they may become more.
    pub(super) partitions: u32,
    /// The names of all members, this one among them, in order.
    pub(super) members: Vec<String>,
}

/// A record that is no rating.
#[derive(Debug)]
pub(super) struct Letter<'a> {
    pub(super) partition: Partition,
    pub(super) offset: u64,
    pub(super) payload: &'a [u8],
    pub(super) reason: &'a str,
}

/// How to take part.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    /// The name of this member, which no other has.
    pub(super) me: String,
    /// How long a partition is ours without being renewed.
    pub(super) lease: Duration,
    /// Most records in one batch.
    pub(super) batch_max: usize,
    /// How ratings are read.
    pub(super) codec: Codec,
    /// Whether it reads everything beside the members, and is none.
    pub(super) follows: bool,
}

/// A log with its leases. Every call has a deadline of its own.
pub(super) trait Log: Send + Sync + 'static {
    /// What reads it; there is one.
    type Reader: Reader;

    /// Returns where it is, for messages.
    fn address(&self) -> &str;

    /// Returns a reader, which connects when it is first used.
    fn reader(&self) -> Self::Reader;

    /// Returns the log's name and how many partitions it has, without taking part; makes the log when
    /// there is none.
    fn look(&self) -> impl Future<Output = Result<(String, u32), Cause>> + Send;

    /// Takes part as `me` for another `lease`; makes the log when there is none.
    fn join(&self, me: &str, lease: Duration) -> impl Future<Output = Result<Whole, Cause>> + Send;

    /// Claims or renews each of `partitions` for `me`; returns those that are ours now.
    fn claim(
        &self,
        me: &str,
        partitions: &[Partition],
        lease: Duration,
    ) -> impl Future<Output = Result<Vec<Partition>, Cause>> + Send;

    /// Lets others have `partitions` at once; with `leaves`, stops taking part.
    fn release(
        &self,
        me: &str,
        partitions: &[Partition],
        leaves: bool,
    ) -> impl Future<Output = Result<(), Cause>> + Send;

    /// Returns the bounds of each of `partitions`, in their order.
    fn bounds(
        &self,
        partitions: &[Partition],
    ) -> impl Future<Output = Result<Vec<Result<Bounds, Cause>>, Cause>> + Send;

    /// Makes `partition`, which lost its newest records, give only offsets from `next` on, if it is sure that it gave none
    /// below to other records since; returns whether it does.
    fn go_on(
        &self,
        partition: Partition,
        next: u64,
    ) -> impl Future<Output = Result<bool, Cause>> + Send;

    /// Gives the log `source` another name, unless it has one already, and forgets what was committed of the
    /// partitions in `lost`.
    fn renew(
        &self,
        source: &str,
        lost: &[Partition],
    ) -> impl Future<Output = Result<(), Cause>> + Send;

    /// Notes for each partition of the log `source` that is `me`'s that everything below the offset
    /// is done with: it may be removed.
    fn commit(
        &self,
        me: &str,
        source: &str,
        positions: &[(Partition, u64)],
    ) -> impl Future<Output = Result<(), Cause>> + Send;

    /// Puts a record aside; one that is too large is cut, and says so.
    fn put_aside(&self, letter: &Letter<'_>) -> impl Future<Output = Result<(), Cause>> + Send;
}

/// Reads a log.
pub(super) trait Reader: Send + 'static {
    /// Waits a little for records from the given offsets on, and returns at most about `max`.
    fn read(
        &mut self,
        from: &[(Partition, u64)],
        max: usize,
    ) -> impl Future<Output = Result<Read, Cause>> + Send;
}

/// Returns a name that no other member has.
pub(super) fn member_name() -> String {
    let mut id = [0; 8];
    aws_lc_rs::rand::fill(&mut id).expect("the operating system gives random bytes");
    format!("m{:016x}", u64::from_be_bytes(id))
}

/// Returns a name for a new log.
pub(super) fn source_name() -> String {
    let mut id = [0; 8];
    aws_lc_rs::rand::fill(&mut id).expect("the operating system gives random bytes");
    format!("s{:016x}", u64::from_be_bytes(id))
}
