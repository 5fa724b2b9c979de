//! Numbers drawn for tests: the same ones in every run.

/// A sequence fixed by its seed, so that a failure names its case for ever (SplitMix64: Steele, Lea
/// and Flood, OOPSLA 2014). Not for secrets.
#[derive(Clone, Debug)]
pub struct Draw(u64);

impl Draw {
    /// Returns the sequence of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn any(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`: evenly, as long as `bound` is far below 2^64.
    ///
    /// # Panics
    ///
    /// When `bound` is 0: no number is below it.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.any() % bound
    }

    /// Returns a number of 0 to `most`, of any magnitude: the extremes are as likely as the middle.
    pub fn up_to(&mut self, most: u64) -> u64 {
        let shift = u32::try_from(self.below(64)).expect("below 64");
        match self.below(8) {
            0 => 0,
            1 => most,
            _ => {
                let drawn = self.any() >> shift;
                most.checked_add(1).map_or(drawn, |bound| drawn % bound)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sequence_is_the_published_one() {
        // The first numbers of the authors' reference program for seed 1234567.
        let mut draw = Draw::new(1_234_567);
        let drawn = [draw.any(), draw.any(), draw.any()];
        assert_eq!(
            drawn,
            [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]
        );
    }

    #[test]
    fn both_ends_are_drawn_and_nothing_beyond_them() {
        let mut draw = Draw::new(1);
        let drawn: Vec<u64> = (0..1000).map(|_| draw.up_to(10)).collect();
        assert!(drawn.contains(&0) && drawn.contains(&10) && drawn.iter().all(|&n| n <= 10));
        assert!((0..1000).any(|_| draw.up_to(u64::MAX) == u64::MAX));
    }
}
