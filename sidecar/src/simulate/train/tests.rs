//! Training that is short and the same each time, and what is made of its result.

use super::*;
use crate::simulate::{Seeds, actors::settled};

fn trained(seed: u64) -> (Vec<u8>, u64) {
    let mut refused = 0;
    let course = Course { seed, updates: 3 };
    let trained = learn(course, &mut |_, learned| refused += u64::from(learned.is_err()));
    (trained.encode().unwrap(), refused)
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_another_seed_others() {
    let first = trained(1);
    assert_eq!(first, trained(1));
    assert_ne!(first.0, trained(2).0);
    assert_eq!(first.1, 0, "nothing was refused");
}

#[test]
fn what_was_trained_can_be_gone_on_with() {
    let expected = policy::expected(&config(3).ppo);
    let read = Checkpoint::decode(&trained(1).0, &expected).unwrap();
    assert_eq!(read.learner.updates(), 3);
    assert!(read.notes["course"].starts_with("seed 1, 3 updates"));
}

#[test]
fn a_residual_that_says_nothing_is_judged_to_be_worth_nothing() {
    let ppo = config(1).ppo;
    let mut quiet = Checkpoint::decode(&trained(1).0, &policy::expected(&ppo))
        .unwrap()
        .learner
        .network()
        .clone();
    quiet.parameters_mut().fill(0.0);
    let law = settled(&policy::Config::default().beginner());
    let mut law = law;
    law.set_network(std::sync::Arc::new(quiet), 1);
    let seeds: Seeds = "600..601".parse().unwrap();
    let mut worlds = 0;
    let judged = judge::judge(&law, seeds, (20, 100), &mut || worlds += 1);
    assert_eq!(worlds, 2 * judged.regimes.len());
    for verdict in &judged.regimes {
        assert_eq!(verdict.difference, [Some(0.0); 3], "{}", verdict.regime);
        assert_eq!(verdict.price, verdict.ppo);
    }
}

#[test]
fn seeds_that_may_be_trained_with_are_not_judged_by() {
    let out = std::path::Path::new("never-written");
    let seeds = "990..1000".parse().unwrap();
    let error = train(Course { seed: 1, updates: 1 }, out, seeds, false).unwrap_err();
    assert!(error.is_usage() && error.to_string().contains("from 1000 on"), "{error}");
}
