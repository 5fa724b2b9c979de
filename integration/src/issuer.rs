//! The server of an issuer: publishes a key set, over HTTP or TLS, as well or badly as it is told.

use std::{
    convert::Infallible,
    net::SocketAddr,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use axum::body::Body;
use http::{Request, Response, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use crate::{Folder, keys::openssl};

/// What an issuer says when it is asked for its keys.
#[derive(Clone, Debug)]
pub enum Says {
    /// This key set, as `text/plain`.
    Keys(Vec<Value>),
    /// This status, and nothing else.
    Status(u16),
    /// That the keys are elsewhere.
    Elsewhere(String),
    /// Nothing, ever.
    Nothing,
    /// More and more, without end.
    Endless,
}

/// A running issuer, gone when dropped.
#[derive(Debug)]
pub struct Issuer {
    address: SocketAddr,
    scheme: &'static str,
    authority: String,
    state: Arc<State>,
    server: JoinHandle<()>,
}

#[derive(Debug)]
struct State {
    says: Mutex<Says>,
    asked: AtomicU64,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Issuer {
    /// Starts an issuer on a free loopback port.
    ///
    /// # Panics
    ///
    /// When no port can be opened.
    pub async fn start(says: Says) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        Self::serve(listener, says, None)
    }

    /// Starts an issuer at `address`, where one was before.
    ///
    /// # Panics
    ///
    /// When the port cannot be opened.
    pub async fn start_at(address: SocketAddr, says: Says) -> Self {
        let listener = TcpListener::bind(address).await.expect("the port is free again");
        Self::serve(listener, says, None)
    }

    /// Starts an issuer behind TLS, whose certificate only [`Issuer::authority`] vouches for.
    ///
    /// # Panics
    ///
    /// When no port can be opened, or `openssl` is missing.
    pub async fn start_tls(says: Says) -> Self {
        let folder = Folder::new("issuer");
        let (key, certificate) =
            (folder.path().join("key.pem"), folder.path().join("certificate.pem"));
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]);
        command.args(["-nodes", "-days", "2", "-subj", "/CN=issuer.test"]);
        command.args(["-addext", "subjectAltName=IP:127.0.0.1"]);
        command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
        openssl(command.arg("-keyout").arg(&key).arg("-out").arg(&certificate));
        let authority = std::fs::read_to_string(&certificate).expect("openssl wrote it");
        let chain = vec![CertificateDer::from_pem_file(&certificate).expect("openssl writes PEM")];
        let key = PrivateKeyDer::from_pem_file(&key).expect("openssl writes PEM");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the defaults are safe")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("key and certificate belong together");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
        Self::serve(listener, says, Some((TlsAcceptor::from(Arc::new(tls)), authority)))
    }

    fn serve(listener: TcpListener, says: Says, tls: Option<(TlsAcceptor, String)>) -> Self {
        let address = listener.local_addr().expect("a bound listener has an address");
        let state = Arc::new(State { says: Mutex::new(says), asked: AtomicU64::new(0) });
        let (acceptor, authority) = tls.unzip();
        let scheme = if acceptor.is_some() { "https" } else { "http" };
        let served = Arc::clone(&state);
        let server = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            loop {
                let Ok((stream, _)) = listener.accept().await else { continue };
                let (state, acceptor) = (Arc::clone(&served), acceptor.clone());
                connections.spawn(async move {
                    let answer = hyper::service::service_fn(move |request| {
                        let state = Arc::clone(&state);
                        async move { Ok::<_, Infallible>(state.answer(&request).await) }
                    });
                    let http = hyper::server::conn::http1::Builder::new();
                    // A client that breaks off is its own business.
                    match acceptor {
                        None => drop(http.serve_connection(TokioIo::new(stream), answer).await),
                        Some(acceptor) => {
                            if let Ok(stream) = acceptor.accept(stream).await {
                                drop(http.serve_connection(TokioIo::new(stream), answer).await);
                            }
                        }
                    }
                });
            }
        });
        let authority = authority.unwrap_or_default();
        Self { address, scheme, authority, state, server }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns the address of the key set.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://{}/.well-known/jwks.json", self.scheme, self.address)
    }

    /// Returns the certificate (PEM) that vouches for it; `""` without TLS.
    #[must_use]
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// Sets what it says from now on.
    pub fn say(&self, says: Says) {
        *self.state.says.lock().unwrap_or_else(PoisonError::into_inner) = says;
    }

    /// Returns how often it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.state.asked.load(Ordering::SeqCst)
    }
}

impl State {
    async fn answer(&self, _: &Request<Incoming>) -> Response<Body> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let says = self.says.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let mut response = Response::new(Body::empty());
        match says {
            Says::Keys(keys) => {
                let kind = header::HeaderValue::from_static("text/plain");
                response.headers_mut().insert(header::CONTENT_TYPE, kind);
                *response.body_mut() = json!({ "keys": keys }).to_string().into();
            }
            Says::Status(status) => {
                *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            }
            Says::Elsewhere(url) => {
                *response.status_mut() = StatusCode::FOUND;
                let url = url.parse().expect("a URL is a field value");
                response.headers_mut().insert(header::LOCATION, url);
            }
            Says::Nothing => std::future::pending().await,
            Says::Endless => {
                let chunks = std::iter::repeat_with(|| Ok::<_, Infallible>(vec![b' '; 1 << 16]));
                *response.body_mut() = Body::from_stream(futures_util::stream::iter(chunks));
            }
        }
        response
    }
}
