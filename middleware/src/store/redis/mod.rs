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

mod link;

mod masters;

mod marks;

mod control;

mod wire;

pub use builder::RedisStoreBuilder;

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use redis::{Cmd, RedisError, Script};
use tokio::sync::Mutex;

use self::{
    link::{Link, within},
    masters::Control,
    wire::{
        bucket_key, is_no_script, is_wrong_type, malformed, of_another_type, record_key, verdict,
    },
};
use super::{Charge, Spend, StoreError, TAKES_MAX, Take, Verdict};

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

#[cfg(any(test, feature = "test-util"))]
pub(super) const BUCKET_LUA: &str = include_str!("bucket.lua");
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
    link: Link,
    control: Mutex<Control>,
    address: String,
    timeout: Duration,
    spend: Script,
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

    /// Returns the longest a decision waits.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        self.inner.timeout
    }

    fn unavailable(&self, source: RedisError) -> StoreError {
        StoreError::Unavailable { address: self.inner.address.clone(), source }
    }

    /// Runs the spend script, and sends it first when the server does not know it.
    async fn decide(&self, charge: &Charge) -> Result<Verdict, StoreError> {
        let inner = &*self.inner;
        debug_assert!((1..=TAKES_MAX).contains(&charge.takes.len()));
        let call = async {
            let command = spending(charge, "EVALSHA", inner.spend.get_hash());
            match inner.link.call(&command).await {
                // To the master of the agent's slot, whichever that is: of a cluster, each one lacks
                // the script by itself.
                Err(error) if is_no_script(&error) => {
                    inner.link.call(&spending(charge, "EVAL", SPEND_LUA)).await
                }
                answer => answer,
            }
        };
        let answer = within(inner.timeout, call).await?.map_err(|error| {
            if is_wrong_type(&error) { of_another_type() } else { self.unavailable(error) }
        })?;
        verdict(charge, &answer).ok_or_else(|| malformed(&answer))
    }
}

/// Returns the command that decides `charge`.
fn spending(charge: &Charge, verb: &'static str, script: &str) -> Cmd {
    let mut command = redis::cmd(verb);
    command.arg(script).arg(2);
    command.arg(bucket_key(&charge.agent)).arg(record_key(&charge.agent));
    for Take { bucket, cost } in &*charge.takes {
        if bucket.is_default {
            command.arg("");
        } else {
            command.arg([bucket.name.as_str(), "."].concat());
        }
        command.arg(bucket.limits.capacity().get());
        command.arg(bucket.limits.refill().micro());
        command.arg(cost.get());
    }
    command
}

impl Spend for RedisStore {
    type Future = Pin<Box<dyn Future<Output = Result<Verdict, StoreError>> + Send>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        let store = self.clone();
        Box::pin(async move { store.decide(&charge).await })
    }

    fn settle(&self, settlement: super::Settlement) {
        let _ = settlement;
    }
}

impl std::fmt::Debug for RedisStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RedisStore").field("address", &self.inner.address).finish_non_exhaustive()
    }
}
