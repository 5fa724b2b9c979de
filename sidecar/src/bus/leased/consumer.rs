//! The consuming end of a leased log.
//!
//! One call of [`Consumer::next`] waits for whichever comes first: the round that keeps the leases,
//! a read, or the moment when a lease has run out. Each runs in a task of its own whose outcome waits
//! here, so that a dropped call loses nothing. Commits and releases go out in the order they were
//! asked for.

use super::{
    Bounds, Letter, Log, Read, Reader, Record, Terms,
    keep::{self, Held, Kept},
};
use crate::{
    bus::{Assignment, BusError, Cause, Decoding, Delivery, Event, Partition},
    rating::Rating,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::pending,
    sync::Arc,
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};
use tracing::{info, warn};

/// Longest time between two rounds of keeping leases: the lag is known anew with each.
const KEEP_MAX: Duration = Duration::from_secs(1);
/// How long to wait after a round or a read that failed.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// How long giving the partitions back may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(10);
/// Longest reason of a record that is put aside, in bytes.
const REASON_MAX: usize = 1024;

/// Takes ratings off a leased log, sharing its partitions with other members.
pub(in crate::bus) struct Consumer<L: Log> {
    log: Arc<L>,
    terms: Terms,
    source: String,
    /// Our partitions.
    ours: BTreeMap<Partition, Place>,
    /// Until when they are ours for sure.
    until: Instant,
    /// Handed out as revoked; to be given back with the next call.
    leaving: BTreeSet<Partition>,
    /// To be given back by the next round.
    releasing: BTreeSet<Partition>,
    /// Counts what was given up: rounds begun before know nothing of it.
    revocations: u64,
    /// What the next calls return.
    events: VecDeque<Event>,
    keeping: Option<JoinHandle<(u64, Result<Kept, Cause>)>>,
    keep_at: Instant,
    reading: Option<JoinHandle<Sought<L::Reader>>>,
    reader: Option<(L::Reader, Decoding)>,
    read_at: Instant,
    /// Which partitions are read next, when there are too many for one batch.
    turn: usize,
    /// The last of a chain of commits.
    writing: Option<JoinHandle<()>>,
    away: bool,
}

/// Where a partition of ours is read.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The offset of the next record.
    next: u64,
    /// The number of the last record read, once there was one, and of the newest known.
    read: Option<u64>,
    newest: u64,
    paused: bool,
}

/// What a reading task comes back with.
struct Sought<R> {
    reader: (R, Decoding),
    from: Vec<(Partition, u64)>,
    found: Result<Found, Cause>,
}

/// Records read and decoded; those that are no ratings are put aside already.
#[derive(Default)]
struct Found {
    source: String,
    partitions: Vec<Part>,
}

struct Part {
    partition: Partition,
    deliveries: Vec<Delivery>,
    next: u64,
    number: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("the partition is not ours")]
struct NotOurs;

impl<L: Log> Consumer<L> {
    /// Returns a consumer that takes part with its first call.
    pub(in crate::bus) fn new(log: Arc<L>, terms: Terms) -> Self {
        let now = Instant::now();
        Self {
            reader: Some((log.reader(), Decoding::new(terms.codec))),
            log,
            terms,
            source: String::new(),
            ours: BTreeMap::new(),
            until: now,
            leaving: BTreeSet::new(),
            releasing: BTreeSet::new(),
            revocations: 0,
            events: VecDeque::new(),
            keeping: None,
            keep_at: now,
            reading: None,
            read_at: now,
            turn: 0,
            writing: None,
            away: false,
        }
    }

