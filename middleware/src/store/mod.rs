//! Where buckets live: one trait to spend from them, one to set their limits.
//!
//! 1. [`Spend`] is the data plane: take tokens from every bucket a request touches, or from none.
//! 2. [`Tune`] is the control plane: write an agent's limits and the record they came from.
//! 3. Every field has one owner: a spend moves levels, a tuner sets limits; a spend only ever puts
//!    limits back that the record holds, when the bucket itself has expired.
//! 4. [`MemoryStore`] and [`RedisStore`] pass one suite, [`contract`].

pub mod memory;

pub mod redis;

pub mod leased;

mod market;

#[cfg(any(test, feature = "test-util"))]
pub mod contract;

pub use memory::MemoryStore;

pub use redis::{RedisStore, RedisStoreBuilder};

pub use leased::{Leased, LeasedBuilder, LeasedError, LeasedFuture};

pub use market::{BID_TERM_MAX, Bid, Quote, Traded};

use std::{future::Future, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{
    AgentId,
    bucket::{BucketName, Limits, MicroTokensPerSecond, NanoTokens, Tokens, full_in_ms},
};

/// How long a bucket is kept after the last spend or new limits, at least: 24 hours.
pub const BUCKET_TTL: Duration = Duration::from_secs(24 * 3600);

/// How long the control plane's record of an agent is kept after its last write: 90 days.
pub const RECORD_TTL: Duration = Duration::from_secs(90 * 24 * 3600);

/// How long a node of the data plane that takes no tokens is still among those of [`Tune::used`]: 10 s.
pub const USE_TTL: Duration = Duration::from_secs(10);

/// A bucket as configured: its name, and the limits of agents that have none of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BucketRule {
    /// What the bucket is called in headers and configuration.
    pub name: BucketName,
    /// The default bucket's limits stand in the plain fields `capacity` and `refill_rate`; those of
    /// another carry its name. Exactly one bucket of a service is the default.
    pub is_default: bool,
    /// Limits in force while the agent has none of its own.
    pub limits: Limits,
    /// True for a bucket that is only watched: when it holds too little, the request passes all the
    /// same and takes nothing from it; [`Held::short`] says so, and its tokens count as refused.
    pub shadow: bool,
}

/// One bucket a request touches, and what it costs there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Take {
    /// The bucket.
    pub bucket: BucketRule,
    /// Tokens to take; [`Tokens::ZERO`] only looks.
    pub cost: Tokens,
}

/// The most buckets one request may touch.
pub const TAKES_MAX: usize = 16;

/// What one request asks of the store: these tokens from all of these buckets, or from none.
#[derive(Clone, Debug)]
pub struct Charge {
    /// Whose buckets.
    pub agent: AgentId,
    /// The buckets and costs, 1 to [`TAKES_MAX`], each bucket once.
    pub takes: Arc<[Take]>,
}

/// Corrects what an admitted [`Charge`] took, once the true cost is known.
#[derive(Clone, Debug)]
pub struct Settlement {
    /// Whose buckets.
    pub agent: AgentId,
    /// The buckets and the amounts, 1 to [`TAKES_MAX`], each bucket once.
    pub takes: Arc<[Take]>,
    /// Which way.
    pub direction: Direction,
}

/// Which way a [`Settlement`] goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// The request cost less than was taken: tokens come back, never above the capacity.
    GiveBack,
    /// The request cost more than was taken: tokens go, even those that are not there (debt).
    TakeMore,
    /// Nothing was taken: the tokens were refused by one who knew the answer without asking, and
    /// are only to be counted.
    Refused,
}

/// The answer to a [`Charge`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Verdict {
    /// Whether the request may pass.
    pub decision: Decision,
    /// The first bucket of the charge, after the decision.
    pub first: Held,
    /// The other buckets of the charge, in its order.
    pub rest: Vec<Held>,
}

/// Whether a request may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// All tokens were taken.
    Admitted,
    /// No token was taken.
    Denied {
        /// Milliseconds until every bucket holds enough, if nobody else spends; `None` when that
        /// never happens at the limits in force.
        wait_ms: Option<u64>,
    },
    /// The agent is banned; no bucket was touched.
    Banned {
        /// Milliseconds until the ban ends.
        for_ms: u64,
    },
}

