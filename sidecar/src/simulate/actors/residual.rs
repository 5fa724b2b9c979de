//! The policy `ppo` in the simulated world: the residual over all agents, and the one that is shipped.

use std::sync::Arc;

use super::{Adapted, shipped::config};
use crate::{
    policy::{EstimatorKind, Raters, Residual, ResidualState, ppo},
    simulate::World,
};

/// Returns `law` at the start of `world`, with raters weighed as the tuner weighs them.
pub(in crate::simulate) fn residual(world: &World, law: Residual) -> Adapted<'_, Residual> {
    let mut raters = Raters::default();
    let weigh = move |rater: u64, score: f64, state: &ResidualState| {
        raters.weigh(rater, score, state.standing().estimator().belief())
    };
    Adapted::new(world, law, Box::new(weigh))
        .priced(config(EstimatorKind::default()).integrator())
        .believing(|state| Some(state.standing().estimator().belief().mean))
}

/// Returns the law that acts by `learner` and tries nothing.
pub(in crate::simulate) fn settled(learner: &ppo::Learner<ppo::Gaussian>) -> Residual {
    let network = Arc::new(learner.network().clone());
    Residual::new(config(EstimatorKind::default()).price(), 0, network, learner.updates())
}

/// Returns the shipped residual at the start of `world`.
pub(super) fn shipped(world: &World) -> Adapted<'_, Residual> {
    residual(world, settled(&config(EstimatorKind::default()).beginner()))
}
