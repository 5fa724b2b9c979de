//! Learns CartPole-v1 from several seeds and says how well: the bar is a mean of 475 of 500 on 4 of 5.
//!
//! ```text
//! cargo run --release -p merit-sidecar --features full --example cartpole -- 1 2 3 4 5
//! ```
//!
//! Arguments are seeds (default 1 to 5). CleanRL's defaults, 500,000 steps; then 100 episodes that taught
//! nothing, with actions drawn as in training, which is what the bar is held against, and with the
//! likeliest ones. Exits with 1 when the bar is missed.

use std::{process::ExitCode, time::Instant};

use merit_sidecar::policy::ppo::{
    Categorical, Choice, Copies, Episode, Learner, Trainer, evaluate,
};

use crate::cartpole::{COPIES, CartPole, HORIZON, STEPS_MAX, cleanrl};

#[path = "../tests/support/cartpole.rs"]
mod cartpole;

/// Steps that each seed learns from.
const STEPS: u64 = 500_000;

/// The mean of an evaluation from which CartPole-v1 counts as solved.
const SOLVED: f64 = 475.0;

fn main() -> ExitCode {
    let seeds: Result<Vec<u64>, _> = std::env::args().skip(1).map(|seed| seed.parse()).collect();
    let Ok(mut seeds) = seeds else {
        eprintln!("usage: cartpole [SEED]...");
        return ExitCode::from(2);
    };
    if seeds.is_empty() {
        seeds = (1..=5).collect();
    }
    println!("{:>5} {:>8} {:>8} {:>10} {:>8}", "seed", "drawn", "best", "solved at", "seconds");
    let solved = seeds.iter().filter(|&&seed| learn(seed) >= SOLVED).count();
    println!("{solved} of {} seeds reached {SOLVED}", seeds.len());
    if solved * 5 >= seeds.len() * 4 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Returns the mean of 100 episodes with drawn actions after learning from `seed`.
fn learn(seed: u64) -> f64 {
    let start = Instant::now();
    let learner = Learner::new(Categorical { actions: 2 }, 4, cleanrl(STEPS), seed);
    let carts = Copies(vec![CartPole::default(); COPIES]);
    let mut trainer = Trainer::new(learner, carts, HORIZON);
    let mut recent = Vec::new();
    let mut solved = None;
    for round in 1..=STEPS / (COPIES * HORIZON) as u64 {
        match trainer.round() {
            Ok(made) => recent.extend(made.episodes),
            Err(error) => eprintln!("seed {seed}, round {round}: {error}"),
        }
        let last = &recent[recent.len().saturating_sub(20)..];
        if solved.is_none() && last.len() == 20 && mean(last) >= SOLVED {
            solved = Some(round * (COPIES * HORIZON) as u64);
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let measure = |choice| {
        let carts = Copies(vec![CartPole::default(); 10]);
        let most = u64::from(STEPS_MAX) * 10;
        let episodes = evaluate(trainer.learner(), carts, choice, 10, most, seed);
        assert_eq!(episodes.len(), 100, "every episode ends");
        mean(&episodes)
    };
    let (drawn, best) = (measure(Choice::Drawn), measure(Choice::Best));
    let solved = solved.map_or("never".to_owned(), |steps: u64| steps.to_string());
    println!("{seed:>5} {drawn:>8.1} {best:>8.1} {solved:>10} {seconds:>8.1}");
    drawn
}

#[allow(clippy::cast_precision_loss, reason = "a hundred episodes")]
fn mean(episodes: &[Episode]) -> f64 {
    episodes.iter().map(|episode| episode.reward).sum::<f64>() / episodes.len() as f64
}
