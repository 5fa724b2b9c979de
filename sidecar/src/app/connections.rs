//! Who may be connected, and for how long: what keeps one peer from taking a listener away from all others.
//!
//! 1. At most [`CONNECTIONS_MAX`] connections are open; with that many nothing is accepted, further clients wait in the
//!    backlog of the operating system until one ends. One address may have nine tenths of them, enough for a proxy that
//!    everybody comes through, so that nobody fills a listener alone; what it opens beyond is closed at once.
//!    Addresses of IPv6 count by their /64.
//! 2. A connection ends when its first request does not come in time, whatever it has sent until then; when it
//!    carries nothing for [`IDLE_MAX`], whatever it says in between (an HTTP/2 ping is no request); and when all that it
//!    carries are answers which nobody took a piece of for [`STALLED_MAX`]: a client that does not read. A service that
//!    takes its time is neither.
//! 3. The operating system looks after peers that vanished: keep-alive probes, and its own end of retransmissions.
//! 4. Upgraded connections do not count here, the gateway bounds them.

use std::{
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use metrics::{Gauge, counter, gauge};
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    net::TcpStream,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, sleep_until},
};
use tracing::{debug, warn};

use crate::shares::{Share, Shares};

/// The most open connections of one listener; with the gateway's upgraded ones and those to the
/// upstream it is within the usual limit of open files of a service.
pub(super) const CONNECTIONS_MAX: usize = 10_000;

/// How long a connection may carry nothing. HTTP/1 does not wait so long: hyper's own deadline for a head
/// ends a connection that sends none.
pub(super) const IDLE_MAX: Duration = Duration::from_secs(120);

/// How long a client may take nothing of what it was answered. Long, because what counts is what leaves the buffers of this
/// process: behind it the kernel's hold some MiB, and a client that reads 8 KiB a second empties them in minutes.
pub(super) const STALLED_MAX: Duration = Duration::from_secs(900);

/// It is logged at most this often that all connections are taken.
const FULL_LOG_EVERY: Duration = Duration::from_secs(10);

/// When a silent peer is first asked whether it is there, how often then, and how often in vain.
const PROBE_AFTER: Duration = Duration::from_secs(60);
const PROBE_EVERY: Duration = Duration::from_secs(15);
const PROBES: u32 = 4;

/// The places for a listener's connections.
pub(super) struct Places {
    free: Arc<Semaphore>,
    per_peer: usize,
    taken: Shares<IpAddr>,
    open: Gauge,
    logged: Mutex<Option<Instant>>,
}

/// One connection's place among all of its listener, given back when dropped.
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    open: Gauge,
}

impl Places {
    /// Returns `places` for the listener `name`, of which one address may have nine tenths.
    pub(super) fn new(name: &'static str, places: usize) -> Self {
        let per_peer = (places - places.div_ceil(10)).max(1);
        let open = gauge!("merit_connections", "listener" => name);
        open.set(0.0);
        let free = Arc::new(Semaphore::new(places));
        Self { free, per_peer, taken: Shares::default(), open, logged: Mutex::default() }
    }

    /// Waits for a place.
    pub(super) async fn next(&self, listener: &'static str) -> Place {
        if self.free.available_permits() == 0 {
            let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
            if logged.is_none_or(|logged| logged.elapsed() >= FULL_LOG_EVERY) {
                *logged = Some(Instant::now());
                warn!(listener, "all connections are taken: further clients wait until one ends");
            }
        }
        let permit = Arc::clone(&self.free).acquire_owned().await;
        self.place(permit.expect("the semaphore is never closed"))
    }

    /// Returns a place if one is free.
    pub(super) fn now(&self) -> Option<Place> {
        Arc::clone(&self.free).try_acquire_owned().ok().map(|permit| self.place(permit))
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        Place { _permit: permit, open: self.open.clone() }
    }

    /// Returns a place among those of `peer`, unless it has as many as it may.
    pub(super) fn of_peer(&self, peer: SocketAddr) -> Option<Share<IpAddr>> {
        self.taken.take(&network_of(peer.ip()), self.per_peer)
    }
}

