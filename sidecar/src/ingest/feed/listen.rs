//! The feed's end: connects, takes what comes, and connects again.
//!
//! 1. Frames that are there at once are taken together, so that a spool syncs once for all.
//! 2. While the queue is full nothing is read: the feed feels it through TCP. Its pings wait
//!    meanwhile, so a feed that insists on pongs may hang up; then we connect again.
//! 3. Pings of the feed are answered; three of ours go out in [`Config::silence`], and a feed that says
//!    nothing in that time is left.
//! 4. Between tries the wait doubles, by half by chance. It begins anew once a connection brought a
//!    rating. Who says that trying is no use (a refused handshake, close code 1008, 3000 or 3003) is
//!    asked as seldom as we ever do; who names a time, then.
//! 5. A frame beyond the bound is not read: the connection ends with close code 1009; for one that is no
//!    UTF-8 with 1007. A feed that goes on from the last id would send it for ever: after
//!    [`STUCK`] such ends at one id the next connection names none.

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use axum::body::Bytes;
use futures_util::{FutureExt as _, SinkExt as _, StreamExt as _};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep, sleep_until, timeout};
use tokio_tungstenite::tungstenite::{
    Error, Message, Utf8Bytes,
    error::CapacityError,
    protocol::{CloseFrame, frame::coding::CloseCode},
};
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::{
    backoff::Backoff,
    config::Config,
    connect::{self, Again, ConnectError, Socket},
    dead::DeadLetters,
    frames::{self, Item},
    meter::{Fault, Meter},
    plan::Remote,
    queue::{Queue, Received},
    status::Status,
};
use crate::{causes::with_causes, clock::unix_ms, rating::RatingId};

/// Between tries to connect, at least and at most.
const RECONNECT_LEAST: Duration = Duration::from_millis(250);
const RECONNECT_MOST: Duration = Duration::from_secs(30);
/// How long to leave a feed alone that closes with "try again later" (code 1013).
const TRY_LATER: Duration = Duration::from_secs(5);
/// Ratings that are taken together at most, and about how many bytes.
const BATCH: usize = 512;
const BATCH_BYTES: usize = 1 << 20;
/// Items of one frame that are no ratings and are put aside one by one; of more, the frame is.
const MALFORMED_MAX: usize = 100;
/// How long a closing handshake may take.
const CLOSE_DEADLINE: Duration = Duration::from_secs(1);
/// Connections that a frame ended that cannot be read, all at one id, before one is tried without it.
const STUCK: u32 = 3;
/// Between tries to put ratings into a spool that does not take them.
const SPOOL_PAUSE: Duration = Duration::from_millis(500);

/// Reads the feed.
pub(super) struct Listener {
    pub(super) config: Config,
    pub(super) feed: Remote,
    pub(super) headers: http::HeaderMap,
    pub(super) queue: Queue,
    pub(super) dead: DeadLetters,
    pub(super) meter: Arc<Meter>,
    pub(super) status: Status,
    /// The id of the rating that was taken last.
    pub(super) last: Option<RatingId>,
    /// Connections in a row that a frame ended that cannot be read, since that one was taken.
    pub(super) stuck: u32,
    pub(super) stop: CancellationToken,
}

/// Why a connection ended.
#[derive(Debug)]
enum Ended {
    /// We were told to stop.
    Stopped,
    /// The feed closed it.
    Closed { code: Option<u16>, reason: String },
    /// It broke.
    Broken(String),
    /// The feed says nothing.
    Silent(Duration),
    /// A frame was beyond the bound.
    TooLong,
    /// A text frame was none.
    NotText,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Stopped => f.write_str("stopping"),
            Self::Closed { code: Some(code), reason } if reason.is_empty() => {
                write!(f, "feed closed with code {code}")
            }
            Self::Closed { code: Some(code), reason } => {
                write!(f, "feed closed with code {code}: {reason}")
            }
            Self::Closed { code: None, .. } => f.write_str("feed closed without a code"),
            Self::Broken(why) => write!(f, "connection broke: {why}"),
            Self::Silent(silence) => write!(f, "feed said nothing for {} ms", silence.as_millis()),
            Self::TooLong => f.write_str("frame was longer than feed.max_frame_bytes"),
            Self::NotText => f.write_str("text frame was not UTF-8"),
        }
    }
}

impl Ended {
    fn again(&self) -> Again {
        match self {
            // Policy violation; unauthorized and forbidden as IANA registers them.
            Self::Closed { code: Some(1008 | 3000 | 3003), .. } => Again::Late,
            Self::Closed { code: Some(1013), .. } => Again::After(TRY_LATER),
            _ => Again::Soon,
        }
    }
}

