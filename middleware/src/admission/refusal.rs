//! Why a request is not passed on.

use crate::{
    bucket::{BucketName, Limits, Tokens},
    identity::{ClaimError, IdentityError},
    store::Held,
};

/// `Retry-After` when waiting will not help, because the limits in force never let the request
/// pass: a day.
pub const NEVER_RETRY_SECONDS: u64 = 24 * 3600;

/// `Retry-After` when nobody knows how long: while the store does not answer, or while as many
/// requests are in flight as may be.
const SOON_MS: u64 = 1_000;

/// Why a request is not passed on, as [`on_refusal`](super::AdmissionBuilder::on_refusal) sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// No credential, or one that does not verify: 401.
    Unauthenticated(IdentityError),
    /// The credential verifies and names no usable agent: 403.
    NoAgent(ClaimError),
    /// Nobody can tell who is asking just now, because keys cannot be had: 503.
    IdentityUnavailable(IdentityError),
    /// The path can be read in two ways that lead to different routes: 400.
    AmbiguousPath,
    /// Too few tokens: 429. Nothing was charged.
    #[non_exhaustive]
    Denied {
        /// Whole seconds until it is worth trying again, at least 1.
        retry_after: u64,
        /// The same in milliseconds.
        retry_after_ms: u64,
        /// The buckets that held too little.
        violated: Vec<BucketName>,
        /// The limits in force of the first of them (of the first that never lets the request pass,
        /// if there is one).
        limits: Limits,
    },
    /// The agent has as many requests in flight on this node as it may have: 429. Nothing was
    /// charged.
    TooManyInFlight {
        /// How many that is.
        limit: u32,
    },
    /// The agent is banned: 403. No bucket was touched.
    Banned {
        /// Milliseconds until the ban ends.
        for_ms: u64,
    },
    /// The store does not answer, and the policy is to refuse; or its answer makes no sense: 503.
    StoreDown,
}

/// What [`Refusal::reason`] returns, in the order of [`Refusal::index`].
pub(super) const REASONS: [&str; 8] = [
    "unauthenticated",
    "no_agent",
    "identity_unavailable",
    "ambiguous_path",
    "denied",
    "in_flight",
    "banned",
    "outage_closed",
];

impl Refusal {
    pub(super) fn index(&self) -> usize {
        match self {
            Self::Unauthenticated(_) => 0,
            Self::NoAgent(_) => 1,
            Self::IdentityUnavailable(_) => 2,
            Self::AmbiguousPath => 3,
            Self::Denied { .. } => 4,
            Self::TooManyInFlight { .. } => 5,
            Self::Banned { .. } => 6,
            Self::StoreDown => 7,
        }
    }

    /// Returns the `outcome` it is counted under in `merit_decisions_total`.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        REASONS[self.index()]
    }

    /// Returns the milliseconds until it is worth trying again; `None` when that is not a matter of
    /// time.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Denied { retry_after_ms, .. } => Some(*retry_after_ms),
            Self::Banned { for_ms } => Some(*for_ms),
            Self::IdentityUnavailable(error) => {
                Some(error.retry_after_s().map_or(SOON_MS, |seconds| seconds.saturating_mul(1000)))
            }
            Self::TooManyInFlight { .. } | Self::StoreDown => Some(SOON_MS),
            Self::Unauthenticated(_) | Self::NoAgent(_) | Self::AmbiguousPath => None,
        }
    }

    /// Returns `Retry-After`: whole seconds, rounded up, at least 1.
    #[must_use]
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after_ms().map(whole_seconds)
    }

    /// Returns the refusal of a request for which these buckets held too little, `jitter_ms` later
    /// than need be. A store that denies and names none is not believed to have answered.
    pub(super) fn denied(
        short: &[(&BucketName, &Held)],
        wait_ms: Option<u64>,
        jitter_ms: u64,
    ) -> Self {
        let never = short.iter().find(|(_, held)| never_passes(&held.limits));
        let Some((_, named)) = never.or(short.first()) else { return Self::StoreDown };
        let retry_after_ms =
            wait_ms.map_or(NEVER_RETRY_SECONDS * 1000, |wait_ms| wait_ms.saturating_add(jitter_ms));
        Self::Denied {
            retry_after: whole_seconds(retry_after_ms),
            retry_after_ms,
            violated: short.iter().map(|(name, _)| (*name).clone()).collect(),
            limits: named.limits,
        }
    }
}

impl From<IdentityError> for Refusal {
    fn from(error: IdentityError) -> Self {
        match error {
            IdentityError::NoAgent(error) => Self::NoAgent(error),
            IdentityError::Unauthenticated { .. } | IdentityError::ApiKey { .. } => {
                Self::Unauthenticated(error)
            }
            IdentityError::Unavailable { .. } => Self::IdentityUnavailable(error),
        }
    }
}

/// Returns true when no waiting helps.
pub(super) fn never_passes(limits: &Limits) -> bool {
    limits.capacity() == Tokens::ZERO || limits.refill().micro() == 0
}

pub(super) fn whole_seconds(milliseconds: u64) -> u64 {
    milliseconds.div_ceil(1000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_denial_that_names_no_bucket_says_that_the_store_is_at_fault() {
        assert_eq!(Refusal::denied(&[], Some(1), 0), Refusal::StoreDown);
        assert_eq!(Refusal::denied(&[], None, 0), Refusal::StoreDown);
    }
}
