//! The `[bus]` table with `kind = "redis"`.

use crate::{
    bus::{BusError, duration, leased::Sizes, registry::config::KAFKA_ALONE},
    causes::with_causes,
    rating::{Codec, Encoding},
    secret::{Address, File, Secret, Variable},
};
use redis::{
    Client, ClientTlsConfig, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, TlsCertificates,
};
use std::{fs, path::PathBuf, time::Duration};

const TOPIC_MAX: usize = 200;

/// The `[bus]` table with `kind = "redis"`. Without `url` and `url_env` it is the server of
/// `[store]`, with its user, password and certificates.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS: one server, or what
    /// stands before it. Streams over the slots of a cluster are not supported.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<Address>,
    /// The environment variable that holds the URL, when that has a password in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_env: Option<Variable>,
    /// The user, when the URL names none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The environment variable that holds the password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<Variable>,
    /// The file that holds the password; a line break at its end is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<File>,
    /// PEM file of the authorities that may sign the server's certificate; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca_file: Option<PathBuf>,
    /// PEM file of our certificate and what signed it, when the server asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<File>,
    /// What the names of all keys begin with.
    pub topic: String,
    /// How ratings are written: `json`, `protobuf` or `avro`; JSON, because everybody reads it.
    pub encoding: Encoding,
    /// For Kafka alone: refused, and said so.
    #[serde(skip_serializing)]
    pub schema_registry: Option<serde::de::IgnoredAny>,
    /// Partitions, 1..=1000; 12 can be shared evenly by 1, 2, 3, 4, 6 or 12 tuners. They can become
    /// more, never fewer.
    pub partitions: u32,
    /// A name of this tuner that no other has, and that it keeps over restarts: then it has its
    /// partitions back at once. Absent: those of a killed tuner wait for their lease to run out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How long a silent tuner keeps its partitions, 1s..=5m.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// Most records that a partition may hold; when it does, ingest answers 503. What was folded is
    /// removed once the replay window has passed.
    pub length_max: usize,
    /// Replicas that must have a rating before it is acknowledged (`WAIT`).
    pub replicas: u16,
    /// How long a rating may wait for its acknowledgement.
    #[serde(with = "duration")]
    pub delivery_timeout: Duration,
    /// Ratings that may wait for the server; 10000 is the same bound as in-process.
    pub queue_max: usize,
    /// Most records in one batch, 1..=10000; 500 keeps a batch within milliseconds.
    pub batch_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            url: None,
            url_env: None,
            username: None,
            password_env: None,
            password_file: None,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            topic: "openclaw.ratings".to_owned(),
            encoding: Encoding::Json,
            schema_registry: None,
            partitions: 12,
            instance: None,
            lease: Duration::from_secs(10),
            length_max: 100_000,
            replicas: 0,
            delivery_timeout: Duration::from_secs(5),
            queue_max: 10_000,
            batch_max: 500,
        }
    }
}

