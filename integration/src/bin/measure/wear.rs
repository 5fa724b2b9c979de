//! What is compared: a service without a limiter, with one written by hand, and with ours in each mode.

use std::{convert::Infallible, fmt, str::FromStr, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use http::{Request, Response, StatusCode};
use merit_integration::{AUDIENCE, ISSUER, PLAIN_LUA, SECRET};
use redis::{
    RedisResult, Script,
    aio::{ConnectionManager, ConnectionManagerConfig},
};
use tower::{Layer as _, Service, service_fn, util::BoxCloneSyncService};
use tower_merit::{
    AdmissionLayer, Bucket, JwtIdentity, JwtVerifier, MemoryStore, RedisStore, Spend, store::Leased,
};

use crate::crowd::AGENT_HEADER;

/// What stands before the service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Nothing.
    Bare,
    /// Ours, buckets in the process.
    InProcess,
    /// Written by hand: one EVALSHA of a plain bucket per request; a header for an identity.
    Plain,
    /// Ours over Redis: every decision is the server's.
    Exact,
    /// Ours over Redis, with tokens taken ahead.
    Leased,
}

impl Mode {
    /// Returns the word that the command line has for it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Bare => "bare",
            Self::InProcess => "in-process",
            Self::Plain => "plain",
            Self::Exact => "exact",
            Self::Leased => "leased",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Bare => "no limiter",
            Self::InProcess => "`tower-merit`, in process",
            Self::Plain => "plain EVALSHA",
            Self::Exact => "`tower-merit`, exact",
            Self::Leased => "`tower-merit`, leased",
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("must be bare, in-process, plain, exact or leased")]
pub(crate) struct NoMode;

impl FromStr for Mode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<Self, NoMode> {
        let all = [Self::Bare, Self::InProcess, Self::Plain, Self::Exact, Self::Leased];
        all.into_iter().find(|mode| mode.word() == text).ok_or(NoMode)
    }
}

/// How the layer is built; the rest is as shipped.
#[derive(Clone, Debug)]
pub(crate) struct Fit {
    pub(crate) redis: String,
    /// The longest a decision waits for Redis. Load that fills every core needs more than the shipped
    /// 20 ms, or what is measured is the outage policy.
    pub(crate) timeout: Duration,
    pub(crate) on_outage: tower_merit::Outage,
    /// Tokens per second, and tokens.
    pub(crate) refill_rate: f64,
    pub(crate) capacity: u64,
    /// Tokens remembered by the verifier.
    pub(crate) token_cache: usize,
}

impl Fit {
    /// Returns limits that nobody meets, and a deadline that a busy machine meets.
    ///
    /// Buckets are deep but fill slowly: a bucket that is always full holds a whole number of tokens,
    /// which the script written by hand would print at half the cost of the fractions it meets in
    /// earnest.
    pub(crate) fn unlimited(redis: &str) -> Self {
        Self {
            redis: redis.to_owned(),
            timeout: Duration::from_secs(2),
            on_outage: tower_merit::Outage::Closed,
            refill_rate: 100.0,
            capacity: 9_000_000,
            token_cache: 1 << 16,
        }
    }

    fn layer<S: Spend>(&self, store: S) -> anyhow::Result<AdmissionLayer<S, JwtVerifier>> {
        let identity = JwtIdentity::hs256(SECRET)
            .claim("agent_id")
            .issuer(ISSUER)
            .audience(AUDIENCE)
            .cache(self.token_cache);
        Ok(AdmissionLayer::builder(store)
            .identity(identity)
            .bucket(Bucket::per_second(self.refill_rate).capacity(self.capacity))
            .on_outage(self.on_outage)
            .build()?)
    }

    async fn exact(&self) -> anyhow::Result<RedisStore> {
        Ok(RedisStore::builder(&self.redis).timeout(self.timeout).connect().await?)
    }

    /// Returns a no-op service behind `mode`.
    pub(crate) async fn service(&self, mode: Mode) -> anyhow::Result<Worn> {
        Ok(match mode {
            Mode::Bare => Worn::of(service_fn(no_op)),
            Mode::InProcess => Worn::of(self.layer(MemoryStore::new())?.layer(service_fn(no_op))),
            Mode::Leased => {
                let store = Leased::new(self.exact().await?);
                let worn = Worn::of(self.layer(store.clone())?.layer(service_fn(no_op)));
                Worn { leased: Some(store), ..worn }
            }
            Mode::Exact => Worn::of(self.layer(self.exact().await?)?.layer(service_fn(no_op))),
            Mode::Plain => {
                let plain = Plain::connect(self).await?;
                Worn::of(service_fn(move |request: Request<()>| {
                    let plain = plain.clone();
                    async move {
                        if plain.admits(request.headers()).await {
                            no_op(request).await
                        } else {
                            refuse()
                        }
                    }
                }))
            }
        })
    }

