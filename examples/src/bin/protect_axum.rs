//! Lesson 1: an axum service that gives each agent 2 requests a second, 5 at once.
//!
//! ```text
//! cargo run -p merit-examples --bin protect_axum                  # buckets in this process
//! REDIS_URL=redis://127.0.0.1:6379 cargo run -p merit-examples --bin protect_axum
//! ```
//!
//! It prints the `curl` lines to try. Over Redis, change an agent's limits while it runs:
//! `redis-cli HSET tb:alice capacity 1 refill_rate 0.2` holds from the next request.

use axum::{Router, routing::get};
use merit_examples::{SECRET, listen, token};
use tower_merit::{
    AdmissionLayer, Bucket, JwtIdentity, MemoryStore, RedisStore, Spend, admission::Agent,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    match std::env::var("REDIS_URL") {
        Ok(url) => serve(RedisStore::connect(&url).await?).await,
        Err(_) => serve(MemoryStore::new()).await,
    }
}

async fn serve(store: impl Spend) -> anyhow::Result<()> {
    let admission = AdmissionLayer::builder(store)
        .identity(JwtIdentity::hs256(SECRET).claim("agent_id"))
        .bucket(Bucket::per_second(2.0).capacity(5))
        .build()?;
    // Routes added after the layer are not limited: probes belong there.
    let app =
        Router::new().route("/", get(hello)).layer(admission).route("/healthz", get(async || "ok"));

    let listener = listen(3000).await?;
    let address = listener.local_addr()?;
    println!("Seven requests of one agent; the last two are 429, in full:");
    println!("  curl -i -H 'Authorization: Bearer {}' 'http://{address}/?[1-7]'", token("alice")?);
    println!("Another agent has a bucket of its own:");
    println!("  curl -i -H 'Authorization: Bearer {}' http://{address}/", token("bob")?);
    println!("Nobody is 401:");
    println!("  curl -i http://{address}/");
    axum::serve(listener, app).await?;
    Ok(())
}

async fn hello(Agent(agent): Agent) -> String {
    format!("hello, {agent}\n")
}
