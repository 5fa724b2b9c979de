//! The rule everybody starts with, over all agents: r ← clamp(r + α·(score − 3)).

use super::{Actor, Asked, fixed::equal};
use crate::simulate::{NEUTRAL, RATE_MAX, RATE_MIN, World, world::Ratings};

pub(super) struct Additive {
    alpha: f64,
    rates: Vec<f64>,
}

impl Additive {
    pub(super) fn new(world: &World, alpha: f64) -> Self {
        Self { alpha, rates: equal(world) }
    }
}

impl Actor for Additive {
    fn act(&mut self, _tick: usize, _capacity: f64) -> &[f64] {
        &self.rates
    }

    fn learn(&mut self, _asked: Asked<'_>, ratings: &Ratings) {
        for (agent, score) in ratings.agents.iter().zip(&ratings.scores) {
            let rate = &mut self.rates[*agent as usize];
            *rate = (*rate + self.alpha * (score - NEUTRAL)).clamp(RATE_MIN, RATE_MAX);
        }
    }
}
