//! One update: several times through a batch, in minibatches, and never worse than nothing.
//!
//! 1. An update that fails leaves the networks and the optimizer as they were.
//! 2. Nothing that is not finite gets in, and nothing that is not finite stays.
//! 3. The order of samples is a function of the seed and the number of the update, so that an update
//!    after a restart is the update that would have been.

use super::{
    ActorCritic, Adam, Batch, Config, Head, Passes, Real,
    adam::clip_norm,
    loss::{self, Losses},
    random::{Purpose, shuffle, stream},
};

/// Samples that one update takes at most.
pub const BATCH_MAX: usize = 1 << 20;

/// Why an update was not made. The learner is as it was before.
#[derive(Debug, thiserror::Error, PartialEq)]
#[non_exhaustive]
pub enum LearnError {
    /// The batch has too few samples to learn from, or too many for one update.
    #[error("a batch of {samples} samples: an update takes 2 to {BATCH_MAX}")]
    Size {
        /// How many it has.
        samples: usize,
    },
    /// The batch holds observations of another width.
    #[error("observations of {found} numbers: the networks take {expected}")]
    Width {
        /// What the batch holds.
        found: usize,
        /// What the networks take.
        expected: usize,
    },
    /// Something is NaN or infinite.
    #[error("{what} is not a finite number: the update was undone")]
    NotFinite {
        /// What.
        what: &'static str,
    },
    /// The policy moved too far.
    #[error("the update moved the policy by {kl} nats, more than kl_max = {most}, and was undone")]
    Diverged {
        /// How far, over all samples.
        kl: f64,
        /// How far it may.
        most: f64,
    },
}

/// What an update did.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Updates made so far, this one included.
    pub updates: u64,
    /// Samples in the batch.
    pub samples: usize,
    /// Steps of the optimizer.
    pub steps: u32,
    /// Whether the policy had moved by `kl_stop` before all epochs were done.
    pub stopped: bool,
    /// The optimizer's step.
    pub learning_rate: f64,
    /// Means over all minibatches.
    pub losses: Losses,
    /// How far the policy moved, over all samples, in nats.
    pub kl: f64,
    /// The longest gradient, before it was cut.
    pub gradient_norm: f64,
    /// How much of the returns' variance the critic had foreseen, at most 1.
    pub explained_variance: f64,
}

/// Networks that learn: parameters, optimizer, and the room that learning takes.
#[derive(Clone, Debug)]
pub struct Learner<H: Head, R: Real = f32> {
    config: Config,
    seed: u64,
    updates: u64,
    network: ActorCritic<H, R>,
    adam: Adam<R>,
    room: Workspace<H::Action, R>,
}

#[derive(Clone, Debug)]
struct Workspace<A, R> {
    passes: Passes<R>,
    minibatch: Batch<A, R>,
    order: Vec<usize>,
    gradient: Vec<R>,
}

impl<H: Head, R: Real> Learner<H, R> {
    /// Returns a learner that has seen nothing, for observations of `inputs` numbers.
    #[must_use]
    pub fn new(head: H, inputs: usize, config: Config, seed: u64) -> Self {
        let network = ActorCritic::new(head, inputs, config.hidden, seed);
        let adam = Adam::new(network.parameters().len());
        Self::resume(network, adam, config, seed, 0)
    }

    /// Returns a learner that goes on after `updates` updates.
    pub(super) fn resume(
        network: ActorCritic<H, R>,
        adam: Adam<R>,
        config: Config,
        seed: u64,
        updates: u64,
    ) -> Self {
        let room = Workspace {
            passes: Passes::default(),
            minibatch: Batch::new(network.actor().inputs),
            order: Vec::new(),
            gradient: vec![R::zero(); network.parameters().len()],
        };
        Self { config, seed, updates, network, adam, room }
    }

    /// Returns a learner that goes on with what this one has learned, by another `config` and `seed`; nothing when
    /// that asks for networks of another shape.
    #[must_use]
    pub fn under(&self, config: &Config, seed: u64) -> Option<Self> {
        let same = self.config.hidden == config.hidden;
        let (network, adam) = (self.network.clone(), self.adam.clone());
        same.then(|| Self::resume(network, adam, config.clone(), seed, self.updates))
    }

    /// Returns the networks.
    #[must_use]
    pub fn network(&self) -> &ActorCritic<H, R> {
        &self.network
    }

    /// Returns the optimizer.
    #[must_use]
    pub fn adam(&self) -> &Adam<R> {
        &self.adam
    }

