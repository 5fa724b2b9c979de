//! A bucket as a service describes it, before it is checked.

use super::BuildError;
use crate::{
    bucket::{BucketName, Limits, Tokens},
    store::BucketRule,
};

/// A bucket as a service describes it: how fast it fills, how much it holds.
///
/// ```
/// use tower_merit::Bucket;
/// let every_request = Bucket::per_second(20.0).capacity(40);
/// let writes = Bucket::per_second(2.0).capacity(10).named("writes");
/// # let _ = (every_request, writes);
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Bucket {
    name: String,
    refill_rate: f64,
    capacity: Option<u64>,
    pub(super) marked_default: bool,
    shadow: bool,
}

impl Bucket {
    /// Returns a bucket that gains `refill_rate` tokens per second, named `default`.
    pub fn per_second(refill_rate: f64) -> Self {
        let name = "default".to_owned();
        Self { name, refill_rate, capacity: None, marked_default: false, shadow: false }
    }

    /// Sets how many tokens it holds: the largest burst. Unless set, one second's refill, and at
    /// least one token.
    pub fn capacity(mut self, tokens: u64) -> Self {
        self.capacity = Some(tokens);
        self
    }

    /// Sets the name that routes call it by, and that callers read in `RateLimit` fields.
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    /// Makes it the default bucket: the one that every request is charged and that ratings move.
    /// Unless a bucket is marked, the first one is it.
    pub fn default_bucket(mut self) -> Self {
        self.marked_default = true;
        self
    }

    /// Sets whether it is only watched: when it holds too little the request passes all the same,
    /// takes nothing from it, and counts in `merit_would_deny_total`. Callers do not see it.
    pub fn shadow(mut self, on: bool) -> Self {
        self.shadow = on;
        self
    }

    pub(super) fn into_rule(self, is_default: bool) -> Result<BucketRule, BuildError> {
        let name = BucketName::new(&self.name)?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let capacity = self.capacity.unwrap_or(self.refill_rate.max(1.0) as u64);
        let fault = |source| BuildError::Limits { bucket: name.to_string(), source };
        let limits = Limits::per_second(self.refill_rate, capacity).map_err(fault)?;
        if limits.capacity() == Tokens::ZERO || limits.refill().micro() == 0 {
            return Err(BuildError::Closed { bucket: self.name });
        }
        Ok(BucketRule { name, is_default, limits, shadow: self.shadow })
    }
}
