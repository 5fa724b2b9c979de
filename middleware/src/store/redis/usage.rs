//! Use of capacity: what this node took from default buckets, told to the tuners by way of Redis.
//!
//! 1. Every answer adds what it took: charges, loans and what settlements took more, less what came
//!    back. That is one relaxed addition, and all that a decision pays for this.
//! 2. What is told is the most that the sum ever was, so it never goes back: tokens that came back are
//!    made up for by the next ones that go. It is too high by what came back since at most.
//! 3. A task tells it a few times a second while the sum changes, as `merit:use:<node>`, which expires.
//!    Every so often it also puts the node on the list `merit:nodes`, from which the nodes that were
//!    silent for a minute are dropped. A node that takes nothing tells nothing.
//! 4. The task ends with the store, and what was taken in its last moment may stay untold. A call
//!    that fails is made up for by the next one.

use std::{
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc, Weak,
        atomic::{AtomicI64, Ordering},
    },
    time::Duration,
};

use redis::{Cmd, RedisError};
use tokio::{
    sync::Mutex,
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tracing::{debug, warn};

use super::{CONTROL_TIMEOUT, link::Link};
use crate::store::USE_TTL;

/// The list of nodes: a sorted set, by the server's time in seconds at which they said so.
pub(super) const NODES_KEY: &str = "merit:nodes";

/// How often use is told while it changes.
const TELL_EVERY: Duration = Duration::from_millis(250);

/// How often it is told at least while there is traffic, and the node put on the list: well within
/// [`USE_TTL`].
const RENEW_EVERY: Duration = Duration::from_secs(3);

/// The most nodes on the list: beyond it, those that said nothing for longest are dropped.
const NODES_MAX: usize = 4096;

/// KEYS the list; ARGV the node, the most nodes.
const LIST_LUA: &str = "\
local now = redis.call('TIME')[1]
redis.call('ZADD', KEYS[1], now, ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.0f', now - 60))
redis.call('ZREMRANGEBYRANK', KEYS[1], 0, -1 - ARGV[2])
redis.call('PEXPIRE', KEYS[1], 60000)
return 1";

/// Returns the key of a node's use.
pub(super) fn key(node: &str) -> String {
    format!("merit:use:{node}")
}

/// What one node took.
#[derive(Debug)]
pub(super) struct Usage {
    node: String,
    net: AtomicI64,
    teller: Mutex<Teller>,
}

impl Usage {
    /// Begins to tell in the background.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn begin(link: Link) -> Arc<Self> {
        // Seeded by the operating system, once per thread, and different at each call.
        let node = format!("{:016x}", RandomState::new().hash_one(std::process::id()));
        let teller = Mutex::new(Teller::new(node.clone()));
        let usage = Arc::new(Self { node, net: AtomicI64::new(0), teller });
        tokio::spawn(tell(Arc::downgrade(&usage), link));
        usage
    }

    pub(super) fn node(&self) -> &str {
        &self.node
    }

    /// Adds what an answer took.
    pub(super) fn count(&self, taken: i64) {
        if taken != 0 {
            self.net.fetch_add(taken, Ordering::Relaxed);
        }
    }

    /// Tells what is to be told.
    pub(super) async fn tell(&self, link: &Link) -> Result<(), RedisError> {
        let mut teller = self.teller.lock().await;
        let now = Instant::now();
        let Say { count, list } = teller.look(self.net.load(Ordering::Relaxed), now);
        if list {
            call(link, &teller.list()).await?;
            teller.listed = Some(now);
        }
        if count {
            call(link, &teller.count()).await?;
            teller.told = Some((teller.most, now));
        }
        Ok(())
    }
}

/// What was told, and when.
#[derive(Debug)]
struct Teller {
    node: String,
    /// The sum as it was seen last.
    seen: i64,
    /// The most it ever was.
    most: i64,
    /// What Redis has, and since when.
    told: Option<(i64, Instant)>,
    listed: Option<Instant>,
}

/// What a teller has to say.
#[derive(Debug, Default, PartialEq, Eq)]
struct Say {
    /// Tell the count.
    count: bool,
    /// Put the node on the list, before anything else.
    list: bool,
}

impl Teller {
    fn new(node: String) -> Self {
        Self { node, seen: 0, most: 0, told: None, listed: None }
    }

    /// Takes note of the sum, and returns what is to be told of it.
    fn look(&mut self, net: i64, now: Instant) -> Say {
        let moved = net != std::mem::replace(&mut self.seen, net);
        self.most = self.most.max(net);
        let due = |since: Option<Instant>| since.is_none_or(|at| now - at >= RENEW_EVERY);
        let grown = self.told.map_or(0, |(count, _)| count) < self.most;
        let count = grown || (moved && due(self.told.map(|(_, at)| at)));
        Say { count: count && self.most > 0, list: count && self.most > 0 && due(self.listed) }
    }

    fn count(&self) -> Cmd {
        let mut command = redis::cmd("SET");
        command.arg(key(&self.node)).arg(self.most).arg("PX");
        command.arg(u64::try_from(USE_TTL.as_millis()).expect("10 s"));
        command
    }

    fn list(&self) -> Cmd {
        let mut command = redis::cmd("EVAL");
        command.arg(LIST_LUA).arg(1).arg(NODES_KEY).arg(&self.node).arg(NODES_MAX);
        command
    }
}

async fn tell(usage: Weak<Usage>, link: Link) {
    let mut ticks = interval(TELL_EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut failed = false;
    loop {
        ticks.tick().await;
        let Some(usage) = usage.upgrade() else { return };
        let outcome = usage.tell(&link).await;
        match &outcome {
            Err(error) if !failed => {
                warn!(%error, "use of capacity not told: the price misses what this node admits");
            }
            Err(error) => debug!(%error, "use of capacity not told"),
            Ok(()) => {}
        }
        failed = outcome.is_err();
    }
}

/// Sends a command over the connection of decisions, which waits for a master without end.
async fn call(link: &Link, command: &Cmd) -> Result<(), RedisError> {
    let late = |_| RedisError::from((redis::ErrorKind::Io, "no answer in time"));
    timeout(CONTROL_TIMEOUT, link.call(command)).await.map_err(late)?.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Say = Say { count: false, list: false };
    const COUNT: Say = Say { count: true, list: false };

    /// A teller whose every word arrives.
    fn look(teller: &mut Teller, net: i64, now: Instant) -> Say {
        let say = teller.look(net, now);
        if say.list {
            teller.listed = Some(now);
        }
        if say.count {
            teller.told = Some((teller.most, now));
        }
        say
    }

    #[test]
    fn what_is_told_never_goes_back_and_is_right_again_once_more_was_taken() {
        let (mut teller, now) = (Teller::new("n".to_owned()), Instant::now());
        assert_eq!(look(&mut teller, 10, now), Say { count: true, list: true });
        for (net, say, told) in [(4, NOTHING, 10), (9, NOTHING, 10), (11, COUNT, 11)] {
            assert_eq!(look(&mut teller, net, now), say, "{net}");
            assert_eq!(teller.told, Some((told, now)), "{net}");
        }
    }

    #[test]
    fn nothing_is_told_of_a_node_that_takes_nothing() {
        let (mut teller, start) = (Teller::new("n".to_owned()), Instant::now());
        for seconds in 0..60 {
            // What others took may come back here.
            let net = -i64::from(seconds == 5);
            let say = look(&mut teller, net, start + Duration::from_secs(seconds));
            assert_eq!(say, NOTHING, "{seconds} s");
        }
    }

    #[test]
    fn while_there_is_traffic_the_count_is_renewed_and_without_it_expires() {
        let (mut teller, start) = (Teller::new("n".to_owned()), Instant::now());
        look(&mut teller, 1000, start);
        let mut told = Vec::new();
        for tick in 1..100_u32 {
            // More comes back than is taken; then nobody comes any more.
            let net = 1000 - i64::from(tick.min(60));
            let say = look(&mut teller, net, start + TELL_EVERY * tick);
            assert_eq!(say.count, say.list);
            told.extend(say.count.then_some(tick));
        }
        assert_eq!(told, [12, 24, 36, 48, 60]);
    }

    #[test]
    fn what_did_not_arrive_is_told_again() {
        let (mut teller, now) = (Teller::new("n".to_owned()), Instant::now());
        for _ in 0..2 {
            assert_eq!(teller.look(5, now), Say { count: true, list: true });
        }
    }
}
