//! The prototype's laws over its estimate of quality: the price, the greedy fill, Thompson sampling.

use super::{
    Actor, Asked,
    fill::Fill,
    fixed::{GAIN, equal},
    kalman::Kalman,
};
use crate::simulate::{
    NEUTRAL, RATE_MAX, RATE_MIN, USE_TARGET, World,
    stream::{Purpose, Stream},
    world::Ratings,
};

/// How much uncertainty counts in an agent's favour: standard deviations of the price law.
const OPTIMISM: f64 = 0.3;
/// How sharply the price divides the agents, in points of quality.
const TEMPERATURE: f64 = 0.08;
/// How fast the price follows the use of capacity.
const PRICE_RATE: f64 = 0.25;
/// Standard deviations that a draw of Thompson sampling counts.
const DRAW_WEIGHT: f64 = 0.7;
/// For how many ticks a draw holds.
const DRAW_TICKS: usize = 25;
/// How far a rate moves in a tick at most: as a share of it, and in tokens on top.
const STEP: (f64, f64) = (0.25, 0.05);
/// How fast the estimate of demand follows, at first and later, and when later begins.
const DEMAND_RATES: (f64, f64, usize) = (0.15, 0.03, 30);

/// How estimates become rates.
#[derive(Clone, Debug)]
pub(super) enum Law {
    /// Agents worth more than the price of capacity get what they ask for, the others little.
    Price {
        /// What a token costs, in points of quality.
        price: f64,
    },
    /// The best first, until capacity is used up.
    Greedy,
    /// The same by draws from what quality may be.
    Thompson { draws: Vec<f64>, stream: Stream },
}

impl Law {
    pub(super) fn price() -> Self {
        Self::Price { price: 0.0 }
    }

    pub(super) fn thompson(world: &World) -> Self {
        let stream = Stream::new(world.seed, Purpose::Policy);
        Self::Thompson { draws: vec![0.0; world.agents()], stream }
    }
}

/// A law at work over an estimate.
pub(super) struct Learned {
    law: Law,
    quality: Kalman,
    demand: Vec<f64>,
    rates: Vec<f64>,
    score: Vec<f64>,
    targets: Vec<f64>,
    fill: Fill,
}

impl Learned {
    pub(super) fn new(world: &World, law: Law, careful: bool) -> Self {
        Self {
            law,
            quality: Kalman::new(world.agents(), careful),
            demand: equal(world),
            rates: equal(world),
            score: vec![0.0; world.agents()],
            targets: vec![0.0; world.agents()],
            fill: Fill::new(world.agents()),
        }
    }

    fn aim(&mut self, tick: usize, capacity: f64) {
        let Self { law, quality, demand, rates, score, targets, fill } = self;
        let known = quality.mean.iter().zip(&quality.variance);
        match law {
            Law::Price { price } => {
                let agents = targets.iter_mut().zip(known).zip(demand.iter());
                for ((target, (mean, variance)), demand) in agents {
                    let worth = mean + OPTIMISM * variance.sqrt() - NEUTRAL;
                    let over = ((worth - *price) / TEMPERATURE).clamp(-30.0, 30.0);
                    let share = 1.0 / (1.0 + (-over).exp());
                    *target = (GAIN * share * demand).clamp(RATE_MIN, RATE_MAX);
                }
                let used: f64 =
                    rates.iter().zip(demand.iter()).map(|(rate, demand)| rate.min(*demand)).sum();
                *price = (*price + PRICE_RATE * (used / capacity - USE_TARGET)).max(0.0);
            }
            Law::Greedy => {
                for (score, (mean, _)) in score.iter_mut().zip(known) {
                    *score = mean - NEUTRAL;
                }
                fill.rates(score, demand, USE_TARGET * capacity, GAIN, targets);
            }
            Law::Thompson { draws, stream } => {
                if tick.is_multiple_of(DRAW_TICKS) {
                    draws.fill_with(|| stream.normal());
                }
                for ((score, (mean, variance)), draw) in score.iter_mut().zip(known).zip(draws) {
                    *score = mean + DRAW_WEIGHT * variance.sqrt() * *draw - NEUTRAL;
                }
                fill.rates(score, demand, USE_TARGET * capacity, GAIN, targets);
            }
        }
    }
}

impl Actor for Learned {
    fn act(&mut self, tick: usize, capacity: f64) -> &[f64] {
        self.aim(tick, capacity);
        let (share, tokens) = STEP;
        for (rate, target) in self.rates.iter_mut().zip(&self.targets) {
            let (low, high) = (*rate * (1.0 - share) - tokens, *rate * (1.0 + share) + tokens);
            *rate = target.clamp(low, high).clamp(RATE_MIN, RATE_MAX);
        }
        &self.rates
    }

    fn learn(&mut self, asked: Asked<'_>, ratings: &Ratings) {
        let (first, later, when) = DEMAND_RATES;
        let rate = if asked.tick > when { later } else { first };
        for (estimate, demand) in self.demand.iter_mut().zip(asked.demand) {
            *estimate += rate * (demand - *estimate);
        }
        self.quality.fold(ratings);
    }

    fn belief(&self, agent: usize) -> Option<f64> {
        Some(self.quality.mean[agent])
    }
}
