//! A way to a server that breaks when a test says so.

use std::net::SocketAddr;

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    sync::watch,
};

/// Passes connections on to a server on loopback, and breaks all of them off when told to.
#[derive(Debug)]
pub struct Cutter {
    address: SocketAddr,
    cuts: watch::Sender<u64>,
}

impl Cutter {
    /// Starts to listen for connections to `port`; ends when it is dropped.
    ///
    /// # Panics
    ///
    /// When no port is free.
    pub async fn start(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (cuts, seen) = watch::channel(0);
        tokio::spawn(async move {
            let mut ended = seen.clone();
            loop {
                let (mut client, _) = tokio::select! {
                    accepted = listener.accept() => accepted.expect("it can accept"),
                    () = gone(&mut ended) => return,
                };
                let mut cut = seen.clone();
                cut.mark_unchanged();
                tokio::spawn(async move {
                    let server = TcpStream::connect(("127.0.0.1", port)).await;
                    let Ok(mut server) = server else { return };
                    // Dropped, both ends are reset or closed with whatever was on its way.
                    tokio::select! {
                        _ = copy_bidirectional(&mut client, &mut server) => {}
                        _ = cut.changed() => {}
                    }
                });
            }
        });
        Self { address, cuts }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Breaks off every connection there is.
    pub fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }
}

/// Waits until the cutter was dropped.
async fn gone(cuts: &mut watch::Receiver<u64>) {
    while cuts.changed().await.is_ok() {}
}
