//! A changepoint mixture: several Gaussian beliefs of different age, each the posterior since the
//! moment at which it supposes that the quality started afresh.
//!
//! Adams & MacKay (2007), "Bayesian Online Changepoint Detection", eq. 3 and 4: at every step the
//! mass of each run grows by its predictive likelihood times 1 − H, and a new run with the prior
//! takes H of everybody's. Here H = 1 − (1 − h)^ticks for the ticks since the last birth, so that
//! what is believed depends on time and not on how often ratings come.
//!
//! Theirs keeps all runs; here at most [`SLOTS`]. **When full, two neighbours in age become one**:
//! the pair whose merging loses least by Runnalls (2007), "Kullback-Leibler Approach to Gaussian
//! Mixture Reduction", the bound B(i, j): ½·\[(wᵢ+wⱼ)·ln vᵢⱼ − wᵢ·ln vᵢ − wⱼ·ln vⱼ\]. The merged one has their
//! mass, mean, variance (moments matched) and mean age. A hypothesis that weighs nothing costs
//! nothing to merge: pruning is the limit of the same rule.
//!
//! Kept in ages from old to young.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

use super::{Belief, EstimatorConfig, gaussian::Gaussian, single};
use crate::policy::Drift;

/// How many hypotheses an agent has at most.
pub const SLOTS: usize = 12;

/// Ratings after which a hypothesis is no longer young: a change older than that is no news.
pub const YOUNG: f32 = 64.0;

/// Ticks without a rating that count towards a change, at most: of an agent that nobody rates for a
/// night 82 % of its standing is left at the default hazard, whatever the clock did.
pub const GAP_TICKS_MAX: f64 = 200.0;

/// Ratings within one tick after which a hypothesis is born before the tick is over.
const CROWD: u8 = 8;

/// Ages and counts of evidence stop here, far above [`YOUNG`] and far below 2²⁴.
const AGE_MAX: f32 = 1e6;

/// The least weight that is kept: nothing, and neither 0 nor subnormal.
const WEIGHT_MIN: f64 = 1e-26;

/// Share of the running mean of mass born per rating that one rating replaces.
const BORN_SHARE: f32 = 0.05;

/// The odds that are reported at most: beyond, the number says nothing.
const ODDS_MAX: f64 = 1e9;

#[derive(Clone, Copy, Debug, PartialEq)]
struct Hypothesis {
    /// Its share of the mass.
    weight: f32,
    known: Gaussian,
    /// Evidence since its birth: ratings, by weight.
    age: f32,
}

impl Hypothesis {
    const NONE: Self = Self { weight: 0.0, known: Gaussian { mean: 0.0, variance: 0.0 }, age: 0.0 };

    fn weight(&self) -> f64 {
        f64::from(self.weight)
    }
}

/// The hypotheses about one agent: [`Mixture::BYTES`] bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Mixture {
    slots: [Hypothesis; SLOTS],
    len: u8,
    /// Ratings since the last birth.
    unborn: u8,
    /// Ticks since the last birth.
    pending: f32,
    /// Evidence since the last drift event.
    since_event: f32,
    /// Running mean of the mass born per rating.
    born: f32,
}

impl Mixture {
    /// Bytes of memory.
    pub const BYTES: usize = size_of::<Self>();

    pub(super) fn new(prior: Belief) -> Self {
        let mut slots = [Hypothesis::NONE; SLOTS];
        slots[0] = Hypothesis { weight: 1.0, known: Gaussian::new(prior), age: 0.0 };
        Self { slots, len: 1, unborn: 0, pending: 0.0, since_event: 0.0, born: 0.0 }
    }

    fn alive(&self) -> &[Hypothesis] {
        &self.slots[..usize::from(self.len)]
    }

    fn alive_mut(&mut self) -> &mut [Hypothesis] {
        &mut self.slots[..usize::from(self.len)]
    }

    /// Returns mean and variance of the whole mixture.
    pub(super) fn belief(&self) -> Belief {
        moments(self.alive()).1
    }

    /// Returns what the mixture says `ticks` after the last rating: by then it may have changed.
    pub(super) fn after(&self, ticks: f64, config: &EstimatorConfig) -> Belief {
        let Belief { mean, variance } = self.belief();
        let fresh = changed(config.hazard, ticks + f64::from(self.pending));
        let apart = config.prior_mean - mean;
        let walked = (variance + config.walk * ticks).min(config.variance_max.max(variance));
        Belief {
            mean: mean + fresh * apart,
            variance: (1.0 - fresh) * walked
                + fresh * config.prior_variance
                + fresh * (1.0 - fresh) * apart * apart,
        }
    }

