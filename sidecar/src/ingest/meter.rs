//! What ingest counts: ratings accepted and refused, time per request, ratings per second.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use super::Refusal;

/// The gauge `rating_rate` speaks of this many seconds.
const WINDOW_SECONDS: usize = 10;

const TICK: Duration = Duration::from_secs(1);

/// Handles taken once, and the counts of the last seconds.
pub(super) struct Meter {
    accepted: Counter,
    pub(super) seconds: Histogram,
    rate: Gauge,
    now: AtomicU64,
    past: Mutex<Window>,
}

/// Ratings in each of the last whole seconds.
#[derive(Debug, Default)]
struct Window {
    counts: [u64; WINDOW_SECONDS],
    oldest: usize,
}

impl Window {
    /// Adds the second that just ended; returns the mean rate of all that are in the window.
    #[allow(clippy::cast_precision_loss, reason = "a rate for a gauge")]
    fn close(&mut self, count: u64) -> f64 {
        self.counts[self.oldest] = count;
        self.oldest = (self.oldest + 1) % WINDOW_SECONDS;
        self.counts.iter().sum::<u64>() as f64 / WINDOW_SECONDS as f64
    }
}

impl Meter {
    /// Returns a meter whose gauge is kept current, for as long as it lives, by a task.
    pub(super) fn start() -> Arc<Self> {
        let meter = Arc::new(Self {
            accepted: counter!("merit_ratings_accepted_total"),
            seconds: histogram!("merit_ingest_seconds"),
            rate: gauge!("rating_rate"),
            now: AtomicU64::new(0),
            past: Mutex::new(Window::default()),
        });
        tokio::spawn(tick(Arc::downgrade(&meter)));
        meter
    }

    pub(super) fn accepted(&self) {
        self.accepted.increment(1);
        self.now.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn refused(&self, refusal: &Refusal) {
        // Reasons are few and refusals are not the hot path: a lookup by name will do.
        counter!("merit_ratings_refused_total", "reason" => refusal.reason()).increment(1);
    }

    fn close_second(&self) {
        let count = self.now.swap(0, Ordering::Relaxed);
        let mut past = self.past.lock().unwrap_or_else(PoisonError::into_inner);
        self.rate.set(past.close(count));
    }
}

async fn tick(meter: Weak<Meter>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.tick().await; // the first one comes at once
    loop {
        ticks.tick().await;
        match meter.upgrade() {
            Some(meter) => meter.close_second(),
            None => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_the_mean_of_the_last_ten_seconds_and_falls_back_to_zero() {
        let mut window = Window::default();
        assert_eq!(window.close(100), 10.0);
        assert_eq!(window.close(50), 15.0);
        for _ in 0..8 {
            assert_eq!(window.close(0), 15.0);
        }
        assert_eq!(window.close(0), 5.0, "the first second is out of the window");
        assert_eq!(window.close(0), 0.0);
    }
}
