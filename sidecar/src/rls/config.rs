//! The `[rls]` table.

use std::net::SocketAddr;

/// How descriptors are read.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where to listen, gRPC without TLS; off unless named. Whoever reaches it may spend any agent's tokens
    /// when `identify = "entry"`: only proxies should.
    pub listen: Option<SocketAddr>,
    /// The `domain` that is answered for; another one is told OK and charged nothing, as the protocol has
    /// it of limits that nobody configured. Any unless named.
    pub domain: Option<String>,
    /// Who says which agent asks: the proxy, in the entry `agent_key` (`entry`, default), or the caller, as
    /// `[identity]` says, with entries for header fields (`request`).
    pub identify: Identified,
    /// The entry whose value is the agent's id, with `identify = "entry"`; default `agent`.
    pub agent_key: String,
    /// The entry with the request's path, for `[[route]]`; default `path`. Without it the path is `/`.
    pub path_key: String,
    /// The entry with the request's method, for `[[route]]`; default `method`. Without it the method is
    /// `GET`.
    pub method_key: String,
}

/// Who says which agent asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Identified {
    /// The proxy, by an entry.
    #[default]
    Entry,
    /// The caller, by what it sent.
    Request,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: None,
            domain: None,
            identify: Identified::Entry,
            agent_key: "agent".to_owned(),
            path_key: "path".to_owned(),
            method_key: "method".to_owned(),
        }
    }
}

impl Config {
    /// Adds every fault of the table at `path` (normally `rls`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if self.listen.is_some() && !super::SUPPORTED {
            faults.push(format!("{path}.listen: gRPC needs a build with `--features grpc`"));
        }
        if self.domain.as_deref() == Some("") {
            faults.push(format!(
                "{path}.domain: is empty: write the `domain` of the proxy's filter, or leave it out"
            ));
        }
        let keys = [
            ("agent_key", &self.agent_key),
            ("path_key", &self.path_key),
            ("method_key", &self.method_key),
        ];
        for (index, (name, key)) in keys.iter().enumerate() {
            if key.is_empty() {
                faults.push(format!("{path}.{name}: is empty: write a `descriptor_key`"));
            }
            for (other, taken) in &keys[..index] {
                if key == taken && !key.is_empty() {
                    faults.push(format!("{path}.{name}: `{key}` is {path}.{other} too"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_is_named_with_its_path() {
        let text = r#"{"domain":"","agent_key":"","path_key":"p","method_key":"p"}"#;
        let config: Config = serde_json::from_str(text).unwrap();
        let mut faults = Vec::new();
        config.validate("rls", &mut faults);
        assert_eq!(
            faults,
            [
                "rls.domain: is empty: write the `domain` of the proxy's filter, or leave it out",
                "rls.agent_key: is empty: write a `descriptor_key`",
                "rls.method_key: `p` is rls.path_key too",
            ]
        );
    }

    #[test]
    fn a_listener_needs_grpc_and_the_defaults_are_sound() {
        let config: Config = serde_json::from_str(r#"{"listen":"127.0.0.1:8081"}"#).unwrap();
        let mut faults = Vec::new();
        config.validate("rls", &mut faults);
        let lacking = "rls.listen: gRPC needs a build with `--features grpc`";
        assert_eq!(faults.iter().any(|fault| fault == lacking), !super::super::SUPPORTED);
        assert_eq!(faults.len(), usize::from(!super::super::SUPPORTED));
    }
}
