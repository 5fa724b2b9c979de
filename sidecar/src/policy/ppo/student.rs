//! A learner behind guardrails: what it learns from and what it learned is looked at before it counts.
//!
//! 1. A batch that is refused changes nothing: the last good weights and moments stay.
//! 2. Every refusal has a [`Refused`] that says why, and is counted under its name.

use std::sync::Arc;

use super::{ActorCritic, Batch, Head, LearnError, Learner, Report};

/// The largest return that is believed, up or down. A tick is worth a few points of score at the most,
/// and 1/(1 − γ) of them add up to a return.
pub const RETURN_MAX: f32 = 100.0;

/// The value's loss counts as a spike from this many times its running mean on.
pub const SPIKE: f64 = 20.0;

/// Below this, a value's loss is never a spike: at first there is little to be wrong about.
const SPIKE_MIN: f64 = 0.01;

/// Share of the running mean of the value's loss that an update replaces.
const LOSS_SHARE: f64 = 0.05;

/// Updates before a loss can be a spike: the critic knows nothing yet.
const WARM_UP: u64 = 20;

/// Why a batch taught nothing.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum Refused {
    /// A reward (or what the critic makes of one) is beyond belief.
    #[error("a return of {found} is beyond {RETURN_MAX}: the batch is given up")]
    Reward {
        /// The furthest from 0.
        found: f32,
    },
    /// The critic was suddenly far off.
    #[error("the value's loss is {found}, usually {usual}: the update is undone")]
    Loss {
        /// What it was.
        found: f64,
        /// Its running mean.
        usual: f64,
    },
    /// The policy moved too far in one update.
    #[error("the update moved the policy by {kl} nats: it is undone")]
    Kl {
        /// How far.
        kl: f64,
    },
    /// Something is NaN or infinite.
    #[error("{what} is not a finite number: the update is undone")]
    NotFinite {
        /// What.
        what: &'static str,
    },
    /// The batch cannot be learned from at all.
    #[error("the batch does not fit")]
    Batch(#[source] LearnError),
}

/// How many kinds of refusal there are.
pub const REFUSALS: usize = 5;

impl Refused {
    /// The names of all kinds, in the order of [`Student::refused`].
    pub const NAMES: [&'static str; REFUSALS] = ["reward", "loss", "kl", "not_finite", "batch"];

    /// Returns its name, as metrics and logs say it.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        Self::NAMES[self.index()]
    }

    fn index(&self) -> usize {
        match self {
            Self::Reward { .. } => 0,
            Self::Loss { .. } => 1,
            Self::Kl { .. } => 2,
            Self::NotFinite { .. } => 3,
            Self::Batch(_) => 4,
        }
    }
}

impl From<LearnError> for Refused {
    fn from(error: LearnError) -> Self {
        match error {
            LearnError::NotFinite { what } => Self::NotFinite { what },
            LearnError::Diverged { kl, .. } => Self::Kl { kl },
            error => Self::Batch(error),
        }
    }
}

/// A [`Learner`] that only learns what is sound.
#[derive(Clone, Debug)]
pub struct Student<H: Head> {
    learner: Learner<H>,
    network: Arc<ActorCritic<H>>,
    /// Running mean of the value's loss, and how many updates it has seen.
    usual: f64,
    seen: u64,
    refused: [u64; REFUSALS],
}

impl<H: Head> Student<H> {
    /// Returns a student that goes on where `learner` is.
    #[must_use]
    pub fn new(learner: Learner<H>) -> Self {
        let network = Arc::new(learner.network().clone());
        Self { learner, network, usual: 0.0, seen: 0, refused: [0; REFUSALS] }
    }

    /// Returns the learner as the last good update left it.
    #[must_use]
    pub fn learner(&self) -> &Learner<H> {
        &self.learner
    }

    /// Returns the networks of the last good update.
    #[must_use]
    pub fn network(&self) -> Arc<ActorCritic<H>> {
        Arc::clone(&self.network)
    }

    /// Returns the version of [`network`](Self::network): how many updates were made.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.learner.updates()
    }

    /// Returns how many batches were refused, by [`Refused::NAMES`].
    #[must_use]
    pub fn refused(&self) -> [u64; REFUSALS] {
        self.refused
    }

    /// Learns from `batch`.
    ///
    /// # Errors
    ///
    /// [`Refused`]; then everything is as it was before, but for the counters.
    pub fn learn(&mut self, batch: &Batch<H::Action>) -> Result<Report, Refused> {
        let learned = self.guarded(batch);
        match &learned {
            Ok(_) => self.network = Arc::new(self.learner.network().clone()),
            Err(refused) => self.refused[refused.index()] += 1,
        }
        learned
    }

    fn guarded(&mut self, batch: &Batch<H::Action>) -> Result<Report, Refused> {
        let furthest =
            batch.samples().returns.iter().copied().max_by(|a, b| a.abs().total_cmp(&b.abs()));
        // One that is no number has a name of its own: the learner's.
        if let Some(found) = furthest.filter(|found| found.is_finite() && found.abs() > RETURN_MAX)
        {
            return Err(Refused::Reward { found });
        }
        let before = self.learner.clone();
        let report = self.learner.update(batch)?;
        let (found, usual) = (report.losses.value, self.usual);
        let most = (SPIKE * usual).max(SPIKE_MIN);
        // A spike counts as the largest loss that is none: what lasts becomes usual.
        let counted = found.min(most);
        #[allow(clippy::cast_precision_loss, reason = "updates are far fewer than 2^52")]
        let share = LOSS_SHARE.max(1.0 / (self.seen + 1) as f64);
        let spike = self.seen >= WARM_UP && found > most;
        self.usual += share * (if self.seen < WARM_UP { found } else { counted } - usual);
        self.seen += 1;
        if spike {
            self.learner = before;
            return Err(Refused::Loss { found, usual });
        }
        Ok(report)
    }
}

#[cfg(test)]
mod tests;
