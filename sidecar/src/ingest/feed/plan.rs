//! What the configuration means: every value parsed and every secret read, before anything starts.

use std::{ops::RangeInclusive, path::Path, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, header, uri::Scheme};
use rustls::ClientConfig;

use super::config::{Config, Source};
use crate::{
    bus::duration::format,
    outbound::{self, is_this_machine, secret_field},
    rating::Poster,
    secret::{Address, File, Variable},
};

/// The longest name of a feed, in characters.
const NAME_MAX: usize = 64;

/// What a bridge does.
pub(super) struct Plan {
    pub(super) feed: Remote,
    /// Fields of the handshake.
    pub(super) headers: HeaderMap,
    pub(super) forward: Option<Forward>,
    /// Who posts onto Merit's own bus.
    pub(super) publish: Option<Poster>,
}

/// A server: where it is, and who vouches for it.
pub(super) struct Remote {
    pub(super) uri: Uri,
    /// Absent for a plain connection, which goes to this machine.
    pub(super) tls: Option<Arc<ClientConfig>>,
}

/// Where ratings are posted.
pub(super) struct Forward {
    pub(super) remote: Remote,
    pub(super) authorization: Option<HeaderValue>,
}

impl Plan {
    /// Reads `config`; adds every fault to `faults`, with paths below `path`. Returns a plan only
    /// when there are none.
    pub(super) fn new(config: &Config, path: &str, faults: &mut Vec<String>) -> Option<Self> {
        let before = faults.len();
        let mut reader = Reader { path, faults };
        reader.bounds(config);
        let feed = reader.remote("url", ["wss", "ws"], &config.url, "ca_file", &config.ca_file);
        if config.url.is_none() {
            reader
                .fault("url", "must be set: the address of the feed, like wss://feed.example.com");
        }
        let headers = reader.headers(config);
        let ca = ("forward_ca_file", &config.forward_ca_file);
        let remote = reader.remote("forward_to", ["https", "http"], &config.forward_to, ca.0, ca.1);
        let authorization = reader.authorization(config);
        if config.forward_to.is_none() && !config.publish {
            reader.fault(
                "forward_to",
                "must be set, or publish = true: ratings have to go somewhere",
            );
        }
        let publish = reader.name(&config.name).filter(|_| config.publish);
        if faults.len() > before {
            return None;
        }
        let forward = remote.map(|remote| Forward { remote, authorization });
        Some(Self { feed: feed?, headers, forward, publish })
    }
}

struct Reader<'a> {
    path: &'a str,
    faults: &'a mut Vec<String>,
}

