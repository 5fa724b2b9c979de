//! The `[bus]` table with `kind = "kafka"`. Known in every build, so that one without Kafka can say
//! what it lacks.

use crate::{
    bus::{BusError, duration, registry},
    rating::{Codec, Encoding},
    secret::{File, Secret, Variable},
};
use std::{path::PathBuf, time::Duration};

const PARTITIONS_MAX: u32 = 10_000;
const BATCH_MAX: usize = 10_000;
const QUEUE_MAX: usize = 10_000_000;
/// The longest a topic's name may be, as Kafka has it.
const TOPIC_MAX: usize = 249;
/// What is appended to the topic's name for records that are no ratings.
pub const DEAD_SUFFIX: &str = ".dead";
/// SASL mechanisms that librdkafka has in our build.
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// The `[bus]` table with `kind = "kafka"`.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Brokers to begin with, `host:port` separated by commas; there is no default worth having.
    pub brokers: String,
    /// The topic of ratings; dead letters go to `<topic>.dead`. Both are created when missing.
    pub topic: String,
    /// The consumer group that the tuners share.
    pub group: String,
    /// A name of this tuner that no other of the group has, and that it keeps over restarts: then it
    /// has its partitions back at once. Absent: a killed tuner's wait for the session to time out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// How ratings are written: `json`, `protobuf` or `avro`; JSON, because everybody reads it.
    pub encoding: Encoding,
    /// The schema registry whose ids records carry, in Confluent's wire format; absent: they carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub schema_registry: Option<Box<registry::Config>>,
    /// Names this log of ratings in the agents' records; raise it when the topic was made anew.
    pub generation: u32,
    /// Partitions of a topic that we create; 12 can be shared evenly by 1, 2, 3, 4, 6 or 12 tuners.
    pub partitions: u32,
    /// Replicas of a topic that we create; absent: what the broker does by default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub replication: Option<u16>,
    /// How long a rating may wait for its acknowledgement; 5s is what a client waits for an answer.
    #[serde(with = "duration")]
    pub delivery_timeout: Duration,
    /// How long the producer waits for company; 2ms batches well and hardly shows.
    #[serde(with = "duration")]
    pub linger: Duration,
    /// Ratings that may wait for the broker; 10000 is the same bound as in-process.
    pub queue_max: usize,
    /// Most records in one batch, 1..=10000; 500 keeps a batch within milliseconds.
    pub batch_max: usize,
    /// When a silent tuner loses its partitions; 6s is the least that brokers allow by default.
    #[serde(with = "duration")]
    pub session_timeout: Duration,
    /// When a tuner that asks for nothing loses its partitions; 1m, as it asks many times a second.
    #[serde(with = "duration")]
    pub max_poll_interval: Duration,
    /// How to speak to the brokers.
    pub security: Security,
    /// PEM file of the authorities that may sign a broker's certificate; absent: the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// `PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`, with `sasl_*` security.
    pub sasl_mechanism: String,
    /// The SASL user.
    pub username: String,
    /// The environment variable that holds the SASL password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_env: Option<Variable>,
    /// The file that holds the SASL password; a line break at its end is no part of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub password_file: Option<File>,
}

/// How to speak to the brokers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Security {
    /// Unencrypted, without authentication.
    #[default]
    Plaintext,
    /// TLS.
    Ssl,
    /// Unencrypted, with SASL.
    SaslPlaintext,
    /// TLS with SASL.
    SaslSsl,
}

impl Security {
    /// Returns the name that Kafka's clients use.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plaintext => "plaintext",
            Self::Ssl => "ssl",
            Self::SaslPlaintext => "sasl_plaintext",
            Self::SaslSsl => "sasl_ssl",
        }
    }

    /// Returns true when a user and a password are needed.
    #[must_use]
    pub fn needs_password(self) -> bool {
        matches!(self, Self::SaslPlaintext | Self::SaslSsl)
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            brokers: String::new(),
            topic: "openclaw.ratings".to_owned(),
            group: "merit-tuner".to_owned(),
            instance: None,
            encoding: Encoding::Json,
            schema_registry: None,
            generation: 1,
            partitions: 12,
            replication: None,
            delivery_timeout: Duration::from_secs(5),
            linger: Duration::from_millis(2),
            queue_max: 10_000,
            batch_max: 500,
            session_timeout: Duration::from_secs(6),
            max_poll_interval: Duration::from_secs(60),
            security: Security::Plaintext,
            ca_file: None,
            sasl_mechanism: "SCRAM-SHA-512".to_owned(),
            username: String::new(),
            password_env: None,
            password_file: None,
        }
    }
}

impl Config {
    /// Returns the topic of records that are no ratings.
    #[must_use]
    pub fn dead_topic(&self) -> String {
        format!("{}{DEAD_SUFFIX}", self.topic)
    }

