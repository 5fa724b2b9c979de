//! The control plane's connections: one to every master, and none that reconnects by itself.
//!
//! A server that was replaced may have lost writes, and whoever writes must learn of it before
//! writing on. So any failure breaks all of them, MOVED and READONLY like a dead link, until
//! [`Tune::life`](crate::store::Tune::life) connects anew. ASK and TRYAGAIN come with a slot that
//! moves while it is served, and lose nothing: they are followed.

use std::{collections::BTreeMap, time::Duration};

use redis::{
    Client, Cmd, ErrorKind, Pipeline, RedisError, ServerErrorKind, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{task::JoinSet, time::sleep};
use tracing::warn;

use super::{
    CONTROL_TIMEOUT, SET_LIMITS_LUA,
    cluster::{Asked, Slots, agreed},
    link::{count_failover, within},
    shards::{node, redirection, seeds},
    topology::{Place, Topology, address, open},
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

#[allow(clippy::large_enum_variant, reason = "a store has one of them")]
enum State {
    /// Not yet used.
    Fresh,
    Up(Masters),
    /// Broken until somebody asks which life of the store this is.
    Broken,
}

/// A connection to every master.
pub(super) struct Masters {
    /// In the order of `slots`; behind them, nodes that a slot is moving to and that serve none yet.
    nodes: Vec<Node>,
    /// Who serves which slot; `None` when there is one master.
    slots: Option<Slots>,
    /// Any node of the cluster, for user, password and certificates.
    like: Option<Client>,
    /// The epoch of the marks, as they were last read.
    pub(super) epoch: Option<String>,
}

#[derive(Clone)]
struct Node {
    address: String,
    link: MultiplexedConnection,
}

impl Node {
    async fn open(client: &Client) -> Result<Self, StoreError> {
        let address = address(client);
        match within(CONTROL_TIMEOUT, open(client)).await? {
            Ok(link) => Ok(Self { address, link }),
            Err(source) => Err(StoreError::of_redis(&address, source)),
        }
    }

    /// Sends `pipeline`, in which each of `places` is a command.
    async fn call(
        mut self,
        pipeline: Pipeline,
        places: Vec<(usize, Pending)>,
    ) -> Result<Sent, StoreError> {
        let call = self.link.req_packed_commands(&pipeline, 0, pipeline.len());
        let answers = within(CONTROL_TIMEOUT, call).await?;
        let mut answers = answers.map_err(|error| self.unavailable(error))?;
        let answer = |(place, at): (usize, Pending)| {
            (place, at, answers.get_mut(place).map_or(Value::Nil, std::mem::take))
        };
        let answered = places.into_iter().map(answer).collect();
        Ok(Sent { pipeline, answered })
    }

    fn host(&self) -> &str {
        self.address.rsplit_once(':').map_or("", |(host, _)| host)
    }

    fn unavailable(&self, source: RedisError) -> StoreError {
        StoreError::of_redis(&self.address, source)
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
        .map_err(|source| StoreError::of_redis(name, source))?;
    let nodes = vec![Node { address, link }];
    Ok(Masters { nodes, slots: None, like: None, epoch: None })
}

/// Connects to all masters of a cluster.
async fn all(
    cluster: &[Client],
    before: Option<Masters>,
    name: &str,
) -> Result<Masters, StoreError> {
    let (nodes, epoch) = before.map_or((Vec::new(), None), |before| (before.nodes, before.epoch));
    let unavailable = |source| StoreError::of_redis(name, source);
    let connected = nodes.iter().map(|node| {
        let mut link = node.link.clone();
        let ask = async move { link.req_packed_command(&Slots::question()).await?.extract_error() };
        Asked { host: node.host().to_owned(), answer: Box::pin(ask) }
    });
    let mut slots = agreed(connected.collect()).await;
    if slots.is_err() {
        slots = agreed(seeds(cluster)).await;
    }
    let slots = slots.map_err(unavailable)?;
    let mut opening = JoinSet::new();
    for (index, master) in slots.masters.iter().enumerate() {
        let client = node(&cluster[0], master).map_err(StoreError::address)?;
        let kept = nodes.iter().find(|node| node.address == address(&client)).cloned();
        opening.spawn(async move {
            match kept {
                Some(node) => Ok((index, node)),
                None => Ok((index, Node::open(&client).await?)),
            }
        });
    }
    let mut nodes: BTreeMap<usize, Node> = BTreeMap::new();
    while let Some(opened) = opening.join_next().await {
        let (index, node) = opened.map_err(|_| StoreError::Lost)??;
        nodes.insert(index, node);
    }
    let like = Some(cluster[0].clone());
    Ok(Masters { nodes: nodes.into_values().collect(), slots: Some(slots), like, epoch })
}

/// A command on its way: its place among the answers, and the node that it goes to.
#[derive(Clone, Copy)]
struct Pending {
    index: usize,
    node: usize,
    /// True when that node has the slot only in part yet.
    asking: bool,
}

/// What one node answered.
struct Sent {
    pipeline: Pipeline,
    /// Of each command its place in the pipeline, where it came from, and the answer.
    answered: Vec<(usize, Pending, Value)>,
}

impl Masters {
    pub(super) fn is_cluster(&self) -> bool {
        self.slots.is_some()
    }

    pub(super) fn slots(&self) -> Option<&Slots> {
        self.slots.as_ref()
    }

    /// Returns how many masters there are.
    pub(super) fn count(&self) -> usize {
        self.slots.as_ref().map_or(1, |slots| slots.masters.len())
    }

    /// Asks one master, whatever its slots; `None` when there are fewer.
    pub(super) async fn ask(
        &mut self,
        master: usize,
        command: &Cmd,
    ) -> Result<Option<Value>, StoreError> {
        if master >= self.count() {
            return Ok(None);
        }
        let pending = Pending { index: 0, node: master, asking: false };
        let mut answers = self.deliver(vec![pending], vec![command.clone()]).await?;
        Ok(answers.pop())
    }

    /// Asks every master for its run id.
    pub(super) async fn run_ids(&mut self) -> Result<BTreeMap<String, String>, StoreError> {
        let mut command = redis::cmd("INFO");
        command.arg("server");
        let masters = self.count();
        let all = (0..masters).map(|node| Pending { index: node, node, asking: false });
        let commands = vec![command; masters];
        let answers = self.deliver(all.collect(), commands).await?;
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
    pub(super) async fn send(
        &mut self,
        commands: Vec<(u16, Cmd)>,
    ) -> Result<Vec<Value>, StoreError> {
        let node = |slot| self.slots.as_ref().map_or(0, |slots| slots.master(slot));
        let place = |(index, (slot, _)): (usize, &(u16, Cmd))| Pending {
            index,
            node: node(*slot),
            asking: false,
        };
        let pending = commands.iter().enumerate().map(place).collect();
        self.deliver(pending, commands.into_iter().map(|(_, command)| command).collect()).await
    }

    /// Commands move into the pipelines that send them, as a batch of writes is some hundred kilobytes; what
    /// has to be sent again is copied from there.
    async fn deliver(
        &mut self,
        mut pending: Vec<Pending>,
        mut commands: Vec<Cmd>,
    ) -> Result<Vec<Value>, StoreError> {
        let mut answers = vec![Value::Nil; commands.len()];
        for _ in 0..ROUNDS_MAX {
            let mut again = Again::default();
            for Sent { pipeline, answered } in self.round(&pending, &mut commands).await? {
                for (place, at, answer) in answered {
                    let at = match self.judge(at, &answer, &mut again)? {
                        Next::Answered => {
                            answers[at.index] = answer;
                            continue;
                        }
                        Next::Again => at,
                        Next::Elsewhere(to) => {
                            let node = self.node(&to).await?;
                            Pending { node, asking: true, ..at }
                        }
                    };
                    let sent = pipeline.cmd_iter().nth(place).expect("it was sent from there");
                    commands[at.index] = sent.clone();
                    again.pending.push(at);
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
        commands: &mut [Cmd],
    ) -> Result<Vec<Sent>, StoreError> {
        let mut calls = Vec::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let (mut pipeline, mut places) = (Pipeline::new(), Vec::new());
            for at in pending.iter().filter(|at| at.node == index) {
                if at.asking {
                    pipeline.cmd("ASKING");
                }
                places.push((pipeline.len(), *at));
                pipeline.add_command(std::mem::take(&mut commands[at.index]));
            }
            if !places.is_empty() {
                calls.push(node.clone().call(pipeline, places));
            }
        }
        // One master is the usual case, and needs no task.
        if calls.len() == 1
            && let Some(call) = calls.pop()
        {
            return Ok(vec![call.await?]);
        }
        let (mut tasks, mut sent) = (calls.into_iter().collect::<JoinSet<_>>(), Vec::new());
        while let Some(call) = tasks.join_next().await {
            sent.push(call.map_err(|_| StoreError::Lost)??);
        }
        Ok(sent)
    }

    /// Returns how to go on with a command.
    fn judge(&self, at: Pending, answer: &Value, again: &mut Again) -> Result<Next, StoreError> {
        if !is_fault(answer) {
            return Ok(Next::Answered);
        }
        let Err(error) = answer.clone().extract_error() else { return Ok(Next::Answered) };
        if is_wrong_type(&error) {
            return Ok(Next::Answered);
        }
        if is_no_script(&error) {
            if !again.lacking.contains(&at.node) {
                again.lacking.push(at.node);
            }
            return Ok(Next::Again);
        }
        let node = &self.nodes[at.node];
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::TryAgain) => {
                again.moving = true;
                Ok(Next::Again)
            }
            ErrorKind::Server(ServerErrorKind::Ask) => match redirection(&error, node.host()) {
                Some(to) => Ok(Next::Elsewhere(to)),
                None => Err(node.unavailable(error)),
            },
            _ => Err(node.unavailable(error)),
        }
    }

    /// Returns the index of the node at an address, connecting to it when it is new.
    async fn node(&mut self, to: &(String, u16)) -> Result<usize, StoreError> {
        let Some(like) = &self.like else { return Err(StoreError::Lost) };
        let client = node(like, to).map_err(StoreError::address)?;
        let address = address(&client);
        if let Some(known) = self.nodes.iter().position(|node| node.address == address) {
            return Ok(known);
        }
        self.nodes.push(Node::open(&client).await?);
        Ok(self.nodes.len() - 1)
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

/// How to go on with a command.
enum Next {
    Answered,
    /// At the same node.
    Again,
    /// At a node that has the slot in part.
    Elsewhere((String, u16)),
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