    /// Returns the odds of a change within the last [`YOUNG`] ratings against none.
    pub(super) fn odds(&self) -> f64 {
        let (young, old) = self.split();
        (moments(young).0 / moments(old).0.max(f64::MIN_POSITIVE)).min(ODDS_MAX)
    }

    /// Learns a rating that came `ticks` after the one before. `weight` is above 0, at most 1.
    pub(super) fn learn(
        &mut self,
        score: f64,
        weight: f64,
        ticks: f64,
        config: &EstimatorConfig,
    ) -> Option<Drift> {
        for hypothesis in self.alive_mut() {
            hypothesis.known.widen(config.walk * ticks, config.variance_max);
        }
        self.give_birth(ticks, config);
        let mean = self.belief().mean;
        let score = mean + (score - mean).clamp(-config.clip, config.clip);
        let evidence = single(weight);
        for hypothesis in self.alive_mut() {
            let likelihood = hypothesis.known.learn(score, config.noise / weight);
            hypothesis.weight = single((hypothesis.weight() * likelihood).max(WEIGHT_MIN));
            hypothesis.age = (hypothesis.age + evidence).min(AGE_MAX);
        }
        self.normalise();
        self.since_event = (self.since_event + evidence).min(AGE_MAX);
        self.event(config)
    }

    /// Adds a hypothesis that everything starts afresh, once a tick (or a crowd of ratings) passed.
    fn give_birth(&mut self, ticks: f64, config: &EstimatorConfig) {
        self.pending = single((f64::from(self.pending) + ticks).min(GAP_TICKS_MAX));
        self.unborn = self.unborn.saturating_add(1);
        let due = self.pending >= 1.0 || (self.unborn >= CROWD && self.pending > 0.0);
        let mass = if due { changed(config.hazard, f64::from(self.pending)) } else { 0.0 };
        self.born += BORN_SHARE * (single(mass) - self.born);
        if mass <= 0.0 {
            return;
        }
        (self.pending, self.unborn) = (0.0, 0);
        if usize::from(self.len) == SLOTS {
            self.merge();
        }
        for hypothesis in self.alive_mut() {
            hypothesis.weight = single((hypothesis.weight() * (1.0 - mass)).max(WEIGHT_MIN));
        }
        let prior = Belief { mean: config.prior_mean, variance: config.prior_variance };
        self.slots[usize::from(self.len)] = Hypothesis {
            weight: single(mass.max(WEIGHT_MIN)),
            known: Gaussian::new(prior),
            age: 0.0,
        };
        self.len += 1;
    }

    /// Makes one of the two neighbours in age that lose least by it.
    fn merge(&mut self) {
        let costs = self.alive().windows(2).map(loss);
        let (at, _) = costs
            .enumerate()
            .min_by(|(_, a), (_, b)| a.total_cmp(b))
            .expect("a full mixture has neighbours");
        let (mass, Belief { mean, variance }) = moments(&self.slots[at..at + 2]);
        let [old, young] = [self.slots[at], self.slots[at + 1]];
        let share = single(old.weight() / mass.max(f64::MIN_POSITIVE));
        self.slots[at] = Hypothesis {
            weight: single(mass.max(WEIGHT_MIN)),
            known: Gaussian { mean: single(mean), variance: single(variance) },
            age: share * old.age + (1.0 - share) * young.age,
        };
        self.slots.copy_within(at + 2.., at + 1);
        self.len -= 1;
        self.slots[usize::from(self.len)] = Hypothesis::NONE;
    }

    fn normalise(&mut self) {
        let total: f64 = self.alive().iter().map(Hypothesis::weight).sum();
        for hypothesis in self.alive_mut() {
            hypothesis.weight = single((hypothesis.weight() / total).max(WEIGHT_MIN));
        }
    }

    /// Returns the hypotheses of a recent change, born since the last event, and the others.
    fn split(&self) -> (&[Hypothesis], &[Hypothesis]) {
        let horizon = YOUNG.min(self.since_event);
        let old = self.alive().partition_point(|one| one.age >= horizon);
        let (old, young) = self.alive().split_at(old);
        (young, old)
    }

    /// Reports a change, when the odds for one are such that chance brings them less often than
    /// once in 1 / `false_alarm` ratings.
    ///
    /// With no change, the odds minus the mass born so far are a martingale (each newborn's mass
    /// times a likelihood ratio of mean 1: the Shiryaev–Roberts statistic; Pollak 1985, "Optimal
    /// Detection of a Change in Distribution"), so that until the odds reach B a mean of
    /// at least B / born ratings pass. Hence B = born / `false_alarm`; windows and the least shift
    /// only make an alarm rarer.
    fn event(&mut self, config: &EstimatorConfig) -> Option<Drift> {
        let (young, old) = self.split();
        if young.is_empty() || old.is_empty() {
            return None;
        }
        let needed = (f64::from(self.born) / config.false_alarm).max(1.0);
        let odds = self.odds();
        if odds < needed {
            return None;
        }
        let (mass, after) = moments(young);
        let (_, before) = moments(old);
        if (after.mean - before.mean).abs() < config.shift_min {
            return None;
        }
        let ratings = young.iter().map(|one| one.weight() * f64::from(one.age)).sum::<f64>() / mass;
        let drift = Drift { before: before.mean, after: after.mean, ratings, evidence: odds };
        self.since_event = 0.0;
        Some(drift)
    }

