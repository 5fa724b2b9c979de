//! How far a log of ratings was read: the next offset of each partition, and whose offsets these are.

use std::collections::BTreeMap;

use crate::bus::Partition;

/// The next offset of each partition of one log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Positions {
    /// The log's name; empty when none was read yet.
    pub source: String,
    /// The offset after the last rating that was read, of each partition.
    pub next: BTreeMap<Partition, u64>,
}

impl Positions {
    /// Returns the positions before anything of the log `source` was read.
    #[must_use]
    pub fn of(source: &str) -> Self {
        Self { source: source.to_owned(), next: BTreeMap::new() }
    }

    /// Returns the next offset of `partition`.
    #[must_use]
    pub fn next(&self, partition: Partition) -> Option<u64> {
        self.next.get(&partition).copied()
    }

    /// Notes that everything of `partition` below `next` was read; it never goes back.
    pub fn advance(&mut self, partition: Partition, next: u64) {
        let known = self.next.entry(partition).or_insert(next);
        *known = next.max(*known);
    }
}
