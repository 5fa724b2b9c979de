//! One world: who the agents are, what they ask for, what users think of them.
//!
//! The model is the numpy prototype's: demand is log-normal over agents and follows a daily sine;
//! quality is an Ornstein-Uhlenbeck process around a level that a share of the agents change at
//! half-time; arrivals are Poisson; a user rounds what they felt, plus a bias of their own, to a whole
//! score. Attackers rate the best tenth 1 (bombers) and the worst tenth 5 (colluders).

use super::{
    Regime,
    stream::{Purpose, Stream},
};

/// Ticks of one day: what the sine of demand goes round in.
const DAY_TICKS: f64 = 1440.0;
/// How far demand swings around its mean over a day, as a share of it.
const DAY_SWING: f64 = 0.5;
/// Mean requests per tick of an agent.
const DEMAND_MEAN: f64 = 10.0;
/// Standard deviation of the logarithm of demand over agents.
const DEMAND_SPREAD: f64 = 0.8;
/// Where quality begins: mean and standard deviation over agents.
const QUALITY: (f64, f64) = (3.5, 0.75);
/// The range of an agent's level of quality.
const LEVEL_RANGE: (f64, f64) = (1.2, 4.8);
/// The range of quality at any moment.
const QUALITY_RANGE: (f64, f64) = (1.05, 4.95);
/// A level that changes is mirrored: this less the level.
const MIRROR: f64 = 7.0;
/// The share of its way from the level that quality comes back in a tick.
const RETURN: f64 = 0.002;
/// How far quality goes in a tick, standard deviation.
const WANDER: f64 = 0.012;
/// How many honest users there are.
pub(super) const USERS: u32 = 2000;
/// The most identities that attackers have.
pub(super) const IDENTITIES_MAX: u32 = 500;
/// Standard deviation of users' biases.
const USER_BIAS: f64 = 0.4;
/// One in so many agents is a victim, one a friend of the attackers.
const TARGETS: usize = 10;

/// Ratings of one tick, in columns.
#[derive(Clone, Debug, Default)]
pub struct Ratings {
    /// Which agent.
    pub agents: Vec<u32>,
    /// Who rates.
    pub raters: Vec<u32>,
    /// What they say, 1 to 5.
    pub scores: Vec<f64>,
    /// What the rating weighs for want of a receipt, above 0, at most 1.
    pub weights: Vec<f64>,
}

impl Ratings {
    /// Returns how many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.agents.len()
    }

    /// Returns true when nobody rated.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    fn clear(&mut self) {
        self.agents.clear();
        self.raters.clear();
        self.scores.clear();
        self.weights.clear();
    }

    fn push(&mut self, agent: u32, rater: u32, score: f64, weight: f64) {
        self.agents.push(agent);
        self.raters.push(rater);
        self.scores.push(score);
        self.weights.push(weight);
    }
}

/// One world. Numbers by tick and agent stand tick after tick.
#[derive(Clone, Debug)]
pub struct World {
    /// What kind of world it is.
    pub regime: Regime,
    /// The seed it was made from.
    pub seed: u64,
    agents: usize,
    ticks: usize,
    quality: Vec<f64>,
    mean_demand: Vec<f64>,
    demand: Vec<f64>,
    capacity: Vec<f64>,
    biases: Vec<f64>,
    changed: Vec<bool>,
    victims: Vec<u32>,
    friends: Vec<u32>,
}

