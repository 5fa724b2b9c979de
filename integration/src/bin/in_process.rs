//! What a decision of the in-process store takes, and what an agent takes there.
//!
//! ```text
//! cargo run --release -p merit-integration --bin in_process [AGENTS]      # default 1,000,000
//! ```
//!
//! Nanoseconds per decision (one bucket, all admitted, one task) over 64 agents, which stay in the
//! cache, and over all of them; then resident bytes per agent. Prints one line of JSON.

#![allow(clippy::cast_precision_loss, clippy::unwrap_used, reason = "figures to look at")]

use std::{hint::black_box, sync::Arc, time::Instant};

use anyhow::Context;
use tower_merit::{
    AgentId, MemoryStore, Spend,
    bucket::{BucketName, Limits, Tokens},
    store::{BucketRule, Charge, Take},
};

/// Resident bytes of this process.
fn resident() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: f64 = statm.split(' ').nth(1).context("statm has a second field")?.parse()?;
    Ok(pages * 4096.0)
}

/// Decides `times` times, and returns the nanoseconds each took, by the fastest and the median window:
/// on a busy machine the fastest is the one in which nobody else ran.
async fn decide(
    store: &MemoryStore,
    agents: &[AgentId],
    takes: &Arc<[Take]>,
    times: usize,
) -> (f64, f64) {
    let mut windows = Vec::new();
    for window in 0..times / WINDOW {
        let began = Instant::now();
        for time in window * WINDOW..(window + 1) * WINDOW {
            let agent = agents[time * 7919 % agents.len()].clone();
            black_box(store.spend(Charge { agent, takes: Arc::clone(takes) }).await).unwrap();
        }
        windows.push(began.elapsed().as_nanos() as f64 / WINDOW as f64);
    }
    windows.sort_unstable_by(f64::total_cmp);
    (windows[0], windows[windows.len() / 2])
}

/// Decisions timed together.
const WINDOW: usize = 2000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let count: usize = std::env::args().nth(1).map_or(Ok(1_000_000), |text| text.parse())?;
    let bucket = BucketRule {
        name: BucketName::new("default")?,
        is_default: true,
        limits: Limits::per_second(9_000_000.0, 9_000_000)?,
        shadow: false,
    };
    let takes: Arc<[Take]> = [Take { bucket, cost: Tokens::ONE }].into();
    let agents: Vec<AgentId> = (0..count)
        .map(|index| AgentId::new(&format!("agent-{index}")))
        .collect::<Result<_, _>>()?;
    let store = MemoryStore::new();
    let few = &agents[..64.min(count)];
    let warm = decide(&store, few, &takes, 4_000_000).await;
    // The ids are the caller's: they were there before, and the store shares them.
    let before = resident()?;
    decide(&store, &agents, &takes, count).await;
    let per_agent = (resident()? - before) / (count - few.len()) as f64;
    let many = decide(&store, &agents, &takes, 2 * count).await;
    println!(
        "{}",
        serde_json::json!({
            "agents": count, "kept": store.len(), "bytes_per_agent": per_agent,
            "ns_per_decision": {
                "of_64_agents": { "fastest": warm.0, "median": warm.1 },
                "of_all": { "fastest": many.0, "median": many.1 },
            },
        })
    );
    Ok(())
}
