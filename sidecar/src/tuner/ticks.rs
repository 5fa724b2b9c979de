//! Ticks: the price moves, and agents are looked at although nobody rates them.
//!
//! 1. A tick is cut into [`SLICES`], so that looking at agents never holds a rating up for long. The
//!    first slice moves the price; each looks at its part of the agents whose turn it is.
//! 2. A look reads what an agent asked for, without its record. It writes only when the agent's rate
//!    moved by more than about one per cent, so a price that creeps costs reads and few writes.
//! 3. A store that does not answer is waited for by ratings, not by ticks: the slice is given up.

use std::time::Duration;

use tokio::time::Instant;
use tower_merit::{
    AgentId,
    store::{Change, Demand, StoreError, Tune, Written},
};
use tracing::{debug, error, info, warn};

use super::{Tuner, agents::Look};
use crate::{
    clock::unix_time,
    policy::{AnyLaw, Bandit, COHORTS_MAX, Cohorts, State},
};

/// Into how many parts a tick is cut.
pub(super) const SLICES: u32 = 8;

/// How often agents are sorted into cohorts anew.
const COHORTS_EVERY: Duration = Duration::from_secs(60);

/// Agents that cohorts are made from: the ones used last.
const COHORT_AGENTS: usize = 5_000;

/// How many cohorts are made.
const COHORTS: usize = 4;
const _: () = assert!(COHORTS <= COHORTS_MAX);

impl<T: Tune> Tuner<T> {
    /// Does one slice of a tick.
    pub(super) async fn tick(&mut self) {
        let Some(trade) = &mut self.trade else { return };
        // Nothing is known of the store before the first rating or partition asked it.
        if self.life.is_none() {
            return;
        }
        let first = self.slice == 0;
        self.slice = (self.slice + 1) % SLICES;
        if first {
            match trade.tick(&self.store, Instant::now()).await {
                Ok(Some(market)) => self.judge.see(market),
                Ok(None) => {}
                Err(failure) => return self.failed("price not moved", &failure),
            }
            self.keep_cohorts();
        }
        if let (Some(learning), AnyLaw::Ppo(law)) = (&mut self.learning, self.judge.law_mut()) {
            learning.hand_over();
            if let Some(news) = learning.news() {
                law.set_network(news.network, news.version);
            }
        }
        if let Err(failure) = self.look_around().await {
            self.failed("agents not looked at", &failure);
        }
    }

    /// Looks at the next part of the agents.
    async fn look_around(&mut self) -> Result<(), StoreError> {
        let most = self.looks.div_ceil(SLICES) as usize;
        let tick = self.tick_length();
        let due = self.agents.due(most, Instant::now(), tick);
        if due.is_empty() {
            return Ok(());
        }
        let demands = self.store.demand(&due).await?;
        let (now, mut changes) = (Instant::now(), Vec::new());
        for (agent, demand) in due.iter().zip(demands) {
            match demand {
                Ok(demand) => changes.extend(self.look(agent, demand, now)),
                Err(fault) => error!(%agent, error = %fault, "agent not looked at: mend its keys"),
            }
        }
        self.write_moved(changes).await
    }

    /// Takes in what an agent asked for, and returns what is to be written of it.
    pub(super) fn look(&mut self, agent: &AgentId, demand: Demand, now: Instant) -> Option<Change> {
        let epoch = self.life.as_ref().map_or("", |life| &life.epoch);
        match self.agents.look(agent, demand, now, &self.judge, epoch, self.ledger.is_some()) {
            Look::Begun => None,
            Look::Early { change } => change.map(|change| *change),
            Look::Ticked { before, decision, change, outcome, lesson } => {
                self.metrics.decided(agent, &decision);
                if let (Some(outcome), AnyLaw::Bandit(law)) = (&outcome, self.judge.law_mut()) {
                    law.arms_mut().learn(outcome);
                }
                if let (Some(learning), Some(lesson)) = (&mut self.learning, lesson) {
                    learning.note(agent, *lesson);
                }
                if let (Some(ledger), Some(state), Some(before)) =
                    (&mut self.ledger, self.agents.state(agent), before)
                {
                    ledger.note(agent, state, &before, &decision, outcome, self.judge.policy());
                }
                change.map(|change| *change)
            }
        }
    }

    /// Looks at an agent whose write has just told what it asked for, if its last look is a tick ago.
    /// What that changes is written with its next rating or in its turn.
    pub(super) fn look_in_passing(&mut self, agent: &AgentId, demand: Demand, now: Instant) {
        if self.trade.is_some() && self.agents.is_due(agent, now, self.tick_length()) {
            self.look(agent, demand, now);
        }
    }

    async fn write_moved(&mut self, changes: Vec<Change>) -> Result<(), StoreError> {
        let mut reload = Vec::new();
        let answers = match self.store.write(&changes).await {
            Ok(answers) => answers,
            Err(failure) => {
                // What was written and what was not is not known.
                changes.iter().for_each(|change| self.agents.forget(&change.agent));
                return Err(failure);
            }
        };
        for (change, written) in changes.iter().zip(answers) {
            match written {
                Ok(Written::Done { rev, .. }) => {
                    let rate = change.limits.refill().tokens();
                    self.metrics.moved(&change.agent, rate);
                    self.agents.written(&change.agent, rev, rate);
                }
                // Somebody else's rating or an operator came first: the next look starts from there.
                Ok(Written::Stale | Written::Operator { .. }) => reload.push(change.agent.clone()),
                Err(fault) => {
                    error!(agent = %change.agent, error = %fault, "agent not moved: mend its keys");
                    self.agents.forget(&change.agent);
                }
            }
        }
        // As if they were new: what the store says counts, and their next look starts from there.
        reload.iter().for_each(|agent| self.agents.forget(agent));
        let epoch = self.life.as_ref().map_or("", |life| &life.epoch);
        for (agent, record) in reload.iter().zip(self.store.load(&reload).await?) {
            if let Ok(record) = record {
                let loaded = self.agents.load(agent, record, self.judge.policy(), epoch);
                loaded.expect("nothing was known of it any more");
            }
        }
        Ok(())
    }

    fn tick_length(&self) -> Duration {
        Duration::from_millis(self.judge.policy().market().tick_ms)
    }

    /// Sorts agents into cohorts from time to time, beside the loop, when the policy has a use for them.
    fn keep_cohorts(&mut self) {
        let AnyLaw::Bandit(law) = self.judge.law_mut() else { return };
        if let Some(fitting) = self.fitting.take_if(|fitting| fitting.is_finished()) {
            // A task that is finished answers at once.
            match futures_util::FutureExt::now_or_never(fitting) {
                Some(Ok(Ok(cohorts))) => {
                    info!(cohorts = cohorts.len(), "agents were sorted into cohorts");
                    law.set_cohorts(cohorts);
                }
                Some(Ok(Err(error))) => debug!(%error, "no cohorts"),
                Some(Err(panic)) => warn!(%panic, "sorting agents into cohorts failed"),
                None => {}
            }
        }
        if self.fitting.is_none() && self.fitted.elapsed() >= COHORTS_EVERY {
            self.fitted = Instant::now();
            let standings = self.agents.states().filter_map(State::standing);
            let features: Vec<_> = standings.take(COHORT_AGENTS).map(Bandit::features).collect();
            let seed = unix_time().as_secs();
            self.fitting =
                Some(tokio::task::spawn_blocking(move || Cohorts::fit(&features, COHORTS, seed)));
        }
    }
}