/// What an agent holds in one bucket of a charge right after a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    /// The limits in force.
    pub limits: Limits,
    /// Tokens held.
    pub tokens: NanoTokens,
    /// True when this bucket held too little.
    pub short: bool,
}

impl Held {
    /// Returns the milliseconds until the bucket is full; `None` when it never will be.
    #[must_use]
    pub fn full_in_ms(&self) -> Option<u64> {
        full_in_ms(self.tokens, &self.limits)
    }

    /// Returns the share of the capacity that is in use, 0 to 1 (debt counts as 1).
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a share for a histogram")]
    pub fn utilization(&self) -> f64 {
        let capacity = self.limits.capacity().nano().0;
        if capacity == 0 {
            return 1.0;
        }
        (1.0 - self.tokens.0 as f64 / capacity as f64).clamp(0.0, 1.0)
    }
}

impl Verdict {
    /// Returns a verdict: `first` and `rest` are what the buckets of the charge hold after the decision, in its
    /// order. For authors of stores.
    #[must_use]
    pub fn new(decision: Decision, first: Held, rest: Vec<Held>) -> Self {
        Self { decision, first, rest }
    }

    /// Returns every bucket of the charge, in its order.
    pub fn held(&self) -> impl Iterator<Item = &Held> {
        std::iter::once(&self.first).chain(&self.rest)
    }
}

/// Spends tokens: one call, one atomic step.
///
/// The future ends within a bounded time, whatever the store does: a store that is not in this
/// process gives up after a deadline of its own.
pub trait Spend: Send + Sync + 'static {
    /// False for a store that cannot fail because it lives in this process.
    const REMOTE: bool = true;

    /// The pending answer.
    type Future: Future<Output = Result<Verdict, StoreError>> + Send + 'static;

    /// Takes `charge` from all of its buckets, or from none of them.
    fn spend(&self, charge: Charge) -> Self::Future;

    /// Decides as [`Spend::spend`] would, if that takes no waiting and cannot fail; `None` when it
    /// might, and then nothing has happened. What is decided here never sees the outage policy.
    /// `now` is the present: a clock is read once for all who want to know.
    fn spend_now(&self, agent: &AgentId, takes: &Arc<[Take]>, now: Instant) -> Option<Verdict> {
        let _ = (agent, takes, now);
        None
    }

    /// Corrects an earlier charge, without waiting for the outcome.
    ///
    /// Done at most once: what a store that does not answer was to give back stays taken, and what
    /// it was to take more stays free.
    fn settle(&self, settlement: Settlement);
}

impl<S: Spend> Spend for Arc<S> {
    const REMOTE: bool = S::REMOTE;

    type Future = S::Future;

    fn spend(&self, charge: Charge) -> Self::Future {
        S::spend(self, charge)
    }

    fn spend_now(&self, agent: &AgentId, takes: &Arc<[Take]>, now: Instant) -> Option<Verdict> {
        S::spend_now(self, agent, takes, now)
    }

    fn settle(&self, settlement: Settlement) {
        S::settle(self, settlement);
    }
}

/// A store that hands out tokens ahead of the requests that will spend them.
pub trait Lend: Spend {
    /// The pending answer.
    type Loan: Future<Output = Result<Loan, StoreError>> + Send + 'static;

    /// Decides `charge` and, when it is admitted, takes up to `most` further multiples of it: of no
    /// bucket more than half of what the charge left there, so that other nodes find something.
    ///
    /// Multiples that nobody spends come back through [`Spend::settle`].
    fn lend(&self, charge: Charge, most: u32) -> Self::Loan;
}

/// What a [`Lend`] handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loan {
    /// The decision on the charge itself, and what the buckets hold after all was taken.
    pub verdict: Verdict,
    /// How many further multiples of the charge were taken ahead; 0 unless it was admitted.
    pub ahead: u32,
}

impl Loan {
    /// Returns a loan of `ahead` further multiples of the charge. For authors of stores.
    #[must_use]
    pub fn new(verdict: Verdict, ahead: u32) -> Self {
        Self { verdict, ahead }
    }
}

impl<S: Lend> Lend for Arc<S> {
    type Loan = S::Loan;

    fn lend(&self, charge: Charge, most: u32) -> Self::Loan {
        S::lend(self, charge, most)
    }
}

