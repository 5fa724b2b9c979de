//! The checkpoint that Merit ships: what the residual starts from where nobody has learned anything yet.
//!
//! `merit train` made it, in simulated worlds; `docs/policy/ppo.md` says how, and what it is worth.

use super::{FIRST_HEAD, OBSERVATION};
use crate::policy::ppo::{self, Checkpoint, CheckpointError, Expected, Gaussian, Learner};

/// The name of the policy in checkpoints.
pub const CHECKPOINT_POLICY: &str = "ppo";

/// The checkpoint's bytes.
const BYTES: &[u8] = include_bytes!("../../../assets/ppo.chkpt");

/// Returns what a checkpoint of the residual must be to go on with under `config`.
#[must_use]
pub fn expected(config: &ppo::Config) -> Expected<Gaussian> {
    let policy = CHECKPOINT_POLICY.to_owned();
    Expected { policy, head: FIRST_HEAD, inputs: OBSERVATION, config: config.clone() }
}

/// Returns the shipped learner.
///
/// # Errors
///
/// [`CheckpointError::Shape`] when `config` asks for hidden layers of another width.
pub fn shipped(config: &ppo::Config) -> Result<Learner<Gaussian>, CheckpointError> {
    Checkpoint::decode(BYTES, &expected(config)).map(|checkpoint| checkpoint.learner)
}

/// Returns the learner to start with: the shipped one, or where its shape is not the configured one, one
/// that has seen nothing.
pub(in crate::policy) fn beginner(config: &ppo::Config, seed: u64) -> Learner<Gaussian> {
    match shipped(config) {
        Ok(learner) => learner,
        Err(_) => Learner::new(FIRST_HEAD, OBSERVATION, config.clone(), seed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shipped_checkpoint_is_whole_small_and_has_learned() {
        const { assert!(BYTES.len() < 200 << 10) };
        let learner = shipped(&ppo::Config::default()).unwrap();
        assert!(learner.updates() > 0 && learner.adam().steps() > 0);
        assert_eq!(beginner(&ppo::Config::default(), 9).updates(), learner.updates());
    }

    #[test]
    fn another_width_starts_from_nothing() {
        let config = ppo::Config { hidden: 32, ..ppo::Config::default() };
        assert!(matches!(shipped(&config), Err(CheckpointError::Shape { .. })));
        let beginner = beginner(&config, 9);
        assert_eq!((beginner.updates(), beginner.network().actor().hidden), (0, 32));
    }
}
