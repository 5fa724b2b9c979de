//! What librdkafka tells a member of the consumer group, kept until the consumer asks.
//!
//! Rebalances arrive inside a poll, where nothing may block. They are only noted here; the consumer
//! hands them out in order and answers librdkafka afterwards, which until then neither fetches
//! nor lets the group go on. While closing nobody asks any more, so they are answered at once.

use super::client::{Logs, Quiet};
use crate::bus::Partition;
use rdkafka::{
    ClientContext, Statistics, TopicPartitionList,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, Consumer, ConsumerContext},
    error::{KafkaError, KafkaResult},
    types::RDKafkaRespErr,
};
use std::{
    collections::{BTreeMap, VecDeque},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};
use tracing::warn;

/// A change of the assignment that librdkafka waits to have answered.
#[derive(Debug)]
pub(super) enum Step {
    Assign(Vec<Partition>),
    Revoke(Vec<Partition>),
}

/// The context of a consumer in the group.
pub(super) struct Member {
    topic: String,
    logs: Logs,
    steps: Mutex<VecDeque<Step>>,
    closing: AtomicBool,
    /// The end of each partition's log, as librdkafka's statistics have it.
    ends: Mutex<BTreeMap<Partition, u64>>,
    uncommitted: Quiet,
}

impl Member {
    pub(super) fn new(topic: &str) -> Self {
        Self {
            topic: topic.to_owned(),
            logs: Logs::default(),
            steps: Mutex::default(),
            closing: AtomicBool::new(false),
            ends: Mutex::default(),
            uncommitted: Quiet::default(),
        }
    }

    fn steps(&self) -> MutexGuard<'_, VecDeque<Step>> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn has_step(&self) -> bool {
        !self.steps().is_empty()
    }

    pub(super) fn push_step(&self, step: Step) {
        self.steps().push_back(step);
    }

    pub(super) fn take_step(&self) -> Option<Step> {
        self.steps().pop_front()
    }

    /// From now on rebalances are answered at once.
    pub(super) fn start_closing(&self) {
        self.closing.store(true, Ordering::Release);
    }

    pub(super) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    pub(super) fn log_end(&self, partition: Partition) -> Option<u64> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner).get(&partition).copied()
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        let ours = list.elements_for_topic(&self.topic);
        ours.iter()
            .filter_map(|found| u32::try_from(found.partition()).ok())
            .map(Partition)
            .collect()
    }
}

impl ClientContext for Member {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        self.logs.log(level, facility, text);
    }

    fn error(&self, error: KafkaError, text: &str) {
        self.logs.error(error, text);
    }

    fn stats(&self, statistics: Statistics) {
        let Some(topic) = statistics.topics.get(&self.topic) else {
            return;
        };
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, partition) in &topic.partitions {
            // -1 is librdkafka's "no partition"; a negative offset is not known yet
            if let (Ok(number), Ok(end)) =
                (u32::try_from(*number), u64::try_from(partition.hi_offset))
            {
                ends.insert(Partition(number), end);
            }
        }
    }
}

impl ConsumerContext for Member {
    fn rebalance(
        &self,
        consumer: &BaseConsumer<Self>,
        change: RDKafkaRespErr,
        list: &mut TopicPartitionList,
    ) {
        let assign = change == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if self.is_closing() {
            let answered = match assign {
                true => consumer.incremental_assign(list),
                false => consumer.incremental_unassign(list),
            };
            if let Err(error) = answered {
                warn!(%error, "rebalance not answered while closing");
            }
            return;
        }
        let partitions = self.partitions(list);
        let step = if assign { Step::Assign(partitions) } else { Step::Revoke(partitions) };
        self.push_step(step);
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        if let Err(error) = result {
            metrics::counter!("merit_bus_commit_errors_total").increment(1);
            if self.uncommitted.permits() {
                warn!(%error, "offsets not committed; the next commit covers them");
            }
        }
    }
}
