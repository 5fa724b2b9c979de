//! What is known of an agent's quality: a mean and a variance, from ratings that are noisy, unequally
//! trusted, and about something that changes.
//!
//! 1. The quality walks: between ratings the variance grows by `walk` a tick.
//! 2. A rating of weight w is one seen through noise of variance R/w; its distance from the mean is
//!    clipped, so that no single rating is worth more than `clip` points.
//! 3. Users' expectations jump. [`Mixture`] keeps a hypothesis for every recent moment at which they
//!    may have; the plain filter beside [`PageHinkley`] waits for an alarm, then believes itself less.
//! 4. Time comes with the ratings: the same ratings give the same mean and variance, bit for bit,
//!    however often anybody looked in between.

mod gaussian;
mod mixture;

pub use mixture::{GAP_TICKS_MAX, Mixture, SLOTS, YOUNG};

use serde::{Deserialize, Serialize};

use super::{
    Drift, Reason,
    drift::{PageHinkley, PageHinkleyConfig},
};
use crate::rating::{SCORE_MAX, SCORE_MIN};
use gaussian::Gaussian;

/// A mean and a variance of an agent's quality, on the scale of scores.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Belief {
    /// Mean, 1 to 5.
    pub mean: f64,
    /// Variance, in squared points; above 0.
    pub variance: f64,
}

impl Belief {
    fn is_sound(self) -> bool {
        (SCORE_MIN..=SCORE_MAX).contains(&self.mean)
            && self.variance.is_finite()
            && self.variance > 0.0
    }
}

/// The estimators there are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EstimatorKind {
    /// A changepoint mixture: [`Mixture`].
    #[default]
    Changepoint,
    /// One Kalman filter with a [`PageHinkley`] alarm.
    Kalman,
}

/// What an estimator is tuned by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EstimatorConfig {
    /// Which estimator; the changepoint mixture.
    pub kind: EstimatorKind,
    /// Mean quality of an agent that nobody rated; 3.5.
    pub prior_mean: f64,
    /// Its variance; 0.6.
    pub prior_variance: f64,
    /// Variance of one rating about the quality; 1.2: 1 of taste, 0.2 of users' leanings and whole
    /// points.
    pub noise: f64,
    /// How much the variance grows in a tick; 3·10⁻⁵ for the mixture, 1.5·10⁻⁴ for one filter, which
    /// has nothing else to follow changes by.
    pub walk: f64,
    /// The largest variance; 1.
    pub variance_max: f64,
    /// Points of score beyond which a rating's distance from the mean is clipped; 2.5.
    pub clip: f64,
    /// Chance of a fresh start in a tick, below 1; 10⁻³. With 0 the mixture is one Kalman filter.
    pub hazard: f64,
    /// False drift events per rating that are accepted; 10⁻⁴.
    pub false_alarm: f64,
    /// The least change that is an event, in points of score; 0.35. Smaller ones are followed all the
    /// same.
    pub shift_min: f64,
    /// Of the alarm beside the Kalman filter.
    pub page_hinkley: PageHinkleyConfig,
    /// The variance that the Kalman filter has at least after an alarm; 0.35.
    pub variance_after_alarm: f64,
}

impl EstimatorConfig {
    /// Returns the shipped numbers of `kind`.
    #[must_use]
    pub fn of(kind: EstimatorKind) -> Self {
        Self {
            kind,
            prior_mean: 3.5,
            prior_variance: 0.6,
            noise: 1.2,
            walk: match kind {
                EstimatorKind::Changepoint => 3e-5,
                EstimatorKind::Kalman => 1.5e-4,
            },
            variance_max: 1.0,
            clip: 2.5,
            hazard: 1e-3,
            false_alarm: 1e-4,
            shift_min: 0.35,
            page_hinkley: PageHinkleyConfig::default(),
            variance_after_alarm: 0.35,
        }
    }

    fn prior(&self) -> Belief {
        Belief { mean: self.prior_mean, variance: self.prior_variance }
    }
}

impl Default for EstimatorConfig {
    fn default() -> Self {
        Self::of(EstimatorKind::default())
    }
}

/// What is remembered of one agent's quality.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Estimator {
    known: Known,
    /// Evidence so far: ratings, by weight.
    evidence: f64,
    /// When the last rating came, in Unix milliseconds; 0 before the first.
    voted_ms: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(clippy::large_enum_variant, reason = "the larger one is the default")]
enum Known {
    Changepoint(Mixture),
    Kalman { mean: f64, variance: f64, alarm: PageHinkley },
}

impl Known {
    fn new(belief: Belief, kind: EstimatorKind) -> Self {
        let Belief { mean, variance } = belief;
        match kind {
            EstimatorKind::Changepoint => Self::Changepoint(Mixture::new(belief)),
            EstimatorKind::Kalman => Self::Kalman { mean, variance, alarm: PageHinkley::default() },
        }
    }

    fn kind(&self) -> EstimatorKind {
        match self {
            Self::Changepoint(_) => EstimatorKind::Changepoint,
            Self::Kalman { .. } => EstimatorKind::Kalman,
        }
    }

