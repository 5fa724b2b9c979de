//! Leases over the in-process store, near and far: behaviour and schedules on a paused clock, stress
//! on real threads.
//!
//! The store's own count of admitted tokens is what was taken from it and not given back: it is the
//! ledger that answers are held against.

mod behaviour;

mod schedule;

mod stress;

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, advance, sleep};

use super::*;
use crate::{
    bucket::{BucketName, Limits, Tokens},
    store::{
        BucketRule, Decision, Loan, MemoryStore, Take, Tune, Verdict,
        contract::{self, Harness, as_the_layer},
    },
};

/// How a far store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// The question is lost: nothing was taken.
    Question,
    /// The answer is lost: everything was taken.
    Answer,
    /// The store's code panics.
    Panic,
}

/// The in-process store behind a network: it answers later, fails when told to, and keeps notes.
#[derive(Clone)]
struct Far {
    store: MemoryStore,
    link: Arc<Link>,
}

#[derive(Default)]
struct Link {
    delay_ms: AtomicU64,
    fault: Mutex<Option<Fault>>,
    /// The node's process was killed: nothing of it reaches the store any more.
    cut: AtomicBool,
    /// What every loan asked for ahead.
    lends: Mutex<Vec<u32>>,
    in_flight: AtomicUsize,
    in_flight_max: AtomicUsize,
    /// Multiples of one token that came back.
    returned: AtomicU64,
}

impl Far {
    fn new(store: &MemoryStore, delay_ms: u64) -> Self {
        let link = Link { delay_ms: delay_ms.into(), ..Link::default() };
        Self { store: store.clone(), link: Arc::new(link) }
    }

    fn fail(&self, fault: Option<Fault>) {
        *self.link.fault.lock().unwrap() = fault;
    }

    fn lends(&self) -> Vec<u32> {
        self.link.lends.lock().unwrap().clone()
    }

    async fn asked<T>(&self, answer: impl FnOnce(&MemoryStore) -> T) -> Result<T, StoreError> {
        let lost = || StoreError::Timeout(Duration::from_millis(20));
        let flying = self.link.in_flight.fetch_add(1, Relaxed) + 1;
        self.link.in_flight_max.fetch_max(flying, Relaxed);
        let delay_ms = self.link.delay_ms.load(Relaxed);
        if delay_ms > 0 {
            sleep(Duration::from_millis(delay_ms)).await;
        }
        self.link.in_flight.fetch_sub(1, Relaxed);
        if self.link.cut.load(Relaxed) {
            return Err(lost());
        }
        let fault = *self.link.fault.lock().unwrap();
        match fault {
            None => Ok(answer(&self.store)),
            Some(Fault::Question) => Err(lost()),
            Some(Fault::Answer) => {
                answer(&self.store);
                Err(lost())
            }
            Some(Fault::Panic) => panic!("a store with a fault in its code"),
        }
    }
}

type Pending<T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send>>;

impl Spend for Far {
    type Future = Pending<Verdict>;

    fn spend(&self, charge: Charge) -> Self::Future {
        let store = self.clone();
        Box::pin(
            async move { store.asked(|store| store.decide(&charge.agent, &charge.takes)).await },
        )
    }

    fn settle(&self, settlement: Settlement) {
        if !self.link.cut.load(Relaxed) {
            let multiples = settlement.takes[0].cost.get();
            self.link.returned.fetch_add(multiples, Relaxed);
            self.store.settle(settlement);
        }
    }
}

impl Lend for Far {
    type Loan = Pending<Loan>;

    fn lend(&self, charge: Charge, most: u32) -> Self::Loan {
        self.link.lends.lock().unwrap().push(most);
        let store = self.clone();
        Box::pin(async move {
            let lend = |store: &MemoryStore| store.lend(charge, most).into_inner();
            store.asked(lend).await?
        })
    }
}

fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

fn takes(rate: f64, capacity: u64, cost: u64) -> Arc<[Take]> {
    let bucket = BucketRule {
        name: BucketName::new("default").unwrap(),
        is_default: true,
        limits: Limits::per_second(rate, capacity).unwrap(),
        shadow: false,
    };
    [Take { bucket, cost: Tokens::new(cost).unwrap() }].into()
}

fn charge(name: &str, takes: &Arc<[Take]>) -> Charge {
    Charge { agent: agent(name), takes: Arc::clone(takes) }
}

/// Tokens taken from the store and not given back.
async fn taken(store: &MemoryStore, name: &str) -> u64 {
    store.load(&[agent(name)]).await.unwrap()[0].as_ref().unwrap().demand.admitted
}

/// Tokens that the bucket counted as refused.
async fn denied(store: &MemoryStore, name: &str) -> u64 {
    store.load(&[agent(name)]).await.unwrap()[0].as_ref().unwrap().demand.denied
}

async fn admits<S: Lend>(leased: &Leased<S>, name: &str, takes: &Arc<[Take]>) -> bool {
    as_the_layer(leased, charge(name, takes)).await.unwrap().decision == Decision::Admitted
}

/// Asks `count` times, `every` apart; returns how many were admitted.
async fn steady<S: Lend>(
    leased: &Leased<S>,
    name: &str,
    takes: &Arc<[Take]>,
    count: u64,
    every: Duration,
) -> u64 {
    let mut admitted = 0;
    for _ in 0..count {
        admitted += u64::from(admits(leased, name, takes).await);
        sleep(every).await;
    }
    admitted
}

const MS: Duration = Duration::from_millis(1);

/// Polls once, and leaves it at that.
fn poll_once<F: Future>(mut future: Pin<&mut F>) -> Poll<F::Output> {
    future.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}
