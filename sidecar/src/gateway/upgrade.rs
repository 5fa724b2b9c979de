//! HTTP/1.1 upgrades, WebSocket above all: after a 101 the bytes pass untouched both ways.

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
use tracing::debug;

use super::fields::connection_names;

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

/// Puts the fields back that ask for `protocol` on the next hop.
fn ask(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

impl Wish {
    /// Puts the wish into the fields of the upstream's request.
    pub(super) fn forward(&self, headers: &mut HeaderMap) {
        ask(headers, self.protocol.clone());
    }

    /// Joins both connections once this 101 was sent; `response` is what the upstream answered.
    pub(super) fn grant<B>(
        self,
        response: &mut Response<B>,
        protocol: Option<HeaderValue>,
        permit: OwnedSemaphorePermit,
    ) {
        ask(response.headers_mut(), protocol.unwrap_or(self.protocol));
        let upstream = hyper::upgrade::on(response);
        let client = self.client;
        tokio::spawn(async move {
            let _permit = permit;
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

/// Returns a place among the upgraded connections.
pub(super) fn place(tunnels: &Arc<Semaphore>) -> Option<OwnedSemaphorePermit> {
    Arc::clone(tunnels).try_acquire_owned().ok()
}
