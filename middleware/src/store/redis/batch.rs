//! What `spend.lua` is asked and what it answers: groups of equal requests, many in one call.
//!
//! A plan (buckets, limits, costs) is sent once per call however many groups share it. Everything is
//! packed as the script's `struct.unpack` reads it, little-endian; the first lines of `spend.lua` are
//! the specification.

use std::sync::Arc;

use redis::{Cmd, Value};

use super::wire::{integer, items, of_another_type, unsigned, write_bucket_key, write_record_key};
use crate::{
    AgentId,
    bucket::{Level, Limits, MAGNITUDE_MAX, MicroTokensPerSecond, NanoTokens, Tokens},
    store::{Decision, Held, Loan, StoreError, TAKES_MAX, Take, Verdict, memory::banned},
};

/// What the requests of one group ask.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Charges, one after the other.
    Take,
    /// One charge, and up to `most` further ones ahead of it.
    Lend { most: u32 },
    /// Charges that come back.
    GiveBack,
    /// Charges taken whether or not they are there.
    TakeMore,
    /// Charges refused elsewhere, to be counted by the buckets whose bit is set.
    Refuse { short: u32 },
}

impl Kind {
    /// The script's number for this kind, and its one argument.
    fn packed(self) -> (u8, u32) {
        match self {
            Self::Take => (1, 0),
            Self::Lend { most } => (2, most),
            Self::GiveBack => (3, 0),
            Self::TakeMore => (4, 0),
            Self::Refuse { short } => (5, short),
        }
    }
}

impl Kind {
    /// True for what somebody waits for.
    pub(super) fn is_asked(self) -> bool {
        matches!(self, Self::Take | Self::Lend { .. })
    }
}

/// Equal requests of one agent.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) agent: AgentId,
    pub(super) takes: Arc<[Take]>,
    pub(super) kind: Kind,
    /// How many; of [`Kind::Lend`] always one.
    pub(super) count: u32,
}

impl Group {
    /// Returns true when `other` may be counted into this group.
    pub(super) fn joins(&self, other: &Self) -> bool {
        let lends = matches!(self.kind, Kind::Lend { .. });
        self.kind == other.kind
            && !lends
            && self.agent == other.agent
            && (Arc::ptr_eq(&self.takes, &other.takes) || self.takes == other.takes)
            && self.count.checked_add(other.count).is_some()
    }
}

/// What became of a group.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The charges were decided.
    Spent(Spent),
    /// The agent is banned; nothing was touched.
    Banned { for_ms: u64 },
    /// Given back, taken or counted.
    Done,
    /// A key of this agent is of another type.
    NoHash,
    /// A charge was denied, and every bucket that may deny it holds enough for it.
    Unexplained,
}

/// The decision on the charges of a group.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Spent {
    /// How many of them passed: the first ones.
    pub(super) passed: u32,
    /// How many more were taken ahead.
    pub(super) ahead: u32,
    first: After,
    rest: Vec<After>,
}

/// One bucket after all charges of a group.
#[derive(Debug, PartialEq, Eq)]
struct After {
    tokens: NanoTokens,
    limits: Limits,
    /// How many charges it paid.
    paid: u32,
}

/// Returns the call that decides `groups`: `command` names the script.
pub(super) fn call<'a>(
    command: [&str; 2],
    groups: impl ExactSizeIterator<Item = &'a Group> + Clone,
) -> Cmd {
    // As much as nearly every call needs, at once: what grows bit by bit costs more than it holds.
    let keys = 2 * groups.len();
    let names: usize = groups.clone().map(|group| 2 * group.agent.as_str().len() + 14).sum();
    let mut call = Cmd::with_capacity(keys + 5, names + command[1].len() + 128);
    call.arg(&command).arg(keys);
    let mut key = String::new();
    let mut plans: Vec<&Arc<[Take]>> = Vec::new();
    let mut runs: Vec<(Header, u8)> = Vec::new();
    for group in groups {
        for written in [write_bucket_key, write_record_key] {
            key.clear();
            written(&group.agent, &mut key);
            call.arg(&key);
        }
        let same = |plan: &&Arc<[Take]>| Arc::ptr_eq(plan, &group.takes) || ***plan == *group.takes;
        let plan = plans.iter().position(same).unwrap_or_else(|| {
            plans.push(&group.takes);
            plans.len() - 1
        });
        let header = Header { kind: group.kind, plan, count: group.count };
        match runs.last_mut() {
            Some((last, groups)) if *last == header && *groups < u8::MAX => *groups += 1,
            _ => runs.push((header, 1)),
        }
    }
    let mut asked = Vec::with_capacity(runs.len() * Header::PACKED);
    runs.iter().for_each(|run| asked.extend_from_slice(&Header::packed(run)));
    call.arg(asked);
    for takes in plans {
        call.arg(packed(takes));
    }
    call
}

