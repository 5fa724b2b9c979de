//! Thompson sampling over multipliers of the base law's rate, for agents that nobody knows yet and for
//! what the base law's constants get wrong.
//!
//! 1. An agent follows one arm for an epoch of [`EPOCH_TICKS`] ticks; then the arm's outcome is told
//!    and another one is drawn.
//! 2. What an arm is worth is shared by the agents of a cohort: [`Arms`] has a row for each, and row 0
//!    is for agents with less than [`KNOWN_EVIDENCE`] ratings.
//! 3. Chance is keyed by the seed and by the ratings that the agent got: the same ratings, the same
//!    draws; other ratings, others.
//!
//! Thompson (1933); the Gaussian form is Agrawal & Goyal (2013), "Further Optimal Regret Bounds for
//! Thompson Sampling", section 1.2: θ ~ N(μ̂, σ²/(n + n₀)), the largest is drawn.

use serde::{Deserialize, Serialize};
use tower_merit::bucket::Limits;

use super::{
    Asked, Cohorts, Decision, Law, Market, Mode, Price, PriceConfig, Reason, Vote,
    chance::Chance,
    cohort::{COHORTS_MAX, FEATURES},
    standing::{Heard, Standing},
};

/// How many arms there are.
pub const ARMS: usize = 7;

/// What each arm multiplies the base law's rate by.
pub const MULTIPLIERS: [f64; ARMS] = [0.5, 0.7, 0.85, 1.0, 1.18, 1.4, 2.0];

/// Ticks that an agent follows one arm.
pub const EPOCH_TICKS: u16 = 16;

/// Evidence (ratings, by weight) from which an agent belongs to a cohort.
const KNOWN_EVIDENCE: f64 = 10.0;

/// n₀: outcomes that the prior is worth.
const PRIOR_OUTCOMES: f64 = 4.0;

/// σ: standard deviation of one outcome, which is a share of the demand times points of score; chosen on
/// seeds 600 to 607 of the simulated world, where 0.5 never tells the arms apart.
const DEVIATION: f64 = 0.1;

/// Outcomes that an arm remembers: beyond, the older ones fade, and it follows a world that changes.
const OUTCOMES_MAX: f64 = 400.0;

/// The largest outcome that is believed: a spike is worth no more.
const OUTCOME_MAX: f64 = 4.0;

/// Points of the grid that propensities are summed on: a quarter of the narrowest arm's deviation
/// apart, at the worst.
const GRID: u16 = 512;

/// The least propensity: below it the sum on the grid is rounding.
const PROPENSITY_MIN: f64 = 1e-9;

/// One arm: how many outcomes it remembers and their mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Arm {
    outcomes: f64,
    mean: f64,
}

impl Arm {
    /// Returns mean and standard deviation of what it is worth.
    fn posterior(self) -> (f64, f64) {
        let total = self.outcomes + PRIOR_OUTCOMES;
        (self.mean * self.outcomes / total, DEVIATION / total.sqrt())
    }
}

/// What is known of the arms, a row for each cohort.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arms {
    rows: Vec<[Arm; ARMS]>,
}

impl Default for Arms {
    fn default() -> Self {
        Self { rows: vec![[Arm::default(); ARMS]; COHORTS_MAX + 1] }
    }
}

/// What an epoch of one agent came to.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The row of [`Arms`].
    pub row: u8,
    /// The arm.
    pub arm: u8,
    /// Mean over the epoch of (served / D̂ − what the base law would have served / D̂)·(m − 3 − p).
    pub reward: f64,
    /// The probability that the arm was drawn with.
    pub propensity: f64,
}

impl Arms {
    /// Returns mean and standard deviation of what `arm` is worth to the agents of `row`.
    #[must_use]
    pub fn posterior(&self, row: u8, arm: u8) -> Option<(f64, f64)> {
        let row = self.rows.get(usize::from(row))?;
        row.get(usize::from(arm)).map(|arm| arm.posterior())
    }

    /// Takes in an outcome; one that is not finite or names no arm is dropped, and returns false.
    pub fn learn(&mut self, outcome: &Outcome) -> bool {
        let row = self.rows.get_mut(usize::from(outcome.row));
        let arm = row.and_then(|row| row.get_mut(usize::from(outcome.arm)));
        let Some(arm) = arm.filter(|_| outcome.reward.is_finite()) else {
            return false;
        };
        let reward = outcome.reward.clamp(-OUTCOME_MAX, OUTCOME_MAX);
        arm.outcomes = (arm.outcomes + 1.0).min(OUTCOMES_MAX);
        arm.mean += (reward - arm.mean) / arm.outcomes;
        true
    }

