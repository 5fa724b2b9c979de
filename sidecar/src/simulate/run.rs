//! One policy in one world: buckets, capacity, ratings, and what came of it.

use super::{
    Detection, NEUTRAL, PolicyName, SHED_COST, World,
    actors::{Actor, Asked, equal},
    world::{Raters, count, whole},
};

/// What a bucket holds: seconds of its rate, and tokens on top.
const BUCKET: (f64, f64) = (2.0, 1.0);
/// Ticks over which an agent must be served for it not to count as starved.
const STARVED_TICKS: usize = 100;
/// An agent that is served less than this share of what it asks for is starved.
const STARVED_SHARE: f64 = 0.03;
/// Blocks of [`STARVED_TICKS`] at the start that do not count: policies know nothing yet.
const STARVED_SKIPPED: usize = 2;

/// What came of one policy in one world.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Utility of each tick: Σ served·(quality − 3) − κ·shed.
    pub utility: Vec<f64>,
    /// Ratings given in each tick.
    pub ratings: Vec<f64>,
    /// Requests that were admitted and found no capacity, per request served.
    pub shed: f64,
    /// Mean |Δ ln rate| of an agent in a tick.
    pub step: f64,
    /// Requests served, as a share of capacity.
    pub used: f64,
    /// Jain's index of the shares that agents get of what they ask for, 0 to 1 ("A quantitative
    /// measure of fairness", 1984).
    pub fairness: f64,
    /// The share of agents and times at which an agent got next to nothing.
    pub starved: f64,
    /// What its reports of changed quality are worth; none of policies that make none.
    pub detection: Option<Detection>,
    /// The agents' rates at the end.
    pub rates: Vec<f64>,
    /// What was watched of one agent, where asked for.
    pub watched: Option<Watched>,
}

impl Outcome {
    /// Returns the utility of the whole run.
    #[must_use]
    pub fn total(&self) -> f64 {
        self.utility.iter().sum()
    }
}

/// One agent, tick after tick.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    /// Its rate.
    pub rate: Vec<f64>,
    /// What the policy believes its quality to be; empty where it believes nothing.
    pub belief: Vec<f64>,
}

/// Runs `policy` in `world`, and watches the agent `watch`.
#[must_use]
pub fn run(policy: PolicyName, world: &World, watch: Option<usize>) -> Outcome {
    run_actor(policy.start(world), world, watch)
}

/// Runs `actor`, which stands at the start of `world`, and watches the agent `watch`.
#[must_use]
pub fn run_actor<'w>(
    mut actor: Box<dyn Actor + 'w>,
    world: &'w World,
    watch: Option<usize>,
) -> Outcome {
    let (agents, ticks) = (world.agents(), world.ticks());
    let mut raters = Raters::new(world);
    let mut tally = Tally::new(world);
    let mut watched = watch.map(|_| Watched::default());
    // Everybody comes with an equal share of capacity, whatever the policy does about it.
    let mut tokens: Vec<f64> = equal(world).iter().map(|rate| BUCKET.0 * rate).collect();
    let mut held = vec![0.0; agents];
    let mut admitted = vec![0.0; agents];
    let mut served = vec![0.0; agents];
    let (mut rated, mut rated_by_half) = (vec![0; agents], vec![0; agents]);
    let (mut utility, mut given) = (Vec::with_capacity(ticks), Vec::with_capacity(ticks));
    for tick in 0..ticks {
        let capacity = world.capacity(tick);
        let demand = world.demand(tick);
        let rates = actor.act(tick, capacity);
        tally.moved(rates);
        if let (Some(watched), Some(agent)) = (&mut watched, watch) {
            watched.rate.push(rates[agent]);
        }
        let buckets = tokens.iter_mut().zip(&mut held).zip(rates).zip(demand).zip(&mut admitted);
        for ((((tokens, held), rate), demand), admitted) in buckets {
            *held = BUCKET.0 * rate + BUCKET.1;
            *tokens = (*tokens + rate).min(*held);
            *admitted = demand.min(whole(*tokens));
            *tokens -= *admitted;
        }
        if let Some(chosen) = actor.admit(tick) {
            admitted.copy_from_slice(chosen);
        }
        let wanted: f64 = admitted.iter().sum();
        let passed = if wanted > capacity { capacity / wanted } else { 1.0 };
        let mut worth = 0.0;
        for ((served, admitted), quality) in
            served.iter_mut().zip(&admitted).zip(world.quality(tick))
        {
            *served = admitted * passed;
            worth += *served * (quality - NEUTRAL);
        }
        let shed = wanted - wanted * passed;
        utility.push(worth - SHED_COST * shed);
        tally.served(tick, &served, demand, shed);
        let ratings = raters.rate(tick, &served);
        given.push(count(ratings.len()));
        if tick == world.half_time() {
            rated_by_half.copy_from_slice(&rated);
        }
        for agent in &ratings.agents {
            rated[*agent as usize] += 1;
        }
        let asked = Asked { tick, demand, admitted: &admitted, tokens: &tokens, capacity: &held };
        actor.learn(asked, ratings);
        if let (Some(watched), Some(agent)) = (&mut watched, watch) {
            watched.belief.extend(actor.belief(agent));
        }
    }
    let found = actor.found();
    let detection = found.map(|found| Detection::of(world, found, &rated_by_half, &rated));
    Outcome { detection, ..tally.outcome(world, utility, given, watched) }
}

