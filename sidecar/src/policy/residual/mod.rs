//! A learned correction of the base law's rate: the policy `ppo`.
//!
//! 1. r = base·eᵒ. The network looks at the agent and draws a ∈ [−1, 1]; Δ = 0.25·a is added to the
//!    logarithm of the rate in each tick, and a quarter of what was added before leaks away:
//!    o ← 0.75·o + Δ. So o lies within ±1, a steady action a leads to o = a, and a network that says
//!    nothing is the base law.
//! 2. A tick draws the noise of the action and settles what the last one came to. At a rating the
//!    network is asked again, with the tick's noise and from the tick's o: a rating moves its agent at
//!    once, and a thousand of them move o no further than one tick.
//! 3. What the network says is a proposal: the guardrails decide (`guard.rs`), and a network that gives
//!    no number is the base law with [`Reason::Action`](super::Reason::Action).
//!
//! Actor and critic are those of [`ppo`](super::ppo); agents share them.

mod shipped;

use std::sync::Arc;

pub(super) use shipped::beginner;
pub use shipped::{CHECKPOINT_POLICY, expected, shipped};

use serde::{Deserialize, Serialize};
use tower_merit::bucket::Limits;

use super::{
    Asked, Decision, Law, Market, Mode, Price, PriceConfig, Vote,
    chance::Chance,
    ppo::{ActorCritic, Drawn, Gaussian, Head, Room, Step},
    standing::{Heard, OBSERVATION, Standing},
};

/// What a tick adds to the logarithm of the rate at the most.
pub const DELTA_MAX: f64 = 0.25;

/// The share of what was added before that is left after a tick. With [`DELTA_MAX`] it bounds the
/// sum at 1.
const KEPT: f64 = 0.75;

/// λ: what a change of the rate's logarithm by 1 costs, in points of score on the whole demand.
const MOVE_COST: f64 = 0.02;

/// κ: what a request that is admitted and then shed costs, in points of score, as in the utility.
const SHED_COST: f64 = 1.0;

/// What an agent is served at the most for learning's sake, as a multiple of its demand: a burst teaches
/// nothing.
const SERVED_MAX: f64 = 3.0;

/// The rate that rewards are counted in, as a multiple of the largest rate: the returns of most agents are
/// within ±1, so that the critic's share of the gradient does not drown the actor's. It is the same for
/// all agents: counted in its own demand, an agent that was squeezed until its estimate followed would
/// seem to be served as before.
const REWARD_UNIT: f64 = 5.0;

/// A look after more ticks than this tells of more than the last action.
const TICKS_MAX: f64 = 2.0;

/// The networks of the residual.
pub type Network = ActorCritic<Gaussian>;

/// The distribution of the residual's action, with a first deviation that is little enough for trying to
/// cost little.
pub const FIRST_HEAD: Gaussian = Gaussian { log_std: -1.5 };

/// What a tick of one agent came to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lesson {
    /// What was seen and done at its beginning.
    pub step: Step<OBSERVATION>,
    /// What was seen at its end.
    pub after: [f32; OBSERVATION],
    /// What was admitted beyond what the base law's rate would have admitted of what was asked for, as a
    /// share of 5 times the largest rate. Chance in what is asked for does not depend on the action, so
    /// taking it out changes no optimum and leaves less noise to learn from.
    pub gained: f64,
    /// The demand D̂, in the same unit.
    pub wanted: f64,
    /// The share of them that the service shed, 0 to 1.
    pub shed: f64,
    /// What a token cost, in points of score above 3.
    pub price: f64,
    /// |Δ ln r| of the tick.
    pub moved: f64,
    /// The estimate m of the agent's quality at its end.
    pub mean: f64,
}

impl Lesson {
    /// Returns what the tick was worth if the agent's quality was `quality`:
    /// gained·(q − 3 − p − κ·shed) − λ·wanted·|Δ ln r|.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a few points of score")]
    pub fn reward(&self, quality: f64) -> f32 {
        let worth = quality - 3.0 - self.price - SHED_COST * self.shed;
        (self.gained * worth - MOVE_COST * self.wanted * self.moved) as f32
    }
}

/// A step that was not settled yet, and the rate that it moved.
#[derive(Clone, Debug, PartialEq)]
struct Pending {
    step: Step<OBSERVATION>,
    from: f64,
    /// What the base law asked for.
    base: f64,
}

