//! How many ratings a core of the tuner folds when nothing is waited for: no network, no clock in the store.
//!
//! ```text
//! cargo bench -p merit-sidecar --features full --bench tuner
//! ```
//!
//! `loop` is the whole tuner over an in-process bus of its usual size that is full all the while, and a store that
//! answers at once and keeps revisions only: who was rated, fence, window of ids, policy, state as JSON, revision,
//! metrics. Ratings are read just before they are put on the bus, as every bus does it: they are not cold. `ppo` is
//! live and learns; its thread runs beside the loop. `fold` is the policy alone in a plain loop over states: what
//! no tuner can be faster than. Agents are drawn from Zipf(1.1) over 10,000, raters from 20,000.

#![allow(missing_docs, clippy::unwrap_used, reason = "a measurement may stop where it stands")]

use std::{
    collections::HashMap,
    hint::black_box,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use foldhash::fast::RandomState;
use merit_sidecar::{
    bus::{Consumer, Publisher, in_process},
    policy::{self, Kind, Policy, State, vote_of},
    rating::{Poster, Rating, RatingRequest},
    telemetry,
    tuner::{Busiest, Plan, Tuner},
};
use mimalloc::MiMalloc;
use rand::{RngExt, SeedableRng, rngs::StdRng};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;
use tower_merit::{
    AgentId,
    bucket::Limits,
    store::{
        Bid, ByHand, Change, Cursor, Demand, Document, Kept, Life, Quote, Record, StoreError,
        Traded, Tune, Written,
    },
};

/// As in `merit`.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// Ratings that are measured; as many come before them.
const RATINGS: usize = 400_000;
const AGENTS: usize = 10_000;
const USERS: u32 = 20_000;
const EXPONENT: f64 = 1.1;
/// Tokens that an agent takes between two of its writes.
const ASKED: u64 = 3;

/// A store that answers as one that writes and keeps revisions and demand only: what it takes to keep the rest is
/// the store's, not the tuner's. A tuner that knows its agents never asks for it.
#[derive(Default)]
struct Records {
    agents: Mutex<HashMap<AgentId, (u64, Demand), RandomState>>,
    quote: Mutex<Option<Quote>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Tune for Records {
    async fn load(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Record, StoreError>>, StoreError> {
        let known = lock(&self.agents);
        assert!(!agents.iter().any(|agent| known.contains_key(agent)), "an agent was forgotten");
        Ok(agents.iter().map(|_| Ok(Record::default())).collect())
    }

    async fn demand(
        &self,
        agents: &[AgentId],
    ) -> Result<Vec<Result<Demand, StoreError>>, StoreError> {
        let known = lock(&self.agents);
        let demand = |agent| known.get(agent).map_or_else(Demand::default, |kept| kept.1);
        Ok(agents.iter().map(|agent| Ok(demand(agent))).collect())
    }

    async fn write(
        &self,
        changes: &[Change],
    ) -> Result<Vec<Result<Written, StoreError>>, StoreError> {
        let mut known = lock(&self.agents);
        let mut write = |change: &Change| {
            if !known.contains_key(&change.agent) {
                known.insert(change.agent.clone(), Default::default());
            }
            let (rev, demand) = known.get_mut(&change.agent).expect("inserted above");
            if *rev != change.rev {
                return Ok(Written::Stale);
            }
            *rev += 1;
            demand.admitted += ASKED;
            Ok(Written::Done { rev: *rev, demand: *demand })
        };
        Ok(changes.iter().map(&mut write).collect())
    }

    async fn agents(
        &self,
        _: Cursor,
        _: usize,
    ) -> Result<(Vec<AgentId>, Option<Cursor>), StoreError> {
        Ok((lock(&self.agents).keys().cloned().collect(), None))
    }

    async fn used(&self) -> Result<Vec<(String, u64)>, StoreError> {
        let taken = lock(&self.agents).values().map(|kept| kept.1.admitted).sum();
        Ok(vec![("bench".to_owned(), taken)])
    }

    async fn trade(&self, bid: &Bid) -> Result<Traded, StoreError> {
        let mut quote = lock(&self.quote);
        *quote = bid.quote.or(*quote);
        Ok(Traded { leads: true, quote: *quote })
    }

    async fn by_hand(&self, _: &AgentId, _: &ByHand) -> Result<(), StoreError> {
        Ok(())
    }

    async fn life(&self) -> Result<Life, StoreError> {
        Ok(Life { run_id: "bench".to_owned(), epoch: Some("1".to_owned()) })
    }

    async fn begin_epoch(&self, _: &str) -> Result<(), StoreError> {
        Ok(())
    }

    async fn progress(&self) -> Result<Vec<(String, u64)>, StoreError> {
        Ok(Vec::new())
    }

    async fn note_progress(&self, _: &[(String, u64)]) -> Result<(), StoreError> {
        Ok(())
    }

    async fn document(&self) -> Result<Document, StoreError> {
        Ok(Document::default())
    }

    async fn keep_document(&self, rev: u64, _: Option<&str>) -> Result<Kept, StoreError> {
        Ok(Kept::Done { rev: rev + 1 })
    }

    async fn look(&self, agent: &AgentId) -> Result<Record, StoreError> {
        let known = lock(&self.agents).get(agent).copied();
        let (rev, demand) = known.unwrap_or_default();
        let mut record = Record::default();
        (record.rev, record.demand) = (rev, demand);
        Ok(record)
    }
}

fn config(kind: Kind) -> policy::Config {
    let service_capacity = (kind != Kind::Additive).then_some(50_000.0);
    // Ten ticks a second, so that there is something to learn within a run.
    let tick = Some("100ms".to_owned());
    policy::Config { kind, service_capacity, tick, ..policy::Config::default() }
}

fn start() -> Limits {
    Limits::per_second(20.0, 40).unwrap()
}

/// What bodies say of ratings, each with the number of its agent; the same every time.
fn bodies() -> Vec<(usize, String)> {
    let mut sum = 0.0;
    let shares: Vec<f64> = (1..=AGENTS)
        .map(|rank| {
            sum += f64::from(u32::try_from(rank).unwrap()).powf(-EXPONENT);
            sum
        })
        .collect();
    let mut random = StdRng::seed_from_u64(1);
    let one = |number: usize| {
        let drawn = random.random::<f64>() * sum;
        let agent = shares.partition_point(|&share| share < drawn).min(AGENTS - 1);
        let body = format!(
            r#"{{"agent_id":"agent-{agent}","user_id":"user-{}","score":{},"id":"b{number}"}}"#,
            random.random_range(0..USERS),
            random.random_range(1..=5_u32)
        );
        (agent, body)
    };
    (0..2 * RATINGS).map(one).collect()
}

fn rating(poster: &Poster, number: usize, body: &str) -> Rating {
    let at_us = 1_800_000_000_000_000 + number as u64 * 10;
    let request = RatingRequest::from_json(body.as_bytes()).unwrap();
    request.into_rating(poster.clone(), at_us).unwrap()
}

/// Returns how long a tuner takes to fold and write the second half of `bodies`, from a bus that is full all the
/// while; by then most agents are known. What reading bodies and putting ratings there takes is not counted.
fn run(runtime: &Runtime, kind: Kind, bodies: &[(usize, String)]) -> Duration {
    let bus = in_process::Config::default();
    let (publisher, consumer) = in_process::channel(&bus);
    let publisher = Publisher::InProcess(publisher);
    let mut plan = Plan::new(config(kind), start());
    // As a process has it that tells of its agents by name.
    plan.busiest = Some(Busiest::new(50));
    let tuner = Tuner::new(Consumer::InProcess(consumer), Records::default(), plan);
    let (warm, poster) = (bodies.len() / 2 + bus.capacity, Poster::new("bench").unwrap());
    let feed = async move {
        let (mut spent, mut began, mut done) = (Duration::ZERO, Instant::now(), 0);
        let mut next = None;
        while done < bodies.len() {
            let (put, before) = (Instant::now(), done);
            while let Some((_, body)) = bodies.get(done) {
                let one = next.take().unwrap_or_else(|| rating(&poster, done, body));
                if publisher.publish(&one).await.is_err() {
                    next = Some(one);
                    break;
                }
                done += 1;
            }
            spent += put.elapsed();
            if before < warm && done >= warm {
                (spent, began) = (Duration::ZERO, Instant::now());
            }
            tokio::task::yield_now().await;
        }
        (spent, began)
    };
    runtime.block_on(async {
        let ((spent, began), ran) = tokio::join!(feed, tuner.run(CancellationToken::new()));
        ran.unwrap();
        began.elapsed() - spent
    })
}

/// Returns how long the policy alone takes for `ratings`.
fn fold(kind: Kind, ratings: &[(usize, Rating)]) -> Duration {
    let policy = Policy::new(&config(kind), start());
    let mut states: Vec<State> = vec![policy.begin(); AGENTS];
    let began = Instant::now();
    for (agent, rating) in ratings {
        black_box(policy.vote(&mut states[*agent], vote_of(rating, 1.0)));
    }
    began.elapsed()
}

fn tuner(criterion: &mut Criterion) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Metrics cost what they cost in a running process.
    let metrics = runtime.block_on(async { telemetry::install_metrics() }).unwrap();
    let (bodies, poster) = (bodies(), Poster::new("bench").unwrap());
    let read = |(number, (agent, body)): (usize, &(usize, String))| {
        (*agent, rating(&poster, number, body))
    };
    let ratings: Vec<(usize, Rating)> = bodies[..RATINGS].iter().enumerate().map(read).collect();
    let mut group = criterion.benchmark_group("tuner");
    group.throughput(Throughput::Elements(RATINGS as u64));
    group.sampling_mode(SamplingMode::Flat).sample_size(10);
    for kind in [Kind::Additive, Kind::Price, Kind::Ppo] {
        let name = format!("{kind:?}").to_lowercase();
        group.bench_function(format!("{name}/fold"), |bencher| {
            bencher.iter_custom(|times| (0..times).map(|_| fold(kind, &ratings)).sum());
        });
        group.bench_function(format!("{name}/loop"), |bencher| {
            bencher.iter_custom(|times| {
                let run = |_| {
                    let took = run(&runtime, kind, &bodies);
                    metrics.run_upkeep();
                    took
                };
                (0..times).map(run).sum()
            });
        });
    }
    group.finish();
    let page = metrics.render();
    let learned = page.lines().filter(|line| line.starts_with("merit_learning_updates_total"));
    learned.for_each(|line| println!("{line} in all runs"));
}

criterion_group!(benches, tuner);
criterion_main!(benches);
