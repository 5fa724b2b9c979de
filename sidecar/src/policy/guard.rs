//! The guardrails, outside every policy: whatever a policy proposes, an agent's rate stays within its
//! bounds and moves by at most a step in a tick.
//!
//! In this order, the first that applies decides: an operator's override, an operator's freeze, too
//! little evidence, a state that gives no number (the rate stays), a proposal that is no number or a
//! mode that wants none (the base law), the step, the bounds. **The bounds are hard**: a rate that
//! an operator set outside them comes back within them as soon as a policy moves it, whatever the
//! step. The least rate is the floor that nobody falls below.

use serde::{Deserialize, Serialize};
use tower_merit::bucket::{Limits, REFILL_RATE_MAX};

use super::{Burst, Reason};

/// Whether policies decide.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// They do.
    #[default]
    Live,
    /// They decide and are logged; the base law is applied.
    Shadow,
    /// The kill switch: they are not asked; the base law is applied.
    Base,
    /// No rate moves.
    Frozen,
}

/// What the guardrails are set to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GuardConfig {
    /// The least rate, in tokens per second: the dearest route must stay callable.
    pub r_min: f64,
    /// The largest rate, in tokens per second.
    pub r_max: f64,
    /// The largest change in a tick, as a share of the rate, 0 to 1.
    pub step: f64,
    /// And this many tokens per second on top, so that a small rate moves at all.
    pub slack: f64,
    /// Evidence (ratings, by weight) before the first move.
    pub evidence_min: f64,
    /// Whether policies decide.
    pub mode: Mode,
}

/// What an operator did to one agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Nothing.
    #[default]
    None,
    /// Its rate stays as it is.
    Frozen,
    /// Its rate is this many tokens per second.
    Override(f64),
}

impl Hold {
    /// Returns true when nothing was done.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Returns its name, as the admin listener says it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Frozen => "frozen",
            Self::Override(_) => "override",
        }
    }
}

/// One agent's rate, and how far it may move.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Track {
    rate: f64,
    burst: Burst,
    /// The rate at the start of the window.
    anchor: f64,
    /// When the window began, in the agent's own time: Unix milliseconds of its last rating plus what
    /// ticks counted since.
    window_ms: u64,
    now_ms: u64,
    /// From where a clock was set back, at the furthest.
    #[serde(default, skip_serializing_if = "is_zero")]
    high_ms: u64,
    #[serde(default)]
    hold: Hold,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde asks")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A clock that went back by more than this was set: time goes on from there.
const BACK_MAX_MS: u64 = 60_000;

impl Track {
    /// Returns the track of an agent that starts from `limits`.
    #[must_use]
    pub fn new(limits: Limits, burst: Burst) -> Self {
        let rate = limits.refill().tokens();
        let (window_ms, now_ms, high_ms) = (0, 0, 0);
        Self { rate, burst, anchor: rate, window_ms, now_ms, high_ms, hold: Hold::None }
    }

    /// Takes over an operator's limits: a new rate, from which it goes on. A freeze stays, an
    /// override ends.
    pub fn adopt(&mut self, limits: Limits) {
        self.rate = limits.refill().tokens();
        self.anchor = self.rate;
        self.burst = Burst::of(limits);
        if let Hold::Override(_) = self.hold {
            self.hold = Hold::None;
        }
    }

