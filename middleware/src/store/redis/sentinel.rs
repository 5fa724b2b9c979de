//! Redis Sentinel: where the master is.
//!
//! All sentinels are asked at once, and of a majority's answers the one with the highest configuration epoch
//! wins: a sentinel that was cut off before a failover names the old master, but at an older epoch. Whether the
//! server found so says of itself that it is a master is asked of it as well.
//!
//! 1. Fewer than a majority may say where the master is to somebody who has none, or no newer news; they
//!    never move anybody away from a master.
//! 2. The highest epoch seen is remembered. An older one is believed when a majority says it and the rest is silent
//!    or agrees: sentinels that were set up anew count from 0.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use redis::{
    Client, ConnectionInfo, ErrorKind, RedisError, Value,
    aio::{ConnectionLike, MultiplexedConnection},
};
use tokio::{task::JoinSet, time::timeout};

use super::{
    topology::{at, open},
    wire::text,
};

/// How long one sentinel may take to connect and answer: 500 ms.
const SENTINEL_TIMEOUT: Duration = Duration::from_millis(500);

/// The sentinels of one master. Clones share the configuration, and which epoch is the newest.
#[derive(Clone)]
pub(super) struct Sentinels {
    master: Arc<str>,
    clients: Arc<[Client]>,
    /// How the master is connected to, but for the address.
    node: Arc<ConnectionInfo>,
    /// Connections that answered last time.
    links: Vec<Option<MultiplexedConnection>>,
    epoch: Arc<AtomicU64>,
}

/// Where sentinels say that the master is.
pub(super) struct Located {
    pub(super) client: Client,
    /// Whether a majority of them answered.
    pub(super) by_majority: bool,
}

/// Where a sentinel says that the master is, and since which failover.
struct Answer {
    config_epoch: u64,
    host: String,
    port: u16,
}

impl Sentinels {
    pub(super) fn new(master: &str, clients: Vec<Client>, node: ConnectionInfo) -> Self {
        let links = vec![None; clients.len()];
        Self {
            master: master.into(),
            clients: clients.into(),
            node: node.into(),
            links,
            epoch: Arc::default(),
        }
    }

    /// Returns how the master is connected to, but for the address.
    #[cfg(test)]
    pub(super) fn node(&self) -> &ConnectionInfo {
        &self.node
    }

    /// Returns the master that the sentinels name.
    pub(super) async fn locate(&mut self) -> Result<Located, RedisError> {
        let mut asked = JoinSet::new();
        for (index, client) in self.clients.iter().enumerate() {
            let (client, link) = (client.clone(), self.links[index].take());
            let master = Arc::clone(&self.master);
            asked.spawn(async move {
                let answer = timeout(SENTINEL_TIMEOUT, ask(&client, link, &master)).await;
                (index, answer.unwrap_or_else(|_| Err(silent())))
            });
        }
        let majority = self.clients.len() / 2 + 1;
        let known = self.epoch.load(Ordering::Relaxed);
        let (mut newest, mut answers, mut failure): (Option<Answer>, _, _) = (None, 0, None);
        while let Some(done) = asked.join_next().await {
            match done {
                Ok((index, Ok((link, answer)))) => {
                    self.links[index] = Some(link);
                    answers += 1;
                    if newest.as_ref().is_none_or(|found| found.config_epoch < answer.config_epoch)
                    {
                        newest = Some(answer);
                    }
                    let fresh = |found: &Answer| found.config_epoch >= known;
                    if answers >= majority && newest.as_ref().is_some_and(fresh) {
                        break;
                    }
                }
                Ok((_, Err(error))) => failure = Some(error),
                Err(_) => {}
            }
        }
        let Some(Answer { config_epoch, host, port }) = newest else {
            return Err(failure.unwrap_or_else(silent));
        };
        let by_majority = answers >= majority;
        if config_epoch < known && !by_majority {
            return Err(
                (ErrorKind::Io, "no sentinel that answers knows of the last failover").into()
            );
        }
        match config_epoch < known {
            true => self.epoch.store(config_epoch, Ordering::Relaxed),
            // Clones may have seen a newer one meanwhile.
            false => drop(self.epoch.fetch_max(config_epoch, Ordering::Relaxed)),
        }
        Ok(Located { client: Client::open(at(&self.node, host, port))?, by_majority })
    }
}

fn silent() -> RedisError {
    (ErrorKind::Io, "no sentinel answered").into()
}

/// Asks one sentinel; the connection comes back when it is good.
async fn ask(
    client: &Client,
    link: Option<MultiplexedConnection>,
    master: &str,
) -> Result<(MultiplexedConnection, Answer), RedisError> {
    let mut command = redis::cmd("SENTINEL");
    command.arg("MASTER").arg(master);
    let mut fresh = link.is_none();
    let mut link = match link {
        Some(link) => link,
        None => open(client).await?,
    };
    loop {
        match link.req_packed_command(&command).await.and_then(Value::extract_error) {
            Ok(answer) => {
                let answer = read(&answer).ok_or_else(|| {
                    RedisError::from((ErrorKind::UnexpectedReturnType, "not a sentinel's answer"))
                })?;
                return Ok((link, answer));
            }
            // A connection kept from the last time may have died since.
            Err(_) if !fresh => {
                link = open(client).await?;
                fresh = true;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Reads what `SENTINEL MASTER` answers: names and values in turn.
fn read(answer: &Value) -> Option<Answer> {
    let value = |wanted: &str| match answer {
        Value::Array(flat) => flat
            .chunks_exact(2)
            .find(|pair| text(&pair[0]) == Some(wanted))
            .and_then(|pair| text(&pair[1])),
        Value::Map(pairs) => pairs
            .iter()
            .find(|(name, _)| text(name) == Some(wanted))
            .and_then(|(_, value)| text(value)),
        _ => None,
    };
    Some(Answer {
        config_epoch: value("config-epoch")?.parse().ok()?,
        host: value("ip")?.to_owned(),
        port: value("port")?.parse().ok()?,
    })
}

/// Asks a server whether it is a master.
pub(super) async fn is_master(link: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    let answer = link.req_packed_command(&redis::cmd("ROLE")).await?.extract_error()?;
    match &answer {
        Value::Array(items) => Ok(items.first().and_then(text) == Some("master")),
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentinels_answer_is_read_whatever_else_stands_in_it() {
        let flat = [
            "name",
            "m",
            "ip",
            "10.0.0.7",
            "port",
            "6380",
            "flags",
            "master",
            "config-epoch",
            "12",
        ];
        let answer =
            Value::Array(flat.iter().map(|text| Value::BulkString((*text).into())).collect());
        let Answer { config_epoch, host, port } = read(&answer).unwrap();
        assert_eq!((config_epoch, host.as_str(), port), (12, "10.0.0.7", 6380));
        assert!(read(&Value::Array(vec![])).is_none());
        assert!(read(&Value::Nil).is_none());
    }
}
