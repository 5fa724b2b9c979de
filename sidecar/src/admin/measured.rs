//! What this process measured so far, read as a scraper reads it: the dashboard must never show another
//! number than `/metrics`.

use std::collections::BTreeMap;

/// The samples of one exposition in the Prometheus text format.
#[derive(Debug, Default)]
pub(super) struct Measured<'a>(BTreeMap<&'a str, Vec<(&'a str, f64)>>);

impl<'a> Measured<'a> {
    /// Reads `text`; lines that are no samples are passed over.
    pub(super) fn read(text: &'a str) -> Self {
        let mut samples: BTreeMap<&str, Vec<(&str, f64)>> = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse() else { continue };
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            samples.entry(name).or_default().push((labels.trim_end_matches('}'), value));
        }
        Self(samples)
    }

    /// Returns the sum over all series of `name`; nothing when there is none.
    pub(super) fn total(&self, name: &str) -> Option<f64> {
        Some(self.0.get(name)?.iter().map(|(_, value)| value).sum())
    }

    /// Returns the sum over the series of `name` whose label has one of `values`; nothing when there is no
    /// series of that name at all.
    pub(super) fn of(&self, name: &str, label: &str, values: &[&str]) -> Option<f64> {
        let wanted: Vec<String> =
            values.iter().map(|value| format!("{label}=\"{value}\"")).collect();
        let series = self.0.get(name)?.iter();
        let kept = series.filter(|(labels, _)| {
            labels.split(',').any(|label| wanted.iter().any(|wanted| wanted == label))
        });
        Some(kept.map(|(_, value)| value).sum())
    }

    /// Returns the `quantile` (0 to 1) of the histogram `name`, as Prometheus' `histogram_quantile` makes it:
    /// linear within a bucket. Nothing while it is empty.
    pub(super) fn quantile(&self, name: &str, quantile: f64) -> Option<f64> {
        let mut buckets: BTreeMap<u64, f64> = BTreeMap::new();
        for (labels, count) in self.0.get(format!("{name}_bucket").as_str())? {
            let le = labels.split(',').find_map(|label| label.strip_prefix("le=\""))?;
            let le: f64 = le.trim_end_matches('"').parse().ok()?;
            // Positive numbers keep their order as bits.
            *buckets.entry(le.max(0.0).to_bits()).or_default() += count;
        }
        let total = buckets.values().last().copied().filter(|total| *total > 0.0)?;
        let rank = quantile * total;
        let (mut low, mut below) = (0.0, 0.0);
        for (le, count) in buckets {
            let high = f64::from_bits(le);
            if count >= rank && count > below {
                if high.is_infinite() {
                    return Some(low);
                }
                return Some(low + (high - low) * (rank - below) / (count - below));
            }
            (low, below) = (high, count);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_labels_and_quantiles_are_those_of_the_exposition() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new()
            .set_buckets(&[0.1, 0.2, 0.4])
            .unwrap()
            .build_recorder();
        let handle = recorder.handle();
        metrics::with_local_recorder(&recorder, || {
            metrics::counter!("decisions_total", "outcome" => "admitted", "x" => "y").increment(3);
            metrics::counter!("decisions_total", "outcome" => "denied").increment(2);
            metrics::gauge!("price").set(0.25);
            for value in [0.05, 0.15, 0.15, 0.3] {
                metrics::histogram!("seconds").record(value);
            }
        });
        let text = handle.render();
        let measured = Measured::read(&text);
        assert_eq!(measured.total("decisions_total"), Some(5.0));
        assert_eq!(measured.of("decisions_total", "outcome", &["admitted"]), Some(3.0));
        assert_eq!(measured.of("decisions_total", "outcome", &["none"]), Some(0.0));
        assert_eq!(measured.total("price"), Some(0.25));
        assert_eq!(measured.total("absent"), None);
        assert_eq!(measured.quantile("absent", 0.5), None);
        let half = measured.quantile("seconds", 0.5).unwrap();
        assert!((half - 0.15).abs() < 1e-9, "{half}");
        let most = measured.quantile("seconds", 1.0).unwrap();
        assert!((most - 0.4).abs() < 1e-9, "{most}");
    }
}
