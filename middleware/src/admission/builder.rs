//! The builder: what is checked once, before the first request.

use std::{collections::HashSet, num::NonZeroU32, sync::Arc, time::Duration};

use bytes::Bytes;
use http::Response;

use super::{
    Bucket, Cost, Refusal, Route,
    concurrency::InFlight,
    fields::Choice,
    layer::{AdmissionLayer, Gate, Shared},
    metrics::Metrics,
    plan::Defaults,
    proof::Receipts,
    response::{Answers, Explained},
    route::ROUTES_MAX,
};
use crate::{
    AgentId,
    bucket::{BucketNameError, CAPACITY_MAX, LimitsError},
    identity::{IdentityConfigError, IntoIdentify},
    outage::{Guard, Outage},
    receipt::ReceiptKeys,
    store::{Spend, TAKES_MAX},
};

/// The longest that [`AdmissionBuilder::retry_jitter`] may add: an hour.
pub const RETRY_JITTER_MAX: Duration = Duration::from_secs(3600);

/// Why a layer cannot be built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// No bucket was given.
    #[error("no bucket: call `.bucket(Bucket::per_second(20.0).capacity(40))`")]
    NoBucket,
    /// A bucket's name cannot stand in a header.
    #[error(transparent)]
    Name(#[from] BucketNameError),
    /// Two buckets have one name, or one has a name that means something else.
    #[error("bucket {bucket:?}: the name is taken, give it another with `.named(…)`")]
    NameTaken {
        /// The bucket's name.
        bucket: String,
    },
    /// More than one bucket is marked as the default.
    #[error("{count} buckets are marked as the default: mark one")]
    Defaults {
        /// How many are.
        count: usize,
    },
    /// A bucket's numbers are out of range.
    #[error("bucket {bucket:?}")]
    Limits {
        /// The bucket's name.
        bucket: String,
        /// What is wrong.
        #[source]
        source: LimitsError,
    },
    /// A bucket would never let anything pass.
    #[error("bucket {bucket:?} would let nothing pass: capacity and refill rate must be above 0")]
    Closed {
        /// The bucket's name.
        bucket: String,
    },
    /// The cost of a request is out of range.
    #[error("cost of a request")]
    Cost(#[source] LimitsError),
    /// A cost's bounds are the wrong way round.
    #[error("cost of a request: min {min} is above max {max}, which is at most {CAPACITY_MAX}")]
    CostBounds {
        /// The least it may be.
        min: u64,
        /// The most it may be.
        max: u64,
    },
    /// A text is no field name.
    #[error("field name {name:?} must be letters, digits and dashes")]
    Field {
        /// The refused name.
        name: String,
    },
    /// A route's path pattern cannot be.
    #[error("route {path:?} {problem}")]
    Path {
        /// The pattern.
        path: String,
        /// What is wrong.
        problem: &'static str,
    },
    /// A route names a bucket that is not there.
    #[error("route {path:?} names bucket {bucket:?}, which is not there: add it with `.bucket(…)`")]
    UnknownBucket {
        /// The route's pattern.
        path: String,
        /// The bucket's name.
        bucket: String,
    },
    /// A route charges too many buckets.
    #[error("route {path:?} charges {count} buckets, at most {TAKES_MAX} are taken together")]
    TooManyBuckets {
        /// The route's pattern.
        path: String,
        /// How many.
        count: usize,
    },
    /// There are too many routes.
    #[error("{count} routes, at most {ROUTES_MAX} are tried")]
    TooManyRoutes {
        /// How many.
        count: usize,
    },
    /// The address of the page about limits cannot stand in a header.
    #[error("limits page {path:?} must be a path of printable ASCII without `>`")]
    LimitsPage {
        /// The refused path.
        path: String,
    },
    /// The jitter is out of range.
    #[error("retry jitter must be at most {} s", RETRY_JITTER_MAX.as_secs())]
    Jitter,
    /// The identity cannot work.
    #[error("identity")]
    Identity(#[from] IdentityConfigError),
}

/// The builder's state before an identity is given.
#[derive(Debug)]
pub struct NoIdentity(());

/// Builds an [`AdmissionLayer`].
///
/// ```
/// use std::time::Duration;
/// use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore, Route};
///
/// let admission = AdmissionLayer::builder(MemoryStore::new())
///     .identity(JwtIdentity::hs256(b"a secret of at least thirty-two bytes"))
///     .bucket(Bucket::per_second(20.0).capacity(40))
///     .route(Route::path("/health").cost(0))
///     .allow(["monitor".parse()?])
///     .concurrency_per_agent(8.try_into()?) // on this node: the total divided by the nodes
///     .retry_jitter(Duration::from_millis(250))
///     .on_refusal(|refusal, mut response| {
///         response.headers_mut().insert("x-refused", refusal.reason().parse().expect("ASCII"));
///         response
///     })
///     .build()?;
/// # let _ = admission;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[must_use]
pub struct AdmissionBuilder<S, I> {
    store: S,
    identity: I,
    settings: Settings,
}

struct Settings {
    buckets: Vec<Bucket>,
    routes: Vec<Route>,
    cost: Cost,
    defaults: Defaults,
    nodes: NonZeroU32,
    allow: HashSet<AgentId>,
    answers: Answers,
    limits_page: Option<String>,
    receipts: Option<ReceiptKeys>,
}

impl<S, I> std::fmt::Debug for AdmissionBuilder<S, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmissionBuilder")
            .field("buckets", &self.settings.buckets)
            .field("routes", &self.settings.routes)
            .finish_non_exhaustive()
    }
}

