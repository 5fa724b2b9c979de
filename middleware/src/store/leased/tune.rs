//! The control plane of the store beneath: leases stand in front of spends only.

use super::Leased;
use crate::{
    AgentId,
    store::{
        Bid, ByHand, Change, Cursor, Demand, Document, Kept, Lend, Life, Record, StoreError,
        Traded, Tune, Written,
    },
};

/// Sets limits in the store beneath; agents whose limits were written begin anew here at once.
impl<S: Lend + Tune> Tune for Leased<S> {
    async fn load(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        self.inner.store.load(agents).await
    }

    async fn demand(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Demand, StoreError>>, StoreError> {
        self.inner.store.demand(agents).await
    }

    async fn write(
        &self,
        changes: &[Change],
    ) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        let written = self.inner.store.write(changes).await;
        let mut books = Vec::new();
        for Change { agent, .. } in changes {
            let now_ms = self.inner.now_ms();
            self.inner.agents(agent).recall(agent, now_ms, &mut books);
        }
        self.inner.book(books);
        written
    }

    async fn by_hand(&self, agent: &AgentId, deed: &ByHand) -> Result<(), StoreError> {
        let done = self.inner.store.by_hand(agent, deed).await;
        let (now_ms, mut books) = (self.inner.now_ms(), Vec::new());
        self.inner.agents(agent).recall(agent, now_ms, &mut books);
        self.inner.book(books);
        done
    }

    async fn life(&self) -> Result<Life, StoreError> {
        self.inner.store.life().await
    }

    async fn begin_epoch(&self, epoch: &str) -> Result<(), StoreError> {
        self.inner.store.begin_epoch(epoch).await
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.inner.store.progress().await
    }

    async fn note_progress(&self, progress: &[(String, u64)]) -> Result<(), StoreError> {
        self.inner.store.note_progress(progress).await
    }

    async fn agents(
        &self,
        from: Cursor,
        about: usize,
    ) -> Result<(Vec<AgentId>, Option<Cursor>), StoreError> {
        self.inner.store.agents(from, about).await
    }

    /// What leases hold counts as used from the loan on, and no longer once it is returned.
    async fn used(&self) -> Result<Vec<(String, u64)>, StoreError> {
        self.inner.store.used().await
    }

    async fn trade(&self, bid: &Bid) -> Result<Traded, StoreError> {
        self.inner.store.trade(bid).await
    }

    async fn document(&self) -> Result<Document, StoreError> {
        self.inner.store.document().await
    }

    async fn keep_document(&self, rev: u64, text: Option<&str>) -> Result<Kept, StoreError> {
        self.inner.store.keep_document(rev, text).await
    }

    async fn look(&self, agent: &AgentId) -> Result<Record, StoreError> {
        self.inner.store.look(agent).await
    }
}
