//! The consuming end: a member of the group that turns polls into [`Event`]s.
//!
//! One call of [`Consumer::next`] goes through these steps, each of which keeps what it has begun
//! in the consumer, so that a dropped call loses nothing:
//!
//! 1. Answer the rebalance handed out by the call before.
//! 2. Carry out seeks. What is refused is tried again; until then nothing of the partition comes.
//! 3. Wait until every dead letter is acknowledged; only then does a position move past it. After a
//!    second only the letter's own partition goes on waiting, held.
//!    A record of a schema that the registry has not described yet stops its partition before it; once
//!    the registry has answered, the partition goes on by a seek to that record.
//! 4. Hand out what was gathered of partitions that are not held, else the next rebalance.
//! 5. Gather: wait for one record, take what is ready, never more than `batch_max`.

use super::{
    client::{self, Quiet},
    config::Config,
    dead::{DeadLetters, Letter},
    group::{Member, Step},
    lookup::{self, Refused, Start},
    records::{Gathered, list, offset, timestamp_ms, trace},
};
use crate::{
    bus::{Assignment, BusError, Decoding, Delivery, Event, Partition, Unread, registry::Schemas},
    rating::confluent::SchemaId,
};
use futures_util::{FutureExt, StreamExt};
use metrics::gauge;
use rdkafka::{
    Message, Offset, TopicPartitionList,
    consumer::{CommitMode, Consumer as _, StreamConsumer},
    error::{KafkaError, KafkaResult},
    message::BorrowedMessage,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Duration,
};
use tokio::{
    task::{JoinHandle, spawn_blocking},
    time::{Instant, sleep_until},
};
use tracing::{debug, info, warn};

/// How long giving the partitions back may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
/// How long the broker may hold an empty fetch: a seek or a new partition waits for it.
const FETCH_WAIT_MS: &str = "50";
/// How often the topic is looked at for new partitions.
const METADATA_EVERY_MS: &str = "10000";
/// How much may be fetched ahead, in KiB.
const AHEAD_MAX_KIB: &str = "16384";
/// How long to wait before a seek that was refused is tried again.
const SEEK_AGAIN_AFTER: Duration = Duration::from_millis(200);
/// So many refusals in a row are usual: a partition that is only just starting refuses.
const SEEK_REFUSALS_USUAL: u32 = 5;

/// Takes ratings off a Kafka topic, sharing its partitions with the rest of the group.
pub struct Consumer {
    /// Taken when the partitions are given back.
    client: Option<Arc<StreamConsumer<Member>>>,
    topic: String,
    source: String,
    decoding: Decoding,
    batch_max: usize,
    /// Creates the topics; the subscription waits for it.
    creating: Option<JoinHandle<()>>,
    /// The rebalance that was handed out and librdkafka waits to have answered.
    unanswered: Option<Unanswered>,
    /// Asks where the logs of new partitions begin and end.
    looking_up: Option<JoinHandle<Vec<Start>>>,
    /// Seeks to be carried out. Until then records of these partitions are from the wrong place.
    wanted: BTreeMap<Partition, u64>,
    seeking: Option<JoinHandle<Result<(), Refused>>>,
    /// When refused seeks are tried again, and how often in a row some were.
    seek_at: Instant,
    seeks_refused: u32,
    gathered: Gathered,
    dead: DeadLetters,
    /// Our partitions and the offset after what was gathered of each.
    ours: BTreeMap<Partition, u64>,
    /// Ends of the logs when they became ours: until librdkafka knows better.
    ends: BTreeMap<Partition, u64>,
    paused: BTreeSet<Partition>,
    /// Partitions that wait for a dead letter: nothing is fetched of them.
    held: BTreeSet<Partition>,
    /// Partitions whose next record, at this offset, is of a schema that is being asked for.
    waiting: BTreeMap<Partition, (u64, SchemaId)>,
    /// Held or waiting partitions, as librdkafka was told: it fetches nothing of them.
    stopped: BTreeSet<Partition>,
    /// What was last asked to be committed of each partition.
    committed: BTreeMap<Partition, u64>,
    quiet: Quiet,
    /// Whether dead letters are somebody else's to put aside.
    follows: bool,
}

