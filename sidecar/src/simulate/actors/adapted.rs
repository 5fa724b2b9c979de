//! A law of `policy` at work in the simulated world, driven as the tuner drives it.
//!
//! 1. One state for each agent. A rating decides for its own agent at once; a tick decides for all.
//! 2. The price is one for all and follows the use of the tick before, as the leased tuner's does.
//! 3. The law sees nothing of the world: admissions, refusals, ratings and the price.

use tower_merit::bucket::Limits;

use super::{Actor, Asked, fixed::equal};
use crate::{
    policy::{self, Law, Market, Vote},
    simulate::{USE_TARGET, World, world::Ratings},
};

/// A tick of the simulation stands for a second.
const TICK_MS: u64 = 1000;
/// When the run begins, in Unix milliseconds: an instant that laws accept, and the same in every run.
const BEGAN_MS: u64 = 1_700_000_000_000;
/// How fast the price follows the use of capacity (POLICY section 2, η).
const PRICE_RATE: f64 = 0.25;
/// Seconds of its rate that a bucket holds at the start.
const BURST_SECONDS: f64 = 2.0;

/// What a rating by this rater with this score weighs for an agent in that state, 0 to 1.
pub type Weigh<'w, S> = Box<dyn FnMut(u64, f64, &S) -> f64 + 'w>;

/// What the tuner's learner does after a tick: what the agents' states tell goes into the law.
pub type Teach<'w, L> = Box<dyn FnMut(usize, &mut L, &mut [<L as Law>::State]) + 'w>;

/// A law over all agents of a world.
pub struct Adapted<'w, L: Law> {
    law: L,
    states: Vec<L::State>,
    rates: Vec<f64>,
    asked: Vec<policy::Asked>,
    weigh: Weigh<'w, L::State>,
    teach: Option<Teach<'w, L>>,
    used: Option<f64>,
    market: Market,
}

impl<'w, L: Law> Adapted<'w, L> {
    /// Returns `law` at the start of `world`, with raters weighed by `weigh`.
    #[must_use]
    pub fn new(world: &World, law: L, weigh: Weigh<'w, L::State>) -> Self {
        let rates = equal(world);
        let limits = Limits::per_second(rates[0], whole(rates[0] * BURST_SECONDS))
            .expect("an equal share of capacity is a rate that a bucket takes");
        let states = rates.iter().map(|_| law.begin(limits)).collect();
        let asked = rates.iter().map(|_| policy::Asked { seconds: 1.0, ..Default::default() });
        let asked = asked.collect();
        let market = Market { price: 0.0, use_share: 0.0, tick_ms: TICK_MS };
        Self { law, states, rates, asked, weigh, teach: None, used: None, market }
    }

    /// Has `teach` called after each tick.
    #[must_use]
    pub fn taught(self, teach: Teach<'w, L>) -> Self {
        Self { teach: Some(teach), ..self }
    }

    /// Returns the price of a token, in points of score above 3.
    #[must_use]
    pub fn price(&self) -> f64 {
        self.market.price
    }
}

impl<L: Law> Actor for Adapted<'_, L> {
    fn act(&mut self, tick: usize, capacity: f64) -> &[f64] {
        // Nothing is known before the first tick is over.
        if let Some(used) = self.used.take() {
            let Market { price, use_share, .. } = &mut self.market;
            *use_share = used / capacity;
            *price = (*price + PRICE_RATE * (*use_share - USE_TARGET)).max(0.0);
            let agents = self.states.iter_mut().zip(&self.asked).zip(&mut self.rates);
            for ((state, asked), rate) in agents {
                *rate = self.law.tick(state, *asked, &self.market).rate;
            }
            if let Some(teach) = &mut self.teach {
                teach(tick, &mut self.law, &mut self.states);
            }
        }
        &self.rates
    }

    fn learn(&mut self, asked: Asked<'_>, ratings: &Ratings) {
        self.used = Some(asked.admitted.iter().sum());
        for (agent, seen) in self.asked.iter_mut().enumerate() {
            let admitted = asked.admitted[agent];
            *seen = policy::Asked {
                admitted,
                denied: (asked.demand[agent] - admitted).clamp(0.0, admitted),
                seconds: 1.0,
                level: (asked.tokens[agent] / asked.capacity[agent]).clamp(0.0, 1.0),
            };
        }
        let at_ms = BEGAN_MS + TICK_MS * asked.tick as u64;
        for n in 0..ratings.len() {
            let agent = ratings.agents[n] as usize;
            let state = &mut self.states[agent];
            let (rater, score) = (hash(ratings.raters[n]), ratings.scores[n]);
            let weight = ratings.weights[n] * (self.weigh)(rater, score, state);
            let vote = Vote { score, rater, at_ms, weight };
            self.rates[agent] = self.law.vote(state, vote, &self.market).rate;
        }
    }
}

