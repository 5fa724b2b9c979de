//! Buckets in this process: for tests, for one node, and for the node-local fallback.
//!
//! Bounded: beyond [`MemoryStore::AGENTS_MAX`] agents the one that spent least recently is
//! forgotten, and starts anew with a full bucket when it comes back. Nothing survives the process.

mod tune;

use std::{
    borrow::Borrow,
    collections::BTreeMap,
    future::{Ready, ready},
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher},
    num::NonZeroUsize,
    sync::{Arc, Mutex, MutexGuard, PoisonError, atomic::AtomicU64},
    time::{SystemTime, UNIX_EPOCH},
};

use lru::LruCache;
use tokio::time::Instant;

use super::{
    BucketRule, Charge, Decision, Direction, Document, Held, Lend, Loan, Settlement, Spend,
    StoreError, Take, Verdict, market::Market,
};
use crate::{
    AgentId,
    bucket::{BucketName, Level, Limits, Tokens},
};

/// A power of two, so that a shard is picked by a mask; enough that two cores seldom meet.
const SHARDS: usize = 64;

/// Buckets in this process's memory, shared by clones.
#[derive(Clone)]
pub struct MemoryStore {
    inner: Arc<Inner>,
}

struct Shard {
    /// By name, the one that spent last in front.
    agents: LruCache<Hashed, Entry, BuildHasherDefault<Known>>,
    /// Tokens that default buckets gave here, less those that came back.
    used: i64,
}

/// An agent with the hash of its name, which is computed once: it picks the shard and the place there.
struct Hashed {
    hash: u64,
    agent: AgentId,
}

/// The same of an agent that is looked for: nothing is counted up for a look.
struct Sought<'a> {
    hash: u64,
    agent: &'a AgentId,
}

impl Sought<'_> {
    fn owned(&self) -> Hashed {
        Hashed { hash: self.hash, agent: self.agent.clone() }
    }
}

/// What the two have in common, for the map to find one by the other.
trait Name {
    fn hash(&self) -> u64;
    fn agent(&self) -> &AgentId;
}

impl Name for Hashed {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn agent(&self) -> &AgentId {
        &self.agent
    }
}

impl Name for Sought<'_> {
    fn hash(&self) -> u64 {
        self.hash
    }

    fn agent(&self) -> &AgentId {
        self.agent
    }
}

impl Hash for dyn Name + '_ {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(Name::hash(self));
    }
}

impl PartialEq for dyn Name + '_ {
    fn eq(&self, other: &Self) -> bool {
        Name::hash(self) == Name::hash(other) && self.agent() == other.agent()
    }
}

impl Eq for dyn Name + '_ {}

impl<'a> Borrow<dyn Name + 'a> for Hashed {
    fn borrow(&self) -> &(dyn Name + 'a) {
        self
    }
}

impl Hash for Hashed {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl PartialEq for Hashed {
    fn eq(&self, other: &Self) -> bool {
        (self as &dyn Name) == (other as &dyn Name)
    }
}

impl Eq for Hashed {}

/// Passes on a hash that is known already.
#[derive(Default)]
struct Known(u64);

impl Hasher for Known {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a hashed agent writes one number");
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

struct Inner {
    shards: Box<[Mutex<Shard>]>,
    hasher: foldhash::quality::RandomState,
    started: Instant,
    started_unix_ms: u64,
    epoch: Mutex<Option<String>>,
    progress: Mutex<BTreeMap<String, u64>>,
    market: Mutex<Market>,
    document: Mutex<Document>,
    /// The most that was ever told of as used.
    used: AtomicU64,
}

/// All that is known of one agent.
#[derive(Default)]
struct Entry {
    default: Slot,
    named: Vec<(BucketName, Slot)>,
    banned_until_ms: u64,
    record: Option<Box<Kept>>,
}

/// One bucket: limits of its own, if it has any, and its level, once something was spent.
#[derive(Default)]
struct Slot {
    limits: Option<Limits>,
    level: Option<Level>,
}

#[derive(Default)]
struct Kept {
    rev: u64,
    written: Option<Limits>,
    /// Limits of named buckets, as they were written last.
    named: BTreeMap<BucketName, Limits>,
    state: String,
    applied: BTreeMap<String, u64>,
    seen: BTreeMap<String, String>,
}

impl Entry {
    fn slot(&mut self, bucket: &BucketRule) -> &mut Slot {
        if bucket.is_default { &mut self.default } else { self.named(&bucket.name) }
    }

