//! Recorded ratings in the order of time, with bounded memory.
//!
//! Up to a number of ratings are held back and sorted. When they are full, the older half is let go:
//! what then comes older than that is an error which says how to sort the file. So a file that
//! fits is sorted whatever its order, and one that is longer need only be nearly in order. Ratings of
//! one moment keep the order of the file.

use super::rows::Event;

/// Ratings are out of order by more than can be held back.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "line {line} is {older_ms} ms older than a rating that was replayed already, and --sort-max \
     {held} ratings cannot be held back for it: sort the file by time first (`sort -t, -k4,4n \
     ratings.csv` for a fourth column of Unix seconds), or raise --sort-max"
)]
pub struct OutOfOrder {
    /// The line of the late rating, from 1.
    pub line: u64,
    /// How much older it is, in milliseconds.
    pub older_ms: u64,
    /// How many ratings were held back.
    pub held: usize,
}

/// What became of the file's order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Order {
    /// Ratings that are older than one that stands before them.
    pub late: u64,
    /// The line of the first of these.
    pub first_late_line: Option<u64>,
}

/// Holds ratings back until they can go in the order of time.
#[derive(Debug)]
pub struct Timeline {
    held: Vec<Event>,
    max: usize,
    /// Ratings up to here are gone.
    gone_ms: Option<u64>,
    /// The newest rating so far.
    newest_ms: u64,
    sorted: bool,
    order: Order,
}

impl Timeline {
    /// Returns a timeline that holds at most `max` ratings back, at least 2.
    #[must_use]
    pub fn new(max: usize) -> Self {
        Self {
            held: Vec::new(),
            max: max.max(2),
            gone_ms: None,
            newest_ms: 0,
            sorted: true,
            order: Order::default(),
        }
    }

    /// Takes the rating of `line`; gives those that are old enough to `go`, in order.
    ///
    /// # Errors
    ///
    /// When it is older than one that is gone.
    pub fn push(
        &mut self,
        line: u64,
        event: Event,
        mut go: impl FnMut(Event),
    ) -> Result<(), OutOfOrder> {
        if let Some(gone) = self.gone_ms.filter(|&gone| event.at_ms < gone) {
            let (older_ms, held) = (gone - event.at_ms, self.max);
            return Err(OutOfOrder { line, older_ms, held });
        }
        if event.at_ms < self.newest_ms {
            self.sorted = false;
            self.order.late += 1;
            self.order.first_late_line.get_or_insert(line);
        }
        self.newest_ms = self.newest_ms.max(event.at_ms);
        self.held.push(event);
        if self.held.len() == self.max {
            self.sort();
            let half = self.max / 2;
            self.gone_ms = Some(self.held[half - 1].at_ms);
            self.held.drain(..half).for_each(&mut go);
        }
        Ok(())
    }

    /// Returns the ratings that are held back, in order, and what became of the file's order.
    #[must_use]
    pub fn finish(mut self) -> (Vec<Event>, Order) {
        self.sort();
        (self.held, self.order)
    }

    /// Returns true when ratings are gone: then [`Timeline::finish`] gives only the rest.
    #[must_use]
    pub fn let_some_go(&self) -> bool {
        self.gone_ms.is_some()
    }

    fn sort(&mut self) {
        if !self.sorted {
            // Stable: what has the same time stays as it stood.
            self.held.sort_by_key(|event| event.at_ms);
            self.sorted = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(at_ms: u64, user: u32) -> Event {
        Event { at_ms, score: 3.0, agent: 0, user }
    }

    fn through(max: usize, times: &[u64]) -> Result<(Vec<(u64, u32)>, Order), OutOfOrder> {
        let mut timeline = Timeline::new(max);
        let mut all = Vec::new();
        for (number, &at_ms) in (0..).zip(times) {
            timeline.push(u64::from(number) + 1, event(at_ms, number), |gone| all.push(gone))?;
        }
        let (rest, order) = timeline.finish();
        all.extend(rest);
        Ok((all.iter().map(|event| (event.at_ms, event.user)).collect(), order))
    }

    #[test]
    fn a_file_in_order_of_any_length_goes_through_as_it_is() {
        let times: Vec<u64> = (0..1000).map(|n| n / 3).collect();
        let (all, order) = through(10, &times).unwrap();
        assert_eq!(order, Order::default());
        assert!(all.iter().map(|&(_, n)| n).eq(0..1000));
    }

    #[test]
    fn a_file_that_fits_is_sorted_and_equal_times_keep_their_order() {
        let (all, order) = through(10, &[5, 3, 5, 1, 3]).unwrap();
        assert_eq!(all, [(1, 3), (3, 1), (3, 4), (5, 0), (5, 2)]);
        assert_eq!(order, Order { late: 3, first_late_line: Some(2) });
    }

    #[test]
    fn a_rating_that_comes_after_its_time_is_gone_is_an_error_that_says_how_to_sort() {
        let error = through(4, &[10, 20, 30, 40, 50, 60, 5]).unwrap_err();
        assert_eq!(error, OutOfOrder { line: 7, older_ms: 35, held: 4 });
        assert!(error.to_string().contains("sort -t, -k4,4n"), "{error}");
    }

    proptest! {
        #[test]
        fn whatever_goes_through_is_what_a_stable_sort_of_the_whole_gives(
            steps in proptest::collection::vec(0_u64..40, 0..200), max in 2_usize..80,
        ) {
            // Nearly in order: a slow rise with noise.
            let times: Vec<u64> = (0_u64..).zip(&steps).map(|(n, step)| n * 3 + step).collect();
            let mut expected: Vec<(u64, u32)> = times.iter().copied().zip(0..).collect();
            expected.sort_by_key(|&(at, _)| at);
            match through(max, &times) {
                Ok((all, order)) => {
                    prop_assert_eq!(all, expected);
                    let mut newest = 0;
                    let late = times.iter().filter(|&&at| { let late = at < newest; newest = newest.max(at); late });
                    prop_assert_eq!(order.late, late.count() as u64);
                }
                Err(error) => prop_assert!(error.older_ms > 0 && times.len() >= max),
            }
        }
    }
}
