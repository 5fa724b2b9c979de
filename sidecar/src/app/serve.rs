//! A listener: accepts, serves HTTP/1.1 and HTTP/2 with upgrades, and drains when told to stop.
//!
//! 1. How many connections there are and how long they may do nothing is bounded ([`connections`](super::connections)): the
//!    first request must come within [`HEADER_TIMEOUT`], as hyper has no deadline before it knows the version.
//! 2. Once told to stop, only who waits already is accepted; what is in flight after [`DRAIN_DEADLINE`] is broken
//!    off, so that nothing of the router is alive when [`serve`] returns.
//! 3. An answer to a request whose body nobody read arrives: the rest of the body is read away.

use std::{convert::Infallible, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use axum::{Router, extract::ConnectInfo};
use hyper::{Request, body::Incoming};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tower::{ServiceExt, service_fn};
use tower_merit::PeerAddr;
use tracing::{debug, warn};

use super::{
    connections::{
        Activity, CONNECTIONS_MAX, Ended, IDLE_MAX, Patience, Place, Places, STALLED_MAX, prepare,
    },
    linger::body_read_away,
};
use crate::trace;

/// The listeners whose requests may be traced: those that people and agents ask.
const TRACED: [&str; 4] = ["gateway", "ingest", "ingest.grpc", "rls"];

/// The longest a client may take over the head of a request: a slow one does not hold a connection.
pub(super) const HEADER_TIMEOUT: Duration = Duration::from_secs(15);

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

/// How long a connection that carried nothing may take to end in order.
const GOODBYE: Duration = Duration::from_secs(10);

/// What a listener allows.
#[derive(Clone, Copy)]
struct Bounds {
    patience: Patience,
    connections: usize,
    drain: Duration,
}

/// What listeners allow.
const BOUNDS: Bounds = Bounds {
    patience: Patience { first: HEADER_TIMEOUT, idle: IDLE_MAX, stalled: STALLED_MAX },
    connections: CONNECTIONS_MAX,
    drain: DRAIN_DEADLINE,
};

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
    builder.http1().timer(TokioTimer::new()).header_read_timeout(bounds.patience.first);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE);
    let draining = CancellationToken::new();
    let places = Places::new(name, bounds.connections);
    let serve_one = |place: Place, of_peer, stream: TcpStream, peer: SocketAddr| {
        prepare(&stream, peer);
        let activity = Activity::new();
        let service = connection(name, router.clone(), (peer, &activity), tasks.clone());
        let service = TowerToHyperService::new(service);
        let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
        let (serving, draining) = (serving.into_owned(), draining.clone());
        let place = place.counted();
        tasks.spawn(async move {
            // Dropped in this order: who waits for the place of this one must find its peer's free too.
            let _places = (of_peer, place);
            let mut serving = pin!(serving);
            let mut ends = pin!(activity.ends(bounds.patience));
            let (mut goodbye, mut leaving) = (None, false);
            loop {
                tokio::select! {
                    // In this order: what came in time is not lost to the clock.
                    biased;
                    served = serving.as_mut() => {
                        if let Err(error) = served {
                            debug!(listener = name, %peer, error, "connection ended");
                        }
                        return;
                    }
                    () = draining.cancelled(), if !leaving => {
                        leaving = true;
                        serving.as_mut().graceful_shutdown();
                    }
                    why = ends.as_mut(), if goodbye.is_none() => {
                        why.told(name, peer);
                        if why != Ended::Idle {
                            return;
                        }
                        serving.as_mut().graceful_shutdown();
                        goodbye = Some(Instant::now() + GOODBYE);
                    }
                    // A request that crossed the goodbye on its way is still answered, however long that takes.
                    () = until(goodbye) => {
                        if activity.is_idle() {
                            return;
                        }
                        goodbye = None;
                        ends.set(activity.ends(bounds.patience));
                    }
                }
            }
        });
    };
    let take = |place, stream, peer| match places.of_peer(peer) {
        Some(of_peer) => serve_one(place, of_peer, stream, peer),
        None => Ended::Peer.told(name, peer),
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
                Ok((place, (stream, peer))) => take(place, stream, peer),
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
        take(place, stream, peer);
        late = true;
    }
    if late {
        // What it sent is read before it is told to end.
        tokio::time::sleep(BACKLOG_GRACE).await;
    }
    drop(listener);
    drop(router);
    draining.cancel();
    if tokio::time::timeout(bounds.drain, tasks.finished()).await.is_err() {
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

/// Waits until then; for ever when there is no such time.
async fn until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}

/// One connection's service: the router, told who the peer is; `activity` learns of its requests.
fn connection(
    name: &'static str,
    router: Router,
    (peer, activity): (SocketAddr, &Arc<Activity>),
    tasks: Tasks,
) -> impl tower::Service<
    Request<Incoming>,
    Response = axum::response::Response,
    Error = Infallible,
    Future: Send,
