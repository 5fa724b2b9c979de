//! The loop over the in-process bus and store: what is published moves limits, and a stop loses
//! nothing that was published before it.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use merit_sidecar::{
    bus::{Consumer, Publisher, in_process},
    policy,
    rating::{Poster, Rating, RatingRequest, SubjectMode},
    tuner::{Plan, Tuner, TunerError},
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tower_merit::{AgentId, MemoryStore, Tune, bucket::Limits};

struct Loop {
    publisher: Publisher,
    store: MemoryStore,
    running: JoinHandle<Result<(), TunerError>>,
}

impl Loop {
    fn start(subject: SubjectMode) -> Self {
        let (publisher, consumer) = in_process::channel(&in_process::Config::default());
        let store = MemoryStore::new();
        let consumer = Consumer::InProcess(consumer);
        let start = Limits::per_second(20.0, 40).unwrap();
        let mut plan = Plan::new(policy::Config::default(), start);
        plan.subject = subject;
        let tuner = Tuner::new(consumer, store.clone(), plan);
        let running = tokio::spawn(tuner.run(CancellationToken::new()));
        Self { publisher: Publisher::InProcess(publisher), store, running }
    }

    async fn rate(&self, body: &str) {
        self.publisher.publish(&rating(body)).await.unwrap();
    }

    /// Closes the bus and waits until everything on it was folded.
    async fn finish(self) -> MemoryStore {
        drop(self.publisher);
        self.running.await.unwrap().unwrap();
        self.store
    }
}

fn rating(body: &str) -> Rating {
    let request = RatingRequest::from_json(body.as_bytes()).unwrap();
    request.into_rating(Poster::new("tests").unwrap(), 1_800_000_000_000_000).unwrap()
}

async fn limits(store: &MemoryStore, agent: &str) -> Option<Limits> {
    let records = store.load(&[AgentId::new(agent).unwrap()]).await.unwrap();
    records[0].as_ref().unwrap().limits
}

#[tokio::test]
async fn everything_published_before_the_bus_closed_moves_its_agent() {
    let running = Loop::start(SubjectMode::Agent);
    for number in 0..1_000 {
        let (agent, score) = (number % 10, 2 + number % 3);
        running
            .rate(&format!(
                r#"{{"agent_id":"a{agent}","user_id":"u","score":{score},"id":"i{number}"}}"#
            ))
            .await;
    }
    let store = running.finish().await;
    for agent in 0..10 {
        // A hundred ratings each: 2, 3 and 4 in turn, so that all but one of them cancel out.
        let mut rate = 20.0_f64;
        for turn in 0..100 {
            rate += 0.1 * (f64::from(2 + (agent + 10 * turn) % 3) - 3.0);
        }
        let found = limits(&store, &format!("a{agent}")).await.unwrap();
        assert_eq!(found, Limits::per_second(rate, found.capacity().get()).unwrap());
    }
}

#[tokio::test]
async fn a_repeat_counts_once_and_an_item_moves_nobody_unless_it_is_the_subject() {
    for (subject, expected) in [(SubjectMode::Agent, None), (SubjectMode::Item, Some("20.2"))] {
        let running = Loop::start(subject);
        for _ in 0..3 {
            running.rate(r#"{"agent_id":"a","user_id":"u","score":5,"id":"once"}"#).await;
            running.rate(r#"{"item_id":"film","user_id":"u","rating":5,"id":"film-once"}"#).await;
        }
        let store = running.finish().await;
        assert_eq!(limits(&store, "a").await.unwrap().refill().to_string(), "20.2");
        let film = limits(&store, "film").await.map(|limits| limits.refill().to_string());
        assert_eq!(film.as_deref(), expected);
    }
}

#[tokio::test]
async fn an_operators_limits_between_two_ratings_are_where_the_next_one_starts() {
    let running = Loop::start(SubjectMode::Agent);
    let agent = AgentId::new("a").unwrap();
    running.rate(r#"{"agent_id":"a","user_id":"u","score":5,"id":"1"}"#).await;
    while limits(&running.store, "a").await.is_none() {
        tokio::task::yield_now().await;
    }
    running.store.set_by_operator(&agent, Limits::per_second(2.0, 10).unwrap());
    running.rate(r#"{"agent_id":"a","user_id":"u","score":5,"id":"2"}"#).await;
    let store = running.finish().await;
    assert_eq!(limits(&store, "a").await, Some(Limits::per_second(2.2, 11).unwrap()));
}
