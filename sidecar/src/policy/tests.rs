//! The policy as the tuner uses it, and what holds for every law whatever comes.

use proptest::prelude::*;

use super::*;
use crate::rating::{Poster, RatingRequest};

const START_MS: u64 = 1_800_000_000_000;

fn config(kind: Kind) -> Config {
    Config { kind, service_capacity: Some(500.0), ..Config::default() }
}

fn start() -> Limits {
    Limits::per_second(20.0, 40).unwrap()
}

fn policy(kind: Kind) -> Policy {
    Policy::new(&config(kind), start())
}

fn market(price: f64) -> Market {
    Market { price, use_share: 0.9, tick_ms: 1_000 }
}

fn vote(score: f64, rater: u64, at_ms: u64) -> Vote {
    Vote { score, rater, at_ms, weight: 1.0 }
}

fn rating(user: &str, score: f64, at_ms: u64) -> Rating {
    let body = format!(r#"{{"agent_id":"a","user_id":"{user}","score":{score},"timestamp":1}}"#);
    let request = RatingRequest::from_json(body.as_bytes()).unwrap();
    request.into_rating(Poster::new("p").unwrap(), at_ms * 1_000).unwrap()
}

fn rate(state: &State) -> f64 {
    state.limits().refill().tokens()
}

/// Votes that say 4.2 on the mean from `raters` users, one a second.
fn honest(policy: &Policy, state: &mut State, raters: &mut Raters, seconds: std::ops::Range<u64>) {
    for second in seconds {
        let score = [4.0, 5.0, 4.0, 4.0, 4.0][usize::try_from(second % 5).unwrap()];
        let rater = second % 400;
        let belief = policy.belief(state).unwrap();
        let weight = raters.weigh(rater, score, belief);
        let vote = Vote { weight, ..vote(score, rater, START_MS + second * 1_000) };
        policy.vote(state, vote);
        policy.tick(state, Asked { admitted: 10.0, denied: 0.0, seconds: 1.0, level: 0.5 });
    }
}

#[test]
fn the_additive_fold_is_bit_for_bit_the_guides_rule_and_its_state_reads_as_ever() {
    let policy = policy(Kind::Additive);
    let mut state = policy.begin();
    let mut expected = 20.0_f64;
    for n in 0..2_000_u32 {
        let score = 1.0 + f64::from(n.wrapping_mul(2_654_435_761) >> 16) / 16_384.0;
        let rating = rating("u", score, START_MS);
        let reward = policy.fold(&mut state, &rating);
        let score = rating.score().value();
        expected = (expected + 0.1 * (score - 3.0)).clamp(0.5, 40.0);
        assert_eq!(reward.to_bits(), (score - 3.0).to_bits());
        let State::Additive(AdditiveState { rate, .. }) = state else { panic!("{state:?}") };
        assert_eq!(rate.to_bits(), expected.to_bits());
    }
    // As version 0.1 wrote it.
    let text = r#"{"policy":"additive","rate":20.2,"burst":{"tokens":40,"per_micro":20000000}}"#;
    let read: State = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
    assert_eq!(read.limits(), Limits::per_second(20.2, 40).unwrap());
}

#[test]
fn a_good_agent_earns_what_it_wants_and_a_bad_one_the_floor() {
    for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
        let policy = policy(kind);
        let (mut good, mut bad) = (policy.begin(), policy.begin());
        for n in 0..60 {
            let at_ms = START_MS + n * 1_000;
            policy.fold(&mut good, &rating("u", 5.0, at_ms));
            policy.fold(&mut bad, &rating("u", 1.0, at_ms));
        }
        // 1.05·20 + 0.7·√20 and r_min, times the bandit's arm: 0.5 to 2.
        assert!(rate(&good) > 11.0, "{kind:?}: {}", rate(&good));
        let most = if kind == Kind::Bandit { 1.0 } else { 0.5 };
        assert!((0.5..=most).contains(&rate(&bad)), "{kind:?}: {}", rate(&bad));
        assert_eq!(bad.limits().capacity().get(), 1);
    }
}

