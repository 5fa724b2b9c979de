//! Every acknowledged rating moves its agent's limits exactly once, whatever is killed meanwhile.
//!
//! The tests keep their own list of acknowledged ratings, folded independently ([`Fold`]); at the
//! end every agent's limits in Redis must equal that fold in every digit.
//!
//! `MERIT_KILLS` (3) says how often the tuner is killed.

use std::{
    hash::{BuildHasher as _, Hasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use merit_integration::{
    Bus, Kafka, Merit, Nats, Persistence, Redis, Role, Settings, eventually,
    fold::Fold,
    ratings::{BATCH, Poster, Rating},
};
use tokio::task::JoinSet;

const POSTERS: usize = 4;
const AGENTS_PER_POSTER: usize = 50;
/// How many of them begin at the highest rate: there a sum depends on the order of its parts.
const AT_THE_EDGE: usize = 10;
/// Ratings per second and poster while a flow lasts.
const PACE: u32 = 500;
/// How long the tuner may take to work off what is left on the topic.
const SETTLE: Duration = Duration::from_secs(180);

/// How long a tuner that says nothing keeps its partitions, on every bus as shipped.
const LEASES: Duration = Duration::from_secs(10);

/// Returns a random number below `bound`: the moments of the kills must differ between runs.
fn random_below(bound: u64) -> u64 {
    RandomState::new().build_hasher().finish() % bound
}

/// Ratings that flow until at least so many were acknowledged and the test has had enough.
struct Flow {
    posters: JoinSet<Poster>,
    acknowledged: Arc<AtomicUsize>,
    enough: Arc<AtomicBool>,
}

impl Flow {
    fn start(ingest: &str, at_least: usize) -> Self {
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let enough = Arc::new(AtomicBool::new(false));
        let mut posters = JoinSet::new();
        for number in 0..POSTERS {
            let (acknowledged, enough) = (acknowledged.clone(), enough.clone());
            let mut poster = Poster::new(ingest);
            let agents: Vec<String> =
                (0..AGENTS_PER_POSTER).map(|n| format!("agent-{number}-{n}")).collect();
            posters.spawn(async move {
                poster.lift(&agents[..AT_THE_EDGE]).await;
                let mut pace = tokio::time::interval(
                    Duration::from_secs(1) * u32::try_from(BATCH).expect("a small number") / PACE,
                );
                while !enough.load(Ordering::SeqCst)
                    || acknowledged.load(Ordering::SeqCst) < at_least
                {
                    pace.tick().await;
                    poster.flow(&agents, BATCH).await;
                    acknowledged.fetch_add(BATCH, Ordering::SeqCst);
                }
                poster
            });
        }
        Self { posters, acknowledged, enough }
    }

    fn acknowledged(&self) -> usize {
        self.acknowledged.load(Ordering::SeqCst)
    }

    /// Ends the flow and returns the fold of everything acknowledged, after one more rating of
    /// every agent: what was folded twice behind the last look shows in it.
    async fn end(self, redis: &Redis) {
        self.enough.store(true, Ordering::SeqCst);
        let mut posters = self.posters.join_all().await;
        let merged = |posters: &[Poster]| {
            let mut fold = Fold::default();
            posters.iter().for_each(|poster| fold.merge(poster.fold.clone()));
            fold
        };
        merged(&posters).settles_in(redis, SETTLE).await;
        for poster in &mut posters {
            let agents: Vec<String> = poster.fold.agents().map(str::to_owned).collect();
            assert_eq!(agents.len(), AGENTS_PER_POSTER);
            poster.flow(&agents, agents.len()).await;
        }
        merged(&posters).settles_in(redis, SETTLE).await;
    }
}

/// Waits until the tuner writes: some limits are other than they were.
async fn progress(redis: &Redis) {
    let look = || async {
        let mut link = redis.connect().await;
        let mut pipe = redis::pipe();
        for number in 0..POSTERS {
            for agent in 0..AGENTS_PER_POSTER {
                pipe.hget(format!("tb:agent-{number}-{agent}"), "refill_rate");
            }
        }
        let rates: Vec<Option<String>> = pipe.query_async(&mut link).await.expect("it answers");
        rates
    };
    let before = look().await;
    eventually("the tuner writes limits", SETTLE, || async { look().await != before }).await;
}

/// Starts ingest and tuner over Kafka.
async fn parts(topic: &str, redis: &Redis) -> (Settings, Merit, Merit) {
    let kafka = Kafka::shared().await;
    parts_over(Settings::new(&redis.url()).kafka(&kafka.brokers(), topic)).await
}

/// Starts ingest and tuner. With the replay window of 60 s as shipped these tests would end before
/// any progress is stored, and every tuner would begin at the start of the topic.
async fn parts_over(mut settings: Settings) -> (Settings, Merit, Merit) {
    settings.environment.push(("MERIT__TUNER__REPLAY_WINDOW".into(), "1s".into()));
    start(settings).await
}

/// Waits until the progress of every partition in Redis is past the start of its log.
async fn progress_is_stored(redis: &Redis) {
    eventually("progress is stored", SETTLE, || async {
        let stored: Vec<(String, u64)> = redis.ask(&["HGETALL", "merit:progress"]).await;
        stored.len() == 4 && stored.iter().all(|(_, offset)| *offset > 0)
    })
    .await;
}

async fn start(settings: Settings) -> (Settings, Merit, Merit) {
    let (ingest, tuner) = tokio::join!(
        Merit::start(settings.clone().role(Role::Ingest)),
        Merit::start(settings.clone().role(Role::Tuner)),
    );
    (settings, ingest, tuner)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_equal_the_fold_of_all_ratings_though_the_tuner_is_killed_again_and_again() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let parts = parts("killed.ratings", &redis).await;
    killed_again_and_again(&redis, parts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_over_redis_streams() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut settings = Settings::new(&redis.url());
    settings.bus = Bus::Redis { topic: "killed.ratings".into(), partitions: 4 };
    killed_again_and_again(&redis, parts_over(settings).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_over_nats() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let nats = Nats::start().await;
    let mut settings = Settings::new(&redis.url());
    settings.bus = Bus::Nats { url: nats.url(), topic: "killed.ratings".into(), partitions: 4 };
    killed_again_and_again(&redis, parts_over(settings).await).await;
}

async fn killed_again_and_again(redis: &Redis, parts: (Settings, Merit, Merit)) {
    let kills: u32 = std::env::var("MERIT_KILLS")
        .map_or(3, |text| text.parse().expect("MERIT_KILLS is a number"));
    let (_, ingest, mut tuner) = parts;
    let flow = Flow::start(&ingest.ingest(), 50_000);
    for kill in 1..=kills {
        progress(redis).await;
        tokio::time::sleep(Duration::from_millis(random_below(1_500))).await;
        tuner.kill9();
        println!("kill {kill} of {kills} after {} ratings", flow.acknowledged());
        tuner.restart().await;
    }
    progress(redis).await;
    flow.end(redis).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_equal_the_fold_of_all_ratings_though_partitions_move_between_two_tuners() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let parts = parts("moved.ratings", &redis).await;
    moved_between_two_tuners(&redis, parts).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_of_redis_streams_move_and_a_frozen_tuner_wakes_up_without_them() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut settings = Settings::new(&redis.url());
    settings.bus = Bus::Redis { topic: "moved.ratings".into(), partitions: 4 };
    moved_between_two_tuners(&redis, parts_over(settings).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_of_nats_move_and_a_frozen_tuner_wakes_up_without_them() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let nats = Nats::start().await;
    let mut settings = Settings::new(&redis.url());
    settings.bus = Bus::Nats { url: nats.url(), topic: "moved.ratings".into(), partitions: 4 };
    moved_between_two_tuners(&redis, parts_over(settings).await).await;
}

/// A second tuner joins, does its part and leaves as it should; a third leaves as it should not; a fourth takes
/// over from a first that stands still for longer than its leases, and then goes on.
async fn moved_between_two_tuners(redis: &Redis, parts: (Settings, Merit, Merit)) {
    let (settings, ingest, mut tuner) = parts;
    let flow = Flow::start(&ingest.ingest(), 20_000);
    progress(redis).await;
    for graceful in [true, false] {
        let mut second = takes_part(&settings).await;
        if graceful {
            second.terminate().await;
        } else {
            second.kill9();
        }
        progress(redis).await;
    }
    let fourth = takes_part(&settings).await;
    tuner.freeze();
    tokio::time::sleep(LEASES + Duration::from_secs(3)).await;
    progress(redis).await;
    tuner.thaw();
    progress(redis).await;
    flow.end(redis).await;
    drop((tuner, fourth));
}

/// Starts another tuner and returns when it has written limits.
async fn takes_part(settings: &Settings) -> Merit {
    let tuner = Merit::start(settings.clone().role(Role::Tuner)).await;
    eventually("another tuner writes limits", SETTLE, || async {
        tuner.metric("rl_update_latency_count").await.is_some_and(|count| count >= 1.0)
    })
    .await;
    tuner
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_equal_the_fold_of_all_ratings_though_redis_loses_its_last_seconds() {
    let mut redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (_, ingest, tuner) = parts("forgotten.ratings", &redis).await;
    let flow = Flow::start(&ingest.ingest(), 20_000);
    // The copy that comes back must know how far it got, and not be replayed from the start.
    progress_is_stored(&redis).await;
    progress(&redis).await;
    redis.snapshot().await;

    // What is lost: two seconds of the flow, and agents whose every rating falls into them.
    let mut silent = Poster::new(&ingest.ingest());
    let agents: Vec<String> = (0..20).map(|n| format!("silent-{n}")).collect();
    let (since, lost) = (Instant::now(), flow.acknowledged());
    silent.flow(&agents, 200).await;
    silent.fold.settles_in(&redis, SETTLE).await;
    eventually("two seconds of ratings were written", SETTLE, || async {
        since.elapsed() > Duration::from_secs(2) && flow.acknowledged() > lost + 1_000
    })
    .await;
    redis.kill9();
    redis.restart().await;
    assert!(redis.limits("silent-0").await.is_none(), "the server lost nothing");

    silent.fold.settles_in(&redis, SETTLE).await;
    progress(&redis).await;
    flow.end(&redis).await;
    silent.fold.settles_in(&redis, SETTLE).await;
    drop(tuner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_equal_the_fold_of_all_ratings_though_redis_is_emptied_under_the_loop() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let (_, ingest, tuner) = parts("emptied.ratings", &redis).await;
    let flow = Flow::start(&ingest.ingest(), 20_000);
    progress_is_stored(&redis).await;
    progress(&redis).await;
    // Nothing of the topic was compacted yet, so the rebuilt limits are exact.
    let _: String = redis.ask(&["FLUSHALL"]).await;
    progress(&redis).await;
    flow.end(&redis).await;
    let rewinds = tuner.metric("merit_tuner_rewinds_total").await;
    assert!(rewinds.is_some_and(|rewinds| rewinds >= 1.0), "{rewinds:?}");
}

/// Ratings fill the memory of a server that holds the bus and the limits: the tuner works them off and makes room,
/// though the server refuses what needs memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_ratings_filled_gets_room_again_by_itself() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut settings = Settings::new(&redis.url());
    settings.bus = Bus::Redis { topic: "full.ratings".into(), partitions: 1 };
    let (_, ingest, mut tuner) = parts_over(settings).await;
    let mut poster = Poster::new(&ingest.ingest());
    let agents: Vec<String> = (0..20).map(|n| format!("agent-{n}")).collect();
    poster.flow(&agents, 20).await;
    poster.fold.settles_in(&redis, SETTLE).await;
    tuner.freeze();
    poster.flow(&agents, 3_000).await;
    let held: u64 = redis.ask(&["XLEN", "full.ratings:{0}"]).await;
    assert!(held >= 3_000, "{held}");
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "1"]).await;
    let refused = poster.try_rate(&Rating::new("agent-1", 5.0)).await.expect("ingest answers");
    assert_eq!(refused.status, 503, "{}", refused.text());
    tuner.thaw();
    poster.fold.settles_in(&redis, SETTLE).await;
    eventually("what was folded is removed", SETTLE, || async {
        redis.ask::<u64>(&["XLEN", "full.ratings:{0}"]).await < 500
    })
    .await;
    let _: String = redis.ask(&["CONFIG", "SET", "maxmemory", "0"]).await;
    poster.flow(&agents, 20).await;
    poster.fold.settles_in(&redis, SETTLE).await;
}
