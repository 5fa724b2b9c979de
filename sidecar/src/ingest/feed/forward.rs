//! The other end: takes ratings out of the queue and has them delivered, a few at a time.
//!
//! Order is kept by [`Turns`]; what is finished is told to the queue by [`Position`], at most every
//! [`NOTE_EVERY`]: after a crash what was delivered since then is delivered again, under the same name.

use std::{pin::pin, sync::Arc, time::Duration};

use futures_util::{StreamExt as _, stream::FuturesUnordered};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use super::{
    frames::Item,
    meter::{Fault, Meter},
    order::{Position, Turns},
    queue::{Outlet, Queue, Waiting},
    sink::Sinks,
    status::Status,
};
use crate::causes::with_causes;

/// Ratings that are looked at and not finished: so many are in memory. Each sink bounds how many of them
/// it is busy with.
const UNFINISHED_MAX: usize = 4096;
/// Ratings between the oldest unfinished one and the latest that is looked at: so many are delivered
/// again after a crash at most, and so many may overtake one that an endpoint keeps refusing for now.
const SPAN: usize = 1 << 18;
/// With so many, this many more are looked at with each [`NOTE_EVERY`], until they are twice as many:
/// that others pass it by is what tells that the oldest one will never be taken.
const TRICKLE: usize = 64;
/// How often the queue is told how far delivery got, and the lag is looked at.
const NOTE_EVERY: Duration = Duration::from_millis(250);

/// Delivers what is in the queue.
pub(super) struct Forwarder {
    pub(super) queue: Queue,
    pub(super) outlet: Outlet,
    pub(super) first: u64,
    pub(super) sinks: Sinks,
    pub(super) meter: Arc<Meter>,
    pub(super) status: Status,
    pub(super) stop: CancellationToken,
    /// How long deliveries may take once it is time to stop.
    pub(super) grace: Duration,
}

/// A rating that is being delivered, or waits for its turn.
struct Task {
    number: u64,
    key: Box<str>,
    item: Result<Item, String>,
    waiting: Waiting,
}

impl Forwarder {
    /// Delivers until the queue ends or, once told to stop, until what is in flight is done or the
    /// grace is over. A queue in memory is emptied, one on a disk waits for the next start.
    pub(super) async fn run(self) {
        let Self { queue, mut outlet, first, sinks, meter, status, stop, grace } = self;
        // The listener holds the other end: in memory the outlet ends with it.
        let (lasts, queue) = (queue.lasts(), queue.lasts().then_some(queue));
        let (mut turns, mut position) = (Turns::new(), Position::new(first));
        let (mut running, mut span) = (FuturesUnordered::new(), SPAN);
        let mut notes = interval(NOTE_EVERY);
        notes.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut noted = Noted { to: first, failing: false };
        let mut ended = false;
        let mut stopping = pin!(stop.cancelled());
        let mut deadline: Option<Instant> = None;
        loop {
            let takes = !(lasts && deadline.is_some());
            while takes && let Some(task) = turns.next() {
                running.push(deliver(&sinks, task));
            }
            let is_done = running.is_empty() && (ended || !takes);
            if is_done {
                break;
            }
            tokio::select! {
                biased;
                () = &mut stopping, if deadline.is_none() => {
                    deadline = Some(Instant::now() + grace);
                }
                Some((number, key)) = running.next() => {
                    turns.finished(&key);
                    position.finished(number);
                    meter.finished();
                }
                _ = notes.tick() => {
                    meter.lag(position.oldest_ms());
                    span = match position.len() {
                        ..SPAN => SPAN,
                        length => (length + TRICKLE).min(2 * SPAN),
                    };
                    if let Some(queue) = &queue {
                        noted.note(queue, position.first(), &meter, &status).await;
                    }
                }
                more = outlet.next(), if takes
                    && !ended
                    && position.unfinished() < UNFINISHED_MAX
                    && position.len() < span => match more
                {
                    None => ended = true,
                    Some(ratings) => {
                        for waiting in ratings {
                            if let Some(number) = waiting.number {
                                position.skip_to(number);
                            }
                            let number = position.begun(waiting.rating.received_ms);
                            let task = Task::new(number, waiting);
                            turns.push(&task.key.clone(), task);
                        }
                    }
                },
                () = async { sleep_until(deadline.expect("looked at")).await }, if deadline.is_some() => {
                    let left = position.len();
                    match lasts {
                        true => info!(left, "ratings wait in the spool for the next start"),
                        false => warn!(left, "ratings that were not delivered in time are lost"),
                    }
                    break;
                }
            }
        }
        if let Some(queue) = &queue {
            noted.note(queue, position.first(), &meter, &status).await;
        }
        meter.lag(position.oldest_ms());
    }
}

impl Task {
    fn new(number: u64, waiting: Waiting) -> Self {
        // It was read when it was taken; only another version's spool could hold anything else.
        let item = Item::read(waiting.rating.body.clone()).map_err(|error| error.to_string());
        let key = item.as_ref().map(|item| item.key.clone()).unwrap_or_default();
        Self { number, key, item, waiting }
    }
}

async fn deliver(sinks: &Sinks, task: Task) -> (u64, Box<str>) {
    match &task.item {
        Ok(item) => sinks.deliver(item).await,
        Err(reason) => sinks.put_aside("malformed", reason, &task.waiting.rating.body).await,
    }
    (task.number, task.key)
}

/// What the queue knows of how far delivery got.
struct Noted {
    to: u64,
    failing: bool,
}

impl Noted {
    async fn note(&mut self, queue: &Queue, to: u64, meter: &Meter, status: &Status) {
        if to == self.to {
            return;
        }
        match queue.delivered(to).await {
            Ok(()) => {
                self.to = to;
                if std::mem::take(&mut self.failing) {
                    status.spool_works();
                }
            }
            Err(error) => {
                meter.fault(Fault::Spool);
                status.spool_fails(&error);
                if !std::mem::replace(&mut self.failing, true) {
                    error!(error = with_causes(&error), "spool does not note what was delivered");
                }
            }
        }
    }
}
