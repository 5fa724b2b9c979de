//! The streams as a leased log.

use super::{
    config::Config,
    link::{Call, Link, Lua},
};
use crate::bus::{
    BusError, Cause, Partition,
    leased::{Bounds, Letter, Log, Read, Reader, Record, Whole, source_name},
};
use crate::trace::TraceContext;
use redis::{Value, from_redis_value};
use std::time::Duration;

/// How long a command may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(2);
/// How long an empty read waits at the server, in milliseconds: a new partition waits for it.
const BLOCK_MS: u64 = 100;
/// The dead letters that are kept, about.
const DEAD_KEPT: usize = 10_000;
/// Ids are milliseconds and a count within them, for which this many bits are kept of an offset.
const COUNT_BITS: u32 = 20;
const COUNT_MAX: u64 = (1 << COUNT_BITS) - 1;
/// The first millisecond that no offset has room for: in the year 2527.
pub(super) const MS_END: u64 = (u64::MAX >> COUNT_BITS) + 1;
/// The records that one millisecond has room for.
pub(super) const COUNT_END: u64 = COUNT_MAX + 1;

/// The keys of a log.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    topic: String,
}

impl Keys {
    pub(super) fn new(topic: &str) -> Self {
        Self { topic: topic.to_owned() }
    }

    pub(super) fn stream(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}", self.topic)
    }

    pub(super) fn count(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:count", self.topic)
    }

    fn lease(&self, partition: Partition) -> String {
        format!("{}:{{{partition}}}:lease", self.topic)
    }

    pub(super) fn meta(&self) -> String {
        format!("{}:meta", self.topic)
    }

    fn members(&self) -> String {
        format!("{}:members", self.topic)
    }

    fn dead(&self) -> String {
        format!("{}:dead", self.topic)
    }
}

/// Ratings on Redis Streams.
pub(in crate::bus) struct Streams {
    link: Link,
    /// Reads wait at the server, and hold up what comes after them on their connection.
    reads: Link,
    address: String,
    keys: Keys,
    partitions: u32,
    join: Lua,
    claim: Lua,
    release: Lua,
    bounds: Lua,
    commit: Lua,
    renew: Lua,
    go_on: Lua,
}

impl Streams {
    pub(super) fn new(config: &Config) -> Result<Self, BusError> {
        let link = Link::new(config.client()?, DEADLINE);
        Ok(Self {
            address: link.address(),
            link,
            reads: Link::new(config.client()?, DEADLINE),
            keys: Keys::new(&config.topic),
            partitions: config.partitions,
            join: Lua::new(include_str!("join.lua")),
            claim: Lua::new(include_str!("claim.lua")),
            release: Lua::new(include_str!("release.lua")),
            bounds: Lua::new(include_str!("bounds.lua")),
            commit: Lua::new(include_str!("commit.lua")),
            renew: Lua::new(include_str!("renew.lua")),
            go_on: Lua::new(include_str!("go_on.lua")),
        })
    }
}

impl Log for Streams {
    type Reader = StreamReader;

    fn address(&self) -> &str {
        &self.address
    }

    fn reader(&self) -> StreamReader {
        StreamReader { link: self.reads.clone(), keys: self.keys.clone() }
    }

    async fn look(&self) -> Result<(String, u32), Cause> {
        let meta = self.keys.meta();
        let mut named = redis::cmd("HSETNX");
        named.arg(&meta).arg("source").arg(source_name());
        let field = |name| {
            let mut command = redis::cmd("HGET");
            command.arg(&meta).arg(name);
            command
        };
        let commands = vec![named, field("source"), field("partitions")];
        let mut answers = self.link.ask_all(commands).await?.into_iter().skip(1);
        let mut answer = || answers.next().unwrap_or(Value::Nil);
        let source: String = from_redis_value(answer())?;
        let partitions: Option<u32> = from_redis_value(answer())?;
        Ok((source, partitions.unwrap_or(0).max(self.partitions)))
    }

    async fn join(&self, me: &str, lease: Duration) -> Result<Whole, Cause> {
        let call = Call::keys([self.keys.meta(), self.keys.members()])
            .arg(me)
            .arg(lease.as_millis())
            .arg(source_name())
            .arg(self.partitions);
        let answer = self.link.run_one(&self.join, call).await?;
        let (source, partitions, mut members): (String, u32, Vec<String>) =
            from_redis_value(answer)?;
        members.sort_unstable();
        Ok(Whole { source, partitions, members })
    }

