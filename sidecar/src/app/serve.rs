//! A listener: accepts, serves HTTP/1.1 and HTTP/2 with upgrades, and drains when told to stop.
//!
//! 1. A connection is closed unless its first request arrives within [`HEADER_TIMEOUT`], whatever
//!    it has sent until then: hyper has no deadline of its own before it knows the version.
//! 2. At most [`CONNECTIONS_MAX`] connections are open; with that many nothing is accepted, further
//!    clients wait in the backlog of the operating system until one ends. Upgraded connections do
//!    not count here, the gateway bounds them.
//! 3. Once told to stop, only who waits already is accepted; what is in flight after [`DRAIN_DEADLINE`] is broken
//!    off, so that nothing of the router is alive when [`serve`] returns.
//! 4. An answer to a request whose body nobody read arrives: the rest of the body is read away.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use axum::{Router, extract::ConnectInfo};
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::{conn::auto, graceful::GracefulShutdown},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{ServiceExt, service_fn};
use tower_merit::PeerAddr;
use tracing::{debug, warn};

use super::linger::body_read_away;
use crate::trace;

/// The listeners whose requests may be traced: those that people and agents ask.
const TRACED: [&str; 4] = ["gateway", "ingest", "ingest.grpc", "rls"];

/// The longest a client may take over the head of a request: a slow one does not hold a connection.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

/// The most open connections of one listener; with the gateway's upgraded ones and those to the
/// upstream it is within the usual limit of open files of a service.
const CONNECTIONS_MAX: usize = 10_000;

/// It is logged at most this often that all connections are taken.
const FULL_LOG_EVERY: Duration = Duration::from_secs(10);

/// How often an HTTP/2 connection that carries nothing is asked for a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Pause after `accept` failed for want of a resource, most likely file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Once it is time to stop, connections that wait already are accepted for at most so long, until none came for
/// the second time; then they have the third to send their request.
const BACKLOG_DEADLINE: Duration = Duration::from_millis(250);
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);
const BACKLOG_GRACE: Duration = Duration::from_millis(50);

/// How long requests in flight may take to finish once it is time to stop.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// What a listener allows.
#[derive(Clone, Copy)]
struct Bounds {
    header_timeout: Duration,
    connections: usize,
    drain: Duration,
}

/// What listeners allow.
const BOUNDS: Bounds =
    Bounds { header_timeout: HEADER_TIMEOUT, connections: CONNECTIONS_MAX, drain: DRAIN_DEADLINE };

/// Serves `router` until `stop` is cancelled, then finishes what is in flight within
/// [`DRAIN_DEADLINE`], and breaks off the rest.
pub(super) async fn serve(
    name: &'static str,
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) {
    serve_within(BOUNDS, name, listener, router, stop).await;
}

