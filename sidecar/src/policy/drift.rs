//! Page-Hinkley: the detector that others are measured against.
//!
//! Two cumulative sums of standardised residuals, one for better and one for worse, each less a
//! slack δ and never below 0; one above λ is an alarm. Page (1954), "Continuous Inspection
//! Schemes", section 2.1; Hinkley (1971), "Inference about the change-point from cumulative sum
//! tests", section 2.

use serde::{Deserialize, Serialize};

use super::Drift;

/// What the detector is tuned by, in standard deviations of one rating.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PageHinkleyConfig {
    /// The slack δ: half of the change that is to be found soonest; 0.5.
    pub slack: f64,
    /// The threshold λ; 8.5.
    pub threshold: f64,
}

impl Default for PageHinkleyConfig {
    /// A mean of 15,800 ratings between false alarms by [`PageHinkleyConfig::ratings_between_alarms`],
    /// which supposes that the mean is known: an estimated one costs some of it.
    fn default() -> Self {
        Self { slack: 0.5, threshold: 8.5 }
    }
}

impl PageHinkleyConfig {
    /// Returns the mean number of ratings between false alarms of the two sides together, for
    /// independent standard normal residuals: Siegmund (1985), "Sequential Analysis", ch. 2,
    /// (e^x − x − 1) / (2δ²) for one side with x = 2δ·(λ + 1.166).
    #[must_use]
    pub fn ratings_between_alarms(&self) -> f64 {
        let x = 2.0 * self.slack * (self.threshold + 1.166);
        (x.exp_m1() - x) / (2.0 * self.slack * self.slack) / 2.0
    }
}

/// The two sums and how long each has been above 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PageHinkley {
    up: Side,
    down: Side,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Side {
    sum: f64,
    evidence: f64,
}

impl Side {
    fn add(&mut self, residual: f64, weight: f64, slack: f64) {
        self.sum += weight * (residual - slack);
        self.evidence += weight;
        if self.sum <= 0.0 {
            *self = Self::default();
        }
    }
}

impl PageHinkley {
    /// Takes in a rating `residual` standard deviations above the `mean` that was expected. Returns
    /// the change it reveals, in points of score when one standard deviation is `deviation` points;
    /// the sums start again.
    pub fn see(
        &mut self,
        residual: f64,
        weight: f64,
        mean: f64,
        deviation: f64,
        config: &PageHinkleyConfig,
    ) -> Option<Drift> {
        self.up.add(residual, weight, config.slack);
        self.down.add(-residual, weight, config.slack);
        let (side, sign) =
            if self.up.sum >= self.down.sum { (self.up, 1.0) } else { (self.down, -1.0) };
        if side.sum <= config.threshold {
            return None;
        }
        *self = Self::default();
        // The mean residual since the sum left 0 is sum ÷ evidence + slack.
        let moved = sign * (side.sum / side.evidence + config.slack) * deviation;
        Some(Drift {
            before: mean,
            after: mean + moved,
            ratings: side.evidence,
            evidence: side.sum,
        })
    }

    /// Returns the larger of the two sums as a share of the threshold, 0 to 1.
    #[must_use]
    pub fn statistic(&self, config: &PageHinkleyConfig) -> f64 {
        self.up.sum.max(self.down.sum) / config.threshold
    }

    pub(super) fn is_sound(&self) -> bool {
        [self.up.sum, self.down.sum, self.up.evidence, self.down.evidence]
            .iter()
            .all(|number| number.is_finite() && *number >= 0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: PageHinkleyConfig = PageHinkleyConfig { slack: 0.5, threshold: 4.0 };

    #[test]
    fn a_steady_shift_is_found_when_its_sum_less_the_slack_passes_the_threshold() {
        // By hand: each rating adds 1.5 − 0.5 = 1 to the lower sum; the fifth passes 4.
        let mut detector = PageHinkley::default();
        let found: Vec<Option<Drift>> =
            (0..5).map(|_| detector.see(-1.5, 1.0, 4.0, 2.0, &CONFIG)).collect();
        assert!(found[..4].iter().all(Option::is_none));
        let expected = Drift { before: 4.0, after: 1.0, ratings: 5.0, evidence: 5.0 };
        assert_eq!(found[4], Some(expected));
        assert_eq!(detector, PageHinkley::default());
    }

    #[test]
    fn a_rating_of_half_the_weight_counts_half() {
        let mut detector = PageHinkley::default();
        let found = (1..=20).find(|_| detector.see(1.5, 0.5, 3.0, 1.0, &CONFIG).is_some());
        assert_eq!(found, Some(9));
    }

    #[test]
    fn the_sum_that_chance_brought_is_forgotten() {
        let mut detector = PageHinkley::default();
        for residual in [2.0, -1.0, -1.0] {
            detector.see(residual, 1.0, 3.0, 1.0, &CONFIG);
        }
        // Up: 1.5, 0, 0. Down: 0, 0.5, 1.
        assert_eq!(detector.statistic(&CONFIG), 0.25);
    }

    #[test]
    fn siegmunds_run_length_is_what_tables_say() {
        // Montgomery, "Introduction to Statistical Quality Control", run lengths of the tabular CUSUM
        // with k = ½: 168 for h = 4 and 465 for h = 5, both sides together.
        let of = |threshold| PageHinkleyConfig { slack: 0.5, threshold }.ratings_between_alarms();
        assert!((of(4.0) / 168.0 - 1.0).abs() < 0.03, "{}", of(4.0));
        assert!((of(5.0) / 465.0 - 1.0).abs() < 0.03, "{}", of(5.0));
    }
}
