//! The store that the configuration names: a closed set, so that the process is built once for all.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use pin_project_lite::pin_project;
use tokio::time::Instant;
use tower_merit::{
    AgentId, MemoryStore, RedisStore, Spend, Tune,
    store::{
        Bid, ByHand, Change, Charge, Cursor, Demand, Document, Kept, Leased, LeasedFuture, Life,
        Record, Settlement, StoreError, Take, Traded, Verdict, Written,
    },
};

use super::AppError;
use crate::{
    admin::Health,
    config::{Config, StoreKind, StoreMode},
    personalize::events::Tickets,
};

/// Where buckets live, and how decisions reach them.
#[derive(Clone, Debug)]
pub(super) enum Store {
    Memory(MemoryStore),
    Redis(RedisStore),
    Leased(Leased<RedisStore>),
}

impl Store {
    /// Opens the store of `config`, and says how its health is asked for.
    pub(super) fn open(config: &Config) -> Result<(Self, Health), AppError> {
        let wanted = &config.store;
        if wanted.kind == StoreKind::Memory {
            return Ok((Self::Memory(MemoryStore::new()), Health::new()));
        }
        // Leases remember refusals themselves; two memories would add up.
        let exact = wanted.mode == StoreMode::Exact;
        let servers = config.redis().map_err(|faults| AppError::Config(faults.join("; ")))?;
        let redis = servers.cache_denials(exact).connect_lazily()?;
        let ping = redis.clone();
        let health = Health::new().part("store", move || {
            let store = ping.clone();
            async move { store.ping().await }
        });
        let store = match wanted.mode {
            StoreMode::Exact => Self::Redis(redis),
            StoreMode::Leased => Self::Leased(
                Leased::builder(redis)
                    .term(wanted.lease_term)
                    .ahead_max(wanted.lease_ahead_max)
                    .agents_max(wanted.lease_agents_max)
                    .build()?,
            ),
        };
        Ok((store, health))
    }

    /// Returns a way to the same data that shares no connection with the tuner: an operator's questions must
    /// not hide from it that a connection broke.
    pub(super) fn beside(&self, config: &Config) -> Result<Self, AppError> {
        if let Self::Memory(store) = self {
            return Ok(Self::Memory(store.clone()));
        }
        let servers = config.redis().map_err(|faults| AppError::Config(faults.join("; ")))?;
        Ok(Self::Redis(servers.cache_denials(false).connect_lazily()?))
    }

    /// Returns where tickets of streams wait: where every node of this store finds them.
    pub(super) fn tickets(&self) -> Tickets {
        match self {
            Self::Memory(_) => Tickets::memory(),
            Self::Redis(store) => Tickets::Redis(store.clone()),
            Self::Leased(store) => Tickets::Redis(store.store().clone()),
        }
    }

    /// Returns what is held ahead, before the process ends.
    pub(super) async fn close(&self) -> Result<(), StoreError> {
        if let Self::Leased(leased) = self {
            leased.close().await?;
        }
        Ok(())
    }
}

impl Spend for Store {
    type Future = Spending;

    fn spend(&self, charge: Charge) -> Spending {
        match self {
            Self::Memory(store) => Spending::Memory { pending: store.spend(charge) },
            Self::Redis(store) => Spending::Redis { pending: store.spend(charge) },
            Self::Leased(store) => Spending::Leased { pending: store.spend(charge) },
        }
    }

    fn spend_now(&self, agent: &AgentId, takes: &Arc<[Take]>, now: Instant) -> Option<Verdict> {
        match self {
            Self::Memory(store) => store.spend_now(agent, takes, now),
            Self::Redis(store) => store.spend_now(agent, takes, now),
            Self::Leased(store) => store.spend_now(agent, takes, now),
        }
    }

    fn settle(&self, settlement: Settlement) {
        match self {
            Self::Memory(store) => store.settle(settlement),
            Self::Redis(store) => store.settle(settlement),
            Self::Leased(store) => store.settle(settlement),
        }
    }
}

pin_project! {
    /// A decision on its way.
    #[project = SpendingProjection]
    pub(super) enum Spending {
        Memory { #[pin] pending: <MemoryStore as Spend>::Future },
        Redis { #[pin] pending: <RedisStore as Spend>::Future },
        Leased { #[pin] pending: LeasedFuture<RedisStore> },
    }
}

impl Future for Spending {
    type Output = Result<Verdict, StoreError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project() {
            SpendingProjection::Memory { pending } => pending.poll(context),
            SpendingProjection::Redis { pending } => pending.poll(context),
            SpendingProjection::Leased { pending } => pending.poll(context),
        }
    }
}

/// Calls the same method of whichever store it is.
macro_rules! each {
    ($store:expr, $method:ident($($argument:expr),*)) => {
        match $store {
            Store::Memory(store) => store.$method($($argument),*).await,
            Store::Redis(store) => store.$method($($argument),*).await,
            Store::Leased(store) => store.$method($($argument),*).await,
        }
    };
}

impl Tune for Store {
    async fn load(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        each!(self, load(agents))
    }

    async fn demand(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Demand, StoreError>>, StoreError> {
        each!(self, demand(agents))
    }

    async fn write(
        &self,
        changes: &[Change],
    ) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        each!(self, write(changes))
    }

    async fn by_hand(&self, agent: &AgentId, deed: &ByHand) -> Result<(), StoreError> {
        each!(self, by_hand(agent, deed))
    }

    async fn life(&self) -> Result<Life, StoreError> {
        each!(self, life())
    }

    async fn begin_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        each!(self, begin_epoch(epoch))
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        each!(self, progress())
    }

    async fn note_progress(&self, progress: &[(String, u64)]) -> Result<(), StoreError> {
        each!(self, note_progress(progress))
    }

    async fn agents(
        &self,
        from: Cursor,
        about: usize,
    ) -> Result<(Vec<AgentId>, Option<Cursor>), StoreError> {
        each!(self, agents(from, about))
    }

    async fn used(&self) -> Result<Vec<(String, u64)>, StoreError> {
        each!(self, used())
    }

    async fn trade(&self, bid: &Bid) -> Result<Traded, StoreError> {
        each!(self, trade(bid))
    }

    async fn document(&self) -> Result<Document, StoreError> {
        each!(self, document())
    }

    async fn keep_document(&self, rev: u64, text: Option<&str>) -> Result<Kept, StoreError> {
        each!(self, keep_document(rev, text))
    }

    async fn look(&self, agent: &AgentId) -> Result<Record, StoreError> {
        each!(self, look(agent))
    }
}
