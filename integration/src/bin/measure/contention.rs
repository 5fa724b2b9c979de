//! Two processes contend for one agent: never more than the bucket gave, and nothing lost.
//!
//! A node writes one byte for every request that passed, before it asks again; a pipe keeps what a
//! killed process wrote. What was counted when the clock is read had passed before, so
//! `passed ≤ capacity + refill · t` must hold at every reading.

use std::{
    io::Write as _,
    process::Stdio,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use merit_integration::{Persistence, Redis};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    process::{Child, ChildStdin, Command},
    task::JoinSet,
};
use tower_merit::{
    AgentId, RedisStore, Spend as _,
    bucket::{BucketName, Limits, Tokens},
    store::{BucketRule, Charge, Decision, Take},
};

use crate::{
    Arguments, crowd,
    figures::{Table, number},
    wear::{Fit, Mode},
};

/// The subcommand that is one of the nodes.
pub(crate) const NODE: &str = "lease-node";

const MODES: [Mode; 2] = [Mode::Exact, Mode::Leased];

const AGENT: &str = "contended";
const REFILL: u32 = 1_000;

/// How much there is to contend for.
#[derive(Clone, Copy, Debug)]
struct Scene {
    what: &'static str,
    capacity: u32,
    /// Taken before the nodes begin. Neither the brim nor, if they are to take much ahead, the ground
    /// is reached, so that every token can be accounted for.
    drained: u32,
    /// Pause of a caller that passed.
    pause: Duration,
    killed: bool,
}

/// More is asked for than comes.
const SCARCE: Scene = Scene {
    what: "scarce; both stop",
    capacity: 500,
    drained: 500,
    pause: Duration::ZERO,
    killed: false,
};

/// Enough for everybody: nodes take as much ahead as they ever do.
const PLENTY: Scene = Scene {
    what: "plenty; both stop",
    capacity: 1_000_000,
    drained: 500_000,
    pause: Duration::from_millis(2),
    killed: false,
};

const SCENES: [Scene; 4] = [
    SCARCE,
    Scene { what: "scarce; one is killed with SIGKILL", killed: true, ..SCARCE },
    PLENTY,
    Scene { what: "plenty; one is killed with SIGKILL", killed: true, ..PLENTY },
];

/// Callers of one node, each with one request under way.
const CALLERS: u32 = 16;

/// Pause of a caller that was refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(2);

const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How long the scenes last that show what a death costs, before it and after it.
const KILLED_AFTER: Duration = Duration::from_secs(5);
const GOES_ON_FOR: Duration = Duration::from_secs(3);

pub(crate) async fn run(arguments: &mut Arguments) -> anyhow::Result<()> {
    let seconds = Duration::from_secs(arguments.or(60)?);
    let mut table = Table::new([
        "mode",
        "what happens",
        "passed",
        "capacity",
        "most above the refill at any time",
        "share of each node",
        "missing at the end, tokens",
    ]);
    for mode in MODES {
        for scene in SCENES {
            let seen = contend(mode, scene, seconds).await?;
            table.row([
                mode.to_string(),
                scene.what.to_owned(),
                seen.passed.to_string(),
                number(scene.capacity.into()),
                number(seen.most_above),
                seen.shares.map(|share| format!("{share:.3}")).join(", "),
                format!("{:.1}", seen.missing),
            ]);
        }
    }
    println!(
        "two processes, {CALLERS} callers each, one agent with {REFILL}/s; \
         {seconds:?} of scarcity\n\n{table}"
    );
    Ok(())
}

struct Seen {
    passed: u64,
    most_above: f64,
    shares: [f64; 2],
    /// Tokens that were neither passed on nor are in the bucket.
    missing: f64,
}

