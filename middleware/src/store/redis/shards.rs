//! The connections of decisions to the masters of a cluster.
//!
//! 1. A command goes to the master of its first key's slot, over that master's own connection: one
//!    that hangs holds up its own agents only.
//! 2. MOVED and ASK are followed at once, TRYAGAIN after a pause; `ASKING` travels in one write with
//!    its command.
//! 3. The table of slots is asked for every second, and as soon as an answer or a dead connection says
//!    that it is out of date.
//!
//! The `redis` crate's own cluster client is not used: it sends `ASKING` and the command one after the
//! other over a connection that many share, so that concurrent decisions on a moving slot fail; and
//! while it looks for the masters anew it waits for a frozen one before it serves the others.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use redis::{Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};
use tracing::{debug, warn};

use super::{
    cluster::{ASKED_MAX, Asked, Slots, agreed, slot_of_command},
    followed::{Followed, RECONNECT_MAX, gone, is_left},
    link::count_failover,
    topology::{Place, at, open},
};

/// How often the table of slots is asked for when nothing says that it is out of date.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The least time between two of these questions.
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// How long a slot on the move is left alone before it is asked again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(2);

/// How often one command is sent on; a slot on the move may ask for many.
const HOPS_MAX: usize = 100;

/// Masters that serve no slot yet and were named by ASK or MOVED.
const GUESTS_MAX: usize = 16;

/// The connections. Clones share them; a task keeps the table up to date as long as one of them is
/// there.
#[derive(Clone)]
pub(super) struct Shards {
    known: watch::Receiver<Known>,
    outdated: Arc<Notify>,
}

#[derive(Clone)]
enum Known {
    /// The first question is under way: a call waits for it.
    Nothing,
    Table(Arc<Table>),
    /// No node has answered so far: a call fails at once.
    Failed(RedisError),
}

/// The masters and what they serve.
struct Table {
    slots: Slots,
    /// A connection for each of `slots.masters`.
    links: Vec<Followed>,
    guests: Mutex<Vec<((String, u16), Followed)>>,
    /// Any node, for user, password and certificates.
    like: Client,
}

impl Shards {
    /// Begins to look for the masters in the background, starting with `seeds`.
    ///
    /// # Panics
    ///
    /// Outside of a tokio runtime.
    pub(super) fn begin(seeds: Arc<[Client]>) -> Self {
        let (publish, known) = watch::channel(Known::Nothing);
        let outdated = Arc::new(Notify::new());
        tokio::spawn(Surveyor { seeds, publish, outdated: Arc::clone(&outdated) }.run());
        Self { known, outdated }
    }

    /// Sends a command to the master of its first key.
    pub(super) async fn call(&self, command: &Cmd) -> Result<Value, RedisError> {
        let slot = slot_of_command(command);
        let mut redirected: Option<(Followed, bool)> = None;
        let mut table = self.table().await?;
        for _ in 0..HOPS_MAX {
            let (link, asking) = match redirected.take() {
                Some(redirected) => redirected,
                None => (table.links[table.slots.master(slot)].clone(), false),
            };
            let answer =
                if asking { link.call_asking(command).await } else { link.call(command).await };
            let error = match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => error,
            };
            match error.kind() {
                ErrorKind::Server(ServerErrorKind::TryAgain) => sleep(TRY_AGAIN_AFTER).await,
                ErrorKind::Server(kind @ (ServerErrorKind::Ask | ServerErrorKind::Moved)) => {
                    let ask = kind == ServerErrorKind::Ask;
                    if !ask {
                        self.outdated.notify_one();
                    }
                    let Some(link) = table.redirect(&error, slot) else { return Err(error) };
                    redirected = Some((link, ask));
                    continue;
                }
                ErrorKind::Server(ServerErrorKind::ClusterDown) => {
                    self.outdated.notify_one();
                    return Err(error);
                }
                _ => {
                    if is_left(&error) {
                        self.outdated.notify_one();
                    }
                    return Err(error);
                }
            }
            table = self.table().await?;
        }
        Err((ServerErrorKind::TryAgain.into(), "the slot was moving for too long").into())
    }

    /// Sends a command to the first master that answers.
    pub(super) async fn call_any(&self, command: &Cmd) -> Result<Value, RedisError> {
        let table = self.table().await?;
        let mut failure = gone();
        for link in &table.links {
            match link.call(command).await {
                Ok(answer) => return Ok(answer),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn table(&self) -> Result<Arc<Table>, RedisError> {
        let known = self.known.borrow().clone();
        let known = match known {
            Known::Nothing => {
                let mut known = self.known.clone();
                let told = known.wait_for(|known| !matches!(known, Known::Nothing)).await;
                told.map(|known| known.clone()).map_err(|_| gone())?
            }
            known => known,
        };
        match known {
            Known::Table(table) => Ok(table),
            Known::Failed(error) => Err(error),
            Known::Nothing => Err(gone()),
        }
    }
}

impl Table {
    /// Returns the connection to where MOVED or ASK points.
    fn redirect(&self, error: &RedisError, slot: u16) -> Option<Followed> {
        let from = &self.slots.masters[self.slots.master(slot)].0;
        let to = redirection(error, from)?;
        if let Some(index) = self.slots.masters.iter().position(|master| *master == to) {
            return Some(self.links[index].clone());
        }
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, link)) = guests.iter().find(|(address, _)| *address == to) {
            return Some(link.clone());
        }
        if guests.len() == GUESTS_MAX {
            return None;
        }
        let link = Followed::begin(Place::Fixed(node(&self.like, &to).ok()?));
        guests.push((to, link.clone()));
        Some(link)
    }
}