    /// Returns the rate in force, tokens per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate
    }

    /// Returns how the capacity follows the rate.
    #[must_use]
    pub fn burst(&self) -> Burst {
        self.burst
    }

    /// Returns what an operator did.
    #[must_use]
    pub fn hold(&self) -> Hold {
        self.hold
    }

    /// Freezes, overrides or lets go; in force from the next decision.
    pub fn set_hold(&mut self, hold: Hold) {
        self.hold = hold;
    }

    /// Notes that it is `at_ms`. A rating that is late by up to a minute moves no time; a clock that
    /// was set back further is believed, without room for another step, and so is one that returns to where it was
    /// set back from: of two clocks that disagree one gives room.
    pub fn at(&mut self, at_ms: u64, tick_ms: u64) {
        let (back, ahead) = (self.now_ms.saturating_sub(at_ms), at_ms.saturating_sub(self.now_ms));
        if back > BACK_MAX_MS {
            self.high_ms = self.high_ms.max(self.now_ms);
        }
        if back > BACK_MAX_MS
            || (ahead > BACK_MAX_MS && at_ms < self.high_ms.saturating_add(tick_ms))
        {
            (self.now_ms, self.window_ms) = (at_ms, at_ms);
            return;
        }
        self.now_ms = self.now_ms.max(at_ms);
        self.open_window(tick_ms);
    }

    /// Notes that `seconds` passed, whatever ratings told of them before: time runs ahead of the clock by what they did, and
    /// a rating with the tick after it has room for two steps.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
    pub fn passed(&mut self, seconds: f64, tick_ms: u64) {
        self.now_ms = self.now_ms.saturating_add((seconds * 1e3).round() as u64);
        self.open_window(tick_ms);
    }

    fn open_window(&mut self, tick_ms: u64) {
        if self.now_ms - self.window_ms >= tick_ms.max(1) {
            self.window_ms = self.now_ms;
            self.anchor = self.rate;
        }
    }

    /// Starts again from `rate`, with what an operator did to it.
    pub(super) fn restart(&mut self, rate: f64) {
        (self.rate, self.anchor) = (rate, rate);
        (self.window_ms, self.now_ms, self.high_ms) = (0, 0, 0);
    }

    #[cfg(test)]
    pub(super) fn poisoned(self) -> Self {
        Self { anchor: f64::NAN, ..self }
    }

    pub(super) fn is_sound(&self) -> bool {
        #[allow(clippy::cast_precision_loss, reason = "9 × 10^6 is exact in f64")]
        let most = REFILL_RATE_MAX as f64;
        let sound = |rate: f64| (0.0..=most).contains(&rate);
        sound(self.rate) && sound(self.anchor) && self.window_ms <= self.now_ms
    }
}

