//! What the suite needs of a store beside the store: its operator, its time, its other nodes.

use std::{future::Future, time::Duration};

use crate::{
    AgentId,
    bucket::{BucketName, Limits},
    store::{MemoryStore, Spend, Tune},
};

/// A store, and the things around it that only its operator or time can do.
pub trait Harness: Sync {
    /// The store under test.
    type Store: Spend + Tune;

    /// Returns the store.
    fn store(&self) -> &Self::Store;

    /// Lets `duration` pass for the agent's buckets.
    fn advance(&self, agent: &AgentId, duration: Duration) -> impl Future<Output = ()> + Send;

    /// Sets limits behind the control plane's back.
    fn operator_sets(&self, agent: &AgentId, limits: Limits) -> impl Future<Output = ()> + Send;

    /// Sets limits of a named bucket behind the control plane's back; `None` removes them.
    fn operator_sets_named(
        &self,
        agent: &AgentId,
        bucket: &BucketName,
        limits: Option<Limits>,
    ) -> impl Future<Output = ()> + Send;

    /// Bans the agent until `until_unix_ms`.
    fn ban(&self, agent: &AgentId, until_unix_ms: u64) -> impl Future<Output = ()> + Send;

    /// Lets `duration` pass for the lease of the market.
    fn advance_market(&self, duration: Duration) -> impl Future<Output = ()> + Send;

    /// Returns two nodes over the same data, and what [`Tune::used`] calls them: one name where there
    /// can be one node only. No other node spends meanwhile under either name.
    fn nodes(&self) -> impl Future<Output = [(String, Self::Store); 2]> + Send;
}

/// The in-process store under tokio's paused clock.
pub struct Memory(pub MemoryStore);

impl Harness for Memory {
    type Store = MemoryStore;

    fn store(&self) -> &MemoryStore {
        &self.0
    }

    async fn advance(&self, _: &AgentId, duration: Duration) {
        tokio::time::advance(duration).await;
    }

    async fn operator_sets(&self, agent: &AgentId, limits: Limits) {
        self.0.set_by_operator(agent, limits);
    }

    async fn operator_sets_named(
        &self,
        agent: &AgentId,
        bucket: &BucketName,
        limits: Option<Limits>,
    ) {
        self.0.set_named_by_operator(agent, bucket, limits);
    }

    async fn ban(&self, agent: &AgentId, until_unix_ms: u64) {
        self.0.ban(agent, until_unix_ms);
    }

    async fn advance_market(&self, duration: Duration) {
        tokio::time::advance(duration).await;
    }

    async fn nodes(&self) -> [(String, MemoryStore); 2] {
        [(); 2].map(|()| (MemoryStore::NODE.to_owned(), self.0.clone()))
    }
}
