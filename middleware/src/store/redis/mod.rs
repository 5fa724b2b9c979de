//! Buckets in Redis, shared by every node: one script call per decision, one slot per agent.
//!
//! Time is the server's, so nodes need no common clock. A decision is given up after its deadline;
//! the server may still carry it out, which costs the agent at most that request's tokens. The
//! client reconnects in the background, every 10 to 250 ms; scripts that a restarted server has
//! forgotten are sent again.

mod builder;

mod topology;

mod sentinel;

mod cluster;

mod followed;

mod shards;

mod batch;

mod coalesce;

mod denials;

mod link;

mod masters;

mod marks;

mod control;

mod usage;

mod once;

mod looks;

mod wire;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use redis::{RedisError, Script};
use tokio::{sync::Mutex, time::Instant};

use self::{
    batch::Kind,
    coalesce::Coalescer,
    link::{Link, within},
    masters::Control,
};
pub use self::{
    builder::RedisStoreBuilder,
    coalesce::{GROUPS_MAX, IN_FLIGHT_MAX, WAITING_MAX},
    denials::{DENIAL_MAX, DENIALS_MAX},
};
use super::{Charge, Lend, Loan, Settlement, Spend, StoreError, Take, Verdict};
use crate::AgentId;

/// The longest a decision waits for Redis, unless configured: 20 ms.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_millis(20);

/// The longest a connection attempt or a control-plane call takes: 2 s. Longer than any decision,
/// because a batch of thousands of writes is one call.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// Commands that wait for the socket; further ones wait for a place, and run into their deadline.
const PIPELINE_MAX: usize = 1024;

/// The control plane's marks that are not an agent's: its epoch, and how far each partition got.
const EPOCH_KEY: &str = "merit:epoch";
const PROGRESS_KEY: &str = "merit:progress";

/// The market: price, use_share, holder, until.
const PRICE_KEY: &str = "merit:price";

#[cfg(any(test, feature = "test-util"))]
pub(super) const BUCKET_LUA: &str = include_str!("bucket.lua");
#[cfg(any(test, feature = "test-util"))]
pub(super) use self::wire::HELD;
const SPEND_LUA: &str = concat!(include_str!("bucket.lua"), include_str!("spend.lua"));
const TRADE_LUA: &str = include_str!("trade.lua");

/// What an operator does by hand; `EVAL` as well, because it is rare.
const BY_HAND_LUA: &str = include_str!("by_hand.lua");
const SET_LIMITS_LUA: &str = concat!(include_str!("bucket.lua"), include_str!("set_limits.lua"));

/// Buckets in Redis. Clones share one connection.
///
/// ```no_run
/// # async fn example() -> Result<(), tower_merit::store::StoreError> {
/// use std::time::Duration;
/// use tower_merit::RedisStore;
///
/// let store = RedisStore::builder("redis://127.0.0.1:6379")
///     .timeout(Duration::from_millis(20))
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone)]
pub struct RedisStore {
    inner: Arc<Inner>,
}

struct Inner {
    link: Link,
    control: Mutex<Control>,
    address: String,
    timeout: Duration,
    coalescer: Arc<Coalescer>,
    set_limits: Script,
}

impl RedisStore {
    /// Asks whether the servers serve: a master whether it is there, a cluster whether it says so of
    /// itself.
    ///
    /// # Errors
    ///
    /// When they do not, or do not answer within 2 s.
    pub async fn ping(&self) -> Result<(), StoreError> {
        let answer = within(CONTROL_TIMEOUT, self.inner.link.ping()).await?;
        answer.map_err(|error| self.unavailable(error))
    }

    /// Returns the name of this node in [`Tune::used`](super::Tune::used): random, and the same for
    /// all clones.
    #[must_use]
    pub fn node(&self) -> &str {
        self.inner.coalescer.usage().node()
    }

    /// Tells the tuners now what this node took and has not told yet: for one that is about to end. It
    /// is told a few times a second anyway.
    ///
    /// # Errors
    ///
    /// When the servers do not answer within 2 s, or refuse.
    pub async fn tell_use(&self) -> Result<(), StoreError> {
        let told = self.inner.coalescer.usage().tell(&self.inner.link).await;
        told.map_err(|error| self.unavailable(error))
    }

    /// Returns the longest a decision waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    fn unavailable(&self, source: RedisError) -> StoreError {
        StoreError::of_redis(&self.inner.address, source)
    }
}

/// A pending answer of [`RedisStore`]: of a charge that was just refused, at hand.
enum Asked {
    Refused(Option<Loan>),
    Waiting(Pin<Box<dyn Future<Output = Result<Loan, StoreError>> + Send>>),
}

impl Asked {
    fn new(store: &RedisStore, charge: Charge, kind: Kind) -> Self {
        let (coalescer, now) = (&store.inner.coalescer, Instant::now());
        match coalescer.refuse(&charge.agent, &charge.takes, now) {
            Some(verdict) => Self::Refused(Some(Loan { verdict, ahead: 0 })),
            None => {
                let asked = Arc::clone(coalescer).ask(charge, kind, now);
                Self::Waiting(Box::pin(asked))
            }
        }
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Loan, StoreError>> {
        match self {
            Self::Refused(loan) => Poll::Ready(Ok(loan.take().expect("polled after the answer"))),
            Self::Waiting(asked) => asked.as_mut().poll(context),
        }
    }
}

/// A pending verdict. A request that is dropped before its call is sent is not charged.
pub struct Spending(Asked);

impl Future for Spending {
    type Output = Result<Verdict, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context).map_ok(|loan| loan.verdict)
    }
}

/// A pending loan.
pub struct Lending(Asked);

impl Future for Lending {
    type Output = Result<Loan, StoreError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll(context)
    }
}

impl Spend for RedisStore {
    type Future = Spending;

    fn spend(&self, charge: Charge) -> Spending {
        Spending(Asked::new(self, charge, Kind::Take))
    }

    /// Repeats a refusal that still holds; anything else is the server's to decide.
    fn spend_now(&self, agent: &AgentId, takes: &Arc<[Take]>, now: Instant) -> Option<Verdict> {
        self.inner.coalescer.refuse(agent, takes, now)
    }

    fn settle(&self, settlement: Settlement) {
        self.inner.coalescer.settle(settlement);
    }
}

impl Lend for RedisStore {
    type Loan = Lending;

    fn lend(&self, charge: Charge, most: u32) -> Lending {
        Lending(Asked::new(self, charge, Kind::Lend { most }))
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("address", &self.inner.address).finish_non_exhaustive()
    }
}
