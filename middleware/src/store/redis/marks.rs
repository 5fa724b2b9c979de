//! Marks in a cluster: of every shard, that it holds our data, and how far that got.
//!
//! The masters of a cluster lose writes by themselves: a mark that stood on one server only would say
//! nothing of the others. So marks stand on all of them, one every 256 slots, and move with their slots.
//!
//! 1. A shard that lost everything has no mark, and one that went back has an older one: progress is
//!    the least of what the marks say, and none of a log that one of them does not name.
//! 2. A mark that is gone is made anew in the epoch of the others, without progress. It is another
//!    mark (`born`), which makes another life of the store.
//! 3. Progress is noted only on marks of the epoch that it was made in.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    sync::OnceLock,
};

use redis::{Cmd, Value};

use super::{
    cluster::{SLOTS, Slots, slot_of_tag},
    wire::text,
};

/// Marks in a cluster, one every [`SLOTS`] ÷ `MARKS` slots: every master of an even split over up to so
/// many holds one.
pub(super) const MARKS: usize = 64;

/// KEYS the mark; ARGV its epoch as it was read ('' when there is none), the epoch to give it.
const MAKE_LUA: &str = "\
if (redis.call('HGET', KEYS[1], 'epoch') or '') == ARGV[1] then
  local time = redis.call('TIME')
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'epoch', ARGV[2], 'born', time[1] .. '.' .. time[2])
end
return 1";

/// KEYS the mark; ARGV the epoch, then logs and offsets in turn.
const NOTE_LUA: &str = "\
if redis.call('HGET', KEYS[1], 'epoch') == ARGV[1] then
  redis.call('HSET', KEYS[1], unpack(ARGV, 2))
end
return 1";

/// What begins the name of a log in a mark.
const LOG: &str = "at:";

/// A key of one shard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Mark {
    pub(super) slot: u16,
    pub(super) key: String,
}

/// Returns the marks, in the order of their slots. They stay with their slots when those move.
pub(super) fn marks() -> &'static [Mark] {
    static FOUND: OnceLock<Vec<Mark>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let step = SLOTS / u16::try_from(MARKS).expect("few marks");
        let mut found: Vec<Option<Mark>> = vec![None; MARKS];
        // The least number that falls into each place: some 80,000 are tried, once.
        for number in 0_u32.. {
            let tag = number.to_string();
            let slot = slot_of_tag(&tag);
            let place = &mut found[usize::from(slot / step)];
            if slot.is_multiple_of(step) && place.is_none() {
                *place = Some(Mark { slot, key: format!("merit:mark:{{{tag}}}") });
                if found.iter().all(Option::is_some) {
                    break;
                }
            }
        }
        found.into_iter().flatten().collect()
    })
}

/// Returns the masters that hold no mark.
pub(super) fn unmarked(slots: &Slots) -> impl Iterator<Item = &(String, u16)> {
    let marked = |master: usize| marks().iter().any(|mark| slots.master(mark.slot) == master);
    slots.masters.iter().enumerate().filter(move |(at, _)| !marked(*at)).map(|(_, at)| at)
}

/// What the marks say together.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    /// The epoch of every mark, in order; empty where there is none.
    epochs: Vec<String>,
    /// Names these very marks.
    pub(super) born: u64,
}

/// Returns the command that reads a mark's epoch.
pub(super) fn read(mark: &Mark) -> Cmd {
    let mut command = redis::cmd("HMGET");
    command.arg(&mark.key).arg("epoch").arg("born");
    command
}

impl Said {
    pub(super) fn new(answers: &[Value]) -> Option<Self> {
        let mut epochs = Vec::with_capacity(answers.len());
        let mut born = DefaultHasher::new();
        for answer in answers {
            let Value::Array(pair) = answer else { return None };
            epochs.push(pair.first().and_then(text).unwrap_or_default().to_owned());
            pair.get(1).and_then(text).hash(&mut born);
        }
        Some(Self { epochs, born: born.finish() })
    }

    /// Returns the epoch, when any mark has one: the newest, should two tuners have begun at once.
    pub(super) fn epoch(&self) -> Option<&str> {
        self.epochs.iter().map(String::as_str).filter(|epoch| !epoch.is_empty()).max()
    }

    /// Returns the marks that are not of the epoch, with the commands that make them.
    pub(super) fn repairs(&self) -> Vec<(u16, Cmd)> {
        let Some(epoch) = self.epoch() else { return Vec::new() };
        let astray = marks().iter().zip(&self.epochs).filter(|(_, found)| *found != epoch);
        astray.map(|(mark, found)| (mark.slot, make(mark, found, epoch))).collect()
    }
}

/// Returns the command that gives a mark its epoch, unless that is no longer `found`.
fn make(mark: &Mark, found: &str, epoch: &str) -> Cmd {
    let mut command = redis::cmd("EVAL");
    command.arg(MAKE_LUA).arg(1).arg(&mark.key).arg(found).arg(epoch);
    command
}

/// Returns the commands that begin an epoch where there is none.
pub(super) fn begin(epoch: &str) -> Vec<(u16, Cmd)> {
    marks().iter().map(|mark| (mark.slot, make(mark, "", epoch))).collect()
}

