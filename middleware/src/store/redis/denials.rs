//! Refusals remembered: who was just refused is refused here, until it would pass.
//!
//! 1. An entry is an agent with a plan (buckets, limits, costs) and ends at the moment at which the
//!    server would admit it, counted from when the call was sent and so never later than that; at most
//!    [`DENIAL_MAX`] later, because limits may be raised and tokens given back elsewhere meanwhile.
//! 2. What is refused here is counted in Redis too: with the agent's next call, or by the sweep after
//!    the entry ended.
//! 3. A refusal that is repeated tells what was held when it was made; its wait counts down.
//! 4. At most [`DENIALS_MAX`] entries, [`PLANS_MAX`] per agent; beyond it Redis is asked.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

use super::batch::{Group, Kind};
use crate::{
    AgentId,
    store::{Decision, Take, Verdict},
};

/// The longest a refusal is repeated without asking Redis: 100 ms.
pub const DENIAL_MAX: Duration = Duration::from_millis(100);

/// The most refusals remembered.
pub const DENIALS_MAX: usize = 1 << 16;

/// The most refusals remembered of one agent: one per combination of buckets and costs.
const PLANS_MAX: usize = 8;

/// A power of two, so that two cores seldom meet.
const SHARDS: usize = 16;

type Shard = HashMap<AgentId, Vec<Denial>>;

/// The refusals of one store.
pub(super) struct Denials {
    on: bool,
    shards: [Mutex<Shard>; SHARDS],
    len: AtomicUsize,
    /// True while somebody sweeps every [`DENIAL_MAX`].
    swept: AtomicBool,
}

struct Denial {
    takes: Arc<[Take]>,
    /// Until when it is repeated.
    until: Instant,
    /// When the request would pass, as the caller is told; `None`: never.
    passes: Option<Instant>,
    verdict: Verdict,
    /// How often it was repeated since Redis was told.
    uncounted: u32,
}

impl Denial {
    fn is_for(&self, takes: &Arc<[Take]>) -> bool {
        Arc::ptr_eq(&self.takes, takes) || *self.takes == **takes
    }

    /// Returns what Redis has to count, once.
    fn uncounted(&mut self, agent: &AgentId) -> Option<Group> {
        let count = std::mem::take(&mut self.uncounted);
        let lacking = self.verdict.held().enumerate().filter(|(_, held)| held.short);
        let short = lacking.fold(0, |mask, (bucket, _)| mask | 1 << bucket);
        let (agent, takes) = (agent.clone(), Arc::clone(&self.takes));
        (count > 0).then_some(Group { agent, takes, kind: Kind::Refuse { short }, count })
    }
}

impl Denials {
    pub(super) fn new(on: bool) -> Self {
        Self {
            on,
            shards: std::array::from_fn(|_| Mutex::default()),
            len: AtomicUsize::new(0),
            swept: AtomicBool::new(false),
        }
    }

    fn is_empty(&self) -> bool {
        self.len.load(Ordering::Relaxed) == 0
    }

