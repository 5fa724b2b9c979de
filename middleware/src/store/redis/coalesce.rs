//! Decisions that arrive while calls are in flight travel together in the next one.
//!
//! 1. A request that finds nobody in flight sends its call from its own future, at once; a later one
//!    waits in the lane's queue. When a call ends, those it answered run first, so that what they ask
//!    next travels in the next call, which takes up to [`GROUPS_MAX`] groups off the front of the queue.
//!    A second call ([`IN_FLIGHT_MAX`]) is in flight beside the first while a full one waits.
//! 2. Equal charges of one agent are one group, decided as if they had come one after the other.
//! 3. First come, first served: groups leave in the order in which their first request came, and each
//!    agent's requests and settlements in the order in which they came (two calls that set out at the
//!    same instant may pass each other). A busy agent fills its own group, not the queue of others, as
//!    long as its requests are charged alike; one that alternates takes a group for each change.
//! 4. A request keeps its own deadline, from its arrival. One whose caller is gone before its call is
//!    sent is not charged; afterwards it is.
//! 5. A seat is held for one deadline at most: a future that was started and is no longer polled
//!    stalls nobody for longer.
//! 6. In a cluster a call stays within one slot; each range of slots is a lane of its own, so that a
//!    node that does not answer holds up its own agents only. A lane has one such call in flight, so
//!    that it decides about one group a round trip. Anywhere else there is one lane.

use std::{
    collections::{HashMap, VecDeque, hash_map},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use redis::RedisError;
use tokio::{
    runtime::Handle,
    sync::oneshot,
    time::{Instant, timeout_at},
};

use super::{
    SPEND_LUA,
    batch::{self, Group, Kind, Outcome},
    denials::{DENIAL_MAX, Denials},
    link::Link,
    usage::Usage,
    wire::{is_no_script, malformed},
};
use crate::{
    AgentId,
    store::{Charge, Direction, Loan, Settlement, StoreError, Take, Verdict},
};

/// The most calls of a lane that are in flight at once: one that the server works on, and one on its
/// way. More of them are smaller ones, which cost the server more per decision.
pub const IN_FLIGHT_MAX: usize = 2;

/// The most groups of equal requests in one call: it holds the server up for under 0.3 ms.
pub const GROUPS_MAX: usize = 64;

/// How often those who were answered may run before the next call sets out: each turn takes a few microseconds.
const GATHER_MAX: usize = 8;

/// The most requests that wait in a lane; a further one fails at once.
pub const WAITING_MAX: usize = 1 << 16;

/// Lanes of a cluster, each of 256 consecutive slots.
const LANES: usize = 64;

/// The most counts of refusals that one sweep queues.
const SWEEP_MAX: usize = 4096;

/// How a store asks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) timeout: Duration,
    pub(super) coalesce: bool,
    pub(super) cache_denials: bool,
}

/// Sends charges and settlements to the script, many in one call.
pub(super) struct Coalescer {
    link: Link,
    spend: redis::Script,
    address: String,
    timeout: Duration,
    /// False: one call per request.
    on: bool,
    denials: Denials,
    usage: Arc<Usage>,
    lanes: Box<[Mutex<Lane>]>,
    runtime: Handle,
}

#[derive(Default)]
struct Lane {
    seats: [Seat; IN_FLIGHT_MAX],
    queue: VecDeque<Waiting>,
    /// Each agent's last group in the queue, numbered from the lane's first one ever.
    last: HashMap<AgentId, u64>,
    /// The number of the queue's front.
    front: u64,
    requests: usize,
}

/// The right to have one call in flight.
#[derive(Clone, Copy, Default)]
struct Seat {
    taken: Option<Instant>,
    /// Tells this holder from the next, should it be late to leave.
    turn: u64,
}

/// A group in the queue, and who waits for it.
struct Waiting {
    group: Group,
    slot: Option<u16>,
    until: Instant,
    /// How many were put in, settlements included.
    requests: usize,
    callers: Vec<Caller>,
}

/// A group in a call, and who waits for it: several for equal charges, nobody for a settlement.
struct Flying {
    group: Group,
    callers: Vec<Caller>,
}

type Caller = oneshot::Sender<Result<Loan, StoreError>>;

/// A seat taken: whoever holds it leaves it to the queue, or free.
struct Seated {
    coalescer: Arc<Coalescer>,
    lane: usize,
    seat: usize,
    turn: u64,
    /// True for a request that sends its own call: whoever waits behind it needs another to go on.
    leads: bool,
}

enum Entered {
    /// Send the call yourself.
    Lead(Option<Seated>),
    /// Somebody will.
    Wait(oneshot::Receiver<Result<Loan, StoreError>>),
    Full,
}

