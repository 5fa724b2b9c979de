//! What an operator does to one agent, beside a tuner that runs, in this process or another.
//!
//! 1. New limits and bans go straight to the store: the tuner finds an operator's limits there and goes on
//!    from them.
//! 2. A freeze, its end and a reset change what the policy remembers. They are written as the tuner writes:
//!    fenced by the record's revision, so that neither loses what the other did; the tuner reads
//!    again what it finds changed, and folds again what it had not written.
//! 3. Which ratings were counted is never touched: none counts twice, and none is lost.

use std::time::Duration;

use tokio::sync::watch;
use tower_merit::{
    AgentId,
    bucket::{BucketName, Limits, earned},
    store::{Bid, ByHand, Change, Cursor, Quote, Record, StoreError, Tune, Written},
};

use super::{Aim, agents, life::unique};
use crate::policy::{Config, Hold, Policy, State};

/// How often a deed is tried again because a rating came first.
const TRIES: usize = 20;

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperateError {
    /// The store did not answer; a write may have been done all the same.
    #[error("store")]
    Store(#[from] StoreError),
    /// The agent is written by somebody else all the time.
    #[error(
        "the agent is rated too fast: it was written by somebody else {TRIES} times; try again"
    )]
    Contended,
    /// What the record holds was made before the store was lost or replaced.
    #[error(
        "the agent's record is of an earlier life of the store, and is made anew with its next rating; \
         until then it can be banned, and its limits set"
    )]
    Outlived,
}

/// Makes one call, over a new connection when the last one broke.
macro_rules! alive {
    ($operator:expr, $call:expr) => {
        match $call.await {
            Err(StoreError::Lost) => {
                $operator.store.life().await?;
                $call.await
            }
            answer => answer,
        }
    };
}

/// Does to agents what an operator decides.
#[derive(Clone, Debug)]
pub struct Operator<T> {
    store: T,
    aim: watch::Receiver<Aim>,
}

impl<T: Tune> Operator<T> {
    /// Returns one that goes by `aim`, as the tuners do.
    ///
    /// `store` must be a connection of its own: a tuner learns from its connection whether the store lost
    /// anything, and nobody may ask in its place.
    #[must_use]
    pub fn new(store: T, aim: watch::Receiver<Aim>) -> Self {
        Self { store, aim }
    }

    /// Returns the policy in force.
    #[must_use]
    pub fn policy(&self) -> Policy {
        let aim = self.aim.borrow();
        Policy::new(&aim.policy, aim.start)
    }

    /// Returns the `[policy]` table in force.
    #[must_use]
    pub fn config(&self) -> Config {
        self.aim.borrow().policy.clone()
    }

    /// Returns the limits that agents start from.
    #[must_use]
    pub fn start(&self) -> Limits {
        self.aim.borrow().start
    }

    /// Returns the agent's record.
    ///
    /// # Errors
    ///
    /// When the store does not answer, or what stands there is not of this version.
    pub async fn record(&self, agent: &AgentId) -> Result<Record, StoreError> {
        let loaded = self.records(std::slice::from_ref(agent)).await?;
        loaded.into_iter().next().unwrap_or_else(|| Ok(Record::default()))
    }