impl Listener {
    /// Reads until told to stop.
    pub(super) async fn run(mut self) {
        let mut backoff = Backoff::new(RECONNECT_LEAST, RECONNECT_MOST);
        let mut was_connected = false;
        loop {
            let stop = self.stop.clone();
            let connected = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                connected = self.connect() => connected,
            };
            let again = match connected {
                Ok(socket) => {
                    info!(again = was_connected, "feed connected");
                    self.meter.connected(was_connected);
                    self.status.connected();
                    was_connected = true;
                    let mut visit = Visit { brought: false, listener: &mut self };
                    let ended = visit.listen(socket).await;
                    let brought = visit.brought;
                    self.meter.disconnected();
                    self.status.disconnected(&ended.to_string());
                    match &ended {
                        Ended::Stopped => return,
                        Ended::Closed { code: Some(1000 | 1001 | 1012), .. } => {
                            info!(why = %ended, "feed disconnected");
                        }
                        _ => warn!(why = %ended, "feed disconnected"),
                    }
                    match &ended {
                        Ended::Broken(_) | Ended::TooLong | Ended::NotText => {
                            self.meter.fault(Fault::Broken);
                        }
                        Ended::Silent(_) => self.meter.fault(Fault::Silent),
                        _ => {}
                    }
                    if brought {
                        backoff.reset();
                    }
                    if matches!(ended, Ended::TooLong | Ended::NotText) {
                        self.is_stuck(&ended);
                    }
                    ended.again()
                }
                Err(error) => {
                    self.not_connected(&error);
                    error.again()
                }
            };
            let random = fastrand::f64();
            let wait = match again {
                Again::Soon => backoff.next(random),
                Again::Late => backoff.longest(random),
                // Not before, and not all at once.
                Again::After(told) => told + backoff.next(random),
            };
            debug!(?wait, "before the next try to connect");
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = sleep(wait) => {}
            }
        }
    }

    fn not_connected(&self, error: &ConnectError) {
        let text = with_causes(error);
        self.status.disconnected(&text);
        self.meter.fault(if error.is_refusal() { Fault::Handshake } else { Fault::Connect });
        if error.again() == Again::Late {
            error!(error = text, "feed refuses the connection");
        } else {
            warn!(error = text, "feed not connected");
        }
    }

    /// Whether the feed is told where to go on.
    fn resumes(&self) -> bool {
        let subscribes = |text: &String| text.contains(LAST_ID);
        self.config.resume_query.is_some() || self.config.subscribe.as_ref().is_some_and(subscribes)
    }

    /// Notes that a frame ended the connection that cannot be read: going on from the same id would
    /// meet it again.
    fn is_stuck(&mut self, ended: &Ended) {
        self.stuck = self.stuck.saturating_add(1);
        let Some(last) = self.last.as_ref().filter(|_| self.resumes() && self.stuck >= STUCK)
        else {
            return;
        };
        let times = self.stuck;
        self.meter.gap();
        let last = last.as_str();
        error!(why = %ended, times, last, "feed is not asked to go on: ratings after that id may be missing");
        self.status.gap(&format!(
            "{ended}, {times} times after id {last:?}: the feed is not asked to go on from there, and \
             ratings may be missing"
        ));
    }

    async fn connect(&self) -> Result<Socket, ConnectError> {
        let last = self.last.as_ref().filter(|_| self.stuck < STUCK);
        let uri = match (&self.config.resume_query, last) {
            (Some(name), Some(last)) => connect::resuming(&self.feed.uri, name, last),
            _ => self.feed.uri.clone(),
        };
        let max = self.config.max_frame_bytes;
        let mut socket = connect::connect(&self.feed, uri, &self.headers, max).await?;
        if let Some(text) = &self.config.subscribe {
            let text = subscription(text, last);
            let sent = timeout(self.config.silence, socket.send(Message::text(text))).await;
            let sent = sent.map_err(|_| ConnectError::Late)?;
            sent.map_err(|error| ConnectError::Handshake(Box::new(error)))?;
        }
        Ok(socket)
    }
}

/// What stands for the last id in a subscription.
const LAST_ID: &str = "{last_id}";

/// Returns `text` with the last id in its place, escaped as within a JSON string.
fn subscription(text: &str, last: Option<&RatingId>) -> String {
    let quoted = serde_json::json!(last.map(RatingId::as_str).unwrap_or_default()).to_string();
    text.replace(LAST_ID, &quoted[1..quoted.len() - 1])
}

