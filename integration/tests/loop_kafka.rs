//! The whole loop on real parts: ingest, tuner and gateway as three processes over Kafka and Redis.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::{sync::Arc, time::Duration};

use merit_integration::{
    Kafka, Merit, Persistence, Redis, Role, Settings, Upstream,
    client::{Answer, Client},
    keys,
    ratings::Poster,
};
use tokio::sync::OnceCell;

/// How long a rating may take to become a limit before a test calls it lost.
const LOOP_DEADLINE: Duration = Duration::from_secs(20);
const DAY_MS: i64 = 24 * 3600 * 1000;

struct Parts {
    redis: Redis,
    upstream: Upstream,
    ingest: Merit,
    tuner: Merit,
    gateway: Merit,
}

/// The parts that all tests of this file share, each with agents of its own.
struct Stack(Arc<Parts>);

impl std::ops::Deref for Stack {
    type Target = Parts;

    fn deref(&self) -> &Parts {
        &self.0
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for part in [&self.ingest, &self.tuner, &self.gateway] {
                eprintln!("{}", part.output());
            }
        }
    }
}

impl Stack {
    async fn get() -> Self {
        static PARTS: OnceCell<Arc<Parts>> = OnceCell::const_new();
        let start = || async {
            let kafka = Kafka::shared().await;
            let redis = Redis::start(Persistence::SnapshotOnDemand).await;
            let upstream = Upstream::start();
            let settings = Settings::new(&redis.url())
                .kafka(&kafka.brokers(), "loop.ratings")
                .upstream(&upstream.url());
            let (ingest, tuner, gateway) = tokio::join!(
                Merit::start(settings.clone().role(Role::Ingest)),
                Merit::start(settings.clone().role(Role::Tuner)),
                Merit::start(settings.clone().role(Role::Gateway)),
            );
            Arc::new(Parts { redis, upstream, ingest, tuner, gateway })
        };
        Self(PARTS.get_or_init(start).await.clone())
    }

    fn poster(&self) -> Poster {
        Poster::new(&self.ingest.ingest())
    }

    async fn limits_become(&self, agent: &str, capacity: &str, refill_rate: &str) {
        let expected = Some((capacity.to_owned(), refill_rate.to_owned()));
        let what = format!("limits of {agent} are {expected:?}");
        merit_integration::eventually(&what, LOOP_DEADLINE, || async {
            self.redis.limits(agent).await == expected
        })
        .await;
    }

    /// Calls the gateway `count` times as `agent`, one after the other, as fast as it answers.
    async fn call(&self, agent: &str, count: usize) -> Vec<Answer> {
        let (client, token) = (Client::new(), keys::agent(agent));
        let url = format!("{}/hello", self.gateway.gateway());
        let mut answers = Vec::new();
        for _ in 0..count {
            answers.push(client.get(&url, Some(&token)).await.expect("the gateway answers"));
        }
        answers
    }
}

fn admitted(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.status == 200).count()
}

#[tokio::test]
async fn a_rating_of_five_raises_the_rate_by_two_alpha_and_the_capacity_follows() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    poster.rate("raised", 5.0).await;
    stack.limits_become("raised", "40", "20.2").await;
    poster.rate("raised", 5.0).await;
    poster.rate("raised", 5.0).await;
    stack.limits_become("raised", "41", "20.6").await;
}

#[tokio::test]
async fn a_rating_of_one_lowers_the_rate_and_a_three_leaves_it() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    poster.rate("lowered", 3.0).await;
    stack.limits_become("lowered", "40", "20").await;
    poster.rate("lowered", 1.0).await;
    stack.limits_become("lowered", "39", "19.8").await;
    poster.rate("lowered", 4.5).await;
    stack.limits_become("lowered", "39", "19.95").await;
}

#[tokio::test]
async fn no_rating_moves_the_rate_beyond_its_bounds() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    for _ in 0..101 {
        poster.rate("praised", 5.0).await;
        poster.rate("scorned", 1.0).await;
    }
    stack.limits_become("praised", "80", "40").await;
    stack.limits_become("scorned", "1", "0.5").await;
    poster.rate("praised", 1.0).await;
    poster.rate("scorned", 5.0).await;
    stack.limits_become("praised", "79", "39.8").await;
    stack.limits_become("scorned", "1", "0.7").await;
}

#[tokio::test]
async fn the_agents_rated_most_are_told_by_name_where_they_are_tuned() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    let told = async |part: &Merit, what: &str| {
        part.series(&format!("merit_agent_{what}{{agent=\"told\"}}")).await
    };
    for _ in 0..3 {
        poster.rate("told", 5.0).await;
    }
    poster.rate("told", 1.0).await;
    stack.limits_become("told", "40", "20.4").await;
    merit_integration::eventually("the rate is told", LOOP_DEADLINE, || async {
        told(&stack.tuner, "refill_rate").await == Some(20.4)
    })
    .await;
    // Three are worth 2 and one is worth -2; what was first may have faded by a little.
    let reward = told(&stack.tuner, "reward").await.expect("it was rated just now");
    assert!((reward - 1.0).abs() < 0.1, "{reward}");
    for part in [&stack.ingest, &stack.gateway] {
        assert_eq!(part.metric("merit_agent_refill_rate").await, None);
    }
}

