//! The agents in memory: state, fence and window of each, and one batch folded into them.
//!
//! 1. Bounded: beyond [`AGENTS_MAX`] agents the one rated least recently is forgotten, and loaded again
//!    when it is rated. Everything here can be forgotten at any time; the store has it all, but for
//!    what ticks moved by less than [`MOVED_MIN`].
//! 2. Between ratings agents are looked at in turn ([`Agents::due`]): what they asked for since the
//!    last look becomes a tick of their policy. Whoever was rated is looked at as its write returns.

use std::{
    collections::{HashMap, VecDeque},
    num::NonZeroUsize,
    sync::Arc,
    time::Duration,
};

use super::{
    judge::Judge,
    window::{Seen, Window},
};
use crate::{
    bus::Delivery,
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

/// How many agents are kept in memory; a full window makes one about 10 KB.
pub(super) const AGENTS_MAX: NonZeroUsize = NonZeroUsize::new(200_000).expect("above 0");

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
    /// The last offset folded, by `<source>/<partition>`.
    applied: HashMap<Arc<str>, u64>,
    seen: Window,
    /// An operator's limits that `state` starts from, until they are written as ours.
    adopts: Option<Limits>,
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
    let found = serde_json::from_str::<Found>(&record.state).ok()?;
    State::deserialize(found.state).ok()
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
    /// A tick of its policy.
    Ticked {
        decision: Decision,
        /// What to write, when its rate moved enough.
        change: Option<Box<Change>>,
    },
}

/// The agents in memory.
pub(super) struct Agents {
    known: LruCache<AgentId, Agent>,
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
    pub(super) fn new() -> Self {
        Self::with_capacity(AGENTS_MAX)
    }

    fn with_capacity(agents: NonZeroUsize) -> Self {
        Self { known: LruCache::new(agents), turns: VecDeque::new(), turn: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    pub(super) fn forget_all(&mut self) {
        self.known.clear();
        self.turns.clear();
    }

    /// Returns those of `agents` that are not in memory. The others count as rated just now, so that
    /// taking in the missing ones pushes none of them out: a batch is far smaller than
    /// [`AGENTS_MAX`].
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
            applied: HashMap::new(),
            seen: Window::default(),
            adopts: None,
        };
        if let Some(found) = found {
            let pairs = record.applied.into_iter();
            loaded.applied = pairs.map(|(log, at)| (Arc::from(log), at)).collect();
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
            policy.rebase(&mut loaded.state, limits);
        }
        let rev = loaded.rev;
        let before = self.known.peek(agent).map(|before| (before.rev, before.turn));
        loaded.turn = match before {
            Some((_, turn)) => turn,
            None => self.take_turn(agent),
        };
        self.known.put(agent.clone(), loaded);
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
    /// `tick`.
    pub(super) fn look(
        &mut self,
        agent: &AgentId,
        demand: Demand,
        now: Instant,
        judge: &Judge,
        epoch: &str,
    ) -> Look {
        // Not used: a look is no rating, and pushes nobody out.
        let Some(known) = self.known.peek_mut(agent) else { return Look::Begun };
        let before = known.looked.replace((demand, now));
        let Some(asked) = before.and_then(|before| asked(before, demand, now, &known.state)) else {
            return Look::Begun;
        };
        let decision = judge.tick(&mut known.state, asked);
        let change =
            known.has_moved().then(|| known.change(agent, epoch, judge, Vec::new(), Vec::new()));
        let change = change.map(Box::new);
        Look::Ticked { decision, change }
    }

    /// Returns what is known of `agent`.
    pub(super) fn state(&self, agent: &AgentId) -> Option<&State> {
        self.known.peek(agent).map(|known| &known.state)
    }

    /// Returns what is known of all agents in memory, the ones rated last first.
    pub(super) fn states(&self) -> impl Iterator<Item = &State> {
        self.known.iter().map(|(_, known)| &known.state)
    }

    /// Takes what the agent's last epoch came to, with a policy that has epochs.
    pub(super) fn take_outcome(&mut self, agent: &AgentId) -> Option<Outcome> {
        match &mut self.known.peek_mut(agent)?.state {
            State::Bandit(state) => state.take_outcome(),
            _ => None,
        }
    }

    /// Takes what the agent's last tick taught, with a policy that learns.
    pub(super) fn take_lesson(&mut self, agent: &AgentId) -> Option<Box<Lesson>> {
        self.known.peek_mut(agent)?.state.take_lesson()
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
        let mut moved: Vec<(String, u64)> = Vec::new();
        for Folding { delivery, log, fresh, weight } in ratings {
            let offset = delivery.offset;
            *fresh = known.applied.get(log).is_none_or(|&applied| offset > applied);
            if !*fresh {
                folded.skipped += 1;
                continue;
            }
            match known.seen.see(&delivery.rating) {
                Seen::New => {
                    let rating = &delivery.rating;
                    let weight = *weight.get_or_insert_with(|| judge.weigh(&known.state, rating));
                    folded.note(judge.vote(&mut known.state, rating, weight));
                }
                Seen::Repeat => folded.repeats += 1,
                Seen::Conflict => folded.conflicts += 1,
            }
            known.applied.insert(Arc::clone(&*log), offset);
            match moved.iter_mut().find(|(moved, _)| moved.as_str() == &**log) {
                Some((_, at)) => *at = offset,
                None => moved.push((log.to_string(), offset)),
            }
        }
        if moved.is_empty() {
            return (None, folded);
        }
        let seen = known.seen.take_unwritten();
        let applied = if durable { moved } else { Vec::new() };
        (Some(known.change(agent, epoch, judge, applied, seen)), folded)
    }

    /// Notes that a change is in force.
    pub(super) fn written(&mut self, agent: &AgentId, rev: u64, rate: f64) {
        if let Some(known) = self.known.peek_mut(agent) {
            known.rev = rev;
            known.adopts = None;
            known.in_force = Some(rate);
        }
    }
}

impl Agent {
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
            state: serde_json::to_string(&kept).expect("a state is plain data"),
            applied,
            seen,
        }
    }
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
mod tests {
    use super::*;
    use tower_merit::bucket::BucketName;

