//! One request's way to the upstream and back.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::{
    body::Body,
    extract::ConnectInfo,
    response::{IntoResponse, Response},
};
use http::{
    HeaderName, HeaderValue, Method, Request, StatusCode, Uri, Version, header,
    request::Parts,
    uri::{PathAndQuery, Scheme},
};
use http_body::Body as _;
use hyper_util::{
    client::legacy::{self, Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use metrics::counter;
use percent_encoding::{percent_decode, percent_decode_str};
use tokio::time::Instant;
use tower_merit::{AgentId, Problem};
use tracing::debug;

use crate::trace::{self, Kind};

use super::{
    config::{Config, GatewayError, Upstream},
    fields::{self, Origin},
    passing::passing,
    tee::Tee,
    upgrade::{self, Full, Places},
};

/// When an upstream's silent connection is first asked whether it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// When to come back after there were too many upgraded connections, in seconds.
const TUNNELS_RETRY_SECONDS: u64 = 5;

/// Passes requests on. Clones share one pool of connections.
#[derive(Clone)]
pub(super) struct Proxy {
    shared: Arc<Shared>,
}

struct Shared {
    client: Client<HttpConnector, Body>,
    upstream: Upstream,
    replace_host: Option<HeaderValue>,
    trust_forwarded: bool,
    response_timeout: Duration,
    tunnels: Places,
    tee: Option<(String, Tee, Duration)>,
}

impl Proxy {
    pub(super) fn new(config: &Config, tee: Option<Tee>) -> Result<Self, GatewayError> {
        let upstream = config.upstream()?;
        let mut connector = HttpConnector::new();
        connector.set_connect_timeout(Some(config.connect_timeout));
        connector.set_nodelay(true);
        // Of a connection that was upgraded nobody else would notice that its other end vanished.
        connector.set_keepalive(Some(KEEP_ALIVE));
        connector.set_keepalive_interval(Some(KEEP_ALIVE / 4));
        connector.set_keepalive_retries(Some(4));
        let client = Client::builder(TokioExecutor::new())
            .pool_idle_timeout(config.idle_timeout)
            .pool_timer(TokioTimer::new())
            .build(connector);
        let replace_host = (!config.preserve_host).then(|| {
            HeaderValue::from_str(upstream.authority.as_str()).expect("an authority is ASCII")
        });
        let path = config.tee_ratings.clone();
        let shared = Shared {
            client,
            upstream,
            replace_host,
            trust_forwarded: config.trust_forwarded,
            response_timeout: config.response_timeout,
            tunnels: Places::new(config.max_tunnels, config.max_tunnels_per_agent),
            tee: path.zip(tee).map(|(path, tee)| (path, tee, config.tee_timeout)),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Returns the upstream's answer to `request`, which was priced by the fields `priced_by`, or why there
    /// is none.
    pub(super) async fn pass(&self, request: Request<Body>, priced_by: &[HeaderName]) -> Response {
        match self.exchange(request, priced_by).await {
            Ok(response) => response,
            Err(failure) => {
                counter!("merit_gateway_failures_total", "reason" => failure.reason()).increment(1);
                debug!(
                    error = failure.cause(),
                    reason = failure.reason(),
                    "no answer of the upstream"
                );
                failure.into_response()
            }
        }
    }

    async fn exchange(
        &self,
        mut request: Request<Body>,
        priced_by: &[HeaderName],
    ) -> Result<Response, Failure> {
        let shared = &*self.shared;
        if request.method() == Method::CONNECT {
            return Err(Failure::Connect);
        }
        let wish = upgrade::wish(&mut request);
        let place = match &wish {
            Some(_) => {
                let agent = request.extensions().get::<AgentId>();
                Some(shared.tunnels.take(agent).map_err(Failure::Tunnels)?)
            }
            None => None,
        };
        let (head, body) = request.into_parts();
        let (body, copied) = match &shared.tee {
            Some((path, tee, wait)) if head.method == Method::POST && head.uri.path() == path => {
                let (body, copied) = tee.split(&head, body);
                (body, Some((copied, *wait)))
            }
            _ => (body, None),
        };
        let progress = Arc::new(Progress::new());
        // An upload that goes on is no silence of the upstream.
        let upload = Arc::clone(&progress);
        let body = passing(body, move |passed, _| {
            upload.waits.store(passed.is_none(), Ordering::Relaxed);
            let Some(passed) = passed else { return };
            upload.moved();
            if matches!(passed, Some(Err(_))) {
                upload.broken.store(true, Ordering::Relaxed);
            }
        });
        let mut outgoing = Request::new(body);
        *outgoing.uri_mut() = shared.target(&head.uri)?;
        shared.fill(&mut outgoing, head, priced_by);
        if let Some(wish) = &wish {
            wish.forward(outgoing.headers_mut());
        }
        // hyper leaves out the body of a GET whose length is unknown, unless told that there is one.
        let length_unknown = !outgoing.headers().contains_key(header::CONTENT_LENGTH);
        if length_unknown && !outgoing.body().is_end_stream() {
            let chunked = HeaderValue::from_static("chunked");
            outgoing.headers_mut().insert(header::TRANSFER_ENCODING, chunked);
        }

        // What has come until here is identity and admission: the rest is the upstream's.
        let mut span = trace::below_current(Kind::Client, "upstream");
        if let Some(span) = &span {
            trace::put(outgoing.headers_mut(), span.context());
        }
        let answer = shared.client.request(outgoing);
        let answer = tokio::select! {
            answer = answer => answer.map_err(|error| Failure::of(error, &progress)),
            () = progress.silent_for(shared.response_timeout) => Err(progress.who_is_silent()),
        };
        if let Some(span) = &mut span {
            match &answer {
                Ok(answer) => {
                    span.set("http.response.status_code", i64::from(answer.status().as_u16()));
                }
                Err(failure) => span.fail(failure.reason()),
            }
        }
        drop(span);
        let mut response = answer?;
        let protocol = response.headers().get(header::UPGRADE).cloned();
        fields::remove_hop_by_hop(response.headers_mut());
        *response.version_mut() = Version::HTTP_11;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some(wish), Some(place)) = (wish, place) else {
                return Err(Failure::Unasked);
            };
            wish.grant(&mut response, protocol, place);
        }
        if let Some((copied, wait)) = copied {
            copied.answered(response.status(), wait).await;
        }
        Ok(response.map(Body::new))
    }
}

impl Shared {
    fn target(&self, asked: &Uri) -> Result<Uri, Failure> {
        if !self.upstream.prefix.is_empty() && steps_up(asked.path()) {
            return Err(Failure::StepsUp);
        }
        let path = asked.path_and_query().map_or("/", PathAndQuery::as_str);
        let path = match (path, self.upstream.prefix.as_str()) {
            (path, "") => path.to_owned(),
            ("*", prefix) => prefix.to_owned(),
            (path, prefix) => format!("{prefix}{path}"),
        };
        Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(self.upstream.authority.clone())
            .path_and_query(path)
            .build()
            .map_err(|_| Failure::Target)
    }

    fn fill(&self, outgoing: &mut Request<Body>, head: Parts, priced_by: &[HeaderName]) {
        // In absolute form the target's host counts, not `Host` (RFC 9112 section 3.2.2).
        let asked = head.uri.authority().and_then(|host| HeaderValue::from_str(host.as_str()).ok());
        let origin = Origin {
            version: head.version,
            host: asked.or_else(|| head.headers.get(header::HOST).cloned()),
            peer: head.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0),
            agent: head.extensions.get::<AgentId>(),
            trust_forwarded: self.trust_forwarded,
            replace_host: self.replace_host.clone(),
            priced_by,
        };
        let mut headers = head.headers;
        fields::to_upstream(&mut headers, &origin);
        *outgoing.method_mut() = head.method;
        *outgoing.headers_mut() = headers;
    }
}

/// Returns true when some server could read a step up in `path`: `..` between slashes or
/// backslashes, with or without parameters, encoded up to twice.
fn steps_up(path: &str) -> bool {
    let once: Vec<u8> = percent_decode_str(path).collect();
    let twice: Vec<u8> = percent_decode(&once).collect();
    [path.as_bytes(), &once, &twice].into_iter().any(|path| {
        let mut segments = path.split(|byte| matches!(byte, b'/' | b'\\'));
        segments.any(|segment| segment.split(|byte| *byte == b';').next() == Some(b".."))
    })
}

/// Why there is no answer of the upstream.
#[derive(Debug)]
enum Failure {
    /// The upstream could not be reached, or broke off.
    Away(legacy::Error),
    /// No connection in time.
    ConnectTimeout(legacy::Error),
    /// Connected, and no answer in time.
    Silent,
    /// The client's own body broke off.
    Client(legacy::Error),
    /// The client's own body stopped coming.
    ClientSilent,
    /// The upstream upgraded, and nobody had asked.
    Unasked,
    /// Too many upgraded connections.
    Tunnels(Full),
    /// The target does not fit behind the upstream's address.
    Target,
    /// The target could leave the path of the upstream's address.
    StepsUp,
    /// The gateway is no forward proxy.
    Connect,
}

impl Failure {
    fn of(error: legacy::Error, progress: &Progress) -> Self {
        let timed_out = || {
            let mut cause: Option<&(dyn Error + 'static)> = Some(&error);
            while let Some(error) = cause {
                let io = error.downcast_ref::<io::Error>();
                if io.is_some_and(|error| error.kind() == io::ErrorKind::TimedOut) {
                    return true;
                }
                cause = error.source();
            }
            false
        };
        if progress.broken.load(Ordering::Relaxed) {
            Self::Client(error)
        } else if error.is_connect() && timed_out() {
            Self::ConnectTimeout(error)
        } else {
            Self::Away(error)
        }
    }

    fn reason(&self) -> &'static str {
        match self {
            Self::Away(_) => "away",
            Self::ConnectTimeout(_) => "connect_timeout",
            Self::Silent => "silent",
            Self::Client(_) | Self::ClientSilent => "client",
            Self::Unasked => "unasked_upgrade",
            Self::Tunnels(Full::All) => "tunnels",
            Self::Tunnels(Full::Agent) => "agent_tunnels",
            Self::Target | Self::StepsUp | Self::Connect => "target",
        }
    }

    fn cause(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Away(error) | Self::ConnectTimeout(error) | Self::Client(error) => Some(error),
            _ => None,
        }
    }

    fn into_response(self) -> Response {
        let (status, detail) = match self {
            Self::Away(_) => (StatusCode::BAD_GATEWAY, "the upstream cannot be reached"),
            Self::ConnectTimeout(_) => {
                (StatusCode::GATEWAY_TIMEOUT, "the upstream did not take a connection in time")
            }
            Self::Silent => (StatusCode::GATEWAY_TIMEOUT, "the upstream did not answer in time"),
            Self::Client(_) => (StatusCode::BAD_REQUEST, "the request's body broke off"),
            Self::ClientSilent => {
                (StatusCode::REQUEST_TIMEOUT, "the request's body did not go on in time")
            }
            Self::Unasked => (StatusCode::BAD_GATEWAY, "the upstream switched protocols unasked"),
            Self::Tunnels(Full::All) => {
                (StatusCode::SERVICE_UNAVAILABLE, "too many upgraded connections are open")
            }
            Self::Tunnels(Full::Agent) => (
                StatusCode::TOO_MANY_REQUESTS,
                "this agent has too many upgraded connections open; close one first",
            ),
            Self::Target => (StatusCode::BAD_REQUEST, "the target is too long or malformed"),
            Self::StepsUp => (StatusCode::BAD_REQUEST, "the path may not hold `..`"),
            Self::Connect => (StatusCode::NOT_IMPLEMENTED, "CONNECT is for forward proxies"),
        };
        let mut response = Problem::new(status, detail).into_response().map(Body::from);
        if matches!(self, Self::Tunnels(_)) {
            response.headers_mut().insert(header::RETRY_AFTER, TUNNELS_RETRY_SECONDS.into());
        }
        response.into_response()
    }
}

/// When the request's body last moved.
struct Progress {
    started: Instant,
    moved_ms: AtomicU64,
    broken: AtomicBool,
    /// The upstream would take more of the body, and the client has sent nothing since.
    waits: AtomicBool,
}

impl Progress {
    fn new() -> Self {
        Self {
            started: Instant::now(),
            moved_ms: AtomicU64::new(0),
            broken: AtomicBool::new(false),
            waits: AtomicBool::new(false),
        }
    }

    fn moved(&self) {
        let elapsed_ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.moved_ms.store(elapsed_ms, Ordering::Relaxed);
    }

    /// Returns whose silence it was.
    fn who_is_silent(&self) -> Failure {
        match self.waits.load(Ordering::Relaxed) {
            true => Failure::ClientSilent,
            false => Failure::Silent,
        }
    }

    /// Returns when nothing has moved for `limit`.
    async fn silent_for(&self, limit: Duration) {
        loop {
            let moved = Duration::from_millis(self.moved_ms.load(Ordering::Relaxed));
            let until = self.started + moved + limit;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}
