//! The newest ratings by name, so that one which a producer sent again is learned and told once.

use std::{
    collections::{HashSet, VecDeque},
    hash::BuildHasher as _,
};

use foldhash::quality::RandomState;

use crate::rating::Rating;

/// How many are remembered: a minute of a thousand a second.
const REMEMBERED: usize = 1 << 16;

/// The newest ratings, by 64 bits of their poster and id.
#[derive(Debug, Default)]
pub(super) struct Recent {
    known: HashSet<u64, RandomState>,
    order: VecDeque<u64>,
    hash: RandomState,
}

impl Recent {
    /// Returns true when `rating` is not among them, and remembers it.
    pub(super) fn is_new(&mut self, rating: &Rating) -> bool {
        let name = self.hash.hash_one((rating.poster().as_str(), rating.id().as_str()));
        if !self.known.insert(name) {
            return false;
        }
        self.order.push_back(name);
        if self.order.len() > REMEMBERED
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rating::{Poster, RatingRequest};

    fn rating(id: usize) -> Rating {
        let body = format!(r#"{{"id":"{id}","agent_id":"a","user_id":"u","score":5}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new("p").unwrap(), 1_700_000_000_000_000).unwrap()
    }

    #[test]
    fn a_repeat_is_known_and_the_oldest_are_forgotten_first() {
        let mut recent = Recent::default();
        assert!(recent.is_new(&rating(0)) && !recent.is_new(&rating(0)));
        for id in 1..=REMEMBERED {
            assert!(recent.is_new(&rating(id)));
        }
        assert!(!recent.is_new(&rating(1)), "it is the oldest that is remembered");
        assert!(recent.is_new(&rating(0)), "one more than is remembered came since");
        assert_eq!((recent.known.len(), recent.order.len()), (REMEMBERED, REMEMBERED));
    }
}
