//! The publishing end.

use super::{
    config::Config,
    link::{self, Link},
};
use crate::{
    bus::{BusError, Cause, Partition, PublishError},
    rating::{Codec, Rating},
    trace::TRACEPARENT,
};
use async_nats::{
    HeaderMap,
    jetstream::{self, ErrorCode, context::PublishErrorKind},
};
use std::{
    error::Error as _,
    fmt,
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{Mutex, Semaphore},
    time::timeout,
};

/// How long a client should stay away.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long the number of partitions is believed.
const COUNT_FRESH: Duration = Duration::from_secs(10);
/// How long a check may take.
const CHECK_DEADLINE: Duration = Duration::from_secs(1);

/// Puts ratings on the streams. Clones share one connection.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

struct Shared {
    link: Link,
    codec: Codec,
    waiting: Semaphore,
    /// The number of partitions, and when it was asked for; their streams are there.
    counted: Mutex<Option<(NonZeroU32, Instant)>>,
}

#[derive(Debug, thiserror::Error)]
#[error("no acknowledgement within {deadline_ms} ms")]
struct TimedOut {
    deadline_ms: u128,
}

impl Publisher {
    /// Returns a publisher; a server that is away is no error.
    ///
    /// # Errors
    ///
    /// When a secret cannot be read or the client refuses its settings.
    pub(crate) async fn connect(config: &Config) -> Result<Self, BusError> {
        let waiting = Semaphore::new(config.queue_max);
        let link = Link::open(config).await?;
        let codec = config.codec()?;
        Ok(Self(Arc::new(Shared { link, codec, waiting, counted: Mutex::new(None) })))
    }

    /// Puts `rating` on its partition and returns when the server has stored it.
    ///
    /// # Errors
    ///
    /// As [`crate::bus::Publisher::publish`], within `delivery_timeout`.
    pub(crate) async fn publish(&self, rating: &Rating) -> Result<(), PublishError> {
        let began = Instant::now();
        let full = |_| PublishError::Full { retry_after: RETRY_AFTER };
        let _room = self.0.waiting.try_acquire().map_err(full)?;
        let deadline = self.0.link.config.delivery_timeout;
        let outcome = match timeout(deadline, self.deliver(rating)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let late = TimedOut { deadline_ms: deadline.as_millis() };
                Err(unavailable(self.0.link.explain(late)))
            }
        };
        if outcome.is_ok() {
            metrics::histogram!("merit_bus_publish_seconds").record(began.elapsed().as_secs_f64());
        }
        outcome
    }

    async fn deliver(&self, rating: &Rating) -> Result<(), PublishError> {
        let count = self.count().await.map_err(|error| unavailable(self.0.link.explain(error)))?;
        let subject = self.0.link.subject(Partition(rating.partition(count)));
        let (context, payload) = (&self.0.link.context, self.0.codec.encode(rating).into());
        let sent = match rating.trace() {
            None => context.publish(subject, payload).await,
            Some(trace) => {
                let mut headers = HeaderMap::new();
                headers.insert(TRACEPARENT, trace.to_string());
                context.publish_with_headers(subject, headers, payload).await
            }
        };
        let stored = match sent {
            Ok(sent) => sent.await,
            Err(error) => Err(error),
        };
        let Err(error) = stored else { return Ok(()) };
        let cause = error.source().and_then(|cause| cause.downcast_ref::<jetstream::Error>());
        let full = [ErrorCode::STREAM_STORE_FAILED, ErrorCode::INSUFFICIENT_RESOURCES];
        Err(match (error.kind(), cause.map(jetstream::Error::error_code)) {
            (PublishErrorKind::MaxPayloadExceeded, _) => {
                PublishError::Refused { source: error.into() }
            }
            // It holds `length_max` records, or there is no room on its disk.
            (_, Some(code)) if full.contains(&code) => {
                PublishError::Full { retry_after: RETRY_AFTER }
            }
            (PublishErrorKind::StreamNotFound, _) => {
                *self.0.counted.lock().await = None; // it was removed: the next one makes it anew
                unavailable(error)
            }
            _ => unavailable(error),
        })
    }

    /// Returns the number of partitions, asked for now and then: they may become more.
    async fn count(&self) -> Result<NonZeroU32, Cause> {
        let mut counted = self.0.counted.lock().await;
        if let Some((count, at)) = *counted
            && at.elapsed() < COUNT_FRESH
        {
            return Ok(count);
        }
        let link = &self.0.link;
        let log = link.log_bucket().await?;
        let count = link::partitions(&log, link.config.partitions).await?;
        let made = counted.map_or(0, |(made, _)| made.get());
        link.make_streams(made.min(count), count).await?;
        let count = NonZeroU32::new(count).ok_or("the log has no partitions")?;
        *counted = Some((count, Instant::now()));
        Ok(count)
    }

    /// Returns whether the server answers.
    ///
    /// # Errors
    ///
    /// When it did not within a second.
    pub(crate) async fn check(&self) -> Result<(), BusError> {
        let source = match timeout(CHECK_DEADLINE, self.0.link.context.query_account()).await {
            Ok(Ok(_)) => return Ok(()),
            Ok(Err(error)) => self.0.link.explain(error),
            Err(_) => self.0.link.explain(TimedOut { deadline_ms: CHECK_DEADLINE.as_millis() }),
        };
        Err(BusError::Unavailable { address: self.0.link.address.clone(), source })
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Publisher({})", self.0.link.address)
    }
}

fn unavailable(source: impl Into<Cause>) -> PublishError {
    PublishError::Unavailable { retry_after: RETRY_AFTER, source: source.into() }
}
