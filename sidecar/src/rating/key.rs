//! Where a rating goes on a partitioned log: its key, and the partition by hash of the agent.
//!
//! The key tells compaction which ratings replace each other; the partition keeps the ratings of
//! one agent in order. They differ, so the partition is ours to compute, with the murmur2 of
//! Kafka's default partitioner: a producer that keys its records by agent gives the same one.

use super::Rating;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use std::num::NonZeroU32;

/// What RFC 3986 section 2.3 leaves as it is; `|` and `%` are not in it.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Rating {
    /// Returns `<user>|<agent>`, with an item `<user>|<agent>|<item>`; parts percent-encoded.
    ///
    /// The agent's part is empty when the rating names none.
    #[must_use]
    pub fn key(&self) -> String {
        let encode = |part| utf8_percent_encode(part, ENCODED);
        let agent = self.agent().map_or("", |agent| agent.as_str());
        let pair = format!("{}|{}", encode(self.user().as_str()), encode(agent));
        match self.item() {
            Some(item) => format!("{pair}|{}", encode(item.as_str())),
            None => pair,
        }
    }

    /// Returns the partition of `count` that the agent's ratings go to; the item's, without agent.
    #[must_use]
    pub fn partition(&self, count: NonZeroU32) -> u32 {
        let item = || self.item().map_or("", |item| item.as_str());
        partition_for(self.agent().map_or_else(item, |agent| agent.as_str()), count)
    }
}

/// Returns the partition of `count` that Kafka's default partitioner gives the key `name`.
#[must_use]
pub fn partition_for(name: &str, count: NonZeroU32) -> u32 {
    (murmur2(name.as_bytes()) & 0x7fff_ffff) % count
}

/// MurmurHash2 in 32 bits with the seed that Kafka's clients use.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    #[expect(clippy::cast_possible_truncation, reason = "murmur2 takes the length in 32 bits")]
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let word = u32::from_le_bytes(word.try_into().expect("chunks of four bytes"));
        let word = word.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ (word ^ (word >> 24)).wrapping_mul(M);
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (position, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * position);
        }
        hash = hash.wrapping_mul(M);
    }
    hash = (hash ^ (hash >> 13)).wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::super::{Poster, RatingRequest};
    use super::*;

    fn rating(body: &str) -> Rating {
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new("p").unwrap(), 1_700_000_000_000_000).unwrap()
    }

    #[test]
    fn murmur2_gives_the_values_of_kafkas_own_test() {
        // org.apache.kafka.common.utils.UtilsTest.testMurmur2
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()).cast_signed(), hash, "{text}");
        }
    }

    #[test]
    fn the_parts_of_a_key_cannot_run_into_each_other() {
        let key = rating(r#"{"user_id":"a|b%c ü","agent_id":"x:y@z","score":1}"#).key();
        assert_eq!(key, "a%7Cb%25c%20%C3%BC|x%3Ay%40z");
        let item = rating(r#"{"user_id":"u","agent_id":"a","item_id":"i/j","score":1}"#).key();
        assert_eq!(item, "u|a|i%2Fj");
        assert_eq!(rating(r#"{"user_id":"u","item_id":"i","rating":1}"#).key(), "u||i");
    }

    #[test]
    fn all_ratings_of_an_agent_share_a_partition_whoever_rates_what() {
        let count = NonZeroU32::new(12).unwrap();
        let first = rating(r#"{"user_id":"u","agent_id":"a1","score":1}"#).partition(count);
        let other = rating(r#"{"user_id":"v","agent_id":"a1","item_id":"i","score":5}"#);
        assert_eq!(first, other.partition(count));
        assert_eq!(first, partition_for("a1", count));
        let item = rating(r#"{"user_id":"v","item_id":"a1","score":5}"#).partition(count);
        assert_eq!(first, item, "an item that is the agent is on the agent's partition");
    }
}