    /// Adds every fault of the table at `path` to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        let mut expect = |holds: bool, key: &str, problem: String| {
            if !holds {
                faults.push(format!("{path}.{key}: {problem}"));
            }
        };
        let broker = |part: &str| !part.trim().is_empty() && !part.contains(char::is_whitespace);
        let brokers = self.brokers.split(',').all(|part| broker(part.trim()));
        expect(brokers, "brokers", "must be `host:port`, several separated by commas".to_owned());
        let in_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let length = TOPIC_MAX - DEAD_SUFFIX.len();
        let topic = (1..=length).contains(&self.topic.len()) && self.topic.chars().all(in_name);
        expect(topic, "topic", format!("must be 1 to {length} letters, digits and `._-`"));
        if let Err(error) = self.encoding.codec() {
            expect(false, "encoding", error.to_string());
        }
        expect(!self.group.is_empty(), "group", "must not be empty".to_owned());
        let mut within = |key: &str, value: u128, low: u128, high: u128| {
            expect((low..=high).contains(&value), key, format!("must be {low}..={high}"));
        };
        within("partitions", self.partitions.into(), 1, PARTITIONS_MAX.into());
        if let Some(replication) = self.replication {
            within("replication", replication.into(), 1, i16::MAX.unsigned_abs().into());
        }
        within("batch_max", self.batch_max as u128, 1, BATCH_MAX as u128);
        within("queue_max", self.queue_max as u128, 1, QUEUE_MAX as u128);
        let mut lasts = |key: &str, value: Duration, low: Duration, high: Duration| {
            let (low_text, high_text) = (duration::format(low), duration::format(high));
            expect((low..=high).contains(&value), key, format!("must be {low_text}..={high_text}"));
        };
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        lasts("delivery_timeout", self.delivery_timeout, Duration::from_millis(100), 5 * minute);
        lasts("linger", self.linger, Duration::ZERO, self.delivery_timeout / 2);
        lasts("session_timeout", self.session_timeout, second, 60 * minute);
        lasts("max_poll_interval", self.max_poll_interval, self.session_timeout, 24 * 60 * minute);
        if self.security.needs_password() {
            let known = MECHANISMS.contains(&self.sasl_mechanism.as_str());
            expect(known, "sasl_mechanism", format!("must be one of {}", MECHANISMS.join(", ")));
            expect(!self.username.is_empty(), "username", "must be set for SASL".to_owned());
            let one = self.password_env.is_some() != self.password_file.is_some();
            expect(one, "password_env", "set it or password_file for SASL, one of them".to_owned());
        }
        if let Some(registry) = &self.schema_registry {
            registry.validate(&format!("{path}.schema_registry"), faults);
        }
    }

    /// Returns what writes and reads ratings.
    ///
    /// # Errors
    ///
    /// When this build lacks the encoding.
    pub fn codec(&self) -> Result<Codec, BusError> {
        Ok(self.encoding.codec()?)
    }

    /// Returns the SASL password from where the configuration says it is.
    ///
    /// # Errors
    ///
    /// When it is not there.
    pub fn password(&self) -> Result<Secret, BusError> {
        let fault = |key, problem| BusError::Config { key, problem };
        if let Some(variable) = &self.password_env {
            return variable.read().map_err(|error| fault("password_env", error.to_string()));
        }
        let Some(file) = &self.password_file else {
            return Err(fault("password_env", "set it or password_file".to_owned()));
        };
        file.read_one().map_err(|error| fault("password_file", error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn faults(config: &Config) -> Vec<String> {
        let mut faults = Vec::new();
        config.validate("bus", &mut faults);
        faults
    }

    #[test]
    fn the_defaults_need_nothing_but_brokers() {
        let config = Config { brokers: "a:1, b:2".to_owned(), ..Config::default() };
        assert_eq!(faults(&config), [""; 0]);
        let none = faults(&Config::default());
        assert_eq!(none, ["bus.brokers: must be `host:port`, several separated by commas"]);
    }

    #[test]
    fn every_fault_is_reported_with_its_path() {
        let config = Config {
            topic: "a b".to_owned(),
            group: String::new(),
            partitions: 0,
            replication: Some(0),
            batch_max: 0,
            queue_max: 0,
            delivery_timeout: Duration::ZERO,
            linger: Duration::from_secs(9),
            session_timeout: Duration::ZERO,
            max_poll_interval: Duration::from_secs(1 << 40),
            security: Security::SaslSsl,
            sasl_mechanism: "GSSAPI".to_owned(),
            ..Config::default()
        };
        let found = faults(&config).join("\n");
        for key in [
            "brokers",
            "topic",
            "group",
            "partitions",
            "replication",
            "batch_max",
            "queue_max",
            "delivery_timeout",
            "linger",
            "session_timeout",
            "max_poll_interval",
            "sasl_mechanism",
            "username",
            "password_env",
        ] {
            assert!(found.contains(&format!("bus.{key}: ")), "{key} is not in\n{found}");
        }
    }

    #[test]
    fn durations_are_text_and_unknown_keys_are_refused() {
        let config: Config =
            serde_json::from_str(r#"{"brokers":"b:1","delivery_timeout":"250ms"}"#).unwrap();
        assert_eq!(config.delivery_timeout, Duration::from_millis(250));
        assert!(serde_json::from_str::<Config>(r#"{"linger":2}"#).is_err());
        assert!(serde_json::from_str::<Config>(r#"{"password":"hunter2"}"#).is_err());
    }

    #[test]
    fn a_password_comes_from_its_file_and_is_never_printed() {
        let file = std::env::temp_dir().join(format!("merit-secret-{}", std::process::id()));
        fs::write(&file, "hunter2\n").unwrap();
        let config = Config { password_file: Some(File::from(&file)), ..Config::default() };
        let secret = config.password().unwrap();
        fs::remove_file(&file).unwrap();
        assert_eq!(secret.expose(), "hunter2");
        assert!(!format!("{secret:?} {config:?}").contains("hunter2"));
        let error = config.password().unwrap_err().to_string();
        assert!(error.starts_with("bus.password_file: cannot read"), "{error}");
    }
}
