//! Between Kafka's records and ours: what was gathered, and places on a topic in Kafka's terms.

use crate::bus::{Delivery, Event, Partition};
use rdkafka::{Message, Offset, Timestamp, TopicPartitionList, message::BorrowedMessage};
use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

/// What the next batch will be.
#[derive(Default)]
pub(super) struct Gathered {
    pub(super) deliveries: Vec<Delivery>,
    pub(super) positions: BTreeMap<Partition, u64>,
}

impl Gathered {
    /// Returns all as a batch, or nothing when nothing moved.
    pub(super) fn take(&mut self) -> Option<Event> {
        if self.positions.is_empty() {
            return None;
        }
        let Self { deliveries, positions } = std::mem::take(self);
        Some(Event::Batch { deliveries, positions: positions.into_iter().collect() })
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

pub(super) fn timestamp_ms(record: &BorrowedMessage<'_>) -> u64 {
    match record.timestamp() {
        Timestamp::CreateTime(ms) | Timestamp::LogAppendTime(ms) => u64::try_from(ms).ok(),
        Timestamp::NotAvailable => None,
    }
    .unwrap_or_else(|| {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    })
}