    fn is_sound(&self) -> bool {
        match self {
            Self::Changepoint(mixture) => mixture.is_sound(),
            Self::Kalman { mean, variance, alarm } => {
                Belief { mean: *mean, variance: *variance }.is_sound() && alarm.is_sound()
            }
        }
    }
}

/// A clock that went back by more than this was set: time goes on from there.
const BACK_MAX_MS: u64 = 60_000;

impl Estimator {
    /// Returns what is known of an agent that nobody rated: the prior.
    #[must_use]
    pub fn new(config: &EstimatorConfig) -> Self {
        Self { known: Known::new(config.prior(), config.kind), evidence: 0.0, voted_ms: 0 }
    }

    /// Returns what was known after the last rating.
    #[must_use]
    pub fn belief(&self) -> Belief {
        match &self.known {
            Known::Changepoint(mixture) => mixture.belief(),
            Known::Kalman { mean, variance, .. } => Belief { mean: *mean, variance: *variance },
        }
    }

    /// Returns what is known `ticks` after the last rating: less.
    #[must_use]
    pub fn belief_after(&self, ticks: f64, config: &EstimatorConfig) -> Belief {
        let ticks = if ticks.is_finite() { ticks.max(0.0) } else { 0.0 };
        match &self.known {
            Known::Changepoint(mixture) => mixture.after(ticks, config),
            Known::Kalman { mean, variance, .. } => {
                let walked = (variance + config.walk * ticks).min(config.variance_max);
                Belief { mean: *mean, variance: walked.max(*variance) }
            }
        }
    }

    /// Returns the evidence so far: ratings, each by its weight.
    #[must_use]
    pub fn evidence(&self) -> f64 {
        self.evidence
    }

    /// Returns how near to a drift event it is: ln(1 + odds) of a recent change for the mixture, the
    /// share of the threshold for Page-Hinkley.
    #[must_use]
    pub fn statistic(&self, config: &EstimatorConfig) -> f64 {
        match &self.known {
            Known::Changepoint(mixture) => mixture.odds().ln_1p(),
            Known::Kalman { alarm, .. } => alarm.statistic(&config.page_hinkley),
        }
    }

    /// Learns a `score` of `weight` that came `at_ms`; a tick has `tick_ms`. A weight of 0 is no
    /// rating. Returns the change it reveals.
    ///
    /// # Errors
    ///
    /// The [`Reason`] why nothing was learned: a score outside 1 to 5, a weight outside 0 to 1, or
    /// numbers of its own that were not sound; then it has started again.
    pub fn learn(
        &mut self,
        score: f64,
        weight: f64,
        at_ms: u64,
        tick_ms: u64,
        config: &EstimatorConfig,
    ) -> Result<Option<Drift>, Reason> {
        if !(SCORE_MIN..=SCORE_MAX).contains(&score) {
            return Err(Reason::Score);
        }
        if !(0.0..=1.0).contains(&weight) {
            return Err(Reason::Weight);
        }
        if self.known.kind() != config.kind {
            self.known = Known::new(self.belief(), config.kind);
        }
        if weight == 0.0 {
            return Ok(None);
        }
        let ticks = self.elapsed(at_ms, tick_ms);
        let drift = match &mut self.known {
            Known::Changepoint(mixture) => mixture.learn(score, weight, ticks, config),
            Known::Kalman { mean, variance, alarm } => {
                let mut known = Gaussian::new(Belief { mean: *mean, variance: *variance });
                known.widen(config.walk * ticks, config.variance_max);
                let before = known.belief().mean;
                let residual = (score - before).clamp(-config.clip, config.clip);
                let deviation = config.noise.sqrt();
                let z = residual / deviation;
                let drift = alarm.see(z, weight, before, deviation, &config.page_hinkley);
                known.learn(before + residual, config.noise / weight);
                let belief = known.belief();
                *mean = belief.mean;
                *variance = match drift {
                    Some(_) => belief.variance.max(config.variance_after_alarm),
                    None => belief.variance,
                };
                drift
            }
        };
        self.evidence += weight;
        if !self.is_sound() {
            *self = Self { voted_ms: self.voted_ms, ..Self::new(config) };
            return Err(Reason::State);
        }
        Ok(drift)
    }

    pub(super) fn is_sound(&self) -> bool {
        self.known.is_sound() && self.evidence.is_finite() && self.evidence >= 0.0
    }

    /// Moves the time of the last rating to `at_ms`. Returns the ticks that passed.
    #[allow(clippy::cast_precision_loss, reason = "a gap in milliseconds is far below 2^53")]
    fn elapsed(&mut self, at_ms: u64, tick_ms: u64) -> f64 {
        let since = match self.voted_ms {
            0 => 0,
            voted_ms => at_ms.saturating_sub(voted_ms),
        };
        if at_ms > self.voted_ms || self.voted_ms - at_ms > BACK_MAX_MS {
            self.voted_ms = at_ms;
        }
        since as f64 / tick_ms.max(1) as f64
    }
}

/// Returns `number` in single precision.
#[allow(clippy::cast_possible_truncation, reason = "rounds to the nearest; state is kept small")]
pub(super) fn single(number: f64) -> f32 {
    number as f32
}

#[cfg(test)]
mod tests;
