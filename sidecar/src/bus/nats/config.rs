//! The `[bus]` table with `kind = "nats"`. Known in every build, so that one without NATS can say
//! what it lacks.

use crate::{
    bus::{BusError, duration, leased::Sizes, registry::config::KAFKA_ALONE},
    rating::{Codec, Encoding},
    secret::{Address, File, Secret, Variable},
};
use std::{path::PathBuf, time::Duration};

const TOPIC_MAX: usize = 200;
/// What begins the address of a server, and whether it means TLS.
const SCHEMES: [(&str, bool); 2] = [("nats://", false), ("tls://", true)];

/// The `[bus]` table with `kind = "nats"`.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// `nats://host[:port]`, or `tls://` for TLS; several servers of one cluster separated by commas.
    pub url: Address,
    /// The user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub username: Option<String>,
    /// The environment variable that holds the user's password, or without a user the token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<Variable>,
    /// The file that holds it; a line break at its end is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<File>,
    /// A `.creds` file: a JWT and the seed of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials_file: Option<File>,
    /// PEM file of the authorities that may sign the server's certificate, besides the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_ca_file: Option<PathBuf>,
    /// PEM file of our certificate, when the server asks for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM file of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key_file: Option<PathBuf>,
    /// What the names of all subjects, streams and buckets begin with.
    pub topic: String,
    /// How ratings are written: `json`, `protobuf` or `avro`; JSON, because everybody reads it.
    pub encoding: Encoding,
    /// For Kafka alone: refused, and said so.
    #[serde(skip_serializing)]
    pub schema_registry: Option<serde::de::IgnoredAny>,
    /// Partitions, 1..=1000; 12 can be shared evenly by 1, 2, 3, 4, 6 or 12 tuners. They can become
    /// more, never fewer.
    pub partitions: u32,
    /// Servers that hold each stream and bucket that we create, 1..=5.
    pub replicas: u8,
    /// A name of this tuner that no other has, and that it keeps over restarts: then it has its
    /// partitions back at once. Absent: those of a killed tuner wait for their lease to run out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How long a silent tuner keeps its partitions, 1s..=5m; the same for all tuners.
    #[serde(with = "duration")]
    pub lease: Duration,
    /// Most records that a partition may hold; when it does, ingest answers 503. What was folded is
    /// removed once the replay window has passed.
    pub length_max: usize,
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
            url: "".into(),
            username: None,
            password_env: None,
            password_file: None,
            credentials_file: None,
            tls_ca_file: None,
            tls_cert_file: None,
            tls_key_file: None,
            topic: "openclaw.ratings".to_owned(),
            encoding: Encoding::Json,
            schema_registry: None,
            partitions: 12,
            replicas: 1,
            instance: None,
            lease: Duration::from_secs(10),
            length_max: 100_000,
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
        let servers: Vec<&str> = self.servers().collect();
        let known = |server: &&str| SCHEMES.iter().any(|(scheme, _)| server.starts_with(scheme));
        let all = !servers.is_empty() && servers.iter().all(known);
        let form = "must be nats://host[:port] or tls://host[:port], several separated by commas";
        expect(all, "url", form.to_owned());
        let secret = servers.iter().any(|server| server.contains('@'));
        let elsewhere = "must hold no secret: name it by username and password_env";
        expect(!secret, "url", elsewhere.to_owned());
        let tls = servers.iter().any(|server| server.starts_with("tls://"));
        let plain = servers.iter().any(|server| !server.starts_with("tls://"));
        expect(!(tls && plain), "url", "all servers speak TLS, or none does".to_owned());
        let files = [&self.tls_ca_file, &self.tls_cert_file, &self.tls_key_file];
        for (key, file) in ["tls_ca_file", "tls_cert_file", "tls_key_file"].into_iter().zip(files) {
            let Some(file) = file else { continue };
            expect(tls, key, "goes with an address that begins with tls://".to_owned());
            let readable = std::fs::File::open(file);
            let why = readable.as_ref().map_or_else(ToString::to_string, |_| String::new());
            expect(readable.is_ok(), key, format!("cannot read {}: {why}", file.display()));
        }
        let pair = self.tls_cert_file.is_some() == self.tls_key_file.is_some();
        expect(pair, "tls_cert_file", "goes with tls_key_file, set both".to_owned());
        if let Err(BusError::Config { key, problem }) = self.login() {
            expect(false, key, problem);
        }
        let in_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let topic = (1..=TOPIC_MAX).contains(&self.topic.len())
            && self.topic.chars().all(in_name)
            && self.topic.split('.').all(|part| !part.is_empty());
        let form = format!(
            "must be 1 to {TOPIC_MAX} letters, digits and `._-`, without an empty part between dots"
        );
        expect(topic, "topic", form);
        expect(self.schema_registry.is_none(), "schema_registry", KAFKA_ALONE.to_owned());
        if let Err(error) = self.encoding.codec() {
            expect(false, "encoding", error.to_string());
        }
        let in_key = |c: char| c.is_ascii_alphanumeric() || "_-".contains(c);
        let instance = self
            .instance
            .as_ref()
            .is_none_or(|name| (1..=128).contains(&name.len()) && name.chars().all(in_key));
        expect(instance, "instance", "must be 1 to 128 letters, digits, `_` and `-`".to_owned());
        expect((1..=5).contains(&self.replicas), "replicas", "must be 1..=5".to_owned());
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
    #[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only the client needs it"))]
    pub(super) fn codec(&self) -> Result<Codec, BusError> {
        Ok(self.encoding.codec()?)
    }

    /// Returns the addresses of the servers.
    pub(super) fn servers(&self) -> impl Iterator<Item = &str> {
        self.url.split(',').map(str::trim).filter(|server| !server.is_empty())
    }

    /// Returns who we are to the servers.
    pub(super) fn login(&self) -> Result<Login, BusError> {
        let fault = |key: &'static str, problem: String| BusError::Config { key, problem };
        let one = usize::from(self.password_env.is_some())
            + usize::from(self.password_file.is_some())
            + usize::from(self.credentials_file.is_some());
        if one > 1 {
            let problem = "set it, password_file or credentials_file, one of them".to_owned();
            return Err(fault("password_env", problem));
        }
        if let Some(file) = &self.credentials_file {
            let secret =
                file.read().map_err(|error| fault("credentials_file", error.to_string()))?;
            return Ok(Login::Credentials(secret));
        }
        let secret = match (&self.password_env, &self.password_file) {
            (Some(variable), _) => {
                variable.read().map_err(|error| fault("password_env", error.to_string()))?
            }
            (None, Some(file)) => {
                file.read_one().map_err(|error| fault("password_file", error.to_string()))?
            }
            (None, None) if self.username.is_some() => {
                let problem = "needs password_env or password_file".to_owned();
                return Err(fault("username", problem));
            }
            (None, None) => return Ok(Login::Nobody),
        };
        Ok(match &self.username {
            Some(username) => Login::User(username.clone(), secret),
            None => Login::Token(secret),
        })
    }
}

