//! The policies that ship, with the constants of `[policy]`, driven as the tuner drives them.

use super::{Actor, Adapted, Weigh};
use crate::{
    policy::{Bandit, BanditState, Cohorts, Config, EstimatorKind, Price, Raters, Standing},
    simulate::{
        RATE_MAX, RATE_MIN, World,
        stream::{Purpose, Stream},
    },
};

/// Seconds of its rate that a bucket holds.
const BURST_SECONDS: f64 = 2.0;

/// Ticks between two fits of the bandit's cohorts.
const FIT_TICKS: usize = 250;

/// How many cohorts there are; fewer than one for each ten agents would share too little.
const COHORTS: usize = 6;

/// Returns `[policy]` as it ships, within the rates of the simulation.
pub(in crate::simulate) fn config(estimator: EstimatorKind) -> Config {
    Config {
        r_min: RATE_MIN,
        r_max: RATE_MAX,
        burst_seconds: Some(BURST_SECONDS),
        estimator,
        ..Config::default()
    }
}

/// Returns raters' trust at work: what a rating weighs beside the `standing` in an agent's state.
pub(super) fn trusting<'w, S: 'w>(standing: fn(&S) -> &Standing) -> Weigh<'w, S> {
    let mut raters = Raters::default();
    Box::new(move |rater, score, state| {
        raters.weigh(rater, score, standing(state).estimator().belief())
    })
}

/// Returns the shipped `price` over `estimator`, with trust in raters.
pub(super) fn price<'w>(world: &'w World, estimator: EstimatorKind) -> Box<dyn Actor + 'w> {
    let config = config(estimator);
    let law = Price::new(config.price());
    let actor = Adapted::new(world, law, trusting(|standing| standing)).priced(config.integrator());
    Box::new(actor.believing(|standing| Some(standing.estimator().belief().mean)))
}

/// Returns the shipped `bandit`: every outcome is taken at the tick that ends its epoch, cohorts are
/// fitted from time to time.
pub(super) fn bandit(world: &World) -> Box<dyn Actor + '_> {
    let config = config(EstimatorKind::default());
    let mut draws = Stream::new(world.seed, Purpose::Policy);
    let law = Bandit::new(config.price(), draws.bits());
    let teach = move |tick: usize, law: &mut Bandit, states: &mut [BanditState]| {
        for outcome in states.iter_mut().filter_map(BanditState::take_outcome) {
            law.arms_mut().learn(&outcome);
        }
        if tick.is_multiple_of(FIT_TICKS) {
            let features: Vec<_> =
                states.iter().map(|state| Bandit::features(state.standing())).collect();
            // Fewer agents than cohorts: then there is one for all.
            if let Ok(cohorts) = Cohorts::fit(&features, COHORTS, draws.bits()) {
                law.set_cohorts(cohorts);
            }
        }
    };
    let actor =
        Adapted::new(world, law, trusting(BanditState::standing)).priced(config.integrator());
    let actor = actor.taught(Box::new(teach));
    Box::new(actor.believing(|state| Some(state.standing().estimator().belief().mean)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::{PolicyName, run, run::run_actor};

    fn world(regime: &str) -> World {
        World::new(regime.parse().unwrap(), 31, 60, 600)
    }

    #[test]
    fn the_shipped_laws_repeat_bit_for_bit() {
        let world = world("attack");
        for policy in [PolicyName::Price, PolicyName::PricePageHinkley, PolicyName::Bandit] {
            let (one, other) = (run(policy, &world, None), run(policy, &world, None));
            assert_eq!(one.utility, other.utility, "{policy}");
            assert_eq!(one.rates, other.rates, "{policy}");
        }
    }

    #[test]
    fn trust_in_raters_saves_most_of_what_attackers_take() {
        let total = |world: &World, trust: bool| {
            if trust {
                return run(PolicyName::Price, world, None).total();
            }
            let config = config(EstimatorKind::default());
            let law = Adapted::new(world, Price::new(config.price()), Box::new(|_, _, _| 1.0));
            run_actor(Box::new(law.priced(config.integrator())), world, None).total()
        };
        let long = |regime: &str| World::new(regime.parse().unwrap(), 31, 100, 1500);
        let (quiet, attacked) = (long("base"), long("attack"));
        let lost = total(&quiet, false) - total(&attacked, false);
        let lost_with_trust = total(&quiet, true) - total(&attacked, true);
        assert!(lost > 0.0 && lost_with_trust < 0.5 * lost, "{lost_with_trust} of {lost}");
    }

    #[test]
    fn the_bandit_learns_and_the_estimates_are_told() {
        let world = world("base");
        let taught = run(PolicyName::Bandit, &world, Some(2));
        let config = config(EstimatorKind::default());
        let seed = Stream::new(world.seed, Purpose::Policy).bits();
        let law = Bandit::new(config.price(), seed);
        let alone = Adapted::new(&world, law, Box::new(|_, _, _| 1.0)).priced(config.integrator());
        let alone = run_actor(Box::new(alone), &world, None);
        assert_ne!(taught.rates, alone.rates);
        assert_eq!(taught.watched.map(|watched| watched.belief.len()), Some(600));
    }
}
