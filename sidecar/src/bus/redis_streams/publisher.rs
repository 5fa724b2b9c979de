//! The publishing end: what comes while a call is under way travels together in the next one.

use super::{
    config::Config,
    link::{Call, Link, Lua},
    log::{COUNT_END, DEADLINE, Keys, MS_END},
};
use crate::{
    bus::{BusError, Cause, Partition, PublishError},
    rating::{Codec, Rating},
};
use redis::{Value, from_redis_value};
use std::{
    collections::BTreeMap,
    fmt,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};

/// How long a client should stay away.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Most ratings in one call.
const TOGETHER: usize = 512;
/// How long the number of partitions is believed.
const COUNT_FRESH: Duration = Duration::from_secs(10);
/// How long a check may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);

/// Puts ratings on the streams. Clones share one connection.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

struct Shared {
    queue: mpsc::Sender<Waiting>,
    link: Link,
    delivery_timeout: Duration,
    address: String,
}

/// A rating that waits for its acknowledgement.
struct Waiting {
    rating: Rating,
    acknowledge: oneshot::Sender<Result<(), PublishError>>,
}

#[derive(Debug, thiserror::Error)]
#[error("no acknowledgement within {deadline_ms} ms")]
struct TimedOut {
    deadline_ms: u128,
}

#[derive(Debug, thiserror::Error)]
#[error("{acknowledged} of {wanted} replicas acknowledged")]
struct TooFewReplicas {
    acknowledged: u64,
    wanted: u16,
}

#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
struct Failed(String);

impl Publisher {
    /// Returns a publisher; it connects when it is first used.
    ///
    /// # Errors
    ///
    /// When the address or a secret cannot be used, or this build lacks the encoding.
    pub(crate) fn connect(config: &Config) -> Result<Self, BusError> {
        let link = Link::new(config.client()?, DEADLINE);
        let (queue, waiting) = mpsc::channel(config.queue_max);
        let shared = Shared {
            queue,
            address: link.address(),
            link: link.clone(),
            delivery_timeout: config.delivery_timeout,
        };
        let writer = Writer {
            link,
            keys: Keys::new(&config.topic),
            codec: config.codec()?,
            publish: Lua::new(include_str!("publish.lua")),
            count: Lua::new(include_str!("partitions.lua")),
            wanted: config.partitions,
            length_max: config.length_max,
            replicas: config.replicas,
            counted: None,
        };
        tokio::spawn(writer.run(waiting));
        Ok(Self(Arc::new(shared)))
    }

    /// Puts `rating` on its partition and returns when the server has it.
    ///
    /// # Errors
    ///
    /// As [`crate::bus::Publisher::publish`], within `delivery_timeout`.
    pub(crate) async fn publish(&self, rating: &Rating) -> Result<(), PublishError> {
        let began = Instant::now();
        let (acknowledge, acknowledged) = oneshot::channel();
        let waiting = Waiting { rating: rating.clone(), acknowledge };
        self.0
            .queue
            .try_send(waiting)
            .map_err(|_| PublishError::Full { retry_after: RETRY_AFTER })?;
        let outcome = match timeout(self.0.delivery_timeout, acknowledged).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(gone)) => Err(unavailable(gone)),
            Err(_) => {
                Err(unavailable(TimedOut { deadline_ms: self.0.delivery_timeout.as_millis() }))
            }
        };
        if outcome.is_ok() {
            metrics::histogram!("merit_bus_publish_seconds").record(began.elapsed().as_secs_f64());
        }
        outcome
    }

    /// Returns whether the server answers.
    ///
    /// # Errors
    ///
    /// When it did not within a second.
    pub(crate) async fn check(&self) -> Result<(), BusError> {
        let ping = self.0.link.ask_all(vec![redis::cmd("PING")]);
        let source = match timeout(CHECK_DEADLINE, ping).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => error,
            Err(_) => TimedOut { deadline_ms: CHECK_DEADLINE.as_millis() }.into(),
        };
        Err(BusError::Unavailable { address: self.0.address.clone(), source })
    }
}

/// Writes what waits, one call at a time.
struct Writer {
    link: Link,
    keys: Keys,
    codec: Codec,
    publish: Lua,
    count: Lua,
    wanted: u32,
    length_max: usize,
    replicas: u16,
    /// The number of partitions, and when it was asked for.
    counted: Option<(NonZeroU32, Instant)>,
}

