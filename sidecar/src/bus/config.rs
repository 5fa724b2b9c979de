//! Which bus to use, and how: the `[bus]` table.

use super::{BusError, Consumer, Publisher, in_process, kafka, nats, redis_streams};

/// The `[bus]` table; `kind` says which bus.
#[derive(Clone, Debug, serde::Deserialize, serde::Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum BusConfig {
    /// Within one process: nothing to install, nothing survives a stop.
    InProcess(in_process::Config),
    /// A Kafka topic; needs the feature `kafka`.
    Kafka(kafka::config::Config),
    /// Redis Streams.
    Redis(redis_streams::config::Config),
    /// NATS JetStream; needs the feature `nats`.
    Nats(nats::config::Config),
}

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
            Self::Redis(config) => config.validate(path, faults),
            Self::Nats(config) => config.validate(path, faults),
        }
    }

    fn supported(&self) -> Result<(), BusError> {
        match self {
            Self::InProcess(_) | Self::Redis(_) => Ok(()),
            #[cfg(feature = "kafka")]
            Self::Kafka(_) => Ok(()),
            #[cfg(not(feature = "kafka"))]
            Self::Kafka(_) => Err(BusError::NeedsFeature { kind: "kafka" }),
            #[cfg(feature = "nats")]
            Self::Nats(_) => Ok(()),
            #[cfg(not(feature = "nats"))]
            Self::Nats(_) => Err(BusError::NeedsFeature { kind: "nats" }),
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
            Self::Redis(config) => redis_streams::Publisher::connect(config).map(Publisher::Redis),
            #[cfg(feature = "nats")]
            Self::Nats(config) => nats::Publisher::connect(config).await.map(Publisher::Nats),
            #[cfg(not(all(feature = "kafka", feature = "nats")))]
            other => Err(other.supported().expect_err("what is supported has its own arm")),
        }
    }

    /// Returns both ends and one that follows, for a process that has ingest, tuner and a reader of
    /// everything.
    ///
    /// # Errors
    ///
    /// As [`BusConfig::both`] and [`BusConfig::follower`].
    pub async fn all(&self, name: &str) -> Result<(Publisher, Consumer, Consumer), BusError> {
        match self {
            Self::InProcess(config) => {
                let (publisher, consumer, follower) = in_process::followed(config);
                Ok((
                    Publisher::InProcess(publisher),
                    Consumer::InProcess(consumer),
                    Consumer::InProcess(follower),
                ))
            }
            _ => {
                let (publisher, consumer) = self.both().await?;
                Ok((publisher, consumer, self.follower(name).await?))
            }
        }
    }

    /// Returns a consuming end that reads every partition beside the tuners, from the start of the
    /// log unless it seeks, and holds nothing back. Over Kafka it is the group `<group>-<name>`, which
    /// must be nobody else's; the other buses have no groups and need no name.
    ///
    /// # Errors
    ///
    /// As [`BusConfig::publisher`].
    pub async fn follower(&self, name: &str) -> Result<Consumer, BusError> {
        let _ = name; // of Kafka's group
        match self {
            Self::InProcess(_) => Err(BusError::OneProcess),
            #[cfg(feature = "kafka")]
            Self::Kafka(config) => {
                let consumer = kafka::consumer::Consumer::follow(config, name)?;
                Ok(Consumer::Kafka(Box::new(consumer)))
            }
            Self::Redis(config) => {
                redis_streams::consumer(config, true).map(|bus| Consumer::Redis(Box::new(bus)))
            }
            #[cfg(feature = "nats")]
            Self::Nats(config) => {
                nats::consumer(config, true).await.map(|bus| Consumer::Nats(Box::new(bus)))
            }
            #[cfg(not(all(feature = "kafka", feature = "nats")))]
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
            Self::Redis(config) => {
                redis_streams::consumer(config, false).map(|bus| Consumer::Redis(Box::new(bus)))
            }
            #[cfg(feature = "nats")]
            Self::Nats(config) => {
                nats::consumer(config, false).await.map(|bus| Consumer::Nats(Box::new(bus)))
            }
            #[cfg(not(all(feature = "kafka", feature = "nats")))]
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
    fn an_unknown_kind_or_key_is_refused() {
        for json in [
            r#"{"kind":"rabbit"}"#,
            r#"{"kind":"in-process","brokers":"x"}"#,
            r#"{"kind":"kafka","brokers":"x","topics":"y"}"#,
            r#"{"kind":"redis","urls":"x"}"#,
            r#"{"kind":"nats","urls":"x"}"#,
        ] {
            assert!(serde_json::from_str::<BusConfig>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn every_bus_is_known_in_every_build_and_says_what_a_build_lacks() {
        for (json, kind, built) in [
            (r#"{"kind":"kafka","brokers":"h:9092"}"#, "kafka", cfg!(feature = "kafka")),
            (r#"{"kind":"nats","url":"nats://h"}"#, "nats", cfg!(feature = "nats")),
            (r#"{"kind":"redis","url":"redis://h"}"#, "redis", true),
        ] {
            let lacking = format!("bus.kind: bus `{kind}` needs a build with `--features {kind}`");
            assert_eq!(faults(json), if built { vec![] } else { vec![lacking] });
        }
    }

    #[test]
    fn a_schema_registry_is_for_kafka_and_the_others_say_so() {
        for json in [
            r#"{"kind":"redis","url":"redis://h","schema_registry":{"url":"http://h"}}"#,
            r#"{"kind":"nats","url":"nats://h","schema_registry":{"url":"http://h"}}"#,
        ] {
            let found = faults(json).join("\n");
            let said = "bus.schema_registry: is for kind = \"kafka\" alone";
            assert!(found.contains(said), "{json}: {found}");
        }
        let kafka = r#"{"kind":"kafka","brokers":"h:9092","schema_registry":{}}"#;
        let found = faults(kafka).join("\n");
        assert!(found.contains("bus.schema_registry.url: must be https://"), "{found}");
    }

    #[tokio::test]
    async fn the_in_process_bus_refuses_split_roles() {
        let bus = BusConfig::default();
        assert!(matches!(bus.publisher().await, Err(BusError::OneProcess)));
        assert!(matches!(bus.consumer().await, Err(BusError::OneProcess)));
        assert!(bus.both().await.is_ok());
    }
}
