//! How often a rater may rate: the middleware's own bucket, one for each poster.
//!
//! Each node counts for itself, so that taking a rating asks nobody.

use std::{sync::Arc, time::Duration};

use aws_lc_rs::digest::{SHA256, digest};
use tokio::time::Instant;
use tower_merit::{
    AgentId, MemoryStore, Spend,
    bucket::{BucketName, Limits, Tokens},
    store::{BucketRule, Decision, Direction, Settlement, Take},
};

use super::Config;
use crate::rating::Poster;

/// Posters that are remembered; of more, the one that was silent longest begins with a full bucket.
const POSTERS_MAX: usize = 1 << 17;
/// The wait of whoever would wait for ever.
const LONGEST: Duration = Duration::from_secs(3600);

/// Buckets of ratings.
pub(super) struct Quota {
    store: MemoryStore,
    take: Arc<[Take]>,
}

impl Quota {
    /// Returns the quota of raters that rate as themselves; nothing when there is none.
    pub(super) fn of_raters(config: &Config) -> Option<Self> {
        Self::new("rater", config.rater_rate, config.rater_burst)
    }

    /// Returns the quota of collectors, who may rate as anybody; nothing when there is none.
    pub(super) fn of_collectors(config: &Config) -> Option<Self> {
        Self::new("collector", config.collector_rate?, config.collector_burst)
    }

    fn new(name: &str, rate: f64, burst: u64) -> Option<Self> {
        if rate <= 0.0 {
            return None;
        }
        let bucket = BucketRule {
            name: BucketName::new(name).expect("a short name"),
            is_default: true,
            limits: Limits::per_second(rate, burst).expect("validated"),
            shadow: false,
        };
        let take = [Take { bucket, cost: Tokens::ONE }].into();
        Some(Self { store: MemoryStore::with_capacity(POSTERS_MAX), take })
    }

    /// Takes one rating of `poster`; when there is none left, returns how long until there is.
    pub(super) fn take(&self, poster: &Poster) -> Result<(), Duration> {
        let Some(verdict) = self.store.spend_now(&bucket_of(poster), &self.take, Instant::now())
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

    /// Gives back what [`Quota::take`] took from `poster`.
    pub(super) fn give_back(&self, poster: &Poster) {
        let (agent, takes) = (bucket_of(poster), Arc::clone(&self.take));
        self.store.settle(Settlement { agent, takes, direction: Direction::GiveBack });
    }
}

/// Returns the name of a poster's bucket: posters have any name, buckets do not.
fn bucket_of(poster: &Poster) -> AgentId {
    use std::fmt::Write as _;
    let hash = digest(&SHA256, poster.as_str().as_bytes());
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

    fn poster(name: &str) -> Poster {
        Poster::new(name).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_rater_has_its_burst_then_its_rate_and_drowns_nobody_else() {
        let quota = Quota::new("rater", 2.0, 5).unwrap();
        let (loud, other) = (poster("Ärger im Paradies"), poster("u2"));
        for _ in 0..5 {
            quota.take(&loud).unwrap();
        }
        assert_eq!(quota.take(&loud).unwrap_err(), Duration::from_millis(500));
        quota.take(&other).unwrap();
        tokio::time::advance(Duration::from_millis(500)).await;
        quota.take(&loud).unwrap();
        quota.take(&loud).unwrap_err();
        quota.give_back(&loud);
        quota.take(&loud).unwrap();
        quota.take(&loud).unwrap_err();
    }

    #[test]
    fn a_rate_of_zero_is_no_quota() {
        assert!(Quota::new("rater", 0.0, 5).is_none());
        assert!(Quota::of_collectors(&Config::default()).is_none());
        assert!(Quota::of_raters(&Config::default()).is_some());
    }
}