/// What the control plane remembers of one agent, together with the limits in force.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Record {
    /// Counts the writes; 0 when there has been none. A write must name the one it replaces.
    pub rev: u64,
    /// Limits of the default bucket in force: an operator's, or the last ones written.
    pub limits: Option<Limits>,
    /// True when `limits` are not what the control plane wrote last.
    pub operator: bool,
    /// The policy's state, as it wrote it.
    pub state: String,
    /// For every `<source>/<partition>`, the last offset folded into `state`.
    pub applied: Vec<(String, u64)>,
    /// Slots of the window of ids seen, as they were written.
    pub seen: Vec<(String, String)>,
    /// Tokens admitted and denied so far in the default bucket.
    pub demand: Demand,
    /// When its ban ends or ended, in Unix milliseconds; absent when there is none on record.
    pub banned_until_ms: Option<u64>,
}

/// What an operator does to one agent by hand, past the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ByHand {
    /// Sets the limits of one bucket, as two `HSET`s would: the control plane goes on from them.
    Limits {
        /// The named bucket; the default one when absent.
        bucket: Option<BucketName>,
        /// Its new limits.
        limits: Limits,
    },
    /// Bans the agent until then, in Unix milliseconds; 0 lifts a ban.
    Ban {
        /// When the ban ends.
        until_ms: u64,
    },
}

/// What an agent asked of its default bucket since that was made, in whole tokens. Counts that went
/// back are those of a new bucket, or of one from which tokens were given back.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Tokens taken.
    pub admitted: u64,
    /// Tokens refused.
    pub denied: u64,
    /// Tokens left after the last spend, without what has refilled since; 0 in debt, and 0 when
    /// nothing was ever spent.
    pub left: u64,
}

/// One agent's new limits and record, written together or not at all.
#[derive(Clone, Debug)]
pub struct Change {
    /// Whose.
    pub agent: AgentId,
    /// The [`Record::rev`] this change was computed from.
    pub rev: u64,
    /// New limits of the default bucket.
    pub limits: Limits,
    /// New limits of named buckets, each bucket once. One whose limits an operator set keeps them,
    /// and the rest of the change is written: see [`Tune::write`].
    pub named: Vec<(BucketName, Limits)>,
    /// Limits found in force that were an operator's and that `limits` starts from.
    pub adopts: Option<Limits>,
    /// The policy's state.
    pub state: String,
    /// Offsets folded into `state` since the last write, by `<source>/<partition>`.
    pub applied: Vec<(String, u64)>,
    /// Slots of the window of seen ids that changed.
    pub seen: Vec<(String, String)>,
}

/// The longest text of a [`Document`], in bytes: 128 KiB. Every node reads all of it every second.
pub const DOCUMENT_MAX: usize = 128 * 1024;

/// A text that all processes over one store go by, beside the agents' data: which buckets there are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Document {
    /// Counts the writes; 0 when there has been none.
    pub rev: u64,
    /// The text; absent when nothing was written, or it was removed.
    pub text: Option<String>,
}

/// What became of a write of the [`Document`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// It is there.
    Done {
        /// Its revision.
        rev: u64,
    },
    /// Somebody else wrote since; nothing was changed.
    Stale {
        /// The revision that is there.
        rev: u64,
    },
}

/// What became of a [`Change`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It is in force.
    Done {
        /// The record's new revision.
        rev: u64,
        /// Tokens asked for so far.
        demand: Demand,
    },
    /// Somebody else wrote since; nothing was changed. Load, fold again, write again.
    Stale,
    /// An operator set limits since; nothing was changed. Start from them and write again, naming
    /// them in [`Change::adopts`]. A half that nobody ever set is `None`.
    Operator {
        /// Capacity in force.
        capacity: Option<Tokens>,
        /// Refill rate in force.
        refill: Option<MicroTokensPerSecond>,
    },
}

/// Names one life of the store's data: when either part changes, writes may have been lost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// The server process that answers, as it names itself.
    pub run_id: String,
    /// The number put there by the first tuner; absent when the store came back empty.
    pub epoch: Option<String>,
}

/// A place in the walk of [`Tune::agents`]. Good for the store that gave it, within one life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The part of the store, from 0.
    part: usize,
    /// The place in that part; 0 is its beginning.
    at: u64,
}

