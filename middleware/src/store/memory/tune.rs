//! The control plane's half of the in-process store: records, limits, use, the market.

use std::sync::atomic::Ordering;

use tokio::time::Instant;

use super::{Entry, Hashed, MemoryStore, SHARDS, Shard, Slot, lock};
use crate::{
    AgentId,
    store::{
        Bid, ByHand, Change, Cursor, Demand, Document, Kept, Life, Record, StoreError, Traded,
        Tune, Written,
    },
};

impl MemoryStore {
    /// What [`Tune::used`] calls the one node that there is.
    pub const NODE: &str = "in-process";
}

impl Tune for MemoryStore {
    async fn load(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        let load = |agent: &AgentId| Ok(self.with(agent, |entry| record(entry)));
        Ok(agents.iter().map(load).collect())
    }

    async fn demand(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Demand, StoreError>>, StoreError> {
        let one = |agent: &AgentId| self.peek(agent, |entry| demand(&entry.default));
        Ok(agents.iter().map(|agent| Ok(one(agent).unwrap_or_default())).collect())
    }

    async fn write(
        &self,
        changes: &[Change],
    ) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        let write = |change: &Change| Ok(self.with(&change.agent, |entry| write(entry, change)));
        Ok(changes.iter().map(write).collect())
    }

    async fn by_hand(&self, agent: &AgentId, deed: &ByHand) -> Result<(), StoreError> {
        match deed {
            ByHand::Limits { bucket: None, limits } => self.set_by_operator(agent, *limits),
            ByHand::Limits { bucket: Some(name), limits } => {
                self.set_named_by_operator(agent, name, Some(*limits));
            }
            ByHand::Ban { until_ms } => self.ban(agent, *until_ms),
        }
        Ok(())
    }

    async fn life(&self) -> Result<Life, StoreError> {
        let epoch = lock(&self.inner.epoch).clone();
        Ok(Life { run_id: "in-process".to_owned(), epoch })
    }

    async fn begin_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        lock(&self.inner.epoch).get_or_insert_with(|| epoch.to_owned());
        Ok(())
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        Ok(lock(&self.inner.progress).clone().into_iter().collect())
    }

    async fn note_progress(&self, progress: &[(String, u64)]) -> Result<(), StoreError> {
        lock(&self.inner.progress).extend(progress.iter().cloned());
        Ok(())
    }

    async fn agents(
        &self,
        from: Cursor,
        about: usize,
    ) -> Result<(Vec<AgentId>, Option<Cursor>), StoreError> {
        let (mut page, mut next) = (Vec::new(), from);
        while next.part < SHARDS && page.len() < about.max(1) {
            let wanted = about.max(1) - page.len();
            let behind = lock(&self.inner.shards[next.part]).page(next.at, wanted, &mut page);
            next = match behind {
                Some(at) => Cursor { at, ..next },
                None => Cursor { part: next.part + 1, at: 0 },
            };
        }
        Ok((page, (next.part < SHARDS).then_some(next)))
    }

    async fn used(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let net: i64 = self.inner.shards.iter().map(|shard| lock(shard).used).sum();
        let net = u64::try_from(net).unwrap_or(0);
        let used = self.inner.used.fetch_max(net, Ordering::Relaxed).max(net);
        Ok((used > 0).then(|| (Self::NODE.to_owned(), used)).into_iter().collect())
    }

    async fn trade(&self, bid: &Bid) -> Result<Traded, StoreError> {
        bid.check()?;
        Ok(lock(&self.inner.market).trade(bid, Instant::now()))
    }

    async fn document(&self) -> Result<Document, StoreError> {
        Ok(lock(&self.inner.document).clone())
    }

    async fn keep_document(&self, rev: u64, text: Option<&str>) -> Result<Kept, StoreError> {
        Document::check(text)?;
        let mut document = lock(&self.inner.document);
        if document.rev != rev {
            return Ok(Kept::Stale { rev: document.rev });
        }
        *document = Document { rev: rev + 1, text: text.map(str::to_owned) };
        Ok(Kept::Done { rev: document.rev })
    }

    async fn look(&self, agent: &AgentId) -> Result<Record, StoreError> {
        Ok(self.peek(agent, record).unwrap_or_default())
    }
}

impl Shard {
    /// Puts agents with a record into `page`, in the order of their hashes from `at` on, as many as
    /// `wanted` (more where hashes are equal); returns where to go on, if there are more.
    fn page(&self, at: u64, wanted: usize, page: &mut Vec<AgentId>) -> Option<u64> {
        let ahead = || {
            let kept = self.agents.iter().filter(|(_, entry)| entry.record.is_some());
            kept.map(|(known, _)| known).filter(|Hashed { hash, .. }| *hash >= at)
        };
        let mut hashes: Vec<u64> = ahead().map(|known| known.hash).collect();
        let last = match hashes.len() {
            0 => return None,
            few if few <= wanted => u64::MAX,
            _ => *hashes.select_nth_unstable(wanted - 1).1,
        };
        page.extend(ahead().filter(|known| known.hash <= last).map(|known| known.agent.clone()));
        last.checked_add(1)
    }
}

fn record(entry: &Entry) -> Record {
    let demand = demand(&entry.default);
    let limits = entry.default.limits;
    let banned_until_ms = (entry.banned_until_ms > 0).then_some(entry.banned_until_ms);
    let Some(kept) = &entry.record else {
        let operator = limits.is_some();
        return Record { limits, operator, demand, banned_until_ms, ..Record::default() };
    };
    Record {
        rev: kept.rev,
        limits,
        operator: limits != kept.written,
        state: kept.state.clone(),
        applied: kept.applied.clone().into_iter().collect(),
        seen: kept.seen.clone().into_iter().collect(),
        demand,
        banned_until_ms,
    }
}

fn write(entry: &mut Entry, change: &Change) -> Written {
    let demand = demand(&entry.default);
    let mut kept = entry.record.take().unwrap_or_default();
    let refused = if kept.rev != change.rev {
        Some(Written::Stale)
    } else {
        let operators = entry
            .default
            .limits
            .filter(|found| Some(*found) != kept.written && Some(*found) != change.adopts);
        operators.map(|found| Written::Operator {
            capacity: Some(found.capacity()),
            refill: Some(found.refill()),
        })
    };
    if refused.is_none() {
        kept.rev += 1;
        kept.written = Some(change.limits);
        kept.state.clone_from(&change.state);
        kept.applied.extend(change.applied.iter().cloned());
        kept.seen.extend(change.seen.iter().cloned());
        entry.default.limits = Some(change.limits);
        for (name, limits) in &change.named {
            let in_force = &mut entry.named(name).limits;
            if in_force.is_none() || in_force.as_ref() == kept.named.get(name) {
                *in_force = Some(*limits);
                kept.named.insert(name.clone(), *limits);
            }
        }
    }
    let rev = kept.rev;
    // A refused write of an agent that has no record makes none.
    entry.record = (rev > 0).then_some(kept);
    refused.unwrap_or(Written::Done { rev, demand })
}

fn demand(slot: &Slot) -> Demand {
    slot.level.map_or_else(Demand::default, |level| Demand {
        admitted: level.admitted,
        denied: level.denied,
        left: level.tokens.whole(),
    })
}