    fn named(&mut self, name: &BucketName) -> &mut Slot {
        let found = self.named.iter().position(|(named, _)| named == name);
        let index = found.unwrap_or_else(|| {
            self.named.push((name.clone(), Slot::default()));
            self.named.len() - 1
        });
        &mut self.named[index].1
    }

    /// Returns the tokens that the default bucket counts as admitted: below 2^53.
    fn admitted(&self) -> i64 {
        self.default.level.map_or(0, |level| level.admitted.cast_signed())
    }

    /// Returns the bucket's level, settled at `now_ms` at the limits in force.
    fn settled(&mut self, bucket: &BucketRule, now_ms: u64) -> &mut Level {
        let slot = self.slot(bucket);
        let limits = slot.limits.unwrap_or(bucket.limits);
        let level = slot.level.get_or_insert_with(|| Level::full(limits, now_ms));
        level.settle(limits, now_ms);
        level
    }

    /// Returns the level of a bucket that was settled a moment ago.
    fn level(&mut self, bucket: &BucketRule) -> &mut Level {
        self.slot(bucket).level.as_mut().expect("settled before it is paid from")
    }

    /// Takes up to `most` multiples of `takes`, of no bucket more than half; returns how many.
    fn take_ahead(&mut self, takes: &[Take], most: u32) -> u32 {
        if takes.iter().all(|take| take.cost == Tokens::ZERO) {
            return 0;
        }
        let spare = takes.iter().map(|take| self.level(&take.bucket).spare(take.cost, most));
        let ahead = spare.min().unwrap_or(0);
        for take in takes {
            self.level(&take.bucket).take_ahead(take.cost, ahead);
        }
        ahead
    }
}

impl MemoryStore {
    /// How many agents are kept: beyond it, the one that spent least recently is forgotten.
    pub const AGENTS_MAX: usize = 1 << 20;

    /// Returns an empty store for up to [`MemoryStore::AGENTS_MAX`] agents.
    #[must_use]
    pub fn new() -> Self {
        Self::with_capacity(Self::AGENTS_MAX)
    }

    /// Returns an empty store for up to `agents` agents (rounded up to a multiple of 64).
    #[must_use]
    pub fn with_capacity(agents: usize) -> Self {
        let each = NonZeroUsize::new(agents.div_ceil(SHARDS)).unwrap_or(NonZeroUsize::MIN);
        let shard = |_| {
            // The map grows as agents come: only the bound is fixed here.
            let mut agents = LruCache::unbounded_with_hasher(BuildHasherDefault::default());
            agents.resize(each);
            Mutex::new(Shard { agents, used: 0 })
        };
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self {
            inner: Arc::new(Inner {
                shards: (0..SHARDS).map(shard).collect(),
                hasher: foldhash::quality::RandomState::default(),
                started: Instant::now(),
                started_unix_ms: u64::try_from(unix.as_millis()).unwrap_or(u64::MAX),
                epoch: Mutex::new(None),
                progress: Mutex::new(BTreeMap::new()),
                market: Mutex::default(),
                document: Mutex::default(),
                used: AtomicU64::new(0),
            }),
        }
    }

    /// Sets the limits of an agent's default bucket, as an operator would with `HSET`.
    pub fn set_by_operator(&self, agent: &AgentId, limits: Limits) {
        self.with(agent, |entry| entry.default.limits = Some(limits));
    }

