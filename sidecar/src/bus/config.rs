//! Which bus to use, and how: the `[bus]` table.

use super::{BusError, Consumer, Publisher, in_process, kafka};

/// The `[bus]` table; `kind` says which bus.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there is one, and it is read once at start")]
pub enum BusConfig {
    /// Within one process: nothing to install, nothing survives a stop.
    InProcess(in_process::Config),
    /// A Kafka topic; needs the feature `kafka`.
    Kafka(kafka::config::Config),
    /// Known by name only.
    Redis(NotYet),
    /// Known by name only.
    Nats(NotYet),
}

/// The table of a bus that is not in this version yet: any keys, all ignored.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
pub struct NotYet {}

impl Default for BusConfig {
    /// The bus that needs no server.
    fn default() -> Self {
        Self::InProcess(in_process::Config::default())
    }
}

impl BusConfig {
    /// Returns the name of the kind, as configuration writes it.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::InProcess(_) => "in-process",
            Self::Kafka(_) => "kafka",
            Self::Redis(_) => "redis",
            Self::Nats(_) => "nats",
        }
    }

    /// Adds every fault of the table at `path` (normally `bus`) to `faults`.
    pub fn validate(&self, path: &str, faults: &mut Vec<String>) {
        if let Err(error) = self.supported() {
            faults.push(format!("{path}.kind: {error}"));
        }
        match self {
            Self::InProcess(config) => config.validate(path, faults),
            Self::Kafka(config) => config.validate(path, faults),
            Self::Redis(_) | Self::Nats(_) => {}
        }
    }

    fn supported(&self) -> Result<(), BusError> {
        match self {
            Self::InProcess(_) => Ok(()),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Ok(()),
            #[cfg(not(feature = "kafka"))]
            Self::Kafka(_) => Err(BusError::NeedsFeature { kind: "kafka" }),
            Self::Redis(_) => Err(BusError::NotYet { kind: "redis" }),
            Self::Nats(_) => Err(BusError::NotYet { kind: "nats" }),
        }
    }

    /// Returns both ends of the bus, for a process that has ingest and tuner.
    ///
    /// # Errors
    ///
    /// As [`BusConfig::publisher`] and [`BusConfig::consumer`].
    pub async fn both(&self) -> Result<(Publisher, Consumer), BusError> {
        match self {
            Self::InProcess(config) => {
                let (publisher, consumer) = in_process::channel(config);
                Ok((Publisher::InProcess(publisher), Consumer::InProcess(consumer)))
            }
            _ => Ok((self.publisher().await?, self.consumer().await?)),
        }
    }

    /// Returns the publishing end. A broker that is away is no error: publishing then says so.
    ///
    /// # Errors
    ///
    /// When this build lacks the bus, the in-process bus would have no other end, or the client
    /// refuses its configuration.
    pub async fn publisher(&self) -> Result<Publisher, BusError> {
        match self {
            Self::InProcess(_) => Err(BusError::OneProcess),
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => {
                kafka::publisher::Publisher::connect(config).await.map(Publisher::Kafka)
            }
            other => Err(other.supported().expect_err("what is supported has its own arm")),
        }
    }

    /// Returns the consuming end. A broker that is away is no error: it is waited for.
    ///
    /// # Errors
    ///
    /// As [`BusConfig::publisher`].
    pub async fn consumer(&self) -> Result<Consumer, BusError> {
        match self {
            Self::InProcess(_) => Err(BusError::OneProcess),
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => {
                let consumer = kafka::consumer::Consumer::connect(config)?;
                Ok(Consumer::Kafka(Box::new(consumer)))
            }
            other => Err(other.supported().expect_err("what is supported has its own arm")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(json: &str) -> Vec<String> {
        let config: BusConfig = serde_json::from_str(json).unwrap();
        let mut faults = Vec::new();
        config.validate("bus", &mut faults);
        faults
    }

    #[test]
    fn a_bus_of_a_later_version_is_known_by_name() {
        for kind in ["redis", "nats"] {
            let faults = faults(&format!(r#"{{"kind":"{kind}","url":"x"}}"#));
            assert_eq!(faults, [format!("bus.kind: bus `{kind}` is not in this version yet")]);
        }
    }

    #[test]
    fn an_unknown_kind_or_key_is_refused() {
        for json in [
            r#"{"kind":"rabbit"}"#,
            r#"{"kind":"in-process","brokers":"x"}"#,
            r#"{"kind":"kafka","brokers":"x","topics":"y"}"#,
        ] {
            assert!(serde_json::from_str::<BusConfig>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn kafka_is_known_in_every_build_and_says_what_a_build_lacks() {
        let found = faults(r#"{"kind":"kafka","brokers":"127.0.0.1:9092"}"#);
        let lacking = "bus.kind: bus `kafka` needs a build with `--features kafka`";
        let expected: &[&str] = if cfg!(feature = "kafka") { &[] } else { &[lacking] };
        assert_eq!(found, expected);
    }

    #[tokio::test]
    async fn the_in_process_bus_refuses_split_roles() {
        let bus = BusConfig::default();
        assert!(matches!(bus.publisher().await, Err(BusError::OneProcess)));
        assert!(matches!(bus.consumer().await, Err(BusError::OneProcess)));
        assert!(bus.both().await.is_ok());
    }
}
