//! What waits between the feed and where it goes: in memory, or in the spool. Both are bounded.
//!
//! Whoever puts ratings in waits while the queue is full; a rating counts as taken once [`Queue::put`]
//! has returned, which with a spool means that it is on the disk.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::body::Bytes;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tracing::error;

use super::{
    meter::{Fault, Meter},
    spool::{Spool, SpoolError},
    status::Status,
};
use crate::causes::with_causes;

/// Ratings that are read from the spool at a time, and about how many bytes.
const CHUNK: usize = 256;
const CHUNK_BYTES: usize = 1 << 20;
/// After the spool could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);
/// A place in memory is for so many bytes; a longer rating takes several.
const PLACE_BYTES: usize = 1024;

/// A rating as the feed sent it.
#[derive(Clone, Debug)]
pub(super) struct Received {
    /// When, in Unix milliseconds.
    pub(super) received_ms: u64,
    /// Every byte of it.
    pub(super) body: Bytes,
}

/// A rating in the spool.
#[derive(Debug)]
pub(super) struct Record {
    /// Its number there; they grow, with gaps where a file was moved away.
    pub(super) number: u64,
    /// The rating.
    pub(super) rating: Received,
}

/// A rating on its way out. Its place in memory is free when this is dropped.
#[derive(Debug)]
pub(super) struct Waiting {
    /// Its number in the spool, if it comes from there.
    pub(super) number: Option<u64>,
    /// The rating.
    pub(super) rating: Received,
    _place: Option<OwnedSemaphorePermit>,
}

/// The end that is filled.
#[derive(Clone, Debug)]
pub(super) enum Queue {
    Memory(Memory),
    Disk(Arc<Disk>),
}

#[derive(Clone, Debug)]
pub(super) struct Memory {
    places: Arc<Semaphore>,
    all: u32,
    ratings: mpsc::UnboundedSender<Vec<Waiting>>,
}

#[derive(Debug)]
pub(super) struct Disk {
    spool: Mutex<Spool>,
    end: watch::Sender<u64>,
    freed: Notify,
    meter: Arc<Meter>,
}

/// The end that is emptied.
#[derive(Debug)]
pub(super) enum Outlet {
    Memory(mpsc::UnboundedReceiver<Vec<Waiting>>),
    Disk(mpsc::Receiver<Vec<Waiting>>),
}

/// Where the queue goes on after a restart.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// The number of the first rating that is not delivered.
    pub(super) first: u64,
    /// How many ratings wait.
    pub(super) waiting: u64,
    /// The body of the rating that was taken last.
    pub(super) last: Option<Bytes>,
}

impl Queue {
    /// Returns a queue for `places` ratings in memory; each KiB of a longer one counts.
    pub(super) fn in_memory(places: u32) -> (Self, Outlet) {
        let (ratings, outlet) = mpsc::unbounded_channel();
        let semaphore = Arc::new(Semaphore::new(places as usize));
        (Self::Memory(Memory { places: semaphore, all: places, ratings }), Outlet::Memory(outlet))
    }

    /// Opens the spool in `folder`. A task reads it for as long as the outlet lives.
    ///
    /// # Errors
    ///
    /// When it cannot be used.
    pub(super) fn on_disk(
        folder: &Path,
        max_bytes: u64,
        meter: &Arc<Meter>,
        status: &Status,
    ) -> Result<(Self, Outlet, Left), SpoolError> {
        let spool = Spool::open(folder, max_bytes)?;
        let (first, end) = (spool.delivered(), spool.end());
        let left = Left { first, waiting: spool.waiting(), last: spool.last()? };
        meter.spool_bytes(spool.bytes());
        let disk = Arc::new(Disk {
            spool: Mutex::new(spool),
            end: watch::Sender::new(end),
            freed: Notify::new(),
            meter: Arc::clone(meter),
        });
        let (ratings, outlet) = mpsc::channel(1);
        tokio::spawn(Arc::clone(&disk).feed(first, ratings, status.clone()));
        Ok((Self::Disk(disk), Outlet::Disk(outlet), left))
    }

    /// Takes `batch`. In memory it waits for places; with a spool it returns when all are on the disk.
    ///
    /// # Errors
    ///
    /// When the spool does not take them: then none of them is taken.
    pub(super) async fn put(&self, batch: Vec<Received>) -> Result<(), SpoolError> {
        match self {
            Self::Memory(memory) => {
                for rating in batch {
                    let places = rating.body.len().div_ceil(PLACE_BYTES).max(1);
                    let places = u32::try_from(places).unwrap_or(u32::MAX).min(memory.all);
                    let place = Arc::clone(&memory.places).acquire_many_owned(places).await;
                    let place = Some(place.expect("the semaphore is never closed"));
                    // Without an outlet the bridge has ended, and nobody waits for this one.
                    let _ =
                        memory.ratings.send(vec![Waiting { number: None, rating, _place: place }]);
                }
                Ok(())
            }
            Self::Disk(disk) => {
                let end =
                    disk.on_disk(move |spool| spool.append(&batch).map(|()| spool.end())).await?;
                disk.end.send_replace(end);
                Ok(())
            }
        }
    }

