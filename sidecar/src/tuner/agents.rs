//! The agents in memory: state, fence and window of each, and one batch folded into them.
//!
//! 1. Bounded: beyond `[tuner] agents_max` agents the one rated least recently is forgotten, and loaded again
//!    when it is rated. Everything here can be forgotten at any time; the store has it all, but for
//!    what ticks moved by less than [`MOVED_MIN`].
//! 2. Between ratings agents are looked at in turn ([`Agents::due`]): what they asked for since the
//!    last look becomes a tick of their policy. Whoever was rated is looked at as its write returns.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    judge::Judge,
    ledger::Before,
    moves::{Cause, Move, Moves},
    window::{Seen, Window},
};
use crate::{
    bus::Delivery,
    clock::unix_ms,
    policy::{Asked, Decision, Drift, Lesson, Outcome, Policy, Reason, State},
};
use lru::LruCache;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tower_merit::{
    AgentId,
    bucket::{Limits, MicroTokensPerSecond, Tokens},
    store::{Change, Demand, Record},
};

/// By how much a tick must have moved a rate for it to be written, as a difference of logarithms: about
/// one per cent.
const MOVED_MIN: f64 = 0.01;

/// Places in the turn that may be left over, beside twice as many as there are agents.
const TURNS_SLACK: usize = 1_024;

/// One agent as the tuner knows it.
#[derive(Clone, Debug)]
struct Agent {
    rev: u64,
    state: State,
    /// The rate in force, tokens per second; absent when there is none.
    in_force: Option<f64>,
    /// What it had asked for when it was last looked at, and when that was.
    looked: Option<(Demand, Instant)>,
    /// Its place in the turn.
    turn: u64,
    /// The last offset folded, by `<source>/<partition>`; nearly always there is one.
    applied: Applied,
    seen: Window,
    /// An operator's limits that `state` starts from, until they are written as ours.
    adopts: Option<Limits>,
    moves: Moves,
}

/// How far each log was folded into one agent. Nearly always there is one: it needs no memory of its own.
#[derive(Clone, Debug, Default)]
struct Applied {
    first: Option<(Arc<str>, u64)>,
    others: Vec<(Arc<str>, u64)>,
}

impl Applied {
    /// Takes note of `offset`; returns false when the log was folded that far before.
    fn advance(&mut self, log: &Arc<str>, offset: u64) -> bool {
        let same = |known: &Arc<str>| Arc::ptr_eq(known, log) || known == log;
        match self.first.iter_mut().chain(&mut self.others).find(|(known, _)| same(known)) {
            Some((_, at)) if *at >= offset => return false,
            Some((_, at)) => *at = offset,
            None => self.extend([(Arc::clone(log), offset)]),
        }
        true
    }

    fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    fn into_iter(self) -> impl Iterator<Item = (Arc<str>, u64)> {
        self.first.into_iter().chain(self.others)
    }
}

impl Extend<(Arc<str>, u64)> for Applied {
    fn extend<I: IntoIterator<Item = (Arc<str>, u64)>>(&mut self, places: I) {
        let mut places = places.into_iter();
        if self.first.is_none() {
            self.first = places.next();
        }
        self.others.extend(places);
    }
}

/// The record's `state` field.
#[derive(Serialize)]
struct Kept<'a> {
    /// The store's life that the record grew up in: one from before a rebuild does not count.
    epoch: &'a str,
    state: &'a State,
}

/// The same, read back: a state of another policy does not hide which ratings were applied.
#[derive(Deserialize)]
struct Found {
    epoch: String,
    state: serde_json::Value,
}

/// Returns the policy's state in a record; nothing when there is none that this version wrote.
#[must_use]
pub fn state_of(record: &Record) -> Option<State> {
    kept_in(record)?.1
}

/// Returns which life of the store a record grew up in, and its policy's state, if this version can read
/// it; nothing when it has neither.
pub(super) fn kept_in(record: &Record) -> Option<(String, Option<State>)> {
    let found = serde_json::from_str::<Found>(&record.state).ok()?;
    Some((found.epoch, State::deserialize(found.state).ok()))
}

