//! The `[ingest]` table.

use std::{net::SocketAddr, time::Duration};

use tower_merit::bucket::CAPACITY_MAX;

use super::raters::{ApiKeys, ApiKeysError};
use crate::secret::Variable;

/// The largest bodies that configuration may ask for: 64 MiB.
const BODY_BYTES_MAX: usize = 64 << 20;
/// The largest batch that configuration may ask for.
const BATCH_MAX: usize = 10_000;
/// The most requests at a time that configuration may ask for.
const IN_FLIGHT_MAX: usize = 100_000;
/// The most batches at a time that configuration may ask for.
const BATCHES_MAX: usize = 1000;
/// The most streams at a time that configuration may ask for.
const STREAMS_MAX: usize = 10_000;
/// The range of quotas, in ratings a second.
const RATE_MIN: f64 = 0.001;
const RATE_MAX: f64 = 1_000_000.0;
/// The range of the deadline.
const TIMEOUT_MIN: Duration = Duration::from_millis(100);
const TIMEOUT_MAX: Duration = Duration::from_secs(300);

/// How ratings are taken over HTTP and gRPC.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen for HTTP; off unless named.
    pub listen: Option<SocketAddr>,
    /// Where to listen for gRPC, unencrypted; off unless named. Needs the feature `grpc`.
    pub grpc_listen: Option<SocketAddr>,
    /// Longest body or message of one rating, in bytes; 64 KiB is ten times the largest valid one.
    pub max_body_bytes: usize,
    /// Longest body of a batch, in bytes; 8 MiB holds a full batch of large ratings.
    pub max_batch_bytes: usize,
    /// Most ratings in a batch, 1..=10000; 1000 keeps a batch within a second.
    pub max_batch: usize,
    /// Most requests at a time, further ones get 503; 1024 is far above what the bus needs to be
    /// busy.
    pub max_in_flight: usize,
    /// Most batches at a time, of those requests; 16 bound the memory of their bodies to 128 MiB. A rater that rates
    /// as itself may have an eighth of them, at least one.
    pub max_batches_in_flight: usize,
    /// Most streams of ratings at a time over gRPC; 64 of them can have 4096 ratings on their way. A rater that
    /// rates as itself may have an eighth of them, at least one.
    pub max_streams_in_flight: usize,
    /// How long one request may take, body and acknowledgement included; 10 s is more than the bus
    /// takes to give up. A stream may pause as long.
    #[serde(with = "crate::bus::duration")]
    pub timeout: Duration,
    /// Ratings a second that whoever rates as itself may post to this node, for as long as it likes;
    /// more get 429. 10 is more than a person gives; 0 is no limit.
    pub rater_rate: f64,
    /// Ratings that it may post at once, 1..=9000000.
    pub rater_burst: u64,
    /// The same for each collector, who posts for many; no limit unless named.
    pub collector_rate: Option<f64>,
    /// Ratings that a collector may post at once; only with [`Config::collector_rate`].
    pub collector_burst: u64,
    /// Environment variable with API keys of collectors, `name:secret` separated by commas (or one
    /// bare secret, named `default`); no API keys unless named.
    pub api_key_env: Option<Variable>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            grpc_listen: None,
            max_body_bytes: 64 << 10,
            max_batch_bytes: 8 << 20,
            max_batch: 1000,
            max_in_flight: 1024,
            max_batches_in_flight: 16,
            max_streams_in_flight: 64,
            timeout: Duration::from_secs(10),
            rater_rate: 10.0,
            rater_burst: 100,
            collector_rate: None,
            collector_burst: 10_000,
            api_key_env: None,
        }
    }
}

impl Config {
    /// Returns whether ratings are taken here at all.
    #[must_use]
    pub fn listens(&self) -> bool {
        self.listen.is_some() || self.grpc_listen.is_some()
    }

