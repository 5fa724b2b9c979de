//! Two nodes over one store: random schedules, a kill, shares.

use proptest::prelude::*;

use super::*;

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
                match poll_once(decision.as_mut()) {
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
    for (leased, far) in leased.iter().zip(&nodes) {
        let closed = leased.close().await;
        assert!(closed.is_ok() || far.link.cut.load(Relaxed), "{closed:?}");
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
    nodes[1].close().await.unwrap();
    let lost = taken(&store, "a").await - admitted;
    // It was sized for 200 ms of at most 500 requests a second.
    assert!((1..=120).contains(&lost), "{lost} tokens lost");
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