    /// Draws an arm for `row`. Returns it with its probability, or nothing when the row holds what is
    /// no number.
    fn draw(&self, row: usize, chance: &mut Chance) -> Option<(u8, f64)> {
        let posteriors = self.rows.get(row)?.map(Arm::posterior);
        let sound = |(mean, deviation): &(f64, f64)| mean.is_finite() && deviation.is_normal();
        if !posteriors.iter().all(sound) {
            return None;
        }
        let drawn = posteriors.map(|(mean, deviation)| mean + deviation * chance.normal());
        let best = drawn.iter().enumerate().max_by(|(_, a), (_, b)| a.total_cmp(b))?;
        let propensity = propensities(&posteriors)[best.0].max(PROPENSITY_MIN);
        Some((u8::try_from(best.0).ok()?, propensity))
    }
}

/// Returns the probability of each arm to be the largest of independent normal draws:
/// ∫ φₖ(x)·Πⱼ Φⱼ(x) dx over j ≠ k, as a sum on a grid.
fn propensities(posteriors: &[(f64, f64); ARMS]) -> [f64; ARMS] {
    let low = posteriors.iter().map(|(mean, sd)| mean - 6.0 * sd).fold(f64::MAX, f64::min);
    let high = posteriors.iter().map(|(mean, sd)| mean + 6.0 * sd).fold(f64::MIN, f64::max);
    let width = (high - low) / f64::from(GRID);
    let mut below = [0.0; ARMS];
    let mut chances = [0.0; ARMS];
    for at in 0..=GRID {
        let x = low + f64::from(at) * width;
        let density = posteriors.map(|(mean, sd)| {
            let z = (x - mean) / sd;
            (-0.5 * z * z).exp() / (sd * std::f64::consts::TAU.sqrt()) * width
        });
        // The middle of the cell: half of its mass lies below.
        let under: [f64; ARMS] = std::array::from_fn(|arm| below[arm] + 0.5 * density[arm]);
        for arm in 0..ARMS {
            let others: f64 =
                (0..ARMS).filter(|&other| other != arm).map(|other| under[other]).product();
            chances[arm] += density[arm] * others;
            below[arm] += density[arm];
        }
    }
    let total: f64 = chances.iter().sum();
    chances.map(|chance| chance / total)
}

/// What `bandit` remembers of one agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BanditState {
    pub(super) standing: Standing,
    chance: Chance,
    /// The arm that it follows; none before the first draw.
    arm: Option<u8>,
    row: u8,
    /// Ticks of the epoch so far, and the sum of their rewards.
    ticks: u16,
    reward: f64,
    propensity: f64,
    /// The last epoch's outcome, until somebody takes it.
    done: Option<Outcome>,
    /// True while a guardrail or an operator keeps the arm from being followed: what the rate is worth then is not the
    /// arm's. (Too little evidence is not told apart: it lasts for a rating or two.)
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    idle: bool,
}

impl BanditState {
    /// Takes the outcome of the last epoch, if there is one that nobody took.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        self.done.take()
    }

    /// Returns what is known of the agent's quality, demand and rate.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Returns the arm that the agent follows, of [`MULTIPLIERS`].
    #[must_use]
    pub fn arm(&self) -> Option<u8> {
        self.arm
    }
}

/// Thompson sampling over multipliers.
#[derive(Clone, Debug)]
pub struct Bandit {
    price: Price,
    seed: u64,
    arms: Arms,
    cohorts: Cohorts,
}

impl Bandit {
    /// Returns the law on top of the base law of `config`.
    #[must_use]
    pub fn new(config: PriceConfig, seed: u64) -> Self {
        let price = Price::new(config);
        Self { price, seed, arms: Arms::default(), cohorts: Cohorts::default() }
    }

    /// Returns the base law below.
    #[must_use]
    pub fn price(&self) -> &Price {
        &self.price
    }

    /// Returns what is known of the arms.
    #[must_use]
    pub fn arms(&self) -> &Arms {
        &self.arms
    }

    /// The same, to learn outcomes or to restore a checkpoint.
    pub fn arms_mut(&mut self) -> &mut Arms {
        &mut self.arms
    }

