//! The hashes of a rating that are stored and compared across versions: truncated SHA-256.
//!
//! Each text goes in with its length before it, so that no two ratings that differ give the same
//! bytes. `v1` stands first: another way to hash gets another version, and this one stays.

use super::{Rating, Scalar};
use aws_lc_rs::digest::{SHA256, digest};

/// What of the body is hashed.
#[derive(Clone, Copy)]
pub(super) enum Include {
    /// Everything but the id: names a rating by its content.
    Timestamp,
    /// Not the timestamp either: a client that sends none gets another one with each retry.
    NoTimestamp,
}

/// What goes in, gathered: one call over all of it costs a third of a call for each piece.
struct Hasher(Vec<u8>);

/// Bytes that most ratings stay below.
const USUAL_BYTES: usize = 256;

impl Hasher {
    fn new(purpose: &str) -> Self {
        let mut hasher = Self(Vec::with_capacity(USUAL_BYTES));
        hasher.text(purpose);
        hasher
    }

    fn text(&mut self, text: &str) {
        self.0.extend_from_slice(&(text.len() as u64).to_le_bytes());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn optional(&mut self, text: Option<&str>) {
        self.0.push(u8::from(text.is_some()));
        self.text(text.unwrap_or_default());
    }

    fn scalar(&mut self, value: &Scalar) {
        let (tag, bits) = match value {
            Scalar::Bool(value) => (0, u64::from(*value)),
            Scalar::Integer(value) => (1, value.cast_unsigned()),
            Scalar::Number(value) => (2, value.to_bits()),
            Scalar::Text(text) => {
                self.0.push(3);
                return self.text(text);
            }
        };
        self.0.push(tag);
        self.0.extend_from_slice(&bits.to_le_bytes());
    }

    fn first_bytes<const N: usize>(self) -> [u8; N] {
        let digest = digest(&SHA256, &self.0);
        digest.as_ref()[..N].try_into().expect("a SHA-256 digest has 32 bytes")
    }
}

impl Rating {
    /// Returns a hash of poster and id: equal for repeats of one event, stable across versions.
    #[must_use]
    pub fn once_key(&self) -> u64 {
        let mut hasher = Hasher::new("merit once v1");
        hasher.text(self.poster().as_str());
        hasher.text(self.id().as_str());
        u64::from_le_bytes(hasher.first_bytes())
    }

    /// Returns a hash of the request that the receipt proves: equal for all ratings that lean on one
    /// receipt, stable across versions; nothing without a verified one.
    #[must_use]
    pub fn receipt_key(&self) -> Option<u64> {
        let mut hasher = Hasher::new("merit receipt v1");
        hasher.text(self.receipt_id()?.as_str());
        Some(u64::from_le_bytes(hasher.first_bytes()))
    }

    /// Returns a hash of what the body says but its id and timestamp: it tells a repeat from
    /// another body under the same id. Stable across versions.
    #[must_use]
    pub fn fingerprint(&self) -> u64 {
        u64::from_le_bytes(self.content(Include::NoTimestamp))
    }

    pub(super) fn content<const N: usize>(&self, include: Include) -> [u8; N] {
        let mut hasher = Hasher::new("merit rating v1");
        hasher.optional(self.agent().map(AsRef::as_ref));
        hasher.text(self.user().as_str());
        hasher.optional(self.item().map(super::ItemId::as_str));
        hasher.scalar(&Scalar::Number(self.score().value()));
        hasher.optional(self.receipt().map(super::Receipt::as_str));
        for (key, value) in self.context().iter() {
            hasher.text(key.as_str());
            hasher.scalar(value);
        }
        if let Include::Timestamp = include {
            hasher.0.extend_from_slice(&self.timestamp_ms().to_le_bytes());
        }
        hasher.first_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Poster, Rating, RatingRequest, ReceiptId};

    fn rating(poster: &str, body: &str) -> Rating {
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new(poster).unwrap(), 1_700_000_000_000_000).unwrap()
    }

    const BODY: &str = r#"{"id":"r1","agent_id":"a","user_id":"u","score":4.5,"context":{"n":1}}"#;

    #[test]
    fn hashes_are_the_ones_that_are_stored_already() {
        let rating = rating("p", BODY);
        // Computed apart from this code, with Python's hashlib.
        assert_eq!(rating.once_key(), 0x25fd_e290_ed7d_a7b2);
        assert_eq!(rating.fingerprint(), 0xb59e_9fdb_d14d_dca0);
        assert_eq!(rating.receipt_key(), None);
        let receipted = rating.receipted(ReceiptId::new(&"0".repeat(32)).unwrap());
        assert_eq!(receipted.receipt_key(), Some(0x3b23_96c4_73a2_ca49));
    }

    #[test]
    fn the_same_id_of_another_poster_is_another_event() {
        assert_ne!(rating("p", BODY).once_key(), rating("q", BODY).once_key());
        assert_eq!(rating("p", BODY).fingerprint(), rating("q", BODY).fingerprint());
    }

    #[test]
    fn every_field_but_id_and_timestamp_changes_the_fingerprint() {
        let first = rating("p", BODY).fingerprint();
        for (from, to) in [
            (r#""agent_id":"a""#, r#""agent_id":"b""#),
            (r#""user_id":"u""#, r#""user_id":"v""#),
            (r#""score":4.5"#, r#""score":4.25"#),
            (r#"{"n":1}"#, r#"{"n":2}"#),
            (r#"{"n":1}"#, r#"{"n":"1"}"#),
            (r#"{"n":1}"#, r#"{"n":1},"item_id":"i""#),
            (r#"{"n":1}"#, r#"{"n":1},"receipt":"x""#),
        ] {
            assert_ne!(first, rating("p", &BODY.replace(from, to)).fingerprint(), "{to}");
        }
        for (from, to) in
            [(r#""id":"r1""#, r#""id":"r2""#), (r#""id":"r1""#, r#""id":"r1","timestamp":7"#)]
        {
            assert_eq!(first, rating("p", &BODY.replace(from, to)).fingerprint(), "{to}");
        }
    }
}
