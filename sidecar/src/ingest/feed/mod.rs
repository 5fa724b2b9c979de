//! The feed bridge: reads ratings from a WebSocket feed and passes each on, byte for byte.
//!
//! 1. A rating is posted with the bytes that the feed sent, under a name made of its content: sent again,
//!    by us or by the feed, it is recognised.
//! 2. Ratings of one agent arrive in the feed's order, one at a time; of all, a few are in flight.
//! 3. A rating is taken when it is in the queue; in a spool that means on the disk. From then on it is
//!    delivered at least once, or put aside with the reason.
//! 4. Everything is bounded. When the queue is full the feed is not read.
//! 5. What the feed sends while nobody listens is lost, unless it can go on from the last id.

mod backoff;

mod config;

mod plan;

mod connect;

mod frames;

mod listen;

mod spool;

mod queue;

mod order;

mod post;

mod sink;

mod forward;

mod dead;

mod meter;

mod status;

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use tokio::{sync::Semaphore, task::JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::{
    config::{Config, Source},
    meter::Counts,
    spool::SpoolError,
    status::{NotReady, Status},
};
use self::{
    dead::DeadLetters,
    forward::Forwarder,
    listen::Listener,
    meter::Meter,
    plan::Plan,
    post::Endpoint,
    queue::{Left, Queue},
    sink::{Board, Sinks, Streak},
};
use super::Ingest;

/// What the names of posters begin with that are feeds.
pub(super) const POSTER_PREFIX: &str = "feed:";

/// How long deliveries may take once it is time to stop.
const GRACE: Duration = Duration::from_secs(5);

/// Why a bridge cannot start, or ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FeedError {
    /// The configuration has faults, each with its path.
    #[error("{}", .0.join("; "))]
    Config(Vec<String>),
    /// The spool cannot be used.
    #[error("feed.spool_dir")]
    Spool(#[from] SpoolError),
    /// The dead-letter file cannot be written.
    #[error("feed.dead_letter_file: cannot append to {}", path.display())]
    DeadLetters {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A part of it ended by a fault of ours.
    #[error("bridge panicked")]
    Panicked,
}

/// A bridge that runs.
#[derive(Debug)]
pub struct Bridge {
    stop: CancellationToken,
    parts: JoinSet<()>,
    status: Status,
    meter: Arc<Meter>,
}

impl Bridge {
    /// Starts the bridge of `config`. `intake` takes what is published onto Merit's own bus. It must be
    /// called within a tokio runtime; install the metrics recorder before: handles are taken here.
    ///
    /// # Errors
    ///
    /// When the configuration has a fault, or spool or dead-letter file cannot be used.
    ///
    /// # Panics
    ///
    /// When `config` publishes and there is no `intake`.
    pub async fn start(config: Config, intake: Option<Ingest>) -> Result<Self, FeedError> {
        let mut faults = Vec::new();
        let Some(plan) = Plan::new(&config, "feed", &mut faults) else {
            return Err(FeedError::Config(faults));
        };
        let (meter, status) = (Arc::new(Meter::new()), Status::new());
        let (queue, outlet, left) = match &config.spool_dir {
            None => {
                let (queue, outlet) = Queue::in_memory(config.queue);
                (queue, outlet, Left::default())
            }
            Some(folder) => Queue::on_disk(folder, config.spool_max_bytes, &meter, &status)?,
        };
        meter.left_over(left.waiting);
        let path = config.dead_letters();
        let dead = DeadLetters::open(path.as_deref(), config.dead_letter_max_bytes);
        let dead = dead.map_err(|(path, source)| FeedError::DeadLetters { path, source })?;
        let board = plan.publish.map(|poster| Board {
            intake: intake.expect("who publishes has an intake"),
            poster,
            meter: Arc::clone(&meter),
            streak: Streak::default(),
            places: Semaphore::new(config.in_flight),
        });
        let endpoint = plan.forward.map(|to| Endpoint::new(to, &config, &meter, &status));
        let stop = CancellationToken::new();
        let forwarder = Forwarder {
            queue: queue.clone(),
            outlet,
            first: left.first,
            sinks: Sinks {
                endpoint,
                board,
                dead: dead.clone(),
                meter: Arc::clone(&meter),
                status: status.clone(),
                waits: Streak::default(),
            },
            meter: Arc::clone(&meter),
            status: status.clone(),
            stop: stop.clone(),
            grace: GRACE,
        };
        let listener = Listener {
            config,
            feed: plan.feed,
            headers: plan.headers,
            queue,
            dead,
            meter: Arc::clone(&meter),
            status: status.clone(),
            stuck: 0,
            last: left.last.and_then(|body| frames::Item::read(body).ok()?.own_id().cloned()),
            stop: stop.clone(),
        };
        let mut parts = JoinSet::new();
        parts.spawn(forwarder.run());
        parts.spawn(listener.run());
        Ok(Self { stop, parts, status, meter })
    }

    /// Returns how it is doing, for readiness.
    #[must_use]
    pub fn status(&self) -> Status {
        self.status.clone()
    }

    /// Returns how many ratings came and what became of them.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.meter.counts()
    }

    /// Returns what tells [`Bridge::counts`], also once the bridge is gone.
    pub fn counter(&self) -> impl Fn() -> Counts + Send + Sync + 'static {
        let meter = Arc::clone(&self.meter);
        move || meter.counts()
    }

    /// Waits for the bridge to end by itself, which it does only by a fault of ours. Cancel safe.
    pub async fn failed(&mut self) -> FeedError {
        while let Some(Ok(())) = self.parts.join_next().await {}
        FeedError::Panicked
    }

    /// Leaves the feed, finishes what is in flight within 5 s, and empties a queue in memory.
    pub async fn finish(mut self) {
        self.stop.cancel();
        while self.parts.join_next().await.is_some() {}
    }
}