impl Reader<'_> {
    fn fault(&mut self, key: &str, problem: impl std::fmt::Display) {
        self.faults.push(format!("{}.{key}: {problem}", self.path));
    }

    fn within<T: PartialOrd + std::fmt::Display>(
        &mut self,
        key: &str,
        value: T,
        range: RangeInclusive<T>,
    ) {
        if !range.contains(&value) {
            let (least, most) = range.into_inner();
            self.fault(key, format!("must be {least}..={most}, is {value}"));
        }
    }

    fn lasts(&mut self, key: &str, value: Duration, range: RangeInclusive<Duration>) {
        if !range.contains(&value) {
            let [least, most, found] = [*range.start(), *range.end(), value].map(format);
            self.fault(key, format!("must be {least} to {most}, is {found}"));
        }
    }

    fn bounds(&mut self, config: &Config) {
        let seconds = Duration::from_secs;
        self.lasts("silence", config.silence, seconds(1)..=seconds(3600));
        self.lasts("timeout", config.timeout, Duration::from_millis(100)..=seconds(300));
        self.lasts("give_up_after", config.give_up_after, seconds(1)..=seconds(7 * 24 * 3600));
        self.within("max_frame_bytes", config.max_frame_bytes, 1024..=16 << 20);
        self.within("in_flight", config.in_flight, 1..=64);
        self.within("queue", config.queue, 1..=1_000_000);
        self.within("spool_max_bytes", config.spool_max_bytes, 64 << 20..=1 << 50);
        self.within("dead_letter_max_bytes", config.dead_letter_max_bytes, 1 << 20..=1 << 40);
        if let Some(query) = &config.resume_query {
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
            if query.is_empty() || !query.chars().all(plain) {
                self.fault("resume_query", "must be the name of a query parameter, like `after`");
            }
        }
    }

    /// Reads an address of one of `schemes`, of which the second is for this machine only.
    fn remote(
        &mut self,
        key: &str,
        [secure, plain]: [&str; 2],
        address: &Option<Address>,
        ca_key: &str,
        ca_file: &Option<std::path::PathBuf>,
    ) -> Option<Remote> {
        let Some(address) = address else {
            if ca_file.is_some() {
                self.fault(ca_key, format!("has no effect without {key}: remove it"));
            }
            return None;
        };
        let uri = address.parse::<Uri>().ok();
        let uri = uri.filter(|uri| uri.host().is_some_and(|host| !host.is_empty()));
        let Some(uri) = uri else {
            self.fault(key, format!("must be absolute, like {secure}://example.com/ratings"));
            return None;
        };
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            self.fault(key, "must not hold a user name or password: send them in a header");
            return None;
        }
        let scheme = uri.scheme().map(Scheme::as_str).unwrap_or_default();
        if scheme == secure {
            let tls = self.tls(key, ca_key, ca_file.as_deref())?;
            return Some(Remote { uri, tls: Some(tls) });
        }
        if scheme != plain || !uri.host().is_some_and(is_this_machine) {
            let problem = format!(
                "must be {secure}://, or {plain}:// to localhost, 127.0.0.0/8 or [::1]: others could \
                 read and change ratings"
            );
            self.fault(key, problem);
            return None;
        }
        if ca_file.is_some() {
            self.fault(ca_key, format!("has no effect with {plain}://: remove it"));
        }
        Some(Remote { uri, tls: None })
    }

    fn tls(&mut self, key: &str, ca_key: &str, file: Option<&Path>) -> Option<Arc<ClientConfig>> {
        let roots = match file {
            Some(file) => outbound::authorities(file).map_err(|problem| (ca_key, problem)),
            None => outbound::system_roots().ok_or_else(|| {
                let none =
                    "this system trusts no authority: install certificates, or name a CA file";
                (key, none.to_owned())
            }),
        };
        let made = roots.and_then(|roots| outbound::tls(roots).map_err(|problem| (key, problem)));
        made.map(Arc::new).map_err(|(key, problem)| self.fault(key, problem)).ok()
    }

    fn headers(&mut self, config: &Config) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (text, source) in &config.headers {
            let key = format!("headers.{text}");
            let name = match text.parse::<HeaderName>() {
                Ok(name) if !is_the_handshakes(&name) => name,
                Ok(_) => {
                    self.fault(&key, "belongs to the handshake: remove it");
                    continue;
                }
                // What stands for a name may be the secret.
                Err(_) => {
                    self.fault("headers", "a name is no field name, like X-Api-Key");
                    continue;
                }
            };
            let Source { env, file } = source;
            let Some(secret) = self.secret([&key, &key], env, file, true) else { continue };
            match secret_field(secret.expose()) {
                Some(value) if !headers.contains_key(&name) => {
                    headers.insert(name, value);
                }
                Some(_) => self.fault(&key, "is there twice"),
                None => self.fault(&key, "holds characters that no header carries"),
            }
        }
        headers
    }

    fn authorization(&mut self, config: &Config) -> Option<HeaderValue> {
        let keys = ["api_key_env", "api_key_file"];
        let (env, file) = (&config.api_key_env, &config.api_key_file);
        if config.forward_to.is_none() && (env.is_some() || file.is_some()) {
            let key = if env.is_some() { keys[0] } else { keys[1] };
            self.fault(key, "has no effect without forward_to: remove it");
        }
        let secret = self.secret(keys, env, file, false)?;
        let value = outbound::bearer(secret.expose());
        if value.is_none() {
            let key = if env.is_some() { keys[0] } else { keys[1] };
            self.fault(key, "must hold a token of visible ASCII characters");
        }
        value
    }

    fn secret(
        &mut self,
        keys: [&str; 2],
        env: &Option<Variable>,
        file: &Option<File>,
        needed: bool,
    ) -> Option<crate::secret::Secret> {
        match (env, file) {
            (Some(variable), None) => {
                variable.read().map_err(|error| self.fault(keys[0], error)).ok()
            }
            (None, Some(file)) => file.read_one().map_err(|error| self.fault(keys[1], error)).ok(),
            (None, None) if !needed => None,
            _ if keys[0] == keys[1] => {
                self.fault(keys[0], "must be { env = \"…\" } or { file = \"…\" }, one of them");
                None
            }
            _ => {
                self.fault(keys[0], format!("set it or {}, one of them", keys[1]));
                None
            }
        }
    }

    fn name(&mut self, name: &str) -> Option<Poster> {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(plain) {
            let problem = format!("must be 1 to {NAME_MAX} characters of [A-Za-z0-9._-]");
            self.fault("name", problem);
            return None;
        }
        let poster = format!("{}{name}", super::POSTER_PREFIX);
        Some(Poster::new(&poster).expect("a short ASCII name"))
    }
}

