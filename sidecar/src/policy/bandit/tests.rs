//! Arms, their draws and their outcomes.

use super::*;
use crate::policy::{BaseLaw, EstimatorConfig, GuardConfig, Reason};

const MARKET: Market = Market { price: 0.2, use_share: 0.9, tick_ms: 1_000 };

fn config(mode: Mode) -> PriceConfig {
    let (r_min, r_max) = (0.5, 40.0);
    let guard = GuardConfig { r_min, r_max, step: 0.25, slack: 0.05, evidence_min: 1.0, mode };
    let (base, estimator) = (BaseLaw::within(r_min, r_max), EstimatorConfig::default());
    PriceConfig { base, estimator, guard, burst_seconds: None }
}

fn bandit() -> Bandit {
    Bandit::new(config(Mode::Live), 1)
}

fn begin(bandit: &Bandit) -> BanditState {
    bandit.begin(Limits::per_second(10.0, 20).unwrap())
}

fn vote(rater: u64) -> Vote {
    Vote { score: 5.0, rater, at_ms: 1_700_000_000_000, weight: 1.0 }
}

/// Returns the standard normal distribution function, by Simpson's rule: independent of the grid.
fn below(z: f64) -> f64 {
    let (low, steps) = (-12.0, 4_000);
    let width = (z - low) / f64::from(steps);
    let density = |x: f64| (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt();
    let inner: f64 = (1..steps)
        .map(|n| density(low + f64::from(n) * width) * if n % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    (density(low) + inner + density(z)) * width / 3.0
}

#[test]
fn arms_nobody_tried_are_drawn_alike() {
    for chance in propensities(&[(0.0, 0.25); ARMS]) {
        assert!((chance - 1.0 / 7.0).abs() < 1e-6, "{chance}");
    }
}

#[test]
fn of_two_arms_the_better_is_drawn_as_often_as_the_normal_distribution_says() {
    // P(θ₀ > θ₁) = Φ((μ₀ − μ₁)/√(σ₀² + σ₁²)); the others have no chance. Widths as far apart as they
    // get: 4 and 404 outcomes.
    let mut posteriors = [(-9.0, 0.03); ARMS];
    (posteriors[0], posteriors[1]) = ((0.1, 0.25), (0.0, 0.025));
    let chances = propensities(&posteriors);
    let expected = below(0.1 / (0.25_f64.powi(2) + 0.025_f64.powi(2)).sqrt());
    assert!((chances[0] - expected).abs() < 1e-3, "{} is not {expected}", chances[0]);
    assert!((chances[0] + chances[1] - 1.0).abs() < 1e-9);
}

#[test]
fn arms_are_drawn_as_often_as_their_propensity_says() {
    let mut arms = Arms::default();
    for (arm, rewards) in [(1, [0.2; 9]), (3, [0.1; 9]), (6, [-0.3; 9])] {
        for reward in rewards {
            arms.learn(&Outcome { row: 0, arm, reward, propensity: 1.0 });
        }
    }
    let mut chance = Chance::new(4);
    let (mut counts, mut told) = ([0.0; ARMS], [0.0; ARMS]);
    let draws = 20_000;
    for _ in 0..draws {
        let (arm, propensity) = arms.draw(0, &mut chance).unwrap();
        counts[usize::from(arm)] += 1.0;
        told[usize::from(arm)] = propensity;
    }
    for arm in 0..ARMS {
        let (share, told) = (counts[arm] / f64::from(draws), told[arm]);
        let error = (told * (1.0 - told) / f64::from(draws)).sqrt();
        assert!((share - told).abs() < 4.0 * error + 1e-3, "arm {arm}: {share}, told {told}");
    }
}

#[test]
fn the_arm_that_pays_is_drawn_more_and_more() {
    let mut arms = Arms::default();
    let (mut chance, mut noise) = (Chance::new(5), Chance::new(6));
    let mut late = 0;
    for round in 0..2_000 {
        let (arm, propensity) = arms.draw(2, &mut chance).unwrap();
        let paid = if arm == 5 { 0.3 } else { 0.0 };
        let reward = paid + DEVIATION * noise.normal();
        assert!(arms.learn(&Outcome { row: 2, arm, reward, propensity }));
        late += i32::from(round >= 1_500 && arm == 5);
    }
    assert!(late > 425, "{late} of the last 500");
    assert_eq!(arms.posterior(1, 5), Some((0.0, DEVIATION / 2.0)), "other cohorts learned nothing");
}

#[test]
fn a_world_that_turns_round_is_noticed() {
    let mut arms = Arms::default();
    let mut learn = |reward: f64| arms.learn(&Outcome { row: 0, arm: 0, reward, propensity: 1.0 });
    (0..100_000).for_each(|_| assert!(learn(1.0)));
    (0..2_000).for_each(|_| assert!(learn(-1.0)));
    assert!(arms.posterior(0, 0).unwrap().0 < -0.9);
}

#[test]
fn a_spike_counts_as_little_as_it_may_and_what_is_no_number_not_at_all() {
    let mut arms = Arms::default();
    assert!(arms.learn(&Outcome { row: 0, arm: 2, reward: 1e6, propensity: 0.1 }));
    // One outcome of 4 beside four of the prior: 4/5.
    assert_eq!(arms.posterior(0, 2).unwrap().0, 0.8);
    for (row, arm, reward) in [(0, 2, f64::NAN), (0, 2, f64::INFINITY), (99, 2, 0.0), (0, 7, 0.0)] {
        assert!(!arms.learn(&Outcome { row, arm, reward, propensity: 0.1 }));
    }
    assert_eq!(arms.posterior(0, 2).unwrap().0, 0.8);
}

#[test]
fn agents_rated_by_others_draw_other_arms_and_twins_the_same() {
    let bandit = bandit();
    let arm = |rater| {
        let mut state = begin(&bandit);
        bandit.vote(&mut state, vote(rater), &MARKET);
        state.arm.unwrap()
    };
    let arms: Vec<u8> = (0..200).map(arm).collect();
    assert_eq!(arms, (0..200).map(arm).collect::<Vec<u8>>());
    for each in 0..7 {
        let drawn = arms.iter().filter(|&&arm| arm == each).count();
        assert!((10..55).contains(&drawn), "arm {each} was drawn {drawn} times of 200");
    }
}

#[test]
fn an_epoch_ends_with_what_the_arm_won_over_the_base_law() {
    let bandit = bandit();
    let mut state = begin(&bandit);
    bandit.vote(&mut state, vote(1), &MARKET);
    let arm = state.arm.unwrap();
    // Served in full, while the base law's rate lies above what it wants: nothing won.
    let asked = Asked { admitted: 10.0, denied: 0.0, seconds: 1.0, level: 0.5 };
    for _ in 0..EPOCH_TICKS - 1 {
        bandit.tick(&mut state, asked, &MARKET);
        assert_eq!(state.take_outcome(), None);
    }
    bandit.tick(&mut state, asked, &MARKET);
    let outcome = state.take_outcome().unwrap();
    assert_eq!((outcome.row, outcome.arm), (0, arm));
    assert!(outcome.reward.abs() < 1e-9, "{outcome:?}");
    assert!(outcome.propensity > 0.0 && outcome.propensity <= 1.0);
    assert_eq!(state.take_outcome(), None, "told once");

    // Served half of what it wants and the base law would give: half of its worth is lost.
    for _ in 0..EPOCH_TICKS {
        let asked = Asked { admitted: 5.0, denied: 5.0, seconds: 1.0, level: 0.5 };
        bandit.tick(&mut state, asked, &MARKET);
    }
    let worth = bandit.price.belief(&state.standing, &MARKET).mean - 3.0 - MARKET.price;
    let outcome = state.take_outcome().unwrap();
    assert!((outcome.reward + 0.5 * worth).abs() < 0.02, "{outcome:?} for {worth}");
}

#[test]
fn arms_that_are_no_numbers_leave_it_to_the_base_law_and_say_so() {
    let mut bandit = bandit();
    bandit.arms.rows[0][3].mean = f64::NAN;
    let mut state = begin(&bandit);
    let decision = bandit.vote(&mut state, vote(1), &MARKET);
    assert_eq!(decision.held, Some(Reason::Action));
    assert_eq!((decision.residual, decision.propensity), (0.0, 1.0));
    let base = decision.base.clamp(10.0 * 0.75 - 0.05, 10.0 * 1.25 + 0.05);
    assert_eq!(decision.rate, base);
}

#[test]
fn in_shadow_the_arm_is_logged_and_the_base_law_applied_and_killed_it_is_not_asked() {
    for (mode, reason) in [(Mode::Shadow, Reason::Shadow), (Mode::Base, Reason::Killed)] {
        let bandit = Bandit::new(config(mode), 1);
        let mut twin = begin(&bandit);
        let mut state = begin(&bandit);
        for rater in 0..40 {
            let decision = bandit.vote(&mut state, vote(rater), &MARKET);
            let base = bandit.price.vote(&mut twin.standing, vote(rater), &MARKET);
            assert_eq!((decision.held, decision.rate), (Some(reason), base.rate));
            assert_eq!(state.arm.is_some(), mode == Mode::Shadow);
            assert_eq!(decision.propensity < 1.0, mode == Mode::Shadow);
        }
    }
}