    /// Waits for the next event; see [`crate::bus::Consumer::next`].
    pub(in crate::bus) async fn next(&mut self) -> Event {
        if !self.leaving.is_empty() {
            self.releasing.append(&mut self.leaving);
            self.keep_at = Instant::now();
        }
        loop {
            if let Some(event) = self.events.pop_front() {
                if let Event::Revoked(partitions) = &event {
                    self.leaving.extend(partitions);
                }
                return event;
            }
            if !self.ours.is_empty() && Instant::now() >= self.until {
                warn!(bus = self.log.address(), "leases ran out before they could be renewed");
                self.revoke(self.ours.keys().copied().collect());
                continue;
            }
            self.begin_to_keep();
            self.begin_to_read();
            let wake = self.wake();
            tokio::select! {
                // In this order, so that a busy log does not cost us our leases.
                biased;
                (begun_at, kept) = joined(&mut self.keeping) => self.kept(begun_at, kept),
                sought = joined(&mut self.reading) => {
                    if let Some(batch) = self.sought(sought) {
                        return batch;
                    }
                }
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Returns when there is something to do though nothing has come.
    fn wake(&self) -> Instant {
        let far = Instant::now() + KEEP_MAX;
        let mut wake = if self.ours.is_empty() { far } else { self.until };
        if self.keeping.is_none() {
            wake = wake.min(self.keep_at);
        }
        if self.reading.is_none() && self.reads() {
            wake = wake.min(self.read_at);
        }
        wake.min(far)
    }

    fn reads(&self) -> bool {
        self.ours.values().any(|place| !place.paused)
    }

    fn begin_to_keep(&mut self) {
        if self.keeping.is_some() || Instant::now() < self.keep_at {
            return;
        }
        let (log, terms) = (Arc::clone(&self.log), self.terms.clone());
        let owned: BTreeMap<Partition, u64> =
            self.ours.iter().map(|(partition, place)| (*partition, place.next)).collect();
        let releasing = self.releasing.iter().copied().collect();
        let (known, revocations) = (self.source.clone(), self.revocations);
        // What was committed before a partition is given back is written before.
        let before = self.writing.take();
        self.keeping = Some(tokio::spawn(async move {
            finish(before).await;
            let round = keep::round(&*log, &terms, &known, owned, releasing);
            let kept = match timeout(terms.lease, round).await {
                Ok(kept) => kept,
                Err(late) => Err(late.into()),
            };
            (revocations, kept)
        }));
    }

    fn kept(&mut self, revocations: u64, kept: Result<Kept, Cause>) {
        let now = Instant::now();
        let kept = match kept {
            Ok(kept) => kept,
            Err(error) => {
                self.failed(&error);
                self.keep_at = now + AGAIN_AFTER;
                return;
            }
        };
        if self.away {
            info!(bus = self.log.address(), "bus answers again");
            self.away = false;
        }
        self.releasing.retain(|partition| !kept.released.contains(partition));
        if revocations != self.revocations {
            self.keep_at = now; // it renewed what was given up meanwhile
            return;
        }
        self.keep_at = kept.began + (self.terms.lease / 3).min(KEEP_MAX);
        if kept.source != self.source {
            if !self.ours.is_empty() {
                // The name changes when what was of the old log is given up; the next round tells.
                warn!(
                    before = self.source,
                    now = kept.source,
                    "the log of ratings was lost, and is another one now"
                );
                self.revoke(self.ours.keys().copied().collect());
                self.keep_at = now;
                return;
            }
            self.source.clone_from(&kept.source);
        }
        self.until = kept.began + self.terms.lease;
        let held: BTreeMap<Partition, Held> = kept.ours.into_iter().collect();
        // Read on beyond its end, a log would skip records: the caller decides anew.
        let keeps = |partition| held.get(partition).is_some_and(|held| !held.beyond);
        let mut gone: BTreeSet<Partition> =
            self.ours.keys().filter(|partition| !keeps(partition)).copied().collect();
        gone.extend(kept.surplus.iter().filter(|partition| self.ours.contains_key(partition)));
        let mut assigned = Vec::new();
        for (partition, held) in held {
            match self.ours.get_mut(&partition) {
                Some(place) => place.newest = place.newest.max(held.bounds.newest),
                None => assigned.push((partition, held.bounds)),
            }
        }
        self.revoke(gone.into_iter().collect());
        if !assigned.is_empty() {
            self.assign(&assigned, kept.partitions);
        }
    }

    /// Says that the bus is away, once.
    fn failed(&mut self, error: &Cause) {
        if !self.away {
            warn!(bus = self.log.address(), %error, "bus is away; asking until it answers");
        }
        self.away = true;
    }

    fn assign(&mut self, assigned: &[(Partition, Bounds)], of: u32) {
        let mut assignments = Vec::with_capacity(assigned.len());
        for (partition, bounds) in assigned {
            let next = bounds.committed.unwrap_or(bounds.start).max(bounds.start);
            let place = Place { next, read: None, newest: bounds.newest, paused: false };
            self.ours.insert(*partition, place);
            assignments.push(Assignment {
                partition: *partition,
                log_start: bounds.start,
                log_end: bounds.end,
            });
        }
        info!(
            bus = self.log.address(),
            partitions = assignments.len(),
            of,
            "partitions are ours now"
        );
        self.events.push_back(Event::Assigned(assignments));
    }

    fn revoke(&mut self, partitions: Vec<Partition>) {
        if partitions.is_empty() {
            return;
        }
        self.ours.retain(|partition, _| !partitions.contains(partition));
        self.revocations += 1;
        info!(
            bus = self.log.address(),
            partitions = partitions.len(),
            "partitions are ours no longer"
        );
        self.events.push_back(Event::Revoked(partitions));
    }

    /// Does `work` after everything that was asked for before.
    fn write(&mut self, work: impl Future<Output = ()> + Send + 'static) {
        let before = self.writing.take();
        self.writing = Some(tokio::spawn(async move {
            finish(before).await;
            work.await;
        }));
    }

    fn begin_to_read(&mut self) {
        if Instant::now() < self.read_at || !self.reads() {
            return;
        }
        let Some((mut reader, mut decoding)) = self.reader.take() else { return };
        let free = self.ours.iter().filter(|(_, place)| !place.paused);
        let mut from: Vec<(Partition, u64)> = free.map(|(p, place)| (*p, place.next)).collect();
        let (log, max) = (Arc::clone(&self.log), self.terms.batch_max);
        let follows = self.terms.follows;
        if from.len() > max {
            // One of each is too much already: they take turns.
            self.turn = (self.turn + max) % from.len();
            from.rotate_left(self.turn);
            from.truncate(max);
        }
        self.reading = Some(tokio::spawn(async move {
            let found = match reader.read(&from, max).await {
                Ok(read) => Ok(decode(&*log, &mut decoding, read, follows).await),
                Err(error) => Err(error),
            };
            Sought { reader: (reader, decoding), from, found }
        }));
    }

    /// Takes in what a read found; what was sought elsewhere meanwhile is left out.
    fn sought(&mut self, sought: Sought<L::Reader>) -> Option<Event> {
        let Sought { reader, from, found } = sought;
        self.reader = Some(reader);
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                self.failed(&error);
                self.read_at = Instant::now() + AGAIN_AFTER;
                return None;
            }
        };
        if found.source != self.source {
            self.keep_at = Instant::now(); // the round tells which log it is now
            self.read_at = Instant::now() + AGAIN_AFTER;
            return None;
        }
        let (mut deliveries, mut positions) = (Vec::new(), Vec::new());
        for part in found.partitions {
            let asked = from.iter().find(|(partition, _)| *partition == part.partition);
            let Some(place) = self.ours.get_mut(&part.partition) else { continue };
            if place.paused || asked.is_none_or(|(_, offset)| *offset != place.next) {
                continue;
            }
            place.next = part.next;
            place.read = Some(part.number);
            place.newest = place.newest.max(part.number);
            positions.push((part.partition, part.next));
            deliveries.extend(part.deliveries);
        }
        (!positions.is_empty()).then_some(Event::Batch { deliveries, positions })
    }

    pub(in crate::bus) fn source(&self) -> &str {
        &self.source
    }

    pub(in crate::bus) fn commit(&mut self, positions: &[(Partition, u64)]) {
        if self.terms.follows {
            return; // what is done with is the members' to say
        }
        let ours = |(partition, _): &&(Partition, u64)| {
            self.ours.contains_key(partition) || self.leaving.contains(partition)
        };
        let positions: Vec<(Partition, u64)> = positions.iter().filter(ours).copied().collect();
        if positions.is_empty() {
            return;
        }
        let (log, me) = (Arc::clone(&self.log), self.terms.me.clone());
        let source = self.source.clone();
        self.write(async move {
            if let Err(error) = log.commit(&me, &source, &positions).await {
                metrics::counter!("merit_bus_commit_failures_total").increment(1);
                warn!(%error, "commit failed; the next one covers it");
            }
        });
    }

    pub(in crate::bus) fn seek(
        &mut self,
        partition: Partition,
        offset: u64,
    ) -> Result<(), BusError> {
        let Some(place) = self.ours.get_mut(&partition) else {
            return Err(BusError::Seek { partition, offset, source: Box::new(NotOurs) });
        };
        place.next = offset;
        Ok(())
    }

    pub(in crate::bus) fn set_paused(&mut self, partitions: &[Partition], paused: bool) {
        for partition in partitions {
            if let Some(place) = self.ours.get_mut(partition) {
                place.paused = paused;
            }
        }
    }

    pub(in crate::bus) fn lag(&self) -> Vec<(Partition, u64)> {
        let behind = |(partition, place): (&Partition, &Place)| {
            (*partition, place.read.map_or(0, |read| place.newest.saturating_sub(read)))
        };
        self.ours.iter().map(behind).collect()
    }

    /// Gives everything back and stops taking part.
    pub(in crate::bus) async fn close(mut self) {
        if let Some(keeping) = self.keeping.take() {
            // Otherwise it might claim what we give back.
            keeping.abort();
            let _ = keeping.await;
        }
        if self.terms.follows {
            return;
        }
        let mut partitions = std::mem::take(&mut self.leaving);
        partitions.append(&mut self.releasing);
        partitions.extend(self.ours.keys());
        let partitions: Vec<Partition> = partitions.into_iter().collect();
        let (log, me) = (Arc::clone(&self.log), self.terms.me.clone());
        self.write(async move {
            if let Err(error) = log.release(&me, &partitions, true).await {
                warn!(%error, "partitions not given back; their leases will run out");
            }
        });
        let Some(writing) = self.writing.take() else { return };
        if timeout(CLOSE_DEADLINE, writing).await.is_err() {
            warn!(
                bus = self.log.address(),
                "partitions not given back in time; their leases will run out"
            );
        }
    }
}

/// Decodes what was read and puts aside what is no rating; returns when that is done. Who `follows`
/// leaves that to the members.
async fn decode<L: Log>(log: &L, decoding: &mut Decoding, read: Read, follows: bool) -> Found {
    let mut found =
        Found { source: read.source, partitions: Vec::with_capacity(read.records.len()) };
    for (partition, records) in read.records {
        let Some(last) = records.last() else { continue };
        let (next, number) = (last.offset + 1, last.number);
        let mut deliveries = Vec::with_capacity(records.len());
        for record in records {
            match rating(decoding, &record) {
                Ok(rating) => {
                    deliveries.push(Delivery { partition, offset: record.offset, rating });
                }
                Err(_) if follows => {}
                Err(reason) => put_aside(log, partition, &record, &reason).await,
            }
        }
        found.partitions.push(Part { partition, deliveries, next, number });
    }
    found
}

fn rating(decoding: &mut Decoding, record: &Record) -> Result<Rating, String> {
    let payload = record.payload.as_deref().ok_or("it has no field `rating`")?;
    decoding.decode(payload, record.taken_ms).map_err(|error| error.to_string())
}

/// Puts a record aside, and tries again until the log has taken it: nothing is dropped unseen.
async fn put_aside<L: Log>(log: &L, partition: Partition, record: &Record, reason: &str) {
    let offset = record.offset;
    warn!(%partition, offset, reason, "record is no rating; it goes to the dead letters");
    let end = reason.floor_char_boundary(REASON_MAX);
    let payload = record.payload.as_deref().unwrap_or_default();
    let letter = Letter { partition, offset, payload, reason: &reason[..end] };
    let mut told = false;
    while let Err(error) = log.put_aside(&letter).await {
        if !told {
            warn!(%error, %partition, offset, "dead letter not taken; trying again");
            told = true;
        }
        sleep(AGAIN_AFTER).await;
    }
    metrics::counter!("merit_ratings_dead_total").increment(1);
}

/// Waits for the end of `task`.
async fn finish(task: Option<JoinHandle<()>>) {
    if let Some(task) = task
        && let Err(error) = task.await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

/// Waits for the task; for ever when there is none. Cancel safe.
async fn joined<T>(task: &mut Option<JoinHandle<T>>) -> T {
    let Some(running) = task else { return pending().await };
    let outcome = running.await;
    *task = None;
    match outcome {
        Ok(outcome) => outcome,
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        Err(_) => pending().await, // aborted: the runtime is going down
    }
}

impl<L: Log> fmt::Debug for Consumer<L> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("bus", &self.log.address())
            .field("ours", &self.ours)
            .finish()
    }
}
