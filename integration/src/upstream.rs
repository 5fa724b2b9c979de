//! The service behind the gateway: a stand-in that says what it was asked and counts it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderValue, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{any, get, post},
};
use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::{Notify, oneshot, watch},
};

/// How long `GET /large` is, in bytes.
pub(crate) const LARGE_BYTES: usize = 32 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// A running stand-in, stopped when dropped.
#[derive(Debug)]
pub struct Upstream {
    address: SocketAddr,
    state: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
}

#[derive(Debug)]
struct Shared {
    served: AtomicU64,
    release: Notify,
    trickled: watch::Sender<u32>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }
}

impl Upstream {
    /// The length of what `GET /large` answers, in bytes.
    pub const LARGE_BYTES: usize = LARGE_BYTES;

    /// Starts the stand-in on a free loopback port.
    ///
    /// | route | answer |
    /// | --- | --- |
    /// | `POST /v1/rating` | 201 for a JSON object; 422 when its `refuse` is true |
    /// | `GET /large` | [`Upstream::LARGE_BYTES`] bytes, chunked |
    /// | `GET /trickle` | `one\n`, then `two\n` once the test calls [`Upstream::release`] |
    /// | `GET /held` | nothing until [`Upstream::release`], then `done` |
    /// | `POST /swallow` | the number of bytes it was sent, as text |
    /// | `POST /mirror` | every part of the body as it arrives |
    /// | `GET /ws` | 101, then every byte back |
    /// | anything else | method, path, fields and body as JSON, with fields of its own |
    ///
    /// # Panics
    ///
    /// When no port can be opened.
    #[must_use]
    pub fn start() -> Self {
        let state = Arc::new(Shared {
            served: AtomicU64::new(0),
            release: Notify::new(),
            trickled: watch::Sender::new(0),
        });
        let router = Router::new()
            .route("/v1/rating", post(take_rating))
            .route("/large", get(large))
            .route("/trickle", get(trickle))
            .route("/held", get(held))
            .route("/swallow", post(swallow))
            .route("/mirror", post(async |body: Body| body))
            .route("/ws", get(upgrade))
            .fallback(any(echo))
            .layer(axum::middleware::from_fn_with_state(state.clone(), count))
            .with_state(state.clone());
        let (stop, stopped) = oneshot::channel();
        let (bound, address) = mpsc::channel();
        // A runtime of its own, so that tests with runtimes of their own may share a stand-in.
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("the system grants a runtime");
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
                let address = listener.local_addr().expect("a bound listener has an address");
                bound.send(address).expect("the starter waits for the address");
                tokio::select! {
                    served = axum::serve(listener, router) => served.expect("axum serves on"),
                    _ = stopped => {}
                }
            });
        });
        let address = address.recv().expect("the stand-in starts");
        Self { address, state, stop: Some(stop) }
    }

    /// Returns the stand-in's URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Returns how many requests reached the stand-in.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.state.served.load(Ordering::SeqCst)
    }

    /// Lets one waiting `GET /trickle` or `GET /held` go on.
    pub fn release(&self) {
        self.state.release.notify_one();
    }

    /// Waits until a request has reached `GET /held` or `GET /trickle`.
    ///
    /// # Panics
    ///
    /// Never: the stand-in outlives the wait.
    pub async fn holding(&self) {
        let mut held = self.state.trickled.subscribe();
        held.wait_for(|&count| count > 0).await.expect("the stand-in is there");
    }
}

async fn count(
    State(state): State<Arc<Shared>>,
    request: Request,
    next: axum::middleware::Next,
) -> Response {
    state.served.fetch_add(1, Ordering::SeqCst);
    next.run(request).await
}

async fn take_rating(body: Bytes) -> Response {
    match serde_json::from_slice::<serde_json::Value>(&body) {
        Ok(rating) if rating["refuse"] == true => StatusCode::UNPROCESSABLE_ENTITY.into_response(),
        Ok(_) => (StatusCode::CREATED, "taken by the upstream").into_response(),
        Err(_) => StatusCode::BAD_REQUEST.into_response(),
    }
}

async fn echo(request: Request) -> Response {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let fields: serde_json::Map<_, _> = head
        .headers
        .iter()
        .map(|(name, value)| (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into()))
        .collect();
    let told = json!({
        "method": head.method.as_str(),
        "path": head.uri.to_string(),
        "headers": fields,
        "body": String::from_utf8_lossy(&body.to_bytes()),
    });
    let mut response = axum::Json(told).into_response();
    let fields = response.headers_mut();
    fields.insert("x-upstream", HeaderValue::from_static("kept"));
    fields.append("set-cookie", HeaderValue::from_static("a=1"));
    fields.append("set-cookie", HeaderValue::from_static("b=2"));
    fields.append("ratelimit", HeaderValue::from_static("\"upstream\";r=7;t=3"));
    fields.append("ratelimit-policy", HeaderValue::from_static("\"upstream\";q=9;w=3"));
    response
}

async fn large() -> Response {
    let chunk = Bytes::from(vec![b'x'; CHUNK_BYTES]);
    let chunks = futures_util::stream::iter(
        (0..LARGE_BYTES / CHUNK_BYTES).map(move |_| Ok::<_, std::io::Error>(chunk.clone())),
    );
    Body::from_stream(chunks).into_response()
}

async fn trickle(State(state): State<Arc<Shared>>) -> Response {
    state.trickled.send_modify(|count| *count += 1);
    let parts = futures_util::stream::unfold(0_u8, move |part| {
        let state = state.clone();
        async move {
            match part {
                0 => Some((Ok::<_, std::io::Error>("one\n"), 1)),
                1 => {
                    state.release.notified().await;
                    Some((Ok("two\n"), 2))
                }
                _ => None,
            }
        }
    });
    Body::from_stream(parts).into_response()
}

async fn held(State(state): State<Arc<Shared>>) -> &'static str {
    state.trickled.send_modify(|count| *count += 1);
    state.release.notified().await;
    "done"
}

async fn swallow(mut body: Body) -> Result<String, StatusCode> {
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| StatusCode::BAD_REQUEST)?;
        length += frame.data_ref().map_or(0, Bytes::len);
    }
    Ok(length.to_string())
}

async fn upgrade(mut request: Request) -> Response {
    let asked = request.headers().get("upgrade").is_some_and(|value| value == "websocket");
    if !asked {
        return StatusCode::UPGRADE_REQUIRED.into_response();
    }
    let upgraded = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgraded.await else { return };
        let mut line = TokioIo::new(upgraded);
        let mut buffer = [0; 1024];
        while let Ok(read @ 1..) = line.read(&mut buffer).await {
            if line.write_all(&buffer[..read]).await.is_err() {
                return;
            }
        }
    });
    Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .header("sec-websocket-accept", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")
        .body(Body::empty())
        .expect("a constant answer is well formed")
}
