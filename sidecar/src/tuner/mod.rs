//! The loop: ratings off the bus, through the policy, into the store, exactly once.
//!
//! 1. A batch is folded agent by agent. A rating at or below the agent's `applied` for its log is
//!    skipped: the fence is per rating, because after a crash the batches fall differently.
//! 2. Limits, state, `applied` and ids seen are written in one step per agent that compares and
//!    increments the record's revision. Who lost a partition and does not know it yet changes
//!    nothing: it reads again and folds again.
//! 3. Progress is stored after the writes, trailing them by the replay window; a partition always
//!    continues from the progress in the store, or from the start of its log when there is none.
//! 4. Before anything is written over a new connection the store is asked which life of it this is.
//!    When that changed, memory is forgotten and every partition goes back to the stored progress.
//! 5. Over a bus that cannot go back (in-process), nothing is given twice: at most once.
//! 6. Between ratings come ticks: the price of capacity moves, and agents are looked at (`ticks`).

mod agents;
mod busiest;
mod config;
mod insight;
mod judge;
mod learning;
mod ledger;
mod life;
mod market;
mod metrics;
mod moves;
mod operate;
mod pending;
mod plan;
mod positions;
mod ticks;
mod traces;
mod window;

pub use agents::state_of;
pub use busiest::{BUSIEST_MAX, Busiest};
pub use config::Config;
pub use insight::{Asked, HAPPENINGS, Happening, Insight, PATIENCE, insight};
pub use moves::{Cause, MOVES, Move};
pub use operate::{OperateError, Operator};
pub use plan::{Aim, Plan, Unproved};