/// Factors of a product of changes: each is at most `RATE_MAX` / `RATE_MIN`, so that 64 of them
/// stay far below the largest number.
const FACTORS: usize = 64;

/// Sums over a run.
struct Tally {
    rates: Vec<f64>,
    steps: f64,
    served: Vec<f64>,
    asked: Vec<f64>,
    block_served: Vec<f64>,
    block_asked: Vec<f64>,
    starved: f64,
    blocks: f64,
    shed: f64,
}

impl Tally {
    fn new(world: &World) -> Self {
        let nothing = vec![0.0; world.agents()];
        Self {
            rates: equal(world),
            steps: 0.0,
            served: nothing.clone(),
            asked: nothing.clone(),
            block_served: nothing.clone(),
            block_asked: nothing,
            starved: 0.0,
            blocks: 0.0,
            shed: 0.0,
        }
    }

    /// Adds Σ |ln(rate / last rate)|, as logarithms of products: one for each [`FACTORS`] agents.
    fn moved(&mut self, rates: &[f64]) {
        for (last, rates) in self.rates.chunks_mut(FACTORS).zip(rates.chunks(FACTORS)) {
            let mut product = 1.0;
            for (last, rate) in last.iter_mut().zip(rates) {
                product *= rate.max(*last) / rate.min(*last);
                *last = *rate;
            }
            self.steps += product.ln();
        }
    }

    fn served(&mut self, tick: usize, served: &[f64], demand: &[f64], shed: f64) {
        self.shed += shed;
        let blocks = self.block_served.iter_mut().zip(&mut self.block_asked);
        for (((block_served, block_asked), served), demand) in blocks.zip(served).zip(demand) {
            *block_served += served;
            *block_asked += demand;
        }
        if (tick + 1).is_multiple_of(STARVED_TICKS) {
            self.block_ends(tick / STARVED_TICKS >= STARVED_SKIPPED);
        }
    }

    fn block_ends(&mut self, counts: bool) {
        let agents = self.block_served.iter_mut().zip(&mut self.block_asked);
        for ((served, asked), (all_served, all_asked)) in
            agents.zip(self.served.iter_mut().zip(&mut self.asked))
        {
            if counts {
                self.blocks += 1.0;
                if *served < STARVED_SHARE * *asked {
                    self.starved += 1.0;
                }
            }
            *all_served += std::mem::take(served);
            *all_asked += std::mem::take(asked);
        }
    }

    fn outcome(
        mut self,
        world: &World,
        utility: Vec<f64>,
        ratings: Vec<f64>,
        watched: Option<Watched>,
    ) -> Outcome {
        self.block_ends(false);
        let served: f64 = self.served.iter().sum();
        let capacity: f64 = (0..world.ticks()).map(|tick| world.capacity(tick)).sum();
        let shares = self.served.iter().zip(&self.asked);
        let shares: Vec<f64> = shares
            .filter(|(_, asked)| **asked > 0.0)
            .map(|(served, asked)| served / asked)
            .collect();
        let sum: f64 = shares.iter().sum();
        let squares: f64 = shares.iter().map(|share| share * share).sum();
        Outcome {
            utility,
            ratings,
            shed: self.shed / served,
            step: self.steps / count(world.ticks() * world.agents()),
            used: served / capacity,
            fairness: sum * sum / (count(shares.len()) * squares),
            starved: self.starved / f64::max(self.blocks, 1.0),
            detection: None,
            rates: self.rates,
            watched,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(policy: &str, regime: &str) -> (World, Outcome) {
        let world = World::new(regime.parse().unwrap(), 11, 100, 600);
        let outcome = run(policy.parse().unwrap(), &world, None);
        (world, outcome)
    }

    #[test]
    fn a_run_repeats_bit_for_bit() {
        let (_, first) = outcome("price-trust", "attack");
        let (_, second) = outcome("price-trust", "attack");
        assert_eq!(first.utility, second.utility);
        assert_eq!(first.rates, second.rates);
    }

    #[test]
    fn no_limit_sheds_and_the_clairvoyant_never_does() {
        let (_, open) = outcome("static-max", "base");
        assert!(open.shed > 0.5 && open.used > 0.99, "{} {}", open.shed, open.used);
        let (_, best) = outcome("clairvoyant", "base");
        assert_eq!(best.shed, 0.0);
        assert!(best.used <= 1.0);
    }

    #[test]
    fn the_clairvoyant_beats_the_reference_and_the_reference_everybody_else() {
        for regime in ["base", "crowd", "outage"] {
            let total = |policy| outcome(policy, regime).1.total();
            let reference = total("reference");
            assert!(total("clairvoyant") > reference, "{regime}");
            for policy in
                ["static", "additive:5", "price", "bandit", "price-kalman", "greedy", "thompson"]
            {
                assert!(total(policy) < reference, "{policy} in {regime}");
            }
        }
    }

    #[test]
    fn fixed_rates_do_not_move_and_the_law_stays_within_its_step() {
        assert_eq!(outcome("static", "base").1.step, 0.0);
        let world = World::new("base".parse().unwrap(), 12, 100, 400);
        let watched = run(PolicyName::PriceKalman, &world, Some(3)).watched.unwrap();
        assert_eq!((watched.rate.len(), watched.belief.len()), (400, 400));
        for pair in watched.rate.windows(2) {
            let (low, high) = (pair[0] * 0.75 - 0.05, pair[0] * 1.25 + 0.05);
            assert!((low - 1e-9..=high + 1e-9).contains(&pair[1]), "{pair:?}");
        }
    }
}