/// What is the same of all groups of a run.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Header {
    kind: Kind,
    plan: usize,
    count: u32,
}

impl Header {
    /// Bytes of a run.
    const PACKED: usize = 11;

    fn packed((header, groups): &(Self, u8)) -> [u8; Self::PACKED] {
        let (kind, more) = header.kind.packed();
        let plan = u8::try_from(header.plan + 1).expect("no more plans than groups in a call");
        let ([a, b, c, d], [e, f, g, h]) = (header.count.to_le_bytes(), more.to_le_bytes());
        [kind, plan, a, b, c, d, e, f, g, h, *groups]
    }
}

#[allow(clippy::cast_precision_loss, reason = "all three are below 2^53")]
fn packed(takes: &[Take]) -> Vec<u8> {
    debug_assert!((1..=TAKES_MAX).contains(&takes.len()));
    let mut packed = Vec::with_capacity(takes.len() * 40);
    for Take { bucket, cost } in takes {
        if !bucket.is_default {
            packed.extend_from_slice(bucket.name.as_str().as_bytes());
            packed.push(b'.');
        }
        packed.push(0);
        for number in [bucket.limits.capacity().get(), bucket.limits.refill().micro(), cost.get()] {
            packed.extend_from_slice(&(number as f64).to_le_bytes());
        }
        packed.push(u8::from(bucket.shadow));
    }
    packed
}

/// Reads the answer to [`call`]; `None` when it is not one.
pub(super) fn outcomes<'a>(
    groups: impl ExactSizeIterator<Item = &'a Group>,
    answer: &Value,
) -> Option<Vec<Outcome>> {
    let mut numbers = items(answer)?.iter();
    let mut all = Vec::with_capacity(groups.len());
    for group in groups {
        all.push(outcome(group, &mut numbers)?);
    }
    numbers.next().is_none().then_some(all)
}

/// Numbers where no level is are marks: of a banned agent, and of one whose keys are of another type.
const BANNED: i64 = -MAGNITUDE_MAX - 1;
const NO_HASH: i64 = -MAGNITUDE_MAX - 2;

/// Mark of a decision: plus twice how many passed, plus one for limits of its own.
const PASSED: i64 = MAGNITUDE_MAX + 1;

fn outcome(group: &Group, numbers: &mut std::slice::Iter<'_, Value>) -> Option<Outcome> {
    let first = integer(numbers.as_slice().first()?)?;
    let marked = !(-MAGNITUDE_MAX..=MAGNITUDE_MAX).contains(&first);
    if marked || !group.kind.is_asked() {
        numbers.next();
    }
    if first == NO_HASH {
        return Some(Outcome::NoHash);
    }
    if !group.kind.is_asked() {
        return (first == 0).then_some(Outcome::Done);
    }
    if first == BANNED {
        return Some(Outcome::Banned { for_ms: unsigned(numbers.next()?)? });
    }
    let up_to = |most: u32, number: u64| u32::try_from(number).ok().filter(|n| *n <= most);
    let (passed, own) = if marked {
        let decided = u64::try_from(first.checked_sub(PASSED)?).ok()?;
        (up_to(group.count, decided / 2)?, decided % 2 == 1)
    } else {
        (group.count, false)
    };
    let ahead = match group.kind {
        Kind::Lend { .. } if !marked => return None,
        Kind::Lend { most } => up_to(most, unsigned(numbers.next()?)?)?,
        _ => 0,
    };
    let mut after = group.takes.iter().map(|Take { bucket, .. }| {
        let tokens = integer(numbers.next()?)?;
        let tokens =
            (-MAGNITUDE_MAX..=MAGNITUDE_MAX).contains(&tokens).then_some(NanoTokens(tokens))?;
        let limits = if own {
            let capacity = Tokens::new(unsigned(numbers.next()?)?).ok()?;
            Limits::new(capacity, MicroTokensPerSecond::new(unsigned(numbers.next()?)?).ok()?)
        } else {
            bucket.limits
        };
        let paid = match bucket.shadow {
            true => up_to(passed, unsigned(numbers.next()?)?)?,
            false => passed,
        };
        Some(After { tokens, limits, paid })
    });
    let first = after.next()??;
    let rest = after.collect::<Option<_>>()?;
    let spent = Spent { passed, ahead, first, rest };
    // The server says who passed and what is left, each for itself: it is outside, and may disagree
    // with our own arithmetic.
    Some(match passed == group.count || spent.explains_denials(&group.takes) {
        true => Outcome::Spent(spent),
        false => Outcome::Unexplained,
    })
}