    #[cfg(test)]
    pub(super) fn mass(&self) -> f64 {
        moments(self.alive()).0
    }

    pub(super) fn is_sound(&self) -> bool {
        let sound = |one: &Hypothesis| {
            (0.0..=1.001).contains(&one.weight)
                && one.known.mean.is_finite()
                && one.known.variance.is_finite()
                && one.known.variance > 0.0
                && (0.0..=AGE_MAX).contains(&one.age)
        };
        (1..=SLOTS).contains(&usize::from(self.len))
            && self.alive().iter().all(sound)
            && [self.pending, self.since_event, self.born].iter().all(|number| number.is_finite())
    }
}

/// Returns the chance of at least one change in `ticks`, of which at most [`GAP_TICKS_MAX`] count:
/// 1 − (1 − h)^ticks.
fn changed(hazard: f64, ticks: f64) -> f64 {
    -(ticks.min(GAP_TICKS_MAX) * (-hazard).ln_1p()).exp_m1()
}

/// Returns mass, mean and variance of some hypotheses together; without mass, mean and variance of
/// nothing in particular.
fn moments(hypotheses: &[Hypothesis]) -> (f64, Belief) {
    let (mut mass, mut first, mut second) = (0.0, 0.0, 0.0);
    for hypothesis in hypotheses {
        let weight = hypothesis.weight();
        let Belief { mean, variance } = hypothesis.known.belief();
        mass += weight;
        first += weight * mean;
        second += weight * (variance + mean * mean);
    }
    let some = mass.max(f64::MIN_POSITIVE);
    let mean = first / some;
    (mass, Belief { mean, variance: (second / some - mean * mean).max(0.0) })
}

/// Returns what merging a pair loses, at most: B(i, j) of Runnalls (2007), for scalars.
fn loss(pair: &[Hypothesis]) -> f64 {
    let (mass, both) = moments(pair);
    let own: f64 = pair.iter().map(|one| one.weight() * f64::from(one.known.variance).ln()).sum();
    0.5 * (mass * both.variance.max(f64::MIN_POSITIVE).ln() - own)
}

/// As text: hypotheses by age, 32 hexadecimal digits each (the bits of weight, mean, variance,
/// age), then pending, since_event, born and the unborn: exact, and half the size of decimals.
impl Serialize for Mixture {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use std::fmt::Write;
        let mut text = String::with_capacity(SLOTS * 32 + 26);
        let numbers = |one: &Hypothesis| [one.weight, one.known.mean, one.known.variance, one.age];
        let rest = [self.pending, self.since_event, self.born];
        for number in self.alive().iter().flat_map(numbers).chain(rest) {
            write!(text, "{:08x}", number.to_bits()).expect("a string takes what it is given");
        }
        write!(text, "{:02x}", self.unborn).expect("a string takes what it is given");
        serializer.serialize_str(&text)
    }
}

impl<'de> Deserialize<'de> for Mixture {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        unpack(&text).ok_or_else(|| D::Error::custom("mixture: not 1 to 12 sound hypotheses"))
    }
}

fn unpack(text: &str) -> Option<Mixture> {
    let hypotheses = text.len().checked_sub(26).filter(|rest| rest % 32 == 0)? / 32;
    if !text.is_ascii() || !(1..=SLOTS).contains(&hypotheses) {
        return None;
    }
    let number = |at: usize| {
        let bits = u32::from_str_radix(text.get(at * 8..at * 8 + 8)?, 16).ok()?;
        Some(f32::from_bits(bits))
    };
    let mut slots = [Hypothesis::NONE; SLOTS];
    for (at, slot) in slots.iter_mut().enumerate().take(hypotheses) {
        let known = Gaussian { mean: number(at * 4 + 1)?, variance: number(at * 4 + 2)? };
        *slot = Hypothesis { weight: number(at * 4)?, known, age: number(at * 4 + 3)? };
    }
    let rest = hypotheses * 4;
    let mixture = Mixture {
        slots,
        len: u8::try_from(hypotheses).ok()?,
        unborn: u8::from_str_radix(text.get(rest * 8 + 24..)?, 16).ok()?,
        pending: number(rest)?,
        since_event: number(rest + 1)?,
        born: number(rest + 2)?,
    };
    mixture.is_sound().then_some(mixture)
}