impl Place {
    /// Counts the connection as open, from now until the place is dropped.
    pub(super) fn counted(self) -> Counted {
        self.open.increment(1.0);
        Counted(self)
    }
}

/// The place of a connection that is open.
pub(super) struct Counted(Place);

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.open.decrement(1.0);
    }
}

/// Returns what counts as one peer: an address, or with IPv6 the network that one host is usually given.
fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let [a, b, c, d, ..] = address.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        address => address,
    }
}

/// Sets what the operating system does for a connection.
pub(super) fn prepare(stream: &TcpStream, peer: SocketAddr) {
    let socket = SockRef::from(stream);
    let probes =
        TcpKeepalive::new().with_time(PROBE_AFTER).with_interval(PROBE_EVERY).with_retries(PROBES);
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%peer, %error, "small answers may be late");
    }
    if let Err(error) = socket.set_tcp_keepalive(&probes) {
        debug!(%peer, %error, "that the peer vanished may stay unnoticed");
    }
}

/// Why a connection is ended that would go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// Its first request did not come in time.
    Unasked,
    /// It carried nothing.
    Idle,
    /// Its client does not take what it was answered.
    Stalled,
    /// Its peer has too many.
    Peer,
}

impl Ended {
    /// Counts it, and tells it to who wants to know of every connection.
    pub(super) fn told(self, listener: &'static str, peer: SocketAddr) {
        let reason = match self {
            Self::Unasked => "unasked",
            Self::Idle => "idle",
            Self::Stalled => "stalled",
            Self::Peer => "peer",
        };
        counter!("merit_connections_ended_total", "listener" => listener, "reason" => reason)
            .increment(1);
        debug!(listener, %peer, reason, "connection ended here");
    }
}

/// How long a connection may do nothing.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    pub(super) first: Duration,
    pub(super) idle: Duration,
    pub(super) stalled: Duration,
}

/// What goes on on one connection.
pub(super) struct Activity {
    began: Instant,
    /// When anything last went on, in milliseconds since it began.
    moved_ms: AtomicU64,
    asked: AtomicBool,
    /// Requests whose answers are not out.
    in_flight: AtomicU32,
    /// Answers of which a piece was made and the next was not asked for.
    held: AtomicU32,
}

impl Activity {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            began: Instant::now(),
            moved_ms: AtomicU64::new(0),
            asked: AtomicBool::new(false),
            in_flight: AtomicU32::new(0),
            held: AtomicU32::new(0),
        })
    }

    fn moved(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(now, Ordering::Relaxed);
    }

    /// Returns whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.load(Ordering::Relaxed) == 0
    }

    /// Notes a request; it is in flight until what is returned is dropped, with the answer's body.
    pub(super) fn request(self: &Arc<Self>) -> InFlight {
        self.asked.store(true, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.moved();
        InFlight { activity: Arc::clone(self), holds: false }
    }

    /// Returns when the connection is to be ended, and why.
    pub(super) async fn ends(&self, patience: Patience) -> Ended {
        sleep(patience.first).await;
        if !self.asked.load(Ordering::Relaxed) {
            return Ended::Unasked;
        }
        let shortest = patience.idle.min(patience.stalled);
        loop {
            let moved = self.began + Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
            let now = Instant::now();
            let (in_flight, held) =
                (self.in_flight.load(Ordering::Relaxed), self.held.load(Ordering::Relaxed));
            let (ended, until) = if in_flight == 0 {
                (Ended::Idle, moved + patience.idle)
            } else if held >= in_flight {
                (Ended::Stalled, moved + patience.stalled)
            } else {
                // For one at least the service is slow, or its answer has no end.
                sleep(shortest).await;
                continue;
            };
            if now >= until {
                return ended;
            }
            // It may be the other of the two by then.
            sleep_until(until.min(now + shortest)).await;
        }
    }
}

/// One request on its connection.
pub(super) struct InFlight {
    activity: Arc<Activity>,
    /// Whether the last piece of its answer was made and nobody asked for the next one yet.
    holds: bool,
}

impl InFlight {
    /// Returns the body of its answer; the request is in flight until that is dropped.
    pub(super) fn answers(self, body: Body) -> Body {
        Body::new(Answer { body, in_flight: self })
    }