    use crate::{
        bus::Partition,
        policy::{Config, Kind},
        rating::{Poster, RatingRequest},
        tuner::Unproved,
    };

    const EPOCH: &str = "e1";

    fn judge(config: &Config) -> Judge {
        Judge::new(config, Limits::per_second(20.0, 40).unwrap(), Unproved::All, Vec::new())
    }

    fn policy() -> Policy {
        judge(&Config::default()).policy().clone()
    }

    fn agent() -> AgentId {
        AgentId::new("a").unwrap()
    }

    fn delivery(offset: u64, id: &str, score: u64) -> Delivery {
        let body = format!(r#"{{"agent_id":"a","user_id":"u","score":{score},"id":"{id}"}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        let rating = request.into_rating(Poster::new("p").unwrap(), 1_800_000_000_000_000).unwrap();
        Delivery { partition: Partition(0), offset, rating }
    }

    fn fold(agents: &mut Agents, deliveries: &[Delivery]) -> (Option<Change>, Folded) {
        let log: Arc<str> = "s/0".into();
        let folding =
            |delivery| Folding { delivery, log: Arc::clone(&log), fresh: false, weight: None };
        let mut ratings: Vec<Folding<'_>> = deliveries.iter().map(folding).collect();
        agents.fold(&agent(), &mut ratings, &mut judge(&Config::default()), EPOCH, true)
    }

    /// Returns what the store would hold after `change`.
    fn stored(change: &Change, rev: u64) -> Record {
        let mut record = Record::default();
        record.rev = rev;
        record.limits = Some(change.limits);
        record.state.clone_from(&change.state);
        record.applied.clone_from(&change.applied);
        record.seen.clone_from(&change.seen);
        record
    }

    #[test]
    fn a_rating_at_or_below_the_applied_offset_is_skipped_however_the_batches_fall() {
        let all: Vec<Delivery> =
            (0..10).map(|at| delivery(at, &format!("i{at}"), 1 + at % 5)).collect();
        let mut once = Agents::new();
        once.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
        let (whole, _) = fold(&mut once, &all);

        let mut crashed = Agents::new();
        crashed.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
        let (first, _) = fold(&mut crashed, &all[..4]);
        let mut restarted = Agents::new();
        restarted.load(&agent(), stored(&first.unwrap(), 1), &policy(), EPOCH).unwrap();
        let (rest, folded) = fold(&mut restarted, &all);
        assert_eq!((folded.skipped, folded.counted), (4, 6));
        assert_eq!(rest.unwrap().state, whole.unwrap().state);
        assert_eq!(fold(&mut restarted, &all).0.map(|change| change.rev), None);
    }

    #[test]
    fn a_repeated_id_counts_once_across_a_restart_and_another_body_under_it_not_at_all() {
        let mut agents = Agents::new();
        agents.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
        let (change, _) = fold(&mut agents, &[delivery(0, "same", 5)]);
        let change = change.unwrap();
        assert_eq!(change.limits.refill().to_string(), "20.2");

        let mut restarted = Agents::new();
        restarted.load(&agent(), stored(&change, 1), &policy(), EPOCH).unwrap();
        let repeats = [delivery(1, "same", 5), delivery(2, "same", 1)];
        let (change, folded) = fold(&mut restarted, &repeats);
        assert_eq!((folded.counted, folded.repeats, folded.conflicts), (0, 1, 1));
        let change = change.unwrap();
        assert_eq!(change.limits.refill().to_string(), "20.2");
        assert_eq!(
            change.applied,
            [("s/0".to_owned(), 2)],
            "a repeat must be applied all the same"
        );
    }

    #[test]
    fn an_operators_limits_are_the_new_start_and_their_ratio_the_new_burst() {
        let mut agents = Agents::new();
        let mut record = Record::default();
        record.limits = Some(Limits::per_second(1.0, 6).unwrap());
        record.operator = true;
        agents.load(&agent(), record, &policy(), EPOCH).unwrap();
        let (change, _) = fold(&mut agents, &[delivery(0, "i", 5)]);
        let change = change.unwrap();
        assert_eq!(change.adopts, Some(Limits::per_second(1.0, 6).unwrap()));
        assert_eq!(change.limits, Limits::per_second(1.2, 7).unwrap());
    }

    #[test]
    fn a_state_of_another_policy_starts_from_the_limits_it_left_and_keeps_what_was_applied() {
        let mut agents = Agents::new();
        let mut record = Record::default();
        record.rev = 7;
        record.limits = Some(Limits::per_second(8.0, 16).unwrap());
        record.state = format!(r#"{{"epoch":"{EPOCH}","state":{{"policy":"oracle","depth":3}}}}"#);
        record.applied = vec![("s/0".to_owned(), 4)];
        agents.load(&agent(), record, &policy(), EPOCH).unwrap();
        let (change, folded) = fold(&mut agents, &[delivery(4, "i4", 5), delivery(5, "i5", 5)]);
        assert_eq!(folded.skipped, 1);
        assert_eq!(change.unwrap().limits.refill().to_string(), "8.2");
    }

    #[test]
    fn a_record_from_before_a_rebuild_counts_for_nothing_but_its_revision() {
        let mut agents = Agents::new();
        agents.load(&agent(), Record::default(), &policy(), "e0").unwrap();
        let (change, _) = fold(&mut agents, &[delivery(9, "i9", 5)]);
        // The fold wrote epoch e1; this store is of another one.
        let mut rebuilt = Agents::new();
        rebuilt.load(&agent(), stored(&change.unwrap(), 3), &policy(), "e2").unwrap();
        let (change, folded) = fold(&mut rebuilt, &[delivery(0, "i0", 5)]);
        assert_eq!((folded.counted, folded.skipped), (1, 0));
        assert_eq!(change.unwrap().rev, 3);
    }

    #[test]
    fn a_store_that_knows_less_than_it_did_is_noticed() {
        let mut agents = Agents::new();
        let mut record = Record::default();
        record.rev = 5;
        agents.load(&agent(), record, &policy(), EPOCH).unwrap();
        let mut older = Record::default();
        older.rev = 4;
        let went_back = agents.load(&agent(), older, &policy(), EPOCH);
        assert_eq!(went_back, Err(WentBack::Older));
        let gone = agents.load(&agent(), Record::default(), &policy(), EPOCH);
        assert_eq!(gone, Err(WentBack::Gone));
    }

    #[test]
    fn named_buckets_move_with_the_default_one() {
        let writes = BucketName::new("writes").unwrap();
        let start = Limits::per_second(20.0, 40).unwrap();
        let buckets = vec![(writes.clone(), Limits::per_second(2.0, 10).unwrap())];
        let mut judge = Judge::new(&Config::default(), start, Unproved::All, buckets);
        let mut agents = Agents::new();
        agents.load(&agent(), Record::default(), judge.policy(), EPOCH).unwrap();
        let deliveries = [delivery(0, "i", 5)];
        let mut ratings =
            [Folding { delivery: &deliveries[0], log: "s/0".into(), fresh: false, weight: None }];
        let (change, _) = agents.fold(&agent(), &mut ratings, &mut judge, EPOCH, true);
        // From 20 to 20.2 is one per cent more.
        assert_eq!(change.unwrap().named, [(writes, Limits::per_second(2.02, 10).unwrap())]);
    }

    #[test]
    fn an_agent_is_looked_at_once_a_tick_and_moved_only_by_more_than_one_per_cent() {
        let config = Config {
            kind: Kind::Price,
            service_capacity: Some(100.0),
            trust: false,
            ..Config::default()
        };
        let mut judge = judge(&config);
        let (tick, start) = (Duration::from_secs(1), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut agents = Agents::new();
        agents.load(&agent(), Record::default(), judge.policy(), EPOCH).unwrap();
        let deliveries = [delivery(0, "i", 5)];
        let mut ratings =
            [Folding { delivery: &deliveries[0], log: "s/0".into(), fresh: false, weight: None }];
        let (change, folded) = agents.fold(&agent(), &mut ratings, &mut judge, EPOCH, true);
        let rate = change.unwrap().limits.refill().tokens();
        assert!((15.0..=25.05).contains(&rate), "one step from 20: {rate}");
        assert_eq!(folded.decision.unwrap().held, None);
        agents.written(&agent(), 1, rate);

        let demand = |admitted, denied| Demand { admitted, denied, left: 7 };
        assert_eq!(agents.due(9, start, tick), [], "it was loaded just now");
        assert_eq!(agents.due(9, at(2), tick), [agent()]);
        // It asks for half as much again: from 24 to 35 tokens a second in steps of more than one per cent.
        let mut looks = 0;
        let mut writes = 0;
        for second in 2..120 {
            let count = 30 * second;
            match agents.look(&agent(), demand(count, 0), at(second), &judge, EPOCH) {
                Look::Begun => panic!("it was loaded with its counts"),
                Look::Ticked { change, .. } => {
                    looks += 1;
                    if let Some(change) = change {
                        writes += 1;
                        agents.written(&agent(), 1, change.limits.refill().tokens());
                    }
                }
            }
            assert_eq!(agents.due(9, at(second), tick), []);
        }
        assert!(looks == 118 && (5..40).contains(&writes), "{looks} looks, {writes} writes");
        // Counts that went back are another bucket's: from there on they count anew.
        let back = agents.look(&agent(), demand(5, 0), at(200), &judge, EPOCH);
        assert!(matches!(back, Look::Begun));
        let on = agents.look(&agent(), demand(25, 0), at(201), &judge, EPOCH);
        assert!(matches!(on, Look::Ticked { .. }));
    }

    #[test]
    fn everybody_has_a_turn_before_anybody_has_another_and_the_forgotten_have_none() {
        let mut agents = Agents::with_capacity(NonZeroUsize::new(4).unwrap());
        let name = |number: u32| AgentId::new(&format!("a{number}")).unwrap();
        for number in 0..5 {
            agents.load(&name(number), Record::default(), &policy(), EPOCH).unwrap();
        }
        // a0 was pushed out; loading a1 anew keeps its place.
        agents.load(&name(1), Record::default(), &policy(), EPOCH).unwrap();
        let later = Instant::now() + Duration::from_secs(60);
        let mut due = |most| agents.due(most, later, Duration::from_secs(1));
        assert_eq!(due(3), [name(1), name(2), name(3)]);
        assert_eq!(due(2), [name(4), name(1)]);
        assert_eq!(due(9).len(), 4, "nobody twice in one look around");
        agents.forget(&name(2));
        assert_eq!(agents.due(9, later, Duration::from_secs(1)).len(), 3);
        // Places are bounded although nobody is looked at.
        for number in 0..10_000 {
            agents.load(&name(number), Record::default(), &policy(), EPOCH).unwrap();
        }
        assert!(agents.turns.len() <= 2 * 4 + TURNS_SLACK + 1, "{}", agents.turns.len());
        assert_eq!(agents.due(9, later + Duration::from_secs(60), Duration::from_secs(1)).len(), 4);
    }

    #[test]
    fn a_full_memory_makes_room_without_pushing_out_the_batch_at_hand() {
        let mut agents = Agents::with_capacity(NonZeroUsize::new(3).unwrap());
        let name = |number: u32| AgentId::new(&format!("a{number}")).unwrap();
        for number in 0..3 {
            agents.load(&name(number), Record::default(), &policy(), EPOCH).unwrap();
        }
        // The batch names the one that was rated longest ago, and two new ones.
        let batch = [name(0), name(7), name(8)];
        for agent in agents.unknown(batch.iter()) {
            agents.load(&agent, Record::default(), &policy(), EPOCH).unwrap();
        }
        assert!(agents.unknown(batch.iter()).is_empty());
        assert_eq!(agents.len(), 3);
    }

    #[test]
    fn a_half_that_no_operator_set_is_what_the_state_was_before_the_batch() {
        let mut agents = Agents::new();
        agents.load(&agent(), Record::default(), &policy(), EPOCH).unwrap();
        agents.adopt(&agent(), Some(Tokens::new(10).unwrap()), None, &policy());
        let (change, _) = fold(&mut agents, &[delivery(0, "i", 5)]);
        assert_eq!(change.unwrap().limits, Limits::per_second(20.2, 10).unwrap());
    }
}