> + Clone
+ Send
+ 'static {
    let (traced, activity) = (TRACED.contains(&name), Arc::clone(activity));
    service_fn(move |mut request: Request<Incoming>| {
        let in_flight = activity.request();
        request.extensions_mut().insert(ConnectInfo(peer));
        request.extensions_mut().insert(PeerAddr::from(peer));
        let router = router.clone();
        let answer =
            |request| async { router.oneshot(request).await.unwrap_or_else(|e| match e {}) };
        let request = body_read_away(request, &tasks);
        async move {
            let answer = match traced {
                true => trace::serve(name, request, answer).await,
                false => answer(request).await,
            };
            Ok::<_, Infallible>(answer.map(|body| in_flight.answers(body)))
        }
    })
}

#[cfg(test)]
mod tests {
    use axum::{
        body::{Body, Bytes},
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
    const LONG: Bounds = Bounds {
        patience: Patience { first: DEADLINE, idle: DEADLINE, stalled: DEADLINE },
        connections: 9,
        drain: DEADLINE,
    };
    const SHORT: Duration = Duration::from_millis(100);
    /// Until a client that is quick has asked, also on a busy machine.
    const FIRST: Duration = Duration::from_secs(1);
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
        let bounds = Bounds { patience: Patience { first: SHORT, ..LONG.patience }, ..LONG };
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
        let bounds = Bounds { patience: Patience { first: SHORT, ..LONG.patience }, ..LONG };
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
    async fn one_address_does_not_have_all_places_and_what_it_opens_beyond_is_turned_away() {
        let listening = listening(Bounds { connections: 3, ..LONG }, hello()).await;
        let mut kept = Vec::new();
        for _ in 0..2 {
            let mut stream = say(listening.address, GET).await;
            answer(&mut stream, "200 OK").await;
            kept.push(stream);
        }
        let mut third = TcpStream::connect(listening.address).await.unwrap();
        let told = timeout(DEADLINE, third.read_u8()).await.unwrap();
        assert!(told.is_err(), "{told:?}");
        kept.pop();
        // The other end has to be seen first.
        loop {
            let mut stream = TcpStream::connect(listening.address).await.unwrap();
            // Who is turned away may notice while it asks.
            let asked = stream.write_all(GET).await;
            if asked.is_ok() && timeout(DEADLINE, stream.read_u8()).await.unwrap().is_ok() {
                break;
            }
        }
    }

    /// An HTTP/2 client over one connection, and the task of that connection.
    async fn http2(
        address: SocketAddr,
    ) -> (hyper::client::conn::http2::SendRequest<Body>, JoinHandle<Result<(), hyper::Error>>) {
        let stream = TcpStream::connect(address).await.unwrap();
        let builder =
            hyper::client::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let (client, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
        (client, tokio::spawn(connection))
    }

    fn ask() -> Request<Body> {
        Request::get("http://x/").body(Body::empty()).unwrap()
    }

    #[tokio::test]
    async fn an_http_2_connection_that_only_keeps_itself_alive_is_closed_in_order() {
        let bounds = Bounds {
            patience: Patience { first: FIRST, idle: SHORT * 5, ..LONG.patience },
            ..LONG
        };
        let listening = listening(bounds, hello()).await;
        let (mut client, connection) = http2(listening.address).await;
        let answer = client.send_request(ask()).await.unwrap();
        answer.into_body().collect().await.unwrap();
        // The client answers pings as long as it lives; in order means that it is no error.
        timeout(DEADLINE, connection).await.unwrap().unwrap().unwrap();
    }

    #[tokio::test]
    async fn a_client_that_does_not_read_its_answer_is_ended_and_one_that_waits_is_not() {
        let endless = async || {
            let piece = Bytes::from(vec![0; 64 << 10]);
            Body::from_stream(futures_util::stream::repeat(Ok::<_, Infallible>(piece)))
        };
        let rare = async || {
            Body::from_stream(futures_util::stream::unfold(false, async |late| {
                if late {
                    tokio::time::sleep(SHORT * 10).await;
                }
                Some((Ok::<_, Infallible>("words"), true))
            }))
        };
        let router = Router::new().route("/", get(endless)).route("/rare", get(rare));
        let patience = Patience { first: FIRST, idle: DEADLINE, stalled: SHORT * 3 };
        let listening = listening(Bounds { patience, ..LONG }, router).await;
        let mut waits = say(listening.address, b"GET /rare HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let (mut client, connection) = http2(listening.address).await;
        let unread = client.send_request(ask()).await.unwrap();
        let ended = timeout(DEADLINE, connection).await;
        assert!(ended.is_ok(), "kept, though nobody reads");
        drop(unread);
        // By now the one that gets something once a second has got more than its head.
        tokio::time::sleep(FIRST + SHORT * 12).await;
        let mut read = vec![0; 4096];
        let length = timeout(DEADLINE, waits.read(&mut read)).await.unwrap().unwrap();
        assert!(String::from_utf8_lossy(&read[..length]).matches("words").count() >= 2);
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
