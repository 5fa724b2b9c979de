//! The hashes of a rating that are stored and compared across versions: truncated SHA-256 where two events
//! must not be taken for one, CRC-32 where the same event is told from itself with another content.
//!
//! Each text goes in with its length before it, so that no two ratings that differ give the same
//! bytes. `v1` stands first: another way to hash gets another version, and this one stays.

use super::{Rating, Scalar};
use aws_lc_rs::digest::{SHA256, digest};

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

    fn put(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    fn text(&mut self, text: &str) {
        self.put(&(text.len() as u64).to_le_bytes());
        self.put(text.as_bytes());
    }

    fn optional(&mut self, text: Option<&str>) {
        self.put(&[u8::from(text.is_some())]);
        self.text(text.unwrap_or_default());
    }

    fn scalar(&mut self, value: &Scalar) {
        let (tag, bits) = match value {
            Scalar::Bool(value) => (0, u64::from(*value)),
            Scalar::Integer(value) => (1, value.cast_unsigned()),
            Scalar::Number(value) => (2, value.to_bits()),
            Scalar::Text(text) => {
                self.put(&[3]);
                return self.text(text);
            }
        };
        self.put(&[tag]);
        self.put(&bits.to_le_bytes());
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
        let receipt = self.receipt_id()?;
        let mut hasher = Hasher::new("merit receipt v1");
        hasher.text(receipt.as_str());
        Some(u64::from_le_bytes(hasher.first_bytes()))
    }

    /// Returns the CRC-32 (ISO 3309, as in zlib) of what the body says but its id and timestamp: it tells a
    /// repeat from another body under the same id. Stable across versions. No secret hangs on it: who
    /// makes two bodies with one sum has the first of them counted, as with any two.
    #[must_use]
    pub fn checksum(&self) -> u32 {
        crc32fast::hash(&self.content().0)
    }

    /// Returns a hash of what the body says, its timestamp too: it names a rating by its content.
    pub(super) fn content_key<const N: usize>(&self) -> [u8; N] {
        let mut hasher = self.content();
        hasher.put(&self.timestamp_ms().to_le_bytes());
        hasher.first_bytes()
    }

    /// Gathers what the body says but its id, and its timestamp: a client that sends none gets another one
    /// with each retry.
    fn content(&self) -> Hasher {
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
        hasher
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
        // Computed apart from this code, with Python's hashlib and zlib.
        assert_eq!(rating.once_key(), 0x25fd_e290_ed7d_a7b2);
        assert_eq!(rating.checksum(), 0x9d7b_c3f5);
        assert_eq!(rating.receipt_key(), None);
        let receipted = rating.receipted(ReceiptId::new(&"0".repeat(32)).unwrap());
        assert_eq!(receipted.receipt_key(), Some(0x3b23_96c4_73a2_ca49));
    }

    #[test]
    fn a_rating_of_any_length_is_hashed_whole() {
        let of = |length: usize, last: char| {
            let note = "x".repeat(length) + &last.to_string();
            rating("p", &BODY.replace(r#"{"n":1}"#, &format!(r#"{{"n":1,"note":"{note}"}}"#)))
        };
        for length in (0..200).step_by(7) {
            assert_ne!(of(length, 'a').checksum(), of(length, 'b').checksum(), "{length}");
            assert_ne!(of(length, 'a').checksum(), of(length + 1, 'a').checksum(), "{length}");
        }
        let mut hasher = super::Hasher::new("merit rating v1");
        let mut plain = [&15_u64.to_le_bytes()[..], b"merit rating v1"].concat();
        for piece in 0..100_u8 {
            hasher.put(&vec![piece; usize::from(piece)]);
            plain.extend(vec![piece; usize::from(piece)]);
            assert_eq!(hasher.0, plain);
        }
    }

    #[test]
    fn the_same_id_of_another_poster_is_another_event() {
        assert_ne!(rating("p", BODY).once_key(), rating("q", BODY).once_key());
        assert_eq!(rating("p", BODY).checksum(), rating("q", BODY).checksum());
    }

    #[test]
    fn every_field_but_id_and_timestamp_changes_the_checksum() {
        let first = rating("p", BODY).checksum();
        for (from, to) in [
            (r#""agent_id":"a""#, r#""agent_id":"b""#),
            (r#""user_id":"u""#, r#""user_id":"v""#),
            (r#""score":4.5"#, r#""score":4.25"#),
            (r#"{"n":1}"#, r#"{"n":2}"#),
            (r#"{"n":1}"#, r#"{"n":"1"}"#),
            (r#"{"n":1}"#, r#"{"n":1},"item_id":"i""#),
            (r#"{"n":1}"#, r#"{"n":1},"receipt":"x""#),
        ] {
            assert_ne!(first, rating("p", &BODY.replace(from, to)).checksum(), "{to}");
        }
        for (from, to) in
            [(r#""id":"r1""#, r#""id":"r2""#), (r#""id":"r1""#, r#""id":"r1","timestamp":7"#)]
        {
            assert_eq!(first, rating("p", &BODY.replace(from, to)).checksum(), "{to}");
        }
    }
}
