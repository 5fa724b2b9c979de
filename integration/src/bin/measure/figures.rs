//! From samples to a table: quantiles, medians of rounds, Markdown.

#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "figures to look at"
)]

use std::{fmt, time::Duration};

/// Durations of single decisions, kept as nanoseconds: millions fit into memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<u32>);

impl Samples {
    pub(crate) fn push(&mut self, took: Duration) {
        self.0.push(u32::try_from(took.as_nanos()).unwrap_or(u32::MAX));
    }

    pub(crate) fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Returns the quantiles asked for; zeros when there are no samples.
    pub(crate) fn quantiles<const N: usize>(mut self, shares: [f64; N]) -> [Duration; N] {
        self.0.sort_unstable();
        shares.map(|share| {
            let last = self.0.len().saturating_sub(1);
            let index = (last as f64 * share).round() as usize;
            Duration::from_nanos(self.0.get(index).copied().unwrap_or_default().into())
        })
    }
}

/// The median of rounds, and how far they lay apart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    low: f64,
    high: f64,
}

impl Spread {
    pub(crate) fn of(mut values: Vec<f64>) -> Self {
        assert!(!values.is_empty(), "at least one round was run");
        values.sort_unstable_by(f64::total_cmp);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, low: values[0], high: values[values.len() - 1] }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { median, low, high } = self;
        write!(f, "{} ({}–{})", number(*median), number(*low), number(*high))
    }
}

/// Returns three significant digits, or all digits of the integer part with separators.
pub(crate) fn number(value: f64) -> String {
    if value < 0.0 {
        return format!("-{}", number(-value));
    }
    if value < 10.0 {
        return format!("{value:.2}");
    }
    if value < 100.0 {
        return format!("{value:.1}");
    }
    let digits = (value.round() as u64).to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// Returns a duration in the unit that fits.
pub(crate) fn time(duration: Duration) -> String {
    let nanos = duration.as_nanos() as f64;
    match nanos {
        ..1e3 => format!("{nanos:.0} ns"),
        ..1e6 => format!("{} µs", number(nanos / 1e3)),
        ..1e9 => format!("{} ms", number(nanos / 1e6)),
        _ => format!("{} s", number(nanos / 1e9)),
    }
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_nanos() as f64 / 1e3
}

/// A table in Markdown.
pub(crate) struct Table {
    columns: usize,
    text: String,
}

impl Table {
    pub(crate) fn new<const N: usize>(titles: [&str; N]) -> Self {
        let mut table = Self { columns: N, text: String::new() };
        table.row(titles.map(str::to_owned));
        table.row([(); N].map(|()| "---".to_owned()));
        table
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        assert_eq!(N, self.columns, "a row has as many cells as the table has columns");
        self.text.push_str(&format!("| {} |\n", cells.join(" | ")));
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_samples() {
        let mut samples = Samples::default();
        for nanos in (0..=1_000).rev() {
            samples.push(Duration::from_nanos(nanos));
        }
        let found = samples.quantiles([0.0, 0.5, 0.999, 1.0]);
        assert_eq!(found, [0, 500, 999, 1_000].map(Duration::from_nanos));
    }

    #[test]
    fn an_even_number_of_rounds_has_the_mean_of_the_middle_two_as_median() {
        assert_eq!(Spread::of(vec![9.0, 1.0, 4.0, 2.0]).to_string(), "3.00 (1.00–9.00)");
        assert_eq!(Spread::of(vec![9.0, 1.0, 4.0]).to_string(), "4.00 (1.00–9.00)");
    }

    #[test]
    fn numbers_are_short_and_grouped() {
        let text = [0.123, 12.34, 999.6, 1_234.0, 1_234_567.0, -12_345.0].map(number);
        assert_eq!(text, ["0.12", "12.3", "1,000", "1,234", "1,234,567", "-12,345"]);
    }
}