#[allow(clippy::cast_precision_loss, reason = "far below 2^52")]
async fn contend(mode: Mode, scene: Scene, seconds: Duration) -> anyhow::Result<Seen> {
    let Scene { capacity, drained, killed, .. } = scene;
    let redis = Redis::start(Persistence::SnapshotOnDemand).await;
    let mut nodes =
        [Node::start(mode, scene, &redis).await?, Node::start(mode, scene, &redis).await?];

    // The bucket's life begins with one large spend, at a known time; it never fills up again while
    // somebody asks, so no token is lost to the brim.
    let store = RedisStore::builder(&redis.url()).timeout(Duration::from_secs(2)).connect().await?;
    let before = Instant::now();
    let verdict = store.spend(charge(capacity, drained)?).await?;
    let after = Instant::now();
    ensure!(verdict.decision == Decision::Admitted, "the first spend is admitted");
    for node in &mut nodes {
        node.go().await?;
    }

    let mut most_above = f64::MIN;
    let mut look = |nodes: &[Node; 2]| -> anyhow::Result<()> {
        let passed: u64 = nodes.iter().map(Node::passed).sum();
        let elapsed = before.elapsed().as_secs_f64();
        let above = passed as f64 + f64::from(drained) - f64::from(REFILL) * elapsed;
        most_above = f64::max(most_above, above);
        ensure!(
            above <= f64::from(capacity) + f64::from(REFILL) * CLOCK.as_secs_f64(),
            "{passed} passed in {elapsed} s"
        );
        Ok(())
    };
    let lasts = if killed || !scene.pause.is_zero() { KILLED_AFTER } else { seconds };
    let until = Instant::now() + lasts;
    while Instant::now() < until {
        look(&nodes)?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
    let shares = {
        let [one, other] = [nodes[0].passed() as f64, nodes[1].passed() as f64];
        [one / (one + other), other / (one + other)]
    };
    if killed {
        nodes[1].kill().await?;
        let until = Instant::now() + GOES_ON_FOR;
        while Instant::now() < until {
            look(&nodes)?;
            tokio::time::sleep(LOOK_EVERY).await;
        }
    } else {
        nodes[1].stop().await?;
    }
    nodes[0].stop().await?;
    look(&nodes)?;

    let verdict = store.spend(charge(capacity, 0)?).await?;
    let elapsed = after.elapsed().as_secs_f64();
    let level = verdict.first.tokens.0 as f64 / 1e9;
    let passed: u64 = nodes.iter().map(Node::passed).sum();
    let given = f64::from(capacity - drained) + f64::from(REFILL) * elapsed;
    let missing = given - passed as f64 - level;
    Ok(Seen { passed, most_above, shares, missing })
}

/// By how much the server's clock and ours may differ: both count whole milliseconds.
const CLOCK: Duration = Duration::from_millis(2);

fn charge(capacity: u32, cost: u32) -> anyhow::Result<Charge> {
    let bucket = BucketRule {
        name: BucketName::new("default")?,
        is_default: true,
        limits: Limits::per_second(REFILL.into(), capacity.into())?,
        shadow: false,
    };
    let take = Take { bucket, cost: Tokens::new(cost.into())? };
    Ok(Charge { agent: AgentId::new(AGENT)?, takes: Arc::new([take]) })
}

struct Node {
    child: Child,
    orders: Option<ChildStdin>,
    passed: Arc<AtomicU64>,
    reader: Option<tokio::task::JoinHandle<std::io::Result<()>>>,
}

impl Node {
    /// Starts a node and waits until it is connected.
    async fn start(mode: Mode, scene: Scene, redis: &Redis) -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([NODE, mode.word(), &redis.url()])
            .args([scene.capacity.to_string(), scene.pause.as_millis().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = child.stdin.take().context("the node has an input")?;
        let mut output = child.stdout.take().context("the node has an output")?;
        ensure!(output.read_u8().await? == READY, "the node is not ready");
        let passed = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&passed);
        let reader = tokio::spawn(async move {
            let mut bytes = [0; 4096];
            loop {
                let count = output.read(&mut bytes).await?;
                if count == 0 {
                    return Ok(());
                }
                counter.fetch_add(count as u64, Ordering::Relaxed);
            }
        });
        Ok(Self { child, orders: Some(orders), passed, reader: Some(reader) })
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::Relaxed)
    }

    async fn go(&mut self) -> anyhow::Result<()> {
        let orders = self.orders.as_mut().context("the node runs")?;
        orders.write_all(b"go\n").await?;
        Ok(orders.flush().await?)
    }

    /// Closes its input, upon which it gives back what it holds and ends.
    async fn stop(&mut self) -> anyhow::Result<()> {
        drop(self.orders.take());
        let status = self.child.wait().await?;
        ensure!(status.success(), "a node ended with {status}");
        self.reader.take().context("stopped once")?.await??;
        Ok(())
    }

    async fn kill(&mut self) -> anyhow::Result<()> {
        self.child.kill().await?;
        self.reader.take().context("stopped once")?.await??;
        Ok(())
    }
}

const READY: u8 = b'r';
const PASSED: u8 = b'.';

/// One node: asks from the first line of its input until the input ends.
pub(crate) async fn node(arguments: &mut Arguments) -> anyhow::Result<()> {
    let mode: Mode = arguments.required("the mode")?;
    let redis: String = arguments.required("the URL of Redis")?;
    let capacity: u32 = arguments.required("the capacity")?;
    let pause = Duration::from_millis(arguments.required("the pause in milliseconds")?);
    let mut fit = Fit::unlimited(&redis);
    (fit.refill_rate, fit.capacity) = (REFILL.into(), capacity.into());
    let service = fit.service(mode).await?;
    let fields = Arc::new(crowd::fields(AGENT));
    say(READY)?;

    let mut orders = BufReader::new(tokio::io::stdin());
    orders.read_line(&mut String::new()).await?;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut callers = JoinSet::new();
    for _ in 0..CALLERS {
        let (mut service, fields, stopped) =
            (service.clone(), Arc::clone(&fields), stopped.clone());
        callers.spawn(async move {
            while !*stopped.borrow() {
                if service.ask(&fields).await.status().is_success() {
                    say(PASSED)?;
                    tokio::time::sleep(pause).await;
                } else {
                    tokio::time::sleep(REFUSED_PAUSE).await;
                }
            }
            anyhow::Ok(())
        });
    }
    orders.read_line(&mut String::new()).await?;
    stop.send(true)?;
    for ended in callers.join_all().await {
        ended?;
    }
    service.close().await?;
    Ok(())
}

/// Writes one byte past every buffer.
fn say(byte: u8) -> std::io::Result<()> {
    let mut output = std::io::stdout().lock();
    output.write_all(&[byte])?;
    output.flush()
}
