//! What may be sent now, and what is finished: pure bookkeeping of the ratings on their way.
//!
//! 1. At most one rating of a key is out at a time, and they go out in the order in which they came:
//!    however often one is repeated, no later one of its agent overtakes it.
//! 2. Ratings of different keys go out in the order in which they may.
//! 3. The position moves past a rating when it and all that came before it are finished.

use std::collections::{HashMap, VecDeque};

/// Ratings that wait for their turn, by key.
#[derive(Debug)]
pub(super) struct Turns<T> {
    /// Of each key that has one ready or out, those that wait behind it.
    behind: HashMap<Box<str>, VecDeque<T>>,
    ready: VecDeque<T>,
}

impl<T> Turns<T> {
    pub(super) fn new() -> Self {
        Self { behind: HashMap::new(), ready: VecDeque::new() }
    }

    /// Adds the latest rating of `key`.
    pub(super) fn push(&mut self, key: &str, item: T) {
        match self.behind.get_mut(key) {
            Some(behind) => behind.push_back(item),
            None => {
                self.behind.insert(key.into(), VecDeque::new());
                self.ready.push_back(item);
            }
        }
    }

    /// Takes the next one that may go out; tell [`Turns::finished`] when it is.
    pub(super) fn next(&mut self) -> Option<T> {
        self.ready.pop_front()
    }

    /// Notes that the rating of `key` that was out is finished.
    pub(super) fn finished(&mut self, key: &str) {
        match self.behind.get_mut(key).map(VecDeque::pop_front) {
            Some(Some(next)) => self.ready.push_back(next),
            Some(None) => {
                self.behind.remove(key);
            }
            None => debug_assert!(false, "what is finished was out"),
        }
    }
}

/// The numbers of ratings that are not finished yet, each with when it came.
#[derive(Debug)]
pub(super) struct Position {
    first: u64,
    window: VecDeque<(u64, bool)>,
    unfinished: usize,
}

impl Position {
    /// Begins at the rating of number `first`.
    pub(super) fn new(first: u64) -> Self {
        Self { first, window: VecDeque::new(), unfinished: 0 }
    }

    /// Adds the next rating, which came at `received_ms` (Unix milliseconds); returns its number.
    pub(super) fn begun(&mut self, received_ms: u64) -> u64 {
        self.window.push_back((received_ms, false));
        self.unfinished += 1;
        self.first + self.window.len() as u64 - 1
    }

    /// Passes over the numbers before `number`, which nobody has: the next rating gets it.
    pub(super) fn skip_to(&mut self, number: u64) {
        let next = self.first + self.window.len() as u64;
        debug_assert!(number >= next, "numbers grow");
        if self.window.is_empty() {
            self.first = number.max(next);
            return;
        }
        self.window.extend((next..number).map(|_| (0, true)));
    }

    /// Notes that rating `number` is finished; returns by how many the position moved.
    pub(super) fn finished(&mut self, number: u64) -> u64 {
        let index = number.checked_sub(self.first).and_then(|index| usize::try_from(index).ok());
        if let Some((_, finished)) = index.and_then(|index| self.window.get_mut(index)) {
            self.unfinished -= usize::from(!*finished);
            *finished = true;
        }
        let before = self.first;
        while let Some((_, true)) = self.window.front() {
            self.window.pop_front();
            self.first += 1;
        }
        self.first - before
    }

    /// Returns the number of the first rating that is not finished.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Returns how many ratings are in the window between the first unfinished one and the last.
    pub(super) fn len(&self) -> usize {
        self.window.len()
    }

    /// Returns how many of them are not finished.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Returns when the oldest unfinished rating came, in Unix milliseconds.
    pub(super) fn oldest_ms(&self) -> Option<u64> {
        self.window.front().map(|(received_ms, _)| *received_ms)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_position_waits_for_the_oldest_unfinished_one() {
        let mut position = Position::new(7);
        assert_eq!([position.begun(10), position.begun(20), position.begun(30)], [7, 8, 9]);
        assert_eq!(
            (position.finished(8), position.first(), position.oldest_ms()),
            (0, 7, Some(10))
        );
        assert_eq!(
            (position.finished(7), position.first(), position.oldest_ms()),
            (2, 9, Some(30))
        );
        assert_eq!((position.len(), position.unfinished()), (1, 1));
        assert_eq!((position.finished(9), position.first(), position.oldest_ms()), (1, 10, None));
        assert_eq!((position.len(), position.unfinished()), (0, 0));
    }

    #[test]
    fn numbers_that_nobody_has_are_passed_over() {
        let mut position = Position::new(7);
        position.skip_to(9);
        assert_eq!((position.begun(10), position.first()), (9, 9));
        position.skip_to(10);
        assert_eq!(position.begun(20), 10);
        position.skip_to(14);
        assert_eq!(position.begun(30), 14);
        assert_eq!((position.finished(14), position.first()), (0, 9));
        assert_eq!((position.finished(9), position.finished(10)), (1, 5));
        assert_eq!((position.first(), position.len()), (15, 0));
    }

    proptest! {
        /// Whatever finishes when: each key goes out in order, one at a time, and all go out.
        #[test]
        fn no_rating_overtakes_another_of_its_key(
            keys in prop::collection::vec(0_u8..5, 1..200),
            choices in prop::collection::vec((any::<bool>(), 0_usize..8), 400..800),
        ) {
            let (mut turns, mut position) = (Turns::new(), Position::new(0));
            let mut coming = keys.iter().enumerate();
            let mut out: Vec<(String, u64)> = Vec::new();
            let mut went: BTreeMap<String, Vec<u64>> = BTreeMap::new();
            let mut finished = BTreeSet::new();
            for (push, which) in choices.into_iter().chain(std::iter::repeat_n((false, 0), 1000)) {
                if let (true, Some((_, key))) = (push, coming.next()) {
                    let number = position.begun(0);
                    turns.push(&key.to_string(), (key.to_string(), number));
                }
                if out.len() < 4 && let Some((key, number)) = turns.next() {
                    prop_assert!(out.iter().all(|(other, _)| *other != key));
                    went.entry(key.clone()).or_default().push(number);
                    out.push((key, number));
                } else if !out.is_empty() {
                    let (key, number) = out.remove(which % out.len());
                    turns.finished(&key);
                    finished.insert(number);
                    position.finished(number);
                    let expected = (0..).find(|n| !finished.contains(n));
                    prop_assert_eq!(Some(position.first()), expected);
                }
            }
            prop_assert!(out.is_empty() && turns.behind.is_empty() && turns.ready.is_empty());
            for numbers in went.values() {
                prop_assert!(numbers.is_sorted());
            }
        }
    }
}