#[test]
fn the_last_market_seen_is_the_one_that_ratings_are_decided_at() {
    let mut policy = policy(Kind::Price);
    let mut state = policy.begin();
    let rate_at = |policy: &Policy, state: &State| {
        let mut state = state.clone();
        for n in 60..90 {
            policy.fold(&mut state, &rating("u", 4.0, START_MS + n * 1_000));
        }
        rate(&state)
    };
    for n in 0..60 {
        policy.fold(&mut state, &rating("u", 4.0, START_MS + n * 1_000));
    }
    let cheap = rate_at(&policy, &state);
    policy.see(market(1.5));
    assert!(cheap > 22.0 && rate_at(&policy, &state) < 1.0, "{cheap}");
}

#[test]
fn one_raters_thousand_ratings_of_one_in_a_second_move_a_rate_by_a_step_at_most() {
    for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
        let policy = policy(kind);
        let mut raters = Raters::default();
        let mut state = policy.begin();
        honest(&policy, &mut state, &mut raters, 0..300);
        let before = rate(&state);
        for n in 0..1_000 {
            let weight = raters.weigh(9_999, 1.0, policy.belief(&state).unwrap());
            let bomb = Vote { weight, ..vote(1.0, 9_999, START_MS + 300_000 + n) };
            let decision = policy.vote(&mut state, bomb);
            assert!(decision.rate >= before * 0.75 - 0.05 - 1e-9, "{kind:?}: {decision:?}");
        }
        assert!(rate(&state) >= before * 0.75 - 0.051);
    }
}

#[test]
fn a_bombed_agent_stays_within_a_tenth_of_its_twin_once_its_rater_is_known() {
    let policy = policy(Kind::Price);
    let (mut raters, mut twins_raters) = (Raters::default(), Raters::default());
    let (mut state, mut twin) = (policy.begin(), policy.begin());
    honest(&policy, &mut state, &mut raters, 0..300);
    honest(&policy, &mut twin, &mut twins_raters, 0..300);
    let mut furthest: f64 = 0.0;
    for second in 300..500 {
        // Five bombs from one rater for every honest rating.
        for n in 0..5 {
            let weight = raters.weigh(9_999, 1.0, policy.belief(&state).unwrap());
            let at_ms = START_MS + second * 1_000 + n;
            policy.vote(&mut state, Vote { weight, ..vote(1.0, 9_999, at_ms) });
        }
        honest(&policy, &mut state, &mut raters, second..second + 1);
        honest(&policy, &mut twin, &mut twins_raters, second..second + 1);
        furthest = furthest.max((rate(&state) / rate(&twin)).ln().abs());
    }
    assert!(furthest < 0.1, "{furthest}");
}

#[test]
fn ticks_move_neither_mean_nor_variance() {
    for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
        let policy = policy(kind);
        let (mut ticked, mut quiet) = (policy.begin(), policy.begin());
        for n in 0..300 {
            let vote = vote(f64::from(u8::try_from(1 + n % 5).unwrap()), n, START_MS + n * 2_500);
            policy.vote(&mut ticked, vote);
            policy.vote(&mut quiet, vote);
            for _ in 0..n % 4 {
                let asked = Asked { admitted: 3.0, denied: 9.0, seconds: 0.7, level: 0.1 };
                policy.tick(&mut ticked, asked);
            }
        }
        let of = |state: &State| state.standing().unwrap().estimator().clone();
        assert_eq!(of(&ticked), of(&quiet));
    }
}

