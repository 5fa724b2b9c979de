//! The residual: what it adds, what it is held to, what it tells.

use super::*;
use crate::policy::{BaseLaw, EstimatorConfig, GuardConfig, Reason};

const MARKET: Market = Market { price: 0.2, use_share: 0.9, tick_ms: 1_000 };
const ASKED: Asked = Asked { admitted: 8.0, denied: 1.0, seconds: 1.0, level: 0.3 };

fn config(mode: Mode) -> PriceConfig {
    let (r_min, r_max) = (0.5, 40.0);
    let guard = GuardConfig { r_min, r_max, step: 0.25, slack: 0.05, evidence_min: 1.0, mode };
    let (base, estimator) = (BaseLaw::within(r_min, r_max), EstimatorConfig::default());
    PriceConfig { base, estimator, guard, burst_seconds: None }
}

/// Networks that say `action` whatever they see, with a deviation of e^`log_std`.
fn saying(action: f32, log_std: f32) -> Arc<Network> {
    let mut network = Network::new(Gaussian::default(), OBSERVATION, 64, 1);
    let tensors = network.tensors();
    let place = |name: &str| tensors.iter().find(|tensor| tensor.name == name).unwrap().clone();
    let (weight, bias, free) =
        (place("actor.2.weight"), place("actor.2.bias"), place("actor.free"));
    let parameters = network.parameters_mut();
    parameters[weight.start..weight.start + weight.len()].fill(0.0);
    (parameters[bias.start], parameters[free.start]) = (action, log_std);
    Arc::new(network)
}

fn residual(mode: Mode, network: Arc<Network>) -> Residual {
    Residual::new(config(mode), 1, network, 7)
}

fn begin(law: &Residual) -> ResidualState {
    law.begin(Limits::per_second(10.0, 20).unwrap())
}

fn vote(second: u64) -> Vote {
    Vote { score: 4.0, rater: second, at_ms: 1_700_000_000_000 + 1_000 * second, weight: 1.0 }
}

/// Returns the decisions of `ticks` ticks with a rating each.
fn live(law: &Residual, state: &mut ResidualState, ticks: u64) -> Vec<Decision> {
    let decide = |second| [law.vote(state, vote(second), &MARKET), law.tick(state, ASKED, &MARKET)];
    (0..ticks).flat_map(decide).collect()
}

#[test]
fn the_same_calls_give_the_same_decisions_and_another_seed_others() {
    let decisions = |seed| {
        let law =
            Residual::new(config(Mode::Live), seed, saying(0.1, -1.0), 7).exploring(true, true);
        let mut state = begin(&law);
        (live(&law, &mut state, 50), state)
    };
    assert_eq!(decisions(1), decisions(1));
    assert_ne!(decisions(1).0, decisions(2).0);
}

#[test]
fn a_steady_action_adds_up_to_itself_and_never_beyond_one() {
    for (action, end) in [(0.4, 0.4), (1.0, 1.0), (9.0, 1.0), (-9.0, -1.0), (0.0, 0.0)] {
        let law = residual(Mode::Live, saying(action, 0.0));
        let mut state = begin(&law);
        let mut last = 0.0;
        for decision in live(&law, &mut state, 60) {
            assert!((decision.residual - last).abs() <= DELTA_MAX + 1e-9, "a tick adds 0.25");
            last = decision.residual;
            assert_eq!((decision.propensity, decision.held), (1.0, None));
        }
        assert!((last - end).abs() < 1e-6, "{action}: {last}");
        let rate = state.standing.track.rate();
        let proposal = law.price.base(&state.standing, &MARKET) * last.exp();
        assert!((rate - proposal.clamp(0.5, 40.0)).abs() < 1e-9, "{rate} for {proposal}");
    }
}

#[test]
fn a_network_that_says_nothing_is_the_base_law() {
    let law = residual(Mode::Live, saying(0.0, 0.0));
    let (mut state, mut base) =
        (begin(&law), law.price.start(Limits::per_second(10.0, 20).unwrap()));
    for second in 0..60 {
        let ours =
            [law.vote(&mut state, vote(second), &MARKET), law.tick(&mut state, ASKED, &MARKET)];
        let price = &law.price;
        let theirs =
            [price.vote(&mut base, vote(second), &MARKET), price.tick(&mut base, ASKED, &MARKET)];
        assert_eq!(ours, theirs);
    }
}

#[test]
fn a_rating_is_answered_at_once_and_a_thousand_of_them_move_the_residual_by_a_tick() {
    let law = residual(Mode::Live, saying(1.0, 0.0));
    let mut state = begin(&law);
    live(&law, &mut state, 1);
    let before = state.carried;
    for _ in 0..1_000 {
        law.vote(&mut state, vote(1), &MARKET);
    }
    assert!((state.offset - (KEPT * before + DELTA_MAX)).abs() < 1e-9);
}

#[test]
fn actions_are_drawn_as_densely_as_their_propensity_says() {
    // A density integrates to the share of draws in an interval: residuals after one tick from 0.
    let (low, high) = (0.0, 0.05);
    let (mut within, mut expected, draws) = (0.0, 0.0, 20_000);
    let network = saying(0.2, -1.0);
    for seed in 0..draws {
        let law =
            Residual::new(config(Mode::Live), seed, Arc::clone(&network), 1).exploring(true, true);
        let mut state = begin(&law);
        let decision = law.tick(&mut state, ASKED, &MARKET);
        if (low..high).contains(&decision.residual) {
            within += 1.0;
            expected += 1.0 / decision.propensity;
        }
    }
    // E[1/density within an interval] is its length, deviation about 2 %.
    let length = expected / draws as f64;
    assert!(within > 1_000.0 && (length - (high - low)).abs() < 0.004, "{length}");
}