/// Returns the record's `state` field.
pub(super) fn kept(epoch: &str, state: &State) -> String {
    text_of(&Kept { epoch, state })
}

/// A rating on its way into an agent's state.
pub(super) struct Folding<'a> {
    pub(super) delivery: &'a Delivery,
    /// `<source>/<partition>`.
    pub(super) log: Arc<str>,
    /// True when the last fold took it in, false when the agent's record held it already.
    pub(super) fresh: bool,
    /// What it weighs: looked up once, however often it is folded before a write holds.
    pub(super) weight: Option<f64>,
}

/// What a fold made of an agent's ratings.
#[derive(Debug, Default, Clone, Copy, PartialEq)]
pub(super) struct Folded {
    /// Ratings that moved the state.
    pub(super) counted: u64,
    /// Ratings that the agent's record already held.
    pub(super) skipped: u64,
    /// Ratings that came twice under one id.
    pub(super) repeats: u64,
    /// Ratings under the id of another one with another content.
    pub(super) conflicts: u64,
    /// Sum of the rewards of those that counted.
    pub(super) reward: f64,
    /// What was decided last.
    pub(super) decision: Option<Decision>,
    /// The change of quality that one of them showed.
    pub(super) drift: Option<Drift>,
    /// Why a guardrail stood in; of several, a fault.
    pub(super) held: Option<Reason>,
}

impl Folded {
    fn note(&mut self, decision: Decision) {
        self.counted += 1;
        self.reward += decision.reward;
        self.drift = decision.drift.or(self.drift);
        self.held = self.held.filter(|held| held.is_fault()).or(decision.held);
        self.decision = Some(decision);
    }
}

/// What a look at an agent came to.
pub(super) enum Look {
    /// Nobody knows yet what it asks for, or it was forgotten meanwhile.
    Begun,
    /// Its last tick is less than a tick ago; what was decided since waits to be written.
    Early { change: Option<Box<Change>> },
    /// A tick of its policy.
    Ticked {
        /// What was known before the decision, for a log of decisions.
        before: Option<Before>,
        decision: Decision,
        /// What to write, when its rate moved enough.
        change: Option<Box<Change>>,
        /// What its epoch came to, with a policy that has epochs.
        outcome: Option<Outcome>,
        /// What the last tick taught, with a policy that learns.
        lesson: Option<Box<Lesson>>,
    },
}

/// The agents in memory.
pub(super) struct Agents {
    /// Without a bound of its own, so that it grows as agents come; `load` bounds it.
    known: LruCache<AgentId, Agent>,
    most: usize,
    /// Who is looked at next. An entry counts while it is its agent's own place.
    turns: VecDeque<(AgentId, u64)>,
    turn: u64,
}

/// The store knows less of an agent than it did before.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum WentBack {
    /// It has an older record: it has lost writes.
    Older,
    /// It has none any more: expired, deleted, evicted, or lost.
    Gone,
}