/// One connection's time.
struct Visit<'a> {
    /// Whether it brought a rating.
    brought: bool,
    listener: &'a mut Listener,
}

/// What frames said that came together.
#[derive(Default)]
struct Batch {
    ratings: Vec<Received>,
    bytes: usize,
    last: Option<RatingId>,
    ended: Option<Ended>,
}

impl Batch {
    fn is_full(&self) -> bool {
        self.ended.is_some() || self.ratings.len() >= BATCH || self.bytes >= BATCH_BYTES
    }
}

impl Visit<'_> {
    async fn listen(&mut self, mut socket: Socket) -> Ended {
        let silence = self.listener.config.silence;
        let stop = self.listener.stop.clone();
        let mut pings = interval_at(Instant::now() + silence / 3, silence / 3);
        pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut heard = Instant::now();
        loop {
            let frame = tokio::select! {
                biased;
                () = stop.cancelled() => {
                    close(&mut socket, CloseCode::Normal).await;
                    return Ended::Stopped;
                }
                frame = socket.next() => frame,
                () = sleep_until(heard + silence) => {
                    close(&mut socket, CloseCode::Away).await;
                    return Ended::Silent(silence);
                }
                _ = pings.tick() => {
                    // A feed that does not read either is silent soon.
                    match timeout(silence, socket.send(Message::Ping(Bytes::new()))).await {
                        Ok(Ok(())) => continue,
                        Ok(Err(error)) => return Ended::Broken(error.to_string()),
                        Err(_) => return Ended::Silent(silence),
                    }
                }
            };
            let mut batch = Batch::default();
            self.take(frame, &mut batch).await;
            while !batch.is_full() {
                let Some(frame) = socket.next().now_or_never() else { break };
                self.take(frame, &mut batch).await;
            }
            let ended = batch.ended.take();
            if !self.keep(batch).await {
                close(&mut socket, CloseCode::Normal).await;
                return Ended::Stopped;
            }
            if let Some(ended) = ended {
                let code = match &ended {
                    Ended::TooLong => CloseCode::Size,
                    Ended::NotText => CloseCode::Invalid,
                    _ => CloseCode::Normal,
                };
                close(&mut socket, code).await;
                return ended;
            }
            // What waited in the socket meanwhile was not heard late by the feed's fault.
            heard = Instant::now();
        }
    }

    async fn take(&self, frame: Option<Result<Message, Error>>, batch: &mut Batch) {
        let text = match frame {
            Some(Ok(Message::Text(text))) => Bytes::from(text),
            Some(Ok(Message::Binary(bytes))) => bytes,
            // Pings are answered by the library, with the next read or write.
            Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => return,
            Some(Ok(Message::Close(frame))) => {
                let (code, reason) = frame.map_or((None, String::new()), |frame| {
                    (Some(u16::from(frame.code)), shown(&frame.reason))
                });
                batch.ended = Some(Ended::Closed { code, reason });
                return;
            }
            Some(Err(Error::Capacity(CapacityError::MessageTooLong { size, max_size }))) => {
                let reason = format!("frame is longer than {max_size} bytes, the bound");
                self.put_aside("too_long", &reason, &[], size as u64).await;
                batch.ended = Some(Ended::TooLong);
                return;
            }
            Some(Err(Error::Utf8(_))) => {
                let reason = "text frame is not UTF-8: the library gives nothing of it";
                self.put_aside("malformed", reason, &[], 0).await;
                batch.ended = Some(Ended::NotText);
                return;
            }
            Some(Err(error)) => {
                batch.ended = Some(Ended::Broken(error.to_string()));
                return;
            }
            None => {
                batch.ended = Some(Ended::Broken("end of the stream".to_owned()));
                return;
            }
        };
        let now = unix_ms();
        let bodies = match frames::split(&text) {
            Ok(bodies) => bodies,
            Err(error) => {
                return self
                    .put_aside("malformed", &error.to_string(), &text, text.len() as u64)
                    .await;
            }
        };
        let (several, mut malformed) = (bodies.len() > 1, 0_usize);
        for body in bodies {
            // One of several that waits must not hold the memory of all.
            let body = if several { Bytes::copy_from_slice(&body) } else { body };
            match Item::read(body.clone()) {
                Ok(item) => {
                    batch.last = item.own_id().cloned().or(batch.last.take());
                    batch.bytes += body.len();
                    batch.ratings.push(Received { received_ms: now, body });
                }
                Err(error) if malformed < MALFORMED_MAX => {
                    malformed += 1;
                    self.put_aside("malformed", &error.to_string(), &body, body.len() as u64).await;
                }
                Err(_) => malformed += 1,
            }
        }
        if let Some(more) = malformed.checked_sub(MALFORMED_MAX).filter(|more| *more > 0) {
            let reason = format!("{more} more items of this frame are no ratings");
            self.put_aside("malformed", &reason, &text, text.len() as u64).await;
        }
    }

    async fn put_aside(&self, label: &'static str, reason: &str, frame: &[u8], bytes: u64) {
        self.listener.meter.refused(label);
        if let Err(error) = self.listener.dead.put_frame(reason, frame, bytes).await {
            self.listener.meter.fault(Fault::DeadLetter);
            let error = with_causes(&error);
            error!(error, reason, "malformed frame not written to the dead-letter file");
        }
    }

    /// Puts what came into the queue, waiting as long as it takes; returns false when told to stop.
    async fn keep(&mut self, batch: Batch) -> bool {
        let Batch { ratings, last, .. } = batch;
        if ratings.is_empty() {
            return true;
        }
        // One frame may hold more than is taken at a time.
        let mut ratings = ratings.into_iter();
        while ratings.len() > 0 {
            if !self.put(piece(&mut ratings)).await {
                return false;
            }
        }
        if std::mem::take(&mut self.listener.stuck) >= STUCK {
            self.listener.status.gap_is_over();
        }
        self.listener.last = last.or(self.listener.last.take());
        true
    }

    async fn put(&mut self, ratings: Vec<Received>) -> bool {
        let count = ratings.len() as u64;
        let (listener, mut failed) = (&mut *self.listener, false);
        loop {
            // In memory the wait for places is the back-pressure. A spool that was given ratings
            // finishes its write, whatever we do.
            let put = tokio::select! {
                biased;
                put = listener.queue.put(ratings.clone()) => put,
                () = listener.stop.cancelled() => return false,
            };
            let error = match put {
                Ok(()) => break,
                Err(error) => error,
            };
            listener.status.spool_fails(&error);
            if !failed {
                listener.meter.fault(Fault::Spool);
                let error = with_causes(&error);
                error!(error, "spool takes no ratings: the feed is not read until it does");
                failed = true;
            }
            let freed = pin!(listener.queue.freed());
            tokio::select! {
                () = listener.stop.cancelled() => return false,
                () = freed => {}
                () = sleep(SPOOL_PAUSE) => {}
            }
        }
        if failed {
            info!("spool takes ratings again");
            listener.status.spool_works();
        }
        listener.meter.taken(count);
        self.brought = true;
        true
    }
}