    /// Sets the limits of an agent's bucket `name`, as an operator would with `HSET`; with `None` it
    /// removes them, as with `HDEL`.
    pub fn set_named_by_operator(
        &self,
        agent: &AgentId,
        name: &BucketName,
        limits: Option<Limits>,
    ) {
        self.with(agent, |entry| entry.named(name).limits = limits);
    }

    /// Bans an agent until `until_unix_ms`, in Unix milliseconds; 0 lifts the ban.
    pub fn ban(&self, agent: &AgentId, until_unix_ms: u64) {
        self.with(agent, |entry| entry.banned_until_ms = until_unix_ms);
    }

    /// Returns the number of agents kept.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.shards.iter().map(|shard| lock(shard).agents.len()).sum()
    }

    /// Returns true when no agent is kept.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn now_ms(&self) -> u64 {
        self.unix_ms(Instant::now())
    }

    fn unix_ms(&self, now: Instant) -> u64 {
        let elapsed = now.saturating_duration_since(self.inner.started).as_millis();
        self.inner.started_unix_ms + u64::try_from(elapsed).unwrap_or(u64::MAX)
    }

    fn with<T>(&self, agent: &AgentId, change: impl FnOnce(&mut Entry) -> T) -> T {
        let sought = self.sought(agent);
        let mut shard = self.shard(sought.hash);
        let Shard { agents, used } = &mut *shard;
        if let Some(entry) = agents.get_mut::<dyn Name>(&sought) {
            let before = entry.admitted();
            let answer = change(entry);
            *used += entry.admitted() - before;
            return answer;
        }
        let mut entry = Entry::default();
        let answer = change(&mut entry);
        *used += entry.admitted();
        agents.put(sought.owned(), entry);
        answer
    }

    /// Returns what `look` reads of an agent that is kept, without counting as use of it.
    fn peek<T>(&self, agent: &AgentId, look: impl FnOnce(&Entry) -> T) -> Option<T> {
        let sought = self.sought(agent);
        self.shard(sought.hash).agents.peek::<dyn Name>(&sought).map(look)
    }

    fn sought<'a>(&self, agent: &'a AgentId) -> Sought<'a> {
        Sought { hash: self.inner.hasher.hash_one(agent), agent }
    }

    fn shard(&self, hash: u64) -> MutexGuard<'_, Shard> {
        // Bits that the shard's own table does not look at: it uses the lowest and the highest.
        #[allow(clippy::cast_possible_truncation, reason = "only the low bits pick a shard")]
        let index = (hash >> 32) as usize & (SHARDS - 1);
        lock(&self.inner.shards[index])
    }

    /// Sets (or with `None` lifts) the limits an agent has of its own in one bucket, and lifts a ban.
    pub(crate) fn learn(&self, agent: &AgentId, bucket: &BucketRule, limits: Option<Limits>) {
        let sought = self.sought(agent);
        let mut shard = self.shard(sought.hash);
        match shard.agents.get_mut::<dyn Name>(&sought) {
            Some(entry) => {
                entry.slot(bucket).limits = limits;
                entry.banned_until_ms = 0;
            }
            None if limits.is_some() => {
                let mut entry = Entry::default();
                entry.slot(bucket).limits = limits;
                shard.agents.put(sought.owned(), entry);
            }
            None => {}
        }
    }

    /// Bans an agent for the next `for_ms` milliseconds.
    pub(crate) fn ban_for(&self, agent: &AgentId, for_ms: u64) {
        self.ban(agent, self.now_ms().saturating_add(for_ms));
    }

    /// Returns the verdict on a charge, at once.
    pub(crate) fn decide(&self, agent: &AgentId, takes: &[Take]) -> Verdict {
        self.take(agent, takes, 0, self.now_ms()).verdict
    }

    /// Decides a charge, and takes up to `most` multiples of it ahead.
    fn take(&self, agent: &AgentId, takes: &[Take], most: u32, now_ms: u64) -> Loan {
        self.with(agent, |entry| {
            if entry.banned_until_ms > now_ms {
                let verdict = banned(takes, entry.banned_until_ms - now_ms);
                return Loan { verdict, ahead: 0 };
            }
            let mut short = false;
            let mut wait_ms = Some(0);
            for Take { bucket, cost } in takes {
                let level = entry.settled(bucket, now_ms);
                if !bucket.shadow && !level.affords(*cost) {
                    short = true;
                    wait_ms = wait_ms.zip(level.wait_ms(*cost)).map(|(a, b): (u64, u64)| a.max(b));
                }
            }
            let mut pay = |Take { bucket, cost }: &Take| {
                let level = entry.level(bucket);
                let lacking = !level.affords(*cost);
                match (short, lacking) {
                    (_, true) => level.refuse(*cost),
                    (false, false) => level.take(*cost),
                    (true, false) => {}
                }
                let (limits, tokens) = (level.limits, level.tokens);
                Held { limits, tokens, short: lacking }
            };
            let (first, rest) = takes.split_first().expect("a charge touches at least one bucket");
            let first = pay(first);
            // One bucket is what nearly every request touches.
            let rest = if rest.is_empty() { Vec::new() } else { rest.iter().map(pay).collect() };
            let decision = if short { Decision::Denied { wait_ms } } else { Decision::Admitted };
            let mut verdict = Verdict { decision, first, rest };
            let ahead = if short || most == 0 { 0 } else { entry.take_ahead(takes, most) };
            if ahead > 0 {
                let held = std::iter::once(&mut verdict.first).chain(&mut verdict.rest);
                for (held, take) in held.zip(takes) {
                    held.tokens = entry.level(&take.bucket).tokens;
                }
            }
            Loan { verdict, ahead }
        })
    }
}