#[tokio::test]
async fn limits_live_a_day_and_a_rating_renews_them() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    let left = async || stack.redis.ask::<i64>(&["PTTL", "tb:mortal"]).await;
    poster.rate("mortal", 5.0).await;
    stack.limits_become("mortal", "40", "20.2").await;
    let fresh = left().await;
    assert!((DAY_MS - 60_000..=DAY_MS).contains(&fresh), "{fresh} ms left");

    let _: i64 = stack.redis.ask(&["PEXPIRE", "tb:mortal", "600000"]).await;
    poster.rate("mortal", 5.0).await;
    stack.limits_become("mortal", "40", "20.4").await;
    let renewed = left().await;
    assert!((DAY_MS - 60_000..=DAY_MS).contains(&renewed), "{renewed} ms left");
}

#[tokio::test]
async fn an_agent_rated_down_is_refused_where_another_passes() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    for _ in 0..98 {
        poster.rate("bad", 1.0).await;
    }
    stack.limits_become("bad", "1", "0.5").await;

    let served = stack.upstream.served();
    let (start, answers) = (std::time::Instant::now(), stack.call("bad", 8).await);
    let most = 1.0 + 0.5 * start.elapsed().as_secs_f64();
    let passed = u32::try_from(admitted(&answers)).unwrap();
    assert!((1.0..=most).contains(&f64::from(passed)), "{passed} of at most {most} passed");
    assert!(stack.upstream.served() >= served + u64::from(passed));

    let refused = answers.iter().find(|answer| answer.status != 200).expect("most are refused");
    assert_eq!(refused.status, 429);
    assert!(refused.retry_after() <= Duration::from_secs(2), "{:?}", refused.headers);
    assert!(refused.problem()["retry_after_ms"].as_u64().is_some_and(|ms| ms <= 2_000));
    assert_eq!(refused.header("cache-control"), "no-store");
    assert!(refused.header("ratelimit").contains("r=0"), "{:?}", refused.headers);

    assert_eq!(admitted(&stack.call("unrated", 8).await), 8);
}

#[tokio::test]
async fn limits_set_by_hand_hold_for_the_very_next_request() {
    let stack = Stack::get().await;
    assert_eq!(admitted(&stack.call("by-hand", 3).await), 3);
    let command = ["HSET", "tb:by-hand", "capacity", "2", "refill_rate", "1"];
    let _: i64 = stack.redis.ask(&command).await;
    let (start, answers) = (std::time::Instant::now(), stack.call("by-hand", 12).await);
    let most = 2.0 + start.elapsed().as_secs_f64();
    let passed = u32::try_from(admitted(&answers)).unwrap();
    assert!((2.0..=most).contains(&f64::from(passed)), "{passed} of at most {most} passed");
}

#[tokio::test]
async fn limits_set_by_hand_are_where_the_next_rating_starts() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    poster.rate("adopted", 5.0).await;
    stack.limits_become("adopted", "40", "20.2").await;
    let _: i64 =
        stack.redis.ask(&["HSET", "tb:adopted", "capacity", "2", "refill_rate", "1"]).await;
    poster.rate("adopted", 5.0).await;
    stack.limits_become("adopted", "2", "1.2").await;
    poster.rate("adopted", 5.0).await;
    stack.limits_become("adopted", "2", "1.4").await;

    // The same for an agent that nobody has rated yet.
    let _: i64 =
        stack.redis.ask(&["HSET", "tb:newcomer", "capacity", "6", "refill_rate", "3"]).await;
    poster.rate("newcomer", 4.0).await;
    stack.limits_become("newcomer", "6", "3.1").await;
}

#[tokio::test]
async fn the_names_that_dashboards_expect_are_on_the_metrics_page() {
    let (stack, mut poster) = (Stack::get().await, Stack::get().await.poster());
    poster.rate("measured", 5.0).await;
    stack.limits_become("measured", "40", "20.2").await;
    stack.call("measured", 2).await;
    // Gauges are set once a second, and a histogram a moment after the limits are written.
    for (part, name) in [
        (&stack.tuner, "rl_update_latency_count"),
        (&stack.tuner, "merit_rating_to_limit_seconds_count"),
        (&stack.gateway, "bucket_utilization_count"),
        (&stack.ingest, "rating_rate"),
    ] {
        merit_integration::eventually(name, LOOP_DEADLINE, || async {
            part.metric(name).await.is_some_and(|value| value > 0.0)
        })
        .await;
    }
    for part in [&stack.ingest, &stack.tuner, &stack.gateway] {
        for page in ["healthz", "readyz"] {
            let url = format!("{}/{page}", part.metrics());
            assert_eq!(Client::new().get(&url, None).await.unwrap().status, 200, "{url}");
        }
    }
}
