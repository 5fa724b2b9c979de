//! How an agent's capacity follows its rate: `capacity = ⌊rate × burst⌋`, at least 1.
//!
//! The burst is kept as a ratio of whole numbers, so that a rate that comes back gives the very
//! capacity it had: 30 tokens/s with a capacity of 10 must not become 9 for want of a binary third.

use serde::{Deserialize, Serialize};
use tower_merit::bucket::{CAPACITY_MAX, Limits, MicroTokensPerSecond, Tokens};

/// Seconds of refill that the bucket holds, as tokens per micro-token per second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Burst {
    tokens: u64,
    per_micro: u64,
}

impl Burst {
    /// Returns the burst of limits that somebody chose. A rate of 0 has no burst of its own: then
    /// it is one second.
    #[must_use]
    pub fn of(limits: Limits) -> Self {
        match limits.refill().micro() {
            0 => Self { tokens: 1, per_micro: 1_000_000 },
            per_micro => Self { tokens: limits.capacity().get(), per_micro },
        }
    }

    /// Returns a burst of `seconds` (0 to 9,000,000), rounded to a microsecond.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    pub fn of_seconds(seconds: f64) -> Self {
        Self { tokens: (seconds * 1e6).round() as u64, per_micro: 1_000_000_000_000 }
    }

    /// Returns the limits at `rate`.
    #[must_use]
    pub fn limits(self, rate: MicroTokensPerSecond) -> Limits {
        let exact = u128::from(rate.micro()) * u128::from(self.tokens) / u128::from(self.per_micro);
        let whole = u64::try_from(exact).unwrap_or(CAPACITY_MAX).clamp(1, CAPACITY_MAX);
        Limits::new(Tokens::new(whole).expect("clamped to what a bucket holds"), rate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(burst: Burst, rate: f64) -> u64 {
        burst.limits(MicroTokensPerSecond::from_tokens(rate).unwrap()).capacity().get()
    }

    #[test]
    fn the_capacity_is_the_rate_times_the_burst_rounded_down() {
        let burst = Burst::of(Limits::per_second(20.0, 40).unwrap());
        assert_eq!(
            [20.0, 20.2, 20.5, 0.5, 0.4].map(|rate| capacity(burst, rate)),
            [40, 40, 41, 1, 1]
        );
        assert_eq!(capacity(Burst::of_seconds(10.0), 4.37), 43);
    }

    #[test]
    fn a_rate_that_comes_back_has_the_capacity_it_had() {
        for (rate, tokens) in [(30.0, 10), (3.0, 1), (7.0, 9), (0.3, 1000)] {
            let limits = Limits::per_second(rate, tokens).unwrap();
            assert_eq!(Burst::of(limits).limits(limits.refill()), limits);
        }
    }
}
