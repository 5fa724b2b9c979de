//! The time of day. What lasts is measured by `Instant`, which nobody sets back.
//!
//! Ratings carry the time of day at which they came in, so a clock that is set gives every agent a gap that
//! was none, or ratings out of order. Policies bound what that does (`policy::Track`); [`watch`] tells
//! that it happened.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use metrics::counter;
use tokio::time::MissedTickBehavior;
use tracing::warn;

/// How often the clock is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// By how much the time of day must have moved apart from the steady clock to have jumped: more than clock
/// daemons step in ordinary service (0.128 s by ntpd's default, 1 s by chrony's usual `makestep`).
const JUMP_MIN: Duration = Duration::from_secs(2);

/// Returns the time since 1970 (UTC, without leap seconds); nothing on a clock that is before it.
#[must_use]
pub fn unix_time() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// The same in whole milliseconds, as records, tokens and people are told it.
#[must_use]
pub fn unix_ms() -> u64 {
    u64::try_from(unix_time().as_millis()).unwrap_or(u64::MAX)
}

/// How the time of day jumped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Jump {
    Forward(Duration),
    Back(Duration),
}

/// What both clocks said when they were last looked at.
struct Clocks {
    wall: Duration,
    steady: Instant,
}

impl Clocks {
    /// Returns what both clocks say now. The steady one is read on both sides of the other, until the two
    /// readings are so near that a pause between them cannot pass for a jump.
    fn read() -> Self {
        loop {
            let before = Instant::now();
            let wall = unix_time();
            if before.elapsed() < JUMP_MIN / 4 {
                return Self { wall, steady: before };
            }
        }
    }

    /// Takes over `now`, and returns by how much the time of day jumped since.
    fn see(&mut self, now: Self) -> Option<Jump> {
        let expected = self.wall + now.steady.saturating_duration_since(self.steady);
        let wall = now.wall;
        *self = now;
        let jump = match wall.checked_sub(expected) {
            Some(ahead) => Jump::Forward(ahead),
            None => Jump::Back(expected - wall),
        };
        let (Jump::Forward(by) | Jump::Back(by)) = jump;
        (by >= JUMP_MIN).then_some(jump)
    }
}

/// Counts and tells jumps of the time of day, for as long as it is polled.
pub async fn watch() {
    let mut looks = tokio::time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut clocks = Clocks::read();
    loop {
        looks.tick().await;
        let Some(jump) = clocks.see(Clocks::read()) else { continue };
        let (direction, by) = match jump {
            Jump::Forward(by) => ("forward", by),
            Jump::Back(by) => ("back", by),
        };
        counter!("merit_clock_jumps_total", "direction" => direction).increment(1);
        warn!(
            direction,
            seconds = by.as_secs(),
            "the system clock jumped: limits move by a step at most"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_is_what_the_two_clocks_differ_by_and_is_told_once() {
        let (start, day) = (Instant::now(), Duration::from_secs(1_800_000_000));
        let at = |steady_s: u64, wall_s: u64| Clocks {
            wall: day + Duration::from_secs(wall_s),
            steady: start + Duration::from_secs(steady_s),
        };
        let mut clocks = at(0, 0);
        // The process stood still for an hour, and both clocks went on.
        assert_eq!(clocks.see(at(3_600, 3_600)), None);
        assert_eq!(clocks.see(at(3_601, 7_201)), Some(Jump::Forward(Duration::from_secs(3_600))));
        assert_eq!(clocks.see(at(3_602, 7_202)), None);
        assert_eq!(clocks.see(at(3_603, 3_603)), Some(Jump::Back(Duration::from_secs(3_600))));
        // A daemon that steps by a second sets no clock.
        assert_eq!(clocks.see(at(3_604, 3_605)), None);
        assert_eq!(clocks.see(at(3_605, 3_605)), None);
    }
}