/// What is on its way to being learned from. It is no part of what an agent's state says, so it is not
/// written, and states that differ in it are the same.
#[derive(Clone, Debug, Default)]
struct Underway {
    pending: Option<Box<Pending>>,
    lesson: Option<Box<Lesson>>,
}

impl PartialEq for Underway {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// What `ppo` remembers of one agent.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResidualState {
    pub(super) standing: Standing,
    chance: Chance,
    /// o at the end of the last tick, and now.
    carried: f64,
    offset: f64,
    /// The noise of this tick's action, in deviations.
    noise: f64,
    #[serde(skip)]
    underway: Underway,
}

impl ResidualState {
    /// Takes what the last tick came to, if it taught something that nobody took.
    pub fn take_lesson(&mut self) -> Option<Box<Lesson>> {
        self.underway.lesson.take()
    }

    /// Returns what is known of the agent's quality, demand and rate.
    #[must_use]
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Returns o: what the rate's logarithm is above the base law's, −1 to 1.
    #[must_use]
    pub fn offset(&self) -> f64 {
        self.offset
    }
}

/// The residual over the base law.
#[derive(Clone, Debug)]
pub struct Residual {
    price: Price,
    seed: u64,
    explore: bool,
    learn: bool,
    network: Arc<Network>,
    version: u64,
}

/// What the network said.
struct Said {
    observation: [f32; OBSERVATION],
    drawn: Drawn<f32>,
}

impl Residual {
    /// Returns the law on top of the base law of `config`, with `network` of `version`. With `explore`
    /// actions are drawn, from `seed`; with `learn` each tick that was acted in leaves a [`Lesson`].
    ///
    /// # Panics
    ///
    /// When `network` does not take [`OBSERVATION`] numbers.
    #[must_use]
    pub fn new(config: PriceConfig, seed: u64, network: Arc<Network>, version: u64) -> Self {
        let price = Price::new(config);
        let law = Self { price, seed, explore: false, learn: false, network, version };
        law.check();
        law
    }

    /// Returns the law that also tries what it does not hold for the best, and with `learn` tells what
    /// that came to.
    #[must_use]
    pub fn exploring(mut self, explore: bool, learn: bool) -> Self {
        (self.explore, self.learn) = (explore, learn);
        self
    }

    fn check(&self) {
        assert_eq!(self.network.actor().inputs, OBSERVATION, "numbers of an observation");
    }

    /// Takes over the networks of `before`, if these are of its shape.
    pub(super) fn inherit(&mut self, before: &Self) {
        if self.network.tensors() == before.network.tensors() {
            self.set_network(Arc::clone(&before.network), before.version);
        }
    }

    /// Returns true when actions are drawn.
    #[must_use]
    pub fn explores(&self) -> bool {
        self.explore
    }

    /// Returns the base law below.
    #[must_use]
    pub fn price(&self) -> &Price {
        &self.price
    }

    /// Returns the networks in use.
    #[must_use]
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// Returns the version of the networks in use.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Acts by `network`, which is of `version`, from the next decision on.
    ///
    /// # Panics
    ///
    /// When `network` does not take [`OBSERVATION`] numbers.
    pub fn set_network(&mut self, network: Arc<Network>, version: u64) {
        (self.network, self.version) = (network, version);
        self.check();
    }

    /// Asks the network what to do with `noise`.
    #[allow(clippy::cast_possible_truncation, reason = "an action is near −1 to 1")]
    fn ask(&self, state: &ResidualState, market: &Market) -> Said {
        let PriceConfig { estimator, guard, .. } = &self.price.config;
        let observation = state.standing.observation(market, estimator, guard);
        let mean = self.network.best(&observation, &mut Room::default());
        let free = self.network.free();
        let action = if self.explore {
            (f64::from(mean) + f64::from(free[0]).exp() * state.noise) as f32
        } else {
            mean
        };
        let log_density = self.network.head().log_density(&[mean], free, &action);
        Said { observation, drawn: Drawn { action, log_density } }
    }

