//! Why a request is not passed on.

use crate::{
    bucket::{BucketName, Limits},
    identity::{ClaimError, IdentityError},
};

/// `Retry-After` when waiting will not help, because the limits in force never let the request
/// pass: a day.
pub const NEVER_RETRY_SECONDS: u64 = 24 * 3600;

/// `Retry-After` when nobody knows how long: while the store does not answer, or while as many
/// requests are in flight as may be.
const SOON_MS: u64 = 1_000;

/// Why a request is not passed on.
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
        /// The limits in force of the first of them.
        limits: Limits,
    },
    /// The agent has as many requests in flight on this node as it may have: 429.
    TooManyInFlight {
        /// How many that is.
        limit: u32,
    },
    /// The agent is banned: 403. No bucket was touched.
    Banned {
        /// Milliseconds until the ban ends.
        for_ms: u64,
    },
    /// The store does not answer, and the policy is to refuse: 503.
    StoreDown,
}

impl Refusal {
    /// Returns the milliseconds until it is worth trying again; `None` when that is not a matter of
    /// time.
    #[must_use]
    pub fn retry_after_ms(&self) -> Option<u64> {
        match self {
            Self::Denied { retry_after_ms, .. } => Some(*retry_after_ms),
            Self::Banned { for_ms } => Some(*for_ms),
            Self::TooManyInFlight { .. } | Self::StoreDown | Self::IdentityUnavailable(_) => {
                Some(SOON_MS)
            }
            Self::Unauthenticated(_) | Self::NoAgent(_) | Self::AmbiguousPath => None,
        }
    }
}
