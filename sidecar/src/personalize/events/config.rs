//! The `[personalize.events]` table.

use std::time::Duration;

use http::{HeaderValue, Uri};

use crate::bus::duration;

/// The most events that may be buffered, and connections that may be open.
const BUFFER_MAX: usize = 1_000_000;
const CONNECTIONS_MAX: usize = 1_000_000;
/// The most items that one stream may be about.
const ITEMS_MAX: usize = 1_000;

/// How scores are told as they change.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Events that are kept to go on from, 1..=1000000; 10000 are ten seconds of a thousand a second and some
    /// megabytes.
    pub buffer: usize,
    /// From how many events behind a slow reader is told the newest of each item only, 1..=`buffer`.
    pub behind_max: usize,
    /// How often a silent stream is sent a comment, 1s..=5m; 15s is below what proxies wait.
    #[serde(with = "duration")]
    pub keep_alive: Duration,
    /// How long a browser waits before it connects again, at most 5m; 3s is what browsers do anyway.
    #[serde(with = "duration")]
    pub retry: Duration,
    /// Most streams of this node, further ones get 503; 8000 leaves the gateway's listener room for others.
    pub connections_max: usize,
    /// Most streams of one viewer on this node, further ones get 429; 10 are many open pages.
    pub connections_per_viewer: usize,
    /// Most items that one stream may be about, 1..=1000.
    pub items_max: usize,
    /// Origins whose scripts may read streams and ask for tickets, like `https://shop.example`; nobody.
    pub allow_origins: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            buffer: 10_000,
            behind_max: 256,
            keep_alive: Duration::from_secs(15),
            retry: Duration::from_secs(3),
            connections_max: 8_000,
            connections_per_viewer: 10,
            items_max: 100,
            allow_origins: Vec::new(),
        }
    }
}

impl Config {
    /// Adds every fault of the table at `path` (normally `personalize.events`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let counts = [
            ("buffer", self.buffer, BUFFER_MAX),
            ("behind_max", self.behind_max, self.buffer),
            ("connections_max", self.connections_max, CONNECTIONS_MAX),
            ("connections_per_viewer", self.connections_per_viewer, CONNECTIONS_MAX),
            ("items_max", self.items_max, ITEMS_MAX),
        ];
        for (key, value, high) in counts {
            if !(1..=high).contains(&value) {
                faults.push(format!("{path}.{key}: must be 1..={high}, is {value}"));
            }
        }
        let (second, most) = (Duration::from_secs(1), Duration::from_secs(300));
        for (key, value, low) in
            [("keep_alive", self.keep_alive, second), ("retry", self.retry, Duration::ZERO)]
        {
            if !(low..=most).contains(&value) {
                let [low, most, value] = [low, most, value].map(duration::format);
                faults.push(format!("{path}.{key}: must be {low}..={most}, is {value}"));
            }
        }
        for origin in &self.allow_origins {
            if !is_origin(origin) {
                faults.push(format!(
                    "{path}.allow_origins: must be like https://shop.example, is {origin:?}"
                ));
            }
        }
    }
}

/// Returns whether `text` is an origin as browsers write it (RFC 6454 section 6.2): no path.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else { return false };
    let schemed = matches!(uri.scheme_str(), Some("http" | "https"));
    let Some(authority) = uri.authority() else { return false };
    let whole = format!("{}://{authority}", uri.scheme_str().unwrap_or_default());
    schemed && whole == text && !text.contains('@') && HeaderValue::from_str(text).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_every_fault_is_named_at_once() {
        let mut faults = Vec::new();
        Config::default().validate("personalize.events", &mut faults);
        assert_eq!(faults, [""; 0]);
        let wrong = Config {
            buffer: 5,
            behind_max: 6,
            keep_alive: Duration::ZERO,
            retry: Duration::from_secs(3600),
            connections_max: 0,
            connections_per_viewer: 0,
            items_max: 0,
            allow_origins: ["*", "https://a/", "https://a@b", "shop"].map(str::to_owned).to_vec(),
        };
        wrong.validate("personalize.events", &mut faults);
        assert_eq!(faults.len(), 10, "{faults:#?}");
        assert_eq!(faults[0], "personalize.events.behind_max: must be 1..=5, is 6");
    }

    #[test]
    fn an_origin_is_scheme_host_and_port() {
        assert!(is_origin("https://shop.example") && is_origin("http://127.0.0.1:8080"));
    }
}
