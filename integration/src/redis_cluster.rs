//! A real Redis Cluster on loopback: three masters, of which the first may have a replica.

use std::time::Duration;

use redis::FromRedisValue;

use crate::{Persistence, Redis, eventually, ports};

/// How long the nodes may take to find each other and to serve all slots.
const FORMED: Duration = Duration::from_secs(30);

/// How long a master is silent before the others take it for dead.
const NODE_TIMEOUT_MS: &str = "1000";

const MASTERS: u16 = 3;
const SLOTS: u16 = 16_384;

/// A cluster, each node with a port and a folder of its own.
#[derive(Debug)]
pub struct RedisCluster {
    /// The masters at the start, in the order of their slots.
    pub masters: Vec<Redis>,
    /// The replica of the first master.
    pub replica: Option<Redis>,
}

impl RedisCluster {
    /// Starts three masters that serve all slots.
    ///
    /// # Panics
    ///
    /// When they do not come up.
    pub async fn start() -> Self {
        let (a, b, c) = tokio::join!(node(), node(), node());
        let masters = vec![a, b, c];
        for (index, (master, _)) in masters.iter().enumerate() {
            let index = u16::try_from(index).expect("few masters");
            let (first, last) = (range_start(index), range_start(index + 1) - 1);
            let _: String = master
                .ask(&["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])
                .await;
            let epoch = (index + 1).to_string();
            let _: String = master.ask(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
        }
        for (other, bus) in &masters[1..] {
            meet(&masters[0].0, other, *bus).await;
        }
        let masters = masters.into_iter().map(|(master, _)| master).collect();
        let cluster = Self { masters, replica: None };
        cluster.formed().await;
        cluster
    }

    /// Starts three masters, and a replica of the first that is in step with it.
    ///
    /// # Panics
    ///
    /// When they do not come up.
    pub async fn start_with_replica() -> Self {
        let (mut cluster, (replica, bus)) = tokio::join!(Self::start(), node());
        let first = &cluster.masters[0];
        meet(first, &replica, bus).await;
        let id: String = first.ask(&["CLUSTER", "MYID"]).await;
        eventually("the replica knows its master", FORMED, || async {
            replica.ask::<String>(&["CLUSTER", "NODES"]).await.contains(&id)
        })
        .await;
        let _: String = replica.ask(&["CLUSTER", "REPLICATE", &id]).await;
        in_step(&replica).await;
        // Whoever votes in a failover must know the replica, and the replica its rivals.
        for voter in &cluster.masters {
            eventually("the masters know the replica", FORMED, || async {
                voter.ask::<String>(&["CLUSTER", "NODES"]).await.contains("slave")
            })
            .await;
        }
        cluster.replica = Some(replica);
        cluster.formed().await;
        cluster
    }

    /// Waits until every node says that all slots are served.
    async fn formed(&self) {
        for node in self.masters.iter().chain(&self.replica) {
            eventually("the cluster serves all slots", FORMED, || async {
                let known: String = node.ask(&["CLUSTER", "INFO"]).await;
                known.contains("cluster_state:ok")
                    && known.contains("cluster_slots_ok:16384")
                    && known.contains("cluster_size:3")
            })
            .await;
        }
    }

    /// Returns the addresses of all nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.masters.iter().chain(&self.replica).map(Redis::url).collect()
    }

    /// Opens a connection to the cluster for the test's own questions.
    ///
    /// # Panics
    ///
    /// When the cluster does not answer.
    pub async fn connect(&self) -> redis::cluster_async::ClusterConnection {
        redis::cluster::ClusterClient::new(self.urls())
            .expect("the URLs are well formed")
            .get_async_connection()
            .await
            .expect("the cluster answers")
    }

    /// Runs one command where its key is.
    ///
    /// # Panics
    ///
    /// When the cluster does not answer, or answers with an error or another type.
    pub async fn ask<T: FromRedisValue>(&self, command: &[&str]) -> T {
        let mut request = redis::cmd(command[0]);
        for argument in &command[1..] {
            request.arg(argument);
        }
        let mut link = self.connect().await;
        request
            .query_async(&mut link)
            .await
            .unwrap_or_else(|error| panic!("{command:?} failed: {error}"))
    }

    /// Returns the slot that the servers say a key is in.
    pub async fn slot(&self, key: &str) -> u16 {
        self.masters[0].ask(&["CLUSTER", "KEYSLOT", key]).await
    }

    /// Returns the index of the master that a slot was given to at the start.
    #[must_use]
    pub fn home(&self, slot: u16) -> usize {
        (0..MASTERS).rposition(|index| range_start(index) <= slot).expect("the first begins at 0")
    }

    /// Returns an agent's name, beginning with `name`, whose keys are with that master at the start.
    pub async fn agent_on(&self, master: usize, name: &str) -> String {
        for number in 0..1000 {
            let agent = format!("{name}-{number}");
            if self.home(self.slot(&format!("tb:{agent}")).await) == master {
                return agent;
            }
        }
        panic!("no agent of a thousand is on master {master}")
    }
}

fn range_start(index: u16) -> u16 {
    u16::try_from(u32::from(SLOTS) * u32::from(index) / u32::from(MASTERS)).expect("a slot")
}

/// Starts one node; returns it with the port of its bus.
async fn node() -> (Redis, u16) {
    let bus = ports::free();
    let port = bus.to_string();
    let options = [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &port,
        "--cluster-node-timeout",
        NODE_TIMEOUT_MS,
        // As docs/redis.md says: one shard that is away must not take the others with it.
        "--cluster-require-full-coverage",
        "no",
        "--cluster-replica-validity-factor",
        "0",
        "--repl-diskless-sync-delay",
        "0",
    ];
    (Redis::start_with(Persistence::SnapshotOnDemand, &options).await, bus)
}

async fn meet(one: &Redis, other: &Redis, bus: u16) {
    let (port, bus) = (other.port().to_string(), bus.to_string());
    let _: String = one.ask(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
}

/// Waits until a replica holds what its master holds.
pub(crate) async fn in_step(replica: &Redis) {
    eventually("the replica is in step", FORMED, || async {
        replica.ask::<String>(&["INFO", "replication"]).await.contains("master_link_status:up")
    })
    .await;
}
