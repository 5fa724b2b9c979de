//! `merit simulate` against the numpy prototype it replaces.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use merit_sidecar::simulate::{Interval, Request, compare};
use serde::Deserialize;

/// What `prototype/figures.py` printed; its first lines say how.
#[derive(Deserialize)]
struct Prototype {
    results: Vec<Figures>,
}

/// One policy in one regime: a figure for each seed.
#[derive(Deserialize)]
struct Figures {
    regime: String,
    policy: String,
    percent: Vec<f64>,
    shed: Vec<f64>,
    step: Vec<f64>,
}

fn prototype() -> Vec<Figures> {
    let prototype: Prototype =
        serde_json::from_str(include_str!("prototype/figures.json")).unwrap();
    prototype.results
}

/// Twice as many as the prototype's: its worlds are other ones, and what is left is their luck.
const SEEDS: &str = "1..20";

/// Compares `policies` in `regimes` with the prototype: the 95 % intervals of the two overlap.
fn agree(regimes: &str, policies: &str) {
    let request = Request {
        regimes: regimes.split(',').map(|name| name.parse().unwrap()).collect(),
        policies: policies.split(',').map(|name| name.parse().unwrap()).collect(),
        seeds: SEEDS.parse().unwrap(),
        agents: 200,
        ticks: 2000,
        jobs: std::thread::available_parallelism().map_or(1, usize::from),
        versus: None,
        tuning: "1".parse().unwrap(),
        figures: false,
    };
    let theirs = prototype();
    let rows = compare(&request, &|| {}).rows;
    assert_eq!(rows.len(), request.regimes.len() * request.policies.len());
    let mut apart = Vec::new();
    for row in rows {
        let theirs = theirs
            .iter()
            .find(|figures| figures.regime == row.regime && figures.policy == row.policy)
            .unwrap();
        let (prototype, ours) = (Interval::of(&theirs.percent), Interval::of(&row.percent_by_seed));
        if ours.high() < prototype.low() || prototype.high() < ours.low() {
            apart.push(format!("{} in {}: {ours:?} and {prototype:?}", row.policy, row.regime));
        }
        // What explains the utility agrees too: within a tenth, and what seeds differ by.
        for (name, ours, theirs) in [
            ("shed %", row.shed_percent, &theirs.shed),
            ("|Δlog r| %", row.step_percent, &theirs.step),
        ] {
            let theirs = Interval::of(theirs);
            let room = 2.0 * theirs.half_width.unwrap() + 0.1 * theirs.mean + 0.02;
            if (ours - theirs.mean).abs() > room {
                apart.push(format!(
                    "{} in {}: {name} {ours} and {theirs:?}",
                    row.policy, row.regime
                ));
            }
        }
    }
    assert!(apart.is_empty(), "{apart:#?}");
}

#[test]
fn static_additive_and_price_are_worth_what_the_prototype_says() {
    let policies = "static,static-max,additive:0.1,additive:1,additive:5,price-kalman,price-trust";
    agree("base,slack,attack,sparse", policies);
}

#[test]
fn bombers_and_sybils_do_as_much_harm_as_in_the_prototype() {
    agree("bombers,sybil", "additive:5,price-kalman,price-trust");
}

#[test]
fn greedy_thompson_and_the_clairvoyant_are_the_prototypes() {
    agree("base,attack", "greedy,thompson,clairvoyant");
}