    async fn claim(
        &self,
        me: &str,
        partitions: &[Partition],
        lease: Duration,
    ) -> Result<Vec<Partition>, Cause> {
        let call = Call::keys(partitions.iter().map(|partition| self.keys.lease(*partition)))
            .arg(me)
            .arg(lease.as_millis());
        let mine: Vec<bool> = from_redis_value(self.link.run_one(&self.claim, call).await?)?;
        let ours = partitions.iter().zip(mine).filter_map(|(p, mine)| mine.then_some(*p));
        Ok(ours.collect())
    }

    async fn release(&self, me: &str, partitions: &[Partition], leaves: bool) -> Result<(), Cause> {
        let leases = partitions.iter().map(|partition| self.keys.lease(*partition));
        let call = Call::keys([self.keys.members()].into_iter().chain(leases))
            .arg(me)
            .arg(u8::from(leaves));
        self.link.run_one(&self.release, call).await.map(drop)
    }

    async fn bounds(&self, partitions: &[Partition]) -> Result<Vec<Result<Bounds, Cause>>, Cause> {
        let call = |partition: &Partition| {
            let (stream, count) = (self.keys.stream(*partition), self.keys.count(*partition));
            Call::keys([stream, count, self.keys.meta()]).arg(partition)
        };
        let calls: Vec<Call> = partitions.iter().map(call).collect();
        let answers = self.link.run(&self.bounds, &calls).await?;
        let bounds = |answer: Value| -> Result<Bounds, Cause> {
            type Found = (String, String, String, u64, u64, String);
            let (first, number, last, count, unread, committed): Found =
                from_redis_value(answer.extract_error()?)?;
            let end = if last.is_empty() { 0 } else { offset(&last)? + 1 };
            let start = match (first.as_str(), number.as_str()) {
                // Nothing was removed yet, so it begins where every log does.
                (_, "1") => 0,
                ("", _) if count == 0 => 0,
                ("", _) => end,
                (first, _) => offset(first)?,
            };
            let committed =
                if committed.is_empty() { None } else { Some(committed.parse::<u64>()?) };
            Ok(Bounds { start, end, newest: count, unread, committed, anew: false })
        };
        Ok(answers.into_iter().map(bounds).collect())
    }

    async fn go_on(&self, partition: Partition, next: u64) -> Result<bool, Cause> {
        let Some(last) = next.checked_sub(1) else { return Ok(true) };
        let call =
            Call::keys([self.keys.stream(partition)]).arg(id(last)).arg((last >> COUNT_BITS) + 1);
        Ok(from_redis_value(self.link.run_one(&self.go_on, call).await?)?)
    }

    async fn renew(&self, source: &str, lost: &[Partition]) -> Result<(), Cause> {
        let call = Call::keys([self.keys.meta()]).arg(source).arg(source_name());
        let call = lost.iter().fold(call, Call::arg);
        self.link.run_one(&self.renew, call).await.map(drop)
    }

    async fn commit(
        &self,
        me: &str,
        source: &str,
        positions: &[(Partition, u64)],
    ) -> Result<(), Cause> {
        let of = |(partition, _): &(Partition, u64)| {
            [self.keys.lease(*partition), self.keys.stream(*partition)]
        };
        let keys = [self.keys.meta()].into_iter().chain(positions.iter().flat_map(of));
        let mut call = Call::keys(keys).arg(me).arg(source);
        for (partition, next) in positions {
            call = call.arg(partition).arg(next).arg(id(*next));
        }
        self.link.run_one(&self.commit, call).await.map(drop)
    }

    async fn put_aside(&self, letter: &Letter<'_>) -> Result<(), Cause> {
        let mut command = redis::cmd("XADD");
        command.arg(self.keys.dead()).arg("MAXLEN").arg("~").arg(DEAD_KEPT).arg("*");
        command.arg("reason").arg(letter.reason).arg("partition").arg(letter.partition.0);
        command.arg("id").arg(id(letter.offset)).arg("rating").arg(letter.payload);
        self.link.ask_all(vec![command]).await.map(drop)
    }
}

/// Reads streams; it waits at the server until there is something.
pub(in crate::bus) struct StreamReader {
    link: Link,
    keys: Keys,
}

