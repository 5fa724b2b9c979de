//! PPO as its users see it: it learns to balance a pole, and a restart in between changes nothing.

mod support {
    pub(crate) mod cartpole;
}

use merit_sidecar::policy::ppo::{
    Categorical, Checkpoint, Choice, Copies, Ending, Expected, Learner, Outcome, Purpose, Scene,
    Single, Trainer, evaluate, stream,
};
use support::cartpole::{COPIES, CartPole, HORIZON, STEPS_MAX, cleanrl};

fn trainer(seed: u64, steps: u64) -> Trainer<Categorical, Copies<CartPole>> {
    let learner = Learner::new(Categorical { actions: 2 }, 4, cleanrl(steps), seed);
    Trainer::new(learner, Copies(vec![CartPole::default(); COPIES]), HORIZON)
}

/// `tests/data/cartpole_ref.py` ran Gymnasium itself.
#[test]
fn the_cart_moves_as_gymnasiums_does() {
    #[derive(serde::Deserialize)]
    struct Reference {
        start: [f64; 4],
        actions: Vec<usize>,
        states: Vec<[f64; 4]>,
    }
    let reference: Reference =
        serde_json::from_str(include_str!("data/cartpole_ref.json")).unwrap();
    let [x, speed, angle, turn] = reference.start;
    let state = serde_json::json!({
        "x": x, "speed": speed, "angle": angle, "turn": turn, "steps": 0
    });
    let mut cart: CartPole = serde_json::from_value(state).unwrap();
    let mut random = stream(0, Purpose::Environment, 0);
    let mut seen = [0.0; 4];
    for (n, (action, expected)) in reference.actions.iter().zip(&reference.states).enumerate() {
        let Outcome { reward, ending } = cart.step(action, &mut random, &mut seen);
        let last = n + 1 == reference.actions.len();
        assert_eq!(reward, 1.0);
        assert_eq!(ending == Ending::Terminated, last, "step {n}");
        for (found, expected) in seen.iter().zip(expected) {
            let error = (f64::from(*found) - expected).abs();
            assert!(error < 1e-6 * (1.0 + expected.abs()), "step {n}: {found} for {expected}");
        }
    }
}

#[test]
fn an_episode_that_is_not_lost_is_cut_off_after_500_steps() {
    let mut cart = CartPole::default();
    let mut random = stream(1, Purpose::Environment, 0);
    let mut seen = [0.0; 4];
    cart.reset(&mut random, &mut seen);
    // Push towards where the pole falls, and back to the middle: balances for ever.
    for step in 1..=STEPS_MAX {
        let lean = 3.0 * seen[2] + seen[3] + 0.1 * seen[0] + 0.2 * seen[1];
        let ending = cart.step(&usize::from(lean > 0.0), &mut random, &mut seen).ending;
        let expected = if step == STEPS_MAX { Ending::Truncated } else { Ending::Continues };
        assert_eq!(ending, expected, "step {step}");
    }
}

/// The beginning of what the example `cartpole` does with 500,000 steps and five seeds.
#[test]
fn within_40_000_steps_it_balances_a_pole_for_150_of_them() {
    let mut trainer = trainer(1, 500_000);
    let mut episodes = Vec::new();
    for _ in 0..40_000 / (COPIES * HORIZON) {
        episodes.extend(trainer.round().unwrap().episodes);
    }
    let mean = |of: &[merit_sidecar::policy::ppo::Episode]| {
        of.iter().map(|episode| episode.reward).sum::<f64>() / of.len() as f64
    };
    assert!(mean(&episodes[..20]) < 60.0, "it begins knowing nothing: {}", mean(&episodes[..20]));
    let last = mean(&episodes[episodes.len() - 20..]);
    assert!(last >= 150.0, "mean of the last 20 episodes: {last}");
    let carts = Copies(vec![CartPole::default(); 10]);
    let measured = evaluate(trainer.learner(), carts, Choice::Best, 2, 2_000, 77);
    assert_eq!(measured.len(), 20);
    assert!(mean(&measured) >= 150.0, "mean of 20 episodes that taught nothing: {measured:?}");
}

#[test]
fn training_that_went_through_a_file_goes_on_bit_for_bit() {
    let bytes_of = |trainer: &Trainer<_, _>| {
        let scene = serde_json::to_string(&trainer.scene()).unwrap();
        let checkpoint = Checkpoint {
            policy: "cartpole".to_owned(),
            learner: trainer.learner().clone(),
            notes: [("scene".to_owned(), scene)].into(),
        };
        checkpoint.encode().unwrap()
    };
    let mut straight = trainer(3, 40_000);
    (0..10).for_each(|_| drop(straight.round().unwrap()));
    let mut broken = trainer(3, 40_000);
    (0..5).for_each(|_| drop(broken.round().unwrap()));
    let expected = Expected {
        policy: "cartpole".to_owned(),
        head: Categorical { actions: 2 },
        inputs: 4,
        config: cleanrl(40_000),
    };
    let read = Checkpoint::decode(&bytes_of(&broken), &expected).unwrap();
    let scene: Scene<Copies<CartPole>> = serde_json::from_str(&read.notes["scene"]).unwrap();
    let mut resumed = Trainer::resume(read.learner, scene, HORIZON);
    (0..5).for_each(|_| drop(resumed.round().unwrap()));
    assert_eq!(bytes_of(&resumed), bytes_of(&straight));
    assert_ne!(bytes_of(&resumed), bytes_of(&broken));
}
