//! The feed bridge, `merit run --role feed`, against a feed on Node's `ws` that loses its connections and
//! an endpoint that fails at random.
//!
//! `MERIT_FEED_RATINGS` and `MERIT_FEED_KILLS` make it longer (`integration/load feed`).

mod endpoint;

use std::{path::Path, process::Command, time::Duration};

use merit_integration::{
    FeedServer, Folder, Merit, Persistence, Redis, Role, Sent, Settings, client::Client,
    eventually, fold::Fold, until,
};
use serde_json::{Value, json};

use self::endpoint::{API_KEY, Endpoint, Faults};

/// The field that the feed asks for.
const FEED_KEY: &str = "the-key-of-the-feed";
const SETTLE: Duration = Duration::from_secs(60);
/// Posts at a time, as shipped.
const IN_FLIGHT: usize = 4;

/// At random, some posts fail; in a few the rating counts nevertheless.
const FAULTS: Faults = Faults { failed: 20, unsure: 10, busy: 1 };
const NO_FAULTS: Faults = Faults { failed: 0, unsure: 0, busy: 0 };

fn number(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable);
    text.map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

fn ratings() -> u64 {
    number("MERIT_FEED_RATINGS", 10_000)
}

/// How long all ratings may take: no bridge is this slow.
fn deadline() -> Duration {
    Duration::from_secs(120 + ratings() / 100)
}

/// Returns the settings of a bridge; `table` is the rest of `[feed]`.
fn bridge(feed: &FeedServer, scheme: &str, table: &str) -> Settings {
    let mut settings = Settings::new("redis://127.0.0.1:1").role(Role::Feed);
    settings.tables = format!(
        "[feed]\nurl = \"{}\"\nheaders = {{ \"X-Feed-Key\" = {{ env = \"FEED_KEY\" }} }}\n{table}",
        feed.url(scheme)
    );
    settings.environment.push(("FEED_KEY".into(), FEED_KEY.into()));
    settings.environment.push(("OPENCLAW_API_KEY".into(), API_KEY.into()));
    settings
}

fn forward_to(endpoint: &Endpoint) -> String {
    format!("forward_to = \"{}\"\napi_key_env = \"OPENCLAW_API_KEY\"\n", endpoint.url())
}

/// Returns what the ratings must have made of the limits, each counted once.
fn fold(sent: &[Sent]) -> Fold {
    let mut fold = Fold::default();
    sent.iter().for_each(|rating| fold.rate(&rating.agent, rating.score));
    fold
}