impl Reader for StreamReader {
    async fn read(&mut self, from: &[(Partition, u64)], max: usize) -> Result<Read, Cause> {
        let each = (max / from.len().max(1)).max(1);
        let mut read = redis::cmd("XREAD");
        read.arg("COUNT").arg(each).arg("BLOCK").arg(BLOCK_MS).arg("STREAMS");
        for (partition, _) in from {
            read.arg(self.keys.stream(*partition));
        }
        for (_, next) in from {
            // The server gives what is after an id.
            read.arg(id(next.saturating_sub(1)));
        }
        // Asked after the records: had the log been lost before, it would have another name by now,
        // or none.
        let mut name = redis::cmd("HGET");
        name.arg(self.keys.meta()).arg("source");
        let mut answers = self.link.ask_all(vec![read, name]).await?.into_iter();
        let (streams, source) = (answers.next(), answers.next());
        let source: Option<String> = from_redis_value(source.unwrap_or(Value::Nil))?;
        let (mut records, mut faults) = (Vec::new(), Vec::new());
        for (stream, entries) in pairs(streams.unwrap_or(Value::Nil)) {
            let stream: String = from_redis_value(stream)?;
            let of = |(partition, _): &&(Partition, u64)| self.keys.stream(*partition) == stream;
            let Some((partition, _)) = from.iter().find(of) else { continue };
            let Value::Array(entries) = entries else { continue };
            let mut sound = Vec::with_capacity(entries.len());
            for entry in entries {
                match record(entry) {
                    Ok(record) => sound.push(record),
                    Err(error) => {
                        // What comes before it is handed out first.
                        if sound.is_empty() {
                            faults.push((*partition, error));
                        }
                        break;
                    }
                }
            }
            records.push((*partition, sound));
        }
        // Ids come from the clock: none is given twice.
        let lost = Vec::new();
        Ok(Read { source: source.unwrap_or_default(), records, faults, lost })
    }
}

/// Returns the pairs of an answer that is a list of pairs, or, as RESP3 has it, a map.
fn pairs(answer: Value) -> Vec<(Value, Value)> {
    match answer {
        Value::Map(pairs) => pairs,
        Value::Array(pairs) => pairs
            .into_iter()
            .filter_map(|pair| match pair {
                Value::Array(pair) => <[Value; 2]>::try_from(pair).ok().map(|[a, b]| (a, b)),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    }
}

fn record(entry: Value) -> Result<Record, Cause> {
    let (id, fields): (String, Vec<Vec<u8>>) = from_redis_value(entry)?;
    let offset = offset(&id)?;
    let taken_ms = offset >> COUNT_BITS;
    let mut record = Record { offset, number: None, taken_ms, payload: None, trace: None };
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match name.as_slice() {
            b"rating" => record.payload = Some(value),
            b"traceparent" => {
                record.trace = std::str::from_utf8(&value).ok().and_then(TraceContext::parse);
            }
            b"n" => record.number = String::from_utf8_lossy(&value).parse().ok(),
            _ => {}
        }
    }
    Ok(record)
}

/// Returns the offset of the entry `id`.
fn offset(id: &str) -> Result<u64, Cause> {
    let (ms, count) = id.split_once('-').unwrap_or((id, "0"));
    let (ms, count): (u64, u64) = (ms.parse()?, count.parse()?);
    if ms > u64::MAX >> COUNT_BITS || count > COUNT_MAX {
        return Err(format!(
            "id {id} was not given by the server: write with XADD … *, and delete the stream or give \
             [bus] topic another name"
        )
        .into());
    }
    Ok(ms << COUNT_BITS | count)
}

/// Returns the id of the entry at `offset`.
fn id(offset: u64) -> String {
    format!("{}-{}", offset >> COUNT_BITS, offset & COUNT_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn offsets_are_ordered_as_ids_are(
            a in (0..u64::MAX >> COUNT_BITS, 0..=COUNT_MAX),
            b in (0..u64::MAX >> COUNT_BITS, 0..=COUNT_MAX),
        ) {
            let of = |(ms, count)| offset(&format!("{ms}-{count}")).unwrap();
            prop_assert_eq!(of(a).cmp(&of(b)), a.cmp(&b));
            prop_assert_eq!(id(of(a)), format!("{}-{}", a.0, a.1));
        }
    }

    #[test]
    fn an_id_that_no_server_gives_is_refused() {
        for id in ["", "x-1", "1-x", "18446744073709551615-0", "1-1048576"] {
            assert!(offset(id).is_err(), "{id}");
        }
    }
}
