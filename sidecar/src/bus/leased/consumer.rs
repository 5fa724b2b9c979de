//! The consuming end of a leased log.
//!
//! One call of [`Consumer::next`] waits for whichever comes first: the round that keeps the leases,
//! a read, or the moment when a lease has run out. Each runs in a task of its own whose outcome waits
//! here, so that a dropped call loses nothing. Commits and releases go out in the order they were
//! asked for.

use super::{
    Bounds, Letter, Log, Read, Reader, Record, Terms,
    keep::{self, Having, Kept},
};
use crate::{
    bus::{Assignment, BusError, Cause, Decoding, Delivery, Event, Partition},
    rating::Rating,
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    fmt,
    future::pending,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

/// Longest time between two rounds of keeping leases: the lag is known anew with each.
const KEEP_MAX: Duration = Duration::from_secs(1);
/// How long to wait after a round or a read that failed.
const AGAIN_AFTER: Duration = Duration::from_millis(200);
/// Longest time until a partition that could not be read is tried again.
const AGAIN_MAX: Duration = Duration::from_secs(5);
/// How long a dead letter may hold up the other partitions.
const LETTER_PATIENCE: Duration = Duration::from_millis(500);
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
    /// What the next of them writes.
    commits: Arc<Mutex<Commits>>,
    /// Partitions that give offsets twice: the next round gives the log another name.
    lost: BTreeSet<Partition>,
    /// Partitions that are ours and cannot be used, as was told.
    unusable: BTreeSet<Partition>,
    away: bool,
}

/// Commits that nobody writes yet.
#[derive(Debug, Default)]
struct Commits {
    source: String,
    positions: BTreeMap<Partition, u64>,
    /// Whether somebody will.
    queued: bool,
}

/// Where a partition of ours is read.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    /// The offset of the next record.
    next: u64,
    /// The number of the last record read, once there was one, and of the newest known.
    read: Option<u64>,
    newest: u64,
    /// What there was to read when it became ours, at most.
    unread: u64,
    paused: bool,
    /// How often in a row it could not be read on, and when it is tried again.
    failures: u32,
    again_at: Option<Instant>,
}

impl Place {
    /// Leaves it out for a while, longer each time; returns whether that is new.
    fn hold(&mut self, now: Instant) -> bool {
        let wait = AGAIN_AFTER.saturating_mul(1 << self.failures.min(8)).min(AGAIN_MAX);
        self.again_at = Some(now + wait);
        self.failures = self.failures.saturating_add(1);
        self.failures == 1
    }
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
    faults: Vec<(Partition, Cause)>,
    lost: Vec<Partition>,
}