impl Lane {
    /// Returns a seat when nobody is in flight, or a full call waits and one is free; one that was left
    /// without notice is free.
    fn sit(&mut self, timeout: Duration, now: Instant) -> Option<(usize, u64)> {
        let free = |seat: &Seat| seat.taken.is_none_or(|taken| now - taken > timeout);
        let index = self.seats.iter().position(free)?;
        if self.queue.len() < GROUPS_MAX && !self.seats.iter().all(free) {
            return None;
        }
        let seat = &mut self.seats[index];
        *seat = Seat { taken: Some(now), turn: seat.turn + 1 };
        Some((index, seat.turn))
    }

    /// Puts `group` into the queue, or joins it to its agent's last one there when that is equal.
    fn push(
        &mut self,
        group: Group,
        slot: Option<u16>,
        until: Instant,
        caller: Option<Caller>,
    ) -> Result<(), Group> {
        if self.requests >= WAITING_MAX {
            return Err(group);
        }
        self.requests += 1;
        let next = self.front + self.queue.len() as u64;
        match self.last.entry(group.agent.clone()) {
            hash_map::Entry::Occupied(mut last) => {
                #[allow(clippy::cast_possible_truncation, reason = "below the queue's length")]
                let waiting = &mut self.queue[(*last.get() - self.front) as usize];
                if waiting.group.joins(&group) {
                    waiting.group.count += group.count;
                    waiting.until = waiting.until.max(until);
                    waiting.requests += 1;
                    waiting.callers.extend(caller);
                    return Ok(());
                }
                last.insert(next);
            }
            hash_map::Entry::Vacant(none) => {
                none.insert(next);
            }
        }
        let callers = caller.into_iter().collect();
        self.queue.push_back(Waiting { group, slot, until, requests: 1, callers });
        Ok(())
    }

    /// Takes the next call's groups off the queue, without the requests whose caller is gone.
    fn next(&mut self) -> Vec<Waiting> {
        let mut call: Vec<Waiting> = Vec::new();
        while call.len() < GROUPS_MAX {
            let alike =
                |next: &mut Waiting| call.first().is_none_or(|first| first.slot == next.slot);
            let Some(mut waiting) = self.queue.pop_front_if(alike) else { break };
            if let hash_map::Entry::Occupied(last) = self.last.entry(waiting.group.agent.clone())
                && *last.get() == self.front
            {
                last.remove();
            }
            self.front += 1;
            self.requests -= waiting.requests;
            if waiting.group.kind.is_asked() {
                waiting.callers.retain(|caller| !caller.is_closed());
                let callers = u32::try_from(waiting.callers.len());
                waiting.group.count = callers.expect("at most WAITING_MAX");
                if waiting.callers.is_empty() {
                    continue;
                }
            }
            call.push(waiting);
        }
        call
    }
}