/// Whether the handshake itself writes this field (RFC 6455 section 4.1), or the connection does.
fn is_the_handshakes(name: &HeaderName) -> bool {
    let ours = [
        header::HOST,
        header::CONNECTION,
        header::UPGRADE,
        header::CONTENT_LENGTH,
        header::TRANSFER_ENCODING,
    ];
    ours.contains(name) || name.as_str().starts_with("sec-websocket-")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Vec<String> {
        let config: Config = serde_json::from_str(json).unwrap();
        let mut faults = Vec::new();
        let plan = Plan::new(&config, "feed", &mut faults);
        assert_eq!(plan.is_some(), faults.is_empty());
        faults
    }

    #[test]
    fn the_least_configuration_is_a_feed_and_where_it_goes() {
        let fine =
            r#"{"url":"ws://127.0.0.1:1/r?x=1","forward_to":"http://localhost:2/v1/rating"}"#;
        assert_eq!(faults(fine), [""; 0]);
        assert_eq!(faults(r#"{"url":"ws://[::1]:1","publish":true}"#), [""; 0]);
    }

    #[test]
    fn every_fault_is_named_with_its_path_and_no_secret_is_shown() {
        let ca = std::env::temp_dir().join(format!("merit-no-pem-{}", std::process::id()));
        std::fs::write(&ca, "no certificate").unwrap();
        let json = serde_json::json!({
            "url": "wss://feed.example.com", "ca_file": ca,
            "headers": {
                "Upgrade": {"env": "HOME"}, "a b": {"env": "HOME"},
                "X-None": {}, "X-Unset": {"env": "MERIT_TEST_NO_SUCH_VARIABLE"},
                "X-Hidden": {"file": "/hunter2"},
            },
            "resume_query": "a&b", "silence": "10ms", "timeout": "1h", "give_up_after": "8d", "max_frame_bytes": 1,
            "forward_to": "http://user:hunter2@api.example.com/v1/rating",
            "in_flight": 0, "queue": 0, "name": "a b",
            "spool_max_bytes": 1, "dead_letter_max_bytes": 1,
            "api_key_env": "MERIT_TEST_NO_SUCH_VARIABLE",
        });
        let found = faults(&json.to_string());
        std::fs::remove_file(&ca).unwrap();
        for path in [
            "ca_file: ",
            "headers.Upgrade: belongs",
            "headers: a name",
            "headers.X-None: must be { env",
            "headers.X-Unset: environment variable MERIT_TEST_NO_SUCH_VARIABLE",
            "headers.X-Hidden: cannot read",
            "resume_query: ",
            "silence: must be 1s to 1h, is 10ms",
            "timeout: must be 100ms to 5m, is 1h",
            "give_up_after: must be 1s to 7d, is 8d",
            "max_frame_bytes: must be 1024..=16777216, is 1",
            "forward_to: must not hold a user name",
            "in_flight: must be 1..=64, is 0",
            "queue: must be 1..=1000000, is 0",
            "name: must be 1 to 64",
            "spool_max_bytes: ",
            "dead_letter_max_bytes: ",
            "api_key_env: environment variable",
        ] {
            let path = format!("feed.{path}");
            assert!(found.iter().any(|fault| fault.starts_with(&path)), "{path}: {found:#?}");
        }
        assert!(!found.concat().contains("hunter2"), "{found:#?}");
        assert_eq!(found.len(), 18, "{found:#?}");
    }

    #[test]
    fn plain_connections_go_to_this_machine_alone() {
        for (url, forward) in [
            ("ws://feed.example.com", "https://api.example.com"),
            ("ws://127.0.0.1.example.com", "https://a"),
            ("http://localhost", "https://a"),
            ("ws://localhost", "http://api.example.com/v1/rating"),
            ("ws://localhost", "http://10.0.0.1"),
            ("ws://localhost", "/v1/rating"),
            ("localhost:1", "http://localhost"),
        ] {
            let found = faults(&format!(r#"{{"url":"{url}","forward_to":"{forward}"}}"#));
            assert_eq!(found.len(), 1, "{url} {forward}: {found:?}");
        }
    }

    #[test]
    fn what_has_no_effect_is_a_fault() {
        let found = faults(r#"{"forward_ca_file":"/x","api_key_file":"/x"}"#);
        for path in
            ["feed.url: must be set", "feed.forward_to: must be set", "feed.forward_ca_file: "]
        {
            assert!(found.iter().any(|fault| fault.starts_with(path)), "{path}: {found:?}");
        }
        assert!(found.iter().any(|fault| fault.starts_with("feed.api_key_file: has no effect")));
    }
}
