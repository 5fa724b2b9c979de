//! How far each partition got, and how far that was a while ago.
//!
//! What is stored as progress trails what was written by the replay window: a store that fails over
//! and loses its last seconds is given them again. Ratings that it did keep are skipped by their
//! agent's own record.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::bus::Partition;

/// Marks are kept this far apart at least, so that a window of a minute is sixty marks.
const MARK_INTERVAL: Duration = Duration::from_secs(1);

/// The partitions that are ours.
#[derive(Debug)]
pub(super) struct Positions {
    window: Duration,
    partitions: BTreeMap<Partition, Marks>,
}

#[derive(Debug, Default)]
struct Marks {
    /// Offsets below which everything was written, with the time of that; oldest first.
    marks: VecDeque<(Instant, u64)>,
    /// The offset that was last stored as progress.
    stored: Option<u64>,
}

impl Positions {
    pub(super) fn new(window: Duration) -> Self {
        Self { window, partitions: BTreeMap::new() }
    }

    /// Takes over a partition that continues from `offset`.
    pub(super) fn begin(&mut self, partition: Partition, offset: u64, now: Instant) {
        let marks = Marks { marks: VecDeque::from([(now, offset)]), stored: None };
        self.partitions.insert(partition, marks);
    }

    pub(super) fn end(&mut self, partition: Partition) {
        self.partitions.remove(&partition);
    }

    pub(super) fn partitions(&self) -> Vec<Partition> {
        self.partitions.keys().copied().collect()
    }

    /// Notes that everything below `offset` was written.
    pub(super) fn advance(&mut self, partition: Partition, offset: u64, now: Instant) {
        let Some(Marks { marks, .. }) = self.partitions.get_mut(&partition) else { return };
        match marks.len() {
            // The newest mark moves until it is a whole interval after the one before it.
            0 | 1 => marks.push_back((now, offset)),
            last => {
                let before = marks[last - 2].0;
                let newest = &mut marks[last - 1];
                if now.duration_since(before) < MARK_INTERVAL {
                    *newest = (now, offset);
                } else {
                    marks.push_back((now, offset));
                }
            }
        }
    }

    /// Returns the partitions whose trailing offset moved since the last call, with that offset.
    pub(super) fn take_progress(&mut self, now: Instant) -> Vec<(Partition, u64)> {
        let window = self.window;
        let trail = |(partition, Marks { marks, stored }): (&Partition, &mut Marks)| {
            // Everything up to the newest mark that is at least a window old is safe to pass over.
            while marks.len() > 1 && now.duration_since(marks[1].0) >= window {
                marks.pop_front();
            }
            let (_, offset) = *marks.front()?;
            let moved = stored.replace(offset) != Some(offset);
            moved.then_some((*partition, offset))
        };
        self.partitions.iter_mut().filter_map(trail).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const P: Partition = Partition(3);

    fn run(seconds: u64) -> (Positions, Instant) {
        let start = Instant::now();
        let mut positions = Positions::new(Duration::from_secs(60));
        positions.begin(P, 100, start);
        for tenth in 1..=seconds * 10 {
            positions.advance(P, 100 + tenth, start + Duration::from_millis(tenth * 100));
        }
        (positions, start + Duration::from_secs(seconds))
    }

    #[test]
    fn progress_trails_by_the_window_and_by_hardly_more() {
        let (mut positions, now) = run(200);
        let progress = positions.take_progress(now);
        // 140 s in, ten records a second.
        assert_eq!(progress.len(), 1);
        let (_, offset) = progress[0];
        assert!((100 + 1_380..=100 + 1_400).contains(&offset), "{offset}");
    }

    #[test]
    fn within_the_first_window_progress_is_where_the_partition_began() {
        let (mut positions, now) = run(30);
        assert_eq!(positions.take_progress(now), [(P, 100)]);
        assert_eq!(positions.take_progress(now), [], "stored twice");
    }

    #[test]
    fn an_idle_partition_catches_up() {
        let (mut positions, now) = run(30);
        let later = now + Duration::from_secs(61);
        assert_eq!(positions.take_progress(later), [(P, 400)]);
    }

    #[test]
    fn memory_is_a_mark_a_second() {
        let (mut positions, now) = run(500);
        positions.take_progress(now);
        assert!(positions.partitions[&P].marks.len() <= 70);
    }
}
