//! What the contract suite needs of the servers behind a Redis store, over any kind of connection.

use std::time::Duration;

use redis::aio::ConnectionLike;
use tower_merit::{
    AgentId, RedisStore,
    bucket::{BucketName, Limits},
    store::{
        contract,
        redis::{DENIAL_MAX, RedisStoreBuilder},
    },
};

/// A store and a connection behind its back. Time passes for an agent by moving its level's last
/// settlement into the past.
pub struct OverRedis<C> {
    /// The store under test.
    pub store: RedisStore,
    /// What other nodes are made with.
    pub builder: RedisStoreBuilder,
    /// The test's own connection, which finds the agent's keys.
    pub link: C,
}

impl<C: ConnectionLike + Clone + Send + Sync> OverRedis<C> {
    async fn set(&self, agent: &AgentId, fields: &[(&str, String)]) {
        let mut command = redis::cmd("HSET");
        command.arg(format!("tb:{agent}"));
        for (name, value) in fields {
            command.arg(name).arg(value);
        }
        command.exec_async(&mut self.link.clone()).await.expect("the server answers");
    }
}

impl<C: ConnectionLike + Clone + Send + Sync> contract::Harness for OverRedis<C> {
    type Store = RedisStore;

    fn store(&self) -> &RedisStore {
        &self.store
    }

    async fn advance(&self, agent: &AgentId, duration: Duration) {
        contract::age(&mut self.link.clone(), agent, duration).await;
        // Refusals that this node repeats end on its own clock.
        tokio::time::pause();
        tokio::time::advance(DENIAL_MAX).await;
        tokio::time::resume();
    }

    async fn operator_sets(&self, agent: &AgentId, limits: Limits) {
        let (capacity, rate) = (limits.capacity().to_string(), limits.refill().to_string());
        self.set(agent, &[("capacity", capacity), ("refill_rate", rate)]).await;
    }

    async fn operator_sets_named(
        &self,
        agent: &AgentId,
        bucket: &BucketName,
        limits: Option<Limits>,
    ) {
        let fields = [format!("{bucket}.capacity"), format!("{bucket}.refill_rate")];
        let [capacity, rate] = &fields;
        let Some(limits) = limits else {
            let mut command = redis::cmd("HDEL");
            command.arg(format!("tb:{agent}")).arg(&fields[..]);
            return command.exec_async(&mut self.link.clone()).await.expect("the server answers");
        };
        let (c, q) = (limits.capacity().to_string(), limits.refill().to_string());
        self.set(agent, &[(capacity, c), (rate, q)]).await;
    }

    async fn ban(&self, agent: &AgentId, until_unix_ms: u64) {
        self.set(agent, &[("banned_until", until_unix_ms.to_string())]).await;
    }

    async fn advance_market(&self, duration: Duration) {
        contract::age_market(&mut self.link.clone(), duration).await;
    }

    async fn nodes(&self) -> [(String, RedisStore); 2] {
        let node = async || {
            let store = self.builder.clone().connect().await.expect("the server answers");
            (store.node().to_owned(), store)
        };
        [node().await, node().await]
    }
}