/// Returns where MOVED or ASK points: `<slot> <host>:<port>`, where no host means the one that was asked.
pub(super) fn redirection(error: &RedisError, from: &str) -> Option<(String, u16)> {
    let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
    let host = if host.is_empty() { from } else { host };
    Some((host.to_owned(), port.parse().ok()?))
}

/// Returns a client for another node of the cluster.
pub(super) fn node(like: &Client, (host, port): &(String, u16)) -> Result<Client, RedisError> {
    Client::open(at(like.get_connection_info(), host.clone(), *port))
}

/// The task that keeps the table up to date.
struct Surveyor {
    seeds: Arc<[Client]>,
    publish: watch::Sender<Known>,
    outdated: Arc<Notify>,
}

impl Surveyor {
    async fn run(self) {
        let mut turn: usize = 0;
        loop {
            turn = turn.wrapping_add(1);
            let found = tokio::select! {
                // Nobody holds the connections any more.
                () = self.publish.closed() => return,
                found = self.survey(turn) => found,
            };
            let pause = if found.is_ok() { LOOK_EVERY } else { RECONNECT_MAX };
            match found {
                Ok(slots) => self.adopt(slots),
                Err(error) => {
                    debug!(%error, "table of slots not read");
                    self.publish.send_if_modified(|known| {
                        let failed = !matches!(known, Known::Table(_));
                        if failed {
                            *known = Known::Failed(error);
                        }
                        failed
                    });
                }
            }
            tokio::select! {
                () = self.publish.closed() => return,
                () = sleep(pause) => {}
                () = self.outdated.notified() => sleep(LOOK_AGAIN_AFTER).await,
            }
        }
    }

    fn table(&self) -> Option<Arc<Table>> {
        match &*self.publish.borrow() {
            Known::Table(table) => Some(Arc::clone(table)),
            Known::Nothing | Known::Failed(_) => None,
        }
    }

    /// Asks some of the masters, others each turn, or the seeds when none of these answers.
    async fn survey(&self, turn: usize) -> Result<Slots, RedisError> {
        if let Some(table) = self.table() {
            let count = table.links.len();
            let some = (0..count.min(ASKED_MAX)).map(|n| (turn.wrapping_add(n)) % count);
            let asked = some.map(|index| {
                let link = table.links[index].clone();
                let ask = async move { link.call(&Slots::question()).await };
                Asked { host: table.slots.masters[index].0.clone(), answer: Box::pin(ask) }
            });
            if let Ok(slots) = agreed(asked.collect()).await {
                return Ok(slots);
            }
        }
        agreed(seeds(&self.seeds)).await
    }

    /// Takes a table over, with the connections that it shares with the last one.
    fn adopt(&self, slots: Slots) {
        let before = self.table();
        if before.as_ref().is_some_and(|before| before.slots == slots) {
            return;
        }
        let mut links = Vec::with_capacity(slots.masters.len());
        for master in &slots.masters {
            let kept = before.as_ref().and_then(|before| before.link(master));
            let begun = || Some(Followed::begin(Place::Fixed(node(&self.seeds[0], master).ok()?)));
            let Some(link) = kept.or_else(begun) else { return };
            links.push(link);
        }
        for (host, port) in before.iter().flat_map(|before| &before.slots.masters) {
            if !slots.masters.contains(&(host.clone(), *port)) {
                count_failover("decisions");
                warn!(
                    master = format!("{host}:{port}"),
                    "bucket store lost a master: what the one in its place does not hold is lost"
                );
            }
        }
        let (guests, like) = (Mutex::default(), self.seeds[0].clone());
        let table = Table { slots, links, guests, like };
        self.publish.send_replace(Known::Table(Arc::new(table)));
    }
}

impl Table {
    fn link(&self, address: &(String, u16)) -> Option<Followed> {
        let index = self.slots.masters.iter().position(|master| master == address);
        if let Some(index) = index {
            return Some(self.links[index].clone());
        }
        let guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.iter().find(|(guest, _)| guest == address).map(|(_, link)| link.clone())
    }
}

/// Returns the question to the nodes of the configuration, over new connections.
pub(super) fn seeds(seeds: &[Client]) -> Vec<Asked> {
    let ask = |seed: &Client| {
        let (host, seed) = (super::topology::host(seed).to_owned(), seed.clone());
        let answer = async move {
            use redis::aio::ConnectionLike as _;
            let mut link = open(&seed).await?;
            link.req_packed_command(&Slots::question()).await?.extract_error()
        };
        Asked { host, answer: Box::pin(answer) }
    };
    seeds.iter().map(ask).collect()
}
