//! The control plane's half: records, limits, the store's life, progress.

use std::time::Duration;

use redis::{Cmd, Value};
use tracing::warn;

use super::{
    BY_HAND_LUA, EPOCH_KEY, PRICE_KEY, PROGRESS_KEY, RedisStore, TRADE_LUA,
    cluster::{slot_of_agent, slot_of_tag},
    marks::{self, Said, marks},
    masters::{Control, Masters},
    usage::{self, NODES_KEY},
    wire::{
        APPLIED, HELD, RECORDS, SEEN, agent_of_record, bucket_key, demand, is_fault, items,
        malformed, of_another_type, record, record_key, text, traded, written,
    },
};
use crate::{
    AgentId,
    store::{
        BUCKET_TTL, Bid, ByHand, Change, Cursor, Demand, Document, Kept, Life, RECORD_TTL, Record,
        StoreError, Traded, Tune, Written,
    },
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
            bucket.arg("banned_until");
            commands.extend([(slot, kept), (slot, bucket)]);
        }
        let answers = self.control(async |masters| masters.send(commands).await).await?;
        let read = |pair: &[Value]| {
            if pair.iter().any(is_fault) {
                return Err(of_another_type());
            }
            record(&pair[0], &pair[1]).ok_or_else(|| malformed(&pair[0]))
        };
        Ok(answers.chunks_exact(2).map(read).collect())
    }

    async fn demand(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Demand, StoreError>>, StoreError> {
        if agents.is_empty() {
            return Ok(Vec::new());
        }
        let ask = |agent: &AgentId| {
            let mut held = redis::cmd("HMGET");
            held.arg(bucket_key(agent)).arg(HELD);
            (slot_of_agent(agent.as_str()), held)
        };
        let commands: Vec<(u16, Cmd)> = agents.iter().map(ask).collect();
        let answers = self.control(async |masters| masters.send(commands).await).await?;
        let read = |answer: &Value| match items(answer) {
            Some([held]) => Ok(demand(held)),
            _ if is_fault(answer) => Err(of_another_type()),
            _ => Err(malformed(answer)),
        };
        Ok(answers.iter().map(read).collect())
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
        let answers = self.control(async |masters| masters.send(commands).await).await?;
        let read = |answer: &Value| match answer {
            fault if is_fault(fault) => Err(of_another_type()),
            answer => written(answer).ok_or_else(|| malformed(answer)),
        };
        Ok(answers.iter().map(read).collect())
    }

    async fn by_hand(&self, agent: &AgentId, deed: &ByHand) -> Result<(), StoreError> {
        let mut command = redis::cmd("EVAL");
        command.arg(BY_HAND_LUA).arg(2).arg(bucket_key(agent)).arg(record_key(agent));
        command.arg(milliseconds(BUCKET_TTL)).arg(milliseconds(RECORD_TTL));
        match deed {
            ByHand::Ban { until_ms } => {
                command.arg("banned_until").arg(*until_ms);
            }
            ByHand::Limits { bucket, limits } => {
                let field = |half: &str| match bucket {
                    Some(name) => format!("{name}.{half}"),
                    None => half.to_owned(),
                };
                command.arg(field("capacity")).arg(limits.capacity().get());
                command.arg(field("refill_rate")).arg(limits.refill().to_string());
            }
        }
        let slot = slot_of_agent(agent.as_str());
        let answers =
            self.control(async |masters| masters.send(vec![(slot, command)]).await).await?;
        match &answers[..] {
            [Value::Int(1)] => Ok(()),
            [fault] if is_fault(fault) => Err(of_another_type()),
            other => Err(malformed(&Value::Array(other.to_vec()))),
        }
    }

    async fn document(&self) -> Result<Document, StoreError> {
        self.read_document().await
    }

    async fn keep_document(&self, rev: u64, text: Option<&str>) -> Result<Kept, StoreError> {
        self.write_document(rev, text).await
    }

    async fn look(&self, agent: &AgentId) -> Result<Record, StoreError> {
        self.look_at(agent).await
    }

    async fn life(&self) -> Result<Life, StoreError> {
        let mut control = self.inner.control.lock().await;
        let life = live(&mut control, &self.inner.address).await;
        life.inspect_err(|_| control.give_up())
    }

    async fn begin_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        self.control(async |masters| {
            if masters.is_cluster() {
                masters.send(marks::begin(epoch)).await.map(drop)
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
                let answers = masters.send(marks::read_whole()).await?;
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
                return masters.send(marks::note(&epoch, progress)).await.map(drop);
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

    async fn agents(
        &self,
        from: Cursor,
        about: usize,
    ) -> Result<(Vec<AgentId>, Option<Cursor>), StoreError> {
        let mut scan = redis::cmd("SCAN");
        // Nearly every record has a bucket beside it, which the server counts as well.
        let count = about.saturating_mul(2).clamp(SCAN_MIN, SCAN_MAX);
        scan.arg(from.at).arg("MATCH").arg(RECORDS).arg("COUNT").arg(count);
        let (masters, answer) = self
            .control(async |masters| Ok((masters.count(), masters.ask(from.part, &scan).await?)))
            .await?;
        // Masters have become fewer since the walk began.
        let Some(answer) = answer else { return Ok((Vec::new(), None)) };
        let Some([at, keys]) = items(&answer) else { return Err(malformed(&answer)) };
        let at = text(at).and_then(|at| at.parse().ok()).ok_or_else(|| malformed(&answer))?;
        let keys = items(keys).ok_or_else(|| malformed(&answer))?;
        let found = keys.iter().filter_map(text).filter_map(agent_of_record).collect();
        let next = if at == 0 { Cursor { part: from.part + 1, at } } else { Cursor { at, ..from } };
        Ok((found, (next.part < masters).then_some(next)))
    }

    async fn used(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let mut list = redis::cmd("ZRANGE");
        list.arg(NODES_KEY).arg(0).arg(-1);
        self.control(async |masters| {
            let listed = masters.send(vec![(slot_of_tag(NODES_KEY), list)]).await?;
            let nodes: Vec<&str> =
                listed.iter().filter_map(items).flatten().filter_map(text).collect();
            if nodes.is_empty() {
                return Ok(Vec::new());
            }
            let count = |node: &&str| {
                let key = usage::key(node);
                let mut get = redis::cmd("GET");
                get.arg(&key);
                (slot_of_tag(&key), get)
            };
            let counts: Vec<(u16, Cmd)> = nodes.iter().map(count).collect();
            let counts = masters.send(counts).await?;
            let read = |(node, count): (&&str, &Value)| {
                Some(((*node).to_owned(), text(count)?.parse().ok()?))
            };
            Ok(nodes.iter().zip(&counts).filter_map(read).collect())
        })
        .await
    }

    async fn trade(&self, bid: &Bid) -> Result<Traded, StoreError> {
        bid.check()?;
        let mut command = redis::cmd("EVAL");
        command.arg(TRADE_LUA).arg(1).arg(PRICE_KEY).arg(&bid.who).arg(bid.term_ms());
        if let Some(quote) = bid.quote {
            // The shortest decimals that read back as these very numbers.
            command.arg(quote.price.to_string()).arg(quote.use_share.to_string());
        }
        let slot = slot_of_tag(PRICE_KEY);
        let answers =
            self.control(async |masters| masters.send(vec![(slot, command)]).await).await?;
        match &answers[..] {
            [fault] if is_fault(fault) => Err(of_another_type()),
            [answer] => traded(answer).ok_or_else(|| malformed(answer)),
            _ => Err(StoreError::Malformed { what: "nothing".to_owned() }),
        }
    }
}

/// Arguments of a write, and bytes of them beside its texts, that most stay below.
const WRITING_ARGS: usize = 20;
const WRITING_BYTES: usize = 512;

/// Bounds of how many keys one `SCAN` looks at: it holds the server up for under 5 ms.
const SCAN_MIN: usize = 10;
const SCAN_MAX: usize = 10_000;

impl RedisStore {
    async fn control<T>(
        &self,
        calls: impl AsyncFnOnce(&mut Masters) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.control.lock().await.with(&self.inner.address, calls).await
    }

    /// Returns the command that writes a change.
    fn writing(&self, change: &Change) -> Cmd {
        let texts =
            change.state.len() + change.seen.iter().map(|(_, ids)| ids.len()).sum::<usize>();
        let mut command = Cmd::with_capacity(WRITING_ARGS, texts + WRITING_BYTES);
        command.arg("EVALSHA").arg(self.inner.set_limits.get_hash()).arg(2);
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
        command.arg(change.named.len());
        for (name, limits) in &change.named {
            command
                .arg(name.as_str())
                .arg(limits.capacity().get())
                .arg(limits.refill().to_string());
        }
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
    for _ in 0..3 {
        let reads = marks().iter().map(|mark| (mark.slot, marks::read(mark))).collect();
        let answers = masters.send(reads).await?;
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
        masters.send(repairs).await?;
    }
    Err(StoreError::Lost)
}

/// Sends one command to a store that is no cluster.
async fn one(masters: &mut Masters, command: Cmd) -> Result<Value, StoreError> {
    let mut answers = masters.send(vec![(0, command)]).await?;
    answers.pop().ok_or_else(|| StoreError::Malformed { what: "nothing".to_owned() })
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
