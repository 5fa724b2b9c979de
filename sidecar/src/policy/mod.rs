//! Policies: from ratings to limits, pure and seeded.
//!
//! A policy sees ratings, what an agent asked for, the market, and its own state of one agent, and
//! nothing else: no clock, no network, no environment. The same calls in the same order give the same
//! limits, bit for bit, whoever makes them and however ratings fell into batches.
//!
//! In the order in which they build on each other: [`Law`] says what all have in common; [`Estimator`],
//! [`PageHinkley`], [`Raters`] and [`Demand`] say what is known; [`BaseLaw`] and [`Integrator`] price
//! capacity; [`GuardConfig`] holds whatever is decided within bounds; [`Additive`], [`Price`], [`Bandit`]
//! and [`Residual`] decide; [`Policy`] is the one that is configured.

pub mod law;

mod additive;
mod bandit;
mod burst;
mod chance;
mod cohort;
mod config;
mod demand;
mod drift;
mod estimator;
mod guard;
pub mod ppo;
mod price;
mod residual;
mod standing;
mod trust;
mod why;

pub use additive::{Additive, AdditiveConfig, AdditiveState};
pub use bandit::{ARMS, Arm, Arms, Bandit, BanditState, EPOCH_TICKS, MULTIPLIERS, Outcome};
pub use burst::Burst;
pub use chance::Chance;
pub use cohort::{AGENTS_MAX, COHORTS_MAX, CohortError, Cohorts, FEATURES};
pub use config::{Config, Kind, shipped_mode};
pub use demand::{DEMAND_MAX, Demand};
pub use drift::{PageHinkley, PageHinkleyConfig};
pub use estimator::{
    Belief, Estimator, EstimatorConfig, EstimatorKind, GAP_TICKS_MAX, Mixture, SLOTS, YOUNG,
};
pub use guard::{GuardConfig, Hold, Mode, Track};
pub use law::{Asked, Decision, Drift, Law, Market, Reason, Vote};
pub use price::{BaseLaw, Integrator, PRICE_MAX, Price, PriceConfig};
pub use residual::{
    CHECKPOINT_POLICY, DELTA_MAX, FIRST_HEAD, Lesson, Network, Residual, ResidualState, expected,
    shipped,
};
pub use standing::{OBSERVATION, Standing};
pub use trust::{FAIR, RATERS_MAX, Raters};
pub use why::Why;

use serde::{Deserialize, Serialize};
use tower_merit::bucket::{Limits, MicroTokensPerSecond, REFILL_RATE_MAX};

use crate::rating::Rating;

/// What a policy remembers of one agent; written beside the agent's limits.
///
/// The larger ones are boxed, so that an agent of `additive` does not pay for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "lowercase")]
pub enum State {
    /// Of [`Additive`].
    Additive(AdditiveState),
    /// Of [`Price`].
    Price(Box<Standing>),
    /// Of [`Bandit`].
    Bandit(Box<BanditState>),
    /// Of [`Residual`].
    Ppo(Box<ResidualState>),
}

impl State {
    /// Returns what is known of the agent's quality, demand and rate, unless `additive` wrote it.
    #[must_use]
    pub fn standing(&self) -> Option<&Standing> {
        match self {
            Self::Additive(_) => None,
            Self::Price(standing) => Some(standing),
            Self::Bandit(state) => Some(&state.standing),
            Self::Ppo(state) => Some(&state.standing),
        }
    }

    /// The same, to freeze, override or let go.
    pub fn standing_mut(&mut self) -> Option<&mut Standing> {
        match self {
            Self::Additive(_) => None,
            Self::Price(standing) => Some(standing),
            Self::Bandit(state) => Some(&mut state.standing),
            Self::Ppo(state) => Some(&mut state.standing),
        }
    }

    /// Returns what an operator did to the agent, whichever policy wrote it.
    #[must_use]
    pub fn hold(&self) -> Hold {
        match self {
            Self::Additive(state) => state.hold,
            _ => self.standing().map_or(Hold::None, |standing| standing.track().hold()),
        }
    }

    /// Freezes, overrides or lets go; in force from the next decision.
    pub fn set_hold(&mut self, hold: Hold) {
        match self {
            Self::Additive(state) => state.hold = hold,
            _ => {
                if let Some(standing) = self.standing_mut() {
                    standing.track_mut().set_hold(hold);
                }
            }
        }
    }

