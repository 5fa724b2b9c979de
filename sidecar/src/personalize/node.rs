//! A node: reads the whole bus beside the tuners, learns every rating, and holds the model for whoever
//! asks.
//!
//! 1. A partition begins where the checkpoint says, else where the log begins. What was removed before it
//!    was read is missed, counted and logged.
//! 2. A checkpoint is model and positions of one moment: while its bytes are made nothing is learned; they go
//!    to the disk behind.
//! 3. A rating that a producer sent again is learned once, as far as the newest 65,536 go back.
//! 4. A checkpoint that cannot be used is logged, and learning begins anew: the node must answer.

use std::{
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{counter, gauge, histogram};
use tokio::{
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    Config, Positions,
    checkpoint::{CheckpointFile, encode},
    events::{self, Ring},
    model::{Key, Model, circumstances, item_of},
    recent::Recent,
};
use crate::{
    bus::{Assignment, BusError, Consumer, Delivery, Event},
    causes::with_causes,
    checkpoint::FileError,
    clock::unix_time,
};

/// How many ratings are learned under one lock: readers wait for no more.
const LEARNED_AT_ONCE: usize = 64;
/// How often gauges are set and, over Kafka, offsets are committed for monitoring.
const TELL_EVERY: Duration = Duration::from_secs(5);
/// How often connections are woken at most: what comes in between they are told together.
const TELL_AT_MOST: Duration = Duration::from_millis(5);

/// Why a node cannot start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NodeError {
    /// The bus failed for good.
    #[error("bus failed")]
    Bus(#[from] BusError),
    /// The checkpoint cannot be held.
    #[error("personalize.checkpoint")]
    Checkpoint(#[from] FileError),
}

/// What is learned, for whoever asks. Clones share it.
#[derive(Clone, Debug)]
pub struct Personalized {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    model: RwLock<Model>,
    ring: Ring,
    /// Whether the bus has given us partitions.
    reads: AtomicBool,
    /// When the newest rating that was learned came in, in Unix milliseconds.
    learned_ms: AtomicU64,
}

#[derive(Debug, thiserror::Error)]
#[error("the bus has not given it ratings yet")]
struct NotReading;

impl Personalized {
    pub(super) fn with(model: Model, config: &events::Config) -> Self {
        let (reads, learned_ms) = (AtomicBool::new(false), AtomicU64::new(0));
        let (model, ring) = (RwLock::new(model), Ring::new(config.buffer));
        Self { shared: Arc::new(Shared { model, ring, reads, learned_ms }) }
    }

    /// Returns the model as it is now; nothing is learned while the answer is held.
    pub fn model(&self) -> RwLockReadGuard<'_, Model> {
        self.shared.model.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the newest events.
    pub(super) fn ring(&self) -> &Ring {
        &self.shared.ring
    }

    /// Has `learn` change the model, as the node does.
    #[cfg(test)]
    pub(super) fn change(&self, learn: impl FnOnce(&mut Model)) {
        learn(&mut self.shared.model.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Returns when the newest rating that was learned came in, in Unix milliseconds.
    #[must_use]
    pub fn learned_ms(&self) -> u64 {
        self.shared.learned_ms.load(Ordering::Relaxed)
    }

    /// Returns once the node reads the bus.
    ///
    /// # Errors
    ///
    /// While it does not.
    pub fn check(&self) -> Result<(), impl std::error::Error + use<>> {
        if self.shared.reads.load(Ordering::Relaxed) { Ok(()) } else { Err(NotReading) }
    }
}

/// The task that learns.
#[derive(Debug)]
pub struct Node {
    personalized: Personalized,
    consumer: Consumer,
    positions: Positions,
    recent: Recent,
    file: Option<Arc<CheckpointFile>>,
    checkpoint_every: Duration,
    /// Whether the events are of the log that is read.
    follows: bool,
    /// When connections were last told of news, and whether there is more.
    told: Instant,
    untold: bool,
    /// The checkpoint on its way to the disk.
    writing: Option<JoinHandle<()>>,
}

impl Node {
    /// Returns a node that learns what `consumer`, which must follow, reads; it goes on from the
    /// checkpoint, if there is one.
    ///
    /// # Errors
    ///
    /// When another process holds the checkpoint.
    pub fn open(config: &Config, consumer: Consumer) -> Result<Self, NodeError> {
        let file = config.checkpoint.as_deref().map(CheckpointFile::open).transpose()?;
        let restored = match &file {
            None => None,
            Some(file) => match file.restore(&config.model) {
                Ok(restored) => restored,
                Err(error) => {
                    let (path, error) = (file.path().display(), with_causes(&error));
                    error!(%path, error, "checkpoint of personalised ratings not used: learning begins anew");
                    counter!("merit_personalize_checkpoints_refused_total").increment(1);
                    None
                }
            },
        };
        let fresh = || (Model::new(config.model.clone()), Positions::default());
        let (model, positions) = restored.unwrap_or_else(fresh);
        info!(users = model.size().users, items = model.size().items, "personalised ratings begin");
        Ok(Self {
            personalized: Personalized::with(model, &config.events),
            consumer,
            positions,
            recent: Recent::default(),
            file: file.map(Arc::new),
            checkpoint_every: config.checkpoint_every,
            follows: false,
            told: Instant::now(),
            untold: false,
            writing: None,
        })
    }

    /// Returns what is learned.
    #[must_use]
    pub fn personalized(&self) -> Personalized {
        self.personalized.clone()
    }

    /// Learns until `stop` is cancelled or the bus has ended, then writes a last checkpoint.
    ///
    /// # Errors
    ///
    /// When the bus failed for good.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), NodeError> {
        let mut telling = interval(TELL_EVERY);
        telling.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut written = Instant::now();
        let ended = loop {
            tokio::select! {
                biased;
                () = stop.cancelled() => break Ok(()),
                _ = telling.tick() => {
                    self.tell();
                }
                () = sleep_until(self.told + TELL_AT_MOST), if self.untold => self.tell_connections(),
                event = self.consumer.next() => match event {
                    Ok(Event::Closed) => break Ok(()),
                    Ok(event) => self.take(event),
                    Err(error) => break Err(NodeError::from(error)),
                },
            }
            if written.elapsed() >= self.checkpoint_every {
                self.write().await;
                written = Instant::now();
            }
        };
        self.written().await;
        self.write().await;
        self.written().await;
        self.personalized.shared.reads.store(false, Ordering::Relaxed);
        self.consumer.close().await;
        ended
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Assigned(assignments) => {
                self.follow_log();
                assignments.iter().for_each(|assignment| self.begin(assignment));
                self.personalized.shared.reads.store(true, Ordering::Relaxed);
            }
            // The positions stay: what is given again goes on from there.
            Event::Revoked(_) | Event::Closed => {}
            Event::Batch { deliveries, positions } => {
                for some in deliveries.chunks(LEARNED_AT_ONCE) {
                    self.learn(some);
                }
                for (partition, next) in positions {
                    self.positions.advance(partition, next);
                }
            }
        }
    }

    /// Wakes the connections, at most once in [`TELL_AT_MOST`]: thousands of them wake for each time.
    fn tell_connections(&mut self) {
        self.untold = self.told.elapsed() < TELL_AT_MOST;
        if !self.untold {
            self.told = Instant::now();
            self.personalized.shared.ring.tell();
        }
    }

    /// Forgets positions of another log than the one that is read now.
    fn follow_log(&mut self) {
        let source = self.consumer.source();
        if self.positions.source == source {
            if !self.follows {
                self.personalized.shared.ring.of_log(source);
                self.follows = true;
            }
            return;
        }
        self.follows = true;
        if !self.positions.source.is_empty() && self.consumer.durable() {
            let before = &self.positions.source;
            warn!(before, now = source, "another log of ratings: it is learned from its start");
        }
        self.positions = Positions::of(source);
        self.personalized.shared.ring.of_log(source);
    }

    fn begin(&mut self, assignment: &Assignment) {
        let Assignment { partition, log_start, log_end } = *assignment;
        let known = self.positions.next(partition);
        let from = match known {
            Some(next) if next < log_start => {
                counter!("merit_personalize_gaps_total").increment(1);
                warn!(
                    %partition, next, log_start,
                    "ratings were removed from the bus before they were learned"
                );
                log_start
            }
            Some(next) if next > log_end => {
                warn!(%partition, next, log_end, "the log ends before what was learned of it");
                self.positions.next.remove(&partition);
                log_start
            }
            Some(next) => next,
            None => log_start,
        };
        // A bus that keeps nothing is at its only position.
        if self.consumer.durable()
            && let Err(error) = self.consumer.seek(partition, from)
        {
            error!(%partition, %error, "partition not read from where it should be");
        }
        self.positions.advance(partition, from);
        let gap = known.is_some_and(|next| next != from);
        self.personalized.shared.ring.begin(partition, from, gap);
    }

    fn learn(&mut self, deliveries: &[Delivery]) {
        let now_us = u64::try_from(unix_time().as_micros()).unwrap_or(u64::MAX);
        let (mut learned, mut repeated, mut newest_ms) = (0, 0, 0);
        // Hashed before the lock is taken.
        let mut ready = Vec::with_capacity(deliveries.len());
        let mut events = Vec::with_capacity(deliveries.len());
        let shared = Arc::clone(&self.personalized.shared);
        for Delivery { partition, offset, rating } in deliveries {
            if self.positions.next(*partition).is_some_and(|next| *offset < next) {
                continue; // from before a seek
            }
            self.positions.advance(*partition, offset + 1);
            if !self.recent.is_new(rating) {
                repeated += 1;
                continue;
            }
            let Some(item) = item_of(rating) else { continue };
            let user = Key::user(rating.user().as_str());
            let score = rating.score().value();
            ready.push((user, Key::item(item), circumstances(rating.context()), score));
            events.push(shared.ring.event(item, (*partition, *offset), &self.positions));
            newest_ms = newest_ms.max(rating.accepted_at_us() / 1000);
            let late = Duration::from_micros(now_us.saturating_sub(rating.accepted_at_us()));
            histogram!("merit_personalize_rating_to_score_seconds").record(late);
        }
        let mut model = shared.model.write().unwrap_or_else(PoisonError::into_inner);
        for (user, item, circumstances, score) in &ready {
            model.learn(*user, *item, circumstances, *score);
            learned += 1;
        }
        drop(model);
        // Only now: whoever is told of a rating is told a score that knows it.
        shared.ring.append(events);
        self.tell_connections();
        shared.learned_ms.fetch_max(newest_ms, Ordering::Relaxed);
        counter!("merit_personalize_ratings_total").increment(learned);
        counter!("merit_personalize_repeats_total").increment(repeated);
    }

    #[allow(clippy::cast_precision_loss, reason = "gauges are floats")]
    fn tell(&mut self) {
        let size = self.personalized.model().size();
        gauge!("merit_personalize_users").set(size.users as f64);
        gauge!("merit_personalize_items").set(size.items as f64);
        gauge!("merit_personalize_forgotten").set(size.forgotten as f64);
        let behind: u64 = self.consumer.lag().iter().map(|(_, lag)| lag).sum();
        gauge!("merit_personalize_lag").set(behind as f64);
        let positions: Vec<_> = self.positions.next.iter().map(|(p, next)| (*p, *next)).collect();
        if let Err(error) = self.consumer.commit(&positions) {
            warn!(%error, "offsets of personalised ratings not committed");
        }
    }

    /// Begins to write a checkpoint, unless the one before is still being written. One that cannot be
    /// written is logged, and the next one tries again.
    async fn write(&mut self) {
        let Some(file) = self.file.clone() else { return };
        if self.writing.as_ref().is_some_and(|writing| !writing.is_finished()) {
            return;
        }
        let (personalized, positions) = (self.personalized.clone(), self.positions.clone());
        let began = Instant::now();
        let encoding =
            tokio::task::spawn_blocking(move || encode(&personalized.model(), &positions));
        let bytes = encoding.await.expect("encoding does not panic and is not aborted");
        histogram!("merit_personalize_checkpoint_pause_seconds").record(began.elapsed());
        self.writing = Some(tokio::task::spawn_blocking(move || match file.write(&bytes) {
            Ok(_) => gauge!("merit_personalize_checkpoint_timestamp_seconds")
                .set(unix_time().as_secs_f64()),
            Err(error) => {
                counter!("merit_personalize_checkpoint_failures_total").increment(1);
                let error = with_causes(&error);
                error!(error, "checkpoint of personalised ratings not written");
            }
        }));
    }

    /// Waits until no checkpoint is being written.
    async fn written(&mut self) {
        if let Some(writing) = self.writing.take() {
            writing.await.expect("writing does not panic and is not aborted");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bus::in_process,
        rating::{Poster, Rating, RatingRequest},
    };

    fn rating(id: usize, user: &str, item: &str, score: u8) -> Rating {
        let body =
            format!(r#"{{"id":"{id}","user_id":"{user}","item_id":"{item}","rating":{score}}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new("p").unwrap(), 1_700_000_000_000_000).unwrap()
    }

    async fn learned_of(ratings: &[Rating], config: &Config) -> Personalized {
        let bus = in_process::Config::default();
        let (publisher, mut tuner, follower) = in_process::followed(&bus);
        let publisher = crate::bus::Publisher::InProcess(publisher);
        let node = Node::open(config, Consumer::InProcess(follower)).unwrap();
        let personalized = node.personalized();
        assert!(personalized.check().is_err(), "it reads nothing yet");
        for rating in ratings {
            publisher.publish(rating).await.unwrap();
        }
        drop(publisher);
        node.run(CancellationToken::new()).await.unwrap();
        let _ = &mut tuner;
        personalized
    }

    #[tokio::test]
    async fn what_is_on_the_bus_is_learned_and_a_repeat_only_once() {
        let mut ratings: Vec<Rating> = (0..50).map(|n| rating(n, "ann", "tea", 5)).collect();
        ratings.extend((50..100).map(|n| rating(n, "ann", "ink", 1)));
        ratings.extend((0..50).map(|n| rating(n, "ann", "tea", 5)));
        let personalized = learned_of(&ratings, &Config::default()).await;
        let model = personalized.model();
        let [tea, ink] = ["tea", "ink"].map(|item| model.popularity(Key::item(item)).unwrap());
        assert_eq!((tea.ratings, ink.ratings), (50, 50));
        let ann = Key::user("ann");
        assert!(model.predict(ann, Key::item("tea")) > model.predict(ann, Key::item("ink")) + 2.0);
        assert_eq!(personalized.learned_ms(), 1_700_000_000_000);
    }

    #[tokio::test]
    async fn a_restart_goes_on_from_the_checkpoint_and_a_damaged_one_stops_nobody() {
        let folder = std::env::temp_dir().join(format!("merit-node-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.join("model.chkpt");
        let config = Config { checkpoint: Some(path.clone()), ..Config::default() };
        let first = learned_of(&[rating(1, "ann", "tea", 5)], &config).await;
        let second = learned_of(&[rating(1, "bob", "tea", 1)], &config).await;
        assert_eq!(first.model().popularity(Key::item("tea")).unwrap().ratings, 1);
        assert_eq!(second.model().popularity(Key::item("tea")).unwrap().ratings, 2);
        std::fs::write(&path, b"no checkpoint").unwrap();
        let third = learned_of(&[rating(1, "cy", "tea", 3)], &config).await;
        assert_eq!(third.model().popularity(Key::item("tea")).unwrap().ratings, 1);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
