//! A million distinct agents through leases stay within the bound that the configuration gives.
//!
//! By itself in a process: it reads how much memory that process has.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{future::Ready, sync::Arc, time::Duration};

use tower_merit::{
    AgentId, MemoryStore, Spend,
    bucket::{BucketName, Limits, Tokens},
    store::{
        BucketRule, Charge, Leased, Lend, Loan, Settlement, StoreError, Take, Verdict,
        leased::{LEASE_TERM_MAX, LEASES_MAX},
    },
};

const AGENTS: usize = 1_000_000;

/// What [`LeasedBuilder::agents_max`](tower_merit::store::LeasedBuilder::agents_max) promises of an
/// agent with one plan.
const BYTES_PER_AGENT: usize = 400;

/// A store that answers and remembers only one agent, so that what grows are the leases.
#[derive(Clone)]
struct Forgetful(MemoryStore);

impl Spend for Forgetful {
    type Future = Ready<Result<Verdict, StoreError>>;

    fn spend(&self, charge: Charge) -> Self::Future {
        self.0.spend(charge)
    }

    fn settle(&self, _: Settlement) {}
}

impl Lend for Forgetful {
    type Loan = Ready<Result<Loan, StoreError>>;

    fn lend(&self, charge: Charge, most: u32) -> Self::Loan {
        self.0.lend(charge, most)
    }
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test]
async fn a_million_agents_stay_within_the_bound() {
    let bucket = BucketRule {
        name: BucketName::new("default").unwrap(),
        is_default: true,
        limits: Limits::per_second(1000.0, 1000).unwrap(),
        shadow: false,
    };
    let takes: Arc<[Take]> = [Take { bucket, cost: Tokens::ONE }].into();
    let store = Forgetful(MemoryStore::with_capacity(1));
    let leased = Leased::builder(store).term(LEASE_TERM_MAX).build().unwrap();
    let before = resident_bytes();
    let mut largest = (0, 0);
    for index in 0..AGENTS {
        // Three requests: the last two of them from a lease.
        let agent = AgentId::new(&format!("agent-of-a-usual-length-{index:08}")).unwrap();
        for _ in 0..3 {
            let charge = Charge { agent: agent.clone(), takes: Arc::clone(&takes) };
            leased.spend(charge).await.unwrap();
        }
        if index % 10_000 == 0 {
            let agents = leased.len();
            largest = largest.max((resident_bytes() - before, agents));
            assert!(agents <= LEASES_MAX, "{agents} agents");
            tokio::task::yield_now().await;
        }
    }
    let (bytes, agents) = largest;
    println!("{agents} agents in {bytes} bytes: {} each", bytes / agents);
    // Below that the figure says little of an agent, and the bound was not put to the test.
    assert!(agents > LEASES_MAX / 2, "only {agents} agents at a time");
    assert!(bytes <= LEASES_MAX * BYTES_PER_AGENT, "{bytes} bytes for {agents} agents");
    tokio::time::sleep(2 * LEASE_TERM_MAX).await;
    tokio::time::timeout(Duration::from_secs(10), async {
        while !leased.is_empty() {
            tokio::task::yield_now().await;
        }
    })
    .await
    .expect("idle agents are dropped");
}