    /// Takes over what `before` has learned.
    pub(super) fn inherit(&mut self, before: &Self) {
        (self.arms, self.cohorts) = (before.arms.clone(), before.cohorts.clone());
    }

    /// Sorts agents into `cohorts` from their next epoch on.
    pub fn set_cohorts(&mut self, cohorts: Cohorts) {
        self.cohorts = cohorts;
    }

    /// Returns what cohorts are made by: quality, ln of demand, share refused, ln of evidence.
    #[must_use]
    pub fn features(standing: &Standing) -> [f64; FEATURES] {
        [
            standing.estimator().belief().mean,
            standing.demand().rate().ln_1p(),
            standing.demand().refused(),
            standing.estimator().evidence().ln_1p(),
        ]
    }

    fn draw(&self, state: &mut BanditState) {
        let known = state.standing.estimator().evidence() >= KNOWN_EVIDENCE;
        let row = if known { 1 + self.cohorts.of(&Self::features(&state.standing)) } else { 0 };
        (state.ticks, state.reward) = (0, 0.0);
        state.row = u8::try_from(row).expect("at most COHORTS_MAX");
        match self.arms.draw(row, &mut state.chance) {
            Some((arm, propensity)) => {
                (state.arm, state.propensity) = (Some(arm), propensity);
            }
            None => (state.arm, state.propensity) = (None, 1.0),
        }
    }

    fn decide(&self, state: &mut BanditState, heard: Heard, market: &Market) -> Decision {
        let base = self.price.base(&state.standing, market);
        let guard = self.price.config.guard;
        let asked = matches!(guard.mode, Mode::Live | Mode::Shadow);
        if asked && state.arm.is_none() {
            self.draw(state);
        }
        let multiplier = match state.arm.filter(|_| asked) {
            Some(arm) => MULTIPLIERS.get(usize::from(arm)).copied().unwrap_or(f64::NAN),
            // No arm could be drawn: not a number, so that the guardrail says so.
            None => f64::NAN,
        };
        let proposal = base * multiplier;
        let evidence = state.standing.estimator.evidence();
        let held = guard.apply(&mut state.standing.track, proposal, base, evidence);
        let followed = multiplier.is_finite();
        state.idle = held.is_some_and(|held| held != Reason::Evidence);
        if state.idle {
            (state.ticks, state.reward) = (0, 0.0);
        }
        Decision {
            rate: state.standing.track.rate(),
            base,
            residual: if followed { multiplier.ln() } else { 0.0 },
            reward: heard.reward,
            drift: heard.drift,
            propensity: if followed { state.propensity } else { 1.0 },
            held: heard.fault.or(held),
        }
    }
}

impl Law for Bandit {
    type State = BanditState;

    fn begin(&self, start: Limits) -> BanditState {
        BanditState {
            standing: self.price.start(start),
            chance: Chance::new(self.seed),
            arm: None,
            row: 0,
            ticks: 0,
            reward: 0.0,
            propensity: 1.0,
            done: None,
            idle: false,
        }
    }

    fn adopt(&self, state: &mut BanditState, limits: Limits) {
        state.standing.adopt(limits);
    }

    fn vote(&self, state: &mut BanditState, vote: Vote, market: &Market) -> Decision {
        state.chance.stir(vote.rater ^ vote.at_ms.rotate_left(32));
        let heard = state.standing.hear(vote, market, &self.price.config.estimator);
        self.decide(state, heard, market)
    }

    fn tick(&self, state: &mut BanditState, asked: Asked, market: &Market) -> Decision {
        let before = self.price.base(&state.standing, market);
        let heard = state.standing.look(asked, market, &self.price.config.estimator);
        let wanted = state.standing.demand.rate();
        if let Some(arm) = state.arm
            && !state.idle
            && heard.fault.is_none()
            && asked.seconds > 0.0
            && wanted > 0.0
        {
            let belief = self.price.belief(&state.standing, market);
            let worth = belief.mean - 3.0 - state.standing.price();
            let served = (asked.admitted / asked.seconds).min(wanted);
            state.reward += (served - before.min(wanted)) / wanted * worth;
            state.ticks += 1;
            if state.ticks >= EPOCH_TICKS {
                let reward = state.reward / f64::from(state.ticks);
                let (row, propensity) = (state.row, state.propensity);
                state.done = Some(Outcome { row, arm, reward, propensity });
                // `decide` draws the next one.
                state.arm = None;
            }
        }
        self.decide(state, heard, market)
    }
}

#[cfg(test)]
mod tests;