    /// Takes what the last epoch came to, if it is a state of [`Bandit`] and one has ended that nobody
    /// took.
    pub fn take_outcome(&mut self) -> Option<Outcome> {
        match self {
            Self::Bandit(state) => state.take_outcome(),
            Self::Additive(_) | Self::Price(_) | Self::Ppo(_) => None,
        }
    }

    /// Takes what the last tick taught, if it is a state of [`Residual`] and taught something.
    pub fn take_lesson(&mut self) -> Option<Box<Lesson>> {
        match self {
            Self::Ppo(state) => state.take_lesson(),
            Self::Additive(_) | Self::Price(_) | Self::Bandit(_) => None,
        }
    }

    /// Returns the rate that it asks for, in tokens per second, whichever policy wrote it.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.rate_and_burst().0
    }

    /// Returns the limits that it asks for, whichever policy wrote it.
    #[must_use]
    pub fn limits(&self) -> Limits {
        let (rate, burst) = self.rate_and_burst();
        burst.limits(rate_of(rate))
    }

    fn rate_and_burst(&self) -> (f64, Burst) {
        match self {
            Self::Additive(state) => (state.rate, state.burst),
            Self::Price(standing) => (standing.track().rate(), standing.track().burst()),
            Self::Bandit(state) => (state.standing.track().rate(), state.standing.track().burst()),
            Self::Ppo(state) => (state.standing.track().rate(), state.standing.track().burst()),
        }
    }
}

/// The laws that can be configured.
#[derive(Clone, Debug)]
pub enum AnyLaw {
    /// r ← clamp(r + α·(score − 3)).
    Additive(Additive),
    /// A price on capacity.
    Price(Price),
    /// Thompson sampling over multipliers of `price`.
    Bandit(Box<Bandit>),
    /// A learned residual over `price`.
    Ppo(Box<Residual>),
}

/// What a policy makes of one agent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Explained {
    /// What is known of its quality, in points of score.
    pub quality: Belief,
    /// Ratings that this rests on, by weight.
    pub evidence: f64,
    /// What it asks for, tokens per second.
    pub demand: f64,
    /// What a token costs, in points of score above 3.
    pub price: f64,
    /// What the base law asks for, tokens per second.
    pub base: f64,
    /// What the learned part adds to the logarithm of the rate; in shadow mode what it would add.
    pub residual: f64,
    /// The rate in force, tokens per second.
    pub rate: f64,
}

/// The policy in force: a law, what agents start from, and the last market seen.
#[derive(Clone, Debug)]
pub struct Policy {
    law: AnyLaw,
    start: Limits,
    market: Market,
    version: String,
}

impl AnyLaw {
    /// Returns its name, as `[policy]` says it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Additive(_) => "additive",
            Self::Price(_) => "price",
            Self::Bandit(_) => "bandit",
            Self::Ppo(_) => "ppo",
        }
    }
}

impl Policy {
    /// Returns the policy that a valid `config` names, for agents that start from `configured`.
    #[must_use]
    pub fn new(config: &Config, configured: Limits) -> Self {
        let law = match config.kind {
            Kind::Additive => AnyLaw::Additive(Additive::new(config.additive())),
            Kind::Price => AnyLaw::Price(Price::new(config.price())),
            Kind::Bandit => AnyLaw::Bandit(Box::new(Bandit::new(config.price(), config.seed))),
            Kind::Ppo => AnyLaw::Ppo(Box::new(config.residual())),
        };
        let market = Market { price: 0.0, use_share: 0.0, tick_ms: config.tick_ms() };
        Self { law, start: configured, market, version: config.version() }
    }

    /// Goes on by another configuration, at the same market. Agents' states are taken over as they
    /// are decided next, without a jump; what arms or networks have learned stays when the
    /// policy does.
    pub fn reconfigure(&mut self, config: &Config) {
        let mut next = Self::new(config, self.start);
        next.market = Market { tick_ms: config.tick_ms(), ..self.market };
        match (&self.law, &mut next.law) {
            (AnyLaw::Bandit(before), AnyLaw::Bandit(after)) => after.inherit(before),
            (AnyLaw::Ppo(before), AnyLaw::Ppo(after)) => after.inherit(before),
            _ => {}
        }
        *self = next;
    }

