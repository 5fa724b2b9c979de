//! The bus within one process: one bounded queue, one partition, nothing kept.
//!
//! At most once: what was accepted and not yet applied is lost when the process stops, and it says
//! so at start. When all publishers are gone the rest is handed out, then [`Event::Closed`].

use super::{Assignment, BusError, Delivery, Event, Partition, PublishError};
use crate::rating::Rating;
use std::{future, time::Duration};
use tokio::sync::mpsc;

/// The only partition.
pub const PARTITION: Partition = Partition(0);
/// How long a publisher should wait when the queue is full.
const FULL_RETRY_AFTER: Duration = Duration::from_secs(1);
/// The largest queue and batch that configuration may ask for.
const CAPACITY_MAX: usize = 1_000_000;
const BATCH_MAX: usize = 10_000;

/// The `[bus]` table with `kind = "in-process"`.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Ratings that may wait for the tuner, 1..=1000000; 10000 is a few seconds of heavy load and
    /// some megabytes. When it is full, ingest answers 503.
    pub capacity: usize,
    /// Most ratings in one batch, 1..=10000. A batch is what waits, and only a long queue makes it large: the
    /// more ratings of an agent are in it, the fewer writes there are; 5000 take some 20 ms.
    pub batch_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { capacity: 10_000, batch_max: 5_000 }
    }
}

impl Config {
    /// Adds every fault of the table at `path` to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if !(1..=CAPACITY_MAX).contains(&self.capacity) {
            faults.push(format!("{path}.capacity: must be 1..={CAPACITY_MAX}"));
        }
        if !(1..=BATCH_MAX).contains(&self.batch_max) {
            faults.push(format!("{path}.batch_max: must be 1..={BATCH_MAX}"));
        }
    }
}

/// Returns both ends of a new bus.
#[must_use]
pub fn channel(config: &Config) -> (Publisher, Consumer) {
    let (sender, consumer) = end(config);
    (Publisher { sender, follower: None }, consumer)
}

/// Returns both ends of a new bus, and one that follows: it has a queue of its own, and what finds that
/// full is left out there and counted, so that the tuner never waits for it.
#[must_use]
pub fn followed(config: &Config) -> (Publisher, Consumer, Consumer) {
    let (sender, consumer) = end(config);
    let (follower, receiver) = mpsc::channel(config.capacity.max(1));
    let following = Consumer {
        receiver,
        source: consumer.source.clone(),
        batch_max: consumer.batch_max,
        position: 0,
        announced: false,
        paused: false,
    };
    (Publisher { sender, follower: Some(follower) }, consumer, following)
}

fn end(config: &Config) -> (mpsc::Sender<Rating>, Consumer) {
    let (sender, receiver) = mpsc::channel(config.capacity.max(1));
    let mut id = [0; 8];
    aws_lc_rs::rand::fill(&mut id).expect("the operating system gives random bytes");
    let source = format!("p{:016x}", u64::from_be_bytes(id));
    tracing::info!(
        source,
        capacity = config.capacity,
        "in-process bus delivers at most once: ratings not yet applied are lost when the process stops"
    );
    let consumer = Consumer {
        receiver,
        source,
        batch_max: config.batch_max.max(1),
        position: 0,
        announced: false,
        paused: false,
    };
    (sender, consumer)
}

/// The publishing end.
#[derive(Clone, Debug)]
pub struct Publisher {
    sender: mpsc::Sender<Rating>,
    follower: Option<mpsc::Sender<Rating>>,
}

#[derive(Debug, thiserror::Error)]
#[error("the consumer is gone")]
struct ConsumerGone;

impl Publisher {
    pub(super) fn publish(&self, rating: &Rating) -> Result<(), PublishError> {
        self.sender.try_send(rating.clone()).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                PublishError::Full { retry_after: FULL_RETRY_AFTER }
            }
            mpsc::error::TrySendError::Closed(_) => PublishError::Unavailable {
                retry_after: FULL_RETRY_AFTER,
                source: Box::new(ConsumerGone),
            },
        })?;
        if let Some(follower) = &self.follower
            && follower.try_send(rating.clone()).is_err()
        {
            metrics::counter!("merit_bus_not_followed_total").increment(1);
        }
        Ok(())
    }

    pub(super) fn check(&self) -> Result<(), BusError> {
        match self.sender.is_closed() {
            false => Ok(()),
            true => Err(BusError::Unavailable {
                address: "in-process".to_owned(),
                source: Box::new(ConsumerGone),
            }),
        }
    }
}

/// The consuming end.
#[derive(Debug)]
pub struct Consumer {
    receiver: mpsc::Receiver<Rating>,
    source: String,
    batch_max: usize,
    /// The offset of the next rating.
    position: u64,
    announced: bool,
    paused: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("the in-process bus keeps nothing to go back to")]
struct NothingKept;

impl Consumer {
    pub(super) async fn next(&mut self) -> Event {
        if !self.announced {
            self.announced = true;
            return Event::Assigned(vec![Assignment {
                partition: PARTITION,
                log_start: 0,
                log_end: self.receiver.len() as u64,
            }]);
        }
        if self.paused {
            return future::pending().await; // only `resume` ends it, and that drops this future
        }
        let mut ratings = Vec::with_capacity(self.receiver.len().clamp(1, self.batch_max));
        if self.receiver.recv_many(&mut ratings, self.batch_max).await == 0 {
            return Event::Closed;
        }
        let deliver = |rating| {
            let offset = self.position;
            self.position += 1;
            Delivery { partition: PARTITION, offset, rating }
        };
        let deliveries = ratings.into_iter().map(deliver).collect();
        Event::Batch { deliveries, positions: vec![(PARTITION, self.position)] }
    }

