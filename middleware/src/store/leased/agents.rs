//! The agents of one shard: found, bounded, dropped when idle.
//!
//! A lease with a loan on its way is never dropped: whoever started it finds it again.

use std::sync::Arc;

use foldhash::quality::RandomState;
use lru::LruCache;
use tokio::sync::oneshot;

use super::lease::{Answer, Bounds, Lease};
use crate::{
    AgentId,
    store::{Charge, Direction, Take, Verdict},
};

/// The most plans of one agent with a lease of their own; the one not used for longest makes room.
pub(super) const PLANS_MAX: usize = 4;

/// The most requests that wait for one loan; further ones ask the store themselves.
pub(super) const WAITERS_MAX: usize = 1024;

/// How many agents are looked at to find one that can make room.
const EVICT_TRIES: usize = 8;

/// Multiples of charges that the store is to book: on their way back, or refused.
#[derive(Debug)]
pub(super) struct Booking {
    pub(super) agent: AgentId,
    pub(super) takes: Arc<[Take]>,
    pub(super) count: u32,
    pub(super) direction: Direction,
}

impl Booking {
    /// Multiples that come back.
    pub(super) fn back(agent: &AgentId, takes: &Arc<[Take]>, count: u32) -> Self {
        let direction = Direction::GiveBack;
        Self { agent: agent.clone(), takes: Arc::clone(takes), count, direction }
    }

    /// Refusals told from memory.
    pub(super) fn refused(agent: &AgentId, (takes, count): (Arc<[Take]>, u32)) -> Self {
        Self { agent: agent.clone(), takes, count, direction: Direction::Refused }
    }
}

/// What to do with a request.
pub(super) enum Asked {
    /// It is decided.
    Answered(Verdict),
    /// It is decided, and the lease wants renewing with so many multiples ahead.
    Renew(Verdict, u32),
    /// It waits for the loan on its way.
    Wait(oneshot::Receiver<Answer>),
    /// Its own charge goes to the store, with so many multiples ahead.
    Lead(u32),
    /// It has nothing to do with leases.
    Bypass,
}

/// Agents that were here within the last term.
#[derive(Debug)]
pub(super) struct Agents {
    agents: LruCache<AgentId, Agent, RandomState>,
    most: usize,
}

#[derive(Debug)]
struct Agent {
    seen_ms: u64,
    first: Lease,
    /// Up to [`PLANS_MAX`] − 1 further plans.
    others: Vec<Lease>,
}

impl Agent {
    fn leases(&mut self) -> impl Iterator<Item = &mut Lease> {
        std::iter::once(&mut self.first).chain(&mut self.others)
    }

    fn find(&mut self, takes: &Arc<[Take]>) -> Option<&mut Lease> {
        if self.first.is_for(takes) {
            return Some(&mut self.first);
        }
        self.others.iter_mut().find(|lease| lease.is_for(takes))
    }

    fn in_flight(&mut self) -> bool {
        self.leases().any(|lease| lease.flight.is_some())
    }

    /// Returns the lease of `takes`, new if there was none; `None` when every place is in flight.
    fn find_or_insert(
        &mut self,
        id: &AgentId,
        takes: &Arc<[Take]>,
        now_ms: u64,
        books: &mut Vec<Booking>,
    ) -> Option<&mut Lease> {
        if self.find(takes).is_none() {
            let fresh = Lease::new(Arc::clone(takes), now_ms);
            if self.others.len() + 1 < PLANS_MAX {
                self.others.push(fresh);
            } else {
                let idle = self.leases().filter(|lease| lease.flight.is_none());
                let place = idle.min_by_key(|lease| lease.used_ms())?;
                end(id, place, now_ms, true, books);
                *place = fresh;
            }
        }
        self.find(takes)
    }

    /// Ends the leases whose term is over, or all that are not in flight.
    fn end(&mut self, id: &AgentId, now_ms: u64, now: bool, books: &mut Vec<Booking>) {
        for lease in self.leases() {
            end(id, lease, now_ms, now, books);
        }
    }
}

fn end(id: &AgentId, lease: &mut Lease, now_ms: u64, now: bool, books: &mut Vec<Booking>) {
    if now {
        books.extend(lease.uncounted().map(|refused| Booking::refused(id, refused)));
    }
    let count = lease.end(now_ms, now);
    if count > 0 {
        books.push(Booking::back(id, &lease.takes, count));
    }
}

impl Agents {
    pub(super) fn new(most: usize, hasher: RandomState) -> Self {
        Self { agents: LruCache::unbounded_with_hasher(hasher), most }
    }

    pub(super) fn len(&self) -> usize {
        self.agents.len()
    }

