//! The loop with policies that price capacity, in virtual time: ratings and requests come in, limits
//! and a price come out.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{sync::Arc, time::Duration};

use merit_sidecar::{
    bus::{Consumer, Publisher, in_process},
    policy::{self, Kind, Mode},
    rating::{Poster, RatingRequest},
    tuner::{Aim, Plan, Tuner, TunerError},
};
use tokio::{sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;
use tower_merit::{
    AgentId, MemoryStore, Spend, Tune,
    bucket::{BucketName, Limits, Tokens},
    store::{Bid, BucketRule, Charge, Quote, Take},
};

/// When the ratings of a test begin, in Unix microseconds.
const BEGAN_US: u64 = 1_800_000_000_000_000;
/// What agents start from, tokens per second.
const START: f64 = 5.0;

struct World {
    publisher: Publisher,
    store: MemoryStore,
    aims: watch::Sender<Aim>,
    running: JoinHandle<Result<(), TunerError>>,
    second: u64,
    rated: u64,
}

fn config(kind: Kind) -> policy::Config {
    policy::Config { kind, service_capacity: Some(20.0), ..policy::Config::default() }
}

impl World {
    fn start(config: policy::Config) -> Self {
        let (publisher, consumer) = in_process::channel(&in_process::Config::default());
        let store = MemoryStore::new();
        let (aims, changes) = watch::channel(Aim::new(config.clone(), limits(START)));
        let mut plan = Plan::new(config, limits(START));
        plan.changes = Some(changes);
        let tuner = Tuner::new(Consumer::InProcess(consumer), store.clone(), plan);
        let running = tokio::spawn(tuner.run(CancellationToken::new()));
        let publisher = Publisher::InProcess(publisher);
        Self { publisher, store, aims, running, second: 0, rated: 0 }
    }

    /// Lets the loop go on by another policy.
    fn switch(&self, policy: policy::Config) {
        self.aims.send_modify(|aim| aim.policy = policy);
    }

    /// Lets a second pass in which `agent` asks for `wanted` tokens, evenly.
    async fn second(&mut self, wanted: &[(&str, u32)]) {
        for tenth in 0..10 {
            for (agent, wanted) in wanted {
                for _ in (wanted * tenth / 10)..(wanted * (tenth + 1) / 10) {
                    self.ask(agent).await;
                }
            }
            sleep(Duration::from_millis(100)).await;
        }
        self.second += 1;
    }

    async fn ask(&self, agent: &str) {
        let name = BucketName::new("default").unwrap();
        let bucket = BucketRule { name, is_default: true, limits: limits(START), shadow: false };
        let take = Take { bucket, cost: Tokens::ONE };
        let takes: Arc<[Take]> = [take].into();
        self.store.spend(Charge { agent: id(agent), takes }).await.unwrap();
    }

    async fn rate(&mut self, agent: &str, score: u32) {
        self.rated += 1;
        let (user, number) = (self.rated % 97, self.rated);
        let body = format!(
            r#"{{"agent_id":"{agent}","user_id":"u{user}","score":{score},"id":"i{number}"}}"#
        );
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        let at = BEGAN_US + self.second * 1_000_000;
        let rating = request.into_rating(Poster::new("tests").unwrap(), at).unwrap();
        self.publisher.publish(&rating).await.unwrap();
    }

    async fn rate_of(&self, agent: &str) -> f64 {
        let records = self.store.load(&[id(agent)]).await.unwrap();
        records[0].as_ref().unwrap().limits.map_or(START, |limits| limits.refill().tokens())
    }

    async fn quote(&self) -> Option<Quote> {
        let bid = Bid { who: "an onlooker".to_owned(), term: Duration::ZERO, quote: None };
        self.store.trade(&bid).await.unwrap().quote
    }

    async fn finish(self) -> MemoryStore {
        drop(self.publisher);
        self.running.await.unwrap().unwrap();
        self.store
    }
}

fn id(agent: &str) -> AgentId {
    AgentId::new(agent).unwrap()
}

fn limits(rate: f64) -> Limits {
    Limits::per_second(rate, 10).unwrap()
}

#[tokio::test(start_paused = true)]
async fn scarce_capacity_goes_to_the_agents_that_users_value() {
    let mut world = World::start(config(Kind::Price));
    let wanted = [("good", 10), ("fine", 10), ("poor", 10), ("bad", 10)];
    for second in 0..240 {
        // Means of 4.5, 4, 3 and 2.
        let low = second % 2;
        for (agent, score) in [("good", 5 - low), ("fine", 4), ("poor", 3), ("bad", 2)] {
            world.rate(agent, score).await;
        }
        world.second(&wanted).await;
    }
    let quote = world.quote().await.unwrap();
    assert!((0.05..1.5).contains(&quote.price), "{quote:?}");
    assert!((0.85..1.1).contains(&quote.use_share), "{quote:?}");
    let [good, fine] = [world.rate_of("good").await, world.rate_of("fine").await];
    let [poor, bad] = [world.rate_of("poor").await, world.rate_of("bad").await];
    assert!(good > 9.0 && fine > 7.0, "{good} {fine}");
    assert!(poor < 1.5 && bad < 1.0, "{poor} {bad}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_nobody_rates_any_more_is_looked_at_all_the_same() {
    let mut world = World::start(config(Kind::Price));
    for second in 0..30 {
        for user in 0..3 {
            world.rate("busy", 4 + (second + user) % 2).await;
        }
        world.second(&[("busy", 4)]).await;
    }
    let before = world.rate_of("busy").await;
    // It wants more from now on, and no rating says so.
    for _ in 0..120 {
        world.second(&[("busy", 12)]).await;
    }
    let after = world.rate_of("busy").await;
    assert!(before < 7.0 && after > 10.0, "{before} {after}");
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_switched_moves_nobodys_limits_by_more_than_a_step() {
    let mut world = World::start(config(Kind::Price));
    for second in 0..60 {
        world.rate("a", 4 + second % 2).await;
        world.second(&[("a", 9)]).await;
    }
    let price = world.rate_of("a").await;
    assert!(price > 8.0, "{price}");
    world.switch(config(Kind::Additive));
    world.second(&[("a", 9)]).await;
    assert!((world.rate_of("a").await - price).abs() < 0.02 * price);
    world.rate("a", 5).await;
    world.second(&[("a", 9)]).await;
    let additive = world.rate_of("a").await;
    assert!((additive - price - 0.2).abs() < 0.02 * price, "{price} {additive}");
    // What was known of its quality went with the policy that knew it: it begins from the rate.
    world.switch(config(Kind::Bandit));
    let mut before = additive;
    for _ in 0..20 {
        world.rate("a", 5).await;
        world.second(&[("a", 9)]).await;
        let now = world.rate_of("a").await;
        assert!((now / before).ln().abs() < 0.26, "{before} {now}");
        before = now;
    }
    // The kill switch, and a freeze.
    world.switch(policy::Config { mode: Mode::Frozen, ..config(Kind::Bandit) });
    world.second(&[("a", 9)]).await;
    let frozen = world.rate_of("a").await;
    for _ in 0..20 {
        world.rate("a", 1).await;
        world.second(&[("a", 9)]).await;
    }
    assert_eq!(world.rate_of("a").await, frozen);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_ratings_of_one_in_a_second_move_a_limit_by_one_step() {
    let mut world = World::start(config(Kind::Price));
    for second in 0..60 {
        world.rate("victim", 4 + second % 2).await;
        world.second(&[("victim", 9)]).await;
    }
    let before = world.rate_of("victim").await;
    for _ in 0..1_000 {
        world.rate("victim", 1).await;
    }
    let second = world.second;
    world.second(&[("victim", 9)]).await;
    let after = world.rate_of("victim").await;
    assert_eq!(world.second, second + 1);
    // The ratings are of one second of the agent's time; a tick of a second passed besides.
    assert!(after >= before * 0.74 * 0.74, "{before} {after}");
    let store = world.finish().await;
    let records = store.load(&[id("victim")]).await.unwrap();
    assert!(records[0].as_ref().unwrap().state.contains("price"));
}
