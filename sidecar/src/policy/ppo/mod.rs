//! PPO: an actor and a critic that learn from what their actions led to.
//!
//! Proximal policy optimization (Schulman et al. 2017) over a fixed small network with its own backward
//! pass (POLICY section 5 has the reasons). It knows nothing of agents and rates: it acts in an
//! [`Environment`] or learns from [`Trajectory`]s that somebody else recorded, with a [`Gaussian`] or a
//! [`Categorical`] [`Head`].
//!
//! 1. No clock, no files, no threads, and no randomness but of a seed: the same seed and the same
//!    observations give the same bytes (on processors with the same vector instructions, which choose
//!    the kernel of the matrix product and with it the order of its sums).
//! 2. An update either makes all numbers finite ones or changes nothing ([`Learner`]).
//! 3. A learner that went through a [`Checkpoint`] goes on bit for bit as if it had not.

mod actor_critic;
mod adam;
mod checkpoint;
mod config;
mod environment;
mod experience;
mod gae;
mod head;
mod learner;
mod loss;
mod mlp;
mod orthogonal;
mod random;
mod real;
mod rollout;
mod student;
mod train;

pub use actor_critic::{ActorCritic, Drawn, Passes, Room, Tensor};
pub use adam::{Adam, EPSILON, clip_norm};
pub use checkpoint::{BYTES_MAX, Checkpoint, CheckpointError, Expected, VERSION};
pub use config::{Config, HIDDEN_MAX};
pub use environment::{Copies, Ending, Environment, Outcome, Seen, Single};
pub use experience::{AGENTS_MAX, Experience, STEPS_MAX, Step, TICKS_MAX, TICKS_MIN, VERSIONS_MAX};
pub use gae::{End, Horizon, advantages};
pub use head::{At, Categorical, Gaussian, Head, LOG_STD_MAX, LOG_STD_MIN};
pub use learner::{BATCH_MAX, LearnError, Learner, Report};
pub use loss::{Losses, Samples, Weights, gradient};
pub use mlp::Mlp;
pub use random::{Purpose, Random, normal, shuffle, stream};
pub use real::Real;
pub use rollout::{Batch, Trajectory};
pub use student::{REFUSALS, RETURN_MAX, Refused, SPIKE, Student};
pub use train::{Choice, Episode, Round, Scene, Trainer, evaluate};
