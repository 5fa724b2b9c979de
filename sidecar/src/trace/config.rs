//! The `[trace]` table.

use serde::{Deserialize, Serialize};

/// The most traces a second that configuration may ask for.
const PER_SECOND_MAX: u32 = 100_000;

/// `[trace]`: where spans are exported to, and which requests are traced.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address of an OpenTelemetry collector that takes OTLP over gRPC, like `http://127.0.0.1:4317`; nothing
    /// is traced without it. Headers for it come from OTEL_EXPORTER_OTLP_HEADERS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// The share of requests that begin a trace when their caller records none, 0..=1; default 0.01.
    pub sample: f64,
    /// Whether a caller's `traceparent` that says so is recorded too (default); else it counts as absent, and
    /// a trace that begins here has an id of its own.
    pub follow: bool,
    /// Most requests a second that are traced, by each process, 1..=100000; default 100. It bounds what callers
    /// can cause.
    pub per_second: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { endpoint: None, sample: 0.01, follow: true, per_second: 100 }
    }
}

impl Config {
    /// Adds every fault of the table at `path` to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(endpoint) = &self.endpoint {
            let address = endpoint.parse::<http::Uri>().ok();
            let plain = |uri: &http::Uri| {
                uri.scheme_str() == Some("http")
                    && uri.host().is_some_and(|host| !host.is_empty())
                    && matches!(uri.path(), "" | "/")
                    && uri.query().is_none()
                    && !uri.authority().is_some_and(|place| place.as_str().contains('@'))
            };
            if !address.as_ref().is_some_and(plain) {
                faults.push(format!(
                    "{path}.endpoint: must be `http://host:port` of a collector that takes OTLP over gRPC, \
                     without path or user; a collector beside merit can go on over TLS"
                ));
            } else if cfg!(not(feature = "otlp")) {
                faults.push(format!(
                    "{path}.endpoint: this build exports no spans; build with `--features otlp`"
                ));
            }
        }
        if !(0.0..=1.0).contains(&self.sample) {
            faults.push(format!("{path}.sample: {} must be a share, 0..=1", self.sample));
        }
        if !(1..=PER_SECOND_MAX).contains(&self.per_second) {
            faults.push(format!(
                "{path}.per_second: {} must be 1..={PER_SECOND_MAX}",
                self.per_second
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Vec::new();
        config.validate("trace", &mut faults);
        faults
    }

    #[test]
    fn every_fault_is_told_with_its_path() {
        assert_eq!(faults(&Config::default()), [""; 0]);
        let wrong = Config { endpoint: None, sample: f64::NAN, per_second: 0, ..Config::default() };
        let told = faults(&wrong);
        assert!(told[0].starts_with("trace.sample: ") && told[1].starts_with("trace.per_second: "));
    }

    #[test]
    #[cfg(feature = "otlp")]
    fn an_endpoint_is_an_address_and_nothing_else() {
        let with =
            |endpoint: &str| Config { endpoint: Some(endpoint.to_owned()), ..Config::default() };
        for good in ["http://127.0.0.1:4317", "http://collector:4317/", "http://[::1]:4317"] {
            assert_eq!(faults(&with(good)), [""; 0], "{good}");
        }
        for bad in [
            "",
            "collector:4317",
            "https://c:4317",
            "http://c/v1/traces",
            "http://u:p@c",
            "http://c?x",
        ] {
            assert_eq!(faults(&with(bad)).len(), 1, "{bad}");
        }
    }
}
