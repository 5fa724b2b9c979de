//! What PPO minimises, and its slope by every parameter.
//!
//! ```text
//! L = mean( max(−Â·ρ, −Â·clip(ρ, 1−ε, 1+ε)) )                        the policy
//!   + c_v · ½ · mean( max((v−R)², (v_old + clip(v−v_old, −ε_v, ε_v) − R)²) )   the value
//!   − c_e · mean( H )                                                the entropy
//! ```
//!
//! with ρ = π(a)/π_old(a) (Schulman et al. 2017, "Proximal Policy Optimization Algorithms", equations 7
//! and 9; the clipped value is detail 9 of Huang et al. 2022, advantages normalised per minibatch detail 7).
//! Where the clipped part is the larger one and clipped, a sample teaches nothing: its slope is 0.

use super::{ActorCritic, Head, Passes, Real, head::At};

/// Added to the deviation that advantages are divided by.
const DEVIATION_MIN: f64 = 1e-8;

/// What the loss is made with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// ε: how far a probability may move, as a share of the old one.
    pub clip: f64,
    /// ε_v: how far a value may move, in units of reward; `None`: as far as it likes.
    pub value_clip: Option<f64>,
    /// c_v.
    pub value: f64,
    /// c_e.
    pub entropy: f64,
    /// Whether advantages are brought to mean 0 and deviation 1 within each minibatch.
    pub normalize: bool,
}

/// Samples to learn from: one entry each, one row each of observations.
#[derive(Clone, Copy, Debug)]
pub struct Samples<'a, A, R> {
    /// What was seen.
    pub observations: &'a [R],
    /// What was done.
    pub actions: &'a [A],
    /// The logarithm of the action's probability or density then.
    pub log_densities: &'a [R],
    /// The critic's value then.
    pub values: &'a [R],
    /// Â.
    pub advantages: &'a [R],
    /// R: what the value should have been.
    pub returns: &'a [R],
}

/// The parts of a loss, and how far the policy has moved; means over the samples.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Losses {
    /// The policy's part.
    pub policy: f64,
    /// The value's part, before its weight.
    pub value: f64,
    /// The entropy, in nats.
    pub entropy: f64,
    /// L.
    pub total: f64,
    /// An estimate of KL(π_old ‖ π), in nats: the mean of (ρ−1) − ln ρ, which is never negative
    /// (Schulman 2020, "Approximating KL Divergence").
    pub kl: f64,
    /// The share of samples with ρ outside 1 ± ε.
    pub clipped: f64,
}

/// The slope of one sample's policy loss by its log-probability, with the loss itself.
fn policy<R: Real>(advantage: R, ratio: R, clip: R) -> (R, R) {
    let free = -advantage * ratio;
    let bound = -advantage * ratio.clamp(R::one() - clip, R::one() + clip);
    // Equal while ρ is inside; dρ/d ln π = ρ.
    if free >= bound { (free, free) } else { (bound, R::zero()) }
}

/// The slope of one sample's value loss (½·error²) by the value, with the loss itself.
fn value<R: Real>(value: R, old: R, target: R, clip: Option<R>) -> (R, R) {
    let half = R::of(0.5);
    let error = value - target;
    let free = half * error * error;
    if let Some(clip) = clip {
        let error = old + (value - old).clamp(-clip, clip) - target;
        let bound = half * error * error;
        if bound > free && (value - old).abs() > clip {
            return (bound, R::zero());
        }
    }
    (free, error)
}

/// Computes the loss of `samples` and writes its gradient by all parameters into `gradient`.
///
/// # Panics
///
/// When there are no samples, or the slices of `samples` do not have one entry for each.
pub fn gradient<H: Head, R: Real>(
    network: &ActorCritic<H, R>,
    samples: &Samples<'_, H::Action, R>,
    weights: &Weights,
    passes: &mut Passes<R>,
    gradient: &mut [R],
) -> Losses {
    let losses = slopes(network, samples, weights, passes);
    network.backward(samples.observations, passes, gradient);
    losses
}

