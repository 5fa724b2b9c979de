//! Finite differences for every branch of the loss, each alone and known to be taken, then all at once.

use super::super::{
    Categorical, Gaussian,
    random::{Purpose, normal, stream},
};
use super::*;

const WEIGHTS: Weights =
    Weights { clip: 0.2, value_clip: Some(0.2), value: 0.5, entropy: 0.01, normalize: false };

/// Where the samples of a batch lie: what ρ is, what Â is, how far the value is from the old one, and
/// how far the old value is from its target.
#[derive(Clone, Copy)]
struct Case {
    ratio: f64,
    advantage: f64,
    moved: f64,
    missing: f64,
}

const INSIDE: Case = Case { ratio: 1.05, advantage: 1.0, moved: 0.1, missing: 1.0 };

struct Owned<A> {
    observations: Vec<f64>,
    actions: Vec<A>,
    log_densities: Vec<f64>,
    values: Vec<f64>,
    advantages: Vec<f64>,
    returns: Vec<f64>,
}

impl<A> Owned<A> {
    fn samples(&self) -> Samples<'_, A, f64> {
        Samples {
            observations: &self.observations,
            actions: &self.actions,
            log_densities: &self.log_densities,
            values: &self.values,
            advantages: &self.advantages,
            returns: &self.returns,
        }
    }
}

/// Networks that are no longer symmetric, and samples that lie as `cases` say, by setting what was old.
fn world<H: Head>(head: H, cases: &[Case]) -> (ActorCritic<H, f64>, Owned<H::Action>) {
    let mut network = ActorCritic::new(head, 12, 16, 1);
    let mut random = stream(2, Purpose::Weights, 9);
    network.parameters_mut().iter_mut().for_each(|weight| *weight += 0.2 * normal(&mut random));
    let observations: Vec<f64> = (0..12 * cases.len()).map(|_| normal(&mut random)).collect();
    let (mut drawn, mut values) = (Vec::new(), Vec::new());
    let mut passes = Passes::default();
    network.draws(&observations, &mut passes, &mut random, &mut drawn);
    network.values(&observations, &mut passes, &mut values);
    let owned = Owned {
        observations,
        actions: drawn.iter().map(|drawn| drawn.action).collect(),
        log_densities: drawn.iter().zip(cases).map(|(d, c)| d.log_density - c.ratio.ln()).collect(),
        values: values.iter().zip(cases).map(|(v, c)| v - c.moved).collect(),
        advantages: cases.iter().map(|case| case.advantage).collect(),
        returns: values.iter().zip(cases).map(|(v, c)| v - c.moved + c.missing).collect(),
    };
    (network, owned)
}

/// Checks all parameters; returns the norms of the actor's, the free parameters' and the critic's gradient.
fn differences<H: Head>(head: H, cases: &[Case], weights: &Weights) -> [f64; 3] {
    let (mut network, owned) = world(head, cases);
    let mut passes = Passes::default();
    let mut slopes_found = vec![f64::NAN; network.parameters().len()];
    gradient(&network, &owned.samples(), weights, &mut passes, &mut slopes_found);
    for (n, &found) in slopes_found.iter().enumerate() {
        let parameter = network.parameters()[n];
        let mut loss = |step: f64| {
            network.parameters_mut()[n] = parameter + step;
            slopes(&network, &owned.samples(), weights, &mut passes).total
        };
        let slope = (loss(1e-5) - loss(-1e-5)) / 2e-5;
        network.parameters_mut()[n] = parameter;
        let error = (found - slope).abs() / (1.0 + slope.abs());
        assert!(error < 1e-8, "parameter {n}: {found} for {slope}");
    }
    let free = network.free_range();
    let norm = |slopes: &[f64]| slopes.iter().map(|x| x * x).sum::<f64>().sqrt();
    let (actor, rest) = slopes_found.split_at(free.start);
    let (free, critic) = rest.split_at(free.len());
    [norm(actor), norm(free), norm(critic)]
}

/// One sample taught by the policy's loss alone.
fn policy_only(ratio: f64, advantage: f64) -> [f64; 3] {
    let weights = Weights { value: 0.0, entropy: 0.0, ..WEIGHTS };
    let cases = [Case { ratio, advantage, ..INSIDE }; 3];
    let gaussian = differences(Gaussian { log_std: -0.3 }, &cases, &weights);
    let categorical = differences(Categorical { actions: 4 }, &cases, &weights);
    assert_eq!(gaussian[0] > 0.0, categorical[0] > 0.0, "both heads or none");
    gaussian
}

#[test]
fn inside_the_clip_both_signs_of_the_advantage_teach_actor_and_deviation() {
    for (ratio, advantage) in [(1.05, 1.5), (0.9, 1.5), (1.05, -1.5), (0.9, -1.5)] {
        let [actor, free, critic] = policy_only(ratio, advantage);
        assert!(actor > 1e-3 && free > 1e-3, "ratio {ratio}, advantage {advantage}");
        assert_eq!(critic, 0.0);
    }
}

