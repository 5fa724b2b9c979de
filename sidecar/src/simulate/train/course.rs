//! The worlds that training goes through: no two alike.
//!
//! Each is a regime drawn at random around the named ones: how scarce capacity is, how much is rated,
//! who changes and when, who lies, who comes in a crowd. What a policy meets in production is none of
//! the named regimes; what is learned in many worlds holds in more of them (domain randomisation: Tobin
//! et al. 2017).

use rand::RngExt;

use crate::{
    policy::ppo::{Purpose, stream},
    simulate::{Dip, Regime, Surge, World},
};

/// The first world's seed. Those below are for tuning and evaluation ([`HELD_OUT`](super::HELD_OUT)).
pub(super) const SEED_FIRST: u64 = 1_000;

/// Returns world `number` of the course of `seed`.
pub(super) fn world(seed: u64, number: u64) -> World {
    let mut random = stream(seed, Purpose::Environment, number);
    // Like neighbours in octaves: half as scarce is as far off as twice as scarce.
    let mut between = |low: f64, high: f64| low * (high / low).powf(random.random::<f64>());
    let (capacity, rated, ticks, agents) =
        (between(0.3, 1.5), between(0.003, 0.05), between(400.0, 2_400.0), between(60.0, 200.0));
    let mut chance = |share: f64| random.random::<f64>() < share;
    let (attacked, crowded, dipped, all_change) =
        (chance(0.35), chance(0.1), chance(0.1), chance(0.3));
    let mut within = |low: f64, high: f64| low + (high - low) * random.random::<f64>();
    let changed = if all_change { 1.0 } else { within(0.0, 0.5) };
    let (bombers, colluders) =
        if attacked { (within(0.0, 0.06), within(0.0, 0.06)) } else { (0.0, 0.0) };
    let identities = if within(0.0, 1.0) < 0.5 { 10 } else { 500 };
    let surge = crowded.then(|| {
        let begin = within(0.1, 0.7);
        let span = (begin, begin + within(0.05, 0.2));
        Surge { span, agents: within(0.05, 0.2), factor: within(2.0, 6.0) }
    });
    let dip = dipped.then(|| {
        let begin = within(0.1, 0.7);
        Dip { span: (begin, begin + within(0.05, 0.2)), left: within(0.4, 0.8) }
    });
    let regime = Regime {
        name: "training",
        about: "drawn at random",
        capacity,
        rated,
        changed,
        bombers,
        colluders,
        identities,
        without_receipt: if within(0.0, 1.0) < 0.5 { 1.0 } else { 0.1 },
        farmed: if attacked && within(0.0, 1.0) < 0.3 { within(0.0, 0.06) } else { 0.0 },
        surge,
        dip,
    };
    // Seeds of other courses follow in blocks that no course reaches the end of.
    let seed = SEED_FIRST + (seed << 32) + number;
    World::new(regime, seed, whole(agents), whole(ticks))
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small and positive")]
fn whole(number: f64) -> usize {
    number as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_world_of_a_course_is_one_that_results_are_shown_of_and_none_comes_twice() {
        let seeds: Vec<u64> =
            (0..3).flat_map(|seed| (0..4).map(move |n| world(seed, n).seed)).collect();
        assert!(seeds.iter().all(|seed| *seed >= SEED_FIRST));
        let distinct: std::collections::BTreeSet<_> = seeds.iter().collect();
        assert_eq!(distinct.len(), seeds.len());
    }

    #[test]
    fn a_course_has_scarce_and_ample_worlds_quiet_and_lying_ones() {
        let worlds: Vec<World> = (0..40).map(|n| world(1, n)).collect();
        let some = |what: fn(&Regime) -> bool| worlds.iter().any(|world| what(&world.regime));
        assert!(some(|regime| regime.capacity < 0.5) && some(|regime| regime.capacity > 1.1));
        assert!(some(|regime| regime.rated < 0.006) && some(|regime| regime.rated > 0.03));
        assert!(some(|regime| regime.changed == 1.0) && some(|regime| regime.changed < 0.2));
        assert!(some(|regime| regime.bombers > 0.0) && some(|regime| regime.bombers == 0.0));
        assert!(some(|regime| regime.surge.is_some()) && some(|regime| regime.dip.is_some()));
    }
}