    /// Returns how it learns.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns the seed that its randomness is derived from.
    #[must_use]
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Returns how many updates were made.
    #[must_use]
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Learns from `batch`, which the present networks should have made.
    ///
    /// # Errors
    ///
    /// [`LearnError`]; then nothing changed, and the next update is tried under the same number.
    pub fn update(&mut self, batch: &Batch<H::Action, R>) -> Result<Report, LearnError> {
        let mut random = stream(self.seed, Purpose::Minibatches, self.updates);
        self.update_in(batch, |order| shuffle(order, &mut random))
    }

    /// Learns with the samples of each epoch in the order that `reorder` makes of the one before.
    fn update_in(
        &mut self,
        batch: &Batch<H::Action, R>,
        reorder: impl FnMut(&mut [usize]),
    ) -> Result<Report, LearnError> {
        self.check(batch)?;
        let before = (self.network.clone(), self.adam.clone());
        let made = self.learn(batch, reorder);
        match made {
            Ok(_) => self.updates += 1,
            Err(_) => (self.network, self.adam) = before,
        }
        made
    }

    fn check(&self, batch: &Batch<H::Action, R>) -> Result<(), LearnError> {
        let (found, expected) = (batch.width, self.network.actor().inputs);
        if found != expected {
            return Err(LearnError::Width { found, expected });
        }
        if !(2..=BATCH_MAX).contains(&batch.len()) {
            return Err(LearnError::Size { samples: batch.len() });
        }
        match batch.not_finite() {
            Some(what) => Err(LearnError::NotFinite { what }),
            None => Ok(()),
        }
    }

    fn learn(
        &mut self,
        batch: &Batch<H::Action, R>,
        mut reorder: impl FnMut(&mut [usize]),
    ) -> Result<Report, LearnError> {
        let Workspace { passes, minibatch, order, gradient } = &mut self.room;
        let (config, weights) = (&self.config, self.config.weights());
        let mut report = Report {
            updates: self.updates + 1,
            samples: batch.len(),
            learning_rate: config.rate_after(self.updates),
            explained_variance: batch.explained_variance(),
            ..Report::default()
        };
        let mut sums = Means::default();
        order.clear();
        order.extend(0..batch.len());
        let parts = (batch.len() / config.minibatch).max(1);
        'epochs: for _ in 0..config.epochs {
            reorder(order);
            for part in 0..parts {
                let places = part * batch.len() / parts..(part + 1) * batch.len() / parts;
                minibatch.gather(batch, &order[places]);
                let samples = minibatch.samples();
                let losses = loss::gradient(&self.network, &samples, &weights, passes, gradient);
                let norm = clip_norm(gradient, config.gradient_norm_max);
                if !(losses.total.is_finite() && losses.kl.is_finite()) {
                    return Err(LearnError::NotFinite { what: "the loss" });
                }
                if !norm.is_finite() {
                    return Err(LearnError::NotFinite { what: "the gradient" });
                }
                sums.add(&losses);
                if config.kl_stop > 0.0 && losses.kl > config.kl_stop {
                    report.stopped = true;
                    break 'epochs;
                }
                self.adam.step(self.network.parameters_mut(), gradient, report.learning_rate);
                self.network.project();
                report.steps += 1;
                report.gradient_norm = report.gradient_norm.max(norm);
            }
        }
        report.losses = sums.means();
        report.kl = loss::moved(&self.network, &batch.samples(), passes);
        if self.network.parameters().iter().any(|parameter| !parameter.is_finite()) {
            return Err(LearnError::NotFinite { what: "a parameter" });
        }
        // A KL that is NaN or infinite counts as too far.
        if report.kl <= config.kl_max {
            Ok(report)
        } else {
            Err(LearnError::Diverged { kl: report.kl, most: config.kl_max })
        }
    }
}

#[derive(Default)]
struct Means {
    sum: Losses,
    count: f64,
}

impl Means {
    fn add(&mut self, losses: &Losses) {
        let Losses { policy, value, entropy, total, kl, clipped } = losses;
        self.sum.policy += policy;
        self.sum.value += value;
        self.sum.entropy += entropy;
        self.sum.total += total;
        self.sum.kl += kl;
        self.sum.clipped += clipped;
        self.count += 1.0;
    }

    fn means(self) -> Losses {
        let Losses { policy, value, entropy, total, kl, clipped } = self.sum;
        let [policy, value, entropy, total, kl, clipped] =
            [policy, value, entropy, total, kl, clipped].map(|sum| sum / self.count);
        Losses { policy, value, entropy, total, kl, clipped }
    }
}

#[cfg(test)]
mod tests;
