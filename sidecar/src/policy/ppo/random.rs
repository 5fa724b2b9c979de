//! Randomness as a function of a seed: a stream of numbers per purpose and index.
//!
//! Nothing keeps a generator between two updates. Whoever needs random numbers names the seed, what
//! they are for and the number of the update, and gets the same ones again after a restart: a checkpoint
//! holds a seed and a count instead of a generator's state.

use rand::{Rng, RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};

/// The generator of every stream: xoshiro256++ (Blackman and Vigna 2018), whose numbers are fixed.
pub type Random = Xoshiro256PlusPlus;

/// What a stream of random numbers is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Purpose {
    /// The first weights.
    Weights,
    /// Which actions are tried.
    Actions,
    /// Which samples a minibatch holds.
    Minibatches,
    /// What the environment does.
    Environment,
    /// Runs that measure and teach nothing.
    Evaluation,
}

/// Returns the stream of `seed` for one `purpose` and `index` (the number of an update, say).
#[must_use]
pub fn stream(seed: u64, purpose: Purpose, index: u64) -> Random {
    let purpose = match purpose {
        Purpose::Weights => 1,
        Purpose::Actions => 2,
        Purpose::Minibatches => 3,
        Purpose::Environment => 4,
        Purpose::Evaluation => 5,
    };
    Random::seed_from_u64(mixed(mixed(mixed(seed) ^ purpose) ^ index))
}

/// Returns `x` with its bits mixed: the finalizer of SplitMix64 (Steele, Lea and Flood 2014), one to one.
fn mixed(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Returns a number of the standard normal distribution (Box and Muller 1958).
pub fn normal(random: &mut impl Rng) -> f64 {
    let radius: f64 = 1.0 - random.random::<f64>();
    let angle: f64 = random.random::<f64>() * std::f64::consts::TAU;
    (-2.0 * radius.ln()).sqrt() * angle.cos()
}

/// Puts `items` into a random order (Fisher and Yates, as Durstenfeld 1964 has it).
pub fn shuffle<T>(items: &mut [T], random: &mut impl Rng) {
    for last in (1..items.len()).rev() {
        items.swap(last, random.random_range(0..=last));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_seed_purpose_and_index_has_a_stream_of_its_own_and_the_same_one_again() {
        let purposes = [Purpose::Weights, Purpose::Actions, Purpose::Minibatches];
        let mut first: Vec<u64> = Vec::new();
        for seed in 0..10 {
            for purpose in purposes {
                for index in 0..10 {
                    let number = stream(seed, purpose, index).random();
                    assert_eq!(number, stream(seed, purpose, index).random::<u64>());
                    first.push(number);
                }
            }
        }
        first.sort_unstable();
        first.dedup();
        assert_eq!(first.len(), 300);
    }

    #[test]
    fn normal_numbers_have_the_moments_of_the_normal_distribution() {
        let mut random = stream(7, Purpose::Actions, 0);
        let numbers: Vec<f64> = (0..100_000).map(|_| normal(&mut random)).collect();
        let moment = |k| numbers.iter().map(|z| z.powi(k)).sum::<f64>() / 1e5;
        // Four standard errors each.
        assert!(moment(1).abs() < 0.0127, "{}", moment(1));
        assert!((moment(2) - 1.0).abs() < 0.018, "{}", moment(2));
        assert!((moment(4) - 3.0).abs() < 0.124, "{}", moment(4));
    }

    #[test]
    fn a_shuffle_puts_every_item_anywhere_equally_often() {
        let mut random = stream(3, Purpose::Minibatches, 0);
        let mut counts = [[0_u32; 4]; 4];
        for _ in 0..40_000 {
            let mut items = [0, 1, 2, 3];
            shuffle(&mut items, &mut random);
            for (place, item) in items.into_iter().enumerate() {
                counts[place][item] += 1;
            }
        }
        // Expected 10,000 with a deviation of 87.
        assert!(counts.iter().flatten().all(|count| count.abs_diff(10_000) < 400), "{counts:?}");
    }
}