    /// Returns the lease that a charge belongs to.
    pub(super) fn lease(&mut self, charge: &Charge) -> Option<&mut Lease> {
        self.agents.peek_mut(&charge.agent)?.find(&charge.takes)
    }

    /// Decides a request that its lease has tokens for, and that changes nothing else.
    pub(super) fn ask_now(
        &mut self,
        id: &AgentId,
        takes: &Arc<[Take]>,
        now_ms: u64,
        bounds: &Bounds,
    ) -> Option<Verdict> {
        let agent = self.agents.get_mut(id)?;
        agent.seen_ms = now_ms;
        agent.find(takes)?.take_now(now_ms, bounds)
    }

    /// Decides a request here, or says how it is to be decided.
    pub(super) fn ask(
        &mut self,
        charge: &Charge,
        now_ms: u64,
        bounds: &Bounds,
        books: &mut Vec<Booking>,
    ) -> Asked {
        let Charge { agent: id, takes } = charge;
        let Some(agent) = self.agents.get_mut(id) else {
            return self.first_seen(charge, now_ms, bounds, books);
        };
        agent.seen_ms = now_ms;
        if let Some(lease) = agent.find(takes) {
            if let Some(verdict) = lease.take(now_ms) {
                if !lease.runs_dry(now_ms, bounds) {
                    return Asked::Answered(verdict);
                }
                // The charge that is asked about is a multiple itself.
                let most = lease.wanted(0, now_ms, bounds).saturating_sub(1);
                lease.flight = Some(Box::default());
                agent.end(id, now_ms, false, books);
                return Asked::Renew(verdict, most);
            }
            if let Some(refusal) = lease.refused(now_ms) {
                return Asked::Answered(refusal);
            }
        }
        agent.end(id, now_ms, false, books);
        let Some(lease) = agent.find_or_insert(id, takes, now_ms, books) else {
            return Asked::Bypass;
        };
        match &mut lease.flight {
            Some(waiters) if waiters.len() >= WAITERS_MAX => Asked::Bypass,
            Some(waiters) => {
                let (sender, receiver) = oneshot::channel();
                waiters.push_back(sender);
                Asked::Wait(receiver)
            }
            None => {
                lease.flight = Some(Box::default());
                Asked::Lead(lease.wanted(0, now_ms, bounds))
            }
        }
    }

    fn first_seen(
        &mut self,
        charge: &Charge,
        now_ms: u64,
        bounds: &Bounds,
        books: &mut Vec<Booking>,
    ) -> Asked {
        if self.agents.len() >= self.most && !self.make_room(now_ms, books) {
            return Asked::Bypass;
        }
        let mut first = Lease::new(Arc::clone(&charge.takes), now_ms);
        first.flight = Some(Box::default());
        let most = first.wanted(0, now_ms, bounds);
        let agent = Agent { seen_ms: now_ms, first, others: Vec::new() };
        self.agents.put(charge.agent.clone(), agent);
        Asked::Lead(most)
    }

    /// Drops the agent that was not here for longest.
    fn make_room(&mut self, now_ms: u64, books: &mut Vec<Booking>) -> bool {
        for _ in 0..EVICT_TRIES {
            let Some((id, mut agent)) = self.agents.pop_lru() else { return true };
            if !agent.in_flight() {
                agent.end(&id, now_ms, true, books);
                return true;
            }
            self.agents.put(id, agent);
        }
        false
    }

    /// Drops up to `batch` agents that were not here for a whole term. Returns true when there may
    /// be more of them.
    pub(super) fn drop_idle(
        &mut self,
        now_ms: u64,
        bounds: &Bounds,
        batch: usize,
        books: &mut Vec<Booking>,
    ) -> bool {
        for _ in 0..batch {
            let idle = |agent: &Agent| now_ms.saturating_sub(agent.seen_ms) >= bounds.term_ms;
            match self.agents.peek_lru() {
                Some((_, agent)) if idle(agent) => {}
                _ => return false,
            }
            let Some((id, mut agent)) = self.agents.pop_lru() else { return false };
            if agent.in_flight() {
                agent.seen_ms = now_ms;
                self.agents.put(id, agent);
            } else {
                agent.end(&id, now_ms, true, books);
            }
        }
        true
    }

    /// Ends every lease of one agent.
    pub(super) fn recall(&mut self, id: &AgentId, now_ms: u64, books: &mut Vec<Booking>) {
        if let Some(agent) = self.agents.peek_mut(id) {
            agent.end(id, now_ms, true, books);
        }
    }

    /// Ends every lease; returns true when no loan is on its way.
    pub(super) fn recall_all(&mut self, now_ms: u64, books: &mut Vec<Booking>) -> bool {
        let mut all = true;
        for (id, agent) in &mut self.agents {
            agent.end(id, now_ms, true, books);
            all &= !agent.in_flight();
        }
        all
    }
}
