//! Real threads: callers who stay, leave and are cut off, a store that fails, terms that end all the
//! time; and not a token is lost or found.

use super::*;
use crate::store::contract::Draw;

const AGENTS: usize = 48;
const CALLERS: u64 = 16;
const LASTS: Duration = Duration::from_secs(2);

/// A store whose loans take a few turns of the scheduler, and fail one time in eight: in half of
/// those everything was taken and is lost.
#[derive(Clone)]
struct Shaky {
    store: MemoryStore,
    draw: Arc<Mutex<Draw>>,
    lost: Arc<[AtomicU64]>,
}

impl Shaky {
    async fn turns(&self) -> u64 {
        let (turns, luck) = {
            let mut draw = self.draw.lock().unwrap();
            (draw.below(4), draw.below(16))
        };
        for _ in 0..turns {
            tokio::task::yield_now().await;
        }
        luck
    }
}

fn index(agent: &AgentId) -> usize {
    agent.as_str()[1..].parse().unwrap()
}

impl Spend for Shaky {
    type Future = Pending<Verdict>;

    fn spend(&self, charge: Charge) -> Self::Future {
        let store = self.clone();
        Box::pin(async move {
            store.turns().await;
            Ok(store.store.decide(&charge.agent, &charge.takes))
        })
    }

    fn settle(&self, settlement: Settlement) {
        self.store.settle(settlement);
    }
}

impl Lend for Shaky {
    type Loan = Pending<Loan>;

    fn lend(&self, charge: Charge, most: u32) -> Self::Loan {
        let store = self.clone();
        Box::pin(async move {
            let luck = store.turns().await;
            let failed = || StoreError::Timeout(Duration::from_millis(20));
            if luck == 0 {
                return Err(failed());
            }
            let (id, cost) = (index(&charge.agent), charge.takes[0].cost.get());
            let loan = store.store.lend(charge, most).into_inner()?;
            if luck == 1 {
                if loan.verdict.decision == Decision::Admitted {
                    let multiples = 1 + u64::from(loan.ahead);
                    store.lost[id].fetch_add(multiples * cost, Relaxed);
                }
                return Err(failed());
            }
            Ok(loan)
        })
    }
}

fn tally<const KINDS: usize>() -> Arc<[AtomicU64]> {
    (0..KINDS).map(|_| AtomicU64::new(0)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn not_a_token_is_lost_or_found_whoever_leaves_and_whatever_fails() {
    let store = MemoryStore::new();
    let draw = Arc::new(Mutex::new(Draw::new(1)));
    let shaky = Shaky { store: store.clone(), draw, lost: tally::<AGENTS>() };
    // So few places that agents push each other out, and terms that end all the time.
    let node =
        || Leased::builder(shaky.clone()).term(LEASE_TERM_MIN).agents_max(1).build().unwrap();
    let nodes = [node(), node()];
    let plans = [takes(100.0, 400, 1), takes(100.0, 400, 3)];
    let (admitted, outcomes) = (tally::<AGENTS>(), tally::<OUTCOMES>());
    let end = Instant::now() + LASTS;
    let caller = |seed| {
        let caller = Caller {
            draw: Draw::new(seed),
            nodes: nodes.clone(),
            plans: plans.clone(),
            admitted: Arc::clone(&admitted),
            outcomes: Arc::clone(&outcomes),
        };
        tokio::spawn(caller.call_until(end))
    };
    let callers: Vec<_> = (1..=CALLERS).map(caller).collect();
    for caller in callers {
        caller.await.unwrap();
    }
    for node in &nodes {
        node.close().await.unwrap();
    }
    for id in 0..AGENTS {
        let (admitted, lost) = (admitted[id].load(Relaxed), shaky.lost[id].load(Relaxed));
        let taken = taken(&store, &format!("a{id}")).await;
        assert_eq!(taken, admitted + lost, "agent a{id}: {admitted} admitted, {lost} lost");
    }
    let outcomes: Vec<u64> = outcomes.iter().map(|count| count.load(Relaxed)).collect();
    assert!(outcomes.iter().all(|&count| count > 100), "too little happened: {outcomes:?}");
}

/// Admitted, denied, failed, left before the answer, refunded.
const OUTCOMES: usize = 5;

struct Caller {
    /// A fixed sequence for each; the threads' interleaving is the system's.
    draw: Draw,
    nodes: [Leased<Shaky>; 2],
    plans: [Arc<[Take]>; 2],
    admitted: Arc<[AtomicU64]>,
    outcomes: Arc<[AtomicU64]>,
}

impl Caller {
    #[allow(clippy::cast_possible_truncation, reason = "small numbers")]
    fn pick(&mut self, most: usize) -> usize {
        self.draw.below(most as u64) as usize
    }

    async fn call_until(mut self, end: Instant) {
        while Instant::now() < end {
            // Few agents are asked for often, many now and then.
            let rank = self.pick(AGENTS) + 1;
            let (node, plan, id) = (self.pick(2), self.pick(2), self.pick(rank));
            let charge = charge(&format!("a{id}"), &self.plans[plan]);
            let cost = charge.takes[0].cost.get();
            let (asked, asked_for) = (self.nodes[node].clone(), charge.clone());
            let decision = async move { as_the_layer(&asked, asked_for).await };
            let (admitted, outcomes) = (Arc::clone(&self.admitted), Arc::clone(&self.outcomes));
            let mut asked = Box::pin(async move {
                let outcome = match decision.await {
                    Ok(verdict) if verdict.decision == Decision::Admitted => {
                        admitted[id].fetch_add(cost, Relaxed);
                        0
                    }
                    Ok(_) => 1,
                    Err(_) => 2,
                };
                outcomes[outcome].fetch_add(1, Relaxed);
                outcome == 0
            });
            match self.pick(8) {
                0 | 1 => {
                    // Cut off at any moment of its wait.
                    if poll_once(asked.as_mut()).is_pending() {
                        let task = tokio::spawn(asked);
                        for _ in 0..self.pick(6) {
                            tokio::task::yield_now().await;
                        }
                        task.abort();
                        if task.await.is_err() {
                            self.outcomes[3].fetch_add(1, Relaxed);
                        }
                    }
                }
                2 => {
                    if asked.await {
                        self.outcomes[4].fetch_add(1, Relaxed);
                        self.admitted[id].fetch_sub(cost, Relaxed);
                        let Charge { agent, takes } = charge;
                        let direction = Direction::GiveBack;
                        self.nodes[node].settle(Settlement { agent, takes, direction });
                    }
                }
                3 => {
                    asked.await;
                    sleep(Duration::from_millis(self.draw.below(15))).await;
                }
                _ => drop(asked.await),
            }
        }
    }
}