impl World {
    /// Returns the world of `regime` and `seed`, of `agents` (at least 10) and `ticks` (at least 2).
    #[must_use]
    pub fn new(regime: Regime, seed: u64, agents: usize, ticks: usize) -> Self {
        let mut who = Stream::new(seed, Purpose::World);
        let means = demands(&mut who, agents);
        let mut levels: Vec<f64> = (0..agents)
            .map(|_| {
                let (mean, spread) = QUALITY;
                (mean + spread * who.normal()).clamp(LEVEL_RANGE.0, LEVEL_RANGE.1)
            })
            .collect();
        let changed: Vec<bool> = (0..agents).map(|_| who.uniform() < regime.changed).collect();
        let phases: Vec<f64> = (0..agents).map(|_| who.uniform() * std::f64::consts::TAU).collect();
        let biases = (0..USERS).map(|_| USER_BIAS * who.normal());
        let biases: Vec<f64> = biases.chain((0..IDENTITIES_MAX).map(|_| 0.0)).collect();
        let surging: Vec<bool> = (0..agents)
            .map(|_| regime.surge.is_some_and(|surge| who.uniform() < surge.agents))
            .collect();
        let (victims, friends) = targets(&levels);

        let within = |tick: usize, (from, to): (f64, f64)| {
            let at = count(tick) / count(ticks);
            from <= at && at < to
        };
        let usual = regime.capacity * means.iter().sum::<f64>();
        let capacity = (0..ticks)
            .map(|tick| match regime.dip {
                Some(dip) if within(tick, dip.span) => usual * dip.left,
                _ => usual,
            })
            .collect();

        let cells = ticks * agents;
        let (mut quality, mut mean_demand) = (Vec::with_capacity(cells), Vec::with_capacity(cells));
        let mut demand = Vec::with_capacity(cells);
        let mut drift = Stream::new(seed, Purpose::Drift);
        let mut arrivals = Stream::new(seed, Purpose::Arrivals);
        let mut wander = vec![0.0; agents];
        // The sine goes on by one rotation a tick: exact to 10^-12 over a million ticks.
        let mut waves: Vec<(f64, f64)> = phases.iter().map(|phase| phase.sin_cos()).collect();
        let (turn_sin, turn_cos) = (std::f64::consts::TAU / DAY_TICKS).sin_cos();
        for tick in 0..ticks {
            if tick == ticks / 2 {
                for (level, _) in levels.iter_mut().zip(&changed).filter(|(_, changed)| **changed) {
                    *level = (MIRROR - *level).clamp(LEVEL_RANGE.0, LEVEL_RANGE.1);
                }
            }
            let surge = regime.surge.filter(|surge| within(tick, surge.span));
            for agent in 0..agents {
                let away = &mut wander[agent];
                *away += WANDER * drift.normal() - RETURN * *away;
                quality.push((levels[agent] + *away).clamp(QUALITY_RANGE.0, QUALITY_RANGE.1));
                let (sin, cos) = waves[agent];
                waves[agent] = (sin * turn_cos + cos * turn_sin, cos * turn_cos - sin * turn_sin);
                let mut mean = means[agent] * (1.0 + DAY_SWING * sin);
                if let Some(surge) = surge.filter(|_| surging[agent]) {
                    mean *= surge.factor;
                }
                mean_demand.push(mean);
                demand.push(arrivals.poisson(mean));
            }
        }
        Self {
            regime,
            seed,
            agents,
            ticks,
            quality,
            mean_demand,
            demand,
            capacity,
            biases,
            changed,
            victims,
            friends,
        }
    }

    /// Returns how many agents there are.
    #[must_use]
    pub fn agents(&self) -> usize {
        self.agents
    }

    /// Returns how many ticks the run has.
    #[must_use]
    pub fn ticks(&self) -> usize {
        self.ticks
    }

    /// Returns the agents' true qualities at `tick`, 1.05 to 4.95.
    #[must_use]
    pub fn quality(&self, tick: usize) -> &[f64] {
        &self.quality[tick * self.agents..][..self.agents]
    }

    /// Returns the means of what the agents ask for at `tick`, in requests.
    #[must_use]
    pub fn mean_demand(&self, tick: usize) -> &[f64] {
        &self.mean_demand[tick * self.agents..][..self.agents]
    }

    /// Returns what the agents ask for at `tick`, in whole requests.
    #[must_use]
    pub fn demand(&self, tick: usize) -> &[f64] {
        &self.demand[tick * self.agents..][..self.agents]
    }

    /// Returns what the service can serve at `tick`, in requests.
    #[must_use]
    pub fn capacity(&self, tick: usize) -> f64 {
        self.capacity[tick]
    }

    /// Returns whether the agent's level of quality changes at half-time.
    #[must_use]
    pub fn changes(&self, agent: usize) -> bool {
        self.changed[agent]
    }

    /// Returns the tick at which levels of quality change.
    #[must_use]
    pub fn half_time(&self) -> usize {
        self.ticks / 2
    }
}

/// Who rates what in one world, tick after tick.
#[derive(Clone, Debug)]
pub(super) struct Raters<'w> {
    world: &'w World,
    stream: Stream,
    /// −ln(1 − share rated).
    pace: f64,
    /// Served requests that nobody rates, until the next rating.
    unrated: f64,
    ratings: Ratings,
}