async fn serve_within(
    bounds: Bounds,
    name: &'static str,
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) {
    let tasks = Tasks::default();
    let mut builder = auto::Builder::new(tasks.clone());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.header_timeout);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
    let draining = GracefulShutdown::new();
    let mut places = Places::new(bounds.connections);
    let serve_one = |place: OwnedSemaphorePermit, stream: TcpStream, peer: SocketAddr| {
        let asked = Arc::new(AtomicBool::new(false));
        let service = connection(name, router.clone(), &stream, (peer, &asked), tasks.clone());
        let service = TowerToHyperService::new(service);
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let serving = draining.watch(serving.into_owned());
        let silent = async move {
            tokio::time::sleep(bounds.header_timeout).await;
            if asked.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
        };
        tasks.spawn(async move {
            let _place = place;
            tokio::select! {
                served = serving => if let Err(error) = served {
                    debug!(listener = name, %peer, error, "connection ended");
                },
                () = silent => debug!(listener = name, %peer, "no request in time"),
            }
        });
    };
    loop {
        let accepted = async {
            let place = places.next(name).await;
            listener.accept().await.map(|accepted| (place, accepted))
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = accepted => match accepted {
                Ok((place, (stream, peer))) => serve_one(place, stream, peer),
                Err(error) => {
                    warn!(listener = name, %error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Whoever waits in the backlog is connected as far as it knows: closing now would reset it.
    let ends = Instant::now() + BACKLOG_DEADLINE;
    let mut late = false;
    while Instant::now() < ends
        && let Some(place) = places.now()
        && let Ok(Ok((stream, peer))) = tokio::time::timeout(BACKLOG_PAUSE, listener.accept()).await
    {
        serve_one(place, stream, peer);
        late = true;
    }
    if late {
        // What it sent is read before it is told to end.
        tokio::time::sleep(BACKLOG_GRACE).await;
    }
    drop(listener);
    drop(router);
    let finished = async {
        draining.shutdown().await;
        tasks.finished().await;
    };
    if tokio::time::timeout(bounds.drain, finished).await.is_err() {
        warn!(listener = name, "requests were still in flight after the time to finish them");
        tasks.break_off.cancel();
        tasks.finished().await;
    }
}

/// The tasks of a listener's connections, and of the requests that HTTP/2 carries side by side.
#[derive(Clone, Default)]
pub(super) struct Tasks {
    tracker: TaskTracker,
    break_off: CancellationToken,
}

impl Tasks {
    pub(super) fn spawn<F: Future<Output: Send> + Send + 'static>(&self, task: F) {
        self.tracker.spawn(self.break_off.clone().run_until_cancelled_owned(task));
    }

    /// Returns when none is left.
    async fn finished(&self) {
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl<F: Future<Output: Send> + Send + 'static> hyper::rt::Executor<F> for Tasks {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

/// The places for a listener's connections.
struct Places {
    free: Arc<Semaphore>,
    logged: Option<Instant>,
}

impl Places {
    fn new(places: usize) -> Self {
        Self { free: Arc::new(Semaphore::new(places)), logged: None }
    }

    /// Waits for a place.
    async fn next(&mut self, listener: &'static str) -> OwnedSemaphorePermit {
        let full = self.free.available_permits() == 0;
        if full && self.logged.is_none_or(|logged| logged.elapsed() >= FULL_LOG_EVERY) {
            self.logged = Some(Instant::now());
            warn!(listener, "all connections are taken: further clients wait until one ends");
        }
        Arc::clone(&self.free).acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Returns a place if one is free.
    fn now(&self) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.free).try_acquire_owned().ok()
    }
}

/// One connection's service: the router, told who the peer is. A request makes `asked` true.
fn connection(
    name: &'static str,
    router: Router,
    stream: &TcpStream,
    (peer, asked): (SocketAddr, &Arc<AtomicBool>),
    tasks: Tasks,
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
    let (traced, asked) = (TRACED.contains(&name), Arc::clone(asked));
    service_fn(move |mut request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(PeerAddr::from(peer));
        let router = router.clone();
        let answer =
            |request| async { router.oneshot(request).await.unwrap_or_else(|e| match e {}) };
        let request = body_read_away(request, &tasks);
        async move {
            Ok::<_, Infallible>(match traced {
                true => trace::serve(name, request, answer).await,
                false => answer(request).await,
            })
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::{
        body::Body,
        http::StatusCode,
        routing::{get, post},
    };
    use http_body_util::BodyExt as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        sync::mpsc,
        task::JoinHandle,
        time::timeout,
    };

    use super::{super::linger::LINGER_MAX, *};

    /// How long anything may take that should take milliseconds.
    const DEADLINE: Duration = Duration::from_secs(20);
    const LONG: Bounds = Bounds { header_timeout: DEADLINE, connections: 9, drain: DEADLINE };
    const SHORT: Duration = Duration::from_millis(100);
    const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";

    struct Listening {
        address: SocketAddr,
        stop: CancellationToken,
        served: JoinHandle<()>,
    }

    async fn listening(bounds: Bounds, router: Router) -> Listening {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
        let served = tokio::spawn(serve_within(bounds, "test", listener, router, stop.clone()));
        Listening { address, stop, served }
    }

    async fn say(address: SocketAddr, words: &[u8]) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(words).await.unwrap();
        stream
    }

    fn hello() -> Router {
        Router::new().route("/", get(async || "hello"))
    }

    #[tokio::test]
    async fn a_connection_without_a_request_is_closed_whatever_it_sends() {
        let bounds = Bounds { header_timeout: SHORT, ..LONG };
        let listening = listening(bounds, hello()).await;
        for words in [&b""[..], b"P", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"GET / HTTP/1.1\r\n"] {
            let mut stream = say(listening.address, words).await;
            let mut rest = Vec::new();
            let closed = timeout(DEADLINE, stream.read_to_end(&mut rest)).await;
            assert!(closed.is_ok(), "open after {words:?}");
        }
    }

    #[tokio::test]
    async fn a_request_may_take_longer_than_its_head() {
        let slow = async || {
            tokio::time::sleep(SHORT * 3).await;
            "hello"
        };
        let bounds = Bounds { header_timeout: SHORT, ..LONG };
        let listening = listening(bounds, Router::new().route("/", get(slow))).await;
        let mut stream = say(listening.address, GET).await;
        let mut head = [0; 15];
        timeout(DEADLINE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }

    /// A listener that refuses any body without reading it; returns a connection with the refusal read.
    async fn refused(length: usize, fields: &str) -> TcpStream {
        let router = hello().route("/", post(async || StatusCode::PAYLOAD_TOO_LARGE));
        let listening = listening(LONG, router).await;
        let head =
            format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{fields}\r\n");
        let mut stream = say(listening.address, head.as_bytes()).await;
        answer(&mut stream, "413 Payload Too Large").await;
        stream
    }

    /// Reads one answer without a body, or with five bytes.
    async fn answer(stream: &mut TcpStream, status: &str) {
        let mut read = Vec::new();
        while !read.ends_with(b"\r\n\r\n") && !read.ends_with(b"hello") {
            read.push(timeout(DEADLINE, stream.read_u8()).await.unwrap().unwrap());
        }
        let read = String::from_utf8(read).unwrap();
        assert!(read.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{read}");
    }

    #[tokio::test]
    async fn a_body_that_is_refused_unread_costs_neither_the_answer_nor_the_connection() {
        let body = vec![b'x'; 2 << 20];
        let mut stream = refused(body.len(), "").await;
        stream.write_all(&body).await.unwrap();
        stream.write_all(GET).await.unwrap();
        answer(&mut stream, "200 OK").await;
    }

    #[tokio::test]
    async fn what_is_read_away_is_bounded() {
        let mut stream = refused(usize::MAX >> 1, "").await;
        let piece = vec![b'x'; 64 << 10];
        let mut sent = 0;
        while timeout(DEADLINE, stream.write_all(&piece)).await.unwrap().is_ok() {
            sent += piece.len();
            assert!(sent < 1 << 30, "read without end");
        }
        assert!(sent >= LINGER_MAX / 2, "{sent}");
    }

    #[tokio::test]
    async fn nobody_is_told_to_send_a_body_that_was_refused() {
        let mut stream = refused(9, "expect: 100-continue\r\n").await;
        let mut rest = Vec::new();
        timeout(DEADLINE, stream.read_to_end(&mut rest)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8(rest).unwrap(), "");
    }

    #[tokio::test]
    async fn a_body_that_was_asked_for_and_then_refused_is_read_away() {
        let refuse = async |request: axum::extract::Request| {
            let first = request.into_body().frame().await;
            first.unwrap().unwrap();
            StatusCode::PAYLOAD_TOO_LARGE
        };
        let listening = listening(LONG, hello().route("/", post(refuse))).await;
        let body = vec![b'x'; 2 << 20];
        let (length, fields) = (body.len(), "expect: 100-continue\r\n");
        let head =
            format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n{fields}\r\n");
        let mut stream = say(listening.address, head.as_bytes()).await;
        answer(&mut stream, "100 Continue").await;
        stream.write_all(&body[..9]).await.unwrap();
        answer(&mut stream, "413 Payload Too Large").await;
        stream.write_all(&body[9..]).await.unwrap();
        stream.write_all(GET).await.unwrap();
        answer(&mut stream, "200 OK").await;
    }

    #[tokio::test]
    async fn beyond_the_most_connections_a_client_waits_until_one_ends() {
        let listening = listening(Bounds { connections: 1, ..LONG }, hello()).await;
        let mut first = say(listening.address, GET).await;
        let mut head = [0; 15];
        timeout(DEADLINE, first.read_exact(&mut head)).await.unwrap().unwrap();
        let mut second = say(listening.address, GET).await;
        assert!(timeout(SHORT, second.read_u8()).await.is_err(), "more than one connection");
        drop(first);
        timeout(DEADLINE, second.read_exact(&mut head)).await.unwrap().unwrap();
        assert_eq!(&head, b"HTTP/1.1 200 OK");
    }

    #[tokio::test]
    async fn an_answer_that_does_not_end_is_broken_off_and_the_router_is_gone() {
        let (alive, mut gone) = mpsc::channel::<()>(1);
        let endless = move || {
            let alive = alive.clone();
            async move {
                Body::from_stream(futures_util::stream::unfold((alive, true), async |state| {
                    let (alive, first) = state;
                    if !first {
                        std::future::pending::<()>().await;
                    }
                    Some((Ok::<_, Infallible>("words"), (alive, false)))
                }))
            }
        };
        let router = Router::new().route("/", get(endless));
        let listening = listening(Bounds { drain: SHORT, ..LONG }, router).await;
        let mut stream = say(listening.address, GET).await;
        let mut head = [0; 15];
        timeout(DEADLINE, stream.read_exact(&mut head)).await.unwrap().unwrap();
        listening.stop.cancel();
        timeout(DEADLINE, listening.served).await.unwrap().unwrap();
        assert_eq!(gone.try_recv(), Err(mpsc::error::TryRecvError::Disconnected));
    }
}