use std::{
    collections::{HashMap, HashSet},
    error::Error as _,
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;
use tower_merit::{
    AgentId,
    store::{Change, StoreError, Tune, Written},
};
use tracing::{error, info, warn};

use self::{
    agents::{Agents, Folded, Folding, WentBack},
    insight::Ask,
    judge::Judge,
    learning::Learning,
    ledger::Ledger,
    life::Known,
    market::Trade,
    metrics::{Counts, Metrics},
    pending::Pending,
    positions::Positions,
    traces::Times,
};
use crate::{
    bus::{Assignment, BusError, Consumer, Delivery, Event, Partition},
    clock::unix_time,
    policy::{CohortError, Cohorts},
    rating::SubjectMode,
};

/// How often progress is stored and the store is asked which life this is.
const HOUSEKEEPING: Duration = Duration::from_secs(1);

/// Pauses between attempts to reach a store that is away: from the first to the last.
const RETRY_MIN: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_millis(250);

/// How often a batch is folded again because others wrote meanwhile, before that is an error. Each
/// round loses at most the agents that somebody else wrote within it.
const CONFLICTS_MAX: usize = 100;

/// Why the loop ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TunerError {
    /// The bus failed for good.
    #[error("bus failed")]
    Bus(#[from] BusError),
    /// Another writer keeps changing the same agents.
    #[error("agent {agent} was written by somebody else {CONFLICTS_MAX} times in a row")]
    Contended {
        /// One of the agents.
        agent: AgentId,
    },
}

/// The loop. It owns the consuming end of the bus and is the only writer of limits it knows of.
pub struct Tuner<T> {
    consumer: Consumer,
    store: T,
    judge: Judge,
    subject: SubjectMode,
    agents: Agents,
    positions: Positions,
    logs: HashMap<Partition, Arc<str>>,
    /// Ours, and not read: their logs end below what was applied.
    stopped: HashSet<Partition>,
    life: Option<Known>,
    metrics: Metrics,
    /// The name that this tuner leads the market by.
    who: String,
    /// Absent with a policy that knows no price: then there are no ticks either.
    trade: Option<Trade>,
    /// The next slice of the tick.
    slice: u32,
    /// Agents looked at in a tick.
    looks: u32,
    fitted: Instant,
    fitting: Option<JoinHandle<Result<Cohorts, CohortError>>>,
    ledger: Option<Ledger>,
    learning: Option<Learning>,
    changes: Option<watch::Receiver<Aim>>,
    asks: Option<Asked>,
}

/// What interrupts a batch.
enum Interrupt {
    /// The store is another one, or has lost writes: what is in memory is worth nothing.
    NewLife,
    /// The store failed, which is logged; part of the batch may be written.
    Store,
    /// It is time to stop.
    Stop,
    Failed(TunerError),
}

impl<T: Tune> Tuner<T> {
    /// Returns a loop that has read nothing yet.
    #[must_use]
    pub fn new(consumer: Consumer, store: T, plan: Plan) -> Self {
        let Plan { aim, subject, unproved, tuner, changes, decisions, asks, busiest } = plan;
        let policy = aim.policy.clone();
        let who = life::unique();
        Self {
            consumer,
            store,
            judge: Judge::new(aim, unproved),
            subject,
            agents: Agents::new(tuner.agents_max),
            positions: Positions::new(tuner.replay_window),
            logs: HashMap::new(),
            stopped: HashSet::new(),
            life: None,
            metrics: Metrics::new(busiest),
            trade: Trade::new(&policy, who.clone()),
            who,
            slice: 0,
            looks: tuner.looks,
            fitted: Instant::now(),
            fitting: None,
            ledger: decisions.map(Ledger::new),
            learning: Learning::start(&policy, None),
            changes,
            asks,
        }
    }

    /// Runs until `stop` is cancelled, or the bus ends; then what was read is written and the
    /// partitions are given back.
    ///
    /// # Errors
    ///
    /// When the bus fails for good. A store or a bus that is merely away is waited for.
    pub async fn run(mut self, stop: CancellationToken) -> Result<(), TunerError> {
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        housekeeping.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut slices = self.slices();
        loop {
            tokio::select! {
                // In this order, so that a busy bus delays neither the end nor the housekeeping.
                biased;
                () = stop.cancelled() => break,
                _ = housekeeping.tick() => self.keep_house(&stop).await?,
                aim = changed(&mut self.changes) => {
                    self.reconfigure(aim).await;
                    slices = self.slices();
                }
                ask = asked(&mut self.asks) => self.answer(ask),
                _ = slices.tick() => {
                    self.tick().await;
                    // From now on: however long it took, ratings come before the next one.
                    slices.reset();
                }
                event = self.consumer.next() => match event? {
                    Event::Assigned(assignments) => self.assigned(&assignments, &stop).await?,
                    Event::Revoked(partitions) => self.revoked(&partitions).await,
                    Event::Batch { deliveries, positions } => {
                        self.batch(&deliveries, &positions, &stop).await?;
                    }
                    Event::Closed => break,
                },
            }
        }
        self.store_last_progress().await;
        if let Some(trade) = &mut self.trade
            && let Err(failure) = trade.release(&self.store).await
        {
            self.failed("lease of the market not given back", &failure);
        }
        if let Some(learning) = self.learning.take() {
            drop(learning.finish().await);
        }
        self.consumer.close().await;
        Ok(())
    }

    /// Goes on by another policy, start or buckets. Agents are taken over as they are decided next, without
    /// a jump in anybody's limits; buckets that scale follow at an agent's next write.
    async fn reconfigure(&mut self, aim: Aim) {
        if self.judge.rebase(&aim) {
            info!(start = ?aim.start, scaled = aim.earned.len(), "limits to start from are in force");
            return;
        }
        let config = &aim.policy.clone();
        self.judge.reconfigure(aim);
        if !self.learning.as_ref().is_some_and(|learning| learning.suits(config)) {
            // What was learned is saved before another thread may load it.
            let learned = match self.learning.take() {
                Some(learning) => learning.finish().await,
                None => None,
            };
            self.learning = Learning::start(config, learned.as_ref());
        }
        match &mut self.trade {
            Some(trade) if config.knows_a_price() => trade.reconfigure(config),
            trade => *trade = Trade::new(config, self.who.clone()),
        }
        if let Some(ledger) = &mut self.ledger {
            ledger.forget();
        }
        info!(policy = self.judge.policy().law().name(), "policy in force");
    }

    fn answer(&self, ask: Ask) {
        // Who does not wait any more gets nothing.
        match ask {
            Ask::Moves(agent, answer) => drop(answer.send(self.agents.moves(&agent))),
            Ask::Happenings(answer) => drop(answer.send(self.metrics.recent.told())),
        }
    }

    /// Returns when slices of ticks are due.
    fn slices(&self) -> tokio::time::Interval {
        let tick = Duration::from_millis(self.judge.policy().market().tick_ms);
        let mut slices = tokio::time::interval(tick / ticks::SLICES);
        slices.set_missed_tick_behavior(MissedTickBehavior::Delay);
        slices
    }

    /// Takes over partitions: each continues from the progress in the store.
    async fn assigned(
        &mut self,
        assignments: &[Assignment],
        stop: &CancellationToken,
    ) -> Result<(), TunerError> {
        let source = self.consumer.source().to_owned();
        for Assignment { partition, .. } in assignments {
            let log: Arc<str> = format!("{source}/{partition}").into();
            self.logs.insert(*partition, log);
        }
        if !self.consumer.durable() {
            for Assignment { partition, log_start, .. } in assignments {
                self.positions.begin(*partition, *log_start, Instant::now());
            }
            return Ok(());
        }
        let Some((progress, same)) = self.read_progress(stop).await else { return Ok(()) };
        if !same {
            self.go_back(&progress)?;
        }
        for Assignment { partition, log_start, log_end } in assignments {
            let log = &self.logs[partition];
            let known = progress.get(&**log).copied();
            let from = known.unwrap_or(*log_start);
            if from > *log_end && self.consumer.go_on(*partition, from).await {
                warn!(%partition, %source, log_end, applied = from, "log lost its newest ratings, and goes on behind them");
            } else if from > *log_end {
                // The offsets in the store are of a longer log than this one: reading on would skip
                // every rating until the log is as long as the old one was.
                self.consumer.pause(&[*partition])?;
                if self.consumer.renew(*partition) {
                    warn!(
                        %partition, %source, log_end, applied = from,
                        "log ends below what was applied: it lost ratings, and gets another name"
                    );
                    continue;
                }
                error!(
                    %partition, %source, log_end, applied = from,
                    "log ends below what was applied: the topic was made anew. Give [bus] generation \
                     a new number and restart; this partition is not read until then"
                );
                self.stopped.insert(*partition);
                self.metrics.stopped(self.stopped.len());
                continue;
            }
            if known.is_none() && *log_end > *log_start {
                info!(%partition, log_start, log_end, "no progress in the store: reading the whole log");
                if *log_start > 0 {
                    warn!(%partition, log_start, "the log no longer begins at 0: limits rebuilt from it are an approximation");
                }
            }
            if known.is_some() && from < *log_start {
                self.metrics.gaps.increment(1);
                error!(
                    %partition, %source, log_start, applied = from,
                    "what followed what was applied is not in the log any more: those ratings are lost to the limits. \
                     The store came back from before them, or no tuner read for longer than the log keeps"
                );
            }
            let from = from.max(*log_start);
            self.consumer.seek(*partition, from)?;
            self.positions.begin(*partition, from, Instant::now());
        }
        Ok(())
    }

    /// Gives partitions up. Their agents may be another tuner's now, so all memory is dropped: it
    /// is loaded again, agent by agent, as ratings come.
    async fn revoked(&mut self, partitions: &[Partition]) {
        self.store_last_progress().await;
        for partition in partitions {
            self.positions.end(*partition);
            self.logs.remove(partition);
            self.stopped.remove(partition);
        }
        self.metrics.stopped(self.stopped.len());
        self.metrics.gave_up_agents();
        self.agents.forget_all();
    }

    /// Folds and writes a batch; returns when it is in force, or given up for a new life.
    async fn batch(
        &mut self,
        deliveries: &[Delivery],
        positions: &[(Partition, u64)],
        stop: &CancellationToken,
    ) -> Result<(), TunerError> {
        let mut pending = Pending::default();
        for delivery in deliveries {
            let Some(log) = self.logs.get(&delivery.partition) else { continue };
            match delivery.rating.subject(self.subject) {
                Some(agent) => {
                    let folding =
                        Folding { delivery, log: Arc::clone(log), fresh: false, weight: None };
                    pending.push(agent, folding);
                }
                None => self.metrics.without_agent.increment(1),
            }
        }
        loop {
            match self.apply(&mut pending, stop).await {
                Ok(()) => break,
                Err(Interrupt::Failed(failure)) => return Err(failure),
                // What is unwritten is read again after the next start.
                Err(Interrupt::Stop) => return Ok(()),
                Err(Interrupt::NewLife) if self.consumer.durable() => {
                    return self.begin_again(stop).await;
                }
                // What cannot be read again is not thrown away either.
                Err(Interrupt::NewLife | Interrupt::Store) => self.agents.forget_all(),
            }
        }
        let now = Instant::now();
        for (partition, offset) in positions {
            self.positions.advance(*partition, *offset, now);
        }
        Ok(())
    }

    /// Folds and writes `pending` until nothing of it is left.
    async fn apply(
        &mut self,
        pending: &mut Pending<'_>,
        stop: &CancellationToken,
    ) -> Result<(), Interrupt> {
        if self.life.is_none() {
            self.same_life(stop).await?;
        }
        let (mut conflicts, mut pause) = (0, RETRY_MIN);
        while !pending.is_empty() {
            match self.apply_once(pending).await {
                Ok(()) => conflicts += 1,
                Err(Interrupt::Store) => {
                    if wait_or_stop(pause, stop).await {
                        return Err(Interrupt::Stop);
                    }
                    pause = (pause * 2).min(RETRY_MAX);
                    self.agents.forget_all();
                    self.same_life(stop).await?;
                }
                Err(interrupt) => return Err(interrupt),
            }
            if conflicts > CONFLICTS_MAX
                && let Some(agent) = pending.agents().next().cloned()
            {
                return Err(Interrupt::Failed(TunerError::Contended { agent }));
            }
        }
        Ok(())
    }

    /// One round: loads who is unknown, folds everybody, writes, and keeps in `pending` whoever
    /// somebody else wrote meanwhile.
    async fn apply_once(&mut self, pending: &mut Pending<'_>) -> Result<(), Interrupt> {
        let epoch = self.life.as_ref().map_or_else(String::new, |life| life.epoch.clone());
        let unknown = self.agents.unknown(pending.agents());
        self.load(&unknown, &epoch, pending).await?;

        let mut changes: Vec<Change> = Vec::with_capacity(pending.len());
        let mut folds: Vec<(Folded, f64)> = Vec::with_capacity(pending.len());
        let (mut began, clock) = (Instant::now(), SystemTime::now());
        pending.retain(|agent, ratings| {
            let (change, folded) =
                self.agents.fold(agent, ratings, &mut self.judge, &epoch, self.consumer.durable());
            let ended = Instant::now();
            self.metrics.update_latency.record(ended - began);
            began = ended;
            let Some(change) = change else {
                self.metrics.skipped.increment(folded.skipped);
                return false;
            };
            folds.push((folded, change.limits.refill().tokens()));
            changes.push(change);
            true
        });
        let writing = SystemTime::now();
        let written = match self.store.write(&changes).await {
            Ok(written) => written,
            Err(failure) => {
                self.failed("limits not written", &failure);
                return Err(Interrupt::Store);
            }
        };
        let (now, mut counts) = (Instant::now(), Counts::default());
        let (at, times) =
            (unix_time(), Times { began: clock, writing, written: SystemTime::now() });
        let (mut reload, mut operators, mut faults) = (Vec::new(), Vec::new(), Vec::new());
        // What is left is who has a change, in the order of the changes.
        let mut outcomes = changes.into_iter().zip(written).zip(folds);
        pending.retain(|_, ratings| {
            let ((change, written), (folded, rate)) = outcomes.next().expect("one for each agent");
            match written {
                Ok(Written::Done { rev, demand }) => {
                    self.agents.written(&change.agent, rev, rate);
                    self.metrics.applied(&change.agent, &folded, rate, ratings, at);
                    counts.add(&folded);
                    traces::told(&change.agent, rate, ratings, &times);
                    self.look_in_passing(&change.agent, demand, now);
                    return false;
                }
                Ok(Written::Stale) => {
                    self.metrics.stale.increment(1);
                    reload.push(change.agent);
                }
                Ok(Written::Operator { capacity, refill }) => {
                    info!(agent = %change.agent, ?capacity, ?refill, "an operator's limits are the new start");
                    operators.push((change.agent.clone(), capacity, refill));
                    reload.push(change.agent);
                }
                Err(fault) => faults.push((change.agent, fault)),
            }
            true
        });
        self.metrics.count(&counts);
        for (agent, fault) in faults {
            self.set_aside(&agent, &fault, pending);
        }
        self.load(&reload, &epoch, pending).await?;
        for (agent, capacity, refill) in operators {
            self.agents.adopt(&agent, capacity, refill, self.judge.policy());
        }
        Ok(())
    }

    /// Gives up the ratings of an agent whose data in the store cannot be read: one agent's fault
    /// must not hold up the others.
    fn set_aside(&mut self, agent: &AgentId, fault: &StoreError, pending: &mut Pending<'_>) {
        let ratings = pending.remove(agent);
        // What was folded of them must not be written later.
        self.agents.forget(agent);
        self.metrics.set_aside.increment(ratings as u64);
        error!(
            %agent, error = %fault, ratings,
            "ratings set aside: delete or mend the agent's keys tb:<agent> and merit:{{tb:<agent>}}"
        );
    }

    async fn load(
        &mut self,
        agents: &[AgentId],
        epoch: &str,
        pending: &mut Pending<'_>,
    ) -> Result<(), Interrupt> {
        let records = match self.store.load(agents).await {
            Ok(records) => records,
            Err(failure) => {
                self.failed("agents not loaded", &failure);
                return Err(Interrupt::Store);
            }
        };
        for (agent, record) in agents.iter().zip(records) {
            let record = match record {
                Ok(record) => record,
                Err(fault) => {
                    self.set_aside(agent, &fault, pending);
                    continue;
                }
            };
            match self.agents.load(agent, record, self.judge.policy(), epoch) {
                Ok(()) => {}
                Err(WentBack::Older) => {
                    warn!(%agent, "bucket store has an older record of an agent: it has lost writes");
                    return Err(Interrupt::NewLife);
                }
                // One record may expire, be deleted or be evicted; all of them go with a new life.
                Err(WentBack::Gone) => {
                    warn!(%agent, "bucket store has no record of an agent any more: it starts anew");
                    match self.ask_life().await {
                        Ok(life) if self.is_known(&life) => {}
                        Ok(_) => return Err(Interrupt::NewLife),
                        Err(failure) => {
                            self.failed("bucket store not reached", &failure);
                            return Err(Interrupt::Store);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    async fn keep_house(&mut self, stop: &CancellationToken) -> Result<(), TunerError> {
        let lag = self.consumer.lag();
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        self.metrics.lag.set(lag.iter().map(|(_, lag)| lag).sum::<u64>() as f64);
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        self.metrics.agents.set(self.agents.len() as f64);
        self.metrics.fade();
        // Before anything was written there is no life to ask for, and without progress and ticks nobody
        // who needs to know.
        if !self.consumer.durable() && (self.trade.is_none() || self.life.is_none()) {
            return Ok(());
        }
        match self.ask_life().await {
            Ok(life) if self.is_known(&life) => {}
            Ok(_) if !self.consumer.durable() => self.agents.forget_all(),
            Ok(_) => return self.begin_again(stop).await,
            // The next batch waits for the store; until then there is nothing to write.
            Err(failure) => {
                self.failed("bucket store not reached", &failure);
                return Ok(());
            }
        }
        if self.consumer.durable() {
            self.store_progress().await;
        }
        Ok(())
    }

    /// Stores progress one last time before partitions are given up, if the store is still the one
    /// that it was made in: elsewhere it would pass over ratings.
    async fn store_last_progress(&mut self) {
        if !self.consumer.durable() {
            return;
        }
        match self.ask_life().await {
            Ok(life) if self.life.as_ref() == Some(&life) => self.store_progress().await,
            // The next batch or housekeeping finds out and goes back.
            Ok(_) => {}
            Err(failure) => self.failed("progress not stored", &failure),
        }
    }

    /// Stores progress in the store and on the bus; the caller has just asked which life of the store
    /// this is. A failure costs nothing but reading again.
    async fn store_progress(&mut self) {
        let moved = self.positions.take_progress(Instant::now());
        let named: Vec<(String, u64)> = moved
            .iter()
            .map(|(partition, offset)| (self.logs[partition].to_string(), *offset))
            .collect();
        if let Err(failure) = self.store.note_progress(&named).await {
            self.failed("progress not stored", &failure);
            // A store that is full may be the bus too, and then has room again when that is committed. It is
            // the same store still, with all that was written.
            if !failure.is_full() {
                return;
            }
        }
        if let Err(failure) = self.consumer.commit(&moved) {
            warn!(error = %failure, "offsets not committed");
        }
    }

    fn failed(&self, what: &'static str, failure: &StoreError) {
        self.metrics.store_failures.increment(1);
        let cause = failure.source().map(ToString::to_string);
        warn!(error = %failure, cause, "{what}");
    }
}

/// Waits for what to go on by next; for ever when nobody will send one.
async fn changed(changes: &mut Option<watch::Receiver<Aim>>) -> Aim {
    if let Some(changes) = changes
        && changes.changed().await.is_ok()
    {
        return changes.borrow_and_update().clone();
    }
    *changes = None;
    std::future::pending().await
}

/// Waits for the next question; for ever when nobody will ask.
async fn asked(asks: &mut Option<Asked>) -> Ask {
    if let Some(Asked(questions)) = asks
        && let Some(ask) = questions.recv().await
    {
        return ask;
    }
    *asks = None;
    std::future::pending().await
}

/// Returns true when it is time to stop instead.
async fn wait_or_stop(pause: Duration, stop: &CancellationToken) -> bool {
    tokio::time::timeout(pause, stop.cancelled()).await.is_ok()
}
