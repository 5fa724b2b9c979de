//! What the consumer asks of the broker and must wait for, on threads where waiting is allowed.

use super::{
    client::{self, Quiet},
    config::Config,
    group::Member,
    records::{list, offset},
};
use crate::bus::{Assignment, BusError, Partition};
use rdkafka::{
    Offset,
    consumer::{Consumer as _, StreamConsumer},
    error::KafkaResult,
    topic_partition_list::TopicPartitionListElem,
};
use std::{collections::BTreeMap, thread, time::Duration};

/// How long one question may take, and how long to wait before it is asked again.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How often a seek is tried: one to a partition that is only just starting is refused.
const SEEK_TRIES: usize = 20;

/// Where a new partition begins.
pub(super) struct Start {
    pub(super) assignment: Assignment,
    /// The committed offset, else the start of the log.
    pub(super) offset: u64,
}

/// Creates the topics and returns when they are there.
pub(super) async fn create_until_there(config: Config) {
    let quiet = Quiet::default();
    while let Err(error) = client::ensure_topics(&config).await {
        client::log_outage(&quiet, &error, "creating topics");
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// Returns where `partitions` begin; asks until the broker answers or the consumer closes. Blocks.
pub(super) fn look_up(
    client: &StreamConsumer<Member>,
    topic: &str,
    partitions: &[Partition],
) -> Vec<Start> {
    let quiet = Quiet::default();
    loop {
        match try_look_up(client, topic, partitions) {
            Ok(starts) => return starts,
            Err(_) if client.context().is_closing() => return Vec::new(),
            Err(error) => client::log_outage(&quiet, &error, "looking up new partitions"),
        }
        thread::sleep(AGAIN_AFTER);
    }
}

fn try_look_up(
    client: &StreamConsumer<Member>,
    topic: &str,
    partitions: &[Partition],
) -> KafkaResult<Vec<Start>> {
    let asked = list(topic, partitions.iter().map(|&partition| (partition, Offset::Invalid)));
    let committed = client.committed_offsets(asked, ASK_DEADLINE)?;
    let mut starts = Vec::with_capacity(partitions.len());
    for element in committed.elements() {
        element.error()?;
        let (low, high) = client.fetch_watermarks(topic, element.partition(), ASK_DEADLINE)?;
        let [log_start, log_end] = [low, high].map(|mark| u64::try_from(mark).unwrap_or(0));
        let number =
            u32::try_from(element.partition()).expect("assigned partitions are not negative");
        let offset = match element.offset() {
            Offset::Offset(committed) => u64::try_from(committed).unwrap_or(log_start),
            _ => log_start,
        };
        let partition = Partition(number);
        starts.push(Start { assignment: Assignment { partition, log_start, log_end }, offset });
    }
    Ok(starts)
}

/// Moves each partition to its offset. Blocks.
pub(super) fn seek(
    client: &StreamConsumer<Member>,
    topic: &str,
    wanted: &BTreeMap<Partition, u64>,
) -> Result<(), BusError> {
    for (&partition, &next) in wanted {
        let mut tries = 0;
        while let Err(source) = try_seek(client, topic, partition, next) {
            tries += 1;
            if tries == SEEK_TRIES || client.context().is_closing() {
                return Err(BusError::Seek { partition, offset: next, source: source.into() });
            }
            thread::sleep(AGAIN_AFTER);
        }
    }
    Ok(())
}

fn try_seek(
    client: &StreamConsumer<Member>,
    topic: &str,
    partition: Partition,
    next: u64,
) -> KafkaResult<()> {
    let places = list(topic, std::iter::once((partition, offset(next))));
    let done = client.seek_partitions(places, ASK_DEADLINE)?;
    done.elements().iter().try_for_each(TopicPartitionListElem::error)
}
