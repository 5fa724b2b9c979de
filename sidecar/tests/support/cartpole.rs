//! CartPole-v1, as Gymnasium has it.
//!
//! The dynamics are those of Barto, Sutton and Anderson 1983 ("Neuronlike adaptive elements that can solve
//! difficult learning control problems", appendix), with the pole's equations as Florian 2007 ("Correct
//! equations for the dynamics of the cart-pole system") gives them without friction; numbers, bounds, Euler
//! steps in double precision, observations in single precision and the limit of 500 steps are those of
//! `gymnasium/envs/classic_control/cartpole.py` and of its registration of `CartPole-v1`.

use merit_sidecar::policy::ppo::{Ending, Outcome, Single};
use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

/// m/s².
const GRAVITY: f64 = 9.8;
/// kg.
const CART: f64 = 1.0;
/// kg.
const POLE: f64 = 0.1;
/// Half the pole, in m.
const LENGTH: f64 = 0.5;
/// N.
const FORCE: f64 = 10.0;
/// Seconds per step.
const STEP: f64 = 0.02;
/// The cart's way from the middle, in m.
const X_MAX: f64 = 2.4;
/// 12 degrees, in radians.
const ANGLE_MAX: f64 = 12.0 * std::f64::consts::TAU / 360.0;
/// Steps after which an episode is cut off; it counts as solved from an average of 475 on.
pub(crate) const STEPS_MAX: u32 = 500;

/// A cart that is pushed left (0) or right (1), and the pole on it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct CartPole {
    x: f64,
    speed: f64,
    angle: f64,
    turn: f64,
    steps: u32,
}

impl CartPole {
    fn observe(&self, observation: &mut [f32]) {
        for (seen, value) in observation.iter_mut().zip([self.x, self.speed, self.angle, self.turn])
        {
            #[allow(clippy::cast_possible_truncation)]
            let rounded = value as f32;
            *seen = rounded;
        }
    }
}

impl Single for CartPole {
    type Action = usize;

    const WIDTH: usize = 4;

    fn reset(&mut self, random: &mut impl Rng, observation: &mut [f32]) {
        let [x, speed, angle, turn] = [0; 4].map(|_| random.random_range(-0.05..0.05));
        *self = Self { x, speed, angle, turn, steps: 0 };
        self.observe(observation);
    }

    fn step(&mut self, action: &usize, _random: &mut impl Rng, observation: &mut [f32]) -> Outcome {
        let force = if *action == 1 { FORCE } else { -FORCE };
        let (sin, cos) = self.angle.sin_cos();
        let (total, moment) = (CART + POLE, POLE * LENGTH);
        let pushed = (force + moment * self.turn.powi(2) * sin) / total;
        let turning =
            (GRAVITY * sin - cos * pushed) / (LENGTH * (4.0 / 3.0 - POLE * cos.powi(2) / total));
        let speeding = pushed - moment * turning * cos / total;
        self.x += STEP * self.speed;
        self.speed += STEP * speeding;
        self.angle += STEP * self.turn;
        self.turn += STEP * turning;
        self.steps += 1;
        self.observe(observation);
        let ending = if self.x.abs() > X_MAX || self.angle.abs() > ANGLE_MAX {
            Ending::Terminated
        } else if self.steps >= STEPS_MAX {
            Ending::Truncated
        } else {
            Ending::Continues
        };
        Outcome { reward: 1.0, ending }
    }
}

/// CleanRL's `ppo.py` learns CartPole-v1 with these, from 4 copies and 128 steps a round.
pub(crate) fn cleanrl(steps: u64) -> merit_sidecar::policy::ppo::Config {
    merit_sidecar::policy::ppo::Config {
        learn: true,
        explore: true,
        hidden: 64,
        discount: 0.99,
        lambda: 0.95,
        clip: 0.2,
        value_clip: 0.2,
        value_weight: 0.5,
        entropy_weight: 0.01,
        normalize_advantages: true,
        learning_rate: 2.5e-4,
        anneal_updates: steps / (COPIES * HORIZON) as u64,
        epochs: 4,
        minibatch: COPIES * HORIZON / 4,
        gradient_norm_max: 0.5,
        kl_stop: 0.0,
        kl_max: 0.5,
    }
}

/// Carts that are balanced at once.
pub(crate) const COPIES: usize = 4;

/// Steps of each between two updates.
pub(crate) const HORIZON: usize = 128;