/// Returns the verdict on a banned agent: its buckets as configured, untouched.
pub(super) fn banned(takes: &[Take], for_ms: u64) -> Verdict {
    let mut held = takes.iter().map(|Take { bucket, .. }| Held {
        limits: bucket.limits,
        tokens: Tokens::ZERO.nano(),
        short: false,
    });
    let first = held.next().expect("a charge touches at least one bucket");
    Verdict { decision: Decision::Banned { for_ms }, first, rest: held.collect() }
}

/// A panic elsewhere leaves whole entries behind: every change here is complete or not begun.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").finish_non_exhaustive()
    }
}

impl Spend for MemoryStore {
    const REMOTE: bool = false;

    type Future = Ready<Result<Verdict, StoreError>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        ready(Ok(self.decide(&charge.agent, &charge.takes)))
    }

    fn spend_now(&self, agent: &AgentId, takes: &Arc<[Take]>, now: Instant) -> Option<Verdict> {
        Some(self.take(agent, takes, 0, self.unix_ms(now)).verdict)
    }

    fn settle(&self, settlement: Settlement) {
        let now_ms = self.now_ms();
        let Settlement { agent, takes, direction } = settlement;
        self.with(&agent, |entry| {
            for Take { bucket, cost } in &*takes {
                let level = entry.settled(bucket, now_ms);
                match direction {
                    Direction::GiveBack => level.give_back(*cost),
                    Direction::TakeMore => level.take_more(*cost),
                    Direction::Refused => level.refuse(*cost),
                }
            }
        });
    }
}

impl Lend for MemoryStore {
    type Loan = Ready<Result<Loan, StoreError>>;

    fn lend(&self, charge: Charge, most: u32) -> Self::Loan {
        ready(Ok(self.take(&charge.agent, &charge.takes, most, self.now_ms())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::contract;

    #[tokio::test(start_paused = true)]
    async fn the_in_process_store_keeps_the_contract() {
        let memory = contract::Memory(MemoryStore::new());
        contract::run(&memory).await;
        contract::run_lending(&memory).await;
    }

    #[test]
    fn beyond_the_bound_the_agent_that_spent_least_recently_is_forgotten() {
        let store = MemoryStore::with_capacity(SHARDS);
        for index in 0..10_000 {
            let agent = AgentId::new(&format!("agent{index}")).unwrap();
            store.ban(&agent, 0);
        }
        assert!(store.len() <= SHARDS, "{}", store.len());
    }
}
