//! An update against an independent autodiff, a problem whose answer is known, and what must be refused.

use super::super::{
    Categorical, Drawn, End, Gaussian, Horizon, Room, Trajectory,
    random::{Random, normal},
};
use super::*;

/// `tests/data/ppo_update.py` made it with JAX and optax in double precision.
#[derive(serde::Deserialize)]
struct Reference {
    actions: Vec<f64>,
    log_densities: Vec<f64>,
    values: Vec<f64>,
    advantages: Vec<f64>,
    returns: Vec<f64>,
    /// Total, policy, value, entropy, KL, share clipped, length of the gradient.
    minibatches: Vec<[f64; 7]>,
}

const AFTER: &[u8] = include_bytes!("../../../../tests/data/ppo_update.f64");

/// The generator of the script.
struct Congruential(u64);

impl Congruential {
    fn numbers<R: Real>(&mut self, count: usize, scale: f64) -> Vec<R> {
        let mut number = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
            self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
            let unit = (self.0 >> 11) as f64 / (1_u64 << 53) as f64;
            R::of(f32::of(scale * (unit * 2.0 - 1.0)).wide())
        };
        (0..count).map(|_| number()).collect()
    }
}

fn reference_update<R: Real>() -> (Learner<Gaussian, R>, Report, Reference) {
    let text = include_str!("../../../../tests/data/ppo_update.json");
    let reference: Reference = serde_json::from_str(text).unwrap();
    let config = Config {
        learning_rate: 1e-3,
        entropy_weight: 0.01,
        kl_stop: 0.0,
        kl_max: 100.0,
        ..Config::default()
    };
    let mut learner = Learner::<_, R>::new(Gaussian::default(), 12, config, 0);
    let mut generator = Congruential(1);
    let actor = learner.network.actor().parameters();
    let mut first = generator.numbers::<R>(actor, 0.25);
    first.extend(generator.numbers::<R>(1, 0.5));
    first.extend(generator.numbers::<R>(actor, 0.25));
    learner.network.parameters_mut().copy_from_slice(&first);
    let of = |column: &[f64]| column.iter().map(|&x| R::of(x)).collect::<Vec<R>>();
    let batch = Batch {
        width: 12,
        observations: generator.numbers(256 * 12, 1.0),
        actions: reference.actions.iter().map(|&x| f32::of(x)).collect(),
        log_densities: of(&reference.log_densities),
        values: of(&reference.values),
        advantages: of(&reference.advantages),
        returns: of(&reference.returns),
    };
    let reorder = |order: &mut [usize]| {
        let old = order.to_vec();
        (0..old.len()).for_each(|n| order[n] = old[(77 * n + 13) % old.len()]);
    };
    let report = learner.update_in(&batch, reorder).unwrap();
    (learner, report, reference)
}

fn after() -> Vec<f64> {
    let (numbers, _) = AFTER.as_chunks::<8>();
    numbers.iter().map(|&bytes| f64::from_le_bytes(bytes)).collect()
}

/// The largest distance from the reference of a parameter, and how far parameters moved at most.
fn distance<R: Real>(learner: &Learner<Gaussian, R>) -> (f64, f64) {
    let actor = learner.network.actor().parameters();
    let mut generator = Congruential(1);
    let mut first = generator.numbers::<f64>(actor, 0.25);
    first.extend(generator.numbers::<f64>(1, 0.5));
    first.extend(generator.numbers::<f64>(actor, 0.25));
    let after = after();
    assert_eq!(after.len(), 10_115);
    let most = |distances: &mut dyn Iterator<Item = f64>| distances.fold(0.0, f64::max);
    let found = learner.network.parameters().iter();
    (
        most(&mut found.zip(&after).map(|(found, after)| (found.wide() - after).abs())),
        most(&mut first.iter().zip(&after).map(|(first, after)| (first - after).abs())),
    )
}

#[test]
fn a_whole_update_in_double_precision_is_the_one_that_jax_makes() {
    let (learner, report, reference) = reference_update::<f64>();
    let (error, moved) = distance(&learner);
    assert!(moved > 5e-3, "the update is one: {moved}");
    assert!(error < 1e-11, "parameters differ by {error:e}");
    let mean =
        |column: usize| reference.minibatches.iter().map(|part| part[column]).sum::<f64>() / 16.0;
    let Losses { policy, value, entropy, total, kl, clipped } = report.losses;
    let found = [total, policy, value, entropy, kl, clipped];
    for (column, found) in found.into_iter().enumerate() {
        assert!((found - mean(column)).abs() < 1e-12, "column {column}: {found}");
    }
    let longest = reference.minibatches.iter().map(|part| part[6]).fold(0.0, f64::max);
    assert!((report.gradient_norm - longest).abs() < 1e-12);
    assert!(longest > 0.5, "gradients were cut");
    assert!(clipped > 0.2, "ratios were clipped");
    assert_eq!(report.steps, 16);
}

