//! The control plane's half: records, limits, the store's life, progress.

use std::time::Duration;

use redis::Value;

use super::{
    EPOCH_KEY, PROGRESS_KEY, RedisStore,
    link::Control,
    wire::{
        APPLIED, HELD, SEEN, bucket_key, is_fault, malformed, of_another_type, record, record_key,
        text, written,
    },
};
use crate::{
    AgentId,
    store::{BUCKET_TTL, Change, Life, RECORD_TTL, Record, StoreError, Tune, Written},
};

impl Tune for RedisStore {
    async fn load(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        if agents.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for agent in agents {
            pipeline.cmd("HGETALL").arg(record_key(agent));
            let bucket = pipeline.cmd("HMGET").arg(bucket_key(agent));
            bucket.arg("capacity").arg("refill_rate").arg(HELD);
        }
        let answers = self.control_all(&pipeline).await?;
        let read = |pair: &[Value]| {
            if pair.iter().any(is_fault) {
                return Err(of_another_type());
            }
            record(&pair[0], &pair[1]).ok_or_else(|| malformed(&pair[0]))
        };
        Ok(answers.chunks_exact(2).map(read).collect())
    }

    async fn write(
        &self,
        changes: &[Change],
    ) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        if changes.is_empty() {
            return Ok(Vec::new());
        }
        let mut pipeline = redis::pipe();
        for change in changes {
            let command = pipeline.cmd("EVALSHA").arg(self.inner.set_limits.get_hash()).arg(2);
            command.arg(bucket_key(&change.agent)).arg(record_key(&change.agent));
            command.arg(change.rev);
            command.arg(change.limits.capacity().get());
            command.arg(change.limits.refill().to_string());
            match change.adopts {
                Some(found) => command.arg(found.capacity().get()).arg(found.refill().micro()),
                None => command.arg("").arg(""),
            };
            command.arg(&change.state);
            command.arg(milliseconds(BUCKET_TTL)).arg(milliseconds(RECORD_TTL));
            for (source, offset) in &change.applied {
                command.arg(format!("{APPLIED}{source}")).arg(offset);
            }
            for (slot, ids) in &change.seen {
                command.arg(format!("{SEEN}{slot}")).arg(ids);
            }
        }
        let answers = self.control_all(&pipeline).await?;
        let read = |answer: &Value| match answer {
            fault if is_fault(fault) => Err(of_another_type()),
            answer => written(answer).ok_or_else(|| malformed(answer)),
        };
        Ok(answers.iter().map(read).collect())
    }

    async fn life(&self) -> Result<Life, StoreError> {
        {
            let mut control = self.inner.control.lock().await;
            if matches!(*control, Control::Broken) {
                *control = Control::Up(self.connect_control().await?);
            }
        }
        let info = self.control(redis::cmd("INFO").arg("server")).await?;
        let run_id = match &info {
            Value::VerbatimString { text, .. } => run_id(text),
            other => text(other).and_then(run_id),
        };
        let run_id = run_id.ok_or_else(|| malformed(&info))?;
        let epoch = self.control(redis::cmd("GET").arg(EPOCH_KEY)).await?;
        Ok(Life { run_id, epoch: text(&epoch).map(str::to_owned) })
    }

    async fn begin_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        self.control(redis::cmd("SET").arg(EPOCH_KEY).arg(epoch).arg("NX")).await.map(drop)
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let answer = self.control(redis::cmd("HGETALL").arg(PROGRESS_KEY)).await?;
        redis::from_redis_value(answer.clone()).map_err(|_| malformed(&answer))
    }

    async fn note_progress(&self, progress: &[(String, u64)]) -> Result<(), StoreError> {
        if progress.is_empty() {
            return Ok(());
        }
        let mut command = redis::cmd("HSET");
        command.arg(PROGRESS_KEY);
        for (source, offset) in progress {
            command.arg(source).arg(offset);
        }
        self.control(&command).await.map(drop)
    }
}

fn run_id(info: &str) -> Option<String> {
    info.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().to_owned())
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