struct Part {
    partition: Partition,
    deliveries: Vec<Delivery>,
    next: u64,
    number: Option<u64>,
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
            commits: Arc::default(),
            lost: BTreeSet::new(),
            unusable: BTreeSet::new(),
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
        if self.reading.is_none() {
            let free = self.ours.values().filter(|place| !place.paused);
            let soonest = free.map(|place| place.again_at.unwrap_or(self.read_at)).min();
            wake = soonest.map_or(wake, |soonest| wake.min(soonest.max(self.read_at)));
        }
        wake.min(far)
    }

    fn begin_to_keep(&mut self) {
        if self.keeping.is_some() || Instant::now() < self.keep_at {
            return;
        }
        let (log, terms) = (Arc::clone(&self.log), self.terms.clone());
        let having = Having {
            source: self.source.clone(),
            owned: self.ours.iter().map(|(partition, place)| (*partition, place.next)).collect(),
            releasing: self.releasing.iter().copied().collect(),
            lost: self.lost.iter().copied().collect(),
        };
        let revocations = self.revocations;
        // What was committed before a partition is given back is written before.
        let before = self.writing.take();
        self.keeping = Some(tokio::spawn(async move {
            // One that hangs is overtaken: then it finds that the partition is another's, or writes less.
            let _ = timeout(terms.lease / 3, finish(before)).await;
            let round = keep::round(&*log, &terms, having);
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
            self.lost.clear();
        }
        self.until = kept.began + self.terms.lease;
        self.tell_of(&kept.faults);
        if self.terms.follows {
            self.lost.clear(); // given up with this round
        }
        let held: BTreeMap<Partition, Bounds> = kept.ours.into_iter().collect();
        // One that is ours and whose bounds are not known just now stays.
        let keeps = |partition: &Partition| {
            held.contains_key(partition) || kept.faults.iter().any(|(p, _)| p == partition)
        };
        let mut gone: BTreeSet<Partition> =
            self.ours.keys().filter(|partition| !keeps(partition)).copied().collect();
        gone.extend(kept.surplus.iter().filter(|partition| self.ours.contains_key(partition)));
        let mut assigned = Vec::new();
        for (partition, bounds) in held {
            match self.ours.get_mut(&partition) {
                Some(place) => place.newest = place.newest.max(bounds.newest),
                None => assigned.push((partition, bounds)),
            }
        }
        self.revoke(gone.into_iter().collect());
        if !assigned.is_empty() {
            self.assign(&assigned, kept.partitions);
        }
    }

    /// Says of each partition once what ails it.
    fn tell_of(&mut self, faults: &[(Partition, Cause)]) {
        for (partition, error) in faults {
            metrics::counter!("merit_bus_partition_faults_total").increment(1);
            if self.unusable.insert(*partition) {
                let bus = self.log.address();
                warn!(bus, %partition, %error, "partition cannot be used; the others go on");
            }
        }
        self.unusable.retain(|partition| faults.iter().any(|(at_fault, _)| at_fault == partition));
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
            let (newest, unread) = (bounds.newest, bounds.unread);
            let place = Place { next, newest, unread, ..Place::default() };
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
        let now = Instant::now();
        if now < self.read_at {
            return;
        }
        let free = |(_, place): &(&Partition, &Place)| {
            !place.paused && place.again_at.is_none_or(|again| again <= now)
        };
        let mut from: Vec<(Partition, u64)> =
            self.ours.iter().filter(free).map(|(p, place)| (*p, place.next)).collect();
        if from.is_empty() {
            return;
        }
        let Some((mut reader, mut decoding)) = self.reader.take() else { return };
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
        for partition in found.lost {
            self.renew(partition);
        }
        let now = Instant::now();
        for (partition, error) in found.faults {
            let Some(place) = self.ours.get_mut(&partition) else { continue };
            metrics::counter!("merit_bus_partition_faults_total").increment(1);
            if place.hold(now) {
                warn!(bus = self.log.address(), %partition, %error, "partition cannot be read; the others go on");
            }
        }
        let (mut deliveries, mut positions) = (Vec::new(), Vec::new());
        for part in found.partitions {
            let asked = from.iter().find(|(partition, _)| *partition == part.partition);
            let Some(place) = self.ours.get_mut(&part.partition) else { continue };
            if place.paused || asked.is_none_or(|(_, offset)| *offset != place.next) {
                continue;
            }
            (place.failures, place.again_at) = (0, None);
            place.next = part.next;
            if let Some(number) = part.number {
                place.read = Some(number);
                place.newest = place.newest.max(number);
            }
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
        let mut commits = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if commits.source != self.source {
            commits.source.clone_from(&self.source);
            commits.positions.clear(); // of a log that is gone
        }
        commits.positions.extend(positions);
        if std::mem::replace(&mut commits.queued, true) {
            return; // who waits for the one before takes these along
        }
        drop(commits);
        let (log, me, commits) =
            (Arc::clone(&self.log), self.terms.me.clone(), Arc::clone(&self.commits));
        self.write(async move {
            let (source, positions) = {
                let mut commits = commits.lock().unwrap_or_else(PoisonError::into_inner);
                commits.queued = false;
                (commits.source.clone(), std::mem::take(&mut commits.positions))
            };
            let positions: Vec<(Partition, u64)> = positions.into_iter().collect();
            if let Err(error) = log.commit(&me, &source, &positions).await {
                metrics::counter!("merit_bus_commit_failures_total").increment(1);
                warn!(%error, "commit failed; the next one covers it");
            }
        });
    }

    /// Makes `partition`, which lost its newest records, give only offsets from `next` on; returns whether it does.
    pub(in crate::bus) async fn go_on(&self, partition: Partition, next: u64) -> bool {
        self.log.go_on(partition, next).await.unwrap_or_else(|error| {
            warn!(bus = self.log.address(), %partition, %error, "bus not asked to go on behind what was lost");
            false
        })
    }

    /// Gives the log another name with the next round: `partition` gives its offsets twice.
    pub(in crate::bus) fn renew(&mut self, partition: Partition) {
        self.lost.insert(partition);
        self.keep_at = Instant::now();
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
            let unread = || place.newest.min(place.unread);
            (*partition, place.read.map_or_else(unread, |read| place.newest.saturating_sub(read)))
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

/// Decodes what was read and puts aside what is no rating. A partition ends before a record that should be put
/// aside and cannot be: it is read again. Who `follows` leaves that to the members.
async fn decode<L: Log>(log: &L, decoding: &mut Decoding, read: Read, follows: bool) -> Found {
    let mut found = Found {
        source: read.source,
        partitions: Vec::with_capacity(read.records.len()),
        faults: read.faults,
        lost: read.lost,
    };
    for (partition, records) in read.records {
        let Some(first) = records.first() else { continue };
        let deliveries = Vec::with_capacity(records.len());
        let mut part = Part { partition, deliveries, next: first.offset, number: None };
        let (mut moved, mut held) = (false, None);
        for record in records {
            match rating(decoding, &record) {
                Ok(rating) => {
                    let offset = record.offset;
                    part.deliveries.push(Delivery { partition, offset, rating });
                }
                Err(_) if follows => {}
                Err(reason) => {
                    if let Err(error) = put_aside(log, partition, &record, &reason).await {
                        held = Some(error);
                        break;
                    }
                }
            }
            moved = true;
            part.next = record.offset + 1;
            part.number = record.number.or(part.number);
        }
        match held {
            // What came before it is handed out first; the next read begins with it.
            _ if moved => found.partitions.push(part),
            Some(error) => {
                found.faults.push((partition, format!("dead letter not taken: {error}").into()));
            }
            None => {}
        }
    }
    found
}

fn rating(decoding: &mut Decoding, record: &Record) -> Result<Rating, String> {
    let payload = record.payload.as_deref().ok_or("it has no field `rating`")?;
    let rating = decoding.decode(payload, record.taken_ms).map_err(|error| error.to_string())?;
    Ok(rating.traced(record.trace))
}

/// Puts a record aside: nothing is dropped unseen.
async fn put_aside<L: Log>(
    log: &L,
    partition: Partition,
    record: &Record,
    reason: &str,
) -> Result<(), Cause> {
    let offset = record.offset;
    let end = reason.floor_char_boundary(REASON_MAX);
    let payload = record.payload.as_deref().unwrap_or_default();
    let letter = Letter { partition, offset, payload, reason: &reason[..end] };
    timeout(LETTER_PATIENCE, log.put_aside(&letter)).await??;
    warn!(%partition, offset, reason, "record is no rating; it went to the dead letters");
    metrics::counter!("merit_ratings_dead_total").increment(1);
    Ok(())
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
