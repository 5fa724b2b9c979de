//! The `[admin]` and `[metrics]` tables.

use std::{net::SocketAddr, path::PathBuf};

use super::guard::{AdminError, AdminToken};
use crate::{
    secret::Variable,
    tuner::{BUSIEST_MAX, Busiest},
};

/// The admin listener.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen; off unless named.
    pub listen: Option<SocketAddr>,
    /// Environment variable with the bearer token that callers show: for every write, and off loopback for
    /// reading too.
    pub token_env: Option<Variable>,
    /// Names besides loopback and the listener's own address that `Host` may have, without port;
    /// none unless named.
    pub hosts: Vec<String>,
    /// File that gets a line before and after each write; absent: writes go to the process's log alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audit_log: Option<PathBuf>,
}

/// The metrics listener: health and metrics for orchestrators and scrapers.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MetricsConfig {
    /// Where to listen; off unless named.
    pub listen: Option<SocketAddr>,
    /// Of how many agents, those rated most lately, refill rate and reward are told by name; default 50,
    /// at most 1000. 0 names nobody.
    pub top_agents: u16,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self { listen: None, top_agents: 50 }
    }
}

impl Config {
    /// Adds every fault of the table at `path` (normally `admin`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Some(listen) = self.listen
            && self.is_exposed()
            && self.token_env.is_none()
        {
            faults.push(format!(
                "{path}.token_env: must name an environment variable, because {path}.listen {listen} \
                 is not loopback"
            ));
        }
        if self.token_env.as_ref().is_some_and(Variable::is_empty) {
            faults.push(format!("{path}.token_env: must name an environment variable, is empty"));
        }
        if self.audit_log.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            faults.push(format!("{path}.audit_log: must be a file, is empty"));
        }
        for (index, host) in self.hosts.iter().enumerate() {
            let named = |c: char| c.is_ascii_alphanumeric() || ".-".contains(c);
            if host.is_empty() || !host.chars().all(named) {
                faults.push(format!(
                    "{path}.hosts[{index}]: must be a host name without port, is {host:?}"
                ));
            }
        }
    }

    /// Returns true when other machines can reach the listener.
    #[must_use]
    pub fn is_exposed(&self) -> bool {
        self.listen.is_some_and(|listen| !listen.ip().to_canonical().is_loopback())
    }

    /// Returns the token in the environment; none when [`Config::token_env`] is not set.
    ///
    /// # Errors
    ///
    /// When the variable is missing or too short.
    pub fn token(&self) -> Result<Option<AdminToken>, AdminError> {
        let Some(variable) = &self.token_env else { return Ok(None) };
        AdminToken::new(variable.read()?.expose()).map(Some)
    }
}

impl MetricsConfig {
    /// Adds every fault of the table at `path` (normally `metrics`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let top = self.top_agents;
        if top > BUSIEST_MAX {
            faults.push(format!("{path}.top_agents: must be at most {BUSIEST_MAX}, is {top}"));
        }
    }

    /// Returns an empty table of the agents rated most; none when nobody is named.
    #[must_use]
    pub fn busiest(&self) -> Option<Busiest> {
        (self.top_agents > 0).then(|| Busiest::new(self.top_agents))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Vec<String> {
        let config: Config = serde_json::from_str(json).unwrap();
        let mut faults = Vec::new();
        config.validate("admin", &mut faults);
        faults
    }

    #[test]
    fn off_loopback_a_token_is_required() {
        for listen in ["0.0.0.0:9900", "[::]:9900", "192.0.2.1:9900"] {
            let found = faults(&format!(r#"{{"listen":"{listen}"}}"#));
            assert!(
                found[0].starts_with("admin.token_env: ") && found[0].contains(listen),
                "{found:?}"
            );
            assert_eq!(faults(&format!(r#"{{"listen":"{listen}","token_env":"T"}}"#)), [""; 0]);
        }
        for listen in ["127.0.0.1:9900", "127.9.9.9:1", "[::1]:9900", "[::ffff:127.0.0.1]:1"] {
            assert_eq!(faults(&format!(r#"{{"listen":"{listen}"}}"#)), [""; 0]);
        }
    }

    #[test]
    fn a_host_is_a_name_without_port() {
        assert_eq!(faults(r#"{"hosts":["merit.internal"]}"#), [""; 0]);
        let found = faults(r#"{"hosts":["ok","a:1",""]}"#);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("admin.hosts[1]: "));
    }

    #[test]
    fn as_many_agents_are_named_as_a_scraper_can_bear() {
        let faults = |json: &str| {
            let config: MetricsConfig = serde_json::from_str(json).unwrap();
            let mut faults = Vec::new();
            config.validate("metrics", &mut faults);
            (faults, config.busiest().is_some())
        };
        assert_eq!(faults("{}"), (vec![], true));
        assert_eq!(faults(r#"{"top_agents":1000}"#), (vec![], true));
        assert_eq!(faults(r#"{"top_agents":0}"#), (vec![], false));
        let (found, _) = faults(r#"{"top_agents":1001}"#);
        assert_eq!(found, ["metrics.top_agents: must be at most 1000, is 1001"]);
    }

    #[test]
    fn a_token_variable_that_is_not_set_is_named() {
        let config =
            Config { token_env: Some("MERIT_TEST_NO_SUCH_VARIABLE".into()), ..Config::default() };
        let error = config.token().unwrap_err().to_string();
        assert!(error.contains("MERIT_TEST_NO_SUCH_VARIABLE"), "{error}");
    }
}
