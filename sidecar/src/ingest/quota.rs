//! How much one poster may have: ratings a second, and places among those that send many at a time.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{Semaphore, SemaphorePermit};

use super::{Config, Refusal, raters::Rater};
use crate::{quota::Quota, rating::Poster};

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
    taken: Mutex<HashMap<Poster, usize>>,
}

/// One place, given back when dropped.
pub(super) struct Place<'a> {
    _permit: SemaphorePermit<'a>,
    of: Option<(Poster, &'a Places)>,
}

impl Places {
    pub(super) fn new(places: usize) -> Self {
        let per_rater = (places / SHARE).max(1);
        Self { free: Semaphore::new(places), per_rater, taken: Mutex::default() }
    }

    /// Takes a place for `rater`.
    pub(super) fn take(&self, rater: &Rater) -> Result<Place<'_>, Refusal> {
        let of = if rater.is_collector() {
            None
        } else {
            let mut taken = self.taken();
            let has = taken.entry(rater.poster().clone()).or_default();
            if *has >= self.per_rater {
                return Err(Refusal::Crowded { most: self.per_rater });
            }
            *has += 1;
            Some((rater.poster().clone(), self))
        };
        match self.free.try_acquire() {
            Ok(permit) => Ok(Place { _permit: permit, of }),
            Err(_) => {
                self.left(of);
                Err(Refusal::Busy)
            }
        }
    }

    fn left(&self, of: Option<(Poster, &Places)>) {
        let Some((poster, _)) = of else { return };
        let mut taken = self.taken();
        match taken.get_mut(&poster) {
            Some(has @ 2..) => *has -= 1,
            _ => drop(taken.remove(&poster)),
        }
    }

    fn taken(&self) -> MutexGuard<'_, HashMap<Poster, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if let Some((_, places)) = self.of {
            places.left(self.of.take());
        }
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
        assert!(places.taken().is_empty());
        assert_eq!(places.free.available_permits(), 16);
    }
}