impl Coalescer {
    /// Returns a coalescer over `link`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn new(options: Options, link: Link, address: String) -> Arc<Self> {
        let Options { timeout, coalesce, cache_denials } = options;
        Arc::new(Self {
            usage: Usage::begin(link.clone()),
            link,
            spend: redis::Script::new(SPEND_LUA),
            address,
            timeout,
            on: coalesce,
            denials: Denials::new(cache_denials),
            lanes: (0..LANES).map(|_| Mutex::default()).collect(),
            runtime: Handle::current(),
        })
    }

    /// Returns what counts the tokens that this node takes.
    pub(super) fn usage(&self) -> &Usage {
        &self.usage
    }

    /// Returns the refusal of a charge that was just refused.
    pub(super) fn refuse(
        &self,
        agent: &AgentId,
        takes: &Arc<[Take]>,
        now: Instant,
    ) -> Option<Verdict> {
        self.denials.refuse(agent, takes, now)
    }

    /// Decides a charge of [`Kind::Take`] or [`Kind::Lend`] that arrived at `arrived`.
    pub(super) async fn ask(
        self: Arc<Self>,
        charge: Charge,
        kind: Kind,
        arrived: Instant,
    ) -> Result<Loan, StoreError> {
        let until = arrived + self.timeout;
        let Charge { agent, takes } = charge;
        let group = Group { agent, takes, kind, count: 1 };
        match self.enter(&group, until, arrived) {
            Entered::Lead(_seat) => {
                let own = Flying { group, callers: Vec::new() };
                let flying = self.with_uncounted([own]);
                let outcomes = self.call(&flying, until).await?;
                let own = flying.last().zip(outcomes.last());
                let (Flying { group, .. }, outcome) = own.expect("a call has a group");
                // Sent no earlier than it arrived: what is remembered ends too early rather than too late.
                self.learn(group, outcome, arrived);
                outcome.loan(group, 0)
            }
            Entered::Wait(answer) => match timeout_at(until, answer).await {
                Ok(Ok(answer)) => answer,
                // Dropped unanswered: the runtime that sends calls is gone.
                Ok(Err(_)) | Err(_) => Err(StoreError::Timeout(self.timeout)),
            },
            Entered::Full => Err(StoreError::Overloaded { waiting: WAITING_MAX }),
        }
    }

    /// Queues a settlement; when the queue is full it is lost, and counted.
    pub(super) fn settle(self: &Arc<Self>, settlement: Settlement) {
        let Settlement { agent, takes, direction } = settlement;
        let kind = match direction {
            Direction::GiveBack => Kind::GiveBack,
            Direction::TakeMore => Kind::TakeMore,
            Direction::Refused => Kind::Refuse { short: u32::MAX },
        };
        let group = Group { agent, takes, kind, count: 1 };
        if kind == Kind::GiveBack {
            self.forget_refusals(&group.agent);
        }
        self.post(group);
    }

    fn lane(&self, slot: Option<u16>) -> usize {
        slot.map_or(0, |slot| usize::from(slot) * LANES / (1 << 14) % LANES)
    }

    fn enter(self: &Arc<Self>, group: &Group, until: Instant, now: Instant) -> Entered {
        let slot = self.link.slot(&group.agent);
        let lane = self.lane(slot);
        let mut state = lock(&self.lanes[lane]);
        // Behind settlements requests queue either way, so that these come first.
        if !self.on && state.queue.is_empty() {
            return Entered::Lead(None);
        }
        if state.queue.is_empty()
            && let Some(seat) = state.sit(self.timeout, now)
        {
            return Entered::Lead(Some(self.seated(lane, seat, true)));
        }
        let (caller, answer) = oneshot::channel();
        let pushed = state.push(group.clone(), slot, until, Some(caller));
        let seat = state.sit(self.timeout, now);
        drop(state);
        self.drive_from(lane, seat);
        match pushed {
            Ok(()) => Entered::Wait(answer),
            Err(_) => Entered::Full,
        }
    }

    /// Queues a group that nobody waits for.
    fn post(self: &Arc<Self>, group: Group) {
        let slot = self.link.slot(&group.agent);
        let lane = self.lane(slot);
        let mut state = lock(&self.lanes[lane]);
        let now = Instant::now();
        let pushed = state.push(group, slot, now + self.timeout, None);
        let seat = state.sit(self.timeout, now);
        drop(state);
        self.drive_from(lane, seat);
        if let Err(group) = pushed {
            lost(&group);
        }
    }

    fn seated(self: &Arc<Self>, lane: usize, (seat, turn): (usize, u64), leads: bool) -> Seated {
        Seated { coalescer: Arc::clone(self), lane, seat, turn, leads }
    }

    /// Sends what is queued from the seat, in a task of its own.
    fn drive_from(self: &Arc<Self>, lane: usize, seat: Option<(usize, u64)>) {
        if let Some(seat) = seat {
            self.runtime.spawn(drive(self.seated(lane, seat, false)));
        }
    }

    /// Puts what Redis has to count of the groups' agents before them.
    fn with_uncounted(&self, groups: impl IntoIterator<Item = Flying>) -> Vec<Flying> {
        let mut all = Vec::new();
        let mut room = GROUPS_MAX;
        for flying in groups {
            if room > 0 && flying.group.kind.is_asked() {
                let uncounted = self.denials.uncounted(&flying.group.agent);
                room = room.saturating_sub(uncounted.len());
                all.extend(
                    uncounted.into_iter().map(|group| Flying { group, callers: Vec::new() }),
                );
            }
            all.push(flying);
        }
        all
    }

    /// Runs one call; a server that has forgotten the script is sent it.
    async fn call(&self, flying: &[Flying], until: Instant) -> Result<Vec<Outcome>, StoreError> {
        let groups = flying.iter().map(|flying| &flying.group);
        let call = async {
            let known = ["EVALSHA", self.spend.get_hash()];
            match self.link.call(&batch::call(known, groups.clone())).await {
                Err(error) if is_no_script(&error) => {
                    self.link.call(&batch::call(["EVAL", SPEND_LUA], groups.clone())).await
                }
                answer => answer,
            }
        };
        let answered = match timeout_at(until, call).await {
            Err(_) => Err(StoreError::Timeout(self.timeout)),
            Ok(Err(error)) => Err(self.unavailable(error)),
            Ok(Ok(answer)) => {
                batch::outcomes(groups.clone(), &answer).ok_or_else(|| malformed(&answer))
            }
        };
        match &answered {
            Err(_) => groups.for_each(lost),
            Ok(outcomes) => {
                let taken = groups.clone().zip(outcomes).map(|(group, o)| o.taken(group));
                self.usage.count(taken.sum());
                let faulty = groups.zip(outcomes).filter(|(_, o)| **o == Outcome::NoHash);
                faulty.for_each(|(group, _)| lost(group));
            }
        }
        answered
    }

    fn unavailable(&self, source: RedisError) -> StoreError {
        StoreError::of_redis(&self.address, source)
    }

    /// Lets those run who were answered just now, so that what they ask next travels along: for as long as the queue
    /// grows by it, and a call has room for more.
    async fn gather(&self, lane: usize) {
        let mut before = 0;
        for _ in 0..GATHER_MAX {
            tokio::task::yield_now().await;
            let (requests, groups) = {
                let lane = lock(&self.lanes[lane]);
                (lane.requests, lane.queue.len())
            };
            if requests == before || groups >= GROUPS_MAX {
                return;
            }
            before = requests;
        }
    }

    /// Remembers a refusal, forgets those of an agent whose tokens came back.
    fn learn(self: &Arc<Self>, group: &Group, outcome: &Outcome, sent: Instant) {
        if group.kind == Kind::GiveBack {
            return self.forget_refusals(&group.agent);
        }
        let Some(verdict) = outcome.refusal(group) else { return };
        if self.denials.learn(group, verdict, sent) {
            let coalescer = Arc::downgrade(self);
            self.runtime.spawn(async move {
                loop {
                    tokio::time::sleep(DENIAL_MAX).await;
                    let Some(coalescer) = coalescer.upgrade() else { return };
                    let Some(ended) = coalescer.denials.sweep(SWEEP_MAX) else { return };
                    ended.into_iter().for_each(|group| coalescer.post(group));
                }
            });
        }
    }

    fn forget_refusals(self: &Arc<Self>, agent: &AgentId) {
        self.denials.forget(agent).into_iter().for_each(|group| self.post(group));
    }
}

