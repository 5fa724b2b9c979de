//! How many tokens an agent holds, and how long until it holds enough.
//!
//! Many short waits give what one long wait gives, because nothing is ever rounded. A level may be
//! negative: a cost above the capacity passes when the bucket is full, and leaves debt. New limits
//! may clamp a level down; nothing but time raises one.
//!
//! `store/bucket.lua` computes the same; the contract suite holds the two together.

use super::{CAPACITY_MAX, Limits, MicroTokensPerSecond, Tokens};

/// An amount of tokens in billionths of a token; negative is debt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NanoTokens(pub i64);

/// The largest magnitude a level can have, in nano-tokens: below 2^53.
pub(crate) const MAGNITUDE_MAX: i64 = CAPACITY_MAX as i64 * 1_000_000_000;

/// Counters start over beyond this value, which a double still holds exactly.
const COUNT_MAX: u64 = 9_000_000_000_000_000;

impl NanoTokens {
    /// Returns the whole tokens in this amount, 0 for debt.
    #[must_use]
    pub fn whole(self) -> u64 {
        u64::try_from(self.0 / 1_000_000_000).unwrap_or(0)
    }
}

/// Returns the level after `elapsed_ms`, never above the capacity.
#[must_use]
pub fn refill(level: NanoTokens, limits: &Limits, elapsed_ms: u64) -> NanoTokens {
    let full = limits.capacity().nano().0;
    debug_assert!(level.0 <= full, "a change of limits clamps before anyone refills");
    // Two magnitudes below 2^53 apart; whatever overflows is more than that.
    let missing = u64::try_from(full.saturating_sub(level.0)).unwrap_or(0);
    let gained = limits.refill().micro().saturating_mul(elapsed_ms).min(missing);
    let refilled = level.0.saturating_add_unsigned(gained);
    debug_assert!(refilled >= level.0 && refilled <= full);
    NanoTokens(refilled)
}

/// Returns the milliseconds until `level` reaches `target`, rounded up; `None` when it never will.
#[must_use]
pub fn wait_ms(level: NanoTokens, target: NanoTokens, refill: MicroTokensPerSecond) -> Option<u64> {
    // Two magnitudes below 2^53 apart.
    let missing = u64::try_from(target.0.saturating_sub(level.0)).unwrap_or(0);
    match refill.micro() {
        _ if missing == 0 => Some(0),
        0 => None,
        micro => Some(missing.div_ceil(micro)),
    }
}

/// Returns the milliseconds until the bucket is full, rounded up; `None` when it never will be.
#[must_use]
pub fn full_in_ms(level: NanoTokens, limits: &Limits) -> Option<u64> {
    wait_ms(level, limits.capacity().nano(), limits.refill())
}

/// How far, in milliseconds, a clock may be behind a bucket's last settlement before the bucket follows it: the
/// clocks of a master and of the replica that takes over differ by less.
pub const CLOCK_SLACK_MS: u64 = 1_000;

/// What an agent holds in one bucket, since when, and how it came to that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    /// Tokens held at `at_ms`.
    pub tokens: NanoTokens,
    /// Unix milliseconds of the last settlement; moves backwards only with a clock that was set back by more
    /// than [`CLOCK_SLACK_MS`].
    pub at_ms: u64,
    /// Whole tokens admitted so far; starts over beyond 9 × 10^15.
    pub admitted: u64,
    /// Whole tokens asked for and refused so far; starts over beyond 9 × 10^15.
    pub denied: u64,
    /// The limits `tokens` was computed with.
    pub limits: Limits,
}

impl Level {
    /// Returns a full bucket at `now_ms`: what an agent holds before its first request.
    #[must_use]
    pub fn full(limits: Limits, now_ms: u64) -> Self {
        let tokens = limits.capacity().nano();
        Self { tokens, at_ms: now_ms, admitted: 0, denied: 0, limits }
    }

    /// Settles the time since the last settlement, then takes over `limits`.
    ///
    /// Time passed under the old limits is paid at the old ones; the new ones may clamp the level
    /// down, and never raise it. A clock that was set back gives nothing and takes nothing; time counts from where
    /// it is now, or nothing would refill until it is where it was.
    pub fn settle(&mut self, limits: Limits, now_ms: u64) {
        if now_ms > self.at_ms {
            self.tokens = refill(self.tokens, &self.limits, now_ms - self.at_ms);
            self.at_ms = now_ms;
        } else if self.at_ms - now_ms > CLOCK_SLACK_MS {
            self.at_ms = now_ms;
        }
        if limits != self.limits {
            self.tokens = self.tokens.min(limits.capacity().nano());
            self.limits = limits;
        }
    }

    /// Returns the level at which `cost` passes: the cost itself, or a full bucket when the cost is
    /// larger than that.
    #[must_use]
    pub fn needed(&self, cost: Tokens) -> NanoTokens {
        cost.nano().min(self.limits.capacity().nano())
    }

