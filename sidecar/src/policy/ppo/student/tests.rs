//! Each guardrail of learning, provoked.

use super::super::{Config, Drawn, End, Gaussian, Trajectory};
use super::*;

fn student(config: Config) -> Student<Gaussian> {
    Student::new(Learner::new(Gaussian::default(), 2, config, 1))
}

/// A batch of 64 steps drawn by the student's own networks, each worth `reward`.
fn batch(student: &Student<Gaussian>, seed: u64, reward: f32) -> Batch<f32> {
    let network = student.network();
    let mut random = super::super::stream(seed, super::super::Purpose::Actions, 0);
    let mut trajectory = Trajectory::new(2);
    let mut room = super::super::Room::default();
    for n in 0..64_u8 {
        let observation = [f32::from(n % 8) / 8.0, 0.5];
        let drawn = network.draw(&observation, &mut room, &mut random);
        let value = network.value(&observation, &mut room);
        trajectory.push(&observation, value, drawn, reward, End::Continues);
    }
    let mut batch = Batch::new(2);
    trajectory.finish(0.0, student.learner().config().horizon(), &mut batch);
    batch
}

/// Asserts that `batch` is refused under `name` and changes nothing.
fn refuses(student: &mut Student<Gaussian>, batch: &Batch<f32>, name: &str) {
    let (before, network) = (student.learner().clone(), student.network());
    let refused = student.learn(batch).expect_err("a guardrail");
    assert_eq!(refused.as_str(), name, "{refused}");
    assert_eq!(student.learner().network(), before.network());
    assert_eq!(student.learner().adam().first(), before.adam().first());
    assert_eq!(student.version(), before.updates());
    assert!(Arc::ptr_eq(&student.network(), &network));
    let place = Refused::NAMES.iter().position(|known| *known == name).unwrap();
    assert!(student.refused()[place] >= 1);
}

#[test]
fn what_is_sound_is_learned_and_seen_by_whoever_asks() {
    let mut student = student(Config::default());
    let before = student.network();
    let sound = batch(&student, 1, 0.5);
    student.learn(&sound).unwrap();
    assert_eq!((student.version(), student.refused()), (1, [0; REFUSALS]));
    assert_ne!(*student.network(), *before);
    assert_eq!(*student.network(), *student.learner().network());
}

#[test]
fn a_reward_of_a_million_is_given_up() {
    let mut student = student(Config::default());
    let mut spiked = batch(&student, 1, 0.5);
    let mut trajectory = Trajectory::new(2);
    let drawn = Drawn { action: 0.0, log_density: -1.0 };
    trajectory.push(&[0.1, 0.5], 0.0, drawn, -1e6, End::Terminated);
    trajectory.finish(0.0, student.learner().config().horizon(), &mut spiked);
    refuses(&mut student, &spiked, "reward");
}

#[test]
fn a_number_that_is_none_is_given_up() {
    let mut student = student(Config::default());
    for reward in [f32::NAN, f32::INFINITY] {
        let poisoned = batch(&student, 1, reward);
        refuses(&mut student, &poisoned, "not_finite");
    }
}

#[test]
fn a_policy_that_moves_too_far_is_undone() {
    let config = Config { learning_rate: 0.5, kl_stop: 0.0, kl_max: 0.05, ..Config::default() };
    let mut student = student(config);
    let sound = batch(&student, 1, 0.5);
    refuses(&mut student, &sound, "kl");
}

#[test]
fn a_batch_of_one_step_is_refused() {
    let mut student = student(Config::default());
    refuses(&mut student, &Batch::new(2), "batch");
}

#[test]
fn a_loss_that_jumps_is_undone_and_one_that_stays_high_becomes_usual() {
    let mut student = student(Config { value_clip: 0.0, ..Config::default() });
    for seed in 0..2 * WARM_UP {
        let usual = batch(&student, seed, 0.1);
        student.learn(&usual).unwrap();
    }
    // Within belief as a return, and far from what the critic expects.
    let jumped = batch(&student, 99, 6.0);
    refuses(&mut student, &jumped, "loss");
    let tries = (0..200).find(|&seed| {
        let lasting = batch(&student, 100 + seed, 6.0);
        student.learn(&lasting).is_ok()
    });
    assert!(tries.is_some_and(|tries| tries > 0), "{tries:?}");
}
