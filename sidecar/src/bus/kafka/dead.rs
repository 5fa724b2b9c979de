//! Dead letters: records that are no ratings, put aside on `<topic>.dead` with the reason.
//!
//! 1. A letter waits here until the broker has acknowledged it, and its partition with it: nothing
//!    is dropped unseen. All wait for it for [`HOLD_AFTER`], then its own partition alone.
//! 2. One that the broker finds too large is sent cut, value and key, and says so in its headers.
//! 3. Letters of a partition that is given up are forgotten: its next owner meets the records again.

use super::{
    client::{self, Logs, Quiet},
    config::Config,
};
use crate::bus::{BusError, Partition};
use futures_util::FutureExt;
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord, future_producer::DeliveryFuture},
};
use std::{
    collections::{BTreeSet, VecDeque},
    future::{pending, poll_fn},
    task::{Context, Poll},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout_at},
};
use tracing::warn;

/// How long all partitions wait for a letter; an acknowledgement takes milliseconds.
const HOLD_AFTER: Duration = Duration::from_secs(1);
/// How much of a value is kept when the whole is too large, in bytes: first, then at last.
const CUTS: [usize; 2] = [64 * 1024, 1024];
/// How much of a key is kept then, in bytes; those of our own publisher are shorter.
const KEY_CUT_TO: usize = 1024;
/// Longest reason in a header, in bytes.
const REASON_MAX: usize = 1024;
/// How long to wait before a letter that the broker did not take is sent again.
const AGAIN_AFTER: Duration = Duration::from_millis(200);

/// A record that is no rating.
pub(super) struct Letter {
    partition: Partition,
    offset: u64,
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    reason: String,
    pushed: Instant,
    state: State,
    cuts: usize,
    value_cut: bool,
    key_cut: bool,
}

enum State {
    /// To be sent at this time.
    Due(Instant),
    Sent(DeliveryFuture),
}

/// The letters not yet acknowledged; at most one batch of them for each partition.
pub(super) struct DeadLetters {
    producer: FutureProducer<Logs>,
    from: String,
    to: String,
    config: Config,
    waiting: VecDeque<Letter>,
    /// Creates the topic that was found missing.
    creating: Option<JoinHandle<()>>,
    quiet: Quiet,
}

impl DeadLetters {
    pub(super) fn new(config: &Config) -> Result<Self, BusError> {
        Ok(Self {
            producer: client::dead_letter_producer(config)?,
            from: config.topic.clone(),
            to: config.dead_topic(),
            config: config.clone(),
            waiting: VecDeque::new(),
            creating: None,
            quiet: Quiet::default(),
        })
    }

    pub(super) fn push(&mut self, letter: Letter) {
        let (partition, offset) = (letter.partition, letter.offset);
        warn!(
            %partition,
            offset,
            reason = letter.reason,
            "record is no rating; it goes to the dead letters"
        );
        self.waiting.push_back(letter);
    }

    /// Returns the partitions that have a letter waiting.
    pub(super) fn partitions(&self) -> BTreeSet<Partition> {
        self.waiting.iter().map(|letter| letter.partition).collect()
    }

    pub(super) fn forget(&mut self, partition: Partition) {
        self.waiting.retain(|letter| letter.partition != partition);
    }

    /// Returns when all letters are acknowledged but those of `held` partitions, or when they have
    /// waited for [`HOLD_AFTER`]. Cancel safe: what was sent is not sent again.
    pub(super) async fn settle(&mut self, held: &BTreeSet<Partition>) {
        let not_held = |letter: &&Letter| !held.contains(&letter.partition);
        while let Some(newest) =
            self.waiting.iter().filter(not_held).map(|letter| letter.pushed).max()
        {
            if timeout_at(newest + HOLD_AFTER, self.advance()).await.is_err() {
                return;
            }
        }
    }

