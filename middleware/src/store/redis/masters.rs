//! The control plane's connections: one to every master, and none that reconnects by itself.
//!
//! A server that was replaced may have lost writes, and whoever writes must learn of it before
//! writing on. So any failure breaks all of them, MOVED and READONLY like a dead link, until
//! [`Tune::life`](crate::store::Tune::life) connects anew. ASK and TRYAGAIN come with a slot that
//! moves while it is served, and lose nothing: they are followed.

use std::{collections::BTreeMap, time::Duration};

use redis::{
    Client, Cmd, ErrorKind, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{task::JoinSet, time::sleep};
use tracing::warn;

use super::{
    CONTROL_TIMEOUT, SET_LIMITS_LUA,
    cluster::Slots,
    link::{count_failover, within},
    topology::{Cluster, Place, Topology, address, at, host, open},
    wire::{is_fault, is_no_script, is_wrong_type, malformed, text},
};
use crate::store::StoreError;

/// How often commands are sent again to a master that lacks the script, or whose slot moves.
const ROUNDS_MAX: usize = 20;

/// How long a slot on the move is left alone before it is asked again.
const TRY_AGAIN_AFTER: Duration = Duration::from_millis(10);

/// The control plane's end of the store.
pub(super) struct Control {
    topology: Topology,
    state: State,
    /// Run ids of the masters that were there last, by address.
    known: BTreeMap<String, String>,
}

enum State {
    /// Not yet used.
    Fresh,
    Up(Masters),
    /// Broken until somebody asks which life of the store this is.
    Broken,
}

/// A connection to every master.
pub(super) struct Masters {
    nodes: Vec<Node>,
    /// Who serves which slot; `None` when there is one master.
    slots: Option<Slots>,
    /// The epoch of the marks, as they were last read.
    pub(super) epoch: Option<String>,
}

#[derive(Clone)]
struct Node {
    address: String,
    client: Option<Client>,
    link: MultiplexedConnection,
}

impl Node {
    fn unavailable(&self, source: RedisError) -> StoreError {
        StoreError::Unavailable { address: self.address.clone(), source }
    }
}

impl Control {
    pub(super) fn new(topology: Topology) -> Self {
        Self { topology, state: State::Fresh, known: BTreeMap::new() }
    }

    /// Runs `calls` over the connections; any failure of it breaks them, so that nothing more is
    /// written before the store was asked which life this is.
    pub(super) async fn with<T>(
        &mut self,
        name: &str,
        calls: impl AsyncFnOnce(&mut Masters) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if matches!(self.state, State::Fresh) {
            self.connect(name).await?;
        }
        let State::Up(masters) = &mut self.state else { return Err(StoreError::Lost) };
        let done = calls(masters).await;
        if done.is_err() {
            self.state = State::Broken;
        }
        done
    }

    /// Connects to the masters that are there now; keeps the connections that are still good.
    pub(super) async fn connect(&mut self, name: &str) -> Result<&mut Masters, StoreError> {
        let before = match std::mem::replace(&mut self.state, State::Broken) {
            State::Up(masters) => Some(masters),
            State::Fresh | State::Broken => None,
        };
        let masters = match &mut self.topology {
            Topology::Master(place) => one(place, before, name).await?,
            Topology::Cluster(cluster) => all(cluster, before, name).await?,
        };
        self.state = State::Up(masters);
        match &mut self.state {
            State::Up(masters) => Ok(masters),
            State::Fresh | State::Broken => Err(StoreError::Lost),
        }
    }

    /// Breaks the connections.
    pub(super) fn give_up(&mut self) {
        self.state = State::Broken;
    }

    /// Takes note of who the masters are: one that is gone was replaced or restarted. Returns true
    /// when they are others than before.
    pub(super) fn note(&mut self, found: BTreeMap<String, String>) -> bool {
        for (address, run_id) in &self.known {
            if !found.values().any(|other| other == run_id) {
                count_failover("limits");
                warn!(
                    address,
                    run_id,
                    "bucket store lost a master: what the one in its place does not hold is lost"
                );
            }
        }
        let before = std::mem::replace(&mut self.known, found);
        before != self.known
    }
}

/// Connects to the master of a store that has one.
async fn one(
    place: &mut Place,
    before: Option<Masters>,
    name: &str,
) -> Result<Masters, StoreError> {
    if let Some(masters) = before
        && !place.has_moved(&masters.nodes[0].address).await
    {
        return Ok(masters);
    }
    let (address, link) = within(CONTROL_TIMEOUT, place.connect())
        .await?
        .map_err(|source| StoreError::Unavailable { address: name.to_owned(), source })?;
    let nodes = vec![Node { address, client: None, link }];
    Ok(Masters { nodes, slots: None, epoch: None })
}

/// Connects to all masters of a cluster.
async fn all(
    cluster: &Cluster,
    before: Option<Masters>,
    name: &str,
) -> Result<Masters, StoreError> {
    let (nodes, epoch) = before.map_or((Vec::new(), None), |before| (before.nodes, before.epoch));
    let slots = slots(cluster, &nodes, name).await?;
    let mut opening = JoinSet::new();
    for (index, (host, port)) in slots.masters.iter().enumerate() {
        let like = cluster.seeds[0].get_connection_info();
        let client = Client::open(at(like, host.clone(), *port)).map_err(StoreError::Address)?;
        let address = address(&client);
        let kept = nodes.iter().find(|node| node.address == address).cloned();
        opening.spawn(async move {
            if let Some(node) = kept {
                return Ok((index, node));
            }
            let unavailable = |source| StoreError::Unavailable { address: address.clone(), source };
            let link = within(CONTROL_TIMEOUT, open(&client)).await?.map_err(unavailable)?;
            Ok((index, Node { address, client: Some(client), link }))
        });
    }
    let mut nodes: BTreeMap<usize, Node> = BTreeMap::new();
    while let Some(opened) = opening.join_next().await {
        let (index, node) = opened.map_err(|_| StoreError::Lost)??;
        nodes.insert(index, node);
    }
    Ok(Masters { nodes: nodes.into_values().collect(), slots: Some(slots), epoch })
}

/// Asks for the table of slots: a master that is connected, or else the nodes of the configuration.
async fn slots(cluster: &Cluster, nodes: &[Node], name: &str) -> Result<Slots, StoreError> {
    let mut command = redis::cmd("CLUSTER");
    command.arg("SLOTS");
    let mut failure = None;
    let connected = nodes.iter().filter_map(|node| Some((node.client.as_ref()?, Some(node))));
    for (client, node) in connected.chain(cluster.seeds.iter().map(|seed| (seed, None))) {
        let ask = async {
            let mut link = match node {
                Some(node) => node.link.clone(),
                None => open(client).await?,
            };
            link.req_packed_command(&command).await?.extract_error()
        };
        match within(CONTROL_TIMEOUT, ask).await {
            Ok(Ok(answer)) => match Slots::read(&answer, host(client)) {
                Some(slots) => return Ok(slots),
                None => {
                    let kind = ErrorKind::Server(ServerErrorKind::ClusterDown);
                    failure = Some((kind, "some slots of the cluster are served by nobody").into());
                }
            },
            Ok(Err(error)) => failure = Some(error),
            Err(late) if failure.is_none() && cluster.seeds.len() == 1 => return Err(late),
            Err(_) => {}
        }
    }
    let silent = || (ErrorKind::Io, "no node of the cluster answered in time").into();
    let source = failure.unwrap_or_else(silent);
    Err(StoreError::Unavailable { address: name.to_owned(), source })
}

/// A command on its way: its place among the answers, and the node that it goes to.
#[derive(Clone, Copy)]
struct Pending {
    index: usize,
    node: usize,
    /// True when that node has the slot only in part yet.
    asking: bool,
}

impl Masters {
    pub(super) fn is_cluster(&self) -> bool {
        self.slots.is_some()
    }

    pub(super) fn slots(&self) -> Option<&Slots> {
        self.slots.as_ref()
    }

    /// Asks every master for its run id.
    pub(super) async fn run_ids(&mut self) -> Result<BTreeMap<String, String>, StoreError> {
        let mut command = redis::cmd("INFO");
        command.arg("server");
        let all = (0..self.nodes.len()).map(|node| Pending { index: node, node, asking: false });
        let commands = vec![command; self.nodes.len()];
        let answers = self.deliver(all.collect(), &commands).await?;
        let run_id = |(node, answer): (&Node, &Value)| {
            let info = match answer {
                Value::VerbatimString { text, .. } => Some(text.as_str()),
                other => text(other),
            };
            let id = info.and_then(|info| info.lines().find_map(|at| at.strip_prefix("run_id:")));
            let id = id.ok_or_else(|| malformed(answer))?;
            Ok((node.address.clone(), id.trim().to_owned()))
        };
        self.nodes.iter().zip(&answers).map(run_id).collect()
    }

    /// Sends each command to the master of its slot, all masters at once; the answers come in order.
    /// An answer that faults one agent's data stays among them; any other error is the store's.
    pub(super) async fn send(&mut self, commands: &[(u16, Cmd)]) -> Result<Vec<Value>, StoreError> {
        let node = |slot| self.slots.as_ref().map_or(0, |slots| slots.master(slot));
        let place = |(index, (slot, _)): (usize, &(u16, Cmd))| Pending {
            index,
            node: node(*slot),
            asking: false,
        };
        let pending = commands.iter().enumerate().map(place).collect();
        let commands: Vec<Cmd> = commands.iter().map(|(_, command)| command.clone()).collect();
        self.deliver(pending, &commands).await
    }

    async fn deliver(
        &mut self,
        mut pending: Vec<Pending>,
        commands: &[Cmd],
    ) -> Result<Vec<Value>, StoreError> {
        let mut answers = vec![Value::Nil; commands.len()];
        for _ in 0..ROUNDS_MAX {
            let mut again = Again::default();
            for (at, answer) in self.round(&pending, commands).await? {
                match self.judge(at, &answer, &mut again)? {
                    Some(next) => again.pending.push(next),
                    None => answers[at.index] = answer,
                }
            }
            if again.pending.is_empty() {
                return Ok(answers);
            }
            for node in again.lacking {
                self.load_script(node).await?;
            }
            if again.moving {
                sleep(TRY_AGAIN_AFTER).await;
            }
            pending = again.pending;
        }
        Err(StoreError::Malformed { what: "NOSCRIPT or TRYAGAIN again and again".to_owned() })
    }

    /// Sends every pending command once.
    async fn round(
        &self,
        pending: &[Pending],
        commands: &[Cmd],
    ) -> Result<Vec<(Pending, Value)>, StoreError> {
        let mut calls = JoinSet::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let mine: Vec<Pending> =
                pending.iter().filter(|at| at.node == index).copied().collect();
            if mine.is_empty() {
                continue;
            }
            let mut pipeline = redis::pipe();
            for at in &mine {
                if at.asking {
                    pipeline.cmd("ASKING");
                }
                pipeline.add_command(commands[at.index].clone());
            }
            let node = node.clone();
            calls.spawn(async move {
                let (mut link, count) = (node.link.clone(), pipeline.len());
                let call = link.req_packed_commands(&pipeline, 0, count);
                let answers = within(CONTROL_TIMEOUT, call).await?;
                let answers = answers.map_err(|error| node.unavailable(error))?;
                let mut answers = answers.into_iter();
                let mut answered = Vec::with_capacity(mine.len());
                for at in mine {
                    if at.asking {
                        answers.next();
                    }
                    answered.push((at, answers.next().unwrap_or(Value::Nil)));
                }
                Ok(answered)
            });
        }
        let mut answered = Vec::with_capacity(pending.len());
        while let Some(call) = calls.join_next().await {
            answered.extend(call.map_err(|_| StoreError::Lost)??);
        }
        Ok(answered)
    }

    /// Returns how to go on with a command; `None` when it is answered.
    fn judge(
        &self,
        at: Pending,
        answer: &Value,
        again: &mut Again,
    ) -> Result<Option<Pending>, StoreError> {
        if !is_fault(answer) {
            return Ok(None);
        }
        let Err(error) = answer.clone().extract_error() else { return Ok(None) };
        if is_wrong_type(&error) {
            return Ok(None);
        }
        if is_no_script(&error) {
            if !again.lacking.contains(&at.node) {
                again.lacking.push(at.node);
            }
            return Ok(Some(at));
        }
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::TryAgain) => {
                again.moving = true;
                Ok(Some(at))
            }
            ErrorKind::Server(ServerErrorKind::Ask) => {
                let asked = error.redirect_node().map(|(address, _)| address);
                let node = self.nodes.iter().position(|node| Some(&*node.address) == asked);
                match node {
                    Some(node) => Ok(Some(Pending { node, asking: true, ..at })),
                    None => Err(self.nodes[at.node].unavailable(error)),
                }
            }
            _ => Err(self.nodes[at.node].unavailable(error)),
        }
    }

    async fn load_script(&self, node: usize) -> Result<(), StoreError> {
        let node = &self.nodes[node];
        let mut link = node.link.clone();
        let mut load = redis::cmd("SCRIPT");
        load.arg("LOAD").arg(SET_LIMITS_LUA);
        let loaded = within(CONTROL_TIMEOUT, link.req_packed_command(&load)).await?;
        let loaded = loaded.and_then(Value::extract_error);
        loaded.map(drop).map_err(|error| node.unavailable(error))
    }
}

/// What a round leaves for the next one.
#[derive(Default)]
struct Again {
    pending: Vec<Pending>,
    /// Nodes that lack the script.
    lacking: Vec<usize>,
    /// True when a slot is on the move.
    moving: bool,
}
