//! The time of day. What lasts is measured by `Instant`, which nobody sets back.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Returns the time since 1970 (UTC, without leap seconds); nothing on a clock that is before it.
#[must_use]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