    /// Adds every fault of the table at `path` (normally `ingest`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let numbers = [
            ("max_body_bytes", self.max_body_bytes, BODY_BYTES_MAX),
            ("max_batch_bytes", self.max_batch_bytes, BODY_BYTES_MAX),
            ("max_batch", self.max_batch, BATCH_MAX),
            ("max_in_flight", self.max_in_flight, IN_FLIGHT_MAX),
            ("max_batches_in_flight", self.max_batches_in_flight, BATCHES_MAX),
            ("max_streams_in_flight", self.max_streams_in_flight, STREAMS_MAX),
        ];
        for (name, value, max) in numbers {
            if !(1..=max).contains(&value) {
                faults.push(format!("{path}.{name}: must be 1..={max}, is {value}"));
            }
        }
        if !(TIMEOUT_MIN..=TIMEOUT_MAX).contains(&self.timeout) {
            faults.push(format!(
                "{path}.timeout: must be {TIMEOUT_MIN:?}..={TIMEOUT_MAX:?}, is {:?}",
                self.timeout
            ));
        }
        for (name, rate) in
            [("rater_rate", Some(self.rater_rate)), ("collector_rate", self.collector_rate)]
        {
            let Some(rate) = rate.filter(|rate| *rate != 0.0) else { continue };
            if !(RATE_MIN..=RATE_MAX).contains(&rate) {
                faults.push(format!(
                    "{path}.{name}: must be {RATE_MIN}..={RATE_MAX} ratings a second, or 0, is {rate}"
                ));
            }
        }
        for (name, burst) in
            [("rater_burst", self.rater_burst), ("collector_burst", self.collector_burst)]
        {
            if !(1..=CAPACITY_MAX).contains(&burst) {
                faults.push(format!("{path}.{name}: must be 1..={CAPACITY_MAX}, is {burst}"));
            }
        }
        if self.grpc_listen.is_some() && !super::grpc::SUPPORTED {
            faults.push(format!("{path}.grpc_listen: gRPC needs a build with `--features grpc`"));
        }
        if self.api_key_env.as_ref().is_some_and(Variable::is_empty) {
            faults.push(format!("{path}.api_key_env: must name an environment variable, is empty"));
        }
    }

    /// Returns the API keys in the environment; none when [`Config::api_key_env`] is not set.
    ///
    /// # Errors
    ///
    /// When the variable is missing or cannot be read as keys.
    pub fn api_keys(&self) -> Result<ApiKeys, ApiKeysError> {
        match &self.api_key_env {
            None => Ok(ApiKeys::default()),
            Some(variable) => ApiKeys::parse(variable.read()?.expose()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Vec::new();
        config.validate("ingest", &mut faults);
        faults
    }

    #[test]
    fn the_shipped_defaults_are_valid() {
        assert_eq!(faults(&Config::default()), [""; 0]);
    }

    #[test]
    fn every_fault_is_named_with_its_path_range_and_value() {
        let config = Config { max_batch: 0, max_body_bytes: 1 << 40, ..Config::default() };
        let found = faults(&config);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.contains(&"ingest.max_batch: must be 1..=10000, is 0".to_owned()));
    }

    #[test]
    fn grpc_is_known_in_every_build_and_says_what_a_build_lacks() {
        let config: Config = serde_json::from_str(r#"{"grpc_listen":"127.0.0.1:8082"}"#).unwrap();
        let lacking = "ingest.grpc_listen: gRPC needs a build with `--features grpc`";
        let expected: &[&str] = if cfg!(feature = "grpc") { &[] } else { &[lacking] };
        assert_eq!(faults(&config), expected);
    }

    #[test]
    fn an_unknown_key_is_refused_and_a_duration_has_a_unit() {
        assert!(serde_json::from_str::<Config>(r#"{"max_batches":1}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"timeout":5}"#).is_err());
        let config: Config = serde_json::from_str(r#"{"timeout":"5s"}"#).unwrap();
        assert_eq!(config.timeout, Duration::from_secs(5));
    }

    #[test]
    fn a_variable_that_is_not_set_is_named() {
        let config =
            Config { api_key_env: Some("MERIT_TEST_NO_SUCH_VARIABLE".into()), ..Config::default() };
        let error = config.api_keys().unwrap_err().to_string();
        assert!(error.contains("MERIT_TEST_NO_SUCH_VARIABLE"), "{error}");
    }
}