/// Returns the commands that note progress.
pub(super) fn note(epoch: &str, progress: &[(String, u64)]) -> Vec<(u16, Cmd)> {
    let one = |mark: &Mark| {
        let mut command = redis::cmd("EVAL");
        command.arg(NOTE_LUA).arg(1).arg(&mark.key).arg(epoch);
        for (log, offset) in progress {
            command.arg(format!("{LOG}{log}")).arg(offset);
        }
        (mark.slot, command)
    };
    marks().iter().map(one).collect()
}

/// Returns the commands that read all marks whole.
pub(super) fn read_whole() -> Vec<(u16, Cmd)> {
    let one = |mark: &Mark| {
        let mut command = redis::cmd("HGETALL");
        command.arg(&mark.key);
        (mark.slot, command)
    };
    marks().iter().map(one).collect()
}

/// Returns the least progress of those marks; `None` when one cannot be read.
pub(super) fn least(answers: &[Value]) -> Option<Vec<(String, u64)>> {
    let mut least: BTreeMap<String, (u64, usize)> = BTreeMap::new();
    for answer in answers {
        let fields: Vec<(String, String)> = redis::from_redis_value(answer.clone()).ok()?;
        for (name, value) in fields {
            if let Some(log) = name.strip_prefix(LOG) {
                let offset: u64 = value.parse().ok()?;
                let (lowest, marks) = least.entry(log.to_owned()).or_insert((offset, 0));
                *lowest = offset.min(*lowest);
                *marks += 1;
            }
        }
    }
    let everywhere = least.into_iter().filter(|(_, (_, marks))| *marks == answers.len());
    Some(everywhere.map(|(log, (lowest, _))| (log, lowest)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_mark_every_256_slots() {
        let slots: Vec<u16> = marks().iter().map(|mark| mark.slot).collect();
        assert_eq!(slots, (0..64).map(|place| place * 256).collect::<Vec<u16>>());
        for Mark { slot, key } in marks() {
            let tag = key.split(['{', '}']).nth(1).unwrap();
            assert_eq!(slot_of_tag(tag), *slot, "{key}");
        }
    }

    fn texts(texts: &[&str]) -> Value {
        Value::Array(texts.iter().map(|text| Value::BulkString((*text).into())).collect())
    }

    #[test]
    fn progress_is_the_least_and_none_of_a_log_that_one_mark_does_not_name() {
        let marks = [
            texts(&["epoch", "e", "born", "1", "at:k/0", "70", "at:k/1", "9"]),
            texts(&["epoch", "e", "born", "2", "at:k/0", "60"]),
            texts(&["epoch", "e", "born", "3", "at:k/0", "80", "at:k/1", "9"]),
        ];
        assert_eq!(least(&marks), Some(vec![("k/0".to_owned(), 60)]));
        let emptied = [marks[0].clone(), texts(&["epoch", "e", "born", "4"])];
        assert_eq!(least(&emptied), Some(vec![]));
        assert_eq!(least(&[texts(&["at:k/0", "many"])]), None);
    }

    /// What [`MARKS`] marks answer, each `epoch` but for the one at `at`.
    fn said(epoch: &str, at: usize, other: &[&str]) -> Said {
        let mut answers = vec![texts(&[epoch, "1.5"]); MARKS];
        answers[at] = if other.is_empty() {
            Value::Array(vec![Value::Nil, Value::Nil])
        } else {
            texts(other)
        };
        Said::new(&answers).unwrap()
    }

    #[test]
    fn a_mark_that_is_gone_is_made_in_the_epoch_of_the_others_and_is_another() {
        let whole = said("e1", 7, &["e1", "1.5"]);
        assert!(whole.repairs().is_empty());
        let emptied = said("e1", 7, &[]);
        assert_eq!(emptied.epoch(), Some("e1"));
        let [(slot, _)] = &emptied.repairs()[..] else { panic!("{emptied:?}") };
        assert_eq!(*slot, 7 * 256);
        let mended = said("e1", 7, &["e1", "2.0"]);
        assert!(mended.repairs().is_empty());
        assert_ne!(mended.born, whole.born);
    }

    #[test]
    fn of_two_epochs_begun_at_once_the_newest_is_everybodys() {
        let two = said("e1", 0, &["e2", "1.5"]);
        assert_eq!(two.epoch(), Some("e2"));
        assert_eq!(two.repairs().len(), MARKS - 1);
        let none = Said::new(&vec![Value::Array(vec![Value::Nil, Value::Nil]); MARKS]).unwrap();
        assert_eq!((none.epoch(), none.repairs().len()), (None, 0));
    }

    fn range(first: i64, last: i64, host: &str) -> Value {
        let master = vec![Value::BulkString(host.into()), Value::Int(1)];
        Value::Array(vec![Value::Int(first), Value::Int(last), Value::Array(master)])
    }

    #[test]
    fn a_master_that_serves_less_than_the_space_between_two_marks_may_hold_none() {
        let between = [range(0, 9, "a"), range(10, 20, "b"), range(21, 16_383, "a")];
        let slots = Slots::read(&Value::Array(between.to_vec()), "").unwrap();
        assert_eq!(unmarked(&slots).collect::<Vec<_>>(), [&("b".to_owned(), 1)]);
    }
}