    /// Returns when something was delivered, so that a full spool may have room.
    pub(super) async fn freed(&self) {
        match self {
            Self::Memory(_) => {}
            Self::Disk(disk) => disk.freed.notified().await,
        }
    }

    /// Notes that all ratings before number `to` are delivered.
    ///
    /// # Errors
    ///
    /// When the spool cannot be told; after a crash some would be delivered again.
    pub(super) async fn delivered(&self, to: u64) -> Result<(), SpoolError> {
        let Self::Disk(disk) = self else { return Ok(()) };
        let noted = disk.on_disk(move |spool| spool.deliver(to)).await;
        disk.freed.notify_one();
        noted
    }

    /// Returns true when what waits outlives the process.
    pub(super) fn lasts(&self) -> bool {
        matches!(self, Self::Disk(_))
    }
}

impl Outlet {
    /// Returns the next ratings, in order; nothing when the queue is gone and empty. Cancel safe.
    pub(super) async fn next(&mut self) -> Option<Vec<Waiting>> {
        match self {
            Self::Memory(ratings) => ratings.recv().await,
            Self::Disk(ratings) => ratings.recv().await,
        }
    }
}

impl Disk {
    async fn on_disk<T: Send + 'static>(
        self: &Arc<Self>,
        act: impl FnOnce(&mut Spool) -> Result<T, SpoolError> + Send + 'static,
    ) -> Result<T, SpoolError> {
        let disk = Arc::clone(self);
        let done = tokio::task::spawn_blocking(move || {
            let mut spool = disk.spool.lock().unwrap_or_else(PoisonError::into_inner);
            let done = act(&mut spool);
            disk.meter.spool_bytes(spool.bytes());
            done
        });
        done.await.expect("the spool does not panic")
    }

    /// Reads the spool from number `next` on, for as long as somebody listens.
    async fn feed(
        self: Arc<Self>,
        mut next: u64,
        ratings: mpsc::Sender<Vec<Waiting>>,
        status: Status,
    ) {
        let mut ends = self.end.subscribe();
        let mut failing = false;
        loop {
            let end = ends.wait_for(|end| *end > next).await.map(|end| *end);
            let end = end.expect("its sender is ours");
            let read = self.on_disk(move |spool| spool.read(next, CHUNK, CHUNK_BYTES)).await;
            let records = match read {
                Ok(records) => {
                    if std::mem::take(&mut failing) {
                        status.spool_works();
                    }
                    records
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        self.meter.fault(Fault::Spool);
                        error!(error = with_causes(&error), "spool cannot be read");
                    }
                    status.spool_fails(&error);
                    tokio::time::sleep(READ_PAUSE).await;
                    continue;
                }
            };
            debug_assert!(records.first().is_none_or(|record| record.number >= next));
            next = records.last().map_or(end, |record| record.number + 1);
            let waiting = records.into_iter().map(|record| {
                let Record { number, rating } = record;
                Waiting { number: Some(number), rating, _place: None }
            });
            let sent = tokio::select! {
                sent = ratings.send(waiting.collect()) => sent,
                () = ratings.closed() => return,
            };
            if sent.is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn rating(length: usize) -> Received {
        Received { received_ms: 0, body: Bytes::from(vec![b'x'; length]) }
    }

    #[tokio::test]
    async fn memory_is_bounded_by_ratings_and_by_their_bytes() {
        let (queue, mut outlet) = Queue::in_memory(3);
        queue.put(vec![rating(10), rating(10)]).await.unwrap();
        assert!(queue.put(vec![rating(1025)]).now_or_never().is_none(), "two KiB take two places");
        queue.put(vec![rating(1024)]).await.unwrap();
        assert!(queue.put(vec![rating(1)]).now_or_never().is_none());
        drop(outlet.next().await.unwrap());
        queue.put(vec![rating(1)]).await.unwrap();
        drop((outlet.next().await, outlet.next().await, outlet.next().await));
        // One that is longer than the whole queue passes when nothing else is there.
        queue.put(vec![rating(100_000)]).await.unwrap();
        assert!(queue.put(vec![rating(1)]).now_or_never().is_none());
        drop(queue);
        assert!(outlet.next().await.is_some());
        assert!(outlet.next().await.is_none(), "a queue that is gone ends when it is empty");
    }
}