impl<'w> Raters<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        let mut stream = Stream::new(world.seed, Purpose::Ratings);
        let pace = -(1.0 - world.regime.rated).ln();
        let unrated = stream.failures(pace);
        Self { world, stream, pace, unrated, ratings: Ratings::default() }
    }

    /// Returns what users say of the requests served at `tick`.
    pub(super) fn rate(&mut self, tick: usize, served: &[f64]) -> &Ratings {
        self.ratings.clear();
        let Regime { bombers, colluders, identities, without_receipt, farmed, .. } =
            self.world.regime;
        let quality = self.world.quality(tick);
        // Each served request is rated with the same chance: so the requests between two ratings
        // are geometric, and a draw is needed for each rating instead of each request.
        for (agent, served) in served.iter().enumerate() {
            let requests = whole(*served);
            while self.unrated < requests {
                let rater = self.stream.below(USERS);
                let felt = quality[agent] + self.world.biases[rater as usize];
                let score = whole((felt + self.stream.normal()).clamp(1.0, 5.0) + 0.5);
                self.ratings.push(index(agent), rater, score, 1.0);
                self.unrated += 1.0 + self.stream.failures(self.pace);
            }
            self.unrated -= requests;
        }
        let world = self.world;
        for (share, targets, score) in
            [(bombers, &world.victims, 1.0), (colluders, &world.friends, 5.0)]
        {
            if share > 0.0 {
                let mean = share / (1.0 - share) * count(self.ratings.len().max(1));
                let mut left = self.stream.poisson(mean);
                while left >= 1.0 {
                    left -= 1.0;
                    let rater = USERS + self.stream.below(identities);
                    let target = targets[self.stream.below(index(targets.len())) as usize];
                    if without_receipt > 0.0 {
                        self.ratings.push(target, rater, score, without_receipt);
                    }
                }
            }
        }
        if farmed > 0.0 {
            for &friend in &world.friends {
                let mut left = self.stream.poisson(farmed * served[friend as usize]);
                while left >= 1.0 {
                    left -= 1.0;
                    let rater = USERS + self.stream.below(identities);
                    self.ratings.push(friend, rater, 5.0, 1.0);
                }
            }
        }
        &self.ratings
    }
}

/// Returns mean demands of `agents`, whose mean is [`DEMAND_MEAN`].
fn demands(stream: &mut Stream, agents: usize) -> Vec<f64> {
    let raw: Vec<f64> = (0..agents).map(|_| (DEMAND_SPREAD * stream.normal()).exp()).collect();
    let scale = DEMAND_MEAN * count(agents) / raw.iter().sum::<f64>();
    raw.into_iter().map(|demand| demand * scale).collect()
}

/// Returns the best tenth and the worst tenth.
fn targets(levels: &[f64]) -> (Vec<u32>, Vec<u32>) {
    let mut order: Vec<u32> = (0..index(levels.len())).collect();
    order.sort_by(|&a, &b| levels[b as usize].total_cmp(&levels[a as usize]));
    let tenth = (levels.len() / TARGETS).max(1);
    (order[..tenth].to_vec(), order[order.len() - tenth..].to_vec())
}

/// Returns a count as a number to compute with.
#[allow(clippy::cast_precision_loss, reason = "counts here are far below 2^52")]
pub(super) fn count(count: usize) -> f64 {
    count as f64
}

/// Returns the whole part of a number from 0 to 2^31: `f64::floor` is a call where the processor that
/// is built for has no instruction for it, and took a tenth of a run.
#[inline]
#[allow(clippy::cast_possible_truncation, reason = "a tick has far fewer requests than 2^31")]
pub(super) fn whole(number: f64) -> f64 {
    f64::from(number as i32)
}