#[test]
fn a_whole_update_in_single_precision_is_right_to_a_thousandth_of_the_way_it_goes() {
    let (learner, ..) = reference_update::<f32>();
    let (error, moved) = distance(&learner);
    assert!(error < 1e-3 * moved, "parameters differ by {error:e} of {moved:e}");
}

/// One step an episode, worth 1 − (a − best(x))² for a context x.
fn best(context: f32) -> f32 {
    0.4 * context - 0.15
}

fn play(learner: &Learner<Gaussian>, random: &mut Random, samples: usize) -> Batch<f32> {
    let (mut batch, mut room) = (Batch::new(2), Room::default());
    let mut trajectory = Trajectory::new(2);
    for _ in 0..samples {
        let context = f32::of(normal(random)).clamp(-1.0, 1.0);
        let observation = [context, 1.0];
        let drawn = learner.network().draw(&observation, &mut room, random);
        let value = learner.network().value(&observation, &mut room);
        let reward = 1.0 - (drawn.action - best(context)).powi(2);
        trajectory.push(&observation, value, drawn, reward, End::Terminated);
    }
    trajectory.finish(0.0, Horizon { discount: 0.97, lambda: 0.95 }, &mut batch);
    batch
}

#[test]
fn on_a_bandit_of_one_step_it_finds_the_best_action_of_every_context() {
    for seed in 0..3 {
        let config = Config { learning_rate: 3e-3, anneal_updates: 150, ..Config::default() };
        let mut learner = Learner::<_, f32>::new(Gaussian::default(), 2, config, seed);
        let mut random = stream(seed, Purpose::Environment, 0);
        let mut room = Room::default();
        let first = learner.network().best(&[0.5, 1.0], &mut room);
        assert!((first - best(0.5)).abs() < 0.1 || first.abs() < 0.1, "it begins knowing nothing");
        for _ in 0..150 {
            let batch = play(&learner, &mut random, 256);
            learner.update(&batch).unwrap();
        }
        for context in [-1.0, -0.5, 0.0, 0.5, 1.0] {
            let found = learner.network().best(&[context, 1.0], &mut room);
            let error = (found - best(context)).abs();
            assert!(error < 0.05, "seed {seed}, context {context}: {found}");
        }
        let value = learner.network().value(&[0.0, 1.0], &mut room);
        let variance = (2.0 * learner.network().free()[0]).exp();
        assert!((value - (1.0 - variance)).abs() < 0.05, "the critic knows what it is worth");
    }
}

fn learner(config: Config) -> Learner<Gaussian> {
    Learner::new(Gaussian::default(), 2, config, 5)
}

fn batch_for(learner: &Learner<Gaussian>) -> Batch<f32> {
    play(learner, &mut stream(8, Purpose::Environment, 0), 256)
}

fn same(one: &Learner<Gaussian>, other: &Learner<Gaussian>) -> bool {
    let bits = |learner: &Learner<Gaussian>| {
        learner.network.parameters().iter().map(|x| x.to_bits()).collect::<Vec<_>>()
    };
    bits(one) == bits(other) && one.adam == other.adam && one.updates == other.updates
}

#[test]
fn the_same_seed_and_samples_give_the_same_bits_and_another_seed_others() {
    let mut one = learner(Config::default());
    let mut two = one.clone();
    let batch = batch_for(&one);
    one.update(&batch).unwrap();
    two.update(&batch).unwrap();
    assert!(same(&one, &two));
    let mut other = Learner { seed: 6, ..learner(Config::default()) };
    other.update(&batch).unwrap();
    assert!(!same(&one, &other), "the order of minibatches is the seed's");
    let mut later = Learner { updates: 1, ..learner(Config::default()) };
    later.update(&batch).unwrap();
    assert_ne!(one.network, later.network, "and another in each update");
}

#[test]
fn what_is_not_finite_is_refused_by_name_and_changes_nothing() {
    let mut learner = learner(Config::default());
    let good = batch_for(&learner);
    learner.update(&good).unwrap();
    let before = learner.clone();
    type Spoil = fn(&mut Batch<f32>);
    let spoiled: [(&str, Spoil); 3] = [
        ("an observation", |batch| batch.observations[7] = f32::NAN),
        ("a return", |batch| batch.returns[0] = f32::INFINITY),
        ("a log-probability", |batch| batch.log_densities[9] = f32::NEG_INFINITY),
    ];
    for (what, spoil) in spoiled {
        let mut batch = good.clone();
        spoil(&mut batch);
        assert_eq!(learner.update(&batch), Err(LearnError::NotFinite { what }));
        assert!(same(&learner, &before), "{what}");
    }
    // Finite, and its square is not.
    let mut batch = good.clone();
    batch.returns[0] = 1e30;
    assert!(matches!(learner.update(&batch), Err(LearnError::NotFinite { .. })));
    assert!(same(&learner, &before));
    learner.network.parameters_mut()[3] = f32::NAN;
    assert!(matches!(learner.update(&good), Err(LearnError::NotFinite { .. })));
}

