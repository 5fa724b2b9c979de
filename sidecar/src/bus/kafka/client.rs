//! What producer and consumer share: client settings, librdkafka's log, and the topics.

use super::config::Config;
use crate::bus::{BusError, Cause};
use rdkafka::{
    ClientConfig, ClientContext,
    admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication},
    config::{FromClientConfigAndContext, RDKafkaLogLevel},
    error::{KafkaError, RDKafkaErrorCode},
    producer::{FutureProducer, Producer},
};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};
use tracing::{debug, error, info, warn};

/// How long creating topics may take.
const ADMIN_DEADLINE: Duration = Duration::from_secs(10);
/// A rating must never be compacted away before it is folded; a tuner may be away this long.
const COMPACTION_LAG_MS: &str = "604800000";
/// How long dead letters are kept: long enough to notice and look.
const DEAD_RETENTION_MS: &str = "2592000000";
/// The longest wait before a lost connection is tried again.
const RECONNECT_MAX_MS: &str = "1000";
/// How much the producer's queue may hold, in KiB.
const QUEUE_MAX_KIB: &str = "65536";
/// The largest dead letter that is tried uncut, in bytes: half of what the queue holds. The broker
/// decides what is too large, not librdkafka's default, which is below the broker's.
const DEAD_LETTER_MAX_BYTES: &str = "33554432";
/// A cause that repeats is logged this often.
const QUIET: Duration = Duration::from_secs(5);

/// Lets one of a flood of equal log lines through.
#[derive(Debug, Default)]
pub(super) struct Quiet(Mutex<Option<Instant>>);

impl Quiet {
    /// Returns true when the last line was let through long enough ago.
    pub(super) fn permits(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let quiet = last.is_some_and(|last| last.elapsed() < QUIET);
        if !quiet {
            *last = Some(Instant::now());
        }
        !quiet
    }
}

/// Takes librdkafka's own log to ours.
#[derive(Debug, Default)]
pub(super) struct Logs {
    quiet: Quiet,
}

impl ClientContext for Logs {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, text: &str) {
        use RDKafkaLogLevel as Level;
        match level {
            Level::Emerg | Level::Alert | Level::Critical | Level::Error | Level::Warning
                if self.quiet.permits() =>
            {
                warn!(facility, text, "librdkafka warns");
            }
            _ => debug!(facility, text, "librdkafka says"),
        }
    }

    fn error(&self, error: KafkaError, text: &str) {
        if self.quiet.permits() {
            warn!(%error, text, "kafka client reports an error and goes on");
        }
    }
}

/// Returns what every client of `config` is set to.
///
/// # Errors
///
/// When the password is not where the configuration says it is.
pub(super) fn settings(config: &Config) -> Result<ClientConfig, BusError> {
    let mut client = ClientConfig::new();
    client
        .set("bootstrap.servers", &config.brokers)
        .set("client.id", "merit")
        .set("security.protocol", config.security.as_str())
        .set("reconnect.backoff.max.ms", RECONNECT_MAX_MS)
        .set("socket.connection.setup.timeout.ms", "5000")
        .set("socket.timeout.ms", "10000")
        .set("socket.keepalive.enable", "true")
        .set("socket.nagle.disable", "true")
        .set_log_level(RDKafkaLogLevel::Info);
    if let Some(file) = &config.ca_file {
        client.set("ssl.ca.location", file.display().to_string());
    }
    if config.security.needs_password() {
        client
            .set("sasl.mechanism", &config.sasl_mechanism)
            .set("sasl.username", &config.username)
            .set("sasl.password", config.password()?.expose());
    }
    Ok(client)
}

/// Returns a producer that acknowledges what all in-sync replicas have, once and in order.
///
/// # Errors
///
/// When librdkafka refuses the settings.
pub(super) fn producer(config: &Config) -> Result<FutureProducer<Logs>, BusError> {
    create(&producer_settings(config)?, Logs::default())
}

/// Returns a producer as [`producer`] does that sends all that the broker takes.
///
/// # Errors
///
/// When librdkafka refuses the settings.
pub(super) fn dead_letter_producer(config: &Config) -> Result<FutureProducer<Logs>, BusError> {
    let mut client = producer_settings(config)?;
    client.set("message.max.bytes", DEAD_LETTER_MAX_BYTES);
    create(&client, Logs::default())
}

fn producer_settings(config: &Config) -> Result<ClientConfig, BusError> {
    let timeout_ms = config.delivery_timeout.as_millis().to_string();
    let mut client = settings(config)?;
    client
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("linger.ms", config.linger.as_millis().to_string())
        .set("message.timeout.ms", &timeout_ms)
        .set("request.timeout.ms", &timeout_ms)
        .set("queue.buffering.max.messages", config.queue_max.to_string())
        .set("queue.buffering.max.kbytes", QUEUE_MAX_KIB);
    Ok(client)
}

/// Returns a client of the wanted kind.
///
/// # Errors
///
/// When librdkafka refuses the settings. The value refused is not told: it may be a password.
pub(super) fn create<T, C>(client: &ClientConfig, context: C) -> Result<T, BusError>
where
    T: FromClientConfigAndContext<C>,
    C: ClientContext,
{
    client.create_with_context(context).map_err(|error| match error {
        KafkaError::ClientConfig(_, problem, key, _) => {
            BusError::Config { key: "kind", problem: format!("kafka setting {key}: {problem}") }
        }
        KafkaError::ClientCreation(problem) => BusError::Config { key: "kind", problem },
        source => BusError::Client { action: "be created", source: source.into() },
    })
}