/// Returns an agent's index in the form that ratings carry.
fn index(agent: usize) -> u32 {
    u32::try_from(agent).expect("there are fewer agents than 2^32")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regime(name: &str) -> Regime {
        name.parse().unwrap()
    }

    fn mean(values: &[f64]) -> f64 {
        values.iter().sum::<f64>() / count(values.len())
    }

    #[test]
    fn the_same_seed_gives_the_same_world_and_another_seed_another() {
        let world = |seed| World::new(regime("base"), seed, 50, 100);
        assert_eq!(world(1).demand, world(1).demand);
        assert_eq!(world(1).quality, world(1).quality);
        assert_ne!(world(1).demand, world(2).demand);
        assert_ne!(world(1).quality(0), world(2).quality(0));
    }

    #[test]
    fn arrivals_have_the_mean_and_the_variance_of_a_poisson_process() {
        let world = World::new(regime("base"), 3, 200, 1440);
        let residuals: Vec<f64> = world
            .demand
            .iter()
            .zip(&world.mean_demand)
            .map(|(demand, mean)| (demand - mean) / mean.sqrt())
            .collect();
        // 288,000 of them: five standard errors.
        assert!(mean(&residuals).abs() < 0.01, "{}", mean(&residuals));
        let squares: Vec<f64> = residuals.iter().map(|residual| residual * residual).collect();
        assert!((mean(&squares) - 1.0).abs() < 0.02, "{}", mean(&squares));
        // Over a whole day the sine is gone.
        assert!((mean(&world.mean_demand) - DEMAND_MEAN).abs() < 1e-6);
    }

    #[test]
    fn a_fifth_of_the_agents_change_at_half_time_and_no_others() {
        let world = World::new(regime("base"), 4, 1000, 40);
        let half = world.half_time();
        let moved = |agent: usize| {
            (world.quality(half)[agent] - world.quality(half - 1)[agent]).abs() > 0.1
        };
        let share = count((0..1000).filter(|&agent| world.changes(agent)).count()) / 1000.0;
        assert!((0.15..0.25).contains(&share), "{share}");
        assert!((0..1000).filter(|&agent| moved(agent)).all(|agent| world.changes(agent)));
        let changers = (0..1000).filter(|&agent| world.changes(agent)).count();
        assert!((0..1000).filter(|&agent| moved(agent)).count() * 10 > changers * 8);
    }

    /// Returns ratings per served request, mean weight of the attackers' ratings and their share.
    fn ratings(name: &str, ticks: usize) -> (f64, f64, f64) {
        let world = World::new(regime(name), 5, 200, ticks);
        let mut raters = Raters::new(&world);
        let (mut all, mut attackers, mut weight, mut served_sum) = (0.0, 0.0, 0.0, 0.0);
        for tick in 0..ticks {
            let served = world.demand(tick).to_vec();
            served_sum += served.iter().sum::<f64>();
            let ratings = raters.rate(tick, &served);
            all += count(ratings.len());
            for (rater, each) in ratings.raters.iter().zip(&ratings.weights) {
                if *rater >= USERS {
                    attackers += 1.0;
                    weight += each;
                }
            }
        }
        (all / served_sum, weight / f64::max(attackers, 1.0), attackers / all)
    }

    #[test]
    fn users_and_attackers_rate_as_often_as_the_regime_says() {
        let (rated, _, attackers) = ratings("base", 1000);
        // 2 million requests: 60,000 ratings, standard error 0.0001.
        assert!((rated - 0.03).abs() < 0.0006, "{rated}");
        assert_eq!(attackers, 0.0);
        let (_, weight, attackers) = ratings("sybil-prefer", 1000);
        assert!((attackers - 0.1).abs() < 0.01, "{attackers}");
        assert!((weight - 0.1).abs() < 1e-9);
        assert_eq!(ratings("sybil-require", 100).2, 0.0);
        assert!(ratings("farm", 100).2 > 0.05);
    }

    #[test]
    fn scores_are_whole_and_around_the_quality() {
        let world = World::new(regime("base"), 6, 10, 2000);
        let mut raters = Raters::new(&world);
        let (mut error, mut n) = (0.0, 0.0);
        for tick in 0..2000 {
            let ratings = raters.rate(tick, world.demand(tick)).clone();
            for (agent, score) in ratings.agents.iter().zip(&ratings.scores) {
                assert!(score.fract() == 0.0 && (1.0..=5.0).contains(score));
                let quality = world.quality(tick)[*agent as usize];
                // Near the ends scores are cut off.
                if (2.5..3.5).contains(&quality) {
                    error += score - quality;
                    n += 1.0;
                }
            }
        }
        assert!(n > 500.0 && (error / n).abs() < 0.15, "{error} {n}");
    }

    #[test]
    fn a_crowd_comes_and_goes_and_an_outage_halves_the_capacity_for_a_while() {
        let sum = |world: &World, tick| world.mean_demand(tick).iter().sum::<f64>();
        let crowd = World::new(regime("crowd"), 7, 200, 800);
        assert!(sum(&crowd, 200) > 1.1 * sum(&crowd, 199));
        assert!(sum(&crowd, 300) < 0.9 * sum(&crowd, 299));
        let outage = World::new(regime("outage"), 7, 200, 1000);
        let capacities = [599, 600, 699, 700].map(|tick| outage.capacity(tick));
        assert_eq!(capacities.map(|capacity| capacity / outage.capacity(0)), [1.0, 0.5, 0.5, 1.0]);
    }
}
