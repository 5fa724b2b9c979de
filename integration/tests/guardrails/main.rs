//! What goes wrong with learning, with the world that rewards come from, or with the clock is noticed, told and
//! survived: limits go on moving within their bounds, a step at a time.

mod forged;

use std::{fs, path::PathBuf, time::Duration};

use merit_integration::{
    Folder, Merit, Persistence, Redis, Settings, WallClock, eventually,
    ratings::{BATCH, Poster, Rating},
    until,
};
use tokio::time::Instant;

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

    /// The same with a tick that is long beside what a test does within it.
    fn slow(self) -> Self {
        self.with("TICK", "10s")
    }

    async fn start(&self) -> Merit {
        Merit::start(self.settings.clone()).await
    }

    async fn rate_of(&self, agent: &str) -> f64 {
        let (_, rate) = self.redis.limits(agent).await.expect("it was rated");
        rate.parse().expect("a rate is a number")
    }

    /// When `agent` was last rated, as its estimate has it: Unix seconds.
    async fn voted_s(&self, agent: &str) -> u64 {
        let key = format!("merit:{{tb:{agent}}}");
        let kept: String = self.redis.ask(&["HGET", &key, "state"]).await;
        let kept: serde_json::Value = serde_json::from_str(&kept).expect("a state is JSON");
        let voted_ms = &kept["state"]["standing"]["estimator"]["voted_ms"];
        voted_ms.as_u64().expect("it was rated") / 1_000
    }

    /// Rates `agent` `count` times and waits until all of that is in force. Returns its rate.
    async fn rated(&self, merit: &Merit, agent: &str, score: f64, count: usize) -> f64 {
        let mut poster = Poster::new(&merit.ingest());
        let before = merit.series(COUNTED).await.unwrap_or_default();
        let ratings: Vec<Rating> = (0..count).map(|_| Rating::new(agent, score)).collect();
        for batch in ratings.chunks(BATCH) {
            poster.rate_all(batch).await;
        }
        let all = before + f64::from(u32::try_from(count).expect("a small number"));
        eventually("the ratings count", DEADLINE, || async {
            merit.series(COUNTED).await.is_some_and(|counted| counted >= all)
        })
        .await;
        self.rate_of(agent).await
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

/// The least rate after `steps` steps down from `rate`: a quarter each, and 0.05 on top.
fn after_steps(rate: f64, steps: u32) -> f64 {
    (0..steps).fold(rate, |rate, _| rate * 0.75 - 0.05).max(0.5)
}

/// How many windows can have opened for one agent since `since`, with ticks of 10 s: those that the clock counted,
/// one that was about to open, and one for a rating that is ahead of the ticks.
fn windows_since(since: Instant) -> u32 {
    u32::try_from(since.elapsed().as_secs() / 10).expect("a short test") + 2
}

/// The field of a bucket that was asked for `admitted` tokens so far, and is empty.
fn held(admitted: f64) -> Vec<u8> {
    [0.0, 0.0, admitted, 0.0, 0.0, 0.0].map(f64::to_le_bytes).concat()
}

/// The return that a line of the log says is beyond belief.
fn told_return(line: &str) -> Option<f64> {
    let (_, rest) = line.split_once("a return of ")?;
    rest.split(' ').next()?.parse().ok()
}

const COUNTED: &str = r#"merit_ratings_folded_total{outcome="counted"}"#;
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_with_a_weight_that_is_no_number_is_refused_and_the_rest_goes_on() {
    let learner = Learner::new("nan").await;
    let mut merit = learner.start().await;
    learner.moves(&merit).await;
    counted(&merit, "merit_learning_updates_total").await;
    merit.terminate().await;
    let saved = fs::read(&learner.checkpoint).expect("it was saved at the end");

    // One that does not learn writes no checkpoints of its own in between.
    let learner = learner.with("PPO__LEARN", "false");
    let merit = learner.start().await;
    counted(&merit, LOADED).await;
    // Whole, of the right shape and with the right checksum: another weight is taken up, ...
    let loaded = merit.series(LOADED).await.unwrap_or_default();
    fs::write(&learner.checkpoint, forged::with_weight(&saved, 0.125)).unwrap();
    eventually("another weight is loaded", DEADLINE, || async {
        merit.series(LOADED).await.is_some_and(|count| count > loaded)
    })
    .await;
    assert_eq!(merit.series(REFUSED).await, None, "{}", merit.output());
    // ... one that is no number is not.
    for weight in [f32::NAN, f32::INFINITY] {
        let refused = merit.series(REFUSED).await.unwrap_or_default();
        fs::write(&learner.checkpoint, forged::with_weight(&saved, weight)).unwrap();
        eventually("it is refused", DEADLINE, || async {
            merit.series(REFUSED).await.is_some_and(|count| count > refused)
        })
        .await;
        learner.moves(&merit).await;
    }
    assert!(merit.output().contains("holds a number that is not finite"), "{}", merit.output());
    // What is in force is sound: the base law never had to stand in for it.
    assert_eq!(merit.series(r#"merit_policy_held_total{reason="action"}"#).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reward_beyond_belief_teaches_nothing_and_learning_goes_on_without_it() {
    let learner = Learner::new("spike").await;
    let merit = learner.start().await;
    learner.moves(&merit).await;
    counted(&merit, "merit_learning_updates_total").await;
    // The counts of a bucket are what an agent was served, and so what its policy is rewarded for: of one that
    // everybody likes, and whose counts run away by 10¹² tokens at a time, they make a million.
    learner.rated(&merit, "agent-0", 5.0, 50).await;
    let mut link = learner.redis.connect().await;
    let mut admitted = 0.0;
    until("a batch is refused for its rewards", DEADLINE, || {
        admitted += 1e12;
        let (mut link, output) = (link.clone(), merit.output());
        async move {
            let mut set = redis::cmd("HSET");
            set.arg("tb:agent-0").arg("held").arg(held(admitted));
            let _: i64 = set.query_async(&mut link).await.expect("it answers");
            output.lines().filter_map(told_return).find(|found| found.abs() > 1e6)
        }
    })
    .await;
    let refused = merit.series(r#"merit_learning_refused_total{reason="reward"}"#).await;
    assert!(refused.is_some_and(|count| count >= 1.0));
    // It stands still again, and its counts are believed again.
    let _: i64 = redis::cmd("HDEL")
        .arg("tb:agent-0")
        .arg("held")
        .query_async(&mut link)
        .await
        .expect("it answers");
    learner.moves(&merit).await;
    let updates = merit.metric("merit_learning_updates_total").await.unwrap_or_default();
    eventually("learning goes on", DEADLINE, || async {
        merit.metric("merit_learning_updates_total").await.is_some_and(|now| now > updates)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_tells_of_a_billion_requests_a_second_moves_limits_by_steps_until_it_is_silent()
{
    let learner = Learner::new("rogue").await;
    let merit = learner.start().await;
    let began = Instant::now();
    let mut before = (learner.rated(&merit, "a", 5.0, 30).await, began);
    let mut link = learner.redis.connect().await;
    // The agent is served some tokens at each turn, and a node that nobody knows tells of ten millions.
    for turn in 1_u32.. {
        let mut pipe = redis::pipe();
        pipe.cmd("ZADD").arg("merit:nodes").arg(4e9).arg("rogue").ignore();
        pipe.cmd("SET")
            .arg("merit:use:rogue")
            .arg(u64::from(turn) * 10_000_000)
            .arg("PX")
            .arg(3_000)
            .ignore();
        pipe.cmd("HSET").arg("tb:a").arg("held").arg(held(f64::from(turn))).ignore();
        let told: Result<(), _> = pipe.query_async(&mut link).await;
        told.expect("it answers");
        let (now, at) = (learner.rate_of("a").await, Instant::now());
        let ticks = u32::try_from((at - before.1).as_millis() / 100).expect("a short test") + 2;
        assert!(now >= after_steps(before.0, ticks), "{now} after {before:?}");
        assert!((0.5..=40.0).contains(&now), "{now}");
        before = (now, at);
        if now < 0.51 && merit.metric("merit_price").await.is_some_and(|price| price > 1.9) {
            break;
        }
        assert!(began.elapsed() < DEADLINE, "{now} at last: {}", merit.output());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let use_share = merit.metric("merit_use_share").await.expect("it is told");
    assert!(use_share > 100.0, "{use_share}");
    // Its key expires, and what it said with it.
    eventually("the price comes back", DEADLINE, || async {
        merit.metric("merit_price").await == Some(0.0)
    })
    .await;
    let now = learner.rated(&merit, "a", 5.0, 30).await;
    assert!((0.5..=40.0).contains(&now), "{now}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_ratings_of_one_in_a_second_move_a_limit_by_one_step() {
    let learner = Learner::new("bombed").await.slow();
    let merit = learner.start().await;
    let before = learner.rated(&merit, "victim", 5.0, 200).await;
    let began = Instant::now();
    let after = learner.rated(&merit, "victim", 1.0, 1_000).await;
    let least = after_steps(before, windows_since(began));
    assert!(after < before && after >= least, "{before} to {after}, at least {least}");
    counted(&merit, r#"merit_drift_total{direction="fall"}"#).await;
    assert!(merit.output().contains("an agent's quality changed"), "{}", merit.output());
    // Twice as many do no more within the tick, and somebody else's limit moves as before.
    let later = learner.rated(&merit, "victim", 1.0, 1_000).await;
    assert!(later >= after_steps(before, windows_since(began)), "{before} to {later}");
    learner.moves(&merit).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_clock_that_jumps_an_hour_ahead_and_back_moves_a_limit_by_a_step() {
    let clock = WallClock::new();
    let mut learner = Learner::new("clock").await.slow();
    learner.settings.environment.extend(clock.environment());
    let merit = learner.start().await;
    let begun_s = merit_integration::unix_time().as_secs();
    let before = learner.rated(&merit, "a", 5.0, 200).await;
    assert!(learner.voted_s("a").await.abs_diff(begun_s) < 600, "the clock is right at first");

    for (ahead, direction) in [(3_600, "forward"), (0, "back")] {
        let (began, rate) = (Instant::now(), learner.rate_of("a").await);
        clock.set_ahead(Duration::from_secs(ahead));
        let after = learner.rated(&merit, "a", 1.0, 100).await;
        let least = after_steps(rate, windows_since(began));
        assert!(after < before && after >= least, "{rate} to {after}, at least {least}");
        // The ratings did come at the other time.
        let voted_s = learner.voted_s("a").await;
        assert!(voted_s.abs_diff(begun_s + ahead) < 600, "{direction}: {voted_s}");
        counted(&merit, &format!(r#"merit_clock_jumps_total{{direction="{direction}"}}"#)).await;
        learner.moves(&merit).await;
    }
    assert!(merit.output().contains("the system clock jumped"), "{}", merit.output());
}
