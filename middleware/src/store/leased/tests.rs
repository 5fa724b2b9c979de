//! Leases over the in-process store, near and far, on a paused clock.
//!
//! The store's own count of admitted tokens is what was taken from it and not given back: it is the
//! ledger that answers are held against.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
};

use proptest::prelude::*;
use tokio::{
    task::JoinHandle,
    time::{advance, sleep},
};

use super::*;
use crate::{
    bucket::{BucketName, Limits, Tokens},
    store::{
        BucketRule, Loan, MemoryStore, Take,
        contract::{self, Harness},
        leased::agents::{PLANS_MAX, WAITERS_MAX},
    },
};

/// How a far store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The question is lost: nothing was taken.
    Question,
    /// The answer is lost: everything was taken.
    Answer,
    /// The store's code panics.
    Panic,
}

/// The in-process store behind a network: it answers later, fails when told to, and keeps notes.
#[derive(Clone)]
pub(super) struct Far {
    pub(super) store: MemoryStore,
    pub(super) link: Arc<Link>,
}

#[derive(Default)]
pub(super) struct Link {
    pub(super) delay_ms: AtomicU64,
    pub(super) fault: Mutex<Option<Fault>>,
    /// The node's process was killed: nothing of it reaches the store any more.
    pub(super) cut: AtomicBool,
    /// What every loan asked for ahead.
    pub(super) lends: Mutex<Vec<u32>>,
    pub(super) in_flight: AtomicUsize,
    pub(super) in_flight_max: AtomicUsize,
    /// Multiples of one token that came back.
    pub(super) returned: AtomicU64,
}

