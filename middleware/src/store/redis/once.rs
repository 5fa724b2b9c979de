//! Short-lived marks that whoever has the key may take, once: for what is handed from one process to another
//! beside the buckets.

use std::time::Duration;

use redis::{Value, from_redis_value};

use super::{CONTROL_TIMEOUT, RedisStore, link::within, wire::malformed};
use crate::store::StoreError;

impl RedisStore {
    /// Puts `value` at `key` for `life` (at least a millisecond), and returns false when something is there.
    ///
    /// # Errors
    ///
    /// When the servers do not answer within 2 s, or refuse.
    pub async fn leave(&self, key: &str, value: &str, life: Duration) -> Result<bool, StoreError> {
        let mut command = redis::cmd("SET");
        command.arg(key).arg(value).arg("NX").arg("PX").arg(life.as_millis().max(1));
        let answer = within(CONTROL_TIMEOUT, self.inner.link.call(&command)).await?;
        Ok(!matches!(answer.map_err(|error| self.unavailable(error))?, Value::Nil))
    }

    /// Takes what [`RedisStore::leave`] put at `key`: nobody else gets it. Returns nothing when there is none
    /// any more. Needs Redis 6.2.
    ///
    /// # Errors
    ///
    /// When the servers do not answer within 2 s, or refuse; or when what is there is no text.
    pub async fn take(&self, key: &str) -> Result<Option<String>, StoreError> {
        let mut command = redis::cmd("GETDEL");
        command.arg(key);
        let answer = within(CONTROL_TIMEOUT, self.inner.link.call(&command)).await?;
        let answer = answer.map_err(|error| self.unavailable(error))?;
        let shown = answer.clone();
        from_redis_value(answer).map_err(|_| malformed(&shown))
    }
}
