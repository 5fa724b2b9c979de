//! What a lease does, one promise a test.

use tokio::task::JoinHandle;

use super::*;
use crate::store::leased::agents::{PLANS_MAX, WAITERS_MAX};

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

    async fn operator_sets_named(
        &self,
        agent: &AgentId,
        bucket: &BucketName,
        limits: Option<Limits>,
    ) {
        self.store.set_named_by_operator(agent, bucket, limits);
        advance(LEASE_TERM_MAX).await;
    }

    async fn ban(&self, agent: &AgentId, until_unix_ms: u64) {
        self.store.ban(agent, until_unix_ms);
        advance(LEASE_TERM_MAX).await;
    }

    async fn advance_market(&self, duration: Duration) {
        advance(duration).await;
    }

    /// What leases of the suite so far hold goes back first.
    async fn nodes(&self) -> [(String, Self::Store); 2] {
        advance(LEASE_TERM_MAX * 2).await;
        [(); 2].map(|()| (MemoryStore::NODE.to_owned(), Leased::new(self.store.clone())))
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
        let first = poll_once(decision.as_mut());
        assert!(matches!(first, Poll::Ready(Ok(_))), "a steady agent had to wait");
        sleep(MS).await;
    }
    let asked = far.lends().len() - asked;
    assert!((10..=60).contains(&asked), "{asked} loans for 2000 requests");
    let largest = far.lends().into_iter().max().unwrap();
    assert!(largest <= 201, "{largest} ahead for 100 requests in 100 ms");
}