impl Cursor {
    /// Where a walk begins.
    pub const START: Self = Self { part: 0, at: 0 };

    /// Returns the place `at` of the part `part`, as the author of a store means them; both 0 is
    /// [`Cursor::START`].
    #[must_use]
    pub const fn new(part: usize, at: u64) -> Self {
        Self { part, at }
    }

    /// Returns the part of the store.
    #[must_use]
    pub const fn part(self) -> usize {
        self.part
    }

    /// Returns the place in the part.
    #[must_use]
    pub const fn at(self) -> u64 {
        self.at
    }
}

impl Default for Cursor {
    fn default() -> Self {
        Self::START
    }
}

/// Sets limits. All calls take batches: one round trip for many agents.
pub trait Tune: Send + Sync + 'static {
    /// Returns the records of `agents`, in their order. A record that cannot be read is an error of
    /// its own, [`StoreError::Malformed`], and no obstacle to the others.
    fn load(
        &self,
        agents: &[AgentId],
    ) -> impl Future<Output = Result<Vec<Result<Record, StoreError>>, StoreError>> + Send;

    /// Returns what `agents` asked for, in their order, without their records: cheap enough for a
    /// sweep over many. An agent without a bucket, who never spent, is all zero.
    fn demand(
        &self,
        agents: &[AgentId],
    ) -> impl Future<Output = Result<Vec<Result<Demand, StoreError>>, StoreError>> + Send;

    /// Writes `changes`, each by itself atomic and fenced by its revision. The answers come in
    /// order; an agent whose keys are malformed is an error of its own. After an error of the call
    /// some of the changes may have been written: load before writing again.
    ///
    /// Limits of a named bucket that are not what was written last are an operator's: they hold, and
    /// no write changes them, until the operator removes both of them.
    fn write(
        &self,
        changes: &[Change],
    ) -> impl Future<Output = Result<Vec<Result<Written, StoreError>>, StoreError>> + Send;

    /// Does to `agent` what an operator decided, at once and whatever its revision.
    ///
    /// A ban stands in the bucket and in the record, so that it outlives both a spent bucket's expiry and the
    /// record's: whichever is there last says when it ends.
    fn by_hand(
        &self,
        agent: &AgentId,
        deed: &ByHand,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns some agents that have a record, and where to go on; `None` behind the last. A page
    /// holds `about` agents: fewer or more, and none at all before the end, are possible.
    ///
    /// A walk from [`Cursor::START`] to the end finds everybody who had a record all the while, once
    /// when nothing is written meanwhile, perhaps twice otherwise. Servers that change places during
    /// the walk may hide agents from it: the next walk finds them.
    fn agents(
        &self,
        from: Cursor,
        about: usize,
    ) -> impl Future<Output = Result<(Vec<AgentId>, Option<Cursor>), StoreError>> + Send;

    /// Returns how many tokens each node of the data plane took from default buckets so far, by the
    /// name of the node. A node's count begins at 0 with the node and never goes back: tokens that
    /// come back are taken off what it takes later. A node that took nothing for
    /// [`USE_TTL`] may be absent, and is there again, at its old count, when it goes on.
    ///
    /// Calls whose answer was lost are not counted, nor are decisions of the outage policy.
    fn used(&self) -> impl Future<Output = Result<Vec<(String, u64)>, StoreError>> + Send;

    /// Takes or renews the lease of the market for `bid.who`, and posts `bid.quote` if they held it
    /// already; returns who leads, and the quote in force.
    ///
    /// # Errors
    ///
    /// [`StoreError::Quote`] when the quote is none; nothing was done then, and the connection is
    /// still good.
    fn trade(&self, bid: &Bid) -> impl Future<Output = Result<Traded, StoreError>> + Send;

    /// Returns the document that buckets are configured by, wherever this node's decisions are made: it
    /// neither waits for a [`Tune::life`] nor ends one.
    fn document(&self) -> impl Future<Output = Result<Document, StoreError>> + Send;

    /// Replaces the document if its revision is still `rev`; `None` removes its text, and the revision
    /// counts on.
    ///
    /// # Errors
    ///
    /// [`StoreError::Document`] when the text is empty or longer than [`DOCUMENT_MAX`].
    fn keep_document(
        &self,
        rev: u64,
        text: Option<&str>,
    ) -> impl Future<Output = Result<Kept, StoreError>> + Send;

    /// Returns one agent's record to somebody who only looks: as [`Tune::load`] does, and like
    /// [`Tune::document`] beside the lives of the store.
    fn look(&self, agent: &AgentId) -> impl Future<Output = Result<Record, StoreError>> + Send;

    /// Returns which life of the store this is, over a new connection when the last one broke.
    ///
    /// All other calls then speak to this same life, until one of them fails: after an error they
    /// fail with [`StoreError::Lost`] until `life` was asked again.
    fn life(&self) -> impl Future<Output = Result<Life, StoreError>> + Send;

    /// Marks the store as one that holds this system's data, unless it is marked already.
    fn begin_epoch(&self, epoch: &str) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns, for every `<source>/<partition>`, the offset below which everything was written.
    fn progress(&self) -> impl Future<Output = Result<Vec<(String, u64)>, StoreError>> + Send;

    /// Notes that everything below these offsets was written.
    fn note_progress(
        &self,
        progress: &[(String, u64)],
    ) -> impl Future<Output = Result<(), StoreError>> + Send;
}

