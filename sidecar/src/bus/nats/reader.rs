//! Reads streams: one consumer of the server's for each partition, which is made anew whenever
//! another place is asked for than it has come to, and when a message of it went astray: the server has
//! no acknowledgement to wait for, and what was on its way when a connection broke does not come again.
//!
//! A consumer that is made anew begins with the last message that was read, where there was one: when that is
//! another one now, the server has lost the end of the stream, and gives sequence numbers twice.

use super::link::Link;
use crate::{
    bus::{
        Cause, Partition,
        leased::{Read, Reader, Record},
    },
    trace::{TRACEPARENT, TraceContext},
};
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, pull},
    kv,
};
use futures_util::{StreamExt as _, stream};
use std::{
    collections::BTreeMap,
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// How long an empty read waits: a new partition waits for it.
const WAIT: Duration = Duration::from_millis(100);
/// How many of the server's consumers are asked for at once.
const AT_ONCE: usize = 32;
/// How long the server keeps a consumer that asks for nothing.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);
/// How often the server says that it is there while there is nothing to hand out.
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long one request for messages stands.
const EXPIRES: Duration = Duration::from_secs(20);

/// Reads streams.
pub(in crate::bus) struct StreamReader {
    link: Link,
    log: Option<kv::Store>,
    places: BTreeMap<Partition, Place>,
    /// The last that was read of those that have no place any more.
    last: BTreeMap<Partition, Known>,
}

/// What was found, beside the name of the log.
#[derive(Default)]
struct Found {
    /// What each partition had, in order.
    records: Vec<(Partition, Vec<Record>)>,
    faults: Vec<(Partition, Cause)>,
    lost: Vec<Partition>,
}

/// A message that was read: its sequence number, and when the server took it in Unix nanoseconds.
type Known = (u64, i128);

/// The message that was read last is another one now.
#[derive(Debug, thiserror::Error)]
#[error("sequence number {0} is another message's now")]
struct Lost(u64);

/// Where a partition is read.
struct Place {
    next: u64,
    /// The number of the last message that the server's consumer has handed out.
    handed_out: u64,
    /// The last that was read, until it was seen again.
    expects: Option<Known>,
    /// The last that was read.
    last: Option<Known>,
    messages: pull::Stream,
}

impl Place {
    /// Takes what has come, at most `each`; what came before an error is given up with it.
    fn poll(&mut self, context: &mut Context<'_>, each: usize) -> Result<Vec<Record>, Cause> {
        let mut records = Vec::new();
        while records.len() < each {
            match self.messages.poll_next_unpin(context) {
                Poll::Pending => break,
                Poll::Ready(Some(Ok(message))) => {
                    let number = message.info()?.consumer_sequence;
                    if number != self.handed_out + 1 {
                        let expected = self.handed_out + 1;
                        return Err(format!("message {expected} went astray, {number} came").into());
                    }
                    self.handed_out = number;
                    let known = known(&message)?;
                    if let Some(expected) = self.expects.take()
                        && known.0 == expected.0
                    {
                        if known.1 != expected.1 {
                            return Err(Lost(expected.0).into());
                        }
                        continue;
                    }
                    self.last = Some(known);
                    records.push(record(&message)?);
                }
                Poll::Ready(Some(Err(error))) => return Err(error.into()),
                Poll::Ready(None) => return Err("the server closed a consumer".into()),
            }
        }
        if let Some(last) = records.last() {
            self.next = last.offset + 1;
        }
        Ok(records)
    }
}

impl StreamReader {
    pub(super) fn new(link: Link) -> Self {
        Self { link, log: None, places: BTreeMap::new(), last: BTreeMap::new() }
    }

    async fn begin(&self, partition: Partition, next: u64, max: usize) -> Result<Place, Cause> {
        let last = self.last.get(&partition).copied();
        let expects = last.filter(|(sequence, _)| sequence + 1 == next);
        let start_sequence = expects.map_or(next, |(sequence, _)| sequence).max(1);
        let stream = self.link.context.get_stream_no_info(self.link.stream_name(partition)).await?;
        let consumer = stream.create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence },
            ack_policy: AckPolicy::None,
            inactive_threshold: FORGOTTEN_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..Default::default()
        });
        let messages = consumer
            .await?
            .stream()
            .max_messages_per_batch(max)
            .heartbeat(HEARTBEAT)
            .expires(EXPIRES)
            .messages()
            .await?;
        Ok(Place { next, handed_out: 0, expects, last: expects, messages })
    }

    /// Takes what has come, at most `each` of a partition; ready when there is something.
    fn poll(&mut self, context: &mut Context<'_>, each: usize) -> Poll<Found> {
        let mut found = Found::default();
        let last = &mut self.last;
        self.places.retain(|partition, place| {
            let outcome = place.poll(context, each);
            if let Some(known) = place.last {
                last.insert(*partition, known);
            }
            match outcome {
                Ok(records) => {
                    if !records.is_empty() {
                        found.records.push((*partition, records));
                    }
                    return true;
                }
                Err(error) if error.is::<Lost>() => {
                    last.remove(partition);
                    found.lost.push(*partition);
                }
                // Whatever it had come to is not known any more.
                Err(error) => found.faults.push((*partition, error)),
            }
            false
        });
        let nothing = found.records.is_empty() && found.faults.is_empty() && found.lost.is_empty();
        if nothing { Poll::Pending } else { Poll::Ready(found) }
    }

    async fn seek_and_wait(
        &mut self,
        from: &[(Partition, u64)],
        max: usize,
    ) -> Result<Read, Cause> {
        let there = |partition: &Partition, place: &mut Place| {
            from.iter().any(|(wanted, next)| wanted == partition && *next == place.next)
        };
        self.places.retain(there);
        let mut missing = from.to_vec();
        missing.retain(|(partition, _)| !self.places.contains_key(partition));
        let this = &*self;
        let begin = |(partition, next): (Partition, u64)| async move {
            (partition, this.begin(partition, next, max).await)
        };
        let begin: Vec<_> = missing.into_iter().map(begin).collect();
        let begun: Vec<_> = stream::iter(begin).buffered(AT_ONCE).collect().await;
        let mut failed = Vec::new();
        for (partition, place) in begun {
            match place {
                Ok(place) => drop(self.places.insert(partition, place)),
                Err(error) => failed.push((partition, error)),
            }
        }
        if failed.len() == from.len()
            && let Some((_, error)) = failed.pop()
        {
            return Err(error);
        }
        let each = (max / from.len().max(1)).max(1);
        let found = timeout(WAIT, poll_fn(|context| self.poll(context, each))).await;
        let Found { records, mut faults, lost } = found.unwrap_or_default();
        faults.extend(failed);
        // Asked after the records: had the log been lost before, it would have another name by now.
        let log = match &self.log {
            Some(log) => log,
            None => self.log.insert(self.link.log_bucket().await?),
        };
        let source = log.get("source").await?.unwrap_or_default();
        Ok(Read { source: String::from_utf8(source.to_vec())?, records, faults, lost })
    }
}

impl Reader for StreamReader {
    async fn read(&mut self, from: &[(Partition, u64)], max: usize) -> Result<Read, Cause> {
        let read = self.seek_and_wait(from, max).await;
        if read.is_err() {
            // Whatever they had come to is not known any more.
            self.places.clear();
        }
        read
    }
}

fn known(message: &jetstream::Message) -> Result<Known, Cause> {
    let info = message.info()?;
    Ok((info.stream_sequence, info.published.unix_timestamp_nanos()))
}

fn record(message: &jetstream::Message) -> Result<Record, Cause> {
    let info = message.info()?;
    let published = info.published.unix_timestamp_nanos() / 1_000_000;
    Ok(Record {
        offset: info.stream_sequence,
        number: Some(info.stream_sequence),
        taken_ms: u64::try_from(published).unwrap_or(0),
        payload: Some(message.payload.to_vec()),
        trace: message
            .headers
            .as_ref()
            .and_then(|headers| TraceContext::parse(headers.get(TRACEPARENT)?.as_str())),
    })
}
