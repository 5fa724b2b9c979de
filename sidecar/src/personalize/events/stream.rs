//! One stream: waits for news, asks its cursor what to send, and scores it for its viewer.

use std::{
    collections::HashMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::body::Bytes;
use metrics::{counter, gauge};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{Config, cursor::Cursor};
use crate::personalize::{Personalized, model::Key, scores::told};

/// The most events in one piece of a body: a slow reader holds no more than a few pieces in buffers.
const PIECE_EVENTS: usize = 32;
/// What a silent stream sends: a comment, which browsers pass over.
const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// The streams that are open. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct Open {
    all: Arc<AtomicUsize>,
    of_viewer: Arc<Mutex<HashMap<Key, usize>>>,
}

/// Why a stream is not opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TooMany {
    OfNode,
    OfViewer,
}

/// The place of one stream; it is free again when this is dropped.
#[derive(Debug)]
pub(super) struct Place {
    open: Open,
    viewer: Key,
}

impl Open {
    pub(super) fn place(&self, viewer: Key, config: &Config) -> Result<Place, TooMany> {
        let mut of_viewer = self.of_viewer.lock().unwrap_or_else(PoisonError::into_inner);
        if self.all.load(Ordering::Relaxed) >= config.connections_max {
            return Err(TooMany::OfNode);
        }
        let own = of_viewer.entry(viewer).or_default();
        if *own >= config.connections_per_viewer {
            return Err(TooMany::OfViewer);
        }
        *own += 1;
        // Under the lock, as is the look at it.
        self.all.fetch_add(1, Ordering::Relaxed);
        gauge!("merit_events_streams").increment(1.0);
        Ok(Place { open: self.clone(), viewer })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut of_viewer = self.open.of_viewer.lock().unwrap_or_else(PoisonError::into_inner);
        self.open.all.fetch_sub(1, Ordering::Relaxed);
        gauge!("merit_events_streams").decrement(1.0);
        if let Some(own) = of_viewer.get_mut(&self.viewer) {
            *own -= 1;
            if *own == 0 {
                of_viewer.remove(&self.viewer);
            }
        }
    }
}

/// A stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) personalized: Personalized,
    pub(super) viewer: Key,
    pub(super) cursor: Cursor,
    pub(super) news: watch::Receiver<u64>,
    /// When the token ends.
    pub(super) expires: Instant,
    pub(super) stop: CancellationToken,
    pub(super) keep_alive: Duration,
    /// How long a browser waits before it connects again; sent first.
    pub(super) retry: Option<Duration>,
    pub(super) _place: Place,
}

impl Stream {
    /// Returns the next piece of the body; nothing at its end.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        if let Some(retry) = self.retry.take() {
            return Some(format!("retry: {}\n\n", retry.as_millis()).into());
        }
        let silent_until = Instant::now() + self.keep_alive;
        loop {
            if self.stop.is_cancelled() || Instant::now() >= self.expires {
                return None;
            }
            self.news.mark_unchanged();
            let (piece, all) = self.piece();
            if !piece.is_empty() {
                return Some(piece.into());
            }
            if !all {
                // Much was passed over that others asked for: they have their turn.
                tokio::task::yield_now().await;
                continue;
            }
            tokio::select! {
                biased;
                () = self.stop.cancelled() => return None,
                () = sleep_until(self.expires) => return None,
                changed = self.news.changed() => {
                    changed.ok()?;
                }
                () = sleep_until(silent_until) => return Some(Bytes::from_static(KEEP_ALIVE)),
            }
        }
    }

    /// Returns what is to be sent now, and whether that is all.
    fn piece(&mut self) -> (String, bool) {
        let next = {
            let state = self.personalized.ring().state();
            self.cursor.next(&state, PIECE_EVENTS)
        };
        let mut text = String::new();
        if next.reset {
            counter!("merit_events_reset_total").increment(1);
            text.push_str(": reset\n\n");
        }
        if next.replaced > 0 {
            counter!("merit_events_replaced_total").increment(next.replaced);
        }
        if !next.events.is_empty() {
            counter!("merit_events_sent_total").increment(next.events.len() as u64);
            let model = self.personalized.model();
            let viewer = model.viewer(self.viewer);
            for event in &next.events {
                if let Some(id) = &event.id {
                    let _ = writeln!(text, "id: {id}");
                }
                let score = told(model.score(viewer, event.key));
                let _ = write!(text, "{}{score}}}\n\n", event.event.data());
            }
        }
        (text, next.all)
    }
}