impl Outcome {
    /// Returns the answer to the group's request at `index`, from 0.
    pub(super) fn loan(&self, group: &Group, index: u32) -> Result<Loan, StoreError> {
        match self {
            Self::Spent(spent) => {
                Ok(Loan { verdict: spent.verdict(&group.takes, index), ahead: spent.ahead })
            }
            Self::Banned { for_ms } => {
                Ok(Loan { verdict: banned(&group.takes, *for_ms), ahead: 0 })
            }
            Self::NoHash => Err(of_another_type()),
            Self::Unexplained => {
                let what = "a refusal although every bucket holds enough".to_owned();
                Err(StoreError::Malformed { what })
            }
            Self::Done => unreachable!("nobody waits for a settlement"),
        }
    }

    /// Returns the tokens that the default bucket gave to the group; below 0 when they came back.
    pub(super) fn taken(&self, group: &Group) -> i64 {
        let default = group.takes.iter().position(|take| take.bucket.is_default);
        let Some(at) = default else { return 0 };
        let charges = match (self, group.kind) {
            (Self::Spent(spent), _) => {
                let after = if at == 0 { &spent.first } else { &spent.rest[at - 1] };
                i64::from(after.paid) + i64::from(spent.ahead)
            }
            (Self::Done, Kind::GiveBack) => -i64::from(group.count),
            (Self::Done, Kind::TakeMore) => i64::from(group.count),
            _ => 0,
        };
        let cost = group.takes[at].cost.get().cast_signed();
        // At most 2^33 charges of at most 2^24 tokens.
        charges * cost
    }

    /// Returns the verdict on the first of the group's charges that was denied.
    pub(super) fn refusal(&self, group: &Group) -> Option<Verdict> {
        match self {
            Self::Spent(spent) if spent.passed < group.count => {
                Some(spent.verdict(&group.takes, spent.passed))
            }
            _ => None,
        }
    }
}

impl Spent {
    /// Returns true when some bucket that may deny one of `takes` holds too little for it.
    fn explains_denials(&self, takes: &[Take]) -> bool {
        let denied = self.verdict(takes, self.passed);
        denied.held().zip(takes).any(|(held, take)| held.short && !take.bucket.shadow)
    }

