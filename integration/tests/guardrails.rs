//! What goes wrong with learning is noticed, told and survived: limits go on moving within their bounds.
//!
//! A reward beyond belief, a weight that is no number and a clock that jumps cannot be brought about from
//! outside; the tests of `policy` and of `sidecar/tests/market.rs` do.

use std::{fs, path::PathBuf, time::Duration};

use merit_integration::{Folder, Merit, Persistence, Redis, Settings, eventually, ratings::Poster};

const DEADLINE: Duration = Duration::from_secs(60);
const AGENTS: usize = 300;
/// Ratings of each agent: users that nobody knows yet weigh less than one.
const ROUNDS: usize = 5;

struct Learner {
    redis: Redis,
    settings: Settings,
    checkpoint: PathBuf,
    _folder: Folder,
}

impl Learner {
    /// A process that learns live, ten ticks a second, from a checkpoint that is not there yet.
    async fn new(name: &str) -> Self {
        let redis = Redis::start(Persistence::SnapshotOnDemand).await;
        let folder = Folder::new(name);
        let checkpoint = folder.path().join("model.chkpt");
        let mut settings = Settings::new(&redis.url());
        for (name, value) in [
            ("KIND", "ppo"),
            ("MODE", "live"),
            ("SERVICE_CAPACITY", "1000"),
            ("TICK", "100ms"),
            ("CHECKPOINT", checkpoint.to_str().expect("text")),
        ] {
            settings.environment.push((format!("MERIT__POLICY__{name}"), value.to_owned()));
        }
        Self { redis, settings, checkpoint, _folder: folder }
    }

    fn with(mut self, name: &str, value: &str) -> Self {
        self.settings.environment.push((format!("MERIT__POLICY__{name}"), value.to_owned()));
        self
    }

    async fn start(&self) -> Merit {
        Merit::start(self.settings.clone()).await
    }

    /// Rates every agent, and waits until their limits moved; all must be within their bounds.
    async fn moves(&self, merit: &Merit) {
        let agents: Vec<String> = (0..AGENTS).map(|n| format!("agent-{n}")).collect();
        Poster::new(&merit.ingest()).flow(&agents, ROUNDS * AGENTS).await;
        let rates = || async {
            let mut link = self.redis.connect().await;
            let mut pipe = redis::pipe();
            for agent in &agents {
                pipe.hget(format!("tb:{agent}"), "refill_rate");
            }
            let rates: Vec<Option<f64>> = pipe.query_async(&mut link).await.expect("it answers");
            rates
        };
        let before = rates().await;
        eventually("limits move", DEADLINE, || async {
            let now = rates().await;
            now.iter().all(Option::is_some) && now != before
        })
        .await;
        let now = rates().await;
        assert!(now.iter().flatten().all(|rate| (0.5..=40.0).contains(rate)), "{now:?}");
    }
}

async fn counted(merit: &Merit, series: &str) {
    eventually(series, DEADLINE, || async {
        merit.series(series).await.is_some_and(|count| count >= 1.0)
    })
    .await;
}

const REFUSED: &str = r#"merit_checkpoints_total{outcome="refused"}"#;
const LOADED: &str = r#"merit_checkpoints_total{outcome="loaded"}"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_learned_is_saved_and_a_damaged_checkpoint_stops_nothing() {
    let learner = Learner::new("checkpoints").await;
    fs::write(&learner.checkpoint, b"not a checkpoint").unwrap();
    let mut merit = learner.start().await;
    counted(&merit, REFUSED).await;
    learner.moves(&merit).await;
    counted(&merit, "merit_learning_updates_total").await;
    let version = merit.metric("merit_policy_version").await.expect("it has learned");
    merit.terminate().await;
    let saved = fs::read(&learner.checkpoint).expect("it was saved at the end");
    assert!(saved.len() > 100_000, "{} bytes", saved.len());

    // The next process goes on from there.
    let mut merit = learner.start().await;
    counted(&merit, LOADED).await;
    let loaded = merit.metric("merit_policy_version").await.expect("it was loaded");
    assert!(loaded >= version, "{loaded} after {version}");

    // Half a file, then one with a bit that fell over: refused, each time, while limits move.
    fs::write(&learner.checkpoint, &saved[..saved.len() / 2]).unwrap();
    counted(&merit, REFUSED).await;
    let mut fallen = saved.clone();
    let last = fallen.len() - 1;
    fallen[last] ^= 0x40;
    fs::write(&learner.checkpoint, &fallen).unwrap();
    eventually("the second refusal", DEADLINE, || async {
        merit.series(REFUSED).await.is_some_and(|count| count >= 2.0)
    })
    .await;
    learner.moves(&merit).await;
    assert!(merit.output().contains("checkpoint refused"), "{}", merit.output());

    // A sound one, put there while it runs, is taken up.
    let before = merit.series(LOADED).await.unwrap_or_default();
    fs::write(&learner.checkpoint, &saved).unwrap();
    eventually("the sound one is loaded", DEADLINE, || async {
        merit.series(LOADED).await.is_some_and(|count| count > before)
    })
    .await;
    merit.kill9();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_of_another_shape_is_refused_and_the_rest_goes_on() {
    let learner = Learner::new("shapes").await;
    let mut merit = learner.start().await;
    learner.moves(&merit).await;
    counted(&merit, "merit_learning_updates_total").await;
    merit.terminate().await;

    let learner = learner.with("PPO__HIDDEN", "32");
    let merit = learner.start().await;
    counted(&merit, REFUSED).await;
    learner.moves(&merit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_update_that_moves_the_policy_too_far_is_undone_and_told() {
    let learner = Learner::new("blow-up").await.with("PPO__KL_STOP", "0");
    let learner = learner.with("PPO__LEARNING_RATE", "0.5").with("PPO__KL_MAX", "0.01");
    let merit = learner.start().await;
    learner.moves(&merit).await;
    eventually("an update is refused", DEADLINE, || async {
        merit.metric("merit_learning_refused_total").await.is_some_and(|count| count >= 1.0)
    })
    .await;
    learner.moves(&merit).await;
    assert!(merit.output().contains("the policy learned nothing from a batch"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hangup_puts_another_policy_in_force_and_a_faulty_one_changes_nothing() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut merit = Merit::start(Settings::new(&redis.url())).await;
    let file = merit.folder().join("merit.toml");
    let text = fs::read_to_string(&file).unwrap();
    let rate = || async { redis.limits("a").await.expect("it was rated").1 };
    let mut poster = Poster::new(&merit.ingest());
    poster.rate("a", 5.0).await;
    eventually("the rating counts", DEADLINE, || async { redis.limits("a").await.is_some() }).await;
    assert_eq!(rate().await, "20.2");

    fs::write(&file, text.replace("alpha = 0.1", "alpha = -1")).unwrap();
    merit.hangup();
    eventually("the fault is told", DEADLINE, || async {
        merit.output().contains("the old policy stays in force")
    })
    .await;
    assert!(merit.output().contains("policy.alpha"), "{}", merit.output());
    poster.rate("a", 5.0).await;
    eventually("it counts as before", DEADLINE, || async { rate().await == "20.4" }).await;

    fs::write(&file, text.replace("alpha = 0.1", "alpha = 2")).unwrap();
    merit.hangup();
    eventually("the policy is in force", DEADLINE, || async {
        merit.output().contains("policy in force")
    })
    .await;
    poster.rate("a", 5.0).await;
    eventually("it counts more", DEADLINE, || async { rate().await == "24.4" }).await;
}
