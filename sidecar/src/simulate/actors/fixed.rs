//! Policies that learn nothing: the fixed ones, and those that see the world.

use super::{Actor, Asked, fill::Fill};
use crate::simulate::{
    NEUTRAL, RATE_MAX, World,
    world::{Ratings, count},
};

/// The same rate for ever.
pub(super) struct Fixed {
    rates: Vec<f64>,
}

impl Fixed {
    /// Everybody's share of capacity.
    pub(super) fn equal(world: &World) -> Self {
        Self { rates: equal(world) }
    }

    /// The largest rate for everybody.
    pub(super) fn most(world: &World) -> Self {
        Self { rates: vec![RATE_MAX; world.agents()] }
    }
}

impl Actor for Fixed {
    fn act(&mut self, _tick: usize, _capacity: f64) -> &[f64] {
        &self.rates
    }

    fn learn(&mut self, _asked: Asked<'_>, _ratings: &Ratings) {}
}

/// Returns everybody's share of the capacity at the start.
pub(in crate::simulate) fn equal(world: &World) -> Vec<f64> {
    vec![world.capacity(0) / count(world.agents()); world.agents()]
}

/// How much more than it uses an agent's rate leaves room for: arrivals come in bursts.
pub(super) const GAIN: f64 = 1.15;

/// Knows true quality and mean demand: what the others are measured against.
pub(super) struct Reference<'w> {
    world: &'w World,
    fill: Fill,
    score: Vec<f64>,
    rates: Vec<f64>,
}

impl<'w> Reference<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        let fill = Fill::new(world.agents());
        Self { world, fill, score: vec![0.0; world.agents()], rates: equal(world) }
    }
}

impl Actor for Reference<'_> {
    fn act(&mut self, tick: usize, capacity: f64) -> &[f64] {
        worth(self.world, tick, &mut self.score);
        let demand = self.world.mean_demand(tick);
        self.fill.rates(&self.score, demand, capacity, GAIN, &mut self.rates);
        &self.rates
    }

    fn learn(&mut self, _asked: Asked<'_>, _ratings: &Ratings) {}

    fn belief(&self, _agent: usize) -> Option<f64> {
        None
    }
}

/// Knows the arrivals too.
pub(super) struct Clairvoyant<'w> {
    world: &'w World,
    fill: Fill,
    score: Vec<f64>,
    rates: Vec<f64>,
    admitted: Vec<f64>,
}

impl<'w> Clairvoyant<'w> {
    pub(super) fn new(world: &'w World) -> Self {
        let nothing = vec![0.0; world.agents()];
        let fill = Fill::new(world.agents());
        Self { world, fill, score: nothing.clone(), rates: equal(world), admitted: nothing }
    }
}

impl Actor for Clairvoyant<'_> {
    fn act(&mut self, _tick: usize, _capacity: f64) -> &[f64] {
        &self.rates
    }

    fn admit(&mut self, tick: usize) -> Option<&[f64]> {
        worth(self.world, tick, &mut self.score);
        let (arrivals, capacity) = (self.world.demand(tick), self.world.capacity(tick));
        self.fill.admissions(&self.score, arrivals, capacity, &mut self.admitted);
        Some(&self.admitted)
    }

    fn learn(&mut self, _asked: Asked<'_>, _ratings: &Ratings) {}
}

/// Writes what serving each agent once is worth.
fn worth(world: &World, tick: usize, score: &mut [f64]) {
    for (score, quality) in score.iter_mut().zip(world.quality(tick)) {
        *score = quality - NEUTRAL;
    }
}
