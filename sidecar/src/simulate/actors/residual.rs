//! The policy `ppo` in the simulated world: the residual over all agents, and the one that is shipped.

use std::sync::Arc;

use super::Adapted;
use crate::{
    policy::{self, Raters, Residual, ResidualState, ppo},
    simulate::World,
};

/// Returns `law` at the start of `world`, with raters weighed as the tuner weighs them.
pub(in crate::simulate) fn residual(world: &World, law: Residual) -> Adapted<'_, Residual> {
    let mut raters = Raters::default();
    let weigh = move |rater: u64, score: f64, state: &ResidualState| {
        raters.weigh(rater, score, state.standing().estimator().belief())
    };
    Adapted::new(world, law, Box::new(weigh))
}

/// Returns the law that acts by `learner` and tries nothing.
pub(in crate::simulate) fn settled(learner: &ppo::Learner<ppo::Gaussian>) -> Residual {
    let network = Arc::new(learner.network().clone());
    Residual::new(policy::Config::default().price(), 0, network, learner.updates())
}

/// Returns the shipped residual at the start of `world`.
pub(super) fn shipped(world: &World) -> Adapted<'_, Residual> {
    residual(world, settled(&policy::Config::default().beginner()))
}
