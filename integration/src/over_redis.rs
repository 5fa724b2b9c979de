//! What the contract suite needs of the servers behind a Redis store, over any kind of connection.

use std::time::Duration;

use redis::aio::ConnectionLike;
use tower_merit::{AgentId, RedisStore, bucket::Limits, store::contract};

/// A store and a connection behind its back. Time passes for an agent by moving its level's last
/// settlement into the past.
pub struct OverRedis<C> {
    /// The store under test.
    pub store: RedisStore,
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
        let mut command = redis::cmd("HGET");
        command.arg(format!("tb:{agent}")).arg("level");
        let level: String =
            command.query_async(&mut self.link.clone()).await.expect("the agent has a level");
        let mut fields: Vec<String> = level.split(' ').map(str::to_owned).collect();
        let at_ms: u128 = fields[1].parse().expect("a time in milliseconds");
        fields[1] = (at_ms - duration.as_millis()).to_string();
        self.set(agent, &[("level", fields.join(" "))]).await;
    }

    async fn operator_sets(&self, agent: &AgentId, limits: Limits) {
        let (capacity, rate) = (limits.capacity().to_string(), limits.refill().to_string());
        self.set(agent, &[("capacity", capacity), ("refill_rate", rate)]).await;
    }

    async fn ban(&self, agent: &AgentId, until_unix_ms: u64) {
        self.set(agent, &[("banned_until", until_unix_ms.to_string())]).await;
    }
}
