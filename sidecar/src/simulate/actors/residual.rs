//! The policy `ppo` in the simulated world: the residual over all agents, and the one that is shipped.

use std::sync::Arc;

use super::{
    Adapted,
    shipped::{config, trusting},
};
use crate::{
    policy::{EstimatorKind, Residual, ResidualState, ppo},
    simulate::World,
};

/// Returns `law` at the start of `world`, with raters weighed as the tuner weighs them.
pub(in crate::simulate) fn residual(world: &World, law: Residual) -> Adapted<'_, Residual> {
    Adapted::new(world, law, trusting(ResidualState::standing))
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