/// Returns the next ratings that are taken together.
fn piece(ratings: &mut std::vec::IntoIter<Received>) -> Vec<Received> {
    let (mut piece, mut bytes) = (Vec::new(), 0);
    while piece.len() < BATCH
        && bytes < BATCH_BYTES
        && let Some(rating) = ratings.next()
    {
        bytes += rating.body.len();
        piece.push(rating);
    }
    piece
}

/// Closes in order, as far as the other side plays along.
async fn close(socket: &mut Socket, code: CloseCode) {
    let frame = CloseFrame { code, reason: Utf8Bytes::default() };
    let closing = async {
        // It may be closed already.
        if socket.close(Some(frame)).await.is_ok() {
            while let Some(Ok(_)) = socket.next().await {}
        }
    };
    let _ = timeout(CLOSE_DEADLINE, closing).await;
}

/// The longest part of a close frame's reason that is logged, in characters.
const REASON_MAX: usize = 100;

fn shown(reason: &str) -> String {
    reason.chars().take(REASON_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subscription_names_the_last_id_within_a_string() {
        let text = r#"{"type":"subscribe","after":"{last_id}"}"#;
        let id = RatingId::new("a\"b\\c").unwrap();
        assert_eq!(subscription(text, None), r#"{"type":"subscribe","after":""}"#);
        let sent = subscription(text, Some(&id));
        let sent: serde_json::Value = serde_json::from_str(&sent).unwrap();
        assert_eq!(sent["after"], id.as_str());
    }

    #[test]
    fn close_codes_say_when_to_come_back() {
        let closed = |code| Ended::Closed { code: Some(code), reason: String::new() }.again();
        for code in [1000, 1001, 1006, 1011, 1012, 4000] {
            assert_eq!(closed(code), Again::Soon, "{code}");
        }
        for code in [1008, 3000, 3003] {
            assert_eq!(closed(code), Again::Late, "{code}");
        }
        assert_eq!(closed(1013), Again::After(TRY_LATER));
    }
}
