//! Randomness: independent streams of one seed, one for each purpose.
//!
//! Xoshiro256++ by name (Blackman & Vigna, "Scrambled linear pseudorandom number generators", 2021),
//! not whatever generator a library prefers this year: a table in the documentation must come out
//! again next year.

use rand::{RngExt, SeedableRng, rngs::Xoshiro256PlusPlus};
use rand_distr::{Distribution, Exp1, Poisson, StandardNormal};

/// What a stream of randomness is for; streams of one seed are independent of each other.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Who the agents and users are.
    World = 1,
    /// How qualities wander.
    Drift = 2,
    /// When requests arrive.
    Arrivals = 3,
    /// Who rates, and what.
    Ratings = 4,
    /// What a policy draws.
    Policy = 5,
}

/// One stream.
#[derive(Clone, Debug)]
pub(super) struct Stream(Xoshiro256PlusPlus);

impl Stream {
    pub(super) fn new(seed: u64, purpose: Purpose) -> Self {
        // The generator's own seeding (SplitMix64) spreads neighbouring numbers apart.
        let mut first = Xoshiro256PlusPlus::seed_from_u64(seed);
        let key: u64 = first.random();
        Self(Xoshiro256PlusPlus::seed_from_u64(key ^ (purpose as u64)))
    }

    /// Returns a deviate of the standard normal distribution.
    #[inline]
    pub(super) fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// Returns a number in [0, 1).
    #[inline]
    pub(super) fn uniform(&mut self) -> f64 {
        self.0.random()
    }

    /// Returns 64 random bits.
    #[inline]
    pub(super) fn bits(&mut self) -> u64 {
        self.0.random()
    }

    /// Returns a whole number below `end`, which is positive.
    #[inline]
    pub(super) fn below(&mut self, end: u32) -> u32 {
        self.0.random_range(0..end)
    }

    /// Returns a Poisson deviate; 0 for a mean that is not positive.
    #[inline]
    pub(super) fn poisson(&mut self, mean: f64) -> f64 {
        Poisson::new(mean).map_or(0.0, |poisson| poisson.sample(&mut self.0))
    }

    /// Returns how many trials fail before the first success, for a `pace` of −ln(1 − p): whole
    /// units of an exponential deviate are geometric.
    #[inline]
    pub(super) fn failures(&mut self, pace: f64) -> f64 {
        let exponential: f64 = Exp1.sample(&mut self.0);
        (exponential / pace).floor()
    }
}