#[test]
fn every_input_that_is_no_number_is_named_and_moves_nothing_it_should_not() {
    let nan = f64::NAN;
    let asked = Asked { admitted: 10.0, denied: 0.0, seconds: 1.0, level: 0.5 };
    let fine = vote(4.0, 1, START_MS + 60_000);
    let votes = [
        (Vote { score: nan, ..fine }, market(0.1), Reason::Score),
        (Vote { score: f64::INFINITY, ..fine }, market(0.1), Reason::Score),
        (Vote { weight: nan, ..fine }, market(0.1), Reason::Weight),
        (fine, market(nan), Reason::Market),
        (fine, market(-1.0), Reason::Market),
        (fine, Market { use_share: f64::INFINITY, ..market(0.1) }, Reason::Market),
        (fine, Market { tick_ms: 0, ..market(0.1) }, Reason::Market),
    ];
    for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
        let mut policy = policy(kind);
        policy.see(market(0.1));
        let mut known = policy.begin();
        for n in 0..60 {
            policy.vote(&mut known, vote(4.0, n, START_MS + n * 1_000));
        }
        let held = rate(&known);
        for (vote, market, reason) in votes {
            let mut state = known.clone();
            policy.see(market);
            let decision = policy.vote(&mut state, vote);
            assert_eq!(decision.held, Some(reason), "{kind:?} {vote:?} {market:?}");
            assert!(reason.is_fault() && decision.reward.is_finite() && decision.base.is_finite());
            assert!((rate(&state) / held).ln().abs() < 0.25, "{kind:?} {reason:?}");
            assert_eq!(state.standing().unwrap().price(), 0.1, "the last one that made sense");
        }
        policy.see(market(0.1));
        let mut state = known.clone();
        let decision = policy.tick(&mut state, Asked { denied: nan, ..asked });
        assert_eq!(decision.held, Some(Reason::Asked));
        assert_eq!(state.standing().unwrap().demand(), known.standing().unwrap().demand());
    }
}

#[test]
fn a_state_that_is_no_number_starts_again_at_the_rate_it_had() {
    let policy = policy(Kind::Price);
    let text = {
        let mut state = policy.begin();
        for n in 0..60 {
            policy.vote(&mut state, vote(4.0, n, START_MS + n * 1_000));
        }
        serde_json::to_string(&state).unwrap()
    };
    let read = || serde_json::from_str::<State>(&text).unwrap();
    let held = rate(&read());
    let poison = |what: fn(&mut Standing)| {
        let mut state = read();
        what(state.standing_mut().unwrap());
        let decision = policy.vote(&mut state, vote(4.0, 1, START_MS + 61_000));
        assert_eq!(decision.held, Some(Reason::State));
        assert!(decision.rate.is_finite() && decision.rate <= held * 1.25 + 0.05);
        let again = policy.vote(&mut state, vote(4.0, 2, START_MS + 62_000));
        assert_eq!(again.held, None, "one is enough");
    };
    poison(|standing| standing.demand = Demand::new(f64::NAN));
    poison(|standing| {
        standing.track = standing.track.poisoned();
    });
}

#[test]
fn an_operators_limits_are_a_new_start_that_keeps_what_is_known_of_the_quality() {
    for kind in [Kind::Additive, Kind::Price, Kind::Bandit, Kind::Ppo] {
        let policy = policy(kind);
        let mut state = policy.begin();
        for n in 0..60 {
            policy.vote(&mut state, vote(4.0, n, START_MS + n * 1_000));
        }
        let known = policy.belief(&state);
        let limits = Limits::per_second(3.0, 9).unwrap();
        policy.rebase(&mut state, limits);
        assert_eq!((state.limits(), policy.belief(&state)), (limits, known));
        assert_eq!(policy.limits(&policy.adopt(limits)), limits);
        policy.vote(&mut state, vote(5.0, 1, START_MS + 61_000));
        assert!((3.0..=3.0 * 1.25 + 0.05).contains(&rate(&state)), "{kind:?}: {}", rate(&state));
    }
}

#[test]
fn switching_the_policy_moves_no_limit_and_loses_no_quality_it_can_keep() {
    let kinds = [Kind::Additive, Kind::Price, Kind::Bandit, Kind::Ppo];
    for from in kinds {
        for to in kinds {
            let (before, after) = (policy(from), policy(to));
            let mut state = before.begin();
            for n in 0..60 {
                before.vote(&mut state, vote(4.0, n, START_MS + n * 1_000));
            }
            let limits = before.limits(&state);
            assert_eq!(after.limits(&state), limits);
            let known = before.belief(&state);
            let none = Asked { seconds: 0.0, level: 1.0, ..Asked::default() };
            after.tick(&mut state, none);
            let (was, is) = (limits.refill().tokens(), rate(&state));
            assert!((is / was).ln().abs() <= 0.3, "{from:?} to {to:?}: {was} to {is}");
            if from != Kind::Additive && to != Kind::Additive {
                assert_eq!(after.belief(&state), known);
            }
        }
    }
}

