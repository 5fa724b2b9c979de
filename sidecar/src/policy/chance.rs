//! Seeded chance that is the same in every version and on every machine.
//!
//! SplitMix64 (Steele, Lea & Flood 2014, "Fast Splittable Pseudorandom Number Generators", fig. 17): 8
//! bytes of state, so that an agent's state can hold its own. Not for secrets.

use serde::{Deserialize, Serialize};

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// A stream of random numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Chance(u64);

impl Chance {
    /// Returns the stream of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// Mixes `number` in: streams that were the same and took different numbers differ from here on.
    pub fn stir(&mut self, number: u64) {
        self.0 ^= mix(number.wrapping_add(GOLDEN));
    }

    /// Returns 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mix(self.0)
    }

    /// Returns a number above 0 and at most 1, with 53 random bits.
    #[allow(clippy::cast_precision_loss, reason = "53 bits are exact in f64")]
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a standard normal number: Box & Muller (1958), "A Note on the Generation of Random
    /// Normal Deviates".
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }
}

fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_gives_the_numbers_of_the_published_generator() {
        // The reference implementation (Vigna, splitmix64.c) from seed 1234567.
        let mut chance = Chance::new(1_234_567);
        let expected = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
            4_593_380_528_125_082_431,
            16_408_922_859_458_223_821,
        ];
        assert_eq!([0; 5].map(|_| chance.bits()), expected);
    }

    #[test]
    fn normal_numbers_have_mean_0_and_variance_1() {
        let mut chance = Chance::new(7);
        let draws: Vec<f64> = (0..40_000).map(|_| chance.normal()).collect();
        let mean = draws.iter().sum::<f64>() / 40_000.0;
        let variance = draws.iter().map(|x| x * x).sum::<f64>() / 40_000.0;
        let tail = draws.iter().filter(|x| x.abs() > 1.96).count();
        // Four standard errors: 0.02 and 0.028; 2,000 expected in the tails, sd 44.
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.028, "{mean} {variance}");
        assert!((1_820..2_180).contains(&tail), "{tail}");
    }

    #[test]
    fn streams_part_where_they_are_stirred_differently() {
        let (mut one, mut other) = (Chance::new(7), Chance::new(7));
        assert_eq!(one.bits(), other.bits());
        one.stir(1);
        other.stir(2);
        assert_ne!(one.bits(), other.bits());
    }
}
