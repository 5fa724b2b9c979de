//! Scratch.
#![allow(clippy::unwrap_used)]
use tower_merit::{RedisStore, store::contract};
struct H(RedisStore, redis::aio::MultiplexedConnection);
impl contract::Harness for H {
    type Store = RedisStore;
    fn store(&self) -> &RedisStore {
        &self.0
    }
    async fn advance(&self, agent: &tower_merit::AgentId, d: std::time::Duration) {
        let mut c = self.1.clone();
        let key = format!("tb:{agent}");
        let level: String =
            redis::cmd("HGET").arg(&key).arg("level").query_async(&mut c).await.unwrap();
        let mut f: Vec<String> = level.split(' ').map(str::to_owned).collect();
        f[1] = (f[1].parse::<u128>().unwrap() - d.as_millis()).to_string();
        redis::cmd("HSET")
            .arg(&key)
            .arg("level")
            .arg(f.join(" "))
            .exec_async(&mut c)
            .await
            .unwrap();
    }
    async fn operator_sets(&self, agent: &tower_merit::AgentId, l: tower_merit::bucket::Limits) {
        let mut c = self.1.clone();
        redis::cmd("HSET")
            .arg(format!("tb:{agent}"))
            .arg("capacity")
            .arg(l.capacity().get())
            .arg("refill_rate")
            .arg(l.refill().to_string())
            .exec_async(&mut c)
            .await
            .unwrap();
    }
    async fn ban(&self, agent: &tower_merit::AgentId, until: u64) {
        let mut c = self.1.clone();
        redis::cmd("HSET")
            .arg(format!("tb:{agent}"))
            .arg("banned_until")
            .arg(until)
            .exec_async(&mut c)
            .await
            .unwrap();
    }
}
#[tokio::test]
async fn contract_holds() {
    let url = "redis://127.0.0.1:6390";
    let c = redis::Client::open(url).unwrap().get_multiplexed_async_connection().await.unwrap();
    redis::cmd("FLUSHALL").exec_async(&mut c.clone()).await.unwrap();
    redis::cmd("SCRIPT").arg("FLUSH").exec_async(&mut c.clone()).await.unwrap();
    let store = RedisStore::builder(url)
        .timeout(std::time::Duration::from_secs(2))
        .connect()
        .await
        .unwrap();
    contract::run(&H(store.clone(), c)).await;
    contract::lua_agrees_with_rust(url, 20_000).await;
    contract::redis_follows_the_model(&store, url, 5_000).await;
}
