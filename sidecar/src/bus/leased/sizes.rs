//! The numbers of a leased bus that configuration sets.

use crate::bus::duration;
use std::time::Duration;

const PARTITIONS_MAX: u32 = 1_000;
const BATCH_MAX: usize = 10_000;
const QUEUE_MAX: usize = 10_000_000;
const LENGTH_MAX: usize = 100_000_000;

/// The numbers that every leased bus has; their meaning and units are those of its table.
pub(in crate::bus) struct Sizes {
    pub(in crate::bus) partitions: u32,
    pub(in crate::bus) batch_max: usize,
    pub(in crate::bus) queue_max: usize,
    pub(in crate::bus) length_max: usize,
    pub(in crate::bus) lease: Duration,
    pub(in crate::bus) delivery_timeout: Duration,
}

impl Sizes {
    /// Tells `expect` of each key whether its value holds, and what it must be.
    pub(in crate::bus) fn validate(&self, mut expect: impl FnMut(bool, &str, String)) {
        let mut within = |key: &str, value: usize, high: usize| {
            expect((1..=high).contains(&value), key, format!("must be 1..={high}"));
        };
        within("partitions", self.partitions as usize, PARTITIONS_MAX as usize);
        within("batch_max", self.batch_max, BATCH_MAX);
        within("queue_max", self.queue_max, QUEUE_MAX);
        within("length_max", self.length_max, LENGTH_MAX);
        let mut lasts = |key: &str, value: Duration, low: Duration, high: Duration| {
            let (low_text, high_text) = (duration::format(low), duration::format(high));
            expect((low..=high).contains(&value), key, format!("must be {low_text}..={high_text}"));
        };
        let second = Duration::from_secs(1);
        lasts("lease", self.lease, second, 300 * second);
        lasts("delivery_timeout", self.delivery_timeout, second / 10, 300 * second);
    }
}
