//! The sample feed: what simulated users think, as a WebSocket feed tells it to the bridge.
//!
//! It serves one client at a time; a rating is told once, to whoever is connected then.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{SinkExt as _, StreamExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::{Instant, sleep},
};
use tokio_tungstenite::{WebSocketStream, accept_async, tungstenite::Message};
use tokio_util::sync::CancellationToken;

/// Ratings that wait for a client at most; users wait beyond that.
const WAITING_MAX: usize = 10_000;

/// How long the bridge may take to read what was told last.
const READ_DEADLINE: Duration = Duration::from_secs(10);
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// The feed's end that users speak into.
#[derive(Clone)]
pub(super) struct Feed {
    ratings: mpsc::Sender<String>,
    told: Arc<AtomicU64>,
}

impl Feed {
    /// Opens a feed on loopback, served until `stop`; returns it with its address.
    pub(super) async fn open(stop: CancellationToken) -> io::Result<(Self, SocketAddr)> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let address = listener.local_addr()?;
        let (ratings, outbox) = mpsc::channel(WAITING_MAX);
        tokio::spawn(stop.run_until_cancelled_owned(serve(listener, outbox)));
        Ok((Self { ratings, told: Arc::default() }, address))
    }

    /// Tells a rating.
    pub(super) async fn tell(&self, rating: String) {
        if self.ratings.send(rating).await.is_ok() {
            self.told.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Waits until `read` says that the bridge has read everything; returns how many it has not.
    pub(super) async fn is_read(&self, read: impl Fn() -> u64) -> u64 {
        let (told, began) = (self.told.load(Ordering::Relaxed), Instant::now());
        while read() < told && began.elapsed() < READ_DEADLINE {
            sleep(LOOK_EVERY).await;
        }
        told.saturating_sub(read())
    }
}

async fn serve(listener: TcpListener, mut outbox: mpsc::Receiver<String>) {
    let mut kept = None;
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            sleep(LOOK_EVERY).await;
            continue;
        };
        let Ok(client) = accept_async(stream).await else { continue };
        talk(client, &mut outbox, &mut kept).await;
    }
}

/// Tells ratings to `client` until it is gone; the one that was not told is `kept` for the next.
async fn talk(
    mut client: WebSocketStream<TcpStream>,
    outbox: &mut mpsc::Receiver<String>,
    kept: &mut Option<String>,
) {
    loop {
        let rating = match kept.take() {
            Some(rating) => rating,
            None => tokio::select! {
                // Reading answers pings, and hears a goodbye.
                said = client.next() => match said {
                    Some(Ok(_)) => continue,
                    _ => return,
                },
                rating = outbox.recv() => match rating {
                    Some(rating) => rating,
                    None => return,
                },
            },
        };
        if client.send(Message::text(rating.clone())).await.is_err() {
            *kept = Some(rating);
            return;
        }
    }
}
