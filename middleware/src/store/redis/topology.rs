//! Where the masters are: one server, the master that sentinels name, or the masters of a cluster.

use std::{sync::Arc, time::Duration};

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError,
    aio::MultiplexedConnection,
};

use tokio::time::{MissedTickBehavior, interval};

use super::{
    CONTROL_TIMEOUT, PIPELINE_MAX,
    sentinel::{Located, Sentinels, is_master},
};

/// How often sentinels are asked whether the master is still the same. A master that is frozen or
/// cut off answers nothing, and never says that it was replaced.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How the servers are laid out.
#[derive(Clone)]
#[allow(clippy::large_enum_variant, reason = "a store has one of them")]
pub(super) enum Topology {
    Master(Place),
    /// The nodes that are asked for the others; at least one.
    Cluster(Arc<[Client]>),
}

/// Where a single master is.
#[derive(Clone)]
pub(super) enum Place {
    Fixed(Client),
    Sentinel(Sentinels),
}

impl Place {
    /// Connects to the master; returns its address as well.
    pub(super) async fn connect(&mut self) -> Result<(String, MultiplexedConnection), RedisError> {
        match self {
            Self::Fixed(client) => Ok((address(client), open(client).await?)),
            Self::Sentinel(sentinels) => {
                let Located { client, .. } = sentinels.locate().await?;
                let mut connection = open(&client).await?;
                if is_master(&mut connection).await? {
                    return Ok((address(&client), connection));
                }
                Err((ErrorKind::Io, "the server that sentinels name is no master yet").into())
            }
        }
    }

    /// Returns true when a majority of the sentinels says that the master is elsewhere by now. Sentinels that do
    /// not answer are no reason to leave a master that does, and neither is one that was cut off.
    pub(super) async fn has_moved(&mut self, from: &str) -> bool {
        match self {
            Self::Fixed(_) => false,
            Self::Sentinel(sentinels) => {
                sentinels.locate().await.is_ok_and(|Located { client, by_majority }| {
                    by_majority && address(&client) != from
                })
            }
        }
    }

    /// Waits until the master is elsewhere; for ever, when nobody would say so.
    pub(super) async fn moves(&mut self, from: &str) {
        if matches!(self, Self::Fixed(_)) {
            std::future::pending::<()>().await;
        }
        let mut look = interval(LOOK_EVERY);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            look.tick().await;
            if self.has_moved(from).await {
                return;
            }
        }
    }
}

/// Connects. The caller bounds how long its own calls wait.
pub(super) async fn open(client: &Client) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONTROL_TIMEOUT))
        // Deadlines are ours, one for each kind of call.
        .set_response_timeout(None)
        .set_pipeline_buffer_size(PIPELINE_MAX);
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Returns `like` for another host: the same user, password, certificates and settings.
pub(super) fn at(like: &ConnectionInfo, host: String, port: u16) -> ConnectionInfo {
    let addr = match like.addr() {
        ConnectionAddr::TcpTls { insecure, tls_params, .. } => ConnectionAddr::TcpTls {
            host,
            port,
            insecure: *insecure,
            tls_params: tls_params.clone(),
        },
        _ => ConnectionAddr::Tcp(host, port),
    };
    like.clone().set_addr(addr)
}

/// Returns `host:port` or the socket's path: never the user or the password.
pub(super) fn address(client: &Client) -> String {
    client.get_connection_info().addr().to_string()
}

/// Returns the host of a client's address.
pub(super) fn host(client: &Client) -> &str {
    match client.get_connection_info().addr() {
        ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host,
        _ => "",
    }
}