impl Agents {
    /// Returns a memory of at most `most` agents; a batch may not have more.
    pub(super) fn new(most: usize) -> Self {
        Self { known: LruCache::unbounded(), most, turns: VecDeque::new(), turn: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn forget_all(&mut self) {
        self.known.clear();
        self.turns.clear();
    }

    /// Returns those of `agents` that are not in memory. The others count as rated just now, so that
    /// taking in the missing ones pushes none of them out: a batch has fewer agents than memory may.
    pub(super) fn unknown<'a>(
        &mut self,
        agents: impl Iterator<Item = &'a AgentId>,
    ) -> Vec<AgentId> {
        agents.filter(|agent| self.known.get(*agent).is_none()).cloned().collect()
    }

    /// Takes in what the store knows of `agent`, in place of what is in memory.
    ///
    /// # Errors
    ///
    /// [`WentBack`] when the store knew more before.
    pub(super) fn load(
        &mut self,
        agent: &AgentId,
        record: Record,
        policy: &Policy,
        epoch: &str,
    ) -> Result<(), WentBack> {
        let found = serde_json::from_str::<Found>(&record.state).ok();
        let found = found.filter(|found| found.epoch == epoch);
        let mut loaded = Agent {
            rev: record.rev,
            state: policy.begin(),
            in_force: record.limits.map(|limits| limits.refill().tokens()),
            looked: Some((record.demand, Instant::now())),
            turn: 0,
            applied: Applied::default(),
            seen: Window::default(),
            adopts: None,
            moves: Moves::default(),
        };
        if let Some(before) = self.known.peek_mut(agent) {
            loaded.moves = std::mem::take(&mut before.moves);
            loaded.moves.undo();
        }
        if let Some(found) = found {
            let places = record.applied.into_iter();
            loaded.applied.extend(places.map(|(log, at)| (Arc::from(log), at)));
            loaded.seen = Window::restore(&record.seen);
            loaded.state = match (State::deserialize(found.state), record.limits) {
                (Ok(state), _) => state,
                // Another policy's state: start from the limits it left, without a jump.
                (Err(_), Some(limits)) => policy.adopt(limits),
                (Err(_), None) => loaded.state,
            };
        }
        if let Some(limits) = record.limits.filter(|_| record.operator) {
            loaded.adopts = Some(limits);
            // What is known of its quality stays.
            let before = loaded.state.rate();
            policy.rebase(&mut loaded.state, limits);
            loaded.note(Cause::Operator, unix_ms(), before);
        }
        let rev = loaded.rev;
        let before = self.known.peek(agent).map(|before| (before.rev, before.turn));
        loaded.turn = match before {
            Some((_, turn)) => turn,
            None => self.take_turn(agent),
        };
        self.known.put(agent.clone(), loaded);
        if self.known.len() > self.most {
            self.known.pop_lru();
        }
        match before {
            Some((before, _)) if before > rev => {
                Err(if rev == 0 { WentBack::Gone } else { WentBack::Older })
            }
            _ => Ok(()),
        }
    }

    fn take_turn(&mut self, agent: &AgentId) -> u64 {
        self.turn += 1;
        self.turns.push_back((agent.clone(), self.turn));
        let turn = self.turn;
        // Places of agents that were pushed out are no longer theirs. Where nobody is looked at,
        // nothing else takes them away.
        if self.turns.len() > 2 * self.known.len() + TURNS_SLACK {
            let known = &self.known;
            self.turns.retain(|(agent, at)| {
                *at == turn || known.peek(agent).is_some_and(|known| known.turn == *at)
            });
        }
        turn
    }

    /// Returns up to `most` agents whose turn it is and that nobody looked at within `tick`, and puts
    /// them behind everybody else.
    pub(super) fn due(&mut self, most: usize, now: Instant, tick: Duration) -> Vec<AgentId> {
        let mut due = Vec::new();
        for _ in 0..self.turns.len() {
            if due.len() >= most {
                break;
            }
            let Some((agent, turn)) = self.turns.pop_front() else { break };
            let Some(known) = self.known.peek(&agent).filter(|known| known.turn == turn) else {
                continue;
            };
            let fresh =
                known.looked.is_some_and(|(_, at)| now.saturating_duration_since(at) < tick);
            if !fresh || known.has_moved() {
                due.push(agent.clone());
            }
            self.turns.push_back((agent, turn));
        }
        due
    }

    /// Takes in what `agent` has asked for by `now`, as a tick of its policy: at most one for each
    /// `tick`. `logs` says whether decisions are logged.
    pub(super) fn look(
        &mut self,
        agent: &AgentId,
        demand: Demand,
        now: Instant,
        judge: &Judge,
        epoch: &str,
        logs: bool,
    ) -> Look {
        // Not used: a look is no rating, and pushes nobody out.
        let Some(known) = self.known.peek_mut(agent) else { return Look::Begun };
        let tick = Duration::from_millis(judge.policy().market().tick_ms);
        if known.looked.is_some_and(|(_, at)| now.saturating_duration_since(at) < tick) {
            let moved = known.has_moved();
            let change = moved.then(|| known.change(agent, epoch, judge, Vec::new(), Vec::new()));
            return Look::Early { change: change.map(Box::new) };
        }
        let last = known.looked.replace((demand, now));
        let Some(asked) = last.and_then(|last| asked(last, demand, now, &known.state)) else {
            return Look::Begun;
        };
        let before = logs.then(|| Before::of(&known.state, judge.policy()));
        let decision = judge.tick(&mut known.state, asked);
        if known.has_moved() {
            let before = known.in_force.unwrap_or_else(|| known.state.rate());
            known.note_held(Cause::Tick, unix_ms(), before, None, decision.held);
        }
        let change =
            known.has_moved().then(|| known.change(agent, epoch, judge, Vec::new(), Vec::new()));
        let change = change.map(Box::new);
        let (outcome, lesson) = (known.state.take_outcome(), known.state.take_lesson());
        Look::Ticked { before, decision, change, outcome, lesson }
    }

    /// Returns what is known of `agent`.
    pub(super) fn state(&self, agent: &AgentId) -> Option<&State> {
        self.known.peek(agent).map(|known| &known.state)
    }

    /// Returns what is known of all agents in memory, the ones rated last first.
    pub(super) fn states(&self) -> impl Iterator<Item = &State> {
        self.known.iter().map(|(_, known)| &known.state)
    }

    /// Forgets one agent: it is loaded again when it is rated.
    pub(super) fn forget(&mut self, agent: &AgentId) {
        self.known.pop(agent);
    }

    /// Returns true when `agent` was last looked at a `tick` ago, or never.
    pub(super) fn is_due(&self, agent: &AgentId, now: Instant, tick: Duration) -> bool {
        self.known.peek(agent).is_some_and(|known| {
            known.looked.is_none_or(|(_, at)| now.saturating_duration_since(at) >= tick)
        })
    }

    /// Takes over the limits an operator set, as what the state starts from. Call it right after
    /// [`Agents::load`]: a half that nobody set is what the state says, with nothing folded in.
    pub(super) fn adopt(
        &mut self,
        agent: &AgentId,
        capacity: Option<Tokens>,
        refill: Option<MicroTokensPerSecond>,
        policy: &Policy,
    ) {
        if let Some(known) = self.known.get_mut(agent) {
            let own = policy.limits(&known.state);
            let limits =
                Limits::new(capacity.unwrap_or(own.capacity()), refill.unwrap_or(own.refill()));
            policy.rebase(&mut known.state, limits);
            known.adopts = Some(limits);
        }
    }

    /// Folds `ratings` (of one agent, in order) and returns the change to write, if there is any.
    ///
    /// `durable` says whether the ratings can come again after a restart: only then is it worth
    /// writing how far each log was applied.
    pub(super) fn fold(
        &mut self,
        agent: &AgentId,
        ratings: &mut [Folding<'_>],
        judge: &mut Judge,
        epoch: &str,
        durable: bool,
    ) -> (Option<Change>, Folded) {
        let known = self.known.get_mut(agent).expect("loaded before it is folded");
        let mut folded = Folded::default();
        let mut moved = Applied::default();
        for Folding { delivery, log, fresh, weight } in ratings {
            let offset = delivery.offset;
            *fresh = known.applied.advance(log, offset);
            if !*fresh {
                folded.skipped += 1;
                continue;
            }
            match known.seen.see(&delivery.rating) {
                Seen::New => {
                    let rating = &delivery.rating;
                    let weight = *weight.get_or_insert_with(|| judge.weigh(&known.state, rating));
                    let before = known.state.rate();
                    let decision = judge.vote(&mut known.state, rating, weight);
                    let (at_ms, score) = (rating.accepted_at_us() / 1_000, rating.score().value());
                    known.note_held(Cause::Rating, at_ms, before, Some(score), decision.held);
                    folded.note(decision);
                }
                Seen::Repeat => folded.repeats += 1,
                Seen::Conflict => folded.conflicts += 1,
            }
            moved.advance(log, offset);
        }
        if moved.is_empty() {
            return (None, folded);
        }
        let seen = known.seen.take_unwritten();
        let moved = moved.into_iter().map(|(log, at)| (log.to_string(), at));
        let applied = if durable { moved.collect() } else { Vec::new() };
        (Some(known.change(agent, epoch, judge, applied, seen)), folded)
    }

    /// Notes that a change is in force.
    pub(super) fn written(&mut self, agent: &AgentId, rev: u64, rate: f64) {
        if let Some(known) = self.known.peek_mut(agent) {
            known.rev = rev;
            known.adopts = None;
            known.in_force = Some(rate);
            known.moves.written();
        }
    }

    /// Returns the newest moves of an agent in memory, newest first.
    pub(super) fn moves(&self, agent: &AgentId) -> Option<Vec<Move>> {
        self.known.peek(agent).map(|known| known.moves.newest_first())
    }
}

impl Agent {
    fn note(&mut self, cause: Cause, at_ms: u64, before: f64) {
        self.note_held(cause, at_ms, before, None, None);
    }

    #[allow(clippy::cast_possible_truncation, reason = "for people to look at")]
    fn note_held(
        &mut self,
        cause: Cause,
        at_ms: u64,
        before: f64,
        score: Option<f64>,
        held: Option<Reason>,
    ) {
        let score = score.map(|score| score as f32);
        let (from, to) = (before as f32, self.state.rate() as f32);
        self.moves.note(Move { at_ms, cause, score, from, to, held });
    }

    /// Returns true when its policy asks for a rate that differs enough from the one in force.
    fn has_moved(&self) -> bool {
        let rate = self.state.rate();
        self.in_force.is_none_or(|in_force| (rate / in_force).ln().abs() > MOVED_MIN)
    }

    fn change(
        &self,
        agent: &AgentId,
        epoch: &str,
        judge: &Judge,
        applied: Vec<(String, u64)>,
        seen: Vec<(String, String)>,
    ) -> Change {
        let kept = Kept { epoch, state: &self.state };
        let limits = self.state.limits();
        Change {
            agent: agent.clone(),
            rev: self.rev,
            limits,
            named: judge.named(limits),
            adopts: self.adopts,
            state: text_of(&kept),
            applied,
            seen,
        }
    }
}

/// Bytes that a state stays below with most policies: `ppo`'s is about 900.
const STATE_BYTES: usize = 1_024;

fn text_of(kept: &Kept<'_>) -> String {
    let bytes = if let State::Additive(_) = kept.state { STATE_BYTES / 4 } else { STATE_BYTES };
    let mut text = Vec::with_capacity(bytes);
    serde_json::to_writer(&mut text, kept).expect("a state is plain data");
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// Returns what was asked for between two looks; nothing when the counters went back (the bucket is
/// another one) or no time passed.
#[allow(clippy::cast_precision_loss, reason = "counts of tokens are far below 2^53")]
fn asked(
    (before, at): (Demand, Instant),
    demand: Demand,
    now: Instant,
    state: &State,
) -> Option<Asked> {
    let admitted = demand.admitted.checked_sub(before.admitted)?;
    let denied = demand.denied.checked_sub(before.denied)?;
    let seconds = now.saturating_duration_since(at).as_secs_f64();
    let capacity = state.limits().capacity().get().max(1);
    let level = (demand.left as f64 / capacity as f64).min(1.0);
    let asked = Asked { admitted: admitted as f64, denied: denied as f64, seconds, level };
    (seconds > 0.0).then_some(asked)
}

#[cfg(test)]
mod tests;