    /// Returns what the request at `index` would have been told, had it come alone and in its turn.
    fn verdict(&self, takes: &[Take], index: u32) -> Verdict {
        let admitted = index < self.passed;
        let mut wait_ms = Some(0);
        let mut held = std::iter::once(&self.first).chain(&self.rest).zip(takes).map(
            |(After { tokens, limits, paid }, Take { bucket, cost })| {
                let (mut tokens, mut short) = (*tokens, false);
                if !admitted {
                    let level = Level { tokens, ..Level::full(*limits, 0) };
                    short = !level.affords(*cost);
                    if short && !bucket.shadow {
                        let wait = level.wait_ms(*cost);
                        wait_ms = wait_ms.zip(wait).map(|(a, b): (u64, u64)| a.max(b));
                    }
                } else if index < *paid {
                    // The requests behind it had not yet been paid.
                    let later = i64::from(paid - 1 - index).saturating_mul(cost.nano().0);
                    tokens.0 = tokens.0.saturating_add(later);
                } else {
                    short = true;
                }
                Held { limits: *limits, tokens, short }
            },
        );
        let first = held.next().expect("a charge touches at least one bucket");
        let rest = held.collect();
        let decision = if admitted { Decision::Admitted } else { Decision::Denied { wait_ms } };
        Verdict { decision, first, rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bucket::BucketName, store::BucketRule};

    /// Two requests, each for 10 tokens of a bucket of 40.
    fn group(shadow: bool) -> Group {
        let limits = Limits::per_second(1.0, 40).unwrap();
        let name = BucketName::new("b").unwrap();
        let rule = BucketRule { name, is_default: true, limits, shadow };
        let takes = Arc::from([Take { bucket: rule, cost: Tokens::new(10).unwrap() }]);
        Group { agent: AgentId::new("a1").unwrap(), takes, kind: Kind::Take, count: 2 }
    }

    fn read(group: &Group, numbers: &[i64]) -> Outcome {
        let answer = Value::Array(numbers.iter().copied().map(Value::Int).collect());
        outcomes([group].into_iter(), &answer).unwrap().remove(0)
    }

    #[test]
    fn a_refusal_that_no_bucket_explains_is_an_error_and_no_verdict() {
        let nano = 1_000_000_000;
        // One passed, and 5 tokens are left; or, so it says, 10, which the other would have got.
        let honest = read(&group(false), &[PASSED + 2, 5 * nano]);
        let loan = honest.loan(&group(false), 1).unwrap();
        assert!(matches!(loan.verdict.decision, Decision::Denied { wait_ms: Some(5_000) }));
        assert!(loan.verdict.held().any(|held| held.short));
        for (group, numbers) in [
            (group(false), &[PASSED + 2, 10 * nano][..]),
            // A bucket that is only watched denies nobody.
            (group(true), &[PASSED + 2, 5 * nano, 1]),
        ] {
            let outcome = read(&group, numbers);
            for index in 0..group.count {
                let error = outcome.loan(&group, index).unwrap_err();
                assert!(matches!(error, StoreError::Malformed { .. }), "{error}");
            }
            assert!(outcome.refusal(&group).is_none());
        }
    }

    #[test]
    fn a_level_is_no_mark_and_a_mark_no_level() {
        let spent = |numbers: &[i64]| match read(&group(false), numbers) {
            Outcome::Spent(spent) => (spent.passed, spent.first.tokens.0, spent.first.limits),
            other => panic!("{other:?}"),
        };
        let configured = group(false).takes[0].bucket.limits;
        for level in [-MAGNITUDE_MAX, -2, -1, 0, 1, MAGNITUDE_MAX] {
            assert_eq!(spent(&[level]), (2, level, configured));
        }
        assert_eq!(spent(&[PASSED, 0]), (0, 0, configured));
        let own = Limits::per_second(3.0, 50).unwrap();
        assert_eq!(spent(&[PASSED + 5, 7, 50, 3_000_000]), (2, 7, own));
        assert_eq!(read(&group(false), &[BANNED, 9]), Outcome::Banned { for_ms: 9 });
        assert_eq!(read(&group(false), &[NO_HASH]), Outcome::NoHash);
    }

    #[test]
    fn what_the_script_cannot_have_said_is_no_answer() {
        let lends = Group { kind: Kind::Lend { most: 3 }, count: 1, ..group(false) };
        let counts = Group { kind: Kind::GiveBack, ..group(false) };
        for (group, numbers) in [
            (group(false), &[][..]),
            (group(false), &[i64::MIN]),
            (group(false), &[i64::MAX, 0]),
            // Three of two passed; one level too many; a level that is none.
            (group(false), &[PASSED + 6, 0]),
            (group(false), &[0, 0]),
            (group(false), &[PASSED + 2, MAGNITUDE_MAX + 1]),
            (lends.clone(), &[0]),
            (lends, &[PASSED + 2, 4, 0]),
            (counts.clone(), &[1]),
            (counts, &[PASSED]),
        ] {
            let answer = Value::Array(numbers.iter().copied().map(Value::Int).collect());
            assert_eq!(outcomes([&group].into_iter(), &answer), None, "{numbers:?}");
        }
    }

    #[test]
    fn groups_that_ask_alike_are_one_run() {
        let other = Group { kind: Kind::GiveBack, ..group(false) };
        let all = [vec![group(false); 300], vec![other, group(false)]].concat();
        let packed = call(["EVALSHA", "hash"], all.iter()).get_packed_command();
        let run = |kind: u8, groups: u8| [kind, 1, 2, 0, 0, 0, 0, 0, 0, 0, groups];
        let runs = [run(1, 255), run(1, 45), run(3, 1), run(1, 1)].concat();
        assert!(packed.windows(runs.len()).any(|bytes| bytes == runs));
    }
}
