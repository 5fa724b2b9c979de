//! How many requests of one agent are in flight on this node at a time.
//!
//! A place is held until the answer's body ended or was dropped, not just until its head was there:
//! a streamed answer counts as long as it streams. An agent has an entry only while it has a place,
//! so memory is bounded by the requests in flight.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use crate::AgentId;

/// What the policy is called in `RateLimit-Policy` and `violated-policies`; no bucket may be called so.
pub const CONCURRENCY_POLICY: &str = "concurrency";

/// A power of two, so that a shard is picked by a mask.
const SHARDS: usize = 16;

/// A map that had more room than this gives it back once it is empty.
const ROOM_KEPT: usize = 1024;

/// The places of all agents.
pub(super) struct InFlight {
    limit: u32,
    shards: Box<[Mutex<HashMap<AgentId, u32>>]>,
    hasher: RandomState,
}

/// One agent's place, given back when dropped.
pub(super) struct Permit {
    places: Arc<InFlight>,
    agent: AgentId,
    /// How many more the agent might have had at that moment.
    pub(super) left: u32,
}

impl InFlight {
    pub(super) fn new(limit: u32) -> Arc<Self> {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Arc::new(Self { limit, shards, hasher: RandomState::new() })
    }

    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    /// Takes a place for `agent`; `None` when it has as many as it may have.
    pub(super) fn enter(self: &Arc<Self>, agent: &AgentId) -> Option<Permit> {
        let mut shard = self.shard(agent);
        let has = shard.get(agent).copied().unwrap_or(0);
        if has >= self.limit {
            return None;
        }
        match shard.get_mut(agent) {
            Some(has) => *has += 1,
            None => drop(shard.insert(agent.clone(), 1)),
        }
        let left = self.limit - has - 1;
        Some(Permit { places: Arc::clone(self), agent: agent.clone(), left })
    }

    /// A panic elsewhere leaves whole entries behind: every change here is one step.
    fn shard(&self, agent: &AgentId) -> MutexGuard<'_, HashMap<AgentId, u32>> {
        #[allow(clippy::cast_possible_truncation, reason = "only the low bits pick a shard")]
        let hash = self.hasher.hash_one(agent) as usize;
        self.shards[hash & (SHARDS - 1)].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shard = self.places.shard(&self.agent);
        match shard.get_mut(&self.agent) {
            Some(has @ 2..) => *has -= 1,
            left => {
                debug_assert_eq!(left.copied(), Some(1), "who gives a place back has one");
                shard.remove(&self.agent);
                if shard.is_empty() && shard.capacity() > ROOM_KEPT {
                    shard.shrink_to(ROOM_KEPT);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_without_a_place_leaves_nothing_behind() {
        let places = InFlight::new(2);
        let agents: Vec<_> = (0..10_000).map(|n| AgentId::new(&format!("a{n}")).unwrap()).collect();
        let first: Vec<_> = agents.iter().map(|agent| places.enter(agent).unwrap()).collect();
        let second: Vec<_> = agents.iter().map(|agent| places.enter(agent).unwrap()).collect();
        assert!(agents.iter().all(|agent| places.enter(agent).is_none()));
        assert_eq!((first[0].left, second[0].left), (1, 0));
        drop(first);
        assert!(agents.iter().all(|agent| places.enter(agent).is_some()));
        drop(second);
        for shard in &places.shards {
            let shard = shard.lock().unwrap();
            assert!(shard.is_empty() && shard.capacity() <= 2 * ROOM_KEPT);
        }
    }
}
