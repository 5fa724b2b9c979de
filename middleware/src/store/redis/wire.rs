//! What is sent to Redis and what comes back: keys, arguments, replies.

use redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use crate::{
    AgentId,
    bucket::{Limits, MicroTokensPerSecond, NanoTokens, Tokens},
    store::{Demand, Quote, Record, StoreError, Traded, Written},
};

pub(super) fn bucket_key(agent: &AgentId) -> String {
    key(write_bucket_key, agent)
}

pub(super) fn record_key(agent: &AgentId) -> String {
    key(write_record_key, agent)
}

pub(super) fn write_bucket_key(agent: &AgentId, key: &mut String) {
    key.push_str("tb:");
    key.push_str(agent.as_str());
}

/// The braces put the record into the same cluster slot as the bucket.
pub(super) fn write_record_key(agent: &AgentId, key: &mut String) {
    key.push_str("merit:{tb:");
    key.push_str(agent.as_str());
    key.push('}');
}

fn key(write: fn(&AgentId, &mut String), agent: &AgentId) -> String {
    let mut key = String::new();
    write(agent, &mut key);
    key
}

pub(super) fn malformed(answer: &Value) -> StoreError {
    let mut what = format!("{answer:?}");
    what.truncate(what.floor_char_boundary(200));
    StoreError::Malformed { what }
}

pub(super) fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Int(number) => Some(*number),
        _ => None,
    }
}

pub(super) fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

pub(super) fn items(value: &Value) -> Option<&[Value]> {
    match value {
        Value::Array(items) => Some(items),
        _ => None,
    }
}

pub(super) fn unsigned(value: &Value) -> Option<u64> {
    u64::try_from(integer(value)?).ok()
}

/// Reads limits as an operator or the sidecar wrote them; [`crate::bucket`] has the ranges.
fn limits_from_text(capacity: Option<&str>, rate: Option<&str>) -> Option<Limits> {
    let capacity: f64 = capacity?.parse().ok()?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: `as` saturates"
    )]
    let capacity = (capacity >= 0.0).then_some(capacity as u64)?;
    Limits::per_second(rate?.parse().ok()?, capacity).ok()
}

/// The agent whose record stands under a key; `None` when the key is not of our making.
pub(super) fn agent_of_record(key: &str) -> Option<AgentId> {
    AgentId::new(key.strip_prefix("merit:{tb:")?.strip_suffix('}')?).ok()
}

/// What the keys of all records match, for `SCAN`.
pub(super) const RECORDS: &str = "merit:{tb:*}";

/// The field of a bucket's level: six little-endian doubles, of which the first is the level and the
/// third and fourth count what was admitted and denied. `spend.lua` has the others.
pub(in crate::store) const HELD: &str = "held";

pub(super) fn demand(held: &Value) -> Demand {
    let Value::BulkString(bytes) = held else { return Demand::default() };
    let (numbers, rest) = bytes.as_chunks::<8>();
    #[allow(
        clippy::cast_possible_truncation,
        reason = "`as` saturates, and the scripts write whole numbers below 2^53"
    )]
    let whole = |bytes: &[u8; 8]| f64::from_le_bytes(*bytes) as i64;
    let count = |bytes| u64::try_from(whole(bytes)).unwrap_or(0);
    match (numbers, rest) {
        ([level, _, admitted, denied, _, _], []) => Demand {
            admitted: count(admitted),
            denied: count(denied),
            left: NanoTokens(whole(level)).whole(),
        },
        _ => Demand::default(),
    }
}

/// Reads what `trade.lua` replies. A quote that cannot be read is none: whoever leads posts another.
pub(super) fn traded(answer: &Value) -> Option<Traded> {
    let [leads, price, use_share] = items(answer)? else { return None };
    let number = |value| text(value).and_then(|number| number.parse().ok());
    let quote = number(price).zip(number(use_share));
    let quote = quote.map(|(price, use_share)| Quote { price, use_share });
    Some(Traded { leads: integer(leads)? == 1, quote: quote.filter(Quote::is_sound) })
}

pub(super) const APPLIED: &str = "applied:";

pub(super) const SEEN: &str = "seen:";

pub(super) fn record(fields: &Value, bucket: &Value) -> Option<Record> {
    let [capacity, rate, held, banned] = items(bucket)? else { return None };
    let mut record = Record {
        limits: limits_from_text(text(capacity), text(rate)),
        demand: demand(held),
        ..Record::default()
    };
    // The bucket's field is what requests are held to; the record has it for when the bucket is gone.
    let ban = |value: &str| value.parse().ok().filter(|until| *until > 0);
    let in_bucket = text(banned).map(ban);
    let mut in_record = None;
    let mut written = None;
    let pairs: Vec<(&Value, &Value)> = match fields {
        Value::Array(flat) => flat.chunks_exact(2).map(|pair| (&pair[0], &pair[1])).collect(),
        Value::Map(pairs) => pairs.iter().map(|(name, value)| (name, value)).collect(),
        _ => return None,
    };
    for (name, value) in pairs {
        let (name, value) = (text(name)?, text(value)?);
        match name {
            "rev" => record.rev = value.parse().ok()?,
            "written" => {
                let (capacity, rate) = value.split_once(' ')?;
                written = limits_from_text(Some(capacity), Some(rate));
            }
            "state" => value.clone_into(&mut record.state),
            "banned_until" => in_record = ban(value),
            _ => {
                if let Some(source) = name.strip_prefix(APPLIED) {
                    record.applied.push((source.to_owned(), value.parse().ok()?));
                } else if let Some(slot) = name.strip_prefix(SEEN) {
                    record.seen.push((slot.to_owned(), value.to_owned()));
                }
            }
        }
    }
    // An expired bucket is not an operator's doing: the record's limits are still the agent's.
    record.operator = record.limits.is_some() && record.limits != written;
    record.limits = record.limits.or(written);
    record.banned_until_ms = in_bucket.unwrap_or(in_record);
    Some(record)
}

/// Reads what `set_limits.lua` replies.
pub(super) fn written(answer: &Value) -> Option<Written> {
    match items(answer)? {
        [Value::Int(0)] => Some(Written::Stale),
        [Value::Int(1), rev, held] => {
            Some(Written::Done { rev: unsigned(rev)?, demand: demand(held) })
        }
        [Value::Int(2), capacity, rate] => {
            let half = |value: &Value| integer(value).map(|number| u64::try_from(number).ok());
            Some(Written::Operator {
                capacity: half(capacity)?.map(Tokens::new).transpose().ok()?,
                refill: half(rate)?.map(MicroTokensPerSecond::new).transpose().ok()?,
            })
        }
        _ => None,
    }
}

pub(super) fn is_fault(answer: &Value) -> bool {
    matches!(answer, Value::ServerError(_))
}

/// A key of another type under an agent's name is that agent's trouble. Servers before 7 put the
/// code of an error within a script behind a code of their own.
pub(super) fn is_wrong_type(error: &RedisError) -> bool {
    error.code() == Some("WRONGTYPE") || error.to_string().contains("WRONGTYPE")
}

pub(super) fn of_another_type() -> StoreError {
    StoreError::Malformed { what: "a key that is no hash".to_owned() }
}

pub(super) fn is_no_script(error: &RedisError) -> bool {
    error.kind() == ErrorKind::Server(ServerErrorKind::NoScript)
}
