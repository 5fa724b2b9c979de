//! A listener: accepts, serves HTTP/1.1 and HTTP/2 with upgrades, and drains when told to stop.

use std::{convert::Infallible, net::SocketAddr, time::Duration};

use axum::{Router, body::Body, extract::ConnectInfo};
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::{ServiceExt, service_fn};
use tracing::{debug, warn};

/// The longest a client may take over the head of a request: a slow one does not hold a connection.
const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// How often an HTTP/2 connection that carries nothing is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Pause after `accept` failed for want of a resource, most likely file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long requests in flight may take to finish once it is time to stop.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// Serves `router` until `stop` is cancelled, then finishes what is in flight within
/// [`DRAIN_DEADLINE`].
pub(super) async fn serve(
    name: &'static str,
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
    let draining = GracefulShutdown::new();
    loop {
        let (stream, peer) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    warn!(listener = name, %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let service = TowerToHyperService::new(connection(router.clone(), &stream, peer));
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let serving = draining.watch(serving.into_owned());
        tokio::spawn(async move {
            if let Err(error) = serving.await {
                debug!(listener = name, %peer, error, "connection ended");
            }
        });
    }
    drop(listener);
    drop(router);
    if tokio::time::timeout(DRAIN_DEADLINE, draining.shutdown()).await.is_err() {
        warn!(listener = name, "requests were still in flight after the time to finish them");
    }
}

/// One connection's service: the router, told who the peer is.
fn connection(
    router: Router,
    stream: &TcpStream,
    peer: SocketAddr,
) -> impl tower::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "small answers may be late");
    }
    service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        router.clone().oneshot(request.map(Body::new))
    })
}
