//! Rows of numbers by key, bounded: the one that was not touched for longest makes room.
//!
//! All rows stand in one slab; an order of last use runs through them by number. A key is a digest
//! of an id, so that a row has the same size whatever the id's length, and no id is kept.

use std::collections::HashMap;

use aws_lc_rs::digest::{Context, SHA256};
use foldhash::fast::RandomState;

/// No row.
const NONE: u32 = u32::MAX;

/// What an id is known by: 128 bits of SHA-256, so that no two ids can be made to share a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub(super) u128);

impl Key {
    /// Returns the key of the user `id`.
    #[must_use]
    pub fn user(id: &str) -> Self {
        Self::of(&[b"user\0", id.as_bytes()])
    }

    /// Returns the key of the item `id`.
    #[must_use]
    pub fn item(id: &str) -> Self {
        Self::of(&[b"item\0", id.as_bytes()])
    }

    pub(in crate::personalize) fn of(parts: &[&[u8]]) -> Self {
        let mut digest = Context::new(&SHA256);
        parts.iter().for_each(|part| digest.update(part));
        let digest = digest.finish();
        let half = digest.as_ref()[..16].try_into().expect("a SHA-256 digest has 32 bytes");
        Self(u128::from_le_bytes(half))
    }

    /// Returns its bytes.
    pub(in crate::personalize) fn bytes(self) -> [u8; 16] {
        self.0.to_le_bytes()
    }

    /// Returns 64 bits that `seed` draws for this key; each `index` has its own.
    #[allow(clippy::cast_possible_truncation, reason = "the halves of the key")]
    pub(super) fn draw(self, seed: u64, index: u64) -> u64 {
        let mixed = (self.0 as u64) ^ splitmix(seed) ^ splitmix((self.0 >> 64) as u64);
        splitmix(mixed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)))
    }
}

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014).
fn splitmix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A row's place in the order of last use.
#[derive(Clone, Copy, Debug)]
struct Link {
    /// The row that was used next after it.
    newer: u32,
    /// The row that was used last before it.
    older: u32,
}

/// Rows of `width` numbers.
#[derive(Clone, Debug)]
pub(super) struct Table {
    width: usize,
    max: usize,
    index: HashMap<Key, u32, RandomState>,
    keys: Vec<Key>,
    /// Ratings of each row.
    counts: Vec<u32>,
    slab: Vec<f32>,
    links: Vec<Link>,
    newest: u32,
    oldest: u32,
    evicted: u64,
}

impl Table {
    pub(super) fn new(width: usize, max: usize) -> Self {
        Self {
            width,
            max: max.clamp(1, NONE as usize - 1),
            index: HashMap::default(),
            keys: Vec::new(),
            counts: Vec::new(),
            slab: Vec::new(),
            links: Vec::new(),
            newest: NONE,
            oldest: NONE,
            evicted: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns how many rows had to make room.
    pub(super) fn evicted(&self) -> u64 {
        self.evicted
    }

    pub(super) fn find(&self, key: Key) -> Option<usize> {
        self.index.get(&key).map(|&row| row as usize)
    }

    pub(super) fn row(&self, row: usize) -> &[f32] {
        &self.slab[row * self.width..(row + 1) * self.width]
    }

    pub(super) fn row_mut(&mut self, row: usize) -> &mut [f32] {
        &mut self.slab[row * self.width..(row + 1) * self.width]
    }

    pub(super) fn count(&self, row: usize) -> u32 {
        self.counts[row]
    }

    pub(super) fn note_rating(&mut self, row: usize) {
        self.counts[row] = self.counts[row].saturating_add(1);
    }

    /// Returns the row of `key`, made the newest; one that is not there is filled by `begin`.
    pub(super) fn touch(&mut self, key: Key, begin: impl FnOnce(&mut [f32])) -> usize {
        if let Some(&row) = self.index.get(&key) {
            if row != self.newest {
                self.unlink(row);
                self.link(row);
            }
            return row as usize;
        }
        let row = if self.keys.len() < self.max {
            self.keys.push(key);
            self.counts.push(0);
            self.links.push(Link { newer: NONE, older: NONE });
            self.slab.resize(self.slab.len() + self.width, 0.0);
            u32::try_from(self.keys.len() - 1).expect("there are fewer rows than NONE")
        } else {
            let row = self.oldest;
            self.unlink(row);
            let slot = row as usize;
            self.index.remove(&self.keys[slot]);
            self.keys[slot] = key;
            self.counts[slot] = 0;
            self.evicted += 1;
            row
        };
        self.index.insert(key, row);
        self.link(row);
        begin(self.row_mut(row as usize));
        row as usize
    }

    fn link(&mut self, row: u32) {
        self.links[row as usize] = Link { newer: NONE, older: self.newest };
        match self.newest {
            NONE => self.oldest = row,
            newest => self.links[newest as usize].newer = row,
        }
        self.newest = row;
    }

    fn unlink(&mut self, row: u32) {
        let Link { newer, older } = self.links[row as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
    }

    /// Returns key, ratings and numbers of each row, from the one used longest ago.
    pub(super) fn by_age(&self) -> impl Iterator<Item = (Key, u32, &[f32])> {
        let mut next = self.oldest;
        std::iter::from_fn(move || {
            let row = next as usize;
            let link = self.links.get(row)?;
            next = link.newer;
            Some((self.keys[row], self.counts[row], self.row(row)))
        })
    }

    /// Puts a row back that [`Table::by_age`] gave.
    pub(super) fn put_back(&mut self, key: Key, count: u32, numbers: &[f32]) {
        let row = self.touch(key, |row| row.copy_from_slice(numbers));
        self.counts[row] = count;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(n: u8) -> Key {
        Key::user(&n.to_string())
    }

    #[test]
    fn a_user_and_an_item_of_one_name_are_two() {
        assert_ne!(Key::user("a"), Key::item("a"));
        assert_ne!(key(1).draw(1, 0), key(1).draw(2, 0));
        assert_ne!(key(1).draw(1, 0), key(1).draw(1, 1));
    }

    proptest! {
        #[test]
        fn what_is_kept_is_what_was_touched_last_in_that_order(
            touched in proptest::collection::vec(0_u8..12, 0..200), max in 1_usize..9,
        ) {
            let mut table = Table::new(2, max);
            let mut expected: Vec<u8> = Vec::new();
            for n in touched {
                let row = table.touch(key(n), |row| row.fill(f32::from(n)));
                table.note_rating(row);
                prop_assert_eq!(table.row(row), [f32::from(n); 2]);
                expected.retain(|known| *known != n);
                expected.push(n);
                if expected.len() > max {
                    expected.remove(0);
                }
            }
            let found: Vec<(Key, f32)> =
                table.by_age().map(|(key, _, row)| (key, row[0])).collect();
            let expected: Vec<(Key, f32)> =
                expected.into_iter().map(|n| (key(n), f32::from(n))).collect();
            prop_assert_eq!(&found, &expected);
            for n in 0..12 {
                let known = expected.iter().any(|(known, _)| *known == key(n));
                prop_assert_eq!(table.find(key(n)).is_some(), known);
            }
        }
    }
}