    /// Returns true when `cost` may be taken now. A bucket of capacity 0 lets no cost above 0 pass.
    #[must_use]
    pub fn affords(&self, cost: Tokens) -> bool {
        if cost == Tokens::ZERO {
            return true;
        }
        self.limits.capacity() > Tokens::ZERO && self.tokens >= self.needed(cost)
    }

    /// Returns the milliseconds until `cost` passes; `None` when it never will at these limits.
    #[must_use]
    pub fn wait_ms(&self, cost: Tokens) -> Option<u64> {
        if self.affords(cost) {
            return Some(0);
        }
        if self.limits.capacity() == Tokens::ZERO {
            return None;
        }
        wait_ms(self.tokens, self.needed(cost), self.limits.refill())
    }

    /// Takes `cost` and counts it as admitted. The caller has asked [`Level::affords`].
    pub fn take(&mut self, cost: Tokens) {
        debug_assert!(self.affords(cost), "taken without asking");
        self.tokens = NanoTokens(self.tokens.0 - cost.nano().0);
        debug_assert!(self.tokens.0 >= -MAGNITUDE_MAX);
        self.admitted = count(self.admitted, cost.get());
    }

    /// Gives `cost` back and takes it off the count of admitted tokens; never fills above capacity.
    pub fn give_back(&mut self, cost: Tokens) {
        let full = self.limits.capacity().nano();
        debug_assert!(self.tokens <= full, "settled before anything is given back");
        self.tokens = NanoTokens(self.tokens.0 + cost.nano().0).min(full);
        self.admitted = self.admitted.saturating_sub(cost.get());
    }

    /// Takes `cost` whether or not it is there, and counts it as admitted: what is missing is debt,
    /// at most 9 × 10^15 nano-tokens of it.
    pub fn take_more(&mut self, cost: Tokens) {
        self.tokens = NanoTokens((self.tokens.0 - cost.nano().0).max(-MAGNITUDE_MAX));
        self.admitted = count(self.admitted, cost.get());
    }

    /// Returns how many times `cost` can be taken, at most `most`, while half of the tokens stay.
    #[must_use]
    pub fn spare(&self, cost: Tokens, most: u32) -> u32 {
        let each = cost.nano().0 * 2;
        if each == 0 {
            return most;
        }
        u32::try_from((self.tokens.0 / each).max(0)).map_or(most, |times| times.min(most))
    }

    /// Takes `cost` as often as [`Level::spare`] said, and counts it as admitted.
    pub fn take_ahead(&mut self, cost: Tokens, times: u32) {
        debug_assert!(times <= self.spare(cost, times), "taken ahead without asking");
        self.tokens.0 -= cost.nano().0 * i64::from(times);
        self.admitted = count(self.admitted, cost.get() * u64::from(times));
    }

    /// Counts `cost` as refused.
    pub fn refuse(&mut self, cost: Tokens) {
        self.denied = count(self.denied, cost.get());
    }
}

