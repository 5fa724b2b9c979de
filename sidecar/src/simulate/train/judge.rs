//! What a trained residual is worth: side by side with the base law, in worlds that taught nothing.

use serde::Serialize;

use crate::{
    policy::Residual,
    simulate::{
        Interval, Outcome, PolicyName, REGIMES, Regime, Seeds, World, actors::residual, run,
        run_actor, world::count,
    },
};

/// The residual beside the base law in one regime.
#[derive(Clone, Debug, Serialize)]
pub struct Verdict {
    /// The regime's name.
    pub regime: &'static str,
    /// Share of the reference that `price` gets, in per cent, mean over seeds.
    pub price: f64,
    /// The same of `ppo`.
    pub ppo: f64,
    /// By how many points `ppo` is better, in pairs of the same world: mean, and the 95 % interval's ends
    /// (none for a single seed).
    pub difference: [Option<f64>; 3],
    /// Mean |Δ ln r| of an agent in a tick with `ppo`, in per cent.
    pub step_percent: f64,
    /// Requests that found no capacity with `ppo`, in per cent of those served.
    pub shed_percent: f64,
}

/// All regimes.
#[derive(Clone, Debug, Serialize)]
pub struct Judged {
    /// The worlds' seeds, first and last.
    pub seeds: String,
    /// One for each regime.
    pub regimes: Vec<Verdict>,
}

/// Compares `law` with its base law in all named regimes, in the worlds of `seeds`, and calls `progress`
/// after each world.
pub(super) fn judge(
    law: &Residual,
    seeds: Seeds,
    size: (usize, usize),
    progress: &mut dyn FnMut(),
) -> Judged {
    let regimes = REGIMES.iter().map(|regime| {
        let worlds = seeds.iter().map(|seed| {
            let pair = pair(law, *regime, seed, size);
            progress();
            pair
        });
        verdict(regime.name, &worlds.collect::<Vec<_>>())
    });
    Judged { regimes: regimes.collect(), seeds: seeds.to_string() }
}

/// One world: shares of the reference, and how `ppo` did otherwise.
struct Pair {
    price: f64,
    ppo: f64,
    step: f64,
    shed: f64,
}

fn pair(law: &Residual, regime: Regime, seed: u64, (agents, ticks): (usize, usize)) -> Pair {
    let world = World::new(regime, seed, agents, ticks);
    let reference = run(PolicyName::Reference, &world, None).total();
    let share = |outcome: &Outcome| 100.0 * outcome.total() / reference;
    let price = run(PolicyName::Price, &world, None);
    let ppo = run_actor(Box::new(residual(&world, law.clone())), &world, None);
    Pair { price: share(&price), ppo: share(&ppo), step: ppo.step, shed: ppo.shed }
}

fn verdict(regime: &'static str, pairs: &[Pair]) -> Verdict {
    let mean = |of: fn(&Pair) -> f64| pairs.iter().map(of).sum::<f64>() / count(pairs.len());
    let differences: Vec<f64> = pairs.iter().map(|pair| pair.ppo - pair.price).collect();
    let interval = Interval::of(&differences);
    let end = |end: f64| interval.half_width.map(|_| end);
    Verdict {
        regime,
        price: mean(|pair| pair.price),
        ppo: mean(|pair| pair.ppo),
        difference: [Some(interval.mean), end(interval.low()), end(interval.high())],
        step_percent: 100.0 * mean(|pair| pair.step),
        shed_percent: 100.0 * mean(|pair| pair.shed),
    }
}