impl<S> AdmissionBuilder<S, NoIdentity> {
    pub(super) fn new(store: S) -> Self {
        let choice = Choice { rate_limit: true, x_rate_limit: false, expose: false };
        let settings = Settings {
            buckets: Vec::new(),
            routes: Vec::new(),
            cost: Cost::tokens(1),
            defaults: Defaults::default(),
            nodes: NonZeroU32::MIN,
            allow: HashSet::new(),
            answers: Answers {
                realm: "merit".to_owned(),
                choice,
                jitter_max_ms: 0,
                explained: None,
                hook: None,
            },
            limits_page: None,
            receipts: None,
        };
        Self { store, identity: NoIdentity(()), settings }
    }

    /// Sets how the agent is learned.
    pub fn identity<I: IntoIdentify>(self, identity: I) -> AdmissionBuilder<S, I> {
        AdmissionBuilder { store: self.store, identity, settings: self.settings }
    }
}

impl<S: Spend, I> AdmissionBuilder<S, I> {
    /// Adds a bucket, with the limits of every agent that has none of its own. The first one is the
    /// default bucket, which every request is charged, unless another is marked; the others are
    /// charged by the routes that name them.
    pub fn bucket(mut self, bucket: Bucket) -> Self {
        self.settings.buckets.push(bucket);
        self
    }

    /// Adds a route; the first that matches a request decides what it is charged. A request that
    /// none matches is charged [`AdmissionBuilder::cost`] in the default bucket.
    pub fn route(mut self, route: Route) -> Self {
        self.settings.routes.push(route);
        self
    }

    /// Sets what each request costs that no route matches, in tokens; 1 unless set, 0 only looks.
    pub fn cost(mut self, cost: impl Into<Cost>) -> Self {
        self.settings.cost = cost.into();
        self
    }

    /// Sets what happens when the store does not answer; [`Outage::Local`] unless set.
    pub fn on_outage(mut self, outage: Outage) -> Self {
        self.settings.defaults.on_outage = outage;
        self
    }

    /// Sets how many nodes share the store, for [`Outage::Local`]; 1 unless set.
    pub fn expected_nodes(mut self, nodes: NonZeroU32) -> Self {
        self.settings.nodes = nodes;
        self
    }

    /// Sets whether everything is decided and counted, and passes on all the same: requests without
    /// a credential and those of banned agents too. Answers then carry no `RateLimit` fields. Off
    /// unless set.
    pub fn shadow(mut self, on: bool) -> Self {
        self.settings.defaults.shadow = on;
        self
    }

    /// Sets whether a request that fails, or is answered 5xx, gets its tokens back. Off unless set:
    /// an agent that provokes errors then does so for nothing.
    pub fn refund_on_5xx(mut self, on: bool) -> Self {
        self.settings.defaults.refund_on_5xx = on;
        self
    }

    /// Lets these agents pass: charged nothing, limited by nothing, not even by a ban. Their
    /// credential must verify all the same. Repeatable.
    pub fn allow(mut self, agents: impl IntoIterator<Item = AgentId>) -> Self {
        self.settings.allow.extend(agents);
        self
    }

    /// Limits how many requests of one agent may be in flight on this node at a time; unlimited
    /// unless set. A place is held until the answer's body has ended or was dropped. Nodes do not
    /// talk about it: for a limit over all of them, set it divided by their number.
    pub fn concurrency_per_agent(mut self, requests: NonZeroU32) -> Self {
        self.settings.defaults.concurrency = Some(requests.get());
        self
    }

