//! Records to ratings, in the encoding that is configured and in those that the log still holds.

use metrics::counter;
use tracing::info;

use super::registry::{Found, Schemas};
use crate::rating::{
    Codec, Encoding, Rating, RatingError,
    confluent::{self, Frame, SchemaId},
};

/// Reads the records of one log, and says when it meets another encoding than the configured one.
#[derive(Debug)]
pub struct Decoding {
    codec: Codec,
    /// Who knows the schemas that records name.
    schemas: Option<Schemas>,
    /// Encodings that the log was told to hold.
    told: Vec<Encoding>,
    /// Whether records without the configured frame were told of.
    told_unframed: bool,
}

/// Why there is no rating.
#[derive(Debug, thiserror::Error)]
pub enum Unread {
    /// There never will be one: the record is poison.
    #[error(transparent)]
    Poison(#[from] RatingError),
    /// The record names a schema that nobody has said anything about yet: its partition waits for
    /// [`Decoding::answered`], and then reads it again. Only with a registry.
    #[error("schema {0} is being asked for")]
    Waits(SchemaId),
}

impl Decoding {
    /// Returns what reads a log that `codec` writes to.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self { codec, schemas: None, told: Vec::new(), told_unframed: false }
    }

    /// Returns what reads a log that `codec` writes to, and whose records may name `schemas` of a registry.
    #[must_use]
    pub fn with(codec: Codec, schemas: Option<Schemas>) -> Self {
        Self { schemas, ..Self::new(codec) }
    }

    /// Returns the rating in a record that the bus took at `record_timestamp_ms` (Unix milliseconds).
    /// The first one in another encoding is logged, each is counted.
    ///
    /// # Errors
    ///
    /// When there is none in it, as [`Codec::decode`] says, or none yet.
    pub fn decode(&mut self, record: &[u8], record_timestamp_ms: u64) -> Result<Rating, Unread> {
        let (rating, found) = match confluent::frame(record)? {
            Some(frame) => self.framed(&frame, record_timestamp_ms)?,
            None => {
                let rating = self.codec.decode(record, record_timestamp_ms)?;
                self.note_unframed();
                (rating, self.codec.found(record))
            }
        };
        let configured = self.codec.encoding();
        if found != configured {
            let (found_name, configured) = (found.name(), configured.name());
            counter!("merit_bus_other_encoding_total", "encoding" => found_name).increment(1);
            if !self.told.contains(&found) {
                self.told.push(found);
                info!(found = found_name, configured, "log holds ratings in another encoding too");
            }
        }
        Ok(rating)
    }

    fn framed(
        &self,
        frame: &Frame<'_>,
        record_timestamp_ms: u64,
    ) -> Result<(Rating, Encoding), Unread> {
        let refused = |problem: &str| {
            Unread::Poison(RatingError::Schema { id: frame.schema, problem: problem.to_owned() })
        };
        let Some(schemas) = &self.schemas else {
            return Err(refused(
                "is named by the record, and no registry is configured here: set bus.schema_registry",
            ));
        };
        match schemas.find(frame.schema) {
            Found::Schema(schema) => {
                Ok((schema.decode(frame, record_timestamp_ms)?, schema.encoding()))
            }
            Found::Refused(reason) => Err(refused(&reason)),
            Found::Asked => Err(Unread::Waits(frame.schema)),
        }
    }

    fn note_unframed(&mut self) {
        if self.schemas.is_none() {
            return;
        }
        counter!("merit_bus_unframed_total").increment(1);
        if !self.told_unframed {
            self.told_unframed = true;
            info!("log holds ratings that name no schema of the registry too");
        }
    }

    /// Returns false while a record of the schema `id` would have to wait.
    #[must_use]
    pub fn knows(&self, id: SchemaId) -> bool {
        self.schemas.as_ref().is_none_or(|schemas| !matches!(schemas.find(id), Found::Asked))
    }

    /// Returns when something was learnt of a schema since the last call; without a registry never. Cancel safe.
    pub async fn answered(&mut self) {
        match &mut self.schemas {
            Some(schemas) => schemas.answered().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_from_before_a_change_of_encoding_is_read_and_counted() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let _installed = metrics::set_default_local_recorder(&recorder);
        let json = br#"{"user_id":"u","agent_id":"a","score":4}"#;
        let rating = Codec::Json.decode(json, 7).unwrap();
        let mut decoding = Decoding::new(Codec::Protobuf);
        assert_eq!(decoding.decode(json, 7).unwrap(), rating);
        assert_eq!(decoding.decode(&Codec::Protobuf.encode(&rating), 7).unwrap(), rating);
        decoding.decode(b"{", 7).unwrap_err();
        let text = recorder.handle().render();
        let line = "merit_bus_other_encoding_total{encoding=\"json\"} 1";
        assert!(text.contains(line), "{line} is not in\n{text}");
    }

    #[test]
    fn a_frame_without_a_registry_is_poison_that_says_what_to_set() {
        for codec in [Codec::Json, Codec::Protobuf] {
            let error = Decoding::new(codec).decode(b"\0\0\0\0\x07{}", 7).unwrap_err();
            assert!(matches!(error, Unread::Poison(_)));
            let said = error.to_string();
            assert!(said.starts_with("schema 7 of the registry is named by"), "{said}");
            assert!(said.ends_with("set bus.schema_registry"), "{said}");
        }
    }
}
