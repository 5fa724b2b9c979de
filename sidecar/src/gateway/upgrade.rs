//! HTTP/1.1 upgrades, WebSocket above all: after a 101 the bytes pass untouched both ways.
//!
//! Places for upgraded connections are bounded twice: in all, and for each agent, so that one agent
//! cannot take them from all others.

use std::sync::Arc;

use http::{
    HeaderMap, HeaderValue, Method, Request, Response, Version,
    header::{CONNECTION, UPGRADE},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::{
    io::copy_bidirectional,
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tower_merit::AgentId;
use tracing::debug;

use super::fields::connection_names;
use crate::shares::{Share, Shares};

/// A client's wish to leave HTTP.
pub(super) struct Wish {
    protocol: HeaderValue,
    client: OnUpgrade,
}

/// Takes the wish to upgrade out of `request`, if it has one that may be granted.
pub(super) fn wish<B>(request: &mut Request<B>) -> Option<Wish> {
    let headers = request.headers();
    let wanted = request.version() == Version::HTTP_11
        && request.method() != Method::CONNECT
        && connection_names(headers, "upgrade");
    let protocol = headers.get(UPGRADE).filter(|_| wanted)?.clone();
    // Over h2c the client could send requests past admission.
    let protocols = protocol.to_str().ok()?.split(',').map(str::trim);
    if protocols
        .map(str::to_ascii_lowercase)
        .any(|name| name.starts_with("h2c") || name.starts_with("http/"))
    {
        return None;
    }
    request.extensions_mut().remove::<OnUpgrade>().map(|client| Wish { protocol, client })
}

/// Puts the fields back that ask for `protocol` on the next hop; `connection` names them.
fn ask(headers: &mut HeaderMap, protocol: HeaderValue, connection: &'static str) {
    headers.insert(CONNECTION, HeaderValue::from_static(connection));
    headers.insert(UPGRADE, protocol);
}

impl Wish {
    /// Puts the wish into the fields of the upstream's request.
    pub(super) fn forward(&self, headers: &mut HeaderMap) {
        // Beside `TE`, which is of this connection too.
        ask(headers, self.protocol.clone(), "upgrade, te");
    }

    /// Joins both connections once this 101 was sent; `response` is what the upstream answered.
    pub(super) fn grant<B>(
        self,
        response: &mut Response<B>,
        protocol: Option<HeaderValue>,
        place: Place,
    ) {
        ask(response.headers_mut(), protocol.unwrap_or(self.protocol), "upgrade");
        let upstream = hyper::upgrade::on(response);
        let client = self.client;
        tokio::spawn(async move {
            let _place = place;
            let (client, upstream) = match tokio::try_join!(client, upstream) {
                Ok(both) => both,
                Err(error) => return debug!(%error, "upgrade did not come about"),
            };
            let (mut client, mut upstream) = (TokioIo::new(client), TokioIo::new(upstream));
            match copy_bidirectional(&mut client, &mut upstream).await {
                Ok((sent, received)) => debug!(sent, received, "upgraded connection ended"),
                Err(error) => debug!(%error, "upgraded connection broke"),
            }
        });
    }
}

/// The places for upgraded connections.
pub(super) struct Places {
    all: Arc<Semaphore>,
    per_agent: usize,
    taken: Shares<AgentId>,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Full {
    /// All places are taken.
    All,
    /// The agent has as many as one agent may have.
    Agent,
}

/// One upgraded connection's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share<AgentId>>,
}

impl Places {
    /// Returns `all` places, of which one agent may have `per_agent`.
    pub(super) fn new(all: usize, per_agent: usize) -> Self {
        Self { all: Arc::new(Semaphore::new(all)), per_agent, taken: Shares::default() }
    }

    /// Takes a place for `agent`.
    pub(super) fn take(&self, agent: Option<&AgentId>) -> Result<Place, Full> {
        let permit = Arc::clone(&self.all).try_acquire_owned().map_err(|_| Full::All)?;
        let share = match agent {
            Some(agent) => Some(self.taken.take(agent, self.per_agent).ok_or(Full::Agent)?),
            None => None,
        };
        Ok(Place { _permit: permit, _share: share })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_agent_leaves_places_to_others_and_is_forgotten_with_its_last() {
        let places = Places::new(4, 2);
        let (a, b) = (AgentId::new("a").unwrap(), AgentId::new("b").unwrap());
        let first = places.take(Some(&a)).unwrap();
        let second = places.take(Some(&a)).unwrap();
        assert_eq!(places.take(Some(&a)).unwrap_err(), Full::Agent);
        let other = places.take(Some(&b)).unwrap();
        let nobody = places.take(None).unwrap();
        assert_eq!(places.take(Some(&b)).unwrap_err(), Full::All);
        drop(first);
        let third = places.take(Some(&a)).unwrap();
        drop((second, third, other, nobody));
        assert!(places.taken.is_empty());
        assert_eq!(places.all.available_permits(), 4);
    }
}
