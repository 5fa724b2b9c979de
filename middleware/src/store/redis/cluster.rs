//! Redis Cluster: which slot a key is in, and which master serves a slot.
//!
//! Slots are the CRC16 (XMODEM) of a key's hash tag, modulo 16384 (Redis Cluster specification, "Key
//! distribution model").

use std::{future::Future, pin::Pin, time::Duration};

use redis::{Arg, Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::{task::JoinSet, time::timeout};

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

/// Returns the slot of a key: of what stands between its first braces, if anything does.
fn slot_of_key(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16(tag.unwrap_or(key).iter().copied()) % SLOTS
}

/// Returns the slot of a command's first key: the third argument of a script call, the first of any
/// other command.
pub(super) fn slot_of_command(command: &Cmd) -> u16 {
    let mut arguments = command.args_iter().map(|argument| match argument {
        Arg::Simple(bytes) => bytes,
        _ => &[],
    });
    let verb = arguments.next().unwrap_or_default();
    let is_script = verb.eq_ignore_ascii_case(b"EVALSHA") || verb.eq_ignore_ascii_case(b"EVAL");
    slot_of_key(arguments.nth(if is_script { 2 } else { 0 }).unwrap_or_default())
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
        let mut ranges = Vec::with_capacity(items.len());
        for item in items {
            let Value::Array(item) = item else { return None };
            let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &item[..] else {
                return None;
            };
            let [name, Value::Int(port), ..] = &master[..] else { return None };
            let name = text(name).filter(|name| !name.is_empty() && *name != "?").unwrap_or(host);
            let address = (name.to_owned(), u16::try_from(*port).ok()?);
            ranges.push((u16::try_from(*first).ok()?, u16::try_from(*last).ok()?, address));
        }
        // Sorted, so that two nodes that agree give equal tables.
        ranges.sort_unstable();
        let (mut slots, mut next) = (Self::default(), 0);
        for (first, last, address) in ranges {
            if first != next || last < first || last >= SLOTS {
                return None;
            }
            next = last + 1;
            let known = slots.masters.iter().position(|master| *master == address);
            let master = known.unwrap_or_else(|| {
                slots.masters.push(address);
                slots.masters.len() - 1
            });
            slots.ranges.push((first, last, master));
        }
        (next == SLOTS).then_some(slots)
    }

    /// Returns the command whose answer [`Slots::read`] reads.
    pub(super) fn question() -> Cmd {
        let mut command = redis::cmd("CLUSTER");
        command.arg("SLOTS");
        command
    }

    /// Returns the master of a slot, as an index into `masters`.
    pub(super) fn master(&self, slot: u16) -> usize {
        let at = self.ranges.partition_point(|(_, last, _)| *last < slot);
        self.ranges[at.min(self.ranges.len() - 1)].2
    }
}

/// How long one node may take to say who serves what: 500 ms.
const SURVEY_TIMEOUT: Duration = Duration::from_millis(500);

/// How many nodes are asked at once.
pub(super) const ASKED_MAX: usize = 5;

/// A node that was asked for its table, and its answer to come.
pub(super) struct Asked {
    /// Where it was asked, for answers that leave that out.
    pub(super) host: String,
    pub(super) answer: Pin<Box<dyn Future<Output = Result<Value, RedisError>> + Send>>,
}

/// Returns the table that most of the nodes give: one that was cut off before a failover does not
/// know of it. A node that does not answer is waited for only as long as it could tip the scales.
///
/// # Errors
///
/// When none gives a table in which every slot is served.
pub(super) async fn agreed(asked: Vec<Asked>) -> Result<Slots, RedisError> {
    let (count, mut asking) = (asked.len(), JoinSet::new());
    for Asked { host, answer } in asked {
        asking.spawn(async move { (host, timeout(SURVEY_TIMEOUT, answer).await) });
    }
    let mut tables: Vec<(Slots, usize)> = Vec::new();
    let mut failure = RedisError::from((ErrorKind::Io, "no node of the cluster answered in time"));
    while let Some(answered) = asking.join_next().await {
        let Ok((host, Ok(answer))) = answered else { continue };
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                failure = error;
                continue;
            }
        };
        let Some(slots) = Slots::read(&answer, &host) else {
            let down = ServerErrorKind::ClusterDown.into();
            failure = (down, "some slots of the cluster are served by nobody").into();
            continue;
        };
        match tables.iter_mut().find(|(table, _)| *table == slots) {
            Some((_, votes)) => *votes += 1,
            None => tables.push((slots, 1)),
        }
        if let Some(at) = tables.iter().position(|(_, votes)| *votes > count / 2) {
            return Ok(tables.swap_remove(at).0);
        }
    }
    tables.into_iter().max_by_key(|(_, votes)| *votes).map(|(table, _)| table).ok_or(failure)
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
        assert_eq!(slots.masters, [("asked".to_owned(), 1), ("b".to_owned(), 2)]);
        for (slot, master) in [(0, 0), (5460, 0), (5461, 1), (10_923, 1), (16_383, 1)] {
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

    fn asked(answer: Option<Value>) -> Asked {
        let answer = async move {
            match answer {
                Some(answer) => Ok(answer),
                None => std::future::pending().await,
            }
        };
        Asked { host: "asked".to_owned(), answer: Box::pin(answer) }
    }

    #[tokio::test(start_paused = true)]
    async fn the_table_of_most_is_taken_and_a_silent_node_is_not_waited_for() {
        let old = || Some(Value::Array(vec![range(0, 16_383, "old", 1)]));
        let new = || Some(Value::Array(vec![range(0, 16_383, "new", 1)]));
        let began = tokio::time::Instant::now();
        let slots = agreed([old(), None, new(), new(), new()].map(asked).into()).await.unwrap();
        assert_eq!(slots.masters[0].0, "new");
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert_eq!(agreed([None, new(), None].map(asked).into()).await.unwrap(), slots);
        agreed([None, Some(Value::Nil)].map(asked).into()).await.unwrap_err();
    }

    #[test]
    fn a_command_goes_where_its_first_key_is() {
        let mut script = redis::cmd("EVALSHA");
        script.arg("sha").arg(2).arg("tb:alice").arg("merit:{tb:alice}").arg(7);
        assert_eq!(slot_of_command(&script), slot_of_agent("alice"));
        let mut plain = redis::cmd("HGETALL");
        plain.arg("merit:{tb:alice}");
        assert_eq!(slot_of_command(&plain), slot_of_agent("alice"));
        // Of the specification: an empty tag counts for nothing, and only the first pair counts.
        assert_eq!(slot_of_key(b"foo{}{bar}"), crc16(*b"foo{}{bar}") % SLOTS);
        assert_eq!(slot_of_key(b"foo{{bar}}zap"), crc16(*b"{bar") % SLOTS);
    }
}
