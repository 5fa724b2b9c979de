//! What the consumer asks of the broker and must wait for, on threads where waiting is allowed.

use super::{
    client::{self, Quiet},
    config::Config,
    group::Member,
    records::{list, offset},
};
use crate::bus::{Assignment, Partition};
use rdkafka::{
    Offset,
    consumer::{Consumer as _, StreamConsumer},
    error::{KafkaError, KafkaResult},
};
use std::{collections::BTreeMap, thread, time::Duration};

/// How long one question may take, and how long to wait before it is asked again.
const ASK_DEADLINE: Duration = Duration::from_secs(2);
const AGAIN_AFTER: Duration = Duration::from_millis(200);

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

/// Places where librdkafka did not go, and why not.
pub(super) struct Refused {
    pub(super) places: BTreeMap<Partition, u64>,
    pub(super) error: KafkaError,
}

/// Moves each partition to its offset, tried once: a partition that is only just starting refuses,
/// and so does librdkafka at times while brokers are away. Blocks, for two seconds at most.
pub(super) fn seek(
    client: &StreamConsumer<Member>,
    topic: &str,
    wanted: BTreeMap<Partition, u64>,
) -> Result<(), Refused> {
    let places = list(topic, wanted.iter().map(|(&partition, &next)| (partition, offset(next))));
    let done = match client.seek_partitions(places, ASK_DEADLINE) {
        Ok(done) => done,
        Err(error) => return Err(Refused { places: wanted, error }),
    };
    let mut refused = None;
    for element in done.elements() {
        let Err(error) = element.error() else { continue };
        let number = u32::try_from(element.partition()).expect("what was asked is not negative");
        let refused = refused.get_or_insert_with(|| Refused { places: BTreeMap::new(), error });
        refused.places.insert(Partition(number), wanted[&Partition(number)]);
    }
    refused.map_or(Ok(()), Err)
}
