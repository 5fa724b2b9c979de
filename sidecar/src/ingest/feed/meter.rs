//! What the bridge counts.

use std::sync::atomic::{AtomicU64, Ordering};

use metrics::{Counter, Gauge, counter, gauge};

use crate::clock::unix_time;

/// Handles taken once. The counts of ratings can be read back.
pub(super) struct Meter {
    connects: Counter,
    reconnects: Counter,
    connected: Gauge,
    received: Counter,
    gaps: Counter,
    pauses: Counter,
    queue_depth: Gauge,
    lag: Gauge,
    spool_bytes: Gauge,
    left_over: AtomicU64,
    taken: AtomicU64,
    finished: AtomicU64,
    refused: AtomicU64,
}

/// How many ratings came and what became of them, since the start of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Ratings taken from the feed.
    pub taken: u64,
    /// Ratings that are finished: delivered or put aside.
    pub finished: u64,
    /// Frames and ratings that were put aside.
    pub refused: u64,
}

/// What went wrong, as a label of `merit_feed_errors_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Connect,
    Handshake,
    Broken,
    Silent,
    EndpointAway,
    EndpointAnswer,
    Bus,
    Spool,
    DeadLetter,
}

impl Fault {
    fn label(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Handshake => "handshake",
            Self::Broken => "broken",
            Self::Silent => "silent",
            Self::EndpointAway => "endpoint_unreachable",
            Self::EndpointAnswer => "endpoint_answer",
            Self::Bus => "bus",
            Self::Spool => "spool",
            Self::DeadLetter => "dead_letter",
        }
    }
}

/// Where a rating was delivered to, as a label of `merit_feed_forwarded_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum To {
    Endpoint,
    Bus,
}

impl Meter {
    pub(super) fn new() -> Self {
        // There from the start, so that a rate of them has a beginning.
        for to in ["endpoint", "bus"] {
            counter!("merit_feed_forwarded_total", "to" => to).absolute(0);
        }
        Self {
            connects: counter!("merit_feed_connects_total"),
            reconnects: counter!("merit_feed_reconnects_total"),
            connected: gauge!("merit_feed_connected"),
            received: counter!("merit_feed_received_total"),
            gaps: counter!("merit_feed_gaps_total"),
            pauses: counter!("merit_feed_pauses_total"),
            queue_depth: gauge!("merit_feed_queue_depth"),
            lag: gauge!("merit_feed_lag_seconds"),
            spool_bytes: gauge!("merit_feed_spool_bytes"),
            left_over: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub(super) fn connected(&self, again: bool) {
        let count = if again { &self.reconnects } else { &self.connects };
        count.increment(1);
        self.connected.set(1.0);
    }

    pub(super) fn disconnected(&self) {
        self.connected.set(0.0);
    }

    /// Counts ratings that a spool held already at the start.
    pub(super) fn left_over(&self, ratings: u64) {
        self.left_over.store(ratings, Ordering::Relaxed);
        self.show_depth();
    }

    pub(super) fn taken(&self, ratings: u64) {
        self.taken.fetch_add(ratings, Ordering::Relaxed);
        self.received.increment(ratings);
        self.show_depth();
    }

    pub(super) fn finished(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
        self.show_depth();
    }

    /// Some ratings of a batch may be finished before it is counted as taken: from sums, the depth
    /// is right again in the end.
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    fn show_depth(&self) {
        let of = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let came = of(&self.left_over) + of(&self.taken);
        self.queue_depth.set(came.saturating_sub(of(&self.finished)) as f64);
    }

    pub(super) fn forwarded(&self, to: To) {
        let to = match to {
            To::Endpoint => "endpoint",
            To::Bus => "bus",
        };
        counter!("merit_feed_forwarded_total", "to" => to).increment(1);
    }

    /// Counts a frame or rating that was put aside.
    pub(super) fn refused(&self, reason: &'static str) {
        self.refused.fetch_add(1, Ordering::Relaxed);
        counter!("merit_feed_refused_total", "reason" => reason).increment(1);
    }

    pub(super) fn fault(&self, fault: Fault) {
        counter!("merit_feed_errors_total", "kind" => fault.label()).increment(1);
    }

    /// Counts a connection that was not asked to go on from the last id.
    pub(super) fn gap(&self) {
        self.gaps.increment(1);
    }

    pub(super) fn told_to_wait(&self) {
        self.pauses.increment(1);
    }

    /// Tells how old the oldest unfinished rating is, which came at `oldest_ms` (Unix).
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    pub(super) fn lag(&self, oldest_ms: Option<u64>) {
        // Two tasks set the depth: this puts right what one set late.
        self.show_depth();
        let now = unix_time().as_secs_f64();
        self.lag.set(oldest_ms.map_or(0.0, |oldest| (now - oldest as f64 / 1000.0).max(0.0)));
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    pub(super) fn spool_bytes(&self, bytes: u64) {
        self.spool_bytes.set(bytes as f64);
    }

    pub(super) fn counts(&self) -> Counts {
        Counts {
            taken: self.taken.load(Ordering::Relaxed),
            finished: self.finished.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

impl std::fmt::Debug for Meter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.counts().fmt(f)
    }
}
