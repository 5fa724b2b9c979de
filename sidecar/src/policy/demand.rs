//! How much an agent wants: an estimate of the tokens per second it would use without a limit.
//!
//! Counts come as admitted and denied tokens. A refusal is asked again and again by some, so denied
//! tokens count at most as many as were admitted; an agent that is held down then shows only a
//! **lower bound** of its demand. Such a count may raise the estimate and never lowers it: whoever
//! was throttled for its quality is not taken for somebody who wants little.

use serde::{Deserialize, Serialize};

use super::{Asked, Reason, estimator::single};

/// Share of the estimate that a tick replaces, once it has been looked at [`SETTLED`] times; POLICY
/// section 2, the prototype's 0.03.
const SHARE: f64 = 0.03;

/// The same before that, and when a lower bound lies above the estimate; the prototype's 0.15.
const SHARE_FAST: f64 = 0.15;

/// Looks after which an estimate is settled.
const SETTLED: u8 = 30;

/// The largest demand that is believed, tokens per second.
pub const DEMAND_MAX: f64 = 1e9;

/// Ticks that one look counts for at most.
const TICKS_MAX: f64 = 1e4;

/// The demand of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Demand {
    /// Tokens per second.
    rate: f64,
    /// Running share of what was asked that was refused, 0 to 1.
    refused: f32,
    /// How full the bucket was when it was last looked at, 0 to 1.
    level: f32,
    /// Looks so far, up to [`SETTLED`].
    looks: u8,
}

impl Demand {
    /// Returns the demand of an agent nobody has counted yet: what it starts with.
    #[must_use]
    pub fn new(start: f64) -> Self {
        Self { rate: start, refused: 0.0, level: 1.0, looks: 0 }
    }

    /// Returns the estimate D̂, in tokens per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Returns the running share of refused tokens, 0 to 1; refusals counted as in the estimate, so
    /// at most ½.
    #[must_use]
    pub fn refused(&self) -> f64 {
        f64::from(self.refused)
    }

    /// Returns how full the bucket was when it was last looked at, 0 to 1.
    #[must_use]
    pub fn level(&self) -> f64 {
        f64::from(self.level)
    }

    /// Takes in what was asked in `asked.seconds` of ticks of `tick_seconds`.
    ///
    /// D̂ ← (1 − a)·D̂ + a·x with x = (admitted + min(denied, admitted)) / seconds and a = 1 − 0.97^ticks
    /// (0.85 for the first looks); when more was denied than counts, x is a bound: then D̂ moves only
    /// up.
    ///
    /// # Errors
    ///
    /// [`Reason::Asked`] when a number is not finite or negative: nothing is taken in.
    pub fn see(&mut self, asked: Asked, tick_seconds: f64) -> Result<(), Reason> {
        let Asked { admitted, denied, seconds, level } = asked;
        let sound = |number: f64| number.is_finite() && number >= 0.0;
        if ![admitted, denied, seconds, level, tick_seconds].into_iter().all(sound) {
            return Err(Reason::Asked);
        }
        self.level = single(level.min(1.0));
        if seconds <= 0.0 || tick_seconds <= 0.0 {
            return Ok(());
        }
        let counted = denied.min(admitted);
        let seen = ((admitted + counted) / seconds).min(DEMAND_MAX);
        let ticks = (seconds / tick_seconds).min(TICKS_MAX);
        let bound = denied > admitted;
        let fast = self.looks < SETTLED || (bound && seen > self.rate);
        let share = 1.0 - (1.0 - if fast { SHARE_FAST } else { SHARE }).powf(ticks);
        let moved = self.rate + share * (seen - self.rate);
        self.rate = if bound { moved.max(self.rate) } else { moved };
        if admitted + counted > 0.0 {
            let now = counted / (admitted + counted);
            self.refused += single(share * (now - f64::from(self.refused)));
        }
        self.looks = self.looks.saturating_add(1).min(SETTLED);
        Ok(())
    }

    pub(super) fn is_sound(&self) -> bool {
        (0.0..=DEMAND_MAX).contains(&self.rate)
            && (0.0..=1.0).contains(&self.refused)
            && (0.0..=1.0).contains(&self.level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(admitted: f64, denied: f64, seconds: f64) -> Asked {
        Asked { admitted, denied, seconds, level: 0.5 }
    }

    #[test]
    fn the_first_looks_count_fifteen_percent_and_later_ones_three() {
        let mut demand = Demand::new(10.0);
        demand.see(asked(20.0, 0.0, 1.0), 1.0).unwrap();
        assert!((demand.rate() - 11.5).abs() < 1e-9);
        for _ in 0..29 {
            demand.see(asked(0.0, 0.0, 1.0), 1.0).unwrap();
        }
        let settled = demand.rate();
        assert!((settled - 11.5 * 0.85_f64.powi(29)).abs() < 1e-9);
        demand.see(asked(10.0, 0.0, 1.0), 1.0).unwrap();
        assert!((demand.rate() - (0.97 * settled + 0.3)).abs() < 1e-9);
    }

    #[test]
    fn ten_seconds_at_once_weigh_as_much_as_ten_looks() {
        let settled = Demand { looks: SETTLED, ..Demand::new(10.0) };
        let (mut once, mut often) = (settled, settled);
        once.see(asked(50.0, 0.0, 10.0), 1.0).unwrap();
        for _ in 0..10 {
            often.see(asked(5.0, 0.0, 1.0), 1.0).unwrap();
        }
        assert!((once.rate() - often.rate()).abs() < 1e-9);
    }

    #[test]
    fn retrying_in_a_loop_earns_no_more_than_asking_twice() {
        let (mut honest, mut loops) = (Demand::new(1.0), Demand::new(1.0));
        for _ in 0..500 {
            honest.see(asked(5.0, 5.0, 1.0), 1.0).unwrap();
            loops.see(asked(5.0, 1e6, 1.0), 1.0).unwrap();
        }
        assert!((honest.rate() - 10.0).abs() < 1e-3);
        assert!(loops.rate() <= honest.rate() + 1e-3);
        assert!(loops.refused() <= 0.5);
    }

    #[test]
    fn an_agent_that_is_held_down_is_not_taken_for_one_that_wants_little() {
        let mut demand = Demand { looks: SETTLED, ..Demand::new(12.0) };
        for _ in 0..500 {
            demand.see(asked(0.5, 11.5, 1.0), 1.0).unwrap();
        }
        assert_eq!(demand.rate(), 12.0);
        // Let go, it shows that it wants less now.
        for _ in 0..500 {
            demand.see(asked(3.0, 0.0, 1.0), 1.0).unwrap();
        }
        assert!((demand.rate() - 3.0).abs() < 1e-3);
    }

    #[test]
    fn counts_that_are_no_counts_are_refused_and_change_nothing() {
        for broken in [f64::NAN, f64::INFINITY, -1.0] {
            for at in 0..4 {
                let mut numbers = [1.0, 1.0, 1.0, 0.5];
                numbers[at] = broken;
                let [admitted, denied, seconds, level] = numbers;
                let mut demand = Demand::new(3.0);
                let seen = demand.see(Asked { admitted, denied, seconds, level }, 1.0);
                assert_eq!((seen, demand), (Err(Reason::Asked), Demand::new(3.0)));
            }
        }
    }
}