    fn decide(
        &self,
        state: &mut ResidualState,
        heard: Heard,
        market: &Market,
    ) -> (Decision, Option<Said>) {
        let base = self.price.base(&state.standing, market);
        let guard = self.price.config.guard;
        let asked = matches!(guard.mode, Mode::Live | Mode::Shadow);
        let said = asked.then(|| self.ask(state, market));
        let said = said.filter(|said| said.drawn.action.is_finite());
        state.offset = match &said {
            Some(said) => {
                let action = f64::from(said.drawn.action).clamp(-1.0, 1.0);
                // Whatever a record says, o is within ±1.
                let carried = if state.carried.is_nan() { 0.0 } else { state.carried };
                KEPT * carried.clamp(-1.0, 1.0) + DELTA_MAX * action
            }
            None => 0.0,
        };
        // Not a number where the network gave none, so that the guardrail says so.
        let proposal = if said.is_some() { base * state.offset.exp() } else { f64::NAN };
        let evidence = state.standing.estimator.evidence();
        let held = guard.apply(&mut state.standing.track, proposal, base, evidence);
        let density = |said: &Said| f64::from(said.drawn.log_density).exp() / DELTA_MAX;
        let decision = Decision {
            rate: state.standing.track.rate(),
            base,
            residual: state.offset,
            reward: heard.reward,
            drift: heard.drift,
            propensity: said.as_ref().filter(|_| self.explore).map_or(1.0, density),
            held: heard.fault.or(held),
        };
        (decision, said)
    }

    /// Returns what the step that is pending came to.
    fn settle(
        &self,
        state: &mut ResidualState,
        heard: &Heard,
        asked: Asked,
        market: &Market,
    ) -> Option<Lesson> {
        let Pending { step, from, base } = *state.underway.pending.take()?;
        let standing = &state.standing;
        let (ticks, wanted) = (ticks_of(asked.seconds, market), standing.demand.rate());
        if heard.fault.is_some() || !(0.0 < ticks && ticks <= TICKS_MAX) || wanted <= 0.0 {
            return None;
        }
        let unit = REWARD_UNIT * self.price.config.guard.r_max;
        let served = (asked.admitted / asked.seconds).min(SERVED_MAX * wanted);
        let denied = (asked.denied / asked.seconds).min(served);
        let lesson = Lesson {
            step,
            after: [0.0; OBSERVATION],
            gained: (served - (served + denied).min(base)) / unit,
            wanted: wanted / unit,
            shed: (1.0 - 1.0 / market.use_share.max(1.0)).max(0.0),
            price: standing.price(),
            moved: (standing.track.rate() / from).ln().abs(),
            mean: self.price.belief(standing, market).mean,
        };
        lesson.reward(lesson.mean).is_finite().then_some(lesson)
    }
}

impl Law for Residual {
    type State = ResidualState;

    fn begin(&self, start: Limits) -> ResidualState {
        ResidualState {
            standing: self.price.start(start),
            chance: Chance::new(self.seed),
            carried: 0.0,
            offset: 0.0,
            noise: 0.0,
            underway: Underway::default(),
        }
    }

    fn adopt(&self, state: &mut ResidualState, limits: Limits) {
        state.standing.adopt(limits);
        state.underway = Underway::default();
    }

    fn vote(&self, state: &mut ResidualState, vote: Vote, market: &Market) -> Decision {
        state.chance.stir(vote.rater ^ vote.at_ms.rotate_left(32));
        let heard = state.standing.hear(vote, market, &self.price.config.estimator);
        self.decide(state, heard, market).0
    }

    fn tick(&self, state: &mut ResidualState, asked: Asked, market: &Market) -> Decision {
        let heard = state.standing.look(asked, market, &self.price.config.estimator);
        let lesson = self.settle(state, &heard, asked, market);
        if ticks_of(asked.seconds, market) > 0.0 {
            state.carried = state.offset;
            state.noise = if self.explore { state.chance.normal() } else { 0.0 };
        }
        let from = state.standing.track.rate();
        let (decision, said) = self.decide(state, heard, market);
        state.underway.lesson = None;
        let Some(Said { observation, drawn }) = said.filter(|_| self.learn && self.explore) else {
            return decision;
        };
        state.underway.lesson =
            lesson.map(|lesson| Box::new(Lesson { after: observation, ..lesson }));
        // What was not followed led to nothing.
        if decision.held.is_none() && from > 0.0 {
            let step = Step { observation, drawn, version: self.version };
            state.underway.pending = Some(Box::new(Pending { step, from, base: decision.base }));
        }
        decision
    }
}

fn ticks_of(seconds: f64, market: &Market) -> f64 {
    #[allow(clippy::cast_precision_loss, reason = "a tick is far below 2^53 ms")]
    let tick_ms = market.tick_ms.max(1) as f64;
    seconds * 1e3 / tick_ms
}

#[cfg(test)]
mod tests;
