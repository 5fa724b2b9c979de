//! Dead letters: records that are no ratings, put aside on `<topic>.dead` with the reason.
//!
//! A letter waits here until the broker has acknowledged it, and its partition with it: nothing is
//! dropped unseen. One too large to be sent with its headers is sent cut.

use super::{
    client::{self, Logs, Quiet},
    config::Config,
};
use crate::bus::BusError;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, future_producer::DeliveryFuture},
};
use std::{collections::VecDeque, error::Error, time::Duration};
use tracing::warn;

/// How much of a value is kept when the whole is too large, in bytes.
const CUT_TO: usize = 64 * 1024;
/// Longest reason in a header, in bytes.
const REASON_MAX: usize = 1024;
/// How long to wait before a letter that the broker did not take is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A record that is no rating.
pub(super) struct Letter {
    pub(super) partition: i32,
    pub(super) offset: i64,
    pub(super) key: Option<Vec<u8>>,
    pub(super) value: Vec<u8>,
    pub(super) reason: String,
    pub(super) sent: Option<DeliveryFuture>,
    pub(super) cut: bool,
}

/// The letters not yet acknowledged; at most one batch of them.
pub(super) struct DeadLetters {
    producer: FutureProducer<Logs>,
    from: String,
    to: String,
    config: Config,
    waiting: VecDeque<Letter>,
    quiet: Quiet,
}

impl DeadLetters {
    pub(super) fn new(config: &Config) -> Result<Self, BusError> {
        Ok(Self {
            producer: client::producer(config)?,
            from: config.topic.clone(),
            to: config.dead_topic(),
            config: config.clone(),
            waiting: VecDeque::new(),
            quiet: Quiet::default(),
        })
    }

    pub(super) fn push(&mut self, letter: Letter) {
        let (partition, offset) = (letter.partition, letter.offset);
        warn!(
            partition,
            offset,
            reason = letter.reason,
            "record is no rating; it goes to the dead letters"
        );
        self.waiting.push_back(letter);
    }

    /// Sends what waits and returns when all of it is acknowledged. Cancel safe: what was sent is
    /// not sent again.
    pub(super) async fn settle(&mut self) {
        while !self.waiting.is_empty() {
            self.send_unsent();
            let front = self.waiting.front_mut().expect("the loop's condition");
            let Some(sent) = &mut front.sent else {
                tokio::time::sleep(AGAIN_AFTER).await;
                continue;
            };
            let outcome = sent.await;
            front.sent = None;
            match outcome {
                Ok(Ok(_)) => {
                    self.waiting.pop_front();
                    metrics::counter!("merit_ratings_dead_total").increment(1);
                }
                Ok(Err((error, _))) => self.failed(0, &error).await,
                Err(canceled) => client::log_outage(&self.quiet, &canceled, "dead letter"),
            }
        }
    }

    fn send_unsent(&mut self) {
        let mut failed = None;
        for (index, letter) in self.waiting.iter_mut().enumerate() {
            if letter.sent.is_some() {
                continue;
            }
            match self.producer.send_result(letter.record(&self.from, &self.to)) {
                Ok(sent) => letter.sent = Some(sent),
                Err((error, _)) => {
                    failed = Some((index, error));
                    break;
                }
            }
        }
        if let Some((index, error)) = failed {
            self.note(index, &error);
        }
    }

    fn note(&mut self, index: usize, error: &KafkaError) {
        let too_large = error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge);
        let letter = &mut self.waiting[index];
        if too_large && !letter.cut {
            letter.cut = true;
            letter.value.truncate(CUT_TO);
            return;
        }
        client::log_outage(&self.quiet, error as &dyn Error, "dead letter");
    }

    async fn failed(&mut self, index: usize, error: &KafkaError) {
        use RDKafkaErrorCode as Code;
        self.note(index, error);
        if matches!(
            error.rdkafka_error_code(),
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition)
        ) && let Err(error) = client::ensure_topics(&self.config).await
        {
            client::log_outage(&self.quiet, &error, "topic of dead letters");
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

impl Letter {
    fn record<'a>(&'a self, from: &'a str, to: &'a str) -> FutureRecord<'a, [u8], [u8]> {
        let end = self.reason.floor_char_boundary(REASON_MAX);
        let (partition, offset) = (self.partition.to_string(), self.offset.to_string());
        let header = |key, value| Header { key, value: Some(value) };
        let mut headers = OwnedHeaders::new()
            .insert(header("merit-reason", &self.reason[..end]))
            .insert(header("merit-topic", from))
            .insert(header("merit-partition", &partition))
            .insert(header("merit-offset", &offset));
        if self.cut {
            headers = headers.insert(header("merit-value-cut", "true"));
        }
        let record = FutureRecord::to(to).payload(self.value.as_slice()).headers(headers);
        match &self.key {
            Some(key) => record.key(key.as_slice()),
            None => record,
        }
    }
}