    /// Sets the realm of `WWW-Authenticate` (printable ASCII; other characters are left out);
    /// `merit` unless set.
    pub fn realm(mut self, realm: &str) -> Self {
        let printable = |c: &char| (' '..='~').contains(c) && *c != '"' && *c != '\\';
        self.settings.answers.realm = realm.chars().filter(printable).collect();
        self
    }

    /// Sets whether answers carry `RateLimit` and `RateLimit-Policy`; they do unless told not to.
    pub fn rate_limit_headers(mut self, on: bool) -> Self {
        self.settings.answers.choice.rate_limit = on;
        self
    }

    /// Sets whether answers carry `X-RateLimit-Limit`, `-Remaining` and `-Reset` as well, for clients
    /// that know no others. Of two limiters the stricter is told: fields of the service behind stay
    /// when less remains there, and give way otherwise. They tell of the bucket with the fewest tokens left; `Reset` is the
    /// seconds from now until it is full, or of a denial until it is worth trying again. Off unless
    /// set.
    pub fn x_rate_limit_headers(mut self, on: bool) -> Self {
        self.settings.answers.choice.x_rate_limit = on;
        self
    }

    /// Sets whether `Access-Control-Expose-Headers` names those of the fields above and `Retry-After`
    /// that answers carry, so that
    /// scripts of other origins may read them. Off unless set. What else CORS needs is the business
    /// of a layer around this one.
    pub fn expose_headers(mut self, on: bool) -> Self {
        self.settings.answers.choice.expose = on;
        self
    }

    /// Adds between nothing and `most`, at random, to the wait of every refusal that waiting helps,
    /// so that agents that were refused together do not come back together. Never makes one shorter.
    /// Of denials [`Refusal`] holds the wait with it, of others without. At most
    /// [`RETRY_JITTER_MAX`]; none unless set.
    pub fn retry_jitter(mut self, most: Duration) -> Self {
        self.settings.answers.jitter_max_ms = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Names the page on which callers read their limits and what moved them, as a path on this server. Who
    /// is refused for a limit or a ban is told: as member `limits` of the problem (RFC 9457 section 3.2),
    /// and by a `Link` field of relation `help` (RFC 8288, HTML). The page itself is the business of
    /// whoever wears the layer; [`AdmissionLayer::learn`] says who asks for it. Nothing is named unless
    /// set.
    pub fn limits_page(mut self, path: &str) -> Self {
        self.settings.limits_page = Some(path.to_owned());
        self
    }

    /// Sets what may change the answer to a refused request before it goes out. It is counted by
    /// then, and whatever comes back is sent.
    pub fn on_refusal(
        mut self,
        hook: impl Fn(&Refusal, Response<Bytes>) -> Response<Bytes> + Send + Sync + 'static,
    ) -> Self {
        self.settings.answers.hook = Some(Arc::new(hook));
        self
    }

    /// Issues a [receipt](crate::receipt) with every answer to a request that passed and that the
    /// agent made for somebody else ([`Caller::rater`](crate::Caller::rater)): in the field
    /// [`merit-receipt`](crate::receipt::RECEIPT_FIELD). None are issued unless set.
    ///
    /// A receipt belongs to one answer. `Cache-Control` is left as the service set it: answers that
    /// a shared cache may store hand one receipt to many, of which one can count.
    pub fn receipts(mut self, keys: ReceiptKeys) -> Self {
        self.settings.receipts = Some(keys);
        self
    }
}

impl<S: Spend, I: IntoIdentify> AdmissionBuilder<S, I> {
    /// Returns the layer. Install the metrics recorder before: its handles are taken here.
    ///
    /// # Errors
    ///
    /// When a bucket is missing or out of range, a route cannot be, or the identity cannot work.
    pub fn build(self) -> Result<AdmissionLayer<S, I::Identify>, BuildError> {
        let Settings {
            buckets,
            routes,
            cost,
            defaults,
            nodes,
            allow,
            answers,
            limits_page,
            receipts,
        } = self.settings;
        let mut answers = answers;
        if let Some(path) = limits_page {
            let named = Explained::at(&path).ok_or(BuildError::LimitsPage { path })?;
            answers.explained = Some(named);
        }
        if Duration::from_millis(answers.jitter_max_ms) > RETRY_JITTER_MAX {
            return Err(BuildError::Jitter);
        }
        let shared = Shared {
            identity: self.identity.into_identify()?,
            guard: Guard::new(self.store, nodes),
            allow,
            in_flight: defaults.concurrency.map(InFlight::new),
            answers,
            receipts: receipts.map(Receipts::new),
            metrics: Metrics::new(),
            defaults,
            cost,
        };
        Gate::new(Arc::new(shared), buckets, &routes).map(AdmissionLayer::new)
    }
}