/// Spreads a rater's number over 64 bits, as the keyed hash of a user id is (SplitMix64's finaliser,
/// Steele, Lea & Flood, "Fast splittable pseudorandom number generators", 2014).
fn hash(rater: u32) -> u64 {
    let mut bits = u64::from(rater).wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates")]
fn whole(tokens: f64) -> u64 {
    (tokens as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::Decision,
        simulate::{NEUTRAL, PolicyName, RATE_MAX, RATE_MIN, run, run::run_actor},
    };

    /// The additive rule as a law; its tick remembers the most that anybody was refused.
    struct Additive(f64);

    impl Law for Additive {
        type State = (f64, f64);

        fn begin(&self, start: Limits) -> Self::State {
            (start.refill().tokens(), 0.0)
        }

        fn adopt(&self, state: &mut Self::State, limits: Limits) {
            state.0 = limits.refill().tokens();
        }

        fn vote(&self, state: &mut Self::State, vote: Vote, _market: &Market) -> Decision {
            state.0 = (state.0 + self.0 * (vote.score - NEUTRAL)).clamp(RATE_MIN, RATE_MAX);
            decision(state.0)
        }

        fn tick(&self, state: &mut Self::State, asked: policy::Asked, market: &Market) -> Decision {
            assert!(asked.denied <= asked.admitted && (0.0..=1.0).contains(&asked.level));
            assert!(market.price >= 0.0 && market.tick_ms == TICK_MS);
            state.1 = state.1.max(asked.denied);
            decision(state.0)
        }
    }

    fn decision(rate: f64) -> Decision {
        let (residual, reward, drift, propensity, held) = (0.0, 0.0, None, 1.0, None);
        Decision { rate, base: rate, residual, reward, drift, propensity, held }
    }

    fn world() -> World {
        World::new("base".parse().unwrap(), 21, 50, 400)
    }

    #[test]
    fn a_law_driven_by_the_adapter_does_what_the_same_rule_does_in_columns() {
        let world = world();
        let law = Adapted::new(&world, Additive(1.0), Box::new(|_, _, _| 1.0));
        let adapted = run_actor(Box::new(law), &world, None);
        let columns = run(PolicyName::Additive(1.0), &world, None);
        // The adapter's start is what a bucket can hold: whole micro-tokens.
        for (ours, theirs) in adapted.rates.iter().zip(&columns.rates) {
            assert!((ours - theirs).abs() < 1e-5, "{ours} {theirs}");
        }
        assert!((adapted.total() - columns.total()).abs() < 0.01 * columns.total().abs());
    }

    #[test]
    fn the_price_rises_while_use_is_above_its_target_and_falls_back_to_nothing() {
        let world = world();
        let mut law = Adapted::new(&world, Additive(1.0), Box::new(|_, _, _| 1.0));
        let nobody = vec![0.0; 50];
        let step = |law: &mut Adapted<'_, Additive>, tick, admitted: &[f64]| {
            let _ = law.act(tick, 100.0);
            let (tokens, capacity) = (&nobody, &vec![10.0; 50]);
            let asked = Asked { tick, demand: &[9.0; 50], admitted, tokens, capacity };
            law.learn(asked, &Ratings::default());
        };
        for tick in 0..3 {
            step(&mut law, tick, &[4.0; 50]);
        }
        // Two ticks at twice the capacity: 0.25·(2 − 0.98) each.
        assert!((law.price() - 2.0 * 0.255).abs() < 1e-9, "{}", law.price());
        assert!(law.states.iter().all(|(_, refused)| *refused == 4.0));
        for tick in 3..8 {
            step(&mut law, tick, &nobody);
        }
        assert_eq!(law.price(), 0.0);
    }
}