#[test]
fn beyond_the_clip_a_sample_that_already_moved_the_right_way_teaches_nothing() {
    assert_eq!(policy_only(1.4, 1.5), [0.0; 3], "likelier, and good");
    assert_eq!(policy_only(0.6, -1.5), [0.0; 3], "rarer, and bad");
}

#[test]
fn beyond_the_clip_a_sample_that_moved_the_wrong_way_teaches_in_full() {
    for (ratio, advantage) in [(0.6, 1.5), (1.4, -1.5)] {
        let [actor, free, _] = policy_only(ratio, advantage);
        assert!(actor > 1e-3 && free > 1e-3, "ratio {ratio}, advantage {advantage}");
    }
}

/// One sample taught by the value's loss alone.
fn value_only(moved: f64, missing: f64, value_clip: Option<f64>) -> f64 {
    let weights = Weights { entropy: 0.0, value_clip, ..WEIGHTS };
    let cases = [Case { advantage: 0.0, moved, missing, ..INSIDE }; 3];
    let [actor, free, critic] = differences(Gaussian::default(), &cases, &weights);
    assert_eq!([actor, free], [0.0; 2]);
    critic
}

#[test]
fn a_value_inside_its_clip_learns_and_one_that_already_moved_beyond_it_does_not() {
    for (moved, missing) in [(0.1, 1.0), (-0.1, 1.0), (0.1, -1.0), (0.0, 1.0)] {
        assert!(value_only(moved, missing, Some(0.2)) > 1e-3, "moved {moved} of {missing}");
    }
    assert_eq!(value_only(0.5, 1.0, Some(0.2)), 0.0, "on its way, and further than it may");
    assert_eq!(value_only(-0.5, -1.0, Some(0.2)), 0.0);
}

#[test]
fn a_value_that_moved_away_or_far_past_its_target_learns_whatever_the_clip() {
    assert!(value_only(-0.5, 1.0, Some(0.2)) > 1e-3, "away");
    assert!(value_only(3.0, 1.0, Some(0.2)) > 1e-3, "past");
    assert!(value_only(0.5, 1.0, None) > 1e-3, "without a clip");
}

#[test]
fn entropy_teaches_the_logits_and_the_deviation() {
    let weights = Weights { value: 0.0, entropy: 0.7, ..WEIGHTS };
    let cases = [Case { advantage: 0.0, ..INSIDE }; 3];
    let [actor, free, _] = differences(Gaussian { log_std: 0.4 }, &cases, &weights);
    assert_eq!(actor, 0.0, "the entropy of a normal distribution does not know its mean");
    assert!((free - 0.7).abs() < 1e-12, "d H / d log σ = 1");
    let [actor, ..] = differences(Categorical { actions: 4 }, &cases, &weights);
    assert!(actor > 1e-3);
}

#[test]
fn all_branches_at_once_with_normalised_advantages() {
    let mut cases = Vec::new();
    for ratio in [0.6, 0.9, 1.05, 1.4] {
        for advantage in [-1.5, 0.7] {
            for (moved, missing) in [(0.1, 1.0), (0.5, 1.0), (-0.5, 1.0), (3.0, 1.0)] {
                cases.push(Case { ratio, advantage, moved, missing });
            }
        }
    }
    let weights = Weights { normalize: true, ..WEIGHTS };
    assert!(differences(Gaussian { log_std: -0.3 }, &cases, &weights).iter().all(|&n| n > 1e-3));
    let [actor, _, critic] = differences(Categorical { actions: 2 }, &cases, &weights);
    assert!(actor > 1e-3 && critic > 1e-3);
}

#[test]
fn the_parts_are_what_their_formulas_say_for_one_sample_worked_out_by_hand() {
    let cases = [Case { ratio: 1.4, advantage: 2.0, moved: 0.5, missing: 1.0 }];
    let (network, owned) = world(Gaussian { log_std: 0.0 }, &cases);
    let losses = slopes(&network, &owned.samples(), &WEIGHTS, &mut Passes::default());
    let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found}");
    close(losses.policy, -2.0 * 1.2);
    close(losses.value, 0.5 * 0.8 * 0.8);
    close(losses.entropy, 0.5 + 0.5 * std::f64::consts::TAU.ln() + network.free()[0]);
    close(losses.kl, 0.4 - 1.4_f64.ln());
    close(losses.clipped, 1.0);
    close(losses.total, losses.policy + 0.5 * losses.value - 0.01 * losses.entropy);
}

#[test]
fn advantages_are_normalised_with_the_unbiased_deviation() {
    let (mean, deviation) = moments(&[1.0, 2.0, 3.0, 6.0], true);
    assert_eq!(mean, 3.0);
    assert!((deviation - (14.0_f64 / 3.0).sqrt()).abs() < 1e-7);
    assert_eq!(moments(&[5.0], true), (0.0, 1.0));
    assert_eq!(moments(&[1.0, 2.0], false), (0.0, 1.0));
}
