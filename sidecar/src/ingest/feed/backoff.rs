//! How long to wait before the next try: twice as long each time, up to a bound, and partly by chance.
//!
//! Half of each wait is certain, half is drawn: clients that lost one server together do not come
//! back together.

use std::time::Duration;

/// Waits that grow from `least` to `most`.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    least: Duration,
    most: Duration,
    tries: u32,
}

impl Backoff {
    pub(super) fn new(least: Duration, most: Duration) -> Self {
        debug_assert!(least <= most);
        Self { least, most, tries: 0 }
    }

    /// Returns the next wait. `random` is in [0, 1).
    pub(super) fn next(&mut self, random: f64) -> Duration {
        debug_assert!((0.0..1.0).contains(&random));
        let doubled = self.least.saturating_mul(1_u32.checked_shl(self.tries).unwrap_or(u32::MAX));
        self.tries = self.tries.saturating_add(1).min(31);
        let longest = doubled.min(self.most);
        longest.mul_f64(0.5 + 0.5 * random)
    }

    /// Returns the longest wait, and goes on from there: for whoever said that trying again is no use.
    pub(super) fn longest(&mut self, random: f64) -> Duration {
        self.tries = 31;
        self.next(random)
    }

    /// Begins anew, after something worked.
    pub(super) fn reset(&mut self) {
        self.tries = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: Duration = Duration::from_millis(250);
    const MOST: Duration = Duration::from_secs(30);

    #[test]
    fn waits_double_up_to_the_bound_and_begin_anew() {
        let mut backoff = Backoff::new(LEAST, MOST);
        let waits: Vec<u128> = (0..9).map(|_| backoff.next(0.0).as_millis()).collect();
        assert_eq!(waits, [125, 250, 500, 1000, 2000, 4000, 8000, 15_000, 15_000]);
        backoff.reset();
        assert_eq!(backoff.next(0.0), LEAST / 2);
        assert_eq!(backoff.longest(0.0), MOST / 2);
    }

    #[test]
    fn a_wait_is_between_half_of_its_longest_and_all_of_it_however_often_it_was_tried() {
        for random in [0.0, 0.25, 0.999] {
            let mut backoff = Backoff::new(LEAST, MOST);
            for _ in 0..100 {
                let wait = backoff.next(random);
                assert!((LEAST / 2..=MOST).contains(&wait), "{wait:?}");
            }
        }
    }
}
