//! The id of an event: how far each partition of which log was read, after it.
//!
//! Base64url (no padding) of: the version 1; 8 bytes that name the log; then for each partition, in order,
//! the distance from the one before and its next offset, as varints (LEB128). Twelve partitions of Redis
//! Streams make some 180 characters, of Kafka some 60. Nobody but us need read it.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    bus::Partition,
    personalize::{Positions, model::Key},
};

const VERSION: u8 = 1;
/// The longest id that is read, in characters: a thousand partitions.
const TEXT_MAX: usize = 20_000;
/// Bytes that name a log.
const NAME: usize = 8;

/// Where a reader is, in a log that has this name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventId {
    /// What names the log.
    pub(super) log: [u8; NAME],
    /// The next offset of each partition; the source is not kept.
    pub(super) positions: Positions,
}

/// Returns what names the log `source` in ids.
pub(super) fn log_name(source: &str) -> [u8; NAME] {
    let key = Key::of(&[b"log\0", source.as_bytes()]);
    key.bytes()[..NAME].try_into().expect("a key is longer")
}

impl EventId {
    /// Returns the id of whoever has read `positions` of the log `log`.
    #[must_use]
    pub(super) fn encode(log: [u8; NAME], positions: &Positions) -> String {
        let mut bytes = Vec::with_capacity(1 + NAME + 11 * positions.next.len());
        bytes.push(VERSION);
        bytes.extend(log);
        let mut before = 0;
        for (partition, next) in &positions.next {
            varint(u64::from(partition.0 - before), &mut bytes);
            varint(*next, &mut bytes);
            before = partition.0;
        }
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Returns what `text` says; nothing when it is no such id.
    #[must_use]
    pub fn decode(text: &str) -> Option<Self> {
        if text.len() > TEXT_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (head, mut rest) = bytes.split_at_checked(1 + NAME)?;
        let (&[version], log) = head.split_first_chunk::<1>()?;
        if version != VERSION {
            return None;
        }
        let mut positions = Positions::default();
        let mut before = 0_u32;
        while !rest.is_empty() {
            let distance = u32::try_from(read_varint(&mut rest)?).ok()?;
            if distance == 0 && !positions.next.is_empty() {
                return None; // the same partition twice
            }
            before = before.checked_add(distance)?;
            positions.next.insert(Partition(before), read_varint(&mut rest)?);
        }
        Some(Self { log: log.try_into().ok()?, positions })
    }
}

fn varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(u8::try_from(number & 0x7f).expect("seven bits") | 0x80);
        number >>= 7;
    }
    bytes.push(u8::try_from(number).expect("seven bits"));
}

fn read_varint(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (byte, left) = rest.split_first()?;
        *rest = left;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn positions_come_back_from_an_id_that_is_one_word(
            next in proptest::collection::btree_map(0_u32..2000, any::<u64>(), 0..40),
            source in "\\PC{0,20}",
        ) {
            let next = next.into_iter().map(|(p, next)| (Partition(p), next)).collect();
            let positions = Positions { next, ..Positions::default() };
            let text = EventId::encode(log_name(&source), &positions);
            let word = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            prop_assert!(text.chars().all(word), "{}", text);
            let found = EventId::decode(&text).unwrap();
            prop_assert_eq!(found.positions, positions);
            prop_assert_eq!(found.log, log_name(&source));
        }

        #[test]
        fn whatever_a_client_sends_as_an_id_is_read_or_refused(text in "\\PC{0,80}", tail in "[A-Za-z0-9_-]{0,60}") {
            let _ = EventId::decode(&text);
            let good = EventId::encode([7; 8], &Positions::default());
            let _ = EventId::decode(&format!("{good}{tail}"));
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        let twice = URL_SAFE_NO_PAD.encode([1, 0, 0, 0, 0, 0, 0, 0, 0, 3, 1, 0, 2]);
        let other_version = URL_SAFE_NO_PAD.encode([2, 0, 0, 0, 0, 0, 0, 0, 0]);
        let long = "A".repeat(TEXT_MAX + 4);
        for text in ["", "7", "!!", &twice, &other_version, &long] {
            assert_eq!(EventId::decode(text), None, "{text}");
        }
    }
}
