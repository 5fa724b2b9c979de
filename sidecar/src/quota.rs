//! How often somebody may do something: the middleware's own bucket, one for each name.
//!
//! Each node counts for itself, so that asking costs nothing.

use std::{fmt, sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::time::Instant;
use tower_merit::{
    AgentId, MemoryStore, Spend,
    bucket::{BucketName, Limits, Tokens},
    store::{BucketRule, Decision, Direction, Settlement, Take},
};

/// Names that are remembered; of more, the one that was silent longest begins with a full bucket.
const NAMES_MAX: usize = 1 << 17;
/// The wait of whoever would wait for ever.
const LONGEST: Duration = Duration::from_secs(3600);

/// Buckets, one for each name.
pub(crate) struct Quota {
    store: MemoryStore,
    take: Arc<[Take]>,
}

impl Quota {
    /// Returns buckets of `burst` that refill at `rate` a second; nothing when that is 0, which is no quota.
    ///
    /// # Panics
    ///
    /// When `what` is no name of a bucket, or the numbers are no limits.
    pub(crate) fn new(what: &str, rate: f64, burst: u64) -> Option<Self> {
        if rate <= 0.0 {
            return None;
        }
        let bucket = BucketRule {
            name: BucketName::new(what).expect("a short name"),
            is_default: true,
            limits: Limits::per_second(rate, burst).expect("validated"),
            shadow: false,
        };
        let take = [Take { bucket, cost: Tokens::ONE }].into();
        Some(Self { store: MemoryStore::with_capacity(NAMES_MAX), take })
    }

    /// Takes one of what `name` may have; when there is none left, returns how long until there is.
    pub(crate) fn take(&self, name: &str) -> Result<(), Duration> {
        let Some(verdict) = self.store.spend_now(&bucket_of(name), &self.take, Instant::now())
        else {
            return Ok(());
        };
        match verdict.decision {
            Decision::Admitted => Ok(()),
            Decision::Denied { wait_ms } => {
                Err(wait_ms.map_or(LONGEST, Duration::from_millis).min(LONGEST))
            }
            Decision::Banned { for_ms } => Err(Duration::from_millis(for_ms)),
        }
    }

    /// Gives back what [`Quota::take`] took from `name`.
    pub(crate) fn give_back(&self, name: &str) {
        let (agent, takes) = (bucket_of(name), Arc::clone(&self.take));
        self.store.settle(Settlement { agent, takes, direction: Direction::GiveBack });
    }
}

impl fmt::Debug for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Quota").field("take", &self.take).finish_non_exhaustive()
    }
}

/// Returns the name of a bucket: people have any name, buckets do not.
fn bucket_of(name: &str) -> AgentId {
    use std::fmt::Write as _;
    let hash = digest(&SHA256, name.as_bytes());
    let mut name = String::with_capacity(33);
    name.push('p');
    for byte in &hash.as_ref()[..16] {
        write!(name, "{byte:02x}").expect("writing to a String does not fail");
    }
    AgentId::new(&name).expect("letters and digits")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_name_has_its_burst_then_its_rate_and_drowns_nobody_else() {
        let quota = Quota::new("rater", 2.0, 5).unwrap();
        let (loud, other) = ("Ärger im Paradies", "u2");
        for _ in 0..5 {
            quota.take(loud).unwrap();
        }
        assert_eq!(quota.take(loud).unwrap_err(), Duration::from_millis(500));
        quota.take(other).unwrap();
        tokio::time::advance(Duration::from_millis(500)).await;
        quota.take(loud).unwrap();
        quota.take(loud).unwrap_err();
        quota.give_back(loud);
        quota.take(loud).unwrap();
        quota.take(loud).unwrap_err();
    }

    #[test]
    fn a_rate_of_zero_is_no_quota() {
        assert!(Quota::new("rater", 0.0, 5).is_none());
    }
}