#[test]
fn a_batch_of_no_use_is_refused() {
    let mut learner = learner(Config::default());
    assert_eq!(learner.update(&Batch::new(2)), Err(LearnError::Size { samples: 0 }));
    let width = Err(LearnError::Width { found: 3, expected: 2 });
    assert_eq!(learner.update(&Batch::new(3)), width);
    assert_eq!(learner.updates(), 0);
}

#[test]
fn an_update_that_moves_the_policy_too_far_is_undone_and_says_how_far() {
    let wild = Config { learning_rate: 0.5, kl_stop: 0.0, ..Config::default() };
    let mut learner = learner(wild);
    let (batch, before) = (batch_for(&learner), learner.clone());
    match learner.update(&batch) {
        Err(LearnError::Diverged { kl, most }) => assert!(kl > most && most == 0.5),
        Err(LearnError::NotFinite { .. }) => {}
        other => panic!("{other:?}"),
    }
    assert!(same(&learner, &before));
}

#[test]
fn an_update_stops_where_the_policy_has_moved_far_enough() {
    let config = Config { learning_rate: 1e-2, kl_stop: 0.015, ..Config::default() };
    let mut stopped = learner(config.clone());
    let batch = batch_for(&stopped);
    let report = stopped.update(&batch).unwrap();
    assert!(report.stopped && report.steps > 0 && report.steps < 16, "{report:?}");
    let mut free = learner(Config { kl_stop: 0.0, ..config });
    let unbounded = free.update(&batch).unwrap();
    assert!(!unbounded.stopped && unbounded.steps == 16);
    assert!(report.kl < unbounded.kl, "{} and {}", report.kl, unbounded.kl);
}

#[test]
fn a_reward_of_a_million_once_moves_no_parameter_further_than_any_update_may() {
    let mut learner = learner(Config::default());
    let (mut batch, before) = (batch_for(&learner), learner.clone());
    batch.returns[17] = 1e6;
    batch.advantages[17] = 1e6;
    let report = learner.update(&batch).unwrap();
    let pairs = learner.network.parameters().iter().zip(before.network.parameters());
    let moved = pairs.map(|(now, then)| (now - then).abs()).fold(0.0, f32::max);
    // Adam's step is at most its rate × (1 − β₁)/√(1 − β₂) ≈ 3.2 (Kingma and Ba 2015, section 2.1).
    let bound = f64::from(report.steps) * report.learning_rate * 3.2;
    assert!(moved.wide() <= bound, "{moved} of {bound}");
    assert!(report.kl <= 0.5 && report.gradient_norm > 1e3);
}

#[test]
fn a_batch_is_cut_into_equal_parts_and_every_sample_is_used_once_an_epoch() {
    for (samples, minibatch, steps) in
        [(256, 64, 4), (300, 64, 4), (63, 64, 1), (2, 64, 1), (130, 64, 2)]
    {
        let config = Config { minibatch, epochs: 1, kl_stop: 0.0, ..Config::default() };
        let mut learner = learner(config);
        let batch = play(&learner, &mut stream(8, Purpose::Environment, 0), samples);
        assert_eq!(learner.update(&batch).unwrap().steps, steps, "{samples} by {minibatch}");
    }
}

#[test]
fn choices_among_actions_learn_too() {
    let config = Config { learning_rate: 3e-3, ..Config::default() };
    let mut learner = Learner::<_, f32>::new(Categorical { actions: 3 }, 1, config, 1);
    let mut room = Room::default();
    let mut random = stream(1, Purpose::Environment, 0);
    for _ in 0..60 {
        let (mut batch, mut trajectory) = (Batch::new(1), Trajectory::new(1));
        for n in 0..128 {
            let context = if n % 2 == 0 { 1.0 } else { -1.0 };
            let drawn: Drawn<usize> = learner.network().draw(&[context], &mut room, &mut random);
            let value = learner.network().value(&[context], &mut room);
            let right = if context > 0.0 { 2 } else { 0 };
            let reward = if drawn.action == right { 1.0 } else { 0.0 };
            trajectory.push(&[context], value, drawn, reward, End::Terminated);
        }
        trajectory.finish(0.0, learner.config().horizon(), &mut batch);
        learner.update(&batch).unwrap();
    }
    assert_eq!([1.0, -1.0].map(|x| learner.network().best(&[x], &mut room)), [2, 0]);
}
