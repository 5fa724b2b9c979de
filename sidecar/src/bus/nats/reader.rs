//! Reads streams: one consumer of the server's for each partition, which is made anew whenever
//! another place is asked for than it has come to.

use super::link::Link;
use crate::bus::{
    Cause, Partition,
    leased::{Read, Reader, Record},
};
use async_nats::jetstream::{
    self,
    consumer::{AckPolicy, DeliverPolicy, pull},
    kv,
};
use futures_util::StreamExt as _;
use std::{
    collections::BTreeMap,
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};
use tokio::time::timeout;

/// How long an empty read waits: a new partition waits for it.
const WAIT: Duration = Duration::from_millis(100);
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
}

/// What each partition had, in order.
type Records = Vec<(Partition, Vec<Record>)>;

/// Where a partition is read.
struct Place {
    next: u64,
    messages: pull::Stream,
}

impl StreamReader {
    pub(super) fn new(link: Link) -> Self {
        Self { link, log: None, places: BTreeMap::new() }
    }

    async fn begin(&self, partition: Partition, next: u64, max: usize) -> Result<Place, Cause> {
        let stream = self.link.context.get_stream_no_info(self.link.stream_name(partition)).await?;
        let consumer = stream.create_consumer(pull::Config {
            deliver_policy: DeliverPolicy::ByStartSequence { start_sequence: next.max(1) },
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
        Ok(Place { next, messages })
    }

    /// Takes what has come, at most `each` of a partition; ready when there is something.
    fn poll(&mut self, context: &mut Context<'_>, each: usize) -> Poll<Result<Records, Cause>> {
        let mut found = Vec::new();
        for (partition, place) in &mut self.places {
            let mut records = Vec::new();
            while records.len() < each {
                match place.messages.poll_next_unpin(context) {
                    Poll::Pending => break,
                    Poll::Ready(Some(Ok(message))) => records.push(record(&message)?),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error.into())),
                    Poll::Ready(None) => {
                        return Poll::Ready(Err("the server closed a consumer".into()));
                    }
                }
            }
            if let Some(last) = records.last() {
                place.next = last.offset + 1;
                found.push((*partition, records));
            }
        }
        if found.is_empty() { Poll::Pending } else { Poll::Ready(Ok(found)) }
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
        for (partition, next) in from {
            if !self.places.contains_key(partition) {
                let place = self.begin(*partition, *next, max).await?;
                self.places.insert(*partition, place);
            }
        }
        let each = (max / from.len().max(1)).max(1);
        let records = match timeout(WAIT, poll_fn(|context| self.poll(context, each))).await {
            Ok(found) => found?,
            Err(_) => Vec::new(),
        };
        // Asked after the records: had the log been lost before, it would have another name by now.
        let log = match &self.log {
            Some(log) => log,
            None => self.log.insert(self.link.log_bucket().await?),
        };
        let source = log.get("source").await?.unwrap_or_default();
        Ok(Read { source: String::from_utf8(source.to_vec())?, records })
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

fn record(message: &jetstream::Message) -> Result<Record, Cause> {
    let info = message.info()?;
    let published = info.published.unix_timestamp_nanos() / 1_000_000;
    Ok(Record {
        offset: info.stream_sequence,
        number: info.stream_sequence,
        taken_ms: u64::try_from(published).unwrap_or(0),
        payload: Some(message.payload.to_vec()),
    })
}