/// Why the store gave no answer. Requests that travelled in one call share its failure.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No answer within the deadline.
    #[error("bucket store did not answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The connection failed, or the server refused the call.
    #[error("bucket store at {address} is not available")]
    Unavailable {
        /// Where the store is, without credentials.
        address: String,
        /// What the client saw.
        #[source]
        source: Cause,
    },
    /// The server answered and has no memory for what was to be written.
    #[error("bucket store at {address} has no memory left")]
    Full {
        /// Where the store is, without credentials.
        address: String,
        /// What the client saw.
        #[source]
        source: Cause,
    },
    /// More requests wait for the store than may wait.
    #[error("{waiting} requests wait for the bucket store already: add nodes, or lease")]
    Overloaded {
        /// The most that may wait.
        waiting: usize,
    },
    /// The control plane's connection broke: what was written last may be lost. [`Tune::life`]
    /// connects anew and says whether this is still the same store.
    #[error("bucket store connection was lost: ask which life of the store this is")]
    Lost,
    /// What stands under an agent's keys, or what a script answered, is not of this version: a fault
    /// of one agent's data, not of the store.
    #[error("bucket store holds or answers {what}, which this version does not write")]
    Malformed {
        /// What came instead.
        what: String,
    },
    /// A [`Quote`] of numbers that are not finite, or below 0.
    #[error("a quote needs finite numbers of at least 0, not {} and {}", .0.price, .0.use_share)]
    Quote(Quote),
    /// The text of a [`Document`] is empty or too long.
    #[error("a document needs 1 to {DOCUMENT_MAX} bytes, not {bytes}")]
    Document {
        /// Its length.
        bytes: usize,
    },
    /// The address cannot be used.
    #[error("bucket store address is not usable")]
    Address(#[source] Cause),
}

/// What a store's client saw; shared, because requests that travelled in one call share its failure.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

impl Document {
    /// Returns an error when `text` can be no document's.
    fn check(text: Option<&str>) -> Result<(), StoreError> {
        match text.map(str::len) {
            Some(bytes) if !(1..=DOCUMENT_MAX).contains(&bytes) => {
                Err(StoreError::Document { bytes })
            }
            _ => Ok(()),
        }
    }
}

impl StoreError {
    fn address(source: ::redis::RedisError) -> Self {
        Self::Address(Arc::new(source))
    }

    /// Returns what a Redis at `address` is to be said to have.
    fn of_redis(address: &str, source: ::redis::RedisError) -> Self {
        let (full, address) = (source.code() == Some("OOM"), address.to_owned());
        let source: Cause = Arc::new(source);
        if full { Self::Full { address, source } } else { Self::Unavailable { address, source } }
    }

    /// Returns true when the store answered and has no memory for what was to be written.
    #[must_use]
    pub fn is_full(&self) -> bool {
        matches!(self, Self::Full { .. })
    }

    /// Returns true when the same call may succeed a moment later.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Timeout(_)
                | Self::Unavailable { .. }
                | Self::Full { .. }
                | Self::Lost
                | Self::Overloaded { .. }
        )
    }
}
