//! How much a bucket holds and how fast it fills: two numbers with bounds, parsed once.

use std::fmt;

use super::NanoTokens;

/// The largest capacity, in tokens. As nano-tokens it stays below 2^53 (9.007 × 10^15).
pub const CAPACITY_MAX: u64 = 9_000_000;

/// The largest refill rate, in tokens per second.
pub const REFILL_RATE_MAX: u64 = 9_000_000;

const MICRO: u64 = 1_000_000;

/// A whole number of tokens, 0 to [`CAPACITY_MAX`]: a capacity or a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tokens(u32);

impl Tokens {
    /// No token: a cost of zero asks without taking.
    pub const ZERO: Self = Self(0);
    /// One token, the cost of an ordinary request.
    pub const ONE: Self = Self(1);

    /// Returns `count` tokens.
    ///
    /// # Errors
    ///
    /// When `count` is above [`CAPACITY_MAX`].
    pub const fn new(count: u64) -> Result<Self, LimitsError> {
        if count > CAPACITY_MAX {
            return Err(LimitsError::Capacity { tokens: count });
        }
        #[allow(clippy::cast_possible_truncation, reason = "CAPACITY_MAX fits u32")]
        Ok(Self(count as u32))
    }

    /// Returns the number of tokens.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0 as u64
    }

    /// Returns the same amount in nano-tokens.
    #[must_use]
    pub const fn nano(self) -> NanoTokens {
        NanoTokens(self.0 as i64 * 1_000_000_000)
    }
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A refill rate in whole micro-tokens per second, 0 to [`REFILL_RATE_MAX`] × 10^6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicroTokensPerSecond(u64);

impl MicroTokensPerSecond {
    /// Returns the rate of `micro` micro-tokens per second.
    ///
    /// # Errors
    ///
    /// When `micro` is above [`REFILL_RATE_MAX`] × 10^6.
    pub const fn new(micro: u64) -> Result<Self, LimitsError> {
        if micro > REFILL_RATE_MAX * MICRO {
            return Err(LimitsError::Rate);
        }
        Ok(Self(micro))
    }

    /// Returns the rate of `tokens_per_second`, rounded to the nearest micro-token per second.
    ///
    /// # Errors
    ///
    /// When the rate is not a number, negative or above [`REFILL_RATE_MAX`].
    pub fn from_tokens(tokens_per_second: f64) -> Result<Self, LimitsError> {
        #[allow(clippy::cast_precision_loss, reason = "9 × 10^6 is exact in f64")]
        let most = REFILL_RATE_MAX as f64;
        if !(0.0..=most).contains(&tokens_per_second) {
            return Err(LimitsError::Rate);
        }
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "0 to 9 × 10^12, checked above"
        )]
        Ok(Self((tokens_per_second * 1e6).round() as u64))
    }

    /// Returns the rate in micro-tokens per second.
    #[must_use]
    pub const fn micro(self) -> u64 {
        self.0
    }

    /// Returns the rate in tokens per second.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "at most 9 × 10^12, exact in f64")]
    pub fn tokens(self) -> f64 {
        self.0 as f64 / 1e6
    }
}

/// Tokens per second as a decimal with at most six places, as it stands in Redis: `20`, `4.3`.
impl fmt::Display for MicroTokensPerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / MICRO, self.0 % MICRO);
        if rest == 0 {
            return whole.fmt(f);
        }
        let decimals = format!("{rest:06}");
        write!(f, "{whole}.{}", decimals.trim_end_matches('0'))
    }
}

/// How much a bucket holds and how fast it fills.
///
/// A capacity of 0 refuses every cost above 0; a rate of 0 never refills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Limits {
    capacity: Tokens,
    refill: MicroTokensPerSecond,
}

/// Why a pair of numbers is not the limits of a bucket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LimitsError {
    /// The capacity (or cost) is too large.
    #[error("{tokens} tokens are more than a bucket can hold: at most {CAPACITY_MAX}")]
    Capacity {
        /// The refused number of tokens.
        tokens: u64,
    },
    /// The refill rate is not a finite number in range.
    #[error("refill rate must be 0 to {REFILL_RATE_MAX} tokens per second")]
    Rate,
}

impl Limits {
    /// Returns the limits `capacity` and `refill`.
    #[must_use]
    pub const fn new(capacity: Tokens, refill: MicroTokensPerSecond) -> Self {
        Self { capacity, refill }
    }

    /// Returns limits from whole tokens and tokens per second.
    ///
    /// # Errors
    ///
    /// When either is out of range; see [`Tokens::new`] and [`MicroTokensPerSecond::from_tokens`].
    pub fn per_second(refill_rate: f64, capacity: u64) -> Result<Self, LimitsError> {
        Ok(Self::new(Tokens::new(capacity)?, MicroTokensPerSecond::from_tokens(refill_rate)?))
    }

    /// Returns the capacity.
    #[must_use]
    pub const fn capacity(&self) -> Tokens {
        self.capacity
    }

    /// Returns the refill rate.
    #[must_use]
    pub const fn refill(&self) -> MicroTokensPerSecond {
        self.refill
    }

    /// Returns the limits of one node out of `nodes` that share these without talking: both
    /// numbers divided, the capacity rounded up so that a small bucket is never closed.
    #[must_use]
    pub fn divided_by(&self, nodes: std::num::NonZeroU32) -> Self {
        Self {
            capacity: Tokens(self.capacity.0.div_ceil(nodes.get())),
            refill: MicroTokensPerSecond(self.refill.0 / u64::from(nodes.get())),
        }
    }

    /// Returns `w` of draft-ietf-httpapi-ratelimit-headers-11: whole seconds in which an empty
    /// bucket fills, rounded up, at least 1; `None` when it never does.
    #[must_use]
    pub fn window_seconds(&self) -> Option<u64> {
        (self.refill.0 > 0).then(|| (self.capacity.get() * MICRO).div_ceil(self.refill.0).max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_prints_the_decimal_that_reads_back_as_itself() {
        for (rate, text) in
            [(20.0, "20"), (20.2, "20.2"), (0.5, "0.5"), (1e-6, "0.000001"), (0.0, "0")]
        {
            let parsed = MicroTokensPerSecond::from_tokens(rate).unwrap();
            assert_eq!(parsed.to_string(), text);
            assert_eq!(MicroTokensPerSecond::from_tokens(text.parse().unwrap()).unwrap(), parsed);
        }
    }

    #[test]
    fn numbers_out_of_range_are_refused() {
        for rate in [f64::NAN, f64::INFINITY, -0.1, 9_000_001.0] {
            assert!(MicroTokensPerSecond::from_tokens(rate).is_err(), "{rate}");
        }
        assert!(Tokens::new(CAPACITY_MAX).is_ok());
        assert!(Tokens::new(CAPACITY_MAX + 1).is_err());
    }

    #[test]
    fn the_window_is_the_time_to_fill_rounded_up() {
        let window = |rate, capacity| Limits::per_second(rate, capacity).unwrap().window_seconds();
        assert_eq!(window(20.0, 40), Some(2));
        assert_eq!(window(3.0, 10), Some(4));
        assert_eq!(window(1000.0, 1), Some(1));
        assert_eq!(window(0.0, 1), None);
    }
}
