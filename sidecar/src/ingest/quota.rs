//! How much one poster may have: ratings a second, and places among those that send many at a time.

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Config, Refusal, http::permit, raters::Rater};
use crate::{
    quota::Quota,
    rating::Poster,
    shares::{Share, Shares},
};

/// Which part of the places one rater may have.
const SHARE: usize = 8;

/// Returns the quota of raters that rate as themselves; nothing when there is none.
pub(super) fn of_raters(config: &Config) -> Option<Quota> {
    Quota::new("rater", config.rater_rate, config.rater_burst)
}

/// Returns the quota of collectors, who may rate as anybody; nothing when there is none.
pub(super) fn of_collectors(config: &Config) -> Option<Quota> {
    Quota::new("collector", config.collector_rate?, config.collector_burst)
}

/// Places for batches, or for streams. A rater that rates as itself may have an eighth of them, so that one who
/// sends slowly keeps nobody else from sending; a collector, whom an operator trusts, all.
pub(super) struct Places {
    free: Semaphore,
    per_rater: usize,
    taken: Shares<Poster>,
}

/// One place, given back when dropped.
pub(super) struct Place<'a> {
    _permit: SemaphorePermit<'a>,
    _share: Option<Share<Poster>>,
}

impl Places {
    pub(super) fn new(places: usize) -> Self {
        let per_rater = (places / SHARE).max(1);
        Self { free: Semaphore::new(places), per_rater, taken: Shares::default() }
    }

    /// Takes a place for `rater`.
    pub(super) fn take(&self, rater: &Rater) -> Result<Place<'_>, Refusal> {
        let most = self.per_rater;
        let share = match rater.is_collector() {
            true => None,
            false => {
                let share = self.taken.take(rater.poster(), most);
                Some(share.ok_or(Refusal::Crowded { most })?)
            }
        };
        Ok(Place { _permit: permit(&self.free)?, _share: share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotas_are_as_configured() {
        assert!(of_collectors(&Config::default()).is_none());
        assert!(of_raters(&Config::default()).is_some());
    }

    #[test]
    fn one_rater_has_an_eighth_of_the_places_and_a_collector_the_rest() {
        let places = Places::new(16);
        let rater = Rater::of_tests;
        let mine = [places.take(&rater("u1")).unwrap(), places.take(&rater("u1")).unwrap()];
        let refusal = places.take(&rater("u1")).err().unwrap();
        assert!(matches!(refusal, Refusal::Crowded { most: 2 }), "{refusal:?}");
        let other = places.take(&rater("u2")).unwrap();
        let collector = Rater::collector(&Poster::new("shop").unwrap());
        let all: Vec<_> = (0..13).map(|_| places.take(&collector).unwrap()).collect();
        assert!(matches!(places.take(&collector).err().unwrap(), Refusal::Busy));
        assert!(matches!(places.take(&rater("u3")).err().unwrap(), Refusal::Busy));
        drop((mine, other, all));
        assert!(places.taken.is_empty());
        assert_eq!(places.free.available_permits(), 16);
    }
}
