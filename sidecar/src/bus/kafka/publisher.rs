//! The publishing end: one idempotent producer, shared by all clones.
//!
//! The partition is computed here, because the key is made for compaction and not for order. Their
//! number is asked for at the first rating and again every ten seconds; topics may grow.

use super::{
    client::{self, Logs},
    config::Config,
};
use crate::{
    bus::{BusError, Cause, PublishError, registry},
    rating::{Codec, Rating, confluent},
    trace::TRACEPARENT,
};
use rdkafka::{
    error::{KafkaError, RDKafkaErrorCode},
    message::{Header, OwnedHeaders},
    producer::{FutureProducer, FutureRecord},
};
use std::{
    fmt,
    num::NonZeroU32,
    sync::{
        Arc, Mutex as SyncMutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};
use tokio::{sync::Mutex, task::spawn_blocking, time::timeout};
use tracing::{debug, info, warn};

/// How long a client should stay away.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the number of partitions is believed.
const COUNT_FRESH: Duration = Duration::from_secs(10);
/// How long a new topic may take to be known to all brokers, asked for this often.
const COUNT_DEADLINE: Duration = Duration::from_secs(2);
const COUNT_EVERY: Duration = Duration::from_millis(50);
/// How long the outcome of a check is believed, and how long a check may take.
const CHECK_FRESH: Duration = Duration::from_secs(2);
const CHECK_DEADLINE: Duration = Duration::from_secs(1);

/// Puts ratings on a Kafka topic.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

struct Shared {
    config: Config,
    codec: Codec,
    /// The schema that records name.
    subject: Option<registry::Subject>,
    producer: FutureProducer<Logs>,
    /// Partitions of the topic; 0 while unknown.
    count: AtomicU32,
    /// When the count was asked for last.
    counted: SyncMutex<Instant>,
    /// Held by whoever asks for the count first.
    counting: Mutex<()>,
    checked: Mutex<Option<(Instant, Result<(), String>)>>,
}

#[derive(Debug, thiserror::Error)]
#[error("no acknowledgement within {deadline_ms} ms")]
struct TimedOut {
    deadline_ms: u128,
}

#[derive(Debug, thiserror::Error)]
#[error("topic {topic} has no partitions yet")]
struct NoPartitions {
    topic: String,
}

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct CheckFailed(String);

impl Publisher {
    /// Returns a publisher; tries to create the topics, and goes on when no broker answers.
    ///
    /// # Errors
    ///
    /// When a password is missing, this build lacks the encoding, or librdkafka refuses the settings.
    pub async fn connect(config: &Config) -> Result<Self, BusError> {
        let codec = config.codec()?;
        let subject = config
            .schema_registry
            .as_deref()
            .map(|registry| registry::Subject::begin(registry, &config.topic, codec));
        let shared = Shared {
            config: config.clone(),
            codec,
            subject: subject.transpose()?,
            producer: client::producer(config)?,
            count: AtomicU32::new(0),
            counted: SyncMutex::new(Instant::now()),
            counting: Mutex::new(()),
            checked: Mutex::new(None),
        };
        let publisher = Self(Arc::new(shared));
        let (brokers, topic) = (&config.brokers, &config.topic);
        match timeout(config.delivery_timeout, publisher.count()).await {
            Ok(Ok(partitions)) => info!(brokers, topic, partitions, "kafka publisher is connected"),
            Ok(Err(error)) => {
                warn!(brokers, topic, %error, "kafka is away; publishing will try again");
            }
            Err(_) => warn!(brokers, topic, "kafka does not answer; publishing will try again"),
        }
        Ok(publisher)
    }

    /// Puts `rating` on the topic and returns when all in-sync replicas have it.
    ///
    /// # Errors
    ///
    /// As [`crate::bus::Publisher::publish`], within `delivery_timeout`.
    pub async fn publish(&self, rating: &Rating) -> Result<(), PublishError> {
        let deadline = self.0.config.delivery_timeout;
        let begun = Instant::now();
        let outcome = match timeout(deadline, self.deliver(rating)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(unavailable(TimedOut { deadline_ms: deadline.as_millis() })),
        };
        if outcome.is_ok() {
            metrics::histogram!("merit_bus_publish_seconds").record(begun.elapsed().as_secs_f64());
        }
        outcome
    }

    async fn deliver(&self, rating: &Rating) -> Result<(), PublishError> {
        let count = self.count().await.map_err(unavailable)?;
        let partition =
            i32::try_from(rating.partition(count)).expect("partitions are far below 2^31");
        let payload = match &self.0.subject {
            None => self.0.codec.encode(rating),
            Some(subject) => {
                let schema = subject.id().await.map_err(unavailable)?;
                confluent::encode(self.0.codec, schema, rating)
            }
        };
        let key = rating.key();
        let record = FutureRecord::to(&self.0.config.topic).partition(partition);
        let mut record = record.key(&key).payload(&payload);
        if let Some(trace) = rating.trace() {
            let value = trace.to_string();
            let header = Header { key: TRACEPARENT, value: Some(&value) };
            record = record.headers(OwnedHeaders::new_with_capacity(1).insert(header));
        }
        let sent = self.0.producer.send_result(record).map_err(|(error, _)| self.failure(error))?;
        match sent.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err((error, _))) => Err(self.failure(error)),
            Err(canceled) => Err(unavailable(canceled)),
        }
    }

    fn failure(&self, error: KafkaError) -> PublishError {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(Code::QueueFull) => PublishError::Full { retry_after: RETRY_AFTER },
            Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize | Code::InvalidRecord) => {
                PublishError::Refused { source: error.into() }
            }
            Some(Code::UnknownPartition | Code::UnknownTopic | Code::UnknownTopicOrPartition) => {
                self.0.count.store(0, Ordering::Relaxed); // the topic was made anew
                unavailable(error)
            }
            _ => unavailable(error),
        }
    }

    /// Returns the number of partitions; the first to ask creates the topics where missing.
    async fn count(&self) -> Result<NonZeroU32, Cause> {
        let known = || NonZeroU32::new(self.0.count.load(Ordering::Relaxed));
        if let Some(count) = known() {
            self.recount_if_stale();
            return Ok(count);
        }
        let _turn = self.0.counting.lock().await;
        if let Some(count) = known() {
            return Ok(count);
        }
        client::ensure_topics(&self.0.config).await?;
        loop {
            match self.recount().await {
                Ok(0) => {}
                Ok(count) => return Ok(NonZeroU32::new(count).expect("the arm above is zero")),
                Err(error) if is_spreading(&error) => {}
                Err(error) => return Err(error.into()),
            }
            debug!(topic = self.0.config.topic, "topic has no partitions yet");
            // The broker tells nobody when it has heard of a topic; callers bound the wait.
            tokio::time::sleep(COUNT_EVERY).await;
        }
    }

    async fn recount(&self) -> Result<u32, KafkaError> {
        let shared = Arc::clone(&self.0);
        spawn_blocking(move || {
            *shared.counted.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            let topic = &shared.config.topic;
            let count = client::count_partitions(&shared.producer, topic, COUNT_DEADLINE)?;
            if count > 0 {
                shared.count.store(count, Ordering::Relaxed);
            }
            Ok(count)
        })
        .await
        .expect("counting does not panic")
    }

    fn recount_if_stale(&self) {
        let mut counted = self.0.counted.lock().unwrap_or_else(PoisonError::into_inner);
        if counted.elapsed() < COUNT_FRESH {
            return;
        }
        *counted = Instant::now();
        let publisher = self.clone();
        tokio::spawn(async move {
            if let Err(error) = publisher.recount().await {
                debug!(%error, "partitions not counted; the last count stands");
            }
        });
    }

    /// Returns whether the broker answers, from an outcome at most two seconds old, and whether the
    /// registry has ever given the id of our schema: once it has, it may be away.
    ///
    /// # Errors
    ///
    /// When the broker did not answer within a second, or the registry has not given the id.
    pub async fn check(&self) -> Result<(), BusError> {
        if let Some(subject) = &self.0.subject {
            subject.id().await.map_err(|source| BusError::Schema { source: source.into() })?;
        }
        let mut checked = self.0.checked.lock().await;
        let outcome = match &*checked {
            Some((at, outcome)) if at.elapsed() < CHECK_FRESH => outcome.clone(),
            _ => {
                let outcome = self.reach().await.map_err(|cause| cause.to_string());
                *checked = Some((Instant::now(), outcome.clone()));
                outcome
            }
        };
        outcome.map_err(|text| BusError::Unavailable {
            address: self.0.config.brokers.clone(),
            source: Box::new(CheckFailed(text)),
        })
    }

    async fn reach(&self) -> Result<(), Cause> {
        let late = |_| TimedOut { deadline_ms: CHECK_DEADLINE.as_millis() };
        let count = async {
            self.count().await?;
            let shared = Arc::clone(&self.0);
            let topic = self.0.config.topic.clone();
            let count = spawn_blocking(move || {
                client::count_partitions(&shared.producer, &shared.config.topic, CHECK_DEADLINE)
            });
            match count.await.expect("counting does not panic")? {
                0 => Err(NoPartitions { topic }.into()),
                _ => Ok(()),
            }
        };
        timeout(CHECK_DEADLINE, count).await.map_err(late)?
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = &self.0.config;
        write!(f, "Publisher({} at {})", config.topic, config.brokers)
    }
}

fn unavailable(source: impl Into<Cause>) -> PublishError {
    PublishError::Unavailable { retry_after: RETRY_AFTER, source: source.into() }
}

/// Returns true while a topic that was just created is not yet known everywhere.
fn is_spreading(error: &KafkaError) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        error.rdkafka_error_code(),
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::LeaderNotAvailable)
    )
}