async fn all_arrive(endpoint: &Endpoint, count: u64) {
    eventually("every rating arrives", deadline(), || async {
        endpoint.distinct() as u64 == count
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_rating_arrives_unchanged_in_order_and_counts_once_though_all_around_it_fails() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let merit = Merit::start(Settings::new(&redis.url())).await;
    let endpoint = Endpoint::start(Some(merit.ingest()), FAULTS).await;
    let feed = FeedServer::start(&json!({
        "ratings": ratings(), "rate": 1500, "drop_every_ms": 1500, "key": FEED_KEY,
    }))
    .await;
    let mut bridge = Merit::start(bridge(&feed, "ws", &forward_to(&endpoint))).await;
    all_arrive(&endpoint, ratings()).await;

    let sent = endpoint.has_all_of(&feed).await;
    fold(&sent).settles_in(&redis, SETTLE).await;
    // It was not easy.
    let (drops, connects) = (feed.count("drops").await, feed.count("connects").await);
    println!(
        "{drops} drops, {connects} connects, {} times 500, {} times 429, {} repeats, {} posts in a pause",
        endpoint.answered(500),
        endpoint.answered(429),
        endpoint.repeats(),
        endpoint.came_in_a_pause()
    );
    assert!(drops >= 3 && endpoint.answered(500) > 100 && endpoint.answered(429) >= 2);
    assert!(endpoint.repeats() > 10, "some ratings were posted twice and counted once");
    assert!(feed.count("pongs").await >= 3, "pings are answered");
    // Some were on their way when the bridge heard of it; without a pause it were a thousand.
    assert!(endpoint.came_in_a_pause() < 4 * IN_FLIGHT, "a 429 holds back every post");
    // The bridge knows it too.
    let metric = async |name: &str| bridge.metric(name).await.unwrap_or_default();
    assert_eq!(metric("merit_feed_connects_total").await, 1.0);
    assert_eq!(metric("merit_feed_reconnects_total").await, connects as f64 - 1.0);
    assert_eq!(metric("merit_feed_received_total").await, ratings() as f64);
    eventually("the last answer is read", SETTLE, || async {
        bridge.metric("merit_feed_forwarded_total").await == Some(ratings() as f64)
    })
    .await;
    eventually("nothing waits", SETTLE, || async {
        bridge.metric("merit_feed_queue_depth").await == Some(0.0)
    })
    .await;
    assert_eq!(metric("merit_feed_refused_total").await, 0.0);
    assert_eq!(metric("merit_feed_pauses_total").await, endpoint.answered(429) as f64);
    assert!(metric("merit_feed_errors_total").await > 0.0);
    bridge.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_bridge_loses_nothing_of_what_it_had_taken() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let merit = Merit::start(Settings::new(&redis.url())).await;
    let endpoint = Endpoint::start(Some(merit.ingest()), FAULTS).await;
    // It sends again what came after the id that is named, and nothing else: an id that the bridge
    // names and whose predecessors it had lost would leave a gap.
    let feed = FeedServer::start(&json!({
        "ratings": ratings(), "rate": 1500, "drop_every_ms": 2500, "resume": true, "key": FEED_KEY,
    }))
    .await;
    let table = forward_to(&endpoint) + "spool_dir = \"spool\"\nresume_query = \"after\"\n";
    let mut bridge = Merit::start(bridge(&feed, "ws", &table)).await;
    let kills = number("MERIT_FEED_KILLS", 3);
    for kill in 1..=kills {
        let due = ratings() * kill / (kills + 2);
        eventually("enough arrives", deadline(), || async { endpoint.distinct() as u64 >= due })
            .await;
        bridge.kill9();
        println!("kill {kill} of {kills} after {} ratings", endpoint.distinct());
        bridge.restart().await;
    }
    all_arrive(&endpoint, ratings()).await;
    let sent = endpoint.has_all_of(&feed).await;
    fold(&sent).settles_in(&redis, SETTLE).await;
    println!("{} repeats", endpoint.repeats());
    // What is delivered is noted: after a stop in order nothing is delivered again.
    bridge.terminate().await;
    let taken = endpoint.answered(202);
    bridge.restart().await;
    assert_eq!(bridge.metric("merit_feed_queue_depth").await.unwrap_or_default(), 0.0);
    bridge.terminate().await;
    assert_eq!(endpoint.answered(202), taken);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ratings_that_wait_in_the_spool_outlive_the_feed_and_the_bridge() {
    let endpoint = Endpoint::start(None, NO_FAULTS).await;
    endpoint.open(false);
    let feed =
        FeedServer::start(&json!({ "ratings": 2000, "rate": 10_000, "key": FEED_KEY })).await;
    let table = forward_to(&endpoint) + "spool_dir = \"spool\"\n";
    let mut bridge = Merit::start(bridge(&feed, "ws", &table)).await;
    // None is delivered, all are taken; the feed never sends them again.
    eventually("all are taken", SETTLE, || async {
        bridge.metric("merit_feed_received_total").await == Some(2000.0)
    })
    .await;
    bridge.kill9();
    bridge.restart().await;
    assert_eq!(bridge.metric("merit_feed_queue_depth").await, Some(2000.0));
    endpoint.open(true);
    eventually("every rating arrives", SETTLE, || async { endpoint.distinct() == 2000 }).await;
    endpoint.has_all_of(&feed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_published_onto_merits_own_bus_counts_once_and_in_order() {
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let feed = FeedServer::start(&json!({
        "ratings": 3000, "rate": 1500, "drop_every_ms": 500, "key": FEED_KEY,
    }))
    .await;
    let mut settings = bridge(&feed, "ws", "publish = true\nname = \"moltbook\"\n");
    settings.role = Role::All;
    settings.redis = redis.url();
    let mut merit = Merit::start(settings).await;
    fold(&feed.ratings().await).settles_in(&redis, SETTLE).await;
    assert!(feed.count("drops").await >= 2);
    merit.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_told_the_feed_waits_and_nothing_is_lost() {
    // A disk of 256 KiB of its own, for the bridge alone. Needs no rights where user namespaces are
    // allowed, and else root.
    let mount = "mkdir spool && mount -t tmpfs -o size=256k none spool && \
                 exec setpriv --pdeathsig KILL \"$@\"";
    let through = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount, "sh"];
    let endpoint = Endpoint::start(None, NO_FAULTS).await;
    endpoint.open(false);
    let feed =
        FeedServer::start(&json!({ "ratings": 8000, "rate": 20_000, "key": FEED_KEY })).await;
    let table = forward_to(&endpoint) + "spool_dir = \"spool\"\n";
    let mut settings = bridge(&feed, "ws", &table);
    settings.through = through.map(str::to_owned).to_vec();
    let mut bridge = Merit::launch(settings);

    let told = unready(&bridge).await;
    assert!(told.contains("spool") && told.contains("No space left on device"), "{told}");
    assert!(bridge.output().contains("spool takes no ratings"), "{}", bridge.output());
    let taken = bridge.metric("merit_feed_received_total").await.unwrap_or_default();
    assert!((500.0..8000.0).contains(&taken), "{taken}");
    // What was delivered makes room, without a restart.
    endpoint.open(true);
    eventually("every rating arrives", SETTLE, || async { endpoint.distinct() == 8000 }).await;
    endpoint.has_all_of(&feed).await;
    bridge.ready().await;
    bridge.terminate().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_that_fail_half_way_and_a_kill_lose_nothing() {
    // No file may be longer than 64 KiB: every file of the spool ends with half a record that could not
    // be written. Needs no rights.
    let limit = "trap '' XFSZ; ulimit -f 128; exec \"$@\"";
    let endpoint = Endpoint::start(None, NO_FAULTS).await;
    endpoint.open(false);
    let feed = FeedServer::start(&json!({ "ratings": 3000, "rate": 5000, "key": FEED_KEY })).await;
    let table = forward_to(&endpoint) + "spool_dir = \"spool\"\n";
    let mut settings = bridge(&feed, "ws", &table);
    settings.through = ["sh", "-c", limit, "sh"].map(str::to_owned).to_vec();
    let mut bridge = Merit::start(settings).await;
    eventually("all are taken", SETTLE, || async {
        bridge.metric("merit_feed_received_total").await == Some(3000.0)
    })
    .await;
    let failed = bridge.series("merit_feed_errors_total{kind=\"spool\"}").await;
    assert!(failed.is_some_and(|failed| failed >= 3.0), "{failed:?}");
    bridge.kill9();
    bridge.restart().await;
    endpoint.open(true);
    eventually("every rating arrives", SETTLE, || async { endpoint.distinct() == 3000 }).await;
    endpoint.has_all_of(&feed).await;
}

/// Waits until the process is not ready by the feed's fault, and returns what it says.
async fn unready(bridge: &Merit) -> String {
    let url = format!("{}/readyz", bridge.metrics());
    until("the bridge says what is wrong", SETTLE, || async {
        let answer = Client::new().get(&url, None).await.ok()?;
        (answer.status == 503).then_some(())?;
        let parts = answer.json()["parts"].as_array()?.clone();
        let feed = parts.into_iter().find(|part: &Value| part["name"] == "feed")?;
        let told = feed["error"].as_str()?.to_owned();
        (!told.contains("not connected yet")).then_some(told)
    })
    .await
}

/// Makes a certificate for `localhost` that vouches for itself; returns it and its key.
fn certificate(folder: &Folder, name: &str) -> [String; 2] {
    let path = |ending: &str| folder.path().join(format!("{name}.{ending}"));
    let (certificate, key) = (path("pem"), path("key"));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost", "-addext", "basicConstraints=CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .expect("openssl is there");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let text = |path: &Path| path.to_str().expect("the folder is text").to_owned();
    [text(&certificate), text(&key)]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_feed_behind_tls_must_be_vouched_for_and_wrong_credentials_are_told() {
    let folder = Folder::new("certificates");
    let [own, key] = certificate(&folder, "own");
    let [other, _] = certificate(&folder, "other");
    let endpoint = Endpoint::start(None, NO_FAULTS).await;
    let feed = FeedServer::start(&json!({
        "ratings": 100, "rate": 10_000, "key": FEED_KEY, "tls": {"cert": own, "key": key},
    }))
    .await;
    let table = |ca: &str| forward_to(&endpoint) + &format!("ca_file = \"{ca}\"\n");

    let stranger = Merit::launch(bridge(&feed, "wss", &table(&other)));
    let mut intruder = bridge(&feed, "wss", &table(&own));
    intruder.environment.retain(|(name, _)| name != "FEED_KEY");
    intruder.environment.push(("FEED_KEY".into(), "hunter2-hunter2".into()));
    let intruder = Merit::launch(intruder);
    let told = unready(&stranger).await;
    assert!(told.contains("certificate"), "{told}");
    let told = unready(&intruder).await;
    assert!(told.contains("401") && told.contains("feed.headers"), "{told}");
    assert!(!intruder.output().contains("hunter2"), "{}", intruder.output());

    let _bridge = Merit::start(bridge(&feed, "wss", &table(&own))).await;
    eventually("every rating arrives", SETTLE, || async { endpoint.distinct() == 100 }).await;
}