    pub(super) fn source(&self) -> &str {
        &self.source
    }

    pub(super) fn commit(&mut self, positions: &[(Partition, u64)]) -> Result<(), BusError> {
        debug_assert!(positions.iter().all(|(_, next)| *next <= self.position));
        Ok(()) // nothing is kept, so there is nowhere to resume
    }

    pub(super) fn seek(&mut self, partition: Partition, offset: u64) -> Result<(), BusError> {
        if partition == PARTITION && offset == self.position {
            return Ok(());
        }
        Err(BusError::Seek { partition, offset, source: Box::new(NothingKept) })
    }

    pub(super) fn set_paused(
        &mut self,
        partitions: &[Partition],
        paused: bool,
    ) -> Result<(), BusError> {
        if partitions.contains(&PARTITION) {
            self.paused = paused;
        }
        Ok(())
    }

    pub(super) fn lag(&self) -> Vec<(Partition, u64)> {
        vec![(PARTITION, self.receiver.len() as u64)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rating::{Poster, RatingRequest};
    use futures_util::FutureExt;

    fn rating(user: usize) -> Rating {
        let body = format!(r#"{{"agent_id":"a","user_id":"u{user}","score":5}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new("p").unwrap(), 1_700_000_000_000_000).unwrap()
    }

    fn small() -> (Publisher, Consumer) {
        channel(&Config { capacity: 3, batch_max: 2 })
    }

    fn offsets(event: &Event) -> Vec<u64> {
        match event {
            Event::Batch { deliveries, .. } => deliveries.iter().map(|d| d.offset).collect(),
            other => panic!("{other:?} is no batch"),
        }
    }

    #[tokio::test]
    async fn ratings_come_in_order_in_bounded_batches_after_the_assignment() {
        let (publisher, mut consumer) = small();
        for user in 0..3 {
            publisher.publish(&rating(user)).unwrap();
        }
        let assigned = Assignment { partition: PARTITION, log_start: 0, log_end: 3 };
        assert_eq!(consumer.next().await, Event::Assigned(vec![assigned]));
        let first = consumer.next().await;
        assert_eq!(offsets(&first), [0, 1]);
        let Event::Batch { deliveries, positions } = first else { unreachable!() };
        assert_eq!(deliveries[1].rating.user().as_str(), "u1");
        assert_eq!(positions, [(PARTITION, 2)]);
        assert_eq!(consumer.lag(), [(PARTITION, 1)]);
        assert_eq!(offsets(&consumer.next().await), [2]);
    }

    #[tokio::test]
    async fn a_full_queue_refuses_and_says_when_to_come_back() {
        let (publisher, mut consumer) = small();
        for user in 0..3 {
            publisher.publish(&rating(user)).unwrap();
        }
        let error = publisher.publish(&rating(3)).unwrap_err();
        assert!(matches!(error, PublishError::Full { .. }), "{error:?}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(1)));
        consumer.next().await;
        consumer.next().await;
        assert!(publisher.publish(&rating(3)).is_ok(), "there is room again");
    }

    #[tokio::test]
    async fn when_the_publishers_are_gone_the_rest_is_handed_out_before_the_end() {
        let (publisher, mut consumer) = small();
        publisher.clone().publish(&rating(0)).unwrap();
        drop(publisher);
        consumer.next().await;
        assert_eq!(offsets(&consumer.next().await), [0]);
        assert_eq!(consumer.next().await, Event::Closed);
    }

    #[tokio::test]
    async fn a_paused_bus_hands_out_nothing_until_it_is_resumed() {
        let (publisher, mut consumer) = small();
        consumer.next().await;
        consumer.set_paused(&[PARTITION], true).unwrap();
        publisher.publish(&rating(0)).unwrap();
        assert!(consumer.next().now_or_never().is_none());
        consumer.set_paused(&[PARTITION], false).unwrap();
        assert_eq!(offsets(&consumer.next().await), [0]);
    }

    #[tokio::test]
    async fn a_publisher_without_consumer_is_not_ready() {
        let (publisher, consumer) = small();
        assert!(publisher.check().is_ok());
        drop(consumer);
        assert!(publisher.check().is_err());
        assert!(matches!(publisher.publish(&rating(0)), Err(PublishError::Unavailable { .. })));
    }

    #[tokio::test]
    async fn whoever_follows_gets_the_same_ratings_and_never_holds_the_tuner_up() {
        let (publisher, mut consumer, mut follower) =
            followed(&Config { capacity: 2, batch_max: 9 });
        assert_eq!(consumer.source(), follower.source());
        consumer.next().await;
        follower.next().await;
        publisher.publish(&rating(0)).unwrap();
        assert_eq!(follower.next().await, consumer.next().await);
        for user in 1..6 {
            publisher.publish(&rating(user)).unwrap();
            assert_eq!(offsets(&consumer.next().await), [user as u64]);
        }
        // Its queue was full after two, and the tuner had all.
        assert_eq!(offsets(&follower.next().await), [1, 2]);
        drop(publisher);
        assert_eq!(follower.next().await, Event::Closed);
    }

    #[test]
    fn every_start_is_another_source() {
        assert_ne!(small().1.source(), small().1.source());
    }
}