    fn shard(&self, agent: &AgentId) -> MutexGuard<'_, Shard> {
        // FNV-1a picks the shard alone: agents made to collide share a lock, not a chain.
        let fnv = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
        let hash = agent.as_str().bytes().fold(0x811c_9dc5, fnv);
        lock(&self.shards[(hash >> 16) as usize % SHARDS])
    }

    /// Returns the verdict on a request that would be refused if Redis were asked.
    pub(super) fn refuse(
        &self,
        agent: &AgentId,
        takes: &Arc<[Take]>,
        now: Instant,
    ) -> Option<Verdict> {
        if self.is_empty() {
            return None;
        }
        let mut shard = self.shard(agent);
        let denial = shard.get_mut(agent)?.iter_mut().find(|denial| denial.is_for(takes))?;
        if now >= denial.until {
            return None;
        }
        denial.uncounted = denial.uncounted.saturating_add(1);
        let wait = denial.passes.map(|passes| passes.saturating_duration_since(now));
        let wait_ms = wait.map(|wait| u64::try_from(wait.as_nanos().div_ceil(1_000_000)));
        let wait_ms = wait_ms.map(|wait_ms| wait_ms.unwrap_or(u64::MAX).max(1));
        Some(Verdict { decision: Decision::Denied { wait_ms }, ..denial.verdict.clone() })
    }

    /// Remembers a refusal by a call that was sent at `sent` and answered just now. Returns true when
    /// the caller must see to the sweep: call [`Denials::sweep`] every [`DENIAL_MAX`].
    #[must_use]
    pub(super) fn learn(&self, group: &Group, verdict: Verdict, sent: Instant) -> bool {
        let Decision::Denied { wait_ms } = verdict.decision else { return false };
        if !self.on {
            return false;
        }
        let wait = wait_ms.map(Duration::from_millis);
        let until = sent + wait.map_or(DENIAL_MAX, |wait| wait.min(DENIAL_MAX));
        // Told from the answer on, so that nobody is told less than the truth.
        let passes = wait.and_then(|wait| Instant::now().checked_add(wait));
        let takes = Arc::clone(&group.takes);
        let mut shard = self.shard(&group.agent);
        let known = shard.get_mut(&group.agent);
        if let Some(denials) = known {
            if let Some(denial) = denials.iter_mut().find(|denial| denial.is_for(&takes)) {
                (denial.until, denial.passes, denial.verdict) = (until, passes, verdict);
                return false;
            }
            if denials.len() >= PLANS_MAX {
                return false;
            }
        }
        if self.len.fetch_add(1, Ordering::Relaxed) >= DENIALS_MAX {
            self.len.fetch_sub(1, Ordering::Relaxed);
            return false;
        }
        let denial = Denial { takes, until, passes, verdict, uncounted: 0 };
        shard.entry(group.agent.clone()).or_default().push(denial);
        !self.swept.swap(true, Ordering::Relaxed)
    }

    /// Returns what Redis has to count of this agent.
    pub(super) fn uncounted(&self, agent: &AgentId) -> Vec<Group> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut shard = self.shard(agent);
        let denials = shard.get_mut(agent).into_iter().flatten();
        denials.filter_map(|denial| denial.uncounted(agent)).collect()
    }

    /// Forgets an agent's refusals, because tokens came back; returns what Redis has to count.
    pub(super) fn forget(&self, agent: &AgentId) -> Vec<Group> {
        if self.is_empty() {
            return Vec::new();
        }
        let mut denials = self.shard(agent).remove(agent).unwrap_or_default();
        self.len.fetch_sub(denials.len(), Ordering::Relaxed);
        denials.iter_mut().filter_map(|denial| denial.uncounted(agent)).collect()
    }

    /// Drops what has ended; returns what Redis has to count of that, at most `most` groups: the rest
    /// waits for the next sweep. `None`: nothing is left, and nobody need sweep.
    pub(super) fn sweep(&self, most: usize) -> Option<Vec<Group>> {
        let now = Instant::now();
        let (mut ended, mut dropped) = (Vec::new(), 0);
        for shard in &self.shards {
            lock(shard).retain(|agent, denials| {
                denials.retain_mut(|denial| {
                    if denial.until > now || (denial.uncounted > 0 && ended.len() >= most) {
                        return true;
                    }
                    ended.extend(denial.uncounted(agent));
                    dropped += 1;
                    false
                });
                !denials.is_empty()
            });
        }
        self.len.fetch_sub(dropped, Ordering::Relaxed);
        if ended.is_empty() && self.is_empty() {
            self.swept.store(false, Ordering::Relaxed);
            // An entry made in between may have seen a sweep that is now over.
            if self.is_empty() || self.swept.swap(true, Ordering::Relaxed) {
                return None;
            }
        }
        Some(ended)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bucket::{BucketName, Limits, Tokens},
        store::{BucketRule, Held},
    };

    fn takes(cost: u64) -> Arc<[Take]> {
        let name = BucketName::new("default").unwrap();
        let limits = Limits::per_second(1.0, 100).unwrap();
        let bucket = BucketRule { name, is_default: true, limits, shadow: false };
        [Take { bucket, cost: Tokens::new(cost).unwrap() }].into()
    }

    fn learn(denials: &Denials, agent: &AgentId, takes: &Arc<[Take]>, wait_ms: u64) -> bool {
        let Take { bucket, .. } = &takes[0];
        let first = Held { limits: bucket.limits, tokens: Tokens::ZERO.nano(), short: true };
        let decision = Decision::Denied { wait_ms: Some(wait_ms) };
        let (agent, takes) = (agent.clone(), Arc::clone(takes));
        let group = Group { agent, takes, kind: Kind::Take, count: 1 };
        denials.learn(&group, Verdict { decision, first, rest: Vec::new() }, Instant::now())
    }

    fn agent(index: usize) -> AgentId {
        AgentId::new(&format!("agent{index}")).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_ends_when_it_would_pass_and_after_a_tenth_of_a_second() {
        let (denials, agent) = (Denials::new(true), agent(1));
        for (wait_ms, ends_ms) in [(30, 30), (5000, 100)] {
            let takes = takes(wait_ms % 97);
            let _ = learn(&denials, &agent, &takes, wait_ms);
            tokio::time::advance(Duration::from_millis(ends_ms - 1)).await;
            let verdict = denials.refuse(&agent, &takes, Instant::now()).expect("not ended");
            let left = wait_ms - (ends_ms - 1);
            assert_eq!(verdict.decision, Decision::Denied { wait_ms: Some(left) });
            tokio::time::advance(Duration::from_millis(1)).await;
            assert_eq!(denials.refuse(&agent, &takes, Instant::now()), None);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn beyond_its_bounds_nothing_is_remembered_and_a_sweep_makes_room() {
        let denials = Denials::new(true);
        for cost in 1..50 {
            let _ = learn(&denials, &agent(0), &takes(cost), 50);
        }
        assert_eq!(denials.len.load(Ordering::Relaxed), PLANS_MAX);
        for index in 0..DENIALS_MAX + 1000 {
            let _ = learn(&denials, &agent(index), &takes(1), 50);
        }
        assert_eq!(denials.len.load(Ordering::Relaxed), DENIALS_MAX);
        tokio::time::advance(DENIAL_MAX).await;
        assert!(denials.sweep(10).is_none(), "nothing to count: nothing to come back for");
        assert!(denials.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_hands_over_every_count_once_and_a_bounded_number_at_a_time() {
        let denials = Denials::new(true);
        let swept = (0..25).filter(|index| learn(&denials, &agent(*index), &takes(1), 50)).count();
        assert_eq!(swept, 1, "one sweeps for all");
        for index in 0..25 {
            for _ in 0..=index {
                assert!(denials.refuse(&agent(index), &takes(1), Instant::now()).is_some());
            }
        }
        tokio::time::advance(DENIAL_MAX).await;
        let mut counts = Vec::new();
        while let Some(ended) = denials.sweep(10) {
            assert!(ended.len() <= 10);
            counts.extend(ended.iter().map(|group| group.count));
        }
        counts.sort_unstable();
        assert!(counts.into_iter().eq(1..=25));
        assert!(learn(&denials, &agent(1), &takes(1), 50), "somebody must sweep again");
    }
}