impl Far {
    pub(super) fn new(store: &MemoryStore, delay_ms: u64) -> Self {
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
        Box::pin(async move { store.asked(|store| store.decide(&charge)).await })
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

pub(super) fn agent(name: &str) -> AgentId {
    AgentId::new(name).unwrap()
}

pub(super) fn takes(rate: f64, capacity: u64, cost: u64) -> Arc<[Take]> {
    let bucket = BucketRule {
        name: BucketName::new("default").unwrap(),
        is_default: true,
        limits: Limits::per_second(rate, capacity).unwrap(),
        shadow: false,
    };
    [Take { bucket, cost: Tokens::new(cost).unwrap() }].into()
}

pub(super) fn charge(name: &str, takes: &Arc<[Take]>) -> Charge {
    Charge { agent: agent(name), takes: Arc::clone(takes) }
}

/// Tokens taken from the store and not given back.
pub(super) async fn taken(store: &MemoryStore, name: &str) -> u64 {
    store.load(&[agent(name)]).await.unwrap()[0].as_ref().unwrap().demand.admitted
}

async fn admits<S: Lend>(leased: &Leased<S>, name: &str, takes: &Arc<[Take]>) -> bool {
    leased.spend(charge(name, takes)).await.unwrap().decision == Decision::Admitted
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

/// A term and the sweep after it.
const TERM_AND_SWEEP: Duration = Duration::from_millis(601);

/// Over leases an operator's change is honoured within a second, and a refusal is believed for up to
/// 100 ms: the operator of this harness waits for that.
struct Near {
    store: MemoryStore,
    leased: Leased<MemoryStore>,
}

impl Harness for Near {
    type Store = Leased<MemoryStore>;

    fn store(&self) -> &Self::Store {
        &self.leased
    }

    async fn advance(&self, _: &AgentId, duration: Duration) {
        advance(duration).await;
    }

    async fn operator_sets(&self, agent: &AgentId, limits: Limits) {
        self.store.set_by_operator(agent, limits);
        advance(LEASE_TERM_MAX).await;
    }

    async fn ban(&self, agent: &AgentId, until_unix_ms: u64) {
        self.store.ban(agent, until_unix_ms);
        advance(LEASE_TERM_MAX).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_leased_store_keeps_the_contract() {
    let store = MemoryStore::new();
    contract::run(&Near { store: store.clone(), leased: Leased::new(store) }).await;
}

#[tokio::test(start_paused = true)]
async fn an_agent_seen_once_gets_nothing_ahead() {
    let far = Far::new(&MemoryStore::new(), 1);
    let (leased, takes) = (Leased::new(far.clone()), takes(1000.0, 1000, 1));
    for name in ["a", "b", "c"] {
        assert!(admits(&leased, name, &takes).await);
    }
    assert_eq!(far.lends(), [0, 0, 0]);
    sleep(TERM_AND_SWEEP).await;
    assert!(leased.is_empty(), "idle agents stayed");
    assert!(admits(&leased, "a", &takes).await);
    assert_eq!(far.lends().last(), Some(&0));
}

#[tokio::test(start_paused = true)]
async fn who_asks_steadily_is_answered_here_and_never_waits() {
    let far = Far::new(&MemoryStore::new(), 5);
    let (leased, takes) = (Leased::new(far.clone()), takes(9000.0, 9000, 1));
    steady(&leased, "hot", &takes, 300, MS).await;
    let asked = far.lends().len();
    for _ in 0..2000 {
        let mut decision = std::pin::pin!(leased.spend(charge("hot", &takes)));
        let first = decision.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop()));
        assert!(matches!(first, Poll::Ready(Ok(_))), "a steady agent had to wait");
        sleep(MS).await;
    }
    let asked = far.lends().len() - asked;
    assert!((10..=60).contains(&asked), "{asked} loans for 2000 requests");
    let largest = far.lends().into_iter().max().unwrap();
    assert!(largest <= 101, "{largest} ahead for 100 requests in 100 ms");
}

#[tokio::test(start_paused = true)]
async fn what_nobody_spends_comes_back_when_the_term_ends() {
    let (store, takes) = (MemoryStore::new(), takes(1.0, 1000, 1));
    let far = Far::new(&store, 1);
    let leased = Leased::new(far.clone());
    let admitted = steady(&leased, "a", &takes, 100, MS).await;
    assert!(taken(&store, "a").await > admitted, "nothing was taken ahead");
    sleep(TERM_AND_SWEEP).await;
    assert_eq!(taken(&store, "a").await, admitted);
    assert!(leased.is_empty());
}

#[tokio::test(start_paused = true)]
async fn closing_returns_everything_and_waits_for_loans_on_their_way() {
    let (store, takes) = (MemoryStore::new(), takes(1.0, 1000, 1));
    let far = Far::new(&store, 10);
    let leased = Leased::new(far.clone());
    let mut admitted = steady(&leased, "a", &takes, 100, MS).await;
    let waiting = tokio::spawn({
        let (leased, takes) = (leased.clone(), Arc::clone(&takes));
        async move { admits(&leased, "b", &takes).await }
    });
    tokio::task::yield_now().await;
    leased.close().await;
    assert_eq!(taken(&store, "a").await, admitted);
    assert!(waiting.await.unwrap());
    assert_eq!(taken(&store, "b").await, 1);
    let asked = far.lends().len();
    admitted += steady(&leased, "a", &takes, 10, MS).await;
    assert_eq!((far.lends().len(), taken(&store, "a").await), (asked, admitted));
}

#[tokio::test(start_paused = true)]
async fn dropping_the_last_clone_returns_everything() {
    let (store, takes) = (MemoryStore::new(), takes(1.0, 1000, 1));
    let leased = Leased::new(store.clone());
    let admitted = steady(&leased, "a", &takes, 100, MS).await;
    assert!(taken(&store, "a").await > admitted, "nothing was taken ahead");
    drop(leased.clone());
    assert!(taken(&store, "a").await > admitted, "a clone that is left still holds leases");
    drop(leased);
    assert_eq!(taken(&store, "a").await, admitted);
}

/// Runs an agent at `before`, lets the operator `change` something, and returns how many requests
/// were admitted from a second after that on, in two seconds of one request per millisecond.
async fn admitted_a_second_after(term: Duration, change: impl FnOnce(&MemoryStore)) -> u64 {
    let (store, takes) = (MemoryStore::new(), takes(5000.0, 5000, 1));
    let leased = Leased::builder(Far::new(&store, 2)).term(term).build().unwrap();
    steady(&leased, "a", &takes, 500, MS).await;
    change(&store);
    steady(&leased, "a", &takes, 1000, MS).await;
    steady(&leased, "a", &takes, 2000, MS).await
}

#[tokio::test(start_paused = true)]
async fn an_operators_limits_hold_within_a_second() {
    for term in [LEASE_TERM_MIN, LEASE_TERM, LEASE_TERM_MAX] {
        let few = Limits::per_second(5.0, 1).unwrap();
        let admitted =
            admitted_a_second_after(term, |store| store.set_by_operator(&agent("a"), few)).await;
        assert!((1..=11).contains(&admitted), "{admitted} in 2 s at 5 a second");
    }
}

#[tokio::test(start_paused = true)]
async fn a_ban_holds_within_a_second() {
    for term in [LEASE_TERM_MIN, LEASE_TERM, LEASE_TERM_MAX] {
        let admitted =
            admitted_a_second_after(term, |store| store.ban(&agent("a"), u64::MAX)).await;
        assert_eq!(admitted, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_never_spent_after_its_term() {
    let (store, takes) = (MemoryStore::new(), takes(5000.0, 5000, 1));
    let far = Far::new(&store, 0);
    let leased = Leased::builder(far.clone()).term(LEASE_TERM_MAX).build().unwrap();
    steady(&leased, "a", &takes, 100, MS).await;
    // The store is gone: what is here may be spent for a second after it was asked for.
    far.fail(Some(Fault::Question));
    advance(LEASE_TERM_MAX).await;
    leased.spend(charge("a", &takes)).await.unwrap_err();
}

#[tokio::test(start_paused = true)]
async fn limits_written_through_this_store_hold_from_the_next_request() {
    let (store, takes) = (MemoryStore::new(), takes(5000.0, 5000, 1));
    let leased = Leased::new(store.clone());
    let admitted = steady(&leased, "a", &takes, 300, MS).await;
    assert!(taken(&store, "a").await > admitted, "nothing was taken ahead");
    contract::write_next(&leased, &agent("a")).await;
    assert_eq!(taken(&store, "a").await, admitted, "the lease was not returned");
    let verdict = leased.spend(charge("a", &takes)).await.unwrap();
    assert_eq!(verdict.first.limits.capacity(), Tokens::new(100).unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_lease_from_before_new_limits_goes_back_when_they_are_seen() {
    let (store, takes) = (MemoryStore::new(), takes(1000.0, 1000, 1));
    let far = Far::new(&store, 0);
    let leased = Leased::new(far.clone());
    steady(&leased, "a", &takes, 300, MS).await;
    let returned = far.link.returned.load(Relaxed);
    store.set_by_operator(&agent("a"), Limits::per_second(1000.0, 900).unwrap());
    // The next renewal comes before the lease runs dry, and finds other limits.
    let asked = far.lends().len();
    while far.lends().len() == asked {
        assert!(admits(&leased, "a", &takes).await);
        sleep(MS).await;
    }
    sleep(MS).await;
    assert!(far.link.returned.load(Relaxed) > returned, "old and new were mixed");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_believed_until_it_would_pass_and_at_most_100_ms() {
    let (store, takes) = (MemoryStore::new(), takes(4.0, 1, 1));
    let far = Far::new(&store, 0);
    let leased = Leased::new(far.clone());
    assert!(admits(&leased, "a", &takes).await);
    // A token takes 250 ms: asked at 0, 100 and 200, and then at the moment it is there.
    for elapsed_ms in 0..250 {
        let verdict = leased.spend(charge("a", &takes)).await.unwrap();
        assert_eq!(verdict.decision, Decision::Denied { wait_ms: Some(250 - elapsed_ms) });
        assert!(verdict.first.short);
        advance(MS).await;
    }
    assert_eq!(far.lends().len(), 1 + 3);
    assert!(admits(&leased, "a", &takes).await, "waited as told and was refused");
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_one_loan_in_their_order() {
    let (store, takes) = (MemoryStore::new(), takes(0.001, 20, 1));
    let far = Far::new(&store, 10);
    let leased = Leased::new(far.clone());
    let order = Arc::new(Mutex::new(Vec::new()));
    let ask = |index: usize| {
        let (order, decision) = (Arc::clone(&order), leased.spend(charge("a", &takes)));
        tokio::spawn(async move {
            let admitted = decision.await.unwrap().decision == Decision::Admitted;
            order.lock().unwrap().push((index, admitted));
        })
    };
    let asked: Vec<JoinHandle<()>> = (0..50).map(ask).collect();
    for task in asked {
        task.await.unwrap();
    }
    let expected: Vec<(usize, bool)> = (0..50).map(|index| (index, index < 20)).collect();
    assert_eq!(*order.lock().unwrap(), expected);
    assert_eq!(far.link.in_flight_max.load(Relaxed), 1, "a second loan of the same plan");
    // Each takes half of what is left: 1, then 1 + 9, 1 + 4, 1 + 2, 1 + 0, 1 + 0, and a refusal.
    assert!(far.lends().len() <= 8, "{:?}", far.lends());
}

#[tokio::test(start_paused = true)]
async fn requests_beyond_the_bound_of_those_who_wait_ask_the_store_themselves() {
    let (store, takes) = (MemoryStore::new(), takes(9000.0, 9000, 1));
    let far = Far::new(&store, 10);
    let leased = Leased::new(far.clone());
    let asked: Vec<_> =
        (0..WAITERS_MAX + 11).map(|_| tokio::spawn(leased.spend(charge("a", &takes)))).collect();
    // The leader, those who wait, and ten who go past them.
    sleep(MS).await;
    assert_eq!(far.link.in_flight.load(Relaxed), 1 + 10);
    for task in asked {
        assert_eq!(task.await.unwrap().unwrap().decision, Decision::Admitted);
    }
    leased.close().await;
    assert_eq!(taken(&store, "a").await, WAITERS_MAX as u64 + 11);
}

#[tokio::test(start_paused = true)]
async fn what_was_taken_for_a_caller_who_went_away_stays_here() {
    let (store, takes) = (MemoryStore::new(), takes(0.001, 100, 1));
    let far = Far::new(&store, 10);
    let leased = Leased::new(far.clone());
    // The leader goes away before the answer, one who waits too, one who waits stays.
    let (leader, gone) = (leased.spend(charge("a", &takes)), leased.spend(charge("a", &takes)));
    let stays = tokio::spawn(leased.spend(charge("a", &takes)));
    drop((leader, gone));
    assert_eq!(stays.await.unwrap().unwrap().decision, Decision::Admitted);
    // Another one goes away between its answer and reading it.
    let unread = leased.spend(charge("b", &takes));
    sleep(11 * MS).await;
    drop(unread);
    leased.close().await;
    assert_eq!((taken(&store, "a").await, taken(&store, "b").await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lease_outlives_the_store_until_its_term_ends_and_then_errors_pass() {
    let (store, takes) = (MemoryStore::new(), takes(1000.0, 1000, 1));
    let far = Far::new(&store, 1);
    let leased = Leased::new(far.clone());
    steady(&leased, "a", &takes, 300, MS).await;
    far.fail(Some(Fault::Question));
    let asked = far.lends().len();
    let mut here = 0;
    while let Ok(verdict) = leased.spend(charge("a", &takes)).await {
        assert_eq!(verdict.decision, Decision::Admitted);
        here += 1;
        sleep(MS).await;
    }
    assert!((10..=101).contains(&here), "{here} admitted without the store");
    let asked = far.lends().len() - asked;
    assert!(asked <= 10, "the failed store was asked {asked} times in {here} ms");
    far.fail(None);
    assert!(admits(&leased, "a", &takes).await);
    leased.close().await;
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_loan_that_is_cut_off_ask_the_store_themselves() {
    let (store, takes) = (MemoryStore::new(), takes(1000.0, 1000, 1));
    let far = Far::new(&store, 10);
    let leased = Leased::new(far.clone());
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(leased.spend(charge("a", &takes)))).collect();
    far.fail(Some(Fault::Panic));
    sleep(10 * MS).await;
    far.fail(None);
    for task in waiting {
        assert_eq!(task.await.unwrap().unwrap().decision, Decision::Admitted);
    }
    assert!(admits(&leased, "a", &takes).await);
    leased.close().await;
    assert_eq!(taken(&store, "a").await, 4);
}

#[tokio::test(start_paused = true)]
async fn beyond_the_bound_the_agent_not_here_for_longest_returns_its_lease() {
    let (store, takes) = (MemoryStore::new(), takes(1.0, 1000, 1));
    let leased = Leased::builder(store.clone()).agents_max(SHARDS).build().unwrap();
    for _ in 0..10 {
        assert!(admits(&leased, "first", &takes).await);
    }
    assert!(taken(&store, "first").await > 10, "nothing was taken ahead");
    for index in 0..2000 {
        assert!(admits(&leased, &format!("agent{index}"), &takes).await);
        assert!(leased.len() <= SHARDS, "{}", leased.len());
    }
    assert_eq!(taken(&store, "first").await, 10);
}

#[tokio::test(start_paused = true)]
async fn many_plans_of_one_agent_take_few_places_and_lose_nothing() {
    let (store, leased_store) = (MemoryStore::new(), MemoryStore::clone);
    let leased = Leased::new(leased_store(&store));
    let plans: Vec<Arc<[Take]>> =
        (1..=PLANS_MAX as u64 + 3).map(|cost| takes(1.0, 900_000, cost)).collect();
    let mut spent = 0;
    for round in 0..400 {
        let plan = &plans[round * 7 % 5 % plans.len()];
        let plan = if round % 10 == 0 { &plans[plans.len() - 1] } else { plan };
        assert!(admits(&leased, "a", plan).await);
        spent += plan[0].cost.get();
        sleep(MS).await;
    }
    leased.close().await;
    assert_eq!(taken(&store, "a").await, spent);
}

#[tokio::test(start_paused = true)]
async fn what_is_given_back_goes_into_a_lease_that_is_alive_and_else_into_the_bucket() {
    let (store, takes) = (MemoryStore::new(), takes(1.0, 1000, 1));
    let far = Far::new(&store, 0);
    let leased = Leased::new(far.clone());
    let refund = || {
        let Charge { agent, takes } = charge("a", &takes);
        leased.settle(Settlement { agent, takes, direction: Direction::GiveBack });
    };
    for _ in 0..10 {
        assert!(admits(&leased, "a", &takes).await);
    }
    let before = taken(&store, "a").await;
    refund();
    assert_eq!(taken(&store, "a").await, before, "it went into the bucket");
    sleep(TERM_AND_SWEEP).await;
    assert_eq!(taken(&store, "a").await, 9);
    refund();
    assert_eq!(taken(&store, "a").await, 8);
}

#[tokio::test(start_paused = true)]
async fn headers_count_what_is_left_here() {
    let (store, takes) = (MemoryStore::new(), takes(0.001, 100, 2));
    let leased = Leased::new(store.clone());
    for spent in 1..=50 {
        let verdict = leased.spend(charge("a", &takes)).await.unwrap();
        assert_eq!(verdict.decision, Decision::Admitted);
        assert_eq!(verdict.first.tokens.whole(), 100 - 2 * spent);
    }
    assert!(!admits(&leased, "a", &takes).await);
}

#[test]
fn bounds_out_of_range_are_refused() {
    let store = || MemoryStore::with_capacity(1);
    let built = |builder: LeasedBuilder<MemoryStore>| builder.build().unwrap_err();
    for term in [LEASE_TERM_MIN - MS, LEASE_TERM_MAX + MS] {
        assert_eq!(built(Leased::builder(store()).term(term)), LeasedError::Term(term));
    }
    for builder in [Leased::builder(store()).ahead_max(0), Leased::builder(store()).agents_max(0)] {
        assert!(matches!(built(builder), LeasedError::Nothing { .. }));
    }
}

#[test]
fn multiples_are_given_back_in_pieces_that_a_cost_can_express() {
    let takes = takes(1.0, 9_000_000, 4_000_000);
    let pieces: Vec<u64> = multiplied(&takes, 5).map(|takes| takes[0].cost.get()).collect();
    assert_eq!(pieces, [8_000_000, 8_000_000, 4_000_000]);
    assert_eq!(multiplied(&takes, 0).count(), 0);
}

/// One step of a random schedule of two nodes.
#[derive(Clone, Debug)]
enum Step {
    Wait(u64),
    Ask {
        node: usize,
        times: usize,
    },
    /// Asks and goes away, at once or a little later.
    AskAndLeave {
        node: usize,
        after_ms: u64,
    },
    Refund {
        node: usize,
    },
    Delay {
        node: usize,
        ms: u64,
    },
    Fail {
        node: usize,
        fault: Option<Fault>,
    },
    Kill {
        node: usize,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let node = 0..2_usize;
    let fault = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Fault::Question)),
        1 => Just(Some(Fault::Answer)),
    ];
    let step = prop_oneof![
        6 => (0..40_u64).prop_map(Step::Wait),
        1 => (0..1500_u64).prop_map(Step::Wait),
        8 => (node.clone(), 1..40_usize).prop_map(|(node, times)| Step::Ask { node, times }),
        2 => (node.clone(), 0..15_u64)
            .prop_map(|(node, after_ms)| Step::AskAndLeave { node, after_ms }),
        1 => node.clone().prop_map(|node| Step::Refund { node }),
        1 => (node.clone(), 0..15_u64).prop_map(|(node, ms)| Step::Delay { node, ms }),
        1 => (node.clone(), fault).prop_map(|(node, fault)| Step::Fail { node, fault }),
        1 => node.prop_map(|node| Step::Kill { node }),
    ];
    prop::collection::vec(step, 1..120)
}

/// What became of a schedule.
struct Outcome {
    admitted: u64,
    taken: u64,
    /// Whether something may have been lost: a node was killed, or an answer.
    lossy: bool,
}

/// Runs a schedule of two nodes over one store; after every step no more is admitted than was taken,
/// and no more was taken than the bucket gives.
async fn run(steps: Vec<Step>, rate: f64, capacity: u64, cost: u64) -> Outcome {
    let (store, takes) = (MemoryStore::new(), takes(rate, capacity, cost));
    let nodes: [Far; 2] = [Far::new(&store, 3), Far::new(&store, 0)];
    let leased: Vec<Leased<Far>> = nodes.iter().map(|far| Leased::new(far.clone())).collect();
    let admitted = Arc::new(AtomicU64::new(0));
    let began = Instant::now();
    let (mut asked, mut lossy) = (Vec::new(), false);
    for step in steps {
        match step {
            Step::Wait(ms) => sleep(Duration::from_millis(ms)).await,
            Step::Ask { node, times } => {
                for _ in 0..times {
                    let decision = leased[node].spend(charge("a", &takes));
                    let (far, admitted) = (nodes[node].clone(), Arc::clone(&admitted));
                    asked.push(tokio::spawn(async move {
                        let verdict = decision.await;
                        // What a dead process decides reaches nobody.
                        if !far.link.cut.load(Relaxed)
                            && verdict.is_ok_and(|v| v.decision == Decision::Admitted)
                        {
                            admitted.fetch_add(cost, Relaxed);
                        }
                    }));
                }
            }
            Step::AskAndLeave { node, after_ms } => {
                let mut decision = Box::pin(leased[node].spend(charge("a", &takes)));
                let mut context = Context::from_waker(std::task::Waker::noop());
                match decision.as_mut().poll(&mut context) {
                    Poll::Ready(verdict) => {
                        if !nodes[node].link.cut.load(Relaxed)
                            && verdict.is_ok_and(|v| v.decision == Decision::Admitted)
                        {
                            admitted.fetch_add(cost, Relaxed);
                        }
                    }
                    Poll::Pending => {
                        asked.push(tokio::spawn(async move {
                            sleep(Duration::from_millis(after_ms)).await;
                            drop(decision);
                        }));
                    }
                }
            }
            Step::Refund { node } => {
                // Only what was admitted can be refunded, and a dead process refunds nothing.
                let spent = admitted.load(Relaxed);
                if spent >= cost && !nodes[node].link.cut.load(Relaxed) {
                    admitted.fetch_sub(cost, Relaxed);
                    let Charge { agent, takes } = charge("a", &takes);
                    leased[node].settle(Settlement {
                        agent,
                        takes,
                        direction: Direction::GiveBack,
                    });
                }
            }
            Step::Delay { node, ms } => nodes[node].link.delay_ms.store(ms, Relaxed),
            Step::Fail { node, fault } => {
                lossy |= fault == Some(Fault::Answer);
                nodes[node].fail(fault);
            }
            Step::Kill { node } => {
                lossy = true;
                nodes[node].link.cut.store(true, Relaxed);
            }
        }
        let (so_far, taken) = (admitted.load(Relaxed), taken(&store, "a").await);
        assert!(so_far <= taken, "{so_far} admitted of {taken} taken");
        let gained = rate * began.elapsed().as_secs_f64();
        let most = capacity as f64 + gained + 1e-6;
        assert!(so_far as f64 <= most, "{so_far} admitted, the bucket gave at most {most}");
    }
    for task in asked {
        task.await.unwrap();
    }
    for far in &nodes {
        far.fail(None);
    }
    for leased in &leased {
        leased.close().await;
    }
    Outcome { admitted: admitted.load(Relaxed), taken: taken(&store, "a").await, lossy }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn two_nodes_never_admit_more_than_the_bucket_and_lose_nothing(
        steps in steps(), rate in 1..3000_u32, capacity in 1..500_u64, cost in 1..4_u64,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        let outcome = runtime.block_on(run(steps, f64::from(rate), capacity.max(cost), cost));
        prop_assert!(outcome.admitted <= outcome.taken);
        if !outcome.lossy {
            prop_assert_eq!(outcome.admitted, outcome.taken);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_killed_node_costs_at_most_its_lease() {
    let (store, takes) = (MemoryStore::new(), takes(1000.0, 1000, 1));
    let (dies, lives) = (Far::new(&store, 2), Far::new(&store, 2));
    let nodes = [Leased::new(dies.clone()), Leased::new(lives.clone())];
    let mut admitted = 0;
    for _ in 0..500 {
        for node in &nodes {
            admitted += u64::from(admits(node, "a", &takes).await);
        }
        sleep(MS).await;
    }
    dies.link.cut.store(true, Relaxed);
    admitted += steady(&nodes[1], "a", &takes, 3000, MS).await;
    nodes[1].close().await;
    let lost = taken(&store, "a").await - admitted;
    // It was sized for 100 ms of at most 500 requests a second.
    assert!((1..=60).contains(&lost), "{lost} tokens lost");
}

#[tokio::test(start_paused = true)]
async fn two_equal_nodes_get_about_equal_shares() {
    let (store, takes) = (MemoryStore::new(), takes(200.0, 100, 1));
    let nodes = [(); 2].map(|()| Leased::new(Far::new(&store, 2)));
    let mut admitted = [0_u32; 2];
    for round in 0..10_000 {
        // They ask at the same times, and take turns in who comes first.
        for node in [round % 2, 1 - round % 2] {
            admitted[node] += u32::from(admits(&nodes[node], "a", &takes).await);
        }
        sleep(MS).await;
    }
    let all = admitted[0] + admitted[1];
    let share = f64::from(admitted[0]) / f64::from(all);
    assert!((0.4..=0.6).contains(&share), "{admitted:?}");
    let gave = f64::from(all) / (100.0 + 200.0 * 10.0);
    assert!(gave > 0.9, "{all} of the bucket were admitted");
}
