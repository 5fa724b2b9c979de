//! How many of something each has at the moment, and a bound on that: who has none is forgotten.

use std::{
    collections::HashMap,
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many each has. Clones share the counts.
#[derive(Clone, Debug)]
pub(crate) struct Shares<K>(Arc<Mutex<HashMap<K, usize>>>);

/// One of what its owner has, given back when dropped.
#[derive(Debug)]
pub(crate) struct Share<K: Eq + Hash> {
    owner: K,
    shares: Shares<K>,
}

impl<K> Default for Shares<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K> Shares<K> {
    fn counts(&self) -> MutexGuard<'_, HashMap<K, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns whether nobody has any.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.counts().is_empty()
    }
}

impl<K: Clone + Eq + Hash> Shares<K> {
    /// Takes one for `owner`, unless it has `most` (at least 1) already.
    pub(crate) fn take(&self, owner: &K, most: usize) -> Option<Share<K>> {
        let mut counts = self.counts();
        let has = counts.get(owner).copied().unwrap_or(0);
        if has >= most {
            return None;
        }
        counts.insert(owner.clone(), has + 1);
        drop(counts);
        Some(Share { owner: owner.clone(), shares: self.clone() })
    }
}

impl<K: Eq + Hash> Drop for Share<K> {
    fn drop(&mut self) {
        let mut counts = self.shares.counts();
        match counts.get_mut(&self.owner) {
            Some(has @ 2..) => *has -= 1,
            left => {
                debug_assert_eq!(left.copied(), Some(1), "who gives one back has one");
                counts.remove(&self.owner);
            }
        }
    }
}