/// Sends call after call until the queue is empty, then leaves the seat free.
async fn drive(seated: Seated) {
    let coalescer = &seated.coalescer;
    loop {
        let waiting = {
            let mut lane = lock(&coalescer.lanes[seated.lane]);
            let seat = &mut lane.seats[seated.seat];
            if seat.turn != seated.turn {
                // Taken over: this holder was late.
                return;
            }
            seat.taken = None;
            let alone = lane.seats.iter().all(|seat| seat.taken.is_none());
            if lane.queue.len() < if alone { 1 } else { GROUPS_MAX } {
                // Under the same lock: whoever comes next finds the seat free, or the other driven.
                return;
            }
            lane.seats[seated.seat].taken = Some(Instant::now());
            lane.next()
        };
        if waiting.is_empty() {
            continue;
        }
        let until = waiting.iter().map(|waiting| waiting.until).max().expect("not empty");
        let own =
            waiting.into_iter().map(|Waiting { group, callers, .. }| Flying { group, callers });
        let (sent, flying) = (Instant::now(), coalescer.with_uncounted(own));
        match coalescer.call(&flying, until).await {
            Ok(outcomes) => {
                for (Flying { group, callers }, outcome) in flying.into_iter().zip(&outcomes) {
                    coalescer.learn(&group, outcome, sent);
                    for (index, caller) in (0..).zip(callers) {
                        // A caller that is gone by now was charged.
                        drop(caller.send(outcome.loan(&group, index)));
                    }
                }
            }
            Err(error) => {
                for caller in flying.into_iter().flat_map(|flying| flying.callers) {
                    drop(caller.send(Err(error.clone())));
                }
            }
        }
        coalescer.gather(seated.lane).await;
    }
}

/// Counts what will not be told to Redis any more.
fn lost(group: &Group) {
    let name = match group.kind {
        Kind::Take | Kind::Lend { .. } => return,
        Kind::GiveBack | Kind::TakeMore => "merit_settlements_lost_total",
        Kind::Refuse { .. } => "merit_denials_lost_total",
    };
    metrics::counter!(name).increment(u64::from(group.count));
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut lane = lock(&self.coalescer.lanes[self.lane]);
        let seat = &mut lane.seats[self.seat];
        if seat.turn != self.turn || seat.taken.is_none() {
            return;
        }
        seat.taken = None;
        // Not for a task that was cut short: its runtime is going down.
        if self.leads && !lane.queue.is_empty() {
            let seat = lane.sit(self.coalescer.timeout, Instant::now());
            drop(lane);
            self.coalescer.drive_from(self.lane, seat);
        }
    }
}
