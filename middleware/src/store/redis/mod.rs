//! Buckets in Redis, shared by every node: one script call per decision, one slot per agent.
//!
//! Time is the server's, so nodes need no common clock. A decision is given up after its deadline;
//! the server may still carry it out, which costs the agent at most that request's tokens. The
//! client reconnects in the background, every 10 to 250 ms; scripts that a restarted server has
//! forgotten are sent again.

mod batch;

mod control;

mod link;

mod wire;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use redis::{
    Client, ConnectionInfo, IntoConnectionInfo, RedisError, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
    io::tcp::TcpSettings,
};
use tokio::sync::Mutex;

use self::{
    batch::{Group, Kind, Outcome},
    link::{Control, Link, within},
    wire::{is_no_script, malformed, of_another_type},
};
use super::{Charge, Direction, Lend, Loan, Settlement, Spend, StoreError, Verdict};

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
    spend: Script,
    set_limits: Script,
}

/// Builds a [`RedisStore`].
#[derive(Clone)]
pub struct RedisStoreBuilder {
    url: String,
    timeout: Duration,
}

impl RedisStoreBuilder {
    /// Sets the longest a decision waits for Redis; 20 ms unless set.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
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
        Ok(RedisStore {
            inner: Arc::new(Inner {
                client,
                link: Link::new(connection),
                control: Mutex::new(Control::Fresh),
                address,
                timeout: self.timeout,
                spend: Script::new(SPEND_LUA),
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
        RedisStoreBuilder { url: url.to_owned(), timeout: TIMEOUT_DEFAULT }
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

    /// Runs one group by itself.
    async fn decide(&self, group: &Group) -> Result<Outcome, StoreError> {
        let inner = &*self.inner;
        let groups = std::iter::once(group);
        let call = async {
            let mut command = redis::cmd("EVALSHA");
            command.arg(inner.spend.get_hash());
            match inner.link.call(&batch::call(command, groups.clone())).await {
                // A server that forgot the script is sent it with the call.
                Err(error) if is_no_script(&error) => {
                    let mut command = redis::cmd("EVAL");
                    command.arg(SPEND_LUA);
                    inner.link.call(&batch::call(command, groups.clone())).await
                }
                answer => answer,
            }
        };
        let answer = within(inner.timeout, call).await?.map_err(|error| self.unavailable(error))?;
        let outcomes = batch::outcomes(groups, &answer).ok_or_else(|| malformed(&answer))?;
        outcomes.into_iter().next().ok_or_else(|| malformed(&answer))
    }
}

impl Spend for RedisStore {
    type Future = Pin<Box<dyn Future<Output = Result<Verdict, StoreError>> + Send>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        let store = self.clone();
        Box::pin(async move {
            let Charge { agent, takes } = charge;
            let group = Group { agent, takes, kind: Kind::Take, count: 1 };
            let outcome = store.decide(&group).await?;
            outcome.verdict(&group, 0).ok_or_else(of_another_type)
        })
    }

    fn settle(&self, settlement: Settlement) {
        let store = self.clone();
        let Settlement { agent, takes, direction } = settlement;
        let kind = match direction {
            Direction::GiveBack => Kind::GiveBack,
            Direction::TakeMore => Kind::TakeMore,
            Direction::Refused => Kind::Refuse { short: u32::MAX },
        };
        tokio::spawn(async move {
            let _ = store.decide(&Group { agent, takes, kind, count: 1 }).await;
        });
    }
}

impl Lend for RedisStore {
    type Loan = Pin<Box<dyn Future<Output = Result<Loan, StoreError>> + Send>>;

    fn lend(&self, charge: Charge, most: u32) -> Self::Loan {
        let store = self.clone();
        Box::pin(async move {
            let Charge { agent, takes } = charge;
            let group = Group { agent, takes, kind: Kind::Lend { most }, count: 1 };
            let outcome = store.decide(&group).await?;
            let ahead = match &outcome {
                Outcome::Spent(spent) => spent.ahead,
                _ => 0,
            };
            let verdict = outcome.verdict(&group, 0).ok_or_else(of_another_type)?;
            Ok(Loan { verdict, ahead })
        })
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
        f.debug_struct("RedisStoreBuilder").field("timeout", &self.timeout).finish_non_exhaustive()
    }
}