enum Unanswered {
    Assign(Vec<Start>),
    Revoke(Vec<Partition>),
}

#[derive(Debug, thiserror::Error)]
#[error("the partition is not ours")]
struct NotOurs;

impl Consumer {
    /// Returns a consumer that reads the whole topic beside the tuners, in the group `<group>-<name>`,
    /// which must be nobody else's. Dead letters are the tuners' to put aside.
    ///
    /// # Errors
    ///
    /// As [`Consumer::connect`].
    pub fn follow(config: &Config, name: &str) -> Result<Self, BusError> {
        let group = format!("{}-{name}", config.group);
        // With a name it has its partitions back at once, and a second node of that name is told so.
        let instance = Some(name.to_owned());
        let mut consumer = Self::connect(&Config { group, instance, ..config.clone() })?;
        consumer.follows = true;
        Ok(consumer)
    }

    /// Returns a consumer that joins the group as soon as the topic is there.
    ///
    /// # Errors
    ///
    /// When the password is missing, this build lacks the encoding, or librdkafka refuses the settings.
    pub fn connect(config: &Config) -> Result<Self, BusError> {
        let mut settings = client::settings(config)?;
        let session_ms = config.session_timeout.as_millis();
        settings
            .set("group.id", &config.group)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "earliest")
            .set("session.timeout.ms", session_ms.to_string())
            .set("heartbeat.interval.ms", (session_ms / 3).max(1).to_string())
            .set("max.poll.interval.ms", config.max_poll_interval.as_millis().to_string())
            .set("topic.metadata.refresh.interval.ms", METADATA_EVERY_MS)
            .set("fetch.wait.max.ms", FETCH_WAIT_MS)
            .set("queued.max.messages.kbytes", AHEAD_MAX_KIB)
            .set("statistics.interval.ms", "1000");
        if let Some(instance) = &config.instance {
            settings.set("group.instance.id", instance);
        }
        let schemas = config.schema_registry.as_deref().map(Schemas::new);
        let client: StreamConsumer<Member> = client::create(&settings, Member::new(&config.topic))?;
        Ok(Self {
            client: Some(Arc::new(client)),
            topic: config.topic.clone(),
            source: format!("kafka-{}", config.generation),
            decoding: Decoding::with(config.codec()?, schemas.transpose()?),
            batch_max: config.batch_max.max(1),
            creating: Some(tokio::spawn(lookup::create_until_there(config.clone()))),
            unanswered: None,
            looking_up: None,
            wanted: BTreeMap::new(),
            seeking: None,
            seek_at: Instant::now(),
            seeks_refused: 0,
            gathered: Gathered::default(),
            dead: DeadLetters::new(config)?,
            ours: BTreeMap::new(),
            ends: BTreeMap::new(),
            paused: BTreeSet::new(),
            held: BTreeSet::new(),
            waiting: BTreeMap::new(),
            stopped: BTreeSet::new(),
            committed: BTreeMap::new(),
            follows: false,
            quiet: Quiet::default(),
        })
    }

    fn client(&self) -> &Arc<StreamConsumer<Member>> {
        self.client.as_ref().expect("taken only when the consumer is dropped")
    }

    /// Waits for the next event; see [`crate::bus::Consumer::next`].
    ///
    /// # Errors
    ///
    /// When the client failed for good.
    pub async fn next(&mut self) -> Result<Event, BusError> {
        self.subscribe().await?;
        loop {
            self.answer()?;
            self.look_again();
            self.carry_out_seeks().await?;
            self.settle().await;
            self.stop_and_go()?;
            if let Some(batch) = self.gathered.take(&self.held, self.batch_max) {
                return Ok(batch);
            }
            if let Some(event) = self.rebalanced().await {
                return Ok(event);
            }
            if self.unanswered.is_none() {
                self.gather().await?;
            }
        }
    }

    async fn subscribe(&mut self) -> Result<(), BusError> {
        if let Some(creating) = &mut self.creating {
            creating.await.map_err(|source| BusError::Fatal { source: source.into() })?;
            self.creating = None;
            let subscribed = self.client().subscribe(&[&self.topic]);
            subscribed.map_err(|source| BusError::Fatal { source: source.into() })?;
            info!(topic = self.topic, source = self.source, "kafka consumer joins its group");
        }
        Ok(())
    }

    /// Tells librdkafka that the rebalance handed out has been taken in.
    fn answer(&mut self) -> Result<(), BusError> {
        let answered = match self.unanswered.take() {
            None => return Ok(()),
            Some(Unanswered::Revoke(partitions)) => self.give_up(&partitions),
            Some(Unanswered::Assign(starts)) => self.begin(&starts),
        };
        answered.map_err(|source| BusError::Fatal { source: source.into() })
    }

    /// Commits once more before giving up: the broker refuses commits while a rebalance is being
    /// settled, and here it is settled.
    fn give_up(&mut self, partitions: &[Partition]) -> KafkaResult<()> {
        let last = |p| self.committed.remove(p).map(|next| (*p, offset(next)));
        let last: Vec<_> = partitions.iter().filter_map(last).collect();
        if !last.is_empty() && !self.client().assignment_lost() {
            let again = self.list(last.into_iter());
            if let Err(error) = self.client().commit(&again, CommitMode::Async) {
                warn!(%error, "offsets of partitions given up are not committed");
            }
        }
        self.client().incremental_unassign(&self.whole(partitions))
    }

    fn begin(&mut self, starts: &[Start]) -> KafkaResult<()> {
        for start in starts {
            let partition = start.assignment.partition;
            let first = self.wanted.remove(&partition).unwrap_or(start.offset);
            self.ours.insert(partition, first);
        }
        let at = |start: &Start| {
            let partition = start.assignment.partition;
            (partition, offset(self.ours[&partition]))
        };
        self.client().incremental_assign(&self.list(starts.iter().map(at)))?;
        let begun = starts.iter().map(|start| start.assignment.partition);
        let (paused, running): (Vec<_>, Vec<_>) = begun.partition(|p| self.paused.contains(p));
        self.client().pause(&self.whole(&paused))?;
        // One that was paused when it was given up is still paused for librdkafka.
        self.client().resume(&self.whole(&running))
    }

    /// Returns when the seeks are carried out or have to be tried again later: rebalances must be
    /// seen meanwhile, and only a poll brings them.
    async fn carry_out_seeks(&mut self) -> Result<(), BusError> {
        loop {
            if self.seeking.is_none() && !self.wanted.is_empty() && Instant::now() >= self.seek_at {
                let wanted = std::mem::take(&mut self.wanted);
                let (client, topic) = (Arc::clone(self.client()), self.topic.clone());
                self.seeking = Some(spawn_blocking(move || lookup::seek(&client, &topic, wanted)));
            }
            let Some(seeking) = &mut self.seeking else {
                return Ok(());
            };
            let outcome = seeking.await;
            self.seeking = None;
            match outcome.map_err(|source| BusError::Fatal { source: source.into() })? {
                Ok(()) => self.seeks_refused = 0,
                Err(refused) => self.seek_later(refused),
            }
        }
    }

    fn seek_later(&mut self, refused: Refused) {
        self.seek_at = Instant::now() + SEEK_AGAIN_AFTER;
        self.seeks_refused = self.seeks_refused.saturating_add(1);
        if self.seeks_refused > SEEK_REFUSALS_USUAL {
            client::log_outage(&self.quiet, &refused.error, "seeking");
        }
        for (partition, offset) in refused.places {
            // A seek that was asked for meanwhile is the one that counts.
            self.wanted.entry(partition).or_insert(offset);
        }
    }

    /// Waits for dead letters; holds the partitions whose letters take too long.
    async fn settle(&mut self) {
        self.dead.settle(&self.held).await;
        let held = self.dead.partitions();
        let begun: Vec<_> = held.difference(&self.held).copied().collect();
        if !begun.is_empty() {
            warn!(partitions = ?begun, "partitions wait for their dead letters");
        }
        self.held = held;
    }

    /// Has nothing fetched of partitions that are held or wait, and the others fetched again.
    fn stop_and_go(&mut self) -> Result<(), BusError> {
        let stopped: BTreeSet<_> = self.held.iter().chain(self.waiting.keys()).copied().collect();
        if stopped == self.stopped {
            return Ok(());
        }
        let begun: Vec<_> = stopped.difference(&self.stopped).copied().collect();
        let ended = self.stopped.difference(&stopped).filter(|p| !self.paused.contains(p));
        let ended: Vec<_> = ended.copied().collect();
        let paused = self.client().pause(&self.whole(&begun));
        paused.map_err(|source| BusError::Client { action: "pause", source: source.into() })?;
        let resumed = self.client().resume(&self.whole(&ended));
        resumed.map_err(|source| BusError::Client { action: "resume", source: source.into() })?;
        self.stopped = stopped;
        Ok(())
    }

    /// Sends partitions back to the record that they wait before, where its schema is known by now.
    fn look_again(&mut self) {
        let ready: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, (_, schema))| self.decoding.knows(*schema))
            .map(|(partition, (offset, _))| (*partition, *offset))
            .collect();
        for (partition, offset) in ready {
            debug!(%partition, offset, "partition goes on: the schema is known");
            self.waiting.remove(&partition);
            self.wanted.entry(partition).or_insert(offset);
        }
        self.show_waiting();
    }

    #[allow(clippy::cast_precision_loss, reason = "a count of partitions")]
    fn show_waiting(&self) {
        gauge!("merit_bus_waiting_partitions").set(self.waiting.len() as f64);
    }

    /// Returns the next change of the assignment that the caller must know.
    async fn rebalanced(&mut self) -> Option<Event> {
        if self.looking_up.is_none() {
            match self.client().context().take_step()? {
                Step::Revoke(partitions) => return self.revoked(partitions),
                Step::Assign(partitions) if partitions.is_empty() => {
                    self.unanswered = Some(Unanswered::Assign(Vec::new()));
                    return None;
                }
                Step::Assign(partitions) => {
                    let (client, topic) = (Arc::clone(self.client()), self.topic.clone());
                    let task =
                        spawn_blocking(move || lookup::look_up(&client, &topic, &partitions));
                    self.looking_up = Some(task);
                }
            }
        }
        let looking_up = self.looking_up.as_mut().expect("begun above or by a call before");
        let starts = looking_up.await.expect("looking up does not panic");
        self.looking_up = None;
        let assigned: Vec<Assignment> = starts.iter().map(|start| start.assignment).collect();
        self.ends.extend(assigned.iter().map(|a| (a.partition, a.log_end)));
        self.unanswered = Some(Unanswered::Assign(starts));
        Some(Event::Assigned(assigned))
    }

    fn revoked(&mut self, partitions: Vec<Partition>) -> Option<Event> {
        for partition in &partitions {
            self.ours.remove(partition);
            self.ends.remove(partition);
            self.paused.remove(partition);
            self.wanted.remove(partition);
            self.held.remove(partition);
            self.waiting.remove(partition);
            self.stopped.remove(partition);
            self.dead.forget(*partition);
            self.gathered.forget(*partition);
        }
        self.unanswered = Some(Unanswered::Revoke(partitions.clone()));
        (!partitions.is_empty()).then_some(Event::Revoked(partitions))
    }

    /// Waits for a record, a rebalance, a dead letter, a schema or the time of a seek; takes what is
    /// ready.
    async fn gather(&mut self) -> Result<(), BusError> {
        let client = Arc::clone(self.client());
        let mut stream = pin!(client.stream());
        // A rebalance wakes us without a record.
        let first = poll_fn(|context| match stream.poll_next_unpin(context) {
            Poll::Ready(found) => Poll::Ready(found),
            Poll::Pending if client.context().has_step() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        });
        let mut next = tokio::select! {
            found = first => found,
            () = self.dead.advance(), if !self.held.is_empty() => return Ok(()),
            () = self.decoding.answered(), if !self.waiting.is_empty() => return Ok(()),
            () = sleep_until(self.seek_at), if !self.wanted.is_empty() => return Ok(()),
        };
        let mut taken = 0;
        while let Some(found) = next {
            match found {
                Ok(record) => self.take(&record),
                Err(error) => self.note(error)?,
            }
            taken += 1;
            if taken == self.batch_max || client.context().has_step() {
                break;
            }
            next = stream.next().now_or_never().flatten();
        }
        Ok(())
    }

    fn take(&mut self, record: &BorrowedMessage<'_>) {
        let (Ok(number), Ok(offset)) =
            (u32::try_from(record.partition()), u64::try_from(record.offset()))
        else {
            return; // librdkafka's events have no place on a log
        };
        let partition = Partition(number);
        let Some(position) = self.ours.get_mut(&partition) else {
            return debug!(%partition, offset, "record of a partition that is not ours is left");
        };
        if self.wanted.contains_key(&partition) {
            return debug!(%partition, offset, "record from before a seek is left");
        }
        if self.waiting.contains_key(&partition) {
            return debug!(%partition, offset, "record after one that waits is left");
        }
        let rating = match record.payload() {
            None => {
                debug!(%partition, offset, "tombstone is no rating and no poison");
                None
            }
            Some(value) => match self.decoding.decode(value, timestamp_ms(record)) {
                Ok(rating) => Some(rating.traced(trace(record))),
                Err(Unread::Waits(schema)) => {
                    debug!(%partition, offset, %schema, "partition waits for a schema");
                    self.waiting.insert(partition, (offset, schema));
                    return self.show_waiting();
                }
                Err(Unread::Poison(_)) if self.follows => None,
                Err(Unread::Poison(error)) => {
                    let (place, reason) = ((partition, offset), error.to_string());
                    self.dead.push(Letter::new(place, record.key(), value, reason));
                    None
                }
            },
        };
        *position = offset + 1;
        self.gathered.positions.insert(partition, offset + 1);
        self.gathered.deliveries.extend(rating.map(|rating| Delivery {
            partition,
            offset,
            rating,
        }));
    }

    /// Takes note of an error that librdkafka recovers from; returns the others.
    fn note(&self, error: KafkaError) -> Result<(), BusError> {
        if let KafkaError::MessageConsumptionFatal(_) = error {
            return Err(BusError::Fatal { source: error.into() });
        }
        client::log_outage(&self.quiet, &error, "consuming");
        Ok(())
    }

    /// Returns the name of this log of ratings: the generation that configuration gives it.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Starts to store `positions`; see [`crate::bus::Consumer::commit`].
    ///
    /// # Errors
    ///
    /// When the commit could not be sent.
    pub fn commit(&mut self, positions: &[(Partition, u64)]) -> Result<(), BusError> {
        let leaving = |p: &Partition| matches!(&self.unanswered, Some(Unanswered::Revoke(l)) if l.contains(p));
        let ours = positions.iter().filter(|(p, _)| self.ours.contains_key(p) || leaving(p));
        let ours: Vec<_> = ours.copied().collect();
        if ours.is_empty() {
            return Ok(());
        }
        self.committed.extend(ours.iter().copied());
        let list = self.list(ours.into_iter().map(|(partition, next)| (partition, offset(next))));
        let sent = self.client().commit(&list, CommitMode::Async);
        sent.map_err(|source| BusError::Client { action: "commit", source: source.into() })
    }

    /// Continues `partition` from `offset`; see [`crate::bus::Consumer::seek`].
    ///
    /// # Errors
    ///
    /// When the partition is not ours.
    pub fn seek(&mut self, partition: Partition, offset: u64) -> Result<(), BusError> {
        let coming = |start: &Start| start.assignment.partition == partition;
        let coming =
            matches!(&self.unanswered, Some(Unanswered::Assign(l)) if l.iter().any(coming));
        match self.ours.get_mut(&partition) {
            Some(position) => *position = offset,
            None if coming => {}
            None => {
                return Err(BusError::Seek { partition, offset, source: Box::new(NotOurs) });
            }
        }
        self.gathered.forget(partition);
        self.waiting.remove(&partition);
        self.wanted.insert(partition, offset);
        Ok(())
    }

    /// Hands out nothing of `partitions` for now; see [`crate::bus::Consumer::pause`].
    ///
    /// # Errors
    ///
    /// When librdkafka refuses.
    pub fn pause(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        self.paused.extend(partitions);
        let begun: Vec<_> =
            partitions.iter().copied().filter(|p| self.ours.contains_key(p)).collect();
        let paused = self.client().pause(&self.whole(&begun));
        paused.map_err(|source| BusError::Client { action: "pause", source: source.into() })
    }

    /// Hands out `partitions` again; see [`crate::bus::Consumer::resume`].
    ///
    /// # Errors
    ///
    /// When librdkafka refuses.
    pub fn resume(&mut self, partitions: &[Partition]) -> Result<(), BusError> {
        self.paused.retain(|partition| !partitions.contains(partition));
        let free = |p: &Partition| self.ours.contains_key(p) && !self.stopped.contains(p);
        let begun: Vec<_> = partitions.iter().copied().filter(free).collect();
        let resumed = self.client().resume(&self.whole(&begun));
        resumed.map_err(|source| BusError::Client { action: "resume", source: source.into() })
    }

    /// Returns how many records of each partition were not gathered yet, at most a second old.
    #[must_use]
    pub fn lag(&self) -> Vec<(Partition, u64)> {
        let behind = |(&partition, &position): (&Partition, &u64)| {
            let at_start = self.ends.get(&partition).copied().unwrap_or(0);
            let end = self.client().context().log_end(partition).unwrap_or(0).max(at_start);
            (partition, end.saturating_sub(position))
        };
        self.ours.iter().map(behind).collect()
    }

    /// Gives the partitions back and returns when the group knows, or after ten seconds.
    pub async fn close(mut self) {
        let Some(gone) = self.leave() else { return };
        if tokio::time::timeout(CLOSE_DEADLINE, gone).await.is_err() {
            warn!(topic = self.topic, "group not left in time; its session will time out");
        }
    }

    /// Leaves the group on a thread of its own, because librdkafka blocks until it has.
    fn leave(&mut self) -> Option<tokio::sync::oneshot::Receiver<()>> {
        if let Some(creating) = self.creating.take() {
            creating.abort();
        }
        let unanswered = self.unanswered.is_some();
        if unanswered && let Err(error) = self.answer() {
            warn!(%error, "rebalance not answered while closing");
        }
        let client = self.client.take()?;
        client.context().start_closing();
        // librdkafka does not close while it waits for an answer.
        let looking_up = self.looking_up.take().is_some();
        let answers = looking_up.then(|| Step::Assign(Vec::new()));
        for step in answers.into_iter().chain(std::iter::from_fn(|| client.context().take_step())) {
            let answered = match step {
                Step::Assign(_) => client.incremental_assign(&TopicPartitionList::new()),
                Step::Revoke(partitions) => client.incremental_unassign(&list(
                    &self.topic,
                    partitions.into_iter().map(|p| (p, Offset::Invalid)),
                )),
            };
            if let Err(error) = answered {
                warn!(%error, "rebalance not answered while closing");
            }
        }
        let (gone, when_gone) = tokio::sync::oneshot::channel();
        std::thread::spawn(move || {
            drop(client);
            let _ = gone.send(()); // nobody may be waiting
        });
        Some(when_gone)
    }

    fn list(&self, places: impl Iterator<Item = (Partition, Offset)>) -> TopicPartitionList {
        list(&self.topic, places)
    }

    fn whole(&self, partitions: &[Partition]) -> TopicPartitionList {
        self.list(partitions.iter().map(|&partition| (partition, Offset::Invalid)))
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        self.leave();
    }
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer").field("topic", &self.topic).field("ours", &self.ours).finish()
    }
}

#[cfg(test)]
mod tests;