#[test]
fn an_operator_freezes_overrides_and_lets_go() {
    let policy = policy(Kind::Price);
    let mut state = policy.begin();
    let mut at_ms = START_MS;
    let mut bad = |state: &mut State| {
        at_ms += 1_000;
        policy.vote(state, vote(1.0, 1, at_ms))
    };
    state.standing_mut().unwrap().track_mut().set_hold(Hold::Frozen);
    let frozen = bad(&mut state);
    assert_eq!((frozen.held, frozen.rate), (Some(Reason::Frozen), 20.0));
    state.standing_mut().unwrap().track_mut().set_hold(Hold::Override(7.0));
    let set = bad(&mut state);
    assert_eq!((set.held, set.rate), (Some(Reason::Override), 7.0));
    state.standing_mut().unwrap().track_mut().set_hold(Hold::None);
    assert_eq!(bad(&mut state).rate, 7.0 * 0.75 - 0.05);
}

#[test]
fn an_agent_is_small_in_memory_and_in_the_store() {
    const { assert!(Mixture::BYTES == 208 && Standing::BYTES == 368) };
    assert!(size_of::<BanditState>() <= Standing::BYTES + 96, "{}", size_of::<BanditState>());
    assert!(size_of::<State>() <= 40);
    for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
        let policy = policy(kind);
        let mut state = policy.begin();
        let mut raters = Raters::default();
        honest(&policy, &mut state, &mut raters, 0..500);
        let text = serde_json::to_string(&state).unwrap();
        println!("{kind:?}: {} bytes, {} as JSON", Standing::BYTES, text.len());
        assert!(text.len() <= 1_300, "{} bytes: {text}", text.len());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(State::deserialize(value).unwrap(), state);
    }
}

#[test]
fn an_observation_is_finite_and_says_what_it_should() {
    let policy = policy(Kind::Price);
    let AnyLaw::Price(law) = policy.law() else { unreachable!() };
    let mut state = policy.begin();
    let mut raters = Raters::default();
    honest(&policy, &mut state, &mut raters, 0..100);
    let standing = state.standing().unwrap();
    let PriceConfig { estimator, guard, .. } = law.config();
    let seen = standing.observation(policy.market(), estimator, guard);
    let expected = |at: usize, value: f64, within: f64| {
        assert!((f64::from(seen[at]) - value).abs() < within, "{at}: {} not {value}", seen[at]);
    };
    expected(0, 0.6, 0.06);
    // A hundred users whom nobody knew weigh 0.421875 each.
    expected(3, 43.1875_f64.ln() / 8.0, 0.01);
    expected(4, 10.0 / rate(&state), 0.06);
    expected(6, 0.5, 1e-6);
    expected(7, 0.0, 1e-6);
    expected(11, 101.0_f64.ln() / 12.0, 0.01);
    assert!(seen.iter().all(|number| number.is_finite() && number.abs() <= 4.0), "{seen:?}");
}

#[test]
fn a_user_is_known_by_the_same_number_in_every_version() {
    assert_eq!(rater_of("u1", 0), rater_of("u1", 0));
    assert_ne!(rater_of("u1", 0), rater_of("u2", 0));
    assert_ne!(rater_of("u1", 0), rater_of("u1", 1));
}

/// Any number, and often one that is none.
fn any_number() -> impl Strategy<Value = f64> {
    prop_oneof![
        4 => 0.0..=6.0,
        1 => any::<f64>(),
        1 => prop::sample::select(vec![f64::NAN, f64::INFINITY, -1.0, 0.0, 1e300]),
    ]
}

#[derive(Clone, Debug)]
enum Call {
    Vote(Vote),
    Tick(Asked),
    See(Market),
}

fn calls() -> impl Strategy<Value = Vec<(Call, u64)>> {
    let n = any_number;
    let vote = (n(), n(), any::<u64>()).prop_map(|(score, weight, rater)| {
        Call::Vote(Vote { score, weight: weight / 5.0, rater, at_ms: 0 })
    });
    let tick = (n(), n(), n(), n()).prop_map(|(admitted, denied, seconds, level)| {
        Call::Tick(Asked { admitted, denied, seconds: seconds / 5.0, level })
    });
    let see = (n(), n(), prop_oneof![Just(1_000), any::<u64>()])
        .prop_map(|(price, use_share, tick_ms)| Call::See(Market { price, use_share, tick_ms }));
    let call = prop_oneof![6 => vote, 3 => tick, 1 => see];
    let gap = prop_oneof![0..300_u64, 0..5_000_u64];
    prop::collection::vec((call, gap), 1..150)
}