impl GuardConfig {
    /// Moves the agent's rate towards `proposal` (towards `base` when the proposal is not to be
    /// followed), as far as it may, and returns why it was not followed, if so.
    ///
    /// `evidence` is what is known of the agent: ratings, by weight.
    pub fn apply(
        &self,
        track: &mut Track,
        proposal: f64,
        base: f64,
        evidence: f64,
    ) -> Option<Reason> {
        if let Hold::Override(rate) = track.hold
            && rate.is_finite()
        {
            track.rate = rate.clamp(self.r_min, self.r_max);
            track.anchor = track.rate;
            return Some(Reason::Override);
        }
        if self.mode == Mode::Frozen || track.hold == Hold::Frozen {
            return Some(Reason::Frozen);
        }
        // What is no number is no evidence.
        if evidence.is_nan() || evidence < self.evidence_min {
            return Some(Reason::Evidence);
        }
        if !base.is_finite() {
            return Some(Reason::State);
        }
        let (target, held) = match self.mode {
            Mode::Shadow => (base, Some(Reason::Shadow)),
            Mode::Base => (base, Some(Reason::Killed)),
            _ if !proposal.is_finite() => (base, Some(Reason::Action)),
            _ => (proposal, None),
        };
        let low = track.anchor * (1.0 - self.step) - self.slack;
        let high = track.anchor * (1.0 + self.step) + self.slack;
        track.rate = target.clamp(low, high).clamp(self.r_min, self.r_max);
        held
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUARD: GuardConfig = GuardConfig {
        r_min: 0.5,
        r_max: 40.0,
        step: 0.25,
        slack: 0.05,
        evidence_min: 1.0,
        mode: Mode::Live,
    };

    fn track(rate: f64) -> Track {
        let limits = Limits::per_second(rate, 40).unwrap();
        Track::new(limits, Burst::of(limits))
    }

    #[test]
    fn a_rate_moves_by_a_step_in_a_tick_however_often_it_is_asked() {
        let mut track = track(20.0);
        for at_ms in 5_000..5_999 {
            track.at(at_ms, 1_000);
            assert_eq!(GUARD.apply(&mut track, 0.5, 0.5, 9.0), None);
        }
        assert_eq!(track.rate(), 20.0 * 0.75 - 0.05);
        track.at(6_000, 1_000);
        GUARD.apply(&mut track, 0.5, 0.5, 9.0);
        assert_eq!(track.rate(), 14.95 * 0.75 - 0.05);
    }

    #[test]
    fn the_bounds_are_harder_than_the_step() {
        for (start, proposal, expected) in
            [(100.0, 100.0, 40.0), (0.1, 0.0, 0.5), (0.6, 0.0, 0.5), (39.0, 1e300, 40.0)]
        {
            let mut track = track(start);
            GUARD.apply(&mut track, proposal, proposal, 9.0);
            assert_eq!(track.rate(), expected, "from {start} to {proposal}");
        }
    }

    #[test]
    fn every_guardrail_names_itself_and_does_what_it_says() {
        let cases = [
            (Mode::Live, Hold::Override(3.0), 9.0, 22.0, Reason::Override, 3.0),
            (Mode::Live, Hold::Frozen, 9.0, 22.0, Reason::Frozen, 20.0),
            (Mode::Frozen, Hold::None, 9.0, 22.0, Reason::Frozen, 20.0),
            (Mode::Live, Hold::None, 0.9, 22.0, Reason::Evidence, 20.0),
            (Mode::Live, Hold::None, f64::NAN, 22.0, Reason::Evidence, 20.0),
            (Mode::Live, Hold::None, 9.0, f64::NAN, Reason::Action, 18.0),
            (Mode::Live, Hold::None, 9.0, f64::INFINITY, Reason::Action, 18.0),
            (Mode::Shadow, Hold::None, 9.0, 22.0, Reason::Shadow, 18.0),
            (Mode::Base, Hold::None, 9.0, 22.0, Reason::Killed, 18.0),
        ];
        for (mode, hold, evidence, proposal, reason, rate) in cases {
            let mut track = track(20.0);
            track.set_hold(hold);
            let held = GuardConfig { mode, ..GUARD }.apply(&mut track, proposal, 18.0, evidence);
            assert_eq!((held, track.rate()), (Some(reason), rate));
        }
        let mut unknown = track(20.0);
        let held = GUARD.apply(&mut unknown, 22.0, f64::NAN, 9.0);
        assert_eq!((held, unknown.rate()), (Some(Reason::State), 20.0));
    }

    #[test]
    fn an_override_ends_when_the_operator_sets_limits_and_a_freeze_does_not() {
        let mut track = track(20.0);
        track.set_hold(Hold::Override(3.0));
        track.adopt(Limits::per_second(8.0, 16).unwrap());
        assert_eq!((track.hold(), track.rate()), (Hold::None, 8.0));
        track.set_hold(Hold::Frozen);
        track.adopt(Limits::per_second(9.0, 16).unwrap());
        assert_eq!(track.hold(), Hold::Frozen);
    }

    #[test]
    fn two_clocks_that_disagree_give_no_more_steps_than_one() {
        let (start, apart) = (1_000_000_000, BACK_MAX_MS + 1_000);
        let mut track = track(20.0);
        let mut rates = Vec::new();
        // Ratings by turns of two nodes, ten milliseconds from one to the next.
        for (number, turn) in (0..20_u64).enumerate() {
            let clock = if number % 2 == 0 { start + apart } else { start };
            track.at(clock + turn * 10, 1_000);
            GUARD.apply(&mut track, 0.5, 0.5, 9.0);
            rates.push(track.rate());
        }
        assert_eq!(rates, [14.95; 20]);
        // And a step a tick from then on, as long as they go on so.
        for turn in 20..220_u64 {
            track.at(start + apart + turn * 10, 1_000);
            GUARD.apply(&mut track, 0.5, 0.5, 9.0);
            track.at(start + turn * 10, 1_000);
            GUARD.apply(&mut track, 0.5, 0.5, 9.0);
        }
        assert!(track.rate() > 14.95 * 0.75_f64.powi(3) - 0.5, "{}", track.rate());
    }

    #[test]
    fn a_clock_that_jumps_gives_one_step_and_never_two() {
        let start = 1_000_000_000;
        let mut track = track(20.0);
        track.at(start, 1_000);
        let mut rates = Vec::new();
        // A year ahead, then back, then on: the year is one window, going back opens none.
        for at_ms in [start + 31_536_000_000, start + 10, start + 20, start + 30] {
            track.at(at_ms, 1_000);
            GUARD.apply(&mut track, 40.0, 40.0, 9.0);
            rates.push(track.rate());
        }
        assert_eq!(rates, [25.05; 4]);
        track.at(start + 1_010, 1_000);
        GUARD.apply(&mut track, 40.0, 40.0, 9.0);
        assert_eq!(track.rate(), 25.05 * 1.25 + 0.05);
    }
}
