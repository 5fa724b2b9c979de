//! The `[personalize.model]` table.

/// The range of factors per user and item.
const FACTORS_MAX: usize = 128;
/// The most users or items whose factors may be kept.
const ROWS_MAX: usize = 50_000_000;
/// The most rows for circumstances.
const CONTEXT_ROWS_MAX: usize = 1 << 22;

/// How the model learns, and how much it remembers.
#[derive(Clone, Debug, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Factors per user and item, 1..=128; 16 tell tastes apart and are one cache line.
    pub factors: usize,
    /// Users whose factors are kept, 1..=50000000; the one who has not rated for longest is forgotten
    /// first. A million with 16 factors are some 250 MB, by count.
    pub users_max: usize,
    /// Items whose factors are kept, 1..=50000000; forgotten as users are.
    pub items_max: usize,
    /// Rows that circumstances (`context`) share by hash, 0..=4194304; 0 leaves them out.
    pub context_rows: usize,
    /// Step of a user's or item's factors at their first rating, above 0 and at most 1. It falls as
    /// 1 / (1 + ratings / `rate_half`): one pass must get far with few ratings.
    pub rate_first: f32,
    /// Ratings after which that step is halved, above 0.
    pub rate_half: f32,
    /// The least step of factors, 0..=`rate_first`; 0.01 follows tastes that change over some hundred
    /// ratings.
    pub rate: f32,
    /// The least step of biases, 0..=1; before it is reached a bias is a mean over its ratings.
    pub bias_rate: f32,
    /// How many ratings at the mean a bias begins with, at least 1: the first ones count less.
    pub bias_prior: f32,
    /// Pull of factors towards zero, 0..=1, relative to the step.
    pub regularisation: f32,
    /// Pull of biases towards zero, 0..=1, relative to the step.
    pub bias_regularisation: f32,
    /// How many ratings at the overall mean an item's popularity begins with, above 0.
    pub popularity_prior: f32,
    /// Where the first factors of an id come from: the same seed gives the same model.
    pub seed: u64,
}

impl Default for Config {
    /// Chosen on simulated low-rank worlds of 2,000 users and 500 items, and of 20,000 and 2,000.
    fn default() -> Self {
        Self {
            factors: 16,
            users_max: 1_000_000,
            items_max: 200_000,
            context_rows: 1 << 14,
            rate_first: 0.2,
            rate_half: 150.0,
            rate: 0.01,
            bias_rate: 0.005,
            bias_prior: 8.0,
            regularisation: 0.03,
            bias_regularisation: 0.02,
            popularity_prior: 10.0,
            seed: 1,
        }
    }
}

impl Config {
    /// Adds every fault of the table at `path` (normally `personalize.model`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let mut counts = |key: &str, value: usize, low: usize, high: usize| {
            if !(low..=high).contains(&value) {
                faults.push(format!("{path}.{key}: must be {low}..={high}, is {value}"));
            }
        };
        counts("factors", self.factors, 1, FACTORS_MAX);
        counts("users_max", self.users_max, 1, ROWS_MAX);
        counts("items_max", self.items_max, 1, ROWS_MAX);
        counts("context_rows", self.context_rows, 0, CONTEXT_ROWS_MAX);
        let mut numbers = |key: &str, value: f32, holds: bool, wanted: &str| {
            if !(value.is_finite() && holds) {
                faults.push(format!("{path}.{key}: must be {wanted}, is {value}"));
            }
        };
        let share = |value: f32| (0.0..=1.0).contains(&value);
        let first = self.rate_first;
        numbers("rate_first", first, first > 0.0 && first <= 1.0, "above 0 and at most 1");
        numbers("rate_half", self.rate_half, self.rate_half > 0.0, "above 0");
        numbers("rate", self.rate, (0.0..=first).contains(&self.rate), "0 to rate_first");
        numbers("bias_rate", self.bias_rate, share(self.bias_rate), "0 to 1");
        numbers("bias_prior", self.bias_prior, self.bias_prior >= 1.0, "at least 1");
        numbers("regularisation", self.regularisation, share(self.regularisation), "0 to 1");
        let bias = self.bias_regularisation;
        numbers("bias_regularisation", bias, share(bias), "0 to 1");
        numbers("popularity_prior", self.popularity_prior, self.popularity_prior > 0.0, "above 0");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_every_fault_is_named_at_once() {
        let mut faults = Vec::new();
        Config::default().validate("personalize.model", &mut faults);
        assert_eq!(faults, [""; 0]);
        let wrong = Config {
            factors: 0,
            users_max: 0,
            items_max: usize::MAX,
            context_rows: usize::MAX,
            rate_first: f32::NAN,
            rate_half: 0.0,
            rate: 2.0,
            bias_rate: -1.0,
            bias_prior: 0.5,
            regularisation: f32::INFINITY,
            bias_regularisation: 1.5,
            popularity_prior: 0.0,
            seed: 0,
        };
        wrong.validate("personalize.model", &mut faults);
        assert_eq!(faults.len(), 12, "{faults:#?}");
        assert_eq!(faults[0], "personalize.model.factors: must be 1..=128, is 0");
    }
}
