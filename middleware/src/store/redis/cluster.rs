//! Redis Cluster: which slot a key is in, and which master serves a slot.
//!
//! Slots are the CRC16 (XMODEM) of a key's hash tag, modulo 16384 (Redis Cluster specification, "Key
//! distribution model").

use redis::Value;

use super::wire::text;

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

const CRC16: [u16; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        #[allow(clippy::cast_possible_truncation, reason = "below 256")]
        let mut crc = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[byte] = crc;
        byte += 1;
    }
    table
};

fn crc16(bytes: impl IntoIterator<Item = u8>) -> u16 {
    bytes.into_iter().fold(0, |crc, byte| (crc << 8) ^ CRC16[usize::from((crc >> 8) as u8 ^ byte)])
}

/// Returns the slot of an agent's keys: `tb:<agent>`, and the record, whose braces hold the same text.
/// An agent id has no braces.
pub(super) fn slot_of_agent(agent: &str) -> u16 {
    crc16("tb:".bytes().chain(agent.bytes())) % SLOTS
}

/// Returns the slot of a key whose hash tag is `tag`.
pub(super) fn slot_of_tag(tag: &str) -> u16 {
    crc16(tag.bytes()) % SLOTS
}

/// Who serves which slots, as one node of the cluster sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Slots {
    /// First slot, last slot, index into `masters`; sorted, without gaps.
    ranges: Vec<(u16, u16, usize)>,
    /// Host and port, each once.
    pub(super) masters: Vec<(String, u16)>,
}

impl Slots {
    /// Reads what `CLUSTER SLOTS` answers; `host` is where it was asked, for answers that leave it out.
    /// `None` when it cannot be read, or some slot is served by nobody.
    pub(super) fn read(answer: &Value, host: &str) -> Option<Self> {
        let Value::Array(items) = answer else { return None };
        let mut slots = Self::default();
        for item in items {
            let Value::Array(item) = item else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &item[..] else {
                return None;
            };
            let [name, Value::Int(port), ..] = &master[..] else { return None };
            let name = text(name).filter(|name| !name.is_empty() && *name != "?").unwrap_or(host);
            let address = (name.to_owned(), u16::try_from(*port).ok()?);
            let known = slots.masters.iter().position(|master| *master == address);
            let master = known.unwrap_or_else(|| {
                slots.masters.push(address);
                slots.masters.len() - 1
            });
            slots.ranges.push((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, master));
        }
        slots.ranges.sort_unstable();
        let mut next = 0;
        for (first, last, _) in &slots.ranges {
            if *first != next || last < first || *last >= SLOTS {
                return None;
            }
            next = last + 1;
        }
        (next == SLOTS).then_some(slots)
    }

    /// Returns the master of a slot, as an index into `masters`.
    pub(super) fn master(&self, slot: u16) -> usize {
        let at = self.ranges.partition_point(|(_, last, _)| *last < slot);
        self.ranges[at.min(self.ranges.len() - 1)].2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_one_of_the_cluster_specification() {
        assert_eq!(crc16("123456789".bytes()), 0x31c3);
        // As `CLUSTER KEYSLOT tb:alice` and `CLUSTER KEYSLOT foo` answer.
        assert_eq!(slot_of_tag("foo"), 12_182);
        assert_eq!(slot_of_agent("alice"), slot_of_tag("tb:alice"));
    }

    fn range(first: i64, last: i64, host: &str, port: i64) -> Value {
        let master = vec![Value::BulkString(host.into()), Value::Int(port)];
        Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(master)])
    }

    #[test]
    fn a_slot_is_found_with_its_master() {
        let answer = Value::Array(vec![
            range(5461, 10_922, "b", 2),
            range(0, 5460, "", 1),
            range(10_923, 16_383, "b", 2),
        ]);
        let slots = Slots::read(&answer, "asked").unwrap();
        assert_eq!(slots.masters, [("b".to_owned(), 2), ("asked".to_owned(), 1)]);
        for (slot, master) in [(0, 1), (5460, 1), (5461, 0), (10_923, 0), (16_383, 0)] {
            assert_eq!(slots.master(slot), master, "slot {slot}");
        }
    }

    #[test]
    fn a_table_with_a_gap_or_of_another_shape_is_none() {
        let gap = Value::Array(vec![range(0, 5460, "a", 1), range(5462, 16_383, "b", 2)]);
        let short = Value::Array(vec![range(0, 16_382, "a", 1)]);
        for answer in [gap, short, Value::Array(vec![]), Value::Nil, Value::Int(1)] {
            assert_eq!(Slots::read(&answer, "asked"), None, "{answer:?}");
        }
    }
}