    fn holds(&mut self, holds: bool) {
        if self.holds != holds {
            self.holds = holds;
            match holds {
                true => self.activity.held.fetch_add(1, Ordering::Relaxed),
                false => self.activity.held.fetch_sub(1, Ordering::Relaxed),
            };
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.holds(false);
        self.activity.moved();
        self.activity.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// An answer's body, of which its connection knows whether it moves.
struct Answer {
    body: Body,
    in_flight: InFlight,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        // Asked for more: the client takes what it gets.
        self.in_flight.holds(false);
        self.in_flight.activity.moved();
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        self.in_flight.holds(matches!(frame, Some(Ok(_))));
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const PATIENCE: Patience = Patience {
        first: Duration::from_secs(15),
        idle: Duration::from_secs(120),
        stalled: Duration::from_secs(60),
    };

    /// Returns why the connection ended, and after how many seconds; nothing when it did not within a day.
    async fn ended(activity: &Activity) -> Option<(Ended, u64)> {
        let began = Instant::now();
        let day = Duration::from_secs(24 * 3600);
        let ended = tokio::time::timeout(day, activity.ends(PATIENCE)).await.ok()?;
        Some((ended, began.elapsed().as_secs()))
    }

    fn pieces() -> Body {
        let pieces = [Ok::<_, std::io::Error>("a"), Ok("b")];
        Body::from_stream(futures_util::stream::iter(pieces))
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_nothing_is_ended_soon_and_who_has_asked_later() {
        assert_eq!(ended(&Activity::new()).await, Some((Ended::Unasked, 15)));
        let activity = Activity::new();
        drop(activity.request());
        assert_eq!(ended(&activity).await, Some((Ended::Idle, 120)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_begins_the_wait_anew() {
        let activity = Activity::new();
        let asks = Arc::clone(&activity);
        tokio::spawn(async move {
            for _ in 0..10 {
                drop(asks.request());
                sleep(Duration::from_secs(100)).await;
            }
        });
        assert_eq!(ended(&activity).await, Some((Ended::Idle, 900 + 120)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_takes_its_time_is_waited_for_and_a_client_that_reads_nothing_is_not() {
        let slow = Activity::new();
        let _request = slow.request();
        assert_eq!(ended(&slow).await, None);

        let silent = Activity::new();
        let endless =
            Body::from_stream(futures_util::stream::pending::<Result<&str, std::io::Error>>());
        let mut body = silent.request().answers(endless);
        assert!(futures_util::FutureExt::now_or_never(body.frame()).is_none());
        assert_eq!(ended(&silent).await, None, "events may be rare");

        let mixed = Activity::new();
        let _slow = mixed.request();
        let mut body = mixed.request().answers(pieces());
        body.frame().await.unwrap().unwrap();
        assert_eq!(ended(&mixed).await, None, "others wait for the service on it");

        let stalled = Activity::new();
        let mut body = stalled.request().answers(pieces());
        body.frame().await.unwrap().unwrap();
        assert_eq!(ended(&stalled).await, Some((Ended::Stalled, 60)));
        // It reads on after all.
        body.frame().await.unwrap().unwrap();
        assert!(body.frame().await.is_none());
        drop(body);
        assert_eq!(
            (stalled.held.load(Ordering::Relaxed), stalled.in_flight.load(Ordering::Relaxed)),
            (0, 0)
        );
    }

    #[test]
    fn one_address_leaves_places_to_others_and_is_forgotten_with_its_last() {
        let places = Places::new("test", 4);
        let at = |address: &str| SocketAddr::new(address.parse().unwrap(), 1);
        for (one, same, other) in [
            ("192.0.2.1", "::ffff:192.0.2.1", "192.0.2.2"),
            ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1"),
        ] {
            let taken: Vec<_> =
                [one, same, one].map(|address| places.of_peer(at(address)).unwrap()).into();
            assert!(places.of_peer(at(same)).is_none());
            assert!(places.of_peer(at(other)).is_some());
            drop(taken);
            assert!(places.of_peer(at(same)).is_some());
        }
        assert!(places.taken.is_empty());
    }
}
