//! The control plane's half: records, limits, the store's life, progress.

use std::time::Duration;

use redis::{Cmd, Value};
use tracing::warn;

use super::{
    EPOCH_KEY, PROGRESS_KEY, RedisStore,
    cluster::slot_of_agent,
    marks::{self, Said, marks},
    masters::{Control, Masters},
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
        let mut commands = Vec::with_capacity(agents.len() * 2);
        for agent in agents {
            let slot = slot_of_agent(agent.as_str());
            let mut kept = redis::cmd("HGETALL");
            kept.arg(record_key(agent));
            let mut bucket = redis::cmd("HMGET");
            bucket.arg(bucket_key(agent)).arg("capacity").arg("refill_rate").arg(HELD);
            commands.extend([(slot, kept), (slot, bucket)]);
        }
        let answers = self.control(async |masters| masters.send(&commands).await).await?;
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
        let place = |change: &Change| (slot_of_agent(change.agent.as_str()), self.writing(change));
        let commands: Vec<(u16, Cmd)> = changes.iter().map(place).collect();
        let answers = self.control(async |masters| masters.send(&commands).await).await?;
        let read = |answer: &Value| match answer {
            fault if is_fault(fault) => Err(of_another_type()),
            answer => written(answer).ok_or_else(|| malformed(answer)),
        };
        Ok(answers.iter().map(read).collect())
    }

    async fn life(&self) -> Result<Life, StoreError> {
        let mut control = self.inner.control.lock().await;
        let life = live(&mut control, &self.inner.address).await;
        life.inspect_err(|_| control.give_up())
    }

    async fn begin_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        self.control(async |masters| {
            if masters.is_cluster() {
                masters.send(&marks::begin(epoch)).await.map(drop)
            } else {
                let mut command = redis::cmd("SET");
                command.arg(EPOCH_KEY).arg(epoch).arg("NX");
                one(masters, command).await.map(drop)
            }
        })
        .await
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.control(async |masters| {
            if masters.is_cluster() {
                let answers = masters.send(&marks::read_whole()).await?;
                return marks::least(&answers).ok_or_else(|| malformed(&Value::Array(answers)));
            }
            let mut command = redis::cmd("HGETALL");
            command.arg(PROGRESS_KEY);
            let answer = one(masters, command).await?;
            redis::from_redis_value(answer.clone()).map_err(|_| malformed(&answer))
        })
        .await
    }

    async fn note_progress(&self, progress: &[(String, u64)]) -> Result<(), StoreError> {
        if progress.is_empty() {
            return Ok(());
        }
        self.control(async |masters| {
            if masters.is_cluster() {
                let Some(epoch) = masters.epoch.clone() else { return Ok(()) };
                return masters.send(&marks::note(&epoch, progress)).await.map(drop);
            }
            let mut command = redis::cmd("HSET");
            command.arg(PROGRESS_KEY);
            for (source, offset) in progress {
                command.arg(source).arg(offset);
            }
            one(masters, command).await.map(drop)
        })
        .await
    }
}

impl RedisStore {
    async fn control<T>(
        &self,
        calls: impl AsyncFnOnce(&mut Masters) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.control.lock().await.with(&self.inner.address, calls).await
    }

    /// Returns the command that writes a change.
    fn writing(&self, change: &Change) -> Cmd {
        let mut command = redis::cmd("EVALSHA");
        command.arg(self.inner.set_limits.get_hash()).arg(2);
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
        command
    }
}

/// Connects to whoever is a master now, and asks who that is and whose data is there.
async fn live(control: &mut Control, name: &str) -> Result<Life, StoreError> {
    let masters = control.connect(name).await?;
    let run_ids = masters.run_ids().await?;
    let life = if masters.is_cluster() {
        let said = mended(masters).await?;
        masters.epoch = said.epoch().map(str::to_owned);
        let mut sorted: Vec<&str> = run_ids.values().map(String::as_str).collect();
        sorted.sort_unstable();
        let run_id = format!("{} {:016x}", sorted.join("+"), said.born);
        Life { run_id, epoch: masters.epoch.clone() }
    } else {
        let mut command = redis::cmd("GET");
        command.arg(EPOCH_KEY);
        let epoch = one(masters, command).await?;
        let run_id = run_ids.values().next().cloned().unwrap_or_default();
        Life { run_id, epoch: text(&epoch).map(str::to_owned) }
    };
    let unmarked: Vec<String> = masters.slots().map_or_else(Vec::new, |slots| {
        marks::unmarked(slots).map(|(host, port)| format!("{host}:{port}")).collect()
    });
    if control.note(run_ids) {
        for master in unmarked {
            warn!(
                master,
                "this master has few, scattered slots: what it loses is folded again only as far as \
                 the replay window reaches"
            );
        }
    }
    Ok(life)
}

/// Reads the marks, and makes those anew that are gone while others are there.
async fn mended(masters: &mut Masters) -> Result<Said, StoreError> {
    let reads: Vec<(u16, Cmd)> =
        marks().iter().map(|mark| (mark.slot, marks::read(mark))).collect();
    for _ in 0..3 {
        let answers = masters.send(&reads).await?;
        let said = Said::new(&answers).ok_or_else(|| malformed(&Value::Array(answers)))?;
        let repairs = said.repairs();
        if repairs.is_empty() {
            return Ok(said);
        }
        warn!(
            marks = repairs.len(),
            "part of the bucket store holds none of our data or an older copy: its limits are \
             rebuilt from the log"
        );
        masters.send(&repairs).await?;
    }
    Err(StoreError::Lost)
}

/// Sends one command to a store that is no cluster.
async fn one(masters: &mut Masters, command: Cmd) -> Result<Value, StoreError> {
    let mut answers = masters.send(&[(0, command)]).await?;
    answers.pop().ok_or_else(|| StoreError::Malformed { what: "nothing".to_owned() })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
