//! Buckets in Redis, shared by every node: one script call per decision, one slot per agent.
//!
//! Time is the server's, so nodes need no common clock. A decision is given up after its deadline;
//! the server may still carry it out, which costs the agent at most that request's tokens. The
//! client reconnects in the background, every 10 to 250 ms; scripts that a restarted server has
//! forgotten are sent again.

mod batch;

mod coalesce;

mod control;

mod denials;

mod link;

mod wire;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use redis::{
    Client, ConnectionInfo, IntoConnectionInfo, RedisError, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tokio::{sync::Mutex, time::Instant};

use self::{
    batch::Kind,
    coalesce::{Coalescer, Options},
    link::{Control, Link, within},
};
pub use self::{
    coalesce::{GROUPS_MAX, IN_FLIGHT_MAX, WAITING_MAX},
    denials::{DENIAL_MAX, DENIALS_MAX},
};
use super::{Charge, Lend, Loan, Settlement, Spend, StoreError, Verdict};

/// The longest a decision waits for Redis, unless configured: 20 ms.
pub const TIMEOUT_DEFAULT: Duration = Duration::from_millis(20);

/// The longest a connection attempt or a control-plane call takes: 2 s. Longer than any decision,
/// because a batch of thousands of writes is one call.
const CONTROL_TIMEOUT: Duration = Duration::from_secs(2);

/// Bytes that stay unacknowledged this long mean that the server's host is gone: 3 s.
const DEAD_LINK_TIMEOUT: Duration = Duration::from_secs(3);

const RECONNECT_MIN: Duration = Duration::from_millis(10);
const RECONNECT_MAX: Duration = Duration::from_millis(250);

/// Commands that wait for the socket; further ones wait for a place, and run into their deadline.
const PIPELINE_MAX: usize = 1024;

/// The control plane's marks that are not an agent's: its epoch, and how far each partition got.
const EPOCH_KEY: &str = "merit:epoch";
const PROGRESS_KEY: &str = "merit:progress";

#[cfg(any(test, feature = "test-util"))]
pub(super) const BUCKET_LUA: &str = include_str!("bucket.lua");
#[cfg(any(test, feature = "test-util"))]
pub(super) use self::wire::HELD;
const SPEND_LUA: &str = concat!(include_str!("bucket.lua"), include_str!("spend.lua"));
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
    client: Client,
    link: Link,
    control: Mutex<Control>,
    address: String,
    timeout: Duration,
    coalescer: Arc<Coalescer>,
    set_limits: Script,
}

/// Builds a [`RedisStore`].
#[derive(Clone)]
pub struct RedisStoreBuilder {
    url: String,
    options: Options,
}

impl RedisStoreBuilder {
    /// Sets the longest a decision waits for Redis; 20 ms unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.options.timeout = timeout;
        self
    }

    /// Sets whether requests that arrive while calls are in flight travel together in the next one;
    /// they do unless told not to. Either way the decisions are the same.
    #[must_use]
    pub fn coalesce(mut self, on: bool) -> Self {
        self.options.coalesce = on;
        self
    }

    /// Sets whether a refusal is repeated, without asking Redis, until the request would pass (at most
    /// [`DENIAL_MAX`]); it is unless told not to. Limits that are raised meanwhile, and tokens that
    /// another node gives back, are seen that much later.
    #[must_use]
    pub fn cache_denials(mut self, on: bool) -> Self {
        self.options.cache_denials = on;
        self
    }

    /// Connects, and waits until the server has answered once.
    ///
    /// # Errors
    ///
    /// When the address cannot be parsed, or the server does not answer within 2 s.
    pub async fn connect(self) -> Result<RedisStore, StoreError> {
        let store = self.connect_lazily()?;
        store.ping().await?;
        Ok(store)
    }

    /// Returns a store that connects in the background: until it has, every decision follows the
    /// outage policy.
    ///
    /// # Errors
    ///
    /// When the address cannot be parsed.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub fn connect_lazily(self) -> Result<RedisStore, StoreError> {
        let info = self.url.as_str().into_connection_info().map_err(StoreError::Address)?;
        let address = address_of(&info);
        let tcp = TcpSettings::default().set_nodelay(true).set_user_timeout(DEAD_LINK_TIMEOUT);
        let client = Client::open(info.set_tcp_settings(tcp)).map_err(StoreError::Address)?;
        let config = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(CONTROL_TIMEOUT))
            // Deadlines are ours, one for each kind of call.
            .set_response_timeout(None)
            .set_min_delay(RECONNECT_MIN)
            .set_max_delay(RECONNECT_MAX)
            .set_number_of_retries(usize::MAX)
            .set_pipeline_buffer_size(PIPELINE_MAX);
        let connection = ConnectionManager::new_lazy_with_config(client.clone(), config)
            .map_err(StoreError::Address)?;
        let link = Link::new(connection);
        Ok(RedisStore {
            inner: Arc::new(Inner {
                client,
                coalescer: Coalescer::new(self.options, link.clone(), address.clone()),
                link,
                control: Mutex::new(Control::Fresh),
                address,
                timeout: self.options.timeout,
                set_limits: Script::new(SET_LIMITS_LUA),
            }),
        })
    }
}

/// Returns `host:port` or the socket's path: never the user or the password.
fn address_of(info: &ConnectionInfo) -> String {
    info.addr().to_string()
}

impl RedisStore {
    /// Connects to `url`: `redis://[user:password@]host[:port][/db]`, or `rediss://` for TLS.
    ///
    /// # Errors
    ///
    /// When the address cannot be parsed, or the server does not answer within 2 s.
    pub async fn connect(url: &str) -> Result<Self, StoreError> {
        Self::builder(url).connect().await
    }

    /// Returns a builder for a store at `url`.
    #[must_use]
    pub fn builder(url: &str) -> RedisStoreBuilder {
        RedisStoreBuilder {
            url: url.to_owned(),
            options: Options { timeout: TIMEOUT_DEFAULT, coalesce: true, cache_denials: true },
        }
    }

    /// Asks the server for a sign of life.
    ///
    /// # Errors
    ///
    /// When it does not answer within 2 s.
    pub async fn ping(&self) -> Result<(), StoreError> {
        within(CONTROL_TIMEOUT, self.inner.link.call(&redis::cmd("PING")))
            .await?
            .map(drop)
            .map_err(|error| self.unavailable(error))
    }

    /// Returns the longest a decision waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    fn unavailable(&self, source: RedisError) -> StoreError {
        StoreError::Unavailable { address: self.inner.address.clone(), source }
    }
}

/// A pending answer of [`RedisStore`]: of a charge that was just refused, at hand.
enum Asked {
    Refused(Option<Loan>),
    Waiting(Pin<Box<dyn Future<Output = Result<Loan, StoreError>> + Send>>),
}

impl Asked {
    fn new(store: &RedisStore, charge: Charge, kind: Kind) -> Self {
        let coalescer = &store.inner.coalescer;
        match coalescer.refuse(&charge) {
            Some(refused) => Self::Refused(Some(refused)),
            None => {
                let asked = Arc::clone(coalescer).ask(charge, kind, Instant::now());
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

/// The address may carry a password: it is not shown.
impl std::fmt::Debug for RedisStoreBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStoreBuilder").field("options", &self.options).finish_non_exhaustive()
    }
}