#[tokio::test(start_paused = true)]
async fn who_asks_slowly_but_steadily_is_renewed_before_the_lease_is_empty() {
    let far = Far::new(&MemoryStore::new(), 5);
    let (leased, takes) = (Leased::new(far.clone()), takes(9000.0, 9000, 1));
    let every = Duration::from_millis(70);
    steady(&leased, "slow", &takes, 50, every).await;
    for _ in 0..50 {
        let asked = as_the_layer(&leased, charge("slow", &takes));
        let first = poll_once(std::pin::pin!(asked));
        assert!(matches!(first, Poll::Ready(Ok(_))), "it had to wait for a loan");
        sleep(every).await;
    }
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
    assert!(far.link.in_flight.load(Relaxed) > 0);
    leased.close().await.unwrap();
    assert_eq!(far.link.in_flight.load(Relaxed), 0, "closed before the loan landed");
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
async fn a_lease_ends_with_the_ban_that_a_renewal_finds() {
    let (store, takes) = (MemoryStore::new(), takes(1000.0, 1000, 1));
    let far = Far::new(&store, 0);
    let leased = Leased::new(far.clone());
    let admitted = steady(&leased, "a", &takes, 300, MS).await;
    store.ban(&agent("a"), u64::MAX);
    let asked = far.lends().len();
    let mut here = 0;
    while far.lends().len() == asked {
        here += u64::from(admits(&leased, "a", &takes).await);
        sleep(MS).await;
    }
    let verdict = leased.spend(charge("a", &takes)).await.unwrap();
    assert!(matches!(verdict.decision, Decision::Banned { .. }));
    assert_eq!(taken(&store, "a").await, admitted + here, "a banned agent's lease stayed");
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
async fn who_stands_in_for_the_store_hears_of_new_limits_although_leases_answer() {
    let (store, takes) = (MemoryStore::new(), takes(1000.0, 1000, 1));
    let leased = Leased::new(Far::new(&store, 0));
    let at_once = || leased.spend_now(&agent("a"), &takes, Instant::now());
    steady(&leased, "a", &takes, 300, MS).await;
    assert!(at_once().is_some(), "the lease is not used");
    let lower = Limits::per_second(1000.0, 900).unwrap();
    store.set_by_operator(&agent("a"), lower);
    // A renewal in the background finds them; the next request tells whoever listens to `spend`.
    let told = loop {
        sleep(MS).await;
        if at_once().is_none() {
            let verdict = leased.spend(charge("a", &takes)).await.unwrap();
            if verdict.first.limits == lower {
                break verdict;
            }
        }
    };
    assert_eq!(told.decision, Decision::Admitted);
    assert!(at_once().is_some(), "told again and again");
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
    assert_eq!(denied(&store, "a").await, 250, "told from memory and not counted");
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
    // 1, then 1 + 9 of the 49 others: the bucket had less, and the rest ask it at once.
    assert_eq!(far.lends(), [0, 48]);
    assert_eq!(far.link.in_flight_max.load(Relaxed), 39);
}

#[tokio::test(start_paused = true)]
async fn requests_wait_for_one_loan_at_a_time() {
    let far = Far::new(&MemoryStore::new(), 10);
    let (leased, takes) = (Leased::new(far.clone()), takes(0.001, 200, 1));
    let asked: Vec<_> = (0..50).map(|_| tokio::spawn(leased.spend(charge("a", &takes)))).collect();
    for task in asked {
        assert_eq!(task.await.unwrap().unwrap().decision, Decision::Admitted);
    }
    assert_eq!(far.link.in_flight_max.load(Relaxed), 1, "a second loan of the same plan");
    assert_eq!(far.lends(), [0, 48]);
}

/// Asks 250 times a second of a bucket that refills 200, 10 ms away; returns the longest wait and how
/// many were admitted in 10 s.
async fn longest_wait(ahead_max: u32, burst: usize) -> (Duration, u64) {
    let far = Far::new(&MemoryStore::new(), 10);
    let leased = Leased::builder(far).ahead_max(ahead_max).build().unwrap();
    let takes = takes(200.0, 40, 1);
    let mut asked = Vec::new();
    for _ in 0..2500 / burst {
        for _ in 0..burst {
            let (decision, began) = (leased.spend(charge("a", &takes)), Instant::now());
            asked.push(tokio::spawn(async move {
                let admitted = decision.await.unwrap().decision == Decision::Admitted;
                (began.elapsed(), u64::from(admitted))
            }));
        }
        sleep(Duration::from_millis(4 * burst as u64)).await;
    }
    let (mut longest, mut admitted) = (Duration::ZERO, 0);
    for task in asked {
        let (wait, passed) = task.await.unwrap();
        (longest, admitted) = (longest.max(wait), admitted + passed);
    }
    (longest, admitted)
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_for_more_than_two_loans_and_an_answer_when_the_refill_is_too_little() {
    // Sleeps end up to a millisecond late: three of them.
    for (ahead_max, burst) in [(AHEAD_MAX, 1), (AHEAD_MAX, 25), (1, 1), (1, 25)] {
        let (longest, admitted) = longest_wait(ahead_max, burst).await;
        assert!(longest <= 33 * MS, "{longest:?} at {ahead_max}, {burst}");
        assert!((1900..=2060).contains(&admitted), "{admitted} at {ahead_max}, {burst}");
    }
}

/// A plan of a rich bucket and one that is only watched, which does not refill.
fn watched(capacity: u64) -> Arc<[Take]> {
    let [rich, mut watched] =
        [takes(0.001, 100_000, 1), takes(0.0, capacity, 1)].map(|t| t[0].clone());
    watched.bucket.name = BucketName::new("watched").unwrap();
    (watched.bucket.is_default, watched.bucket.shadow) = (false, true);
    [rich, watched].into()
}

/// Looks at what the watched bucket holds.
async fn left(store: &MemoryStore, takes: &Arc<[Take]>) -> u64 {
    let look = takes.iter().map(|take| Take { cost: Tokens::ZERO, bucket: take.bucket.clone() });
    let charge = Charge { agent: agent("a"), takes: look.collect() };
    store.decide(&charge.agent, &charge.takes).rest[0].tokens.whole()
}

#[tokio::test(start_paused = true)]
async fn a_caller_who_goes_away_gives_back_nothing_that_a_watched_bucket_did_not_pay() {
    let (store, takes) = (MemoryStore::new(), watched(1));
    let leased = Leased::new(Far::new(&store, 10));
    assert!(admits(&leased, "a", &takes).await);
    // One goes away before the answer, one between the answer and reading it.
    drop(leased.spend(charge("a", &takes)));
    sleep(20 * MS).await;
    let unread = leased.spend(charge("a", &takes));
    sleep(20 * MS).await;
    drop(unread);
    leased.close().await.unwrap();
    assert_eq!((taken(&store, "a").await, left(&store, &takes).await), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_renewal_keeps_nothing_that_a_watched_bucket_did_not_pay() {
    for capacity in 100..200 {
        let (store, takes) = (MemoryStore::new(), watched(capacity));
        let leased = Leased::new(Far::new(&store, 0));
        let (mut admitted, mut paid) = (0, 0);
        for _ in 0..400 {
            let verdict = leased.spend(charge("a", &takes)).await.unwrap();
            assert_eq!(verdict.decision, Decision::Admitted);
            (admitted, paid) = (admitted + 1, paid + u64::from(!verdict.rest[0].short));
            sleep(MS).await;
        }
        leased.close().await.unwrap();
        let outcome = (taken(&store, "a").await, paid + left(&store, &takes).await);
        assert_eq!(outcome, (admitted, capacity));
    }
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
    leased.close().await.unwrap();
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
    leased.close().await.unwrap();
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
    leased.close().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn those_who_wait_for_a_loan_that_is_cut_off_ask_the_store_themselves() {
    let (store, takes) = (MemoryStore::new(), takes(1000.0, 1000, 1));
    let far = Far::new(&store, 10);
    let leased = Leased::new(far.clone());
    let waiting: Vec<_> = (0..3).map(|_| tokio::spawn(leased.spend(charge("a", &takes)))).collect();
    far.fail(Some(Fault::Panic));
    sleep(11 * MS).await;
    far.fail(None);
    for task in waiting {
        // Whoever is forgotten would wait for ever.
        let answer = tokio::time::timeout(LEASE_TERM_MAX, task).await.expect("was forgotten");
        assert_eq!(answer.unwrap().unwrap().decision, Decision::Admitted);
    }
    assert!(admits(&leased, "a", &takes).await);
    leased.close().await.unwrap();
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
    let store = MemoryStore::new();
    let leased = Leased::new(store.clone());
    let plans: Vec<Arc<[Take]>> =
        (1..=PLANS_MAX as u64 + 3).map(|cost| takes(1.0, 900_000, cost)).collect();
    let mut spent = 0;
    // Each plan in turn gets a lease, and pushes out an older one.
    for round in 0..3 {
        for plan in &plans {
            let times = 20 + round;
            assert_eq!(steady(&leased, "a", plan, times, MS).await, times);
            spent += times * plan[0].cost.get();
        }
    }
    assert!(taken(&store, "a").await > spent, "nothing was taken ahead");
    leased.close().await.unwrap();
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
