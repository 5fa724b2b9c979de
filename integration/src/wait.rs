//! The time, and waiting for what another process does, where it offers no event to await.

use std::{
    future::Future,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// How often a condition is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// Returns the time since 1970.
#[must_use]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Waits until `look` returns `Some` and returns what it held.
///
/// # Panics
///
/// When that has not happened within `deadline`; the message names `what`.
pub async fn until<T, F: Future<Output = Option<T>>>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) -> T {
    let start = Instant::now();
    loop {
        if let Some(seen) = look().await {
            return seen;
        }
        assert!(start.elapsed() < deadline, "not within {deadline:?}: {what}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Waits until `look` returns true.
///
/// # Panics
///
/// When that has not happened within `deadline`; the message names `what`.
pub async fn eventually<F: Future<Output = bool>>(
    what: &str,
    deadline: Duration,
    mut look: impl FnMut() -> F,
) {
    until(what, deadline, || {
        let seen = look();
        async { seen.await.then_some(()) }
    })
    .await;
}