impl Writer {
    async fn run(mut self, mut waiting: mpsc::Receiver<Waiting>) {
        let mut together = Vec::with_capacity(TOGETHER);
        while waiting.recv_many(&mut together, TOGETHER).await > 0 {
            // Whoever gave up waiting is not written: it will come again.
            together.retain(|waiting: &Waiting| !waiting.acknowledge.is_closed());
            if let Err(error) = self.write(&mut together).await {
                let failed = Failed(error.to_string());
                for waiting in together.drain(..) {
                    let _ = waiting.acknowledge.send(Err(unavailable(failed.clone())));
                }
            }
        }
    }

    /// Writes `together` and acknowledges; what is left in it after an error was not.
    async fn write(&mut self, together: &mut Vec<Waiting>) -> Result<(), Cause> {
        let count = self.count().await?;
        let mut parts: BTreeMap<Partition, Vec<Waiting>> = BTreeMap::new();
        for waiting in together.drain(..) {
            let partition = Partition(waiting.rating.partition(count));
            parts.entry(partition).or_default().push(waiting);
        }
        let call = |(partition, part): (&Partition, &Vec<Waiting>)| {
            let keys = [self.keys.stream(*partition), self.keys.count(*partition)];
            let call = Call::keys(keys).arg(self.length_max).arg(COUNT_END).arg(MS_END);
            part.iter().fold(call, |call, Waiting { rating, .. }| {
                let trace = rating.trace().map_or_else(String::new, |trace| trace.to_string());
                call.bytes(self.codec.encode(rating)).bytes(trace.into_bytes())
            })
        };
        let calls: Vec<Call> = parts.iter().map(call).collect();
        let answers = match self.link.run(&self.publish, &calls).await {
            Ok(answers) => answers,
            Err(error) => {
                together.extend(parts.into_values().flatten());
                return Err(error);
            }
        };
        if let Err(error) = self.replicated().await {
            together.extend(parts.into_values().flatten());
            return Err(error);
        }
        for (part, answer) in parts.into_values().zip(answers) {
            let taken = answer.extract_error().and_then(|answer| {
                from_redis_value::<usize>(answer).map_err(redis::RedisError::from)
            });
            let outcome = |place: usize| match &taken {
                Ok(taken) if place < *taken => Ok(()),
                Ok(_) => Err(PublishError::Full { retry_after: RETRY_AFTER }),
                // Its memory is full: it takes no writes until something was removed.
                Err(error) if error.code() == Some("OOM") => {
                    Err(PublishError::Full { retry_after: RETRY_AFTER })
                }
                Err(error) if error.code() == Some("BADID") => Err(unavailable(Failed(format!(
                    "{error}: somebody wrote with an id of their own; delete the stream or give [bus] topic \
                     another name"
                )))),
                Err(error) => Err(unavailable(Failed(error.to_string()))),
            };
            for (place, waiting) in part.into_iter().enumerate() {
                let _ = waiting.acknowledge.send(outcome(place)); // nobody may be waiting
            }
        }
        Ok(())
    }

    /// Waits until enough replicas have what was written on this connection.
    async fn replicated(&self) -> Result<(), Cause> {
        if self.replicas == 0 {
            return Ok(());
        }
        let mut wait = redis::cmd("WAIT");
        wait.arg(self.replicas).arg((DEADLINE / 2).as_millis().to_string());
        let answer = self.link.ask_all(vec![wait]).await?.into_iter().next();
        let acknowledged: u64 = from_redis_value(answer.unwrap_or(Value::Int(0)))?;
        if acknowledged < u64::from(self.replicas) {
            return Err(TooFewReplicas { acknowledged, wanted: self.replicas }.into());
        }
        Ok(())
    }

    /// Returns the number of partitions, asked for now and then: they may become more.
    async fn count(&mut self) -> Result<NonZeroU32, Cause> {
        if let Some((count, at)) = self.counted
            && at.elapsed() < COUNT_FRESH
        {
            return Ok(count);
        }
        let call = Call::keys([self.keys.meta()]).arg(self.wanted);
        let count: u32 = from_redis_value(self.link.run_one(&self.count, call).await?)?;
        let count = NonZeroU32::new(count).ok_or("the log has no partitions")?;
        self.counted = Some((count, Instant::now()));
        Ok(count)
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Publisher({})", self.0.address)
    }
}

fn unavailable(source: impl Into<Cause>) -> PublishError {
    PublishError::Unavailable { retry_after: RETRY_AFTER, source: source.into() }
}