/// Who we are to the servers.
#[derive(Debug)]
#[cfg_attr(not(feature = "nats"), expect(dead_code, reason = "only the client reads it"))]
pub(super) enum Login {
    Nobody,
    User(String, Secret),
    Token(Secret),
    Credentials(Secret),
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
        Config { url: url.into(), ..Config::default() }
    }

    #[test]
    fn an_address_is_all_that_is_needed() {
        for url in ["nats://a", "nats://a:4222, nats://b:4222", "tls://a:4222"] {
            assert_eq!(faults(&at(url)), [""; 0], "{url}");
        }
        for url in ["", "http://a", "a:4222", "nats://a,tls://b"] {
            let found = faults(&at(url));
            assert!(found.len() == 1 && found[0].starts_with("bus.url: "), "{url}: {found:?}");
        }
    }

    #[test]
    fn every_fault_is_reported_with_its_path() {
        let config = Config {
            username: Some("u".to_owned()),
            tls_ca_file: Some("/no/such/file".into()),
            tls_cert_file: Some("/dev/null".into()),
            topic: "a..b".to_owned(),
            instance: Some("a.b".to_owned()),
            partitions: 0,
            replicas: 6,
            batch_max: 0,
            queue_max: 0,
            length_max: 0,
            lease: Duration::ZERO,
            delivery_timeout: Duration::ZERO,
            ..at("ws://h")
        };
        let found = faults(&config).join("\n");
        for key in [
            "url",
            "username",
            "tls_ca_file",
            "tls_cert_file",
            "topic",
            "instance",
            "partitions",
            "replicas",
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
    fn a_secret_in_the_address_is_refused_and_not_repeated() {
        let config = at("nats://u:hunter2@h:4222");
        let found = faults(&config).join("\n");
        assert!(found.starts_with("bus.url: must hold no secret"), "{found}");
        assert!(!format!("{found} {config:?}").contains("hunter2"));
        assert!(!serde_json::to_string(&config).unwrap().contains("hunter2"));
    }
}
