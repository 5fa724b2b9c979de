//! Records to ratings, in the encoding that is configured and in those that the log still holds.

use metrics::counter;
use tracing::info;

use crate::rating::{Codec, Encoding, Rating, RatingError};

/// Reads the records of one log, and says when it meets another encoding than the configured one.
#[derive(Debug)]
pub struct Decoding {
    codec: Codec,
    /// Encodings that the log was told to hold.
    told: Vec<Encoding>,
}

impl Decoding {
    /// Returns what reads a log that `codec` writes to.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self { codec, told: Vec::new() }
    }

    /// Returns the rating in a record that the bus took at `record_timestamp_ms` (Unix milliseconds).
    /// The first one in another encoding is logged, each is counted.
    ///
    /// # Errors
    ///
    /// As [`Codec::decode`]: such a record is poison.
    pub fn decode(
        &mut self,
        record: &[u8],
        record_timestamp_ms: u64,
    ) -> Result<Rating, RatingError> {
        let rating = self.codec.decode(record, record_timestamp_ms)?;
        let (found, configured) = (self.codec.found(record), self.codec.encoding());
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
}
