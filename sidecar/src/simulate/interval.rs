//! A mean over seeds and how far off it may be: 95 % intervals by Student's t.

use super::world::count;

/// The confidence of every interval.
const CONFIDENCE: f64 = 0.95;

/// A mean and its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// Half the interval's width; `None` for a single value.
    pub half_width: Option<f64>,
}

impl Interval {
    /// Returns the interval of the mean of independent `values`, of which there is at least one.
    /// Differences within pairs make it a paired interval.
    #[must_use]
    pub fn of(values: &[f64]) -> Self {
        let n = count(values.len());
        let mean = values.iter().sum::<f64>() / n;
        if values.len() < 2 {
            return Self { mean, half_width: None };
        }
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let error = (squares / (n - 1.0) / n).sqrt();
        Self { mean, half_width: Some(student_t(CONFIDENCE, values.len() - 1) * error) }
    }

    /// Returns the lower end; the mean where there is no interval.
    #[must_use]
    pub fn low(&self) -> f64 {
        self.mean - self.half_width.unwrap_or(0.0)
    }

    /// Returns the upper end; the mean where there is no interval.
    #[must_use]
    pub fn high(&self) -> f64 {
        self.mean + self.half_width.unwrap_or(0.0)
    }
}

/// Returns t such that Student's distribution of `freedom` (at least 1) degrees has `confidence`
/// (0 to 1) within ±t: the exact series for whole degrees of freedom, Abramowitz & Stegun 26.7.3 and
/// 26.7.4, solved by bisection.
#[must_use]
pub fn student_t(confidence: f64, freedom: usize) -> f64 {
    let (mut low, mut high) = (0.0, std::f64::consts::FRAC_PI_2);
    // In θ = atan(t/√ν) the solution lies in a bounded range; 60 halvings leave 10^-18 of it.
    for _ in 0..60 {
        let middle = f64::midpoint(low, high);
        if within(middle, freedom) < confidence { low = middle } else { high = middle }
    }
    low.tan() * count(freedom).sqrt()
}

/// A(t|ν) at θ = atan(t/√ν).
fn within(theta: f64, freedom: usize) -> f64 {
    let (sin, cos) = theta.sin_cos();
    let odd = !freedom.is_multiple_of(2);
    let (mut term, mut sum) = if odd { (cos, cos) } else { (1.0, 1.0) };
    if freedom == 1 {
        return theta / std::f64::consts::FRAC_PI_2;
    }
    let mut next = if odd { 3 } else { 2 };
    while next <= freedom - 2 {
        // Odd: 2/3 cos³, 2·4/3·5 cos⁵ …; even: 1/2 cos², 1·3/2·4 cos⁴ …
        term *= count(next - 1) / count(next) * cos * cos;
        sum += term;
        next += 2;
    }
    if odd { (theta + sin * sum) / std::f64::consts::FRAC_PI_2 } else { sin * sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, t) in [
            (1, 12.706),
            (2, 4.303),
            (3, 3.182),
            (4, 2.776),
            (5, 2.571),
            (9, 2.262),
            (10, 2.228),
            (19, 2.093),
            (30, 2.042),
            (120, 1.980),
        ] {
            let ours = student_t(0.95, freedom);
            assert!((ours - t).abs() < 0.0006, "{freedom}: {ours}");
        }
        assert!((student_t(0.99, 10) - 3.169).abs() < 0.0006);
    }

    #[test]
    fn an_interval_is_the_mean_and_t_standard_errors() {
        let interval = Interval::of(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(interval.mean, 3.0);
        // s² = 2.5, n = 5: standard error √0.5.
        assert!((interval.half_width.unwrap() - 2.776 * 0.5f64.sqrt()).abs() < 0.001);
        assert_eq!(Interval::of(&[7.0]), Interval { mean: 7.0, half_width: None });
    }
}