    /// Sends what waits and returns when some of it is acknowledged. Cancel safe.
    pub(super) async fn advance(&mut self) {
        loop {
            self.send_due();
            let due = self.waiting.iter().filter_map(Letter::due).min();
            let when_due = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                acknowledged = poll_fn(|context| self.poll_sent(context)) => {
                    if acknowledged {
                        return;
                    }
                }
                () = when_due => {}
            }
        }
    }

    /// Takes in what the broker said; ready with true when it acknowledged a letter, with false
    /// when it only refused some.
    fn poll_sent(&mut self, context: &mut Context<'_>) -> Poll<bool> {
        let (mut acknowledged, mut refused, mut index) = (0_u64, false, 0);
        while let Some(letter) = self.waiting.get_mut(index) {
            let outcome = match &mut letter.state {
                State::Sent(sent) => sent.poll_unpin(context),
                State::Due(_) => Poll::Pending,
            };
            match outcome {
                Poll::Pending => index += 1,
                Poll::Ready(Ok(Ok(_))) => {
                    self.waiting.remove(index);
                    acknowledged += 1;
                }
                Poll::Ready(Ok(Err((error, _)))) => {
                    self.failed(index, &error);
                    (refused, index) = (true, index + 1);
                }
                Poll::Ready(Err(canceled)) => {
                    letter.state = State::Due(Instant::now() + AGAIN_AFTER);
                    client::log_outage(&self.quiet, &canceled, "dead letter");
                    (refused, index) = (true, index + 1);
                }
            }
        }
        metrics::counter!("merit_ratings_dead_total").increment(acknowledged);
        if acknowledged > 0 || refused { Poll::Ready(acknowledged > 0) } else { Poll::Pending }
    }

    fn send_due(&mut self) {
        let now = Instant::now();
        for index in 0..self.waiting.len() {
            // Cut, it is sent again at once, and there are few cuts.
            while self.waiting[index].due().is_some_and(|due| due <= now) {
                let letter = &self.waiting[index];
                match self.producer.send_result(letter.record(&self.from, &self.to)) {
                    Ok(sent) => self.waiting[index].state = State::Sent(sent),
                    Err((error, _)) => self.failed(index, &error),
                }
            }
        }
    }

    /// Decides when the letter is sent again, and as what.
    fn failed(&mut self, index: usize, error: &KafkaError) {
        use RDKafkaErrorCode as Code;
        let letter = &mut self.waiting[index];
        let code = error.rdkafka_error_code();
        if code == Some(Code::MessageSizeTooLarge) && letter.cut() {
            letter.state = State::Due(Instant::now());
            return;
        }
        letter.state = State::Due(Instant::now() + AGAIN_AFTER);
        client::log_outage(&self.quiet, error, "dead letter");
        if matches!(
            code,
            Some(Code::UnknownTopic | Code::UnknownTopicOrPartition | Code::UnknownPartition)
        ) {
            self.create_topic();
        }
    }

    fn create_topic(&mut self) {
        if self.creating.as_ref().is_some_and(|creating| !creating.is_finished()) {
            return;
        }
        let config = self.config.clone();
        self.creating = Some(tokio::spawn(async move {
            if let Err(error) = client::ensure_topics(&config).await {
                client::log_outage(&Quiet::default(), &error, "topic of dead letters");
            }
        }));
    }
}

impl Letter {
    pub(super) fn new(
        (partition, offset): (Partition, u64),
        key: Option<&[u8]>,
        value: &[u8],
        reason: String,
    ) -> Self {
        let now = Instant::now();
        Self {
            partition,
            offset,
            key: key.map(<[u8]>::to_vec),
            value: value.to_vec(),
            reason,
            pushed: now,
            state: State::Due(now),
            cuts: 0,
            value_cut: false,
            key_cut: false,
        }
    }

    fn due(&self) -> Option<Instant> {
        match self.state {
            State::Due(at) => Some(at),
            State::Sent(_) => None,
        }
    }

    /// Cuts it once more; returns false when there is no more to cut.
    fn cut(&mut self) -> bool {
        let Some(&keep) = CUTS.get(self.cuts) else {
            return false;
        };
        self.cuts += 1;
        self.value_cut |= self.value.len() > keep;
        self.value.truncate(keep);
        if let Some(key) = &mut self.key {
            self.key_cut |= key.len() > KEY_CUT_TO;
            key.truncate(KEY_CUT_TO);
        }
        true
    }

    fn record<'a>(&'a self, from: &'a str, to: &'a str) -> FutureRecord<'a, [u8], [u8]> {
        let end = self.reason.floor_char_boundary(REASON_MAX);
        let (partition, offset) = (self.partition.to_string(), self.offset.to_string());
        let header = |key, value| Header { key, value: Some(value) };
        let mut headers = OwnedHeaders::new()
            .insert(header("merit-reason", &self.reason[..end]))
            .insert(header("merit-topic", from))
            .insert(header("merit-partition", &partition))
            .insert(header("merit-offset", &offset));
        for (key, cut) in [("merit-value-cut", self.value_cut), ("merit-key-cut", self.key_cut)] {
            if cut {
                headers = headers.insert(header(key, "true"));
            }
        }
        let record = FutureRecord::to(to).payload(self.value.as_slice()).headers(headers);
        match &self.key {
            Some(key) => record.key(key.as_slice()),
            None => record,
        }
    }
}
