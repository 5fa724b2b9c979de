//! Between Kafka's records and ours: what was gathered, and places on a topic in Kafka's terms.

use crate::{
    bus::{Delivery, Event, Partition},
    clock::unix_ms,
    trace::{TRACEPARENT, TraceContext},
};
use rdkafka::{
    Message, Offset, Timestamp, TopicPartitionList,
    message::{BorrowedMessage, Headers as _},
};
use std::collections::{BTreeMap, BTreeSet};

/// What the next batch will be.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) positions: BTreeMap<Partition, u64>,
}

impl Gathered {
    /// Returns as a batch what is of partitions not `held`, or nothing when none of them moved. Of
    /// what was held and is no longer, only whole partitions and at most `max` deliveries.
    pub(super) fn take(&mut self, held: &BTreeSet<Partition>, max: usize) -> Option<Event> {
        let mut kept = Self::default();
        if !held.is_empty() || self.deliveries.len() > max {
            let ready = self.ready(held, max);
            let split = |p: &Partition| ready.contains(p);
            (self.deliveries, kept.deliveries) =
                std::mem::take(&mut self.deliveries).into_iter().partition(|d| split(&d.partition));
            (self.positions, kept.positions) =
                std::mem::take(&mut self.positions).into_iter().partition(|(p, _)| split(p));
        }
        let Self { deliveries, positions } = std::mem::replace(self, kept);
        if positions.is_empty() {
            return None;
        }
        Some(Event::Batch { deliveries, positions: positions.into_iter().collect() })
    }

    fn ready(&self, held: &BTreeSet<Partition>, max: usize) -> BTreeSet<Partition> {
        let mut counts: BTreeMap<Partition, usize> =
            self.positions.keys().filter(|p| !held.contains(p)).map(|&p| (p, 0)).collect();
        for delivery in &self.deliveries {
            if let Some(count) = counts.get_mut(&delivery.partition) {
                *count += 1;
            }
        }
        let mut sum = 0;
        // No partition has more than `max`; were it so, it would still come, alone.
        let mut fits = |count: usize| {
            let fits = sum == 0 || sum + count <= max;
            sum += if fits { count } else { 0 };
            fits
        };
        counts.into_iter().filter(|&(_, count)| fits(count)).map(|(p, _)| p).collect()
    }

    pub(super) fn forget(&mut self, partition: Partition) {
        self.positions.remove(&partition);
        self.deliveries.retain(|delivery| delivery.partition != partition);
    }
}

pub(super) fn list(
    topic: &str,
    places: impl Iterator<Item = (Partition, Offset)>,
) -> TopicPartitionList {
    let mut list = TopicPartitionList::new();
    for (partition, offset) in places {
        let number = i32::try_from(partition.0).expect("partition numbers come from Kafka's i32");
        list.add_partition_offset(topic, number, offset).expect("offsets are valid");
    }
    list
}

/// Returns `next` as Kafka has it.
pub(super) fn offset(next: u64) -> Offset {
    Offset::Offset(i64::try_from(next).unwrap_or(i64::MAX))
}

/// Returns what a record's headers say of a trace.
pub(super) fn trace(record: &BorrowedMessage<'_>) -> Option<TraceContext> {
    let said = record.headers()?.iter().find(|header| header.key == TRACEPARENT)?;
    TraceContext::parse(std::str::from_utf8(said.value?).ok()?)
}

pub(super) fn timestamp_ms(record: &BorrowedMessage<'_>) -> u64 {
    match record.timestamp() {
        Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => u64::try_from(ms).ok(),
        Timestamp::NotAvailable => None,
    }
    .unwrap_or_else(unix_ms)
}