impl Config {
    /// Adds every fault of the table at `path` to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let mut expect = |holds: bool, key: &str, problem: String| {
            if !holds {
                faults.push(format!("{path}.{key}: {problem}"));
            }
        };
        match (&self.url, &self.url_env) {
            (None, None) => expect(
                false,
                "url",
                "must be redis://host[:port]: [store] names no single server to share".to_owned(),
            ),
            (Some(_), Some(_)) => {
                expect(false, "url", "set it or url_env, one of them".to_owned());
            }
            _ => {
                if let Err(BusError::Config { key, problem }) = self.client() {
                    expect(false, key, problem);
                }
            }
        }
        let in_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let topic = (1..=TOPIC_MAX).contains(&self.topic.len()) && self.topic.chars().all(in_name);
        expect(topic, "topic", format!("must be 1 to {TOPIC_MAX} letters, digits and `._-`"));
        expect(self.schema_registry.is_none(), "schema_registry", KAFKA_ALONE.to_owned());
        if let Err(error) = self.encoding.codec() {
            expect(false, "encoding", error.to_string());
        }
        let instance = self.instance.as_ref().is_none_or(|name| (1..=128).contains(&name.len()));
        expect(instance, "instance", "must be 1 to 128 bytes".to_owned());
        let sizes = Sizes {
            partitions: self.partitions,
            batch_max: self.batch_max,
            queue_max: self.queue_max,
            length_max: self.length_max,
            lease: self.lease,
            delivery_timeout: self.delivery_timeout,
        };
        sizes.validate(expect);
    }

    /// Returns what writes and reads ratings.
    pub(super) fn codec(&self) -> Result<Codec, BusError> {
        Ok(self.encoding.codec()?)
    }

    /// Returns what connects to the server.
    pub(super) fn client(&self) -> Result<Client, BusError> {
        let fault = |key: &'static str, problem: String| BusError::Config { key, problem };
        let (key, url) = match (&self.url, &self.url_env) {
            (Some(url), _) => ("url", (**url).to_owned()),
            (None, Some(variable)) => {
                let secret =
                    variable.read().map_err(|error| fault("url_env", error.to_string()))?;
                ("url_env", secret.expose().to_owned())
            }
            (None, None) => return Err(fault("url", "must be set".to_owned())),
        };
        // What the client says of an address may repeat the password in it.
        let malformed = |_| {
            let form =
                "must be redis://[user:password@]host[:port][/database], or rediss:// for TLS";
            fault(key, form.to_owned())
        };
        let info = url.as_str().into_connection_info().map_err(malformed)?;
        if matches!(info.addr(), ConnectionAddr::TcpTls { insecure: true, .. }) {
            let problem = "#insecure would trust anybody: give the authority's certificate";
            return Err(fault(key, problem.to_owned()));
        }
        let mut redis = info.redis_settings().clone();
        if let Some(username) = &self.username {
            redis = redis.set_username(username);
        }
        if let Some(password) = self.password()? {
            redis = redis.set_password(password.expose());
        }
        self.open(key, info.set_redis_settings(redis))
    }

    fn open(&self, key: &'static str, info: ConnectionInfo) -> Result<Client, BusError> {
        let fault = |key: &'static str, problem: String| BusError::Config { key, problem };
        let tls = matches!(info.addr(), ConnectionAddr::TcpTls { .. });
        let certificates = self.certificates()?;
        if !tls && certificates.is_some() {
            let problem = "goes with an address that begins with rediss://".to_owned();
            return Err(fault("tls_ca_file", problem));
        }
        let opened = match certificates {
            Some(certificates) => Client::build_with_tls(info, certificates),
            None => Client::open(info),
        };
        opened.map_err(|error| fault(key, with_causes(&error)))
    }

    fn certificates(&self) -> Result<Option<TlsCertificates>, BusError> {
        let fault = |key: &'static str, problem: String| BusError::Config { key, problem };
        let pem = |key: &'static str, path: &PathBuf| {
            fs::read(path)
                .map_err(|error| fault(key, format!("cannot read {}: {error}", path.display())))
        };
        let root_cert =
            self.tls_ca_file.as_ref().map(|path| pem("tls_ca_file", path)).transpose()?;
        let client_tls = match (&self.tls_cert_file, &self.tls_key_file) {
            (None, None) => None,
            (Some(chain), Some(key)) => {
                let key = key.read().map_err(|error| fault("tls_key_file", error.to_string()))?;
                let client_key = key.expose().as_bytes().to_vec();
                Some(ClientTlsConfig { client_cert: pem("tls_cert_file", chain)?, client_key })
            }
            _ => {
                let problem = "goes with tls_key_file, set both".to_owned();
                return Err(fault("tls_cert_file", problem));
            }
        };
        let none = root_cert.is_none() && client_tls.is_none();
        Ok((!none).then_some(TlsCertificates { client_tls, root_cert }))
    }

    fn password(&self) -> Result<Option<Secret>, BusError> {
        let fault = |key: &'static str, problem: String| BusError::Config { key, problem };
        match (&self.password_env, &self.password_file) {
            (None, None) => Ok(None),
            (Some(variable), None) => {
                variable.read().map(Some).map_err(|error| fault("password_env", error.to_string()))
            }
            (None, Some(file)) => {
                file.read_one().map(Some).map_err(|error| fault("password_file", error.to_string()))
            }
            (Some(_), Some(_)) => {
                Err(fault("password_env", "set it or password_file, one of them".to_owned()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Vec::new();
        config.validate("bus", &mut faults);
        faults
    }

    fn at(url: &str) -> Config {
        Config { url: Some(url.into()), ..Config::default() }
    }

    #[test]
    fn an_address_is_all_that_is_needed() {
        assert_eq!(faults(&at("redis://127.0.0.1:6379/2")), [""; 0]);
        let none = faults(&Config::default());
        assert!(none.len() == 1 && none[0].starts_with("bus.url: must be redis://"), "{none:?}");
    }

    #[test]
    fn every_fault_is_reported_with_its_path() {
        let config = Config {
            topic: "a{b}".to_owned(),
            instance: Some(String::new()),
            partitions: 0,
            batch_max: 0,
            queue_max: 0,
            length_max: 0,
            lease: Duration::ZERO,
            delivery_timeout: Duration::ZERO,
            ..at("http://h")
        };
        let found = faults(&config).join("\n");
        for key in [
            "url",
            "topic",
            "instance",
            "partitions",
            "batch_max",
            "queue_max",
            "length_max",
            "lease",
            "delivery_timeout",
        ] {
            assert!(found.contains(&format!("bus.{key}: ")), "{key} is not in\n{found}");
        }
    }

    #[test]
    fn a_password_is_in_no_message() {
        for url in ["redis://u:hunter2@h:x", "rediss://u:hunter2@h/#insecure", "hunter2"] {
            let found = faults(&at(url));
            assert!(!found.is_empty() && !found.join(" ").contains("hunter2"), "{found:?}");
        }
        let unset = Config { password_env: Some("MERIT_TEST_UNSET".into()), ..at("redis://h") };
        assert!(faults(&unset)[0].starts_with("bus.password_env: "), "{:?}", faults(&unset));
        let plain = Config { tls_ca_file: Some("/dev/null".into()), ..at("redis://h") };
        assert!(faults(&plain)[0].starts_with("bus.tls_ca_file: "), "{:?}", faults(&plain));
    }
}