    /// Takes over what agents start from that nobody rated yet and that have no limits of their own.
    pub fn start_from_now_on(&mut self, configured: Limits) {
        self.start = configured;
    }

    /// Returns whether the policy decides; nothing with `additive`, which knows no other way.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        match &self.law {
            AnyLaw::Additive(_) => None,
            AnyLaw::Price(law) => Some(law.config().guard.mode),
            AnyLaw::Bandit(law) => Some(law.price().config().guard.mode),
            AnyLaw::Ppo(law) => Some(law.price().config().guard.mode),
        }
    }

    /// Returns what the policy sees of an agent; nothing with `additive`, which sees nothing.
    #[must_use]
    pub fn observation(&self, state: &State) -> Option<[f32; OBSERVATION]> {
        let config = match &self.law {
            AnyLaw::Additive(_) => return None,
            AnyLaw::Price(law) => law.config(),
            AnyLaw::Bandit(law) => law.price().config(),
            AnyLaw::Ppo(law) => law.price().config(),
        };
        let standing = state.standing()?;
        Some(standing.observation(&self.market, &config.estimator, &config.guard))
    }

    /// Returns what the policy makes of an agent, for people to look at; nothing with `additive`, which
    /// makes nothing of it, or of a state that another policy wrote.
    #[must_use]
    pub fn explain(&self, state: &State) -> Option<Explained> {
        let (price, residual) = match (&self.law, state) {
            (AnyLaw::Price(law), State::Price(_)) => (law, 0.0),
            (AnyLaw::Bandit(law), State::Bandit(state)) => {
                let arm = state.arm().and_then(|arm| MULTIPLIERS.get(usize::from(arm)));
                (law.price(), arm.map_or(0.0, |multiplier| multiplier.ln()))
            }
            (AnyLaw::Ppo(law), State::Ppo(state)) => (law.price(), state.offset()),
            _ => return None,
        };
        let standing = state.standing()?;
        Some(Explained {
            quality: price.belief(standing, &self.market),
            evidence: standing.estimator().evidence(),
            demand: standing.demand().rate(),
            price: standing.price(),
            base: price.base(standing, &self.market),
            residual,
            rate: state.rate(),
        })
    }

    /// Returns which version decides: a hash of its configuration.
    #[must_use]
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Returns the law.
    #[must_use]
    pub fn law(&self) -> &AnyLaw {
        &self.law
    }

    /// The same, to teach it what outcomes say.
    pub fn law_mut(&mut self) -> &mut AnyLaw {
        &mut self.law
    }

    /// Returns the market that ratings are decided at: the last one seen.
    #[must_use]
    pub fn market(&self) -> &Market {
        &self.market
    }

    /// Notes the market; one that is not finite is noticed and passed over at the next decision.
    pub fn see(&mut self, market: Market) {
        self.market = market;
    }

    /// Returns the state of an agent that nobody rated yet and that has no limits of its own.
    #[must_use]
    pub fn begin(&self) -> State {
        self.start_from(self.start)
    }

    /// Returns the state of an agent whose limits somebody else set: `limits` are its new start, and
    /// nothing else is known of it.
    #[must_use]
    pub fn adopt(&self, limits: Limits) -> State {
        let mut state = self.start_from(limits);
        self.rebase(&mut state, limits);
        state
    }

    /// Takes over the limits that an operator set, and keeps what is known of the agent's quality.
    pub fn rebase(&self, state: &mut State, limits: Limits) {
        self.claim(state);
        match (&self.law, state) {
            (AnyLaw::Additive(law), State::Additive(state)) => law.adopt(state, limits),
            (AnyLaw::Price(law), State::Price(standing)) => law.adopt(standing, limits),
            (AnyLaw::Bandit(law), State::Bandit(state)) => law.adopt(state, limits),
            (AnyLaw::Ppo(law), State::Ppo(state)) => law.adopt(state, limits),
            _ => unreachable!("claimed above"),
        }
    }

    /// Decides at a rating.
    pub fn vote(&self, state: &mut State, vote: Vote) -> Decision {
        self.claim(state);
        match (&self.law, state) {
            (AnyLaw::Additive(law), State::Additive(state)) => law.vote(state, vote, &self.market),
            (AnyLaw::Price(law), State::Price(state)) => law.vote(state, vote, &self.market),
            (AnyLaw::Bandit(law), State::Bandit(state)) => law.vote(state, vote, &self.market),
            (AnyLaw::Ppo(law), State::Ppo(state)) => law.vote(state, vote, &self.market),
            _ => unreachable!("claimed above"),
        }
    }

    /// Decides at a tick.
    pub fn tick(&self, state: &mut State, asked: Asked) -> Decision {
        self.claim(state);
        match (&self.law, state) {
            (AnyLaw::Additive(law), State::Additive(state)) => law.tick(state, asked, &self.market),
            (AnyLaw::Price(law), State::Price(state)) => law.tick(state, asked, &self.market),
            (AnyLaw::Bandit(law), State::Bandit(state)) => law.tick(state, asked, &self.market),
            (AnyLaw::Ppo(law), State::Ppo(state)) => law.tick(state, asked, &self.market),
            _ => unreachable!("claimed above"),
        }
    }

    /// Folds one rating into the state, as one of full weight. Returns the reward it was worth.
    pub fn fold(&self, state: &mut State, rating: &Rating) -> f64 {
        match (&self.law, &mut *state) {
            // Without a look at who and when: it is all that `additive` does.
            (AnyLaw::Additive(law), State::Additive(state)) => {
                law.take(state, rating.score().value()).0
            }
            _ => self.vote(state, vote_of(rating, 1.0)).reward,
        }
    }

    /// Returns what is known of the agent's quality, for [`Raters::weigh`]; nothing with `additive`.
    #[must_use]
    pub fn belief(&self, state: &State) -> Option<Belief> {
        state.standing().map(|standing| standing.estimator().belief())
    }

    /// Returns the limits that the state asks for.
    #[must_use]
    pub fn limits(&self, state: &State) -> Limits {
        state.limits()
    }

    fn start_from(&self, start: Limits) -> State {
        match &self.law {
            AnyLaw::Additive(law) => State::Additive(law.begin(start)),
            AnyLaw::Price(law) => State::Price(Box::new(law.begin(start))),
            AnyLaw::Bandit(law) => State::Bandit(Box::new(law.begin(start))),
            AnyLaw::Ppo(law) => State::Ppo(Box::new(law.begin(start))),
        }
    }

    /// Makes a state that another policy wrote one of this policy, without a jump in its limits.
    fn claim(&self, state: &mut State) {
        let own = matches!(
            (&self.law, &*state),
            (AnyLaw::Additive(_), State::Additive(_))
                | (AnyLaw::Price(_), State::Price(_))
                | (AnyLaw::Bandit(_), State::Bandit(_))
                | (AnyLaw::Ppo(_), State::Ppo(_))
        );
        if own {
            return;
        }
        let (known, hold) = (state.standing().cloned(), state.hold());
        *state = self.adopt(state.limits());
        state.set_hold(hold);
        if let (Some(known), Some(standing)) = (known, state.standing_mut()) {
            *standing = known;
        }
    }
}

/// Returns `rating` as a policy sees it, of `weight` 0 to 1.
///
/// Its time is when ingest took it in: what its producer says of the time proves nothing.
#[must_use]
pub fn vote_of(rating: &Rating, weight: f64) -> Vote {
    Vote {
        score: rating.score().value(),
        rater: rater_of(rating.user().as_str(), 0),
        at_ms: rating.accepted_at_us() / 1_000,
        weight,
    }
}

/// Returns the number that a policy knows a user by: a hash of the id under `key`.
///
/// FNV-1a (Fowler, Noll & Vo) with a finaliser: the same in every version, and not for secrets.
#[must_use]
pub fn rater_of(user: &str, key: u64) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325 ^ key;
    for byte in user.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    Chance::new(hash).bits()
}

/// Returns `rate` as the bucket counts it. What a policy decided lies within its bounds; what a record
/// says is brought within the bucket's.
fn rate_of(rate: f64) -> MicroTokensPerSecond {
    #[allow(clippy::cast_precision_loss, reason = "9 × 10^6 is exact in f64")]
    let most = REFILL_RATE_MAX as f64;
    MicroTokensPerSecond::from_tokens(rate.max(0.0).min(most)).expect("within the bucket's range")
}

#[cfg(test)]
mod tests;