#[test]
fn a_weight_that_is_no_number_is_the_base_law_and_named() {
    for poison in [f32::NAN, f32::INFINITY] {
        let mut broken = Network::clone(&saying(0.5, 0.0));
        let bias = broken.tensors().iter().find(|t| t.name == "actor.2.bias").unwrap().start;
        broken.parameters_mut()[bias] = poison;
        let mut law = residual(Mode::Live, saying(0.5, 0.0)).exploring(true, true);
        let mut state = begin(&law);
        live(&law, &mut state, 20);
        assert!(state.offset != 0.0 && state.take_lesson().is_some());
        law.set_network(Arc::new(broken), 8);
        let (mut twin, price) = (state.standing.clone(), &law.price);
        for second in 20..40 {
            let ours = law.vote(&mut state, vote(second), &MARKET);
            let theirs = price.vote(&mut twin, vote(second), &MARKET);
            assert_eq!((ours.rate, ours.residual), (theirs.rate, 0.0));
            assert_eq!((ours.held, ours.propensity), (Some(Reason::Action), 1.0));
            law.tick(&mut state, ASKED, &MARKET);
            price.tick(&mut twin, ASKED, &MARKET);
            assert_eq!(state.take_lesson(), None);
        }
        law.set_network(saying(0.5, 0.0), 9);
        assert_eq!(law.vote(&mut state, vote(40), &MARKET).held, None);
    }
}

#[test]
fn shadow_tells_the_residual_the_kill_switch_asks_nobody_and_neither_applies_or_teaches() {
    for (mode, reason) in [(Mode::Shadow, Reason::Shadow), (Mode::Base, Reason::Killed)] {
        let law = residual(mode, saying(0.8, -1.0)).exploring(true, true);
        let mut state = begin(&law);
        let (mut twin, price) = (state.standing.clone(), &law.price);
        for second in 0..40 {
            let ours = law.vote(&mut state, vote(second), &MARKET);
            assert_eq!(ours.rate, price.vote(&mut twin, vote(second), &MARKET).rate);
            assert_eq!((ours.residual != 0.0, ours.held), (mode == Mode::Shadow, Some(reason)));
            let ours = law.tick(&mut state, ASKED, &MARKET);
            assert_eq!(ours.rate, price.tick(&mut twin, ASKED, &MARKET).rate);
            assert_eq!(state.take_lesson(), None);
        }
    }
    let law = residual(Mode::Frozen, saying(0.8, 0.0));
    let mut state = begin(&law);
    let frozen = live(&law, &mut state, 9);
    assert!(frozen.iter().all(|d| (d.rate, d.held) == (10.0, Some(Reason::Frozen))));
}

#[test]
fn a_lesson_begins_where_the_last_one_ended_and_is_worth_what_was_served() {
    let law = residual(Mode::Live, saying(0.2, -2.0)).exploring(true, true);
    let mut state = begin(&law);
    live(&law, &mut state, 3);
    let first = state.take_lesson().expect("two ticks were acted in");
    assert_eq!(first.step.version, 7);
    law.tick(&mut state, ASKED, &Market { use_share: 1.25, ..MARKET });
    let second = state.take_lesson().unwrap();
    assert_eq!(first.after, second.step.observation);
    let wanted = state.standing.demand.rate();
    // 8 of 9 tokens passed, and the base law's rate would have let all pass.
    assert!((second.gained + 1.0 / 200.0).abs() < 1e-9 && (second.shed - 0.2).abs() < 1e-9);
    let worth = (-(4.2 - 3.0 - 0.2 - 0.2) - MOVE_COST * wanted * second.moved) / 200.0;
    assert!((f64::from(second.reward(4.2)) - worth).abs() < 1e-6);
}

#[test]
fn what_was_not_lived_through_teaches_nothing() {
    let taught = |learn: bool, asked: Asked, market: Market| {
        let law = residual(Mode::Live, saying(0.2, -2.0)).exploring(true, learn);
        let mut state = begin(&law);
        live(&law, &mut state, 3);
        law.tick(&mut state, asked, &market);
        state.take_lesson().is_some()
    };
    assert!(taught(true, ASKED, MARKET));
    assert!(!taught(false, ASKED, MARKET), "learning is off");
    assert!(!taught(true, Asked { seconds: 60.0, ..ASKED }, MARKET), "a slow sweep");
    assert!(!taught(true, Asked { seconds: 0.0, ..ASKED }, MARKET));
    assert!(!taught(true, Asked { denied: f64::NAN, ..ASKED }, MARKET));
    assert!(!taught(true, ASKED, Market { use_share: f64::NAN, ..MARKET }));
    // A state that comes back from the store has forgotten what was on its way.
    let law = residual(Mode::Live, saying(0.2, -2.0)).exploring(true, true);
    let mut state = begin(&law);
    live(&law, &mut state, 3);
    let text = serde_json::to_string(&state).unwrap();
    let mut read: ResidualState = serde_json::from_str(&text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    let decisions = [&mut state, &mut read].map(|state| law.tick(state, ASKED, &MARKET));
    assert_eq!(decisions[0], decisions[1]);
    assert_eq!((state.take_lesson().is_some(), read.take_lesson()), (true, None));
}
