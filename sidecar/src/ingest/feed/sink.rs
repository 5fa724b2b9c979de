//! Where ratings go: an endpoint, Merit's own bus, or both.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::body::Bytes;
use tokio::{sync::Semaphore, time::sleep};
use tracing::{error, info, warn};

use super::{
    backoff::Backoff,
    dead::DeadLetters,
    frames::Item,
    meter::{Fault, Meter, To},
    post::{Endpoint, RETRY_LEAST, RETRY_MOST},
    status::Status,
};
use crate::{
    causes::with_causes,
    ingest::{Ingest, Refusal},
    rating::Poster,
};

/// Whether something has failed since it last worked: each streak is told once.
#[derive(Debug, Default)]
pub(super) struct Streak(AtomicBool);

impl Streak {
    /// Returns true when this failure is the first of a streak.
    pub(super) fn begins(&self) -> bool {
        !self.0.swap(true, Ordering::Relaxed)
    }

    /// Returns true when this success ends a streak.
    pub(super) fn ends(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// Puts ratings onto Merit's own bus.
pub(super) struct Board {
    pub(super) intake: Ingest,
    pub(super) poster: Poster,
    pub(super) meter: Arc<Meter>,
    pub(super) streak: Streak,
    pub(super) places: Semaphore,
}

impl Board {
    /// Publishes `item` until the bus takes it, or ingest refuses it.
    async fn deliver(&self, item: &Item) -> Result<(), String> {
        let mut backoff = Backoff::new(RETRY_LEAST, RETRY_MOST);
        loop {
            let place = self.places.acquire().await.expect("the semaphore is never closed");
            let taken = self.intake.take_for(&self.poster, &item.name, &item.body).await;
            drop(place);
            let Err(refusal) = taken else {
                if self.streak.ends() {
                    info!("bus takes ratings again");
                }
                self.meter.forwarded(To::Bus);
                return Ok(());
            };
            let Some(told) = refusal.retry_after() else { return Err(reason(&refusal)) };
            self.meter.fault(Fault::Bus);
            if self.streak.begins() {
                warn!(error = %refusal, "bus does not take a rating: it is tried again");
            }
            sleep(backoff.next(fastrand::f64()).max(told)).await;
        }
    }
}

fn reason(refusal: &Refusal) -> String {
    format!("merit refuses it: {refusal}")
}

/// All that a rating is delivered to.
pub(super) struct Sinks {
    pub(super) endpoint: Option<Endpoint>,
    pub(super) board: Option<Board>,
    pub(super) dead: DeadLetters,
    pub(super) meter: Arc<Meter>,
    pub(super) status: Status,
    /// Whether ratings that were refused wait for their file.
    pub(super) waits: Streak,
}

impl Sinks {
    /// Delivers `item` to every sink; returns when each has taken it, or it is put aside.
    pub(super) async fn deliver(&self, item: &Item) {
        let posted = async {
            match &self.endpoint {
                Some(endpoint) => endpoint.deliver(item).await,
                None => Ok(()),
            }
        };
        let published = async {
            match &self.board {
                Some(board) => board.deliver(item).await,
                None => Ok(()),
            }
        };
        let (posted, published) = tokio::join!(posted, published);
        let reasons = [("endpoint", posted), ("bus", published)];
        for (label, reason) in reasons.into_iter().filter_map(|(to, done)| Some((to, done.err()?)))
        {
            self.put_aside(label, &reason, &item.body).await;
        }
    }

    /// Puts a rating aside. It is finished only when that is written, so it is tried until it is: a
    /// file that is full holds the bridge back.
    pub(super) async fn put_aside(&self, label: &'static str, reason: &str, body: &Bytes) {
        self.meter.refused(label);
        let mut backoff = Backoff::new(Duration::from_secs(1), RETRY_MOST);
        while let Err(error) = self.dead.put_rating(reason, body).await {
            self.meter.fault(Fault::DeadLetter);
            let error = with_causes(&error);
            self.status.dead_letters_wait(&error);
            if self.waits.begins() {
                error!(error, "refused ratings wait for the dead-letter file: it is tried again");
            }
            sleep(backoff.next(fastrand::f64())).await;
        }
        if self.waits.ends() {
            self.status.dead_letters_work();
            info!("dead-letter file takes ratings again");
        }
    }
}