/// Creates the topics of `config` where they are missing; warns of one that compacts too early.
///
/// # Errors
///
/// When no broker answers in time, or the topics are missing and may not be created.
pub(super) async fn ensure_topics(config: &Config) -> Result<(), BusError> {
    let admin: AdminClient<Logs> = create(&settings(config)?, Logs::default())?;
    let outcome = create_topics(&admin, config).await;
    // Dropping it joins its thread.
    tokio::task::spawn_blocking(move || drop(admin)).await.expect("dropping does not panic");
    outcome.map_err(|source| BusError::Unavailable { address: config.brokers.clone(), source })
}

#[derive(Debug, thiserror::Error)]
#[error(
    "topic {topic} is missing and cannot be created: {code}; allow this user to Create it, or have it \
     created with {partitions} partition(s) and {settings}"
)]
struct NoTopic {
    topic: String,
    code: RDKafkaErrorCode,
    partitions: i32,
    settings: String,
}

async fn create_topics(admin: &AdminClient<Logs>, config: &Config) -> Result<(), Cause> {
    let options = AdminOptions::new()
        .request_timeout(Some(ADMIN_DEADLINE))
        .operation_timeout(Some(ADMIN_DEADLINE));
    let replication = || TopicReplication::Fixed(config.replication.map_or(-1, i32::from));
    let partitions = i32::try_from(config.partitions).expect("validated to be far below 2^31");
    let dead = config.dead_topic();
    let wanted = [
        (
            &config.topic,
            partitions,
            [("cleanup.policy", "compact"), ("min.compaction.lag.ms", COMPACTION_LAG_MS)],
        ),
        (&dead, 1, [("cleanup.policy", "delete"), ("retention.ms", DEAD_RETENTION_MS)]),
    ];
    let topics = wanted.map(|(topic, partitions, settings)| {
        let topic = NewTopic::new(topic, partitions, replication());
        settings.into_iter().fold(topic, |topic, (key, value)| topic.set(key, value))
    });
    let missing = |topic: String, code| {
        let (_, partitions, settings) = &wanted[usize::from(topic == dead)];
        let settings = settings.map(|(key, value)| format!("{key}={value}")).join(", ");
        NoTopic { topic, code, partitions: *partitions, settings }
    };
    for result in admin.create_topics(&topics, &options).await? {
        match result {
            Ok(topic) => info!(topic, "topic created"),
            Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => {
                if topic == config.topic {
                    warn_of_early_compaction(admin, &topic, &options).await;
                }
            }
            Err((topic, code)) if is_forbidden(code) && exists(admin, &topic)? => {}
            Err((topic, code)) => return Err(missing(topic, code).into()),
        }
    }
    Ok(())
}

fn is_forbidden(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        Code::TopicAuthorizationFailed | Code::ClusterAuthorizationFailed | Code::PolicyViolation
    )
}

/// Asks for all topics: asking for one would create it on brokers that are set to.
fn exists(admin: &AdminClient<Logs>, topic: &str) -> Result<bool, KafkaError> {
    let metadata = admin.inner().fetch_metadata(None, ADMIN_DEADLINE)?;
    Ok(metadata.topics().iter().any(|found| found.name() == topic))
}

async fn warn_of_early_compaction(admin: &AdminClient<Logs>, topic: &str, options: &AdminOptions) {
    let described = admin.describe_configs(&[ResourceSpecifier::Topic(topic)], options).await;
    let Ok(Ok(resource)) = described.map(|mut found| found.remove(0)) else {
        return debug!(topic, "topic's settings are not ours to see");
    };
    let value = |key| resource.get(key).and_then(|entry| entry.value.clone()).unwrap_or_default();
    let (policy, lag) = (value("cleanup.policy"), value("min.compaction.lag.ms"));
    let wanted: u64 = COMPACTION_LAG_MS.parse().expect("a number");
    let keeps = lag.parse().is_ok_and(|lag: u64| lag >= wanted);
    if policy != "compact" || !keeps {
        warn!(
            topic,
            cleanup_policy = policy,
            min_compaction_lag_ms = lag,
            "topic may lose ratings before they are applied: set cleanup.policy=compact and min.compaction.lag.ms of 7 days"
        );
    }
}

/// Returns the partitions that the broker says the topic has. Blocks.
pub(super) fn count_partitions(
    producer: &FutureProducer<Logs>,
    topic: &str,
    deadline: Duration,
) -> Result<u32, KafkaError> {
    let metadata = producer.client().fetch_metadata(Some(topic), deadline)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic);
    let Some(found) = found else { return Ok(0) };
    match found.error() {
        Some(code) => Err(KafkaError::MetadataFetch(code.into())),
        None => Ok(u32::try_from(found.partitions().len()).expect("far below 2^32")),
    }
}

/// Logs an outage, at most every few seconds.
pub(super) fn log_outage(quiet: &Quiet, error: &dyn std::error::Error, doing: &'static str) {
    if quiet.permits() {
        error!(%error, doing, "kafka is away; trying again");
    }
}