proptest! {
    #[test]
    fn a_rate_stays_within_bounds_and_a_state_readable_whatever_comes(calls in calls()) {
        for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
            let mut policy = policy(kind);
            let (mut state, mut now_ms) = (policy.begin(), START_MS);
            for (call, gap_ms) in &calls {
                now_ms += gap_ms;
                let before = rate(&state);
                let decision = match call.clone() {
                    Call::Vote(vote) => policy.vote(&mut state, Vote { at_ms: now_ms, ..vote }),
                    Call::Tick(asked) => policy.tick(&mut state, asked),
                    Call::See(market) => {
                        policy.see(market);
                        continue;
                    }
                };
                prop_assert!((0.5..=40.0).contains(&decision.rate), "{:?}", decision);
                prop_assert!(decision.base.is_finite() && decision.reward.is_finite());
                // Of an arm a probability, of a residual a density.
                let most = if kind == Kind::Ppo { f64::MAX } else { 1.0 };
                prop_assert!(decision.propensity > 0.0 && decision.propensity <= most);
                // One call, at most one window: from one edge of a step to the other of the next.
                let low = (before * 0.6 - 0.1) * 0.75 - 0.05;
                prop_assert!(decision.rate >= low.max(0.5) - 1e-5, "{} to {:?}", before, decision);
            }
            let value = serde_json::to_value(&state).unwrap();
            prop_assert_eq!(State::deserialize(value).unwrap(), state);
        }
    }

    #[test]
    fn within_one_tick_a_rate_moves_by_a_step_whatever_the_votes(
        scores in prop::collection::vec((1.0..=5.0, 0.0..=1.0, any::<u64>(), 0..999_u64), 1..300),
        price in 0.0..2.0,
    ) {
        for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
            let mut policy = policy(kind);
            policy.see(market(price));
            let mut state = policy.begin();
            policy.vote(&mut state, vote(4.0, 1, START_MS));
            for (score, weight, rater, offset_ms) in &scores {
                let (score, weight, rater) = (*score, *weight, *rater);
                let vote = Vote { score, weight, rater, at_ms: START_MS + offset_ms };
                let decision = policy.vote(&mut state, vote);
                let step = 20.0 * 0.75 - 0.05..=20.0 * 1.25 + 0.05;
                prop_assert!(step.contains(&decision.rate), "{:?}", decision);
            }
        }
    }

    #[test]
    fn however_often_a_state_is_stored_and_read_the_fold_is_the_same(
        ratings in prop::collection::vec((1.0..=5.0, 0..4_000_u64, any::<bool>()), 1..60),
    ) {
        for kind in [Kind::Additive, Kind::Price, Kind::Bandit, Kind::Ppo] {
            let policy = policy(kind);
            let (mut kept, mut restarted) = (policy.begin(), policy.begin());
            let mut at_ms = START_MS;
            for (score, gap_ms, restarts) in &ratings {
                at_ms += gap_ms;
                let rating = rating("u", *score, at_ms);
                policy.fold(&mut kept, &rating);
                if *restarts {
                    let value = serde_json::to_value(&restarted).unwrap();
                    restarted = State::deserialize(value).unwrap();
                }
                policy.fold(&mut restarted, &rating);
            }
            prop_assert_eq!(&kept, &restarted);
            prop_assert_eq!(kept.limits(), restarted.limits());
        }
    }

    #[test]
    fn the_same_calls_give_the_same_decisions(calls in calls()) {
        for kind in [Kind::Price, Kind::Bandit, Kind::Ppo] {
            let run = || {
                let mut policy = policy(kind);
                let mut state = policy.begin();
                for (call, _) in &calls {
                    match call.clone() {
                        Call::Vote(vote) => drop(policy.vote(&mut state, vote)),
                        Call::Tick(asked) => drop(policy.tick(&mut state, asked)),
                        Call::See(market) => policy.see(market),
                    }
                }
                serde_json::to_string(&state).unwrap()
            };
            prop_assert_eq!(run(), run());
        }
    }
}