/// Runs the networks and leaves in `passes` the slopes of the loss by their outputs.
fn slopes<H: Head, R: Real>(
    network: &ActorCritic<H, R>,
    samples: &Samples<'_, H::Action, R>,
    weights: &Weights,
    passes: &mut Passes<R>,
) -> Losses {
    let count = samples.actions.len();
    assert!(count > 0, "a loss is a mean over samples");
    network.forward(samples.observations, passes);
    let (head, free, width) = (network.head(), network.free(), network.actor().outputs);
    let Passes { actor, critic, by_output, by_free, by_value } = passes;
    by_output.resize(count * width, R::zero());
    by_value.resize(count, R::zero());
    by_free.clear();
    by_free.resize(free.len(), R::zero());

    #[allow(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^52")]
    let share = 1.0 / count as f64;
    let (mean, deviation) = moments(samples.advantages, weights.normalize);
    let (clip, by_entropy) = (R::of(weights.clip), R::of(-weights.entropy * share));
    let value_clip = weights.value_clip.map(R::of);
    let mut losses = Losses::default();
    for n in 0..count {
        let outputs = &actor.output[n * width..(n + 1) * width];
        let action = &samples.actions[n];
        let log_ratio = head.log_density(outputs, free, action) - samples.log_densities[n];
        let ratio = log_ratio.exp();
        let advantage = (samples.advantages[n] - mean) / deviation;
        let (loss, slope) = policy(advantage, ratio, clip);
        head.slopes(
            At { outputs, free, action },
            slope * R::of(share),
            by_entropy,
            &mut by_output[n * width..(n + 1) * width],
            by_free,
        );
        let (value_loss, by_this_value) =
            value(critic.output[n], samples.values[n], samples.returns[n], value_clip);
        by_value[n] = by_this_value * R::of(weights.value * share);

        losses.policy += loss.wide();
        losses.value += value_loss.wide();
        losses.entropy += head.entropy(outputs, free).wide();
        losses.kl += (ratio - R::one() - log_ratio).wide();
        losses.clipped += f64::from(u8::from((ratio - R::one()).abs() > clip));
    }
    let Losses { policy, value, entropy, kl, clipped, .. } = losses;
    let [policy, value, entropy, kl, clipped] =
        [policy, value, entropy, kl, clipped].map(|sum| sum * share);
    let total = policy + weights.value * value - weights.entropy * entropy;
    Losses { policy, value, entropy, total, kl, clipped }
}

/// Returns how far the policy has moved from the one that drew `samples`: [`Losses::kl`], without the rest.
pub(super) fn moved<H: Head, R: Real>(
    network: &ActorCritic<H, R>,
    samples: &Samples<'_, H::Action, R>,
    passes: &mut Passes<R>,
) -> f64 {
    let count = samples.actions.len();
    assert!(count > 0, "a mean over samples");
    network.forward_actor(samples.observations, passes);
    let outputs = passes.actor.output.chunks_exact(network.actor().outputs);
    let (head, free) = (network.head(), network.free());
    let old = samples.actions.iter().zip(samples.log_densities);
    let sum: f64 = outputs
        .zip(old)
        .map(|(outputs, (action, &old))| {
            let log_ratio = (head.log_density(outputs, free, action) - old).wide();
            log_ratio.exp() - 1.0 - log_ratio
        })
        .sum();
    #[allow(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^52")]
    let mean = sum / count as f64;
    mean
}

/// The mean and deviation that advantages are brought to 0 and 1 with; of one sample alone, as they are.
fn moments<R: Real>(advantages: &[R], normalize: bool) -> (R, R) {
    if !normalize || advantages.len() < 2 {
        return (R::zero(), R::one());
    }
    #[allow(clippy::cast_precision_loss, reason = "a batch is far smaller than 2^52")]
    let count = advantages.len() as f64;
    let mean = advantages.iter().map(|a| a.wide()).sum::<f64>() / count;
    let squares: f64 = advantages.iter().map(|a| (a.wide() - mean).powi(2)).sum();
    (R::of(mean), R::of((squares / (count - 1.0)).sqrt() + DEVIATION_MIN))
}

#[cfg(test)]
mod tests;