    /// Returns the records of `agents`, as [`Tune::load`] does.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn records(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        alive!(self, self.store.load(agents))
    }

    /// Returns some agents that have a record, as [`Tune::agents`] does.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn agents(
        &self,
        from: Cursor,
        about: usize,
    ) -> Result<(Vec<AgentId>, Option<Cursor>), StoreError> {
        alive!(self, self.store.agents(from, about))
    }

    /// Returns what capacity costs; nothing when nobody ever said.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn quote(&self) -> Result<Option<Quote>, StoreError> {
        // A bid without a term by somebody who holds nothing changes nothing.
        let bid = Bid { who: "operator".to_owned(), term: Duration::ZERO, quote: None };
        Ok(alive!(self, self.store.trade(&bid))?.quote)
    }

    /// Returns the store.
    #[must_use]
    pub fn store(&self) -> &T {
        &self.store
    }

    /// Sets the limits of one bucket, of the default one when none is named. Ratings move them on from
    /// there.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn set(
        &self,
        agent: &AgentId,
        bucket: Option<BucketName>,
        limits: Limits,
    ) -> Result<(), OperateError> {
        self.by_hand(agent, ByHand::Limits { bucket, limits }).await
    }

    /// Bans the agent until then, in Unix milliseconds; 0 lifts a ban.
    ///
    /// # Errors
    ///
    /// When the store does not answer.
    pub async fn ban(&self, agent: &AgentId, until_ms: u64) -> Result<(), OperateError> {
        self.by_hand(agent, ByHand::Ban { until_ms }).await
    }

    async fn by_hand(&self, agent: &AgentId, deed: ByHand) -> Result<(), OperateError> {
        Ok(alive!(self, self.store.by_hand(agent, &deed))?)
    }

    /// Holds the agent's rate where it is, or lets it move again.
    ///
    /// # Errors
    ///
    /// When the store does not answer, or the record is of an earlier life of it.
    pub async fn freeze(&self, agent: &AgentId, frozen: bool) -> Result<(), OperateError> {
        let hold = if frozen { Hold::Frozen } else { Hold::None };
        self.rewrite(agent, |policy, record, known| {
            let mut state = known.unwrap_or_else(|| match record.limits {
                Some(limits) => policy.adopt(limits),
                None => policy.begin(),
            });
            if let Some(limits) = record.limits.filter(|_| record.operator) {
                policy.rebase(&mut state, limits);
            }
            state.set_hold(hold);
            let limits = record.limits.unwrap_or_else(|| state.limits());
            (state, limits, Vec::new())
        })
        .await
    }

    /// Forgets what ratings said of the agent, and what an operator did to its rate: it starts anew.
    ///
    /// # Errors
    ///
    /// As [`Operator::freeze`].
    pub async fn reset(&self, agent: &AgentId) -> Result<(), OperateError> {
        let Aim { start, earned: configured, .. } = self.aim.borrow().clone();
        self.rewrite(agent, |policy, _, _| {
            let named = |(name, configured): &(BucketName, Limits)| {
                (name.clone(), earned(configured, start.refill(), start.refill()))
            };
            (policy.begin(), start, configured.iter().map(named).collect())
        })
        .await
    }

    async fn rewrite(
        &self,
        agent: &AgentId,
        change: impl Fn(&Policy, &Record, Option<State>) -> (State, Limits, Vec<(BucketName, Limits)>),
    ) -> Result<(), OperateError> {
        let policy = self.policy();
        for _ in 0..TRIES {
            // Whose data this is must be known for sure: what is written names it.
            let epoch = self.epoch().await?;
            let record = self.record(agent).await?;
            let known = match agents::kept_in(&record) {
                Some((of, _)) if of != epoch => return Err(OperateError::Outlived),
                Some((_, state)) => state,
                // A state that cannot be read is no state, but what it counted may not be forgotten.
                None if record.rev > 0 => return Err(OperateError::Outlived),
                None => None,
            };
            let (state, limits, named) = change(&policy, &record, known);
            let change = Change {
                agent: agent.clone(),
                rev: record.rev,
                limits,
                named,
                adopts: record.limits.filter(|_| record.operator),
                state: agents::kept(&epoch, &state),
                applied: Vec::new(),
                seen: Vec::new(),
            };
            let written = self.store.write(std::slice::from_ref(&change)).await?;
            match written.into_iter().next() {
                Some(Ok(Written::Done { .. })) => return Ok(()),
                Some(Err(fault)) => return Err(fault.into()),
                Some(Ok(Written::Stale | Written::Operator { .. })) | None => {}
            }
        }
        Err(OperateError::Contended)
    }

    /// Returns which life of the store this is; an empty one becomes ours.
    async fn epoch(&self) -> Result<String, StoreError> {
        loop {
            match self.store.life().await?.epoch {
                Some(epoch) => return Ok(epoch),
                None => self.store.begin_epoch(&unique()).await?,
            }
        }
    }
}
