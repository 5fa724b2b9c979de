//! In which encoding ratings stand on a durable bus, and how a record's is known.
//!
//! 1. What is written is in the configured encoding.
//! 2. A record that begins with `{` is JSON, one that begins with Avro's mark is Avro, whatever is
//!    configured: logs are kept for long, and hold records from before a change of encoding. No rating
//!    in Protobuf begins so, because the fields 15 and 24 are reserved.
//! 3. Any other record is in the configured encoding. Protobuf has no mark: it is read only where
//!    it is configured, so whoever leaves it begins a new log.
//! 4. What is in neither is poison, and the reason says what it was read as.

use super::{Rating, RatingError, proto, wire};

#[cfg(feature = "avro")]
use super::avro;

/// The first bytes of Avro's single-object encoding (Avro specification 1.12, "Single-object
/// encoding"); the fingerprint of the schema follows.
pub(super) const AVRO_MARK: [u8; 2] = [0xC3, 0x01];

/// How ratings are encoded on a durable bus: `[bus] encoding`.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// One JSON object: everybody can read and write it.
    #[default]
    Json,
    /// `merit.rating.v1.Rating`, plain.
    Protobuf,
    /// Avro's single-object encoding; needs the feature `avro`.
    Avro,
}

/// This build lacks an encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("encoding `{encoding}` needs a build with `--features {encoding}`")]
pub struct NoEncoding {
    encoding: &'static str,
}

impl Encoding {
    /// Returns the name that configuration and metrics use.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Json => "json",
            Self::Protobuf => "protobuf",
            Self::Avro => "avro",
        }
    }

    /// Returns what writes this encoding.
    ///
    /// # Errors
    ///
    /// When this build lacks it.
    pub fn codec(self) -> Result<Codec, NoEncoding> {
        match self {
            Self::Json => Ok(Codec::Json),
            Self::Protobuf => Ok(Codec::Protobuf),
            #[cfg(feature = "avro")]
            Self::Avro => Ok(Codec::Avro),
            #[cfg(not(feature = "avro"))]
            Self::Avro => Err(NoEncoding { encoding: "avro" }),
        }
    }
}

/// Writes ratings in one encoding, and reads them by the rules above.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// [`Encoding::Json`].
    Json,
    /// [`Encoding::Protobuf`].
    Protobuf,
    /// [`Encoding::Avro`].
    #[cfg(feature = "avro")]
    Avro,
}

impl Codec {
    /// Returns the encoding that this writes.
    #[must_use]
    pub fn encoding(self) -> Encoding {
        match self {
            Self::Json => Encoding::Json,
            Self::Protobuf => Encoding::Protobuf,
            #[cfg(feature = "avro")]
            Self::Avro => Encoding::Avro,
        }
    }

    /// Returns the record of `rating`; [`Codec::decode`] gives it back exactly.
    #[must_use]
    pub fn encode(self, rating: &Rating) -> Vec<u8> {
        match self {
            Self::Json => wire::to_bus_json(rating),
            Self::Protobuf => proto::to_bytes(rating),
            #[cfg(feature = "avro")]
            Self::Avro => avro::to_bytes(rating),
        }
    }

    /// Returns the encoding that a record is read as: the configured one, unless its first bytes
    /// are the mark of another.
    #[must_use]
    pub fn found(self, record: &[u8]) -> Encoding {
        match record {
            [b'{', ..] => Encoding::Json,
            record if record.starts_with(&AVRO_MARK) => Encoding::Avro,
            _ => self.encoding(),
        }
    }

    /// Returns the rating in a record that the bus took at `record_timestamp_ms` (Unix milliseconds).
    ///
    /// # Errors
    ///
    /// When the record is not in the encoding that [`Codec::found`] says, or is no valid rating: it
    /// is poison.
    pub fn decode(self, record: &[u8], record_timestamp_ms: u64) -> Result<Rating, RatingError> {
        match self.found(record) {
            Encoding::Json => wire::from_bus_json(record, record_timestamp_ms),
            Encoding::Protobuf => proto::from_bytes(record, record_timestamp_ms),
            #[cfg(feature = "avro")]
            Encoding::Avro => avro::from_bytes(record, record_timestamp_ms),
            #[cfg(not(feature = "avro"))]
            Encoding::Avro => Err(RatingError::Malformed {
                format: "Avro",
                problem: NoEncoding { encoding: "avro" }.to_string(),
            }),
        }
    }
}

#[cfg(test)]
mod tests;
