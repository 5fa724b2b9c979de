//! Token-bucket arithmetic, exact and pure: the specification that the Redis scripts are held to.
//!
//! Rates are whole micro-tokens per second, levels are nano-tokens and time is milliseconds, so
//! that a refill (µ-tokens/s × ms = n-tokens) is one integer multiplication without remainder.
//! Every quantity stays at or below 2^53 in magnitude, so Lua's doubles hold it exactly too.

mod limits;

mod level;

mod earned;

pub use limits::{
    CAPACITY_MAX, Limits, LimitsError, MicroTokensPerSecond, REFILL_RATE_MAX, Tokens,
};

pub(crate) use level::MAGNITUDE_MAX;
pub use level::{CLOCK_SLACK_MS, Level, NanoTokens, full_in_ms, refill, wait_ms};

pub use earned::earned;

use std::{fmt, sync::Arc};

/// The longest bucket name, in characters.
pub const BUCKET_NAME_MAX: usize = 64;

/// The name of a bucket: 1–64 characters of `[A-Za-z0-9_-]`, so that it can stand in a Redis
/// field and in a structured header without quoting.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BucketName(Arc<str>);

/// A text that cannot name a bucket.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "bucket name {text:?} must be 1 to {BUCKET_NAME_MAX} characters of letters, digits, `_` and `-`"
)]
pub struct BucketNameError {
    text: String,
}

impl BucketName {
    /// Returns the bucket name `text`.
    ///
    /// # Errors
    ///
    /// When `text` is empty, longer than 64 characters or holds anything but `[A-Za-z0-9_-]`.
    pub fn new(text: &str) -> Result<Self, BucketNameError> {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if text.is_empty() || text.len() > BUCKET_NAME_MAX || !text.bytes().all(allowed) {
            let text = text.chars().take(BUCKET_NAME_MAX).collect();
            return Err(BucketNameError { text });
        }
        Ok(Self(text.into()))
    }

    /// Returns the name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for BucketName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