fn count(so_far: u64, more: u64) -> u64 {
    let sum = so_far + more;
    if sum > COUNT_MAX { more } else { sum }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::bucket::REFILL_RATE_MAX;

    fn limits(capacity: u64, micro: u64) -> Limits {
        Limits::new(Tokens::new(capacity).unwrap(), MicroTokensPerSecond::new(micro).unwrap())
    }

    /// Small and extreme limits alike.
    fn any_limits() -> impl Strategy<Value = Limits> {
        let capacity = prop_oneof![0..100u64, 0..=CAPACITY_MAX, Just(CAPACITY_MAX)];
        let micro = prop_oneof![
            0..50_000_000u64,
            0..=REFILL_RATE_MAX * 1_000_000,
            Just(REFILL_RATE_MAX * 1_000_000),
            Just(0)
        ];
        (capacity, micro).prop_map(|(capacity, micro)| limits(capacity, micro))
    }

    fn any_wait() -> impl Strategy<Value = u64> {
        prop_oneof![0..10_000u64, any::<u64>(), Just(u64::MAX)]
    }

    fn any_cost() -> impl Strategy<Value = Tokens> {
        prop_oneof![0..50u64, 0..=CAPACITY_MAX].prop_map(|cost| Tokens::new(cost).unwrap())
    }

    proptest! {
        #[test]
        fn many_short_waits_refill_as_much_as_one_long_wait(
            limits in any_limits(), start in -MAGNITUDE_MAX..=MAGNITUDE_MAX,
            waits in prop::collection::vec(0..1u64 << 40, 1..20),
        ) {
            let start = NanoTokens(start.min(limits.capacity().nano().0));
            let stepped = waits.iter().fold(start, |level, &wait| refill(level, &limits, wait));
            prop_assert_eq!(stepped, refill(start, &limits, waits.iter().sum()));
        }

        #[test]
        fn a_level_never_exceeds_its_capacity(
            first in any_limits(), then in any_limits(), wait in any_wait(), cost in any_cost(),
        ) {
            let mut level = Level::full(first, 0);
            if level.affords(cost) { level.take(cost); }
            level.settle(then, wait);
            prop_assert!(level.tokens <= then.capacity().nano());
            level.settle(then, u64::MAX);
            prop_assert!(level.tokens <= then.capacity().nano());
            prop_assert!(level.tokens.0 >= -MAGNITUDE_MAX);
        }

        #[test]
        fn a_change_of_limits_never_mints(
            first in any_limits(), then in any_limits(), wait in any_wait(), cost in any_cost(),
        ) {
            let mut changed = Level::full(first, 0);
            if changed.affords(cost) { changed.take(cost); }
            let mut unchanged = changed;
            changed.settle(then, wait);
            unchanged.settle(first, wait);
            prop_assert!(changed.tokens <= unchanged.tokens);
        }

        #[test]
        fn waiting_exactly_as_told_is_enough_and_one_millisecond_less_is_not(
            limits in any_limits(), spent in any_cost(), cost in any_cost(),
        ) {
            let mut level = Level::full(limits, 0);
            if level.affords(spent) { level.take(spent); }
            match level.wait_ms(cost) {
                None => { level.settle(limits, u64::MAX); prop_assert!(!level.affords(cost)); }
                Some(0) => prop_assert!(level.affords(cost)),
                Some(wait) => {
                    let mut early = level;
                    early.settle(limits, wait - 1);
                    prop_assert!(!early.affords(cost));
                    level.settle(limits, wait);
                    prop_assert!(level.affords(cost));
                }
            }
        }

        #[test]
        fn taking_ahead_leaves_half_and_could_not_take_one_more(
            limits in any_limits(), cost in any_cost(), most in any::<u32>(),
        ) {
            let mut level = Level::full(limits, 0);
            let half = (level.tokens.0 + 1) / 2;
            let times = level.spare(cost, most);
            prop_assume!(cost > Tokens::ZERO);
            level.take_ahead(cost, times);
            prop_assert!(level.tokens.0 >= half && times <= most);
            prop_assert!(times == most || level.tokens.0 - cost.nano().0 < half);
        }

        #[test]
        fn a_clock_that_goes_back_gives_nothing_and_takes_nothing(limits in any_limits(), now in 1..1u64 << 42) {
            let mut level = Level::full(limits, now);
            if level.affords(Tokens::ONE) { level.take(Tokens::ONE); }
            let before = level;
            level.settle(limits, now - 1);
            prop_assert_eq!(level, before);
            level.settle(limits, now.saturating_sub(CLOCK_SLACK_MS));
            prop_assert_eq!(level, before);
        }

        #[test]
        fn after_a_clock_was_set_back_time_counts_from_where_it_is(
            limits in any_limits(), now in 1u64 << 33..1 << 42, back in CLOCK_SLACK_MS + 1..1 << 32, passed in 0..1u64 << 32,
        ) {
            let mut level = Level::full(limits, now);
            if level.affords(Tokens::ONE) { level.take(Tokens::ONE); }
            let before = level;
            level.settle(limits, now - back);
            prop_assert_eq!(level, Level { at_ms: now - back, ..before });
            level.settle(limits, now - back + passed);
            prop_assert_eq!(level.tokens, refill(before.tokens, &limits, passed));
        }
    }

    #[test]
    fn a_caller_faster_than_the_refill_still_averages_the_refill_rate() {
        // 3 tokens a second, asked every 7 ms for 100 s. The bucket holds two, so that what refills
        // between two questions is never cut off: 300 refilled and 2 from the start.
        let limits = limits(2, 3_000_000);
        let mut level = Level::full(limits, 0);
        let mut admitted = 0;
        for now_ms in (0..=100_000).step_by(7) {
            level.settle(limits, now_ms);
            if level.affords(Tokens::ONE) {
                level.take(Tokens::ONE);
                admitted += 1;
            } else {
                level.refuse(Tokens::ONE);
            }
        }
        assert!((301..=302).contains(&admitted), "{admitted}");
    }

    #[test]
    fn a_cost_above_the_capacity_passes_when_full_and_leaves_debt() {
        let limits = limits(10, 1_000_000);
        let mut level = Level::full(limits, 0);
        let cost = Tokens::new(25).unwrap();
        assert!(level.affords(cost));
        level.take(cost);
        assert_eq!(level.tokens, NanoTokens(-15_000_000_000));
        assert_eq!(level.wait_ms(Tokens::ONE), Some(16_000));
        assert_eq!(level.wait_ms(cost), Some(25_000));
    }

    #[test]
    fn a_bucket_of_nothing_lets_nothing_pass() {
        let level = Level::full(limits(0, 1_000_000), 0);
        assert!(!level.affords(Tokens::ONE));
        assert!(level.affords(Tokens::ZERO));
        assert_eq!(level.wait_ms(Tokens::ONE), None);
    }

    #[test]
    fn a_counter_that_would_lose_exactness_starts_over() {
        assert_eq!(count(COUNT_MAX, 1), 1);
        assert_eq!(count(COUNT_MAX - 1, 1), COUNT_MAX);
    }
}
