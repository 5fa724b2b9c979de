//! What is read and written beside the lives of the store, over the connection of decisions: the document
//! of buckets, and the record of an agent for somebody who only looks.

use redis::{Cmd, Value};

use super::{
    CONTROL_TIMEOUT, RedisStore,
    link::within,
    wire::{
        HELD, bucket_key, is_wrong_type, items, malformed, of_another_type, record, record_key,
        text, unsigned,
    },
};
use crate::{
    AgentId,
    store::{Document, Kept, Record, StoreError},
};

/// The document of buckets: rev, text.
const DOCUMENT_KEY: &str = "merit:buckets";

/// `EVAL`, because writes are rare.
const KEEP_LUA: &str = include_str!("keep_document.lua");

impl RedisStore {
    pub(super) async fn read_document(&self) -> Result<Document, StoreError> {
        let mut command = redis::cmd("HMGET");
        command.arg(DOCUMENT_KEY).arg("rev").arg("text");
        let answer = self.ask(&command).await?;
        let Some([rev, found]) = items(&answer) else { return Err(malformed(&answer)) };
        if *rev == Value::Nil {
            return Ok(Document::default());
        }
        let rev = text(rev).and_then(|rev| rev.parse().ok()).ok_or_else(|| malformed(rev))?;
        let found = match found {
            Value::Nil => "",
            found => text(found).ok_or_else(|| malformed(found))?,
        };
        Ok(Document { rev, text: (!found.is_empty()).then(|| found.to_owned()) })
    }

    pub(super) async fn write_document(
        &self,
        rev: u64,
        text: Option<&str>,
    ) -> Result<Kept, StoreError> {
        Document::check(text)?;
        let mut command = redis::cmd("EVAL");
        command.arg(KEEP_LUA).arg(1).arg(DOCUMENT_KEY).arg(rev).arg(text.unwrap_or_default());
        let answer = self.ask(&command).await?;
        match items(&answer) {
            Some([Value::Int(done), rev]) => match (done, unsigned(rev)) {
                (1, Some(rev)) => Ok(Kept::Done { rev }),
                (0, Some(rev)) => Ok(Kept::Stale { rev }),
                _ => Err(malformed(&answer)),
            },
            _ => Err(malformed(&answer)),
        }
    }

    pub(super) async fn look_at(&self, agent: &AgentId) -> Result<Record, StoreError> {
        let mut kept = redis::cmd("HGETALL");
        kept.arg(record_key(agent));
        let mut bucket = redis::cmd("HMGET");
        bucket.arg(bucket_key(agent)).arg("capacity").arg("refill_rate").arg(HELD);
        bucket.arg("banned_until");
        let (kept, bucket) = tokio::try_join!(self.ask(&kept), self.ask(&bucket))?;
        record(&kept, &bucket).ok_or_else(|| malformed(&kept))
    }

    /// Sends one command to the master of its key, over the connection that finds its masters by itself.
    async fn ask(&self, command: &Cmd) -> Result<Value, StoreError> {
        match within(CONTROL_TIMEOUT, self.inner.link.call(command)).await? {
            Ok(answer) => Ok(answer),
            Err(error) if is_wrong_type(&error) => Err(of_another_type()),
            Err(error) => Err(self.unavailable(error)),
        }
    }
}