    /// Returns a no-op service behind ours over a Redis that may not be there.
    pub(crate) fn service_lazily(&self) -> anyhow::Result<Worn> {
        let store = RedisStore::builder(&self.redis).timeout(self.timeout).connect_lazily()?;
        Ok(Worn::of(self.layer(store)?.layer(service_fn(no_op))))
    }

    /// Returns `router` behind `mode`.
    pub(crate) async fn router(&self, mode: Mode, router: Router) -> anyhow::Result<Router> {
        Ok(match mode {
            Mode::Bare => router,
            Mode::InProcess => router.layer(self.layer(MemoryStore::new())?),
            Mode::Leased => router.layer(self.layer(Leased::new(self.exact().await?))?),
            Mode::Exact => router.layer(self.layer(self.exact().await?)?),
            Mode::Plain => {
                let plain = Plain::connect(self).await?;
                let check = move |request: Request<Body>, next: axum::middleware::Next| {
                    let plain = plain.clone();
                    async move {
                        if plain.admits(request.headers()).await {
                            return next.run(request).await;
                        }
                        let mut refusal = Response::new(Body::empty());
                        *refusal.status_mut() = StatusCode::TOO_MANY_REQUESTS;
                        refusal
                    }
                };
                router.layer(axum::middleware::from_fn(check))
            }
        })
    }
}

type Boxed = BoxCloneSyncService<Request<()>, Response<()>, Infallible>;

/// A service behind whatever limits it.
#[derive(Clone)]
pub(crate) struct Worn {
    service: Boxed,
    leased: Option<Leased<RedisStore>>,
}

impl Worn {
    fn of<S, B>(service: S) -> Self
    where
        S: Service<Request<()>, Response = Response<B>, Error = Infallible>
            + Clone
            + Send
            + Sync
            + 'static,
        S::Future: Send,
    {
        use tower::ServiceExt as _;
        let service = service.map_response(|response| response.map(drop));
        Self { service: BoxCloneSyncService::new(service), leased: None }
    }

    /// Gives back what the layer holds ahead of requests, and waits until Redis has it.
    pub(crate) async fn close(self) -> anyhow::Result<()> {
        match self.leased {
            Some(leased) => Ok(leased.close().await?),
            None => Ok(()),
        }
    }

    /// Asks once and returns the head of the answer.
    pub(crate) async fn ask(&mut self, fields: &http::HeaderMap) -> Response<()> {
        let mut request = Request::new(());
        request.headers_mut().clone_from(fields);
        let ready = std::future::poll_fn(|context| self.service.poll_ready(context)).await;
        ready.unwrap_or_else(|error| match error {});
        self.service.call(request).await.unwrap_or_else(|error| match error {})
    }
}

type Empty = http_body_util::Empty<bytes::Bytes>;

async fn no_op(_: Request<()>) -> Result<Response<Empty>, Infallible> {
    Ok(Response::new(Empty::new()))
}

fn refuse() -> Result<Response<Empty>, Infallible> {
    let mut refusal = Response::new(Empty::new());
    *refusal.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    Ok(refusal)
}

/// One [`PLAIN_LUA`] per request; no deadline, no fallback.
#[derive(Clone)]
struct Plain {
    script: Arc<Script>,
    connection: ConnectionManager,
    capacity: u64,
    refill_rate: f64,
}

impl Plain {
    async fn connect(fit: &Fit) -> anyhow::Result<Self> {
        let client = redis::Client::open(fit.redis.as_str())?;
        let config = ConnectionManagerConfig::new().set_response_timeout(None);
        let connection = ConnectionManager::new_with_config(client, config).await?;
        let script = Arc::new(Script::new(PLAIN_LUA));
        Ok(Self { script, connection, capacity: fit.capacity, refill_rate: fit.refill_rate })
    }

    async fn admits(&self, fields: &http::HeaderMap) -> bool {
        let agent = fields.get(AGENT_HEADER).and_then(|value| value.to_str().ok());
        let Some(agent) = agent else { return false };
        let mut call = self.script.key(format!("plain:{agent}"));
        call.arg(self.capacity).arg(self.refill_rate);
        let answer: RedisResult<(i64, i64)> = call.invoke_async(&mut self.connection.clone()).await;
        matches!(answer, Ok((1, _)))
    }
}
