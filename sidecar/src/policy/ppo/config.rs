//! How PPO learns: its numbers, their defaults and their ranges.

use serde::{Deserialize, Serialize};

use super::{gae::Horizon, loss::Weights};

/// How PPO learns. The defaults are those of the rate residual; `docs/policy/ppo.md` has their reasons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the residual learns from what happens here; default true. What it learns from is what it
    /// did, so it needs `explore`.
    pub learn: bool,
    /// Whether the residual tries actions around the one that it holds for the best; without it nothing
    /// is drawn, and nothing can be learned; default true.
    pub explore: bool,
    /// Units of each hidden layer, 1 to 512; default 64.
    pub hidden: usize,
    /// γ: what a reward one tick later is worth, 0 to 1; default 0.97.
    pub discount: f64,
    /// λ of the advantages, 0 to 1; default 0.95.
    pub lambda: f64,
    /// How far a probability may move in one update, as a share; default 0.2.
    pub clip: f64,
    /// How far a value may move in one update, in units of reward; 0 for no bound; default 0.2.
    pub value_clip: f64,
    /// What the value's loss weighs beside the policy's; default 0.5.
    pub value_weight: f64,
    /// What the entropy weighs; default 0: the residual's deviation learns by itself how much to try.
    pub entropy_weight: f64,
    /// Whether advantages are brought to mean 0 and deviation 1 in each minibatch; default true.
    pub normalize_advantages: bool,
    /// Adam's step; default 2.5·10⁻⁴.
    pub learning_rate: f64,
    /// Updates over which the step shrinks to 0 in a line; 0 for a step that stays; default 0.
    pub anneal_updates: u64,
    /// How often an update goes through its samples, 1 to 100; default 4.
    pub epochs: u32,
    /// Samples per step of the optimizer, from 2 on; default 64. A batch is cut into as many equal parts
    /// as fit this size.
    pub minibatch: usize,
    /// The length that a gradient is cut down to; default 0.5.
    pub gradient_norm_max: f64,
    /// An update ends early when a minibatch shows that the policy has moved further than this, in nats; 0
    /// for never; default 0.015.
    pub kl_stop: f64,
    /// An update that moved the policy further than this, in nats over all its samples, is undone and
    /// reported; default 0.5.
    pub kl_max: f64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            learn: true,
            explore: true,
            hidden: 64,
            discount: 0.97,
            lambda: 0.95,
            clip: 0.2,
            value_clip: 0.2,
            value_weight: 0.5,
            entropy_weight: 0.0,
            normalize_advantages: true,
            learning_rate: 2.5e-4,
            anneal_updates: 0,
            epochs: 4,
            minibatch: 64,
            gradient_norm_max: 0.5,
            kl_stop: 0.015,
            kl_max: 0.5,
        }
    }
}

/// Units that a hidden layer may have: memory and time grow with their square.
pub const HIDDEN_MAX: usize = 512;

impl Config {
    /// Appends every fault, each with its full path.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let mut range = |name: &str, value: f64, low: f64, high: f64| {
            if !(low..=high).contains(&value) {
                faults.push(format!("{path}.{name}: must be {low} to {high}, is {value}"));
            }
        };
        #[allow(clippy::cast_precision_loss, reason = "only compared with small bounds")]
        for (name, value, low, high) in [
            ("hidden", self.hidden as f64, 1.0, HIDDEN_MAX as f64),
            ("epochs", f64::from(self.epochs), 1.0, 100.0),
            ("minibatch", self.minibatch as f64, 2.0, 1e6),
            ("discount", self.discount, 0.0, 1.0),
            ("lambda", self.lambda, 0.0, 1.0),
            ("clip", self.clip, 0.001, 1.0),
            ("value_clip", self.value_clip, 0.0, 1e6),
            ("value_weight", self.value_weight, 0.0, 100.0),
            ("entropy_weight", self.entropy_weight, 0.0, 10.0),
            ("learning_rate", self.learning_rate, 0.0, 1.0),
            ("gradient_norm_max", self.gradient_norm_max, 1e-6, 1e6),
            ("kl_stop", self.kl_stop, 0.0, 10.0),
            ("kl_max", self.kl_max, 0.001, 100.0),
        ] {
            range(name, value, low, high);
        }
        if self.learn && !self.explore {
            faults.push(format!(
                "{path}.learn: needs {path}.explore = true: what is never tried cannot be learned from"
            ));
        }
    }

    /// Returns γ and λ.
    #[must_use]
    pub fn horizon(&self) -> Horizon {
        Horizon { discount: self.discount, lambda: self.lambda }
    }

    pub(super) fn weights(&self) -> Weights {
        Weights {
            clip: self.clip,
            value_clip: (self.value_clip > 0.0).then_some(self.value_clip),
            value: self.value_weight,
            entropy: self.entropy_weight,
            normalize: self.normalize_advantages,
        }
    }

    /// Returns the optimizer's step in the update after `updates` others (detail 4 of Huang et al. 2022).
    pub(super) fn rate_after(&self, updates: u64) -> f64 {
        if self.anneal_updates == 0 {
            return self.learning_rate;
        }
        #[allow(clippy::cast_precision_loss, reason = "updates are far fewer than 2^52")]
        let done = updates as f64 / self.anneal_updates as f64;
        self.learning_rate * (1.0 - done).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_every_number_out_of_range_is_named() {
        let mut faults = Vec::new();
        Config::default().validate("ppo", &mut faults);
        assert!(faults.is_empty(), "{faults:?}");
        let wrong = Config { hidden: 0, clip: f64::NAN, kl_max: -1.0, ..Config::default() };
        wrong.validate("policy.ppo", &mut faults);
        let named = |name: &str| faults.iter().any(|fault| fault.starts_with(name));
        assert_eq!(faults.len(), 3);
        assert!(
            ["policy.ppo.hidden:", "policy.ppo.clip:", "policy.ppo.kl_max:"].map(named)
                == [true; 3]
        );
    }

    #[test]
    fn the_step_shrinks_in_a_line_and_never_below_nothing() {
        let config = Config { learning_rate: 1.0, anneal_updates: 4, ..Config::default() };
        assert_eq!([0, 1, 3, 4, 9].map(|n| config.rate_after(n)), [1.0, 0.75, 0.25, 0.0, 0.0]);
        assert_eq!(Config { anneal_updates: 0, ..config }.rate_after(1_000_000), 1.0);
    }
}
