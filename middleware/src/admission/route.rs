//! Routes: which requests are charged otherwise than by the default bucket alone, and how.

use http::{HeaderName, Method, Request};

use super::{
    BuildError,
    cost::Cost,
    path::{self, PathPattern, TwoWays},
    plan::{Defaults, Plan},
};
use crate::{outage::Outage, store::BucketRule};

/// The most routes of one layer: they are tried one after the other.
pub const ROUTES_MAX: usize = 256;

/// Requests that are charged otherwise than by the default bucket alone.
///
/// Give it to [`AdmissionBuilder::route`](super::AdmissionBuilder::route), where it is bound by path
/// and method and the first that matches wins, or make a layer of its own for one route of a router
/// ([`AdmissionLayer::charging`](super::AdmissionLayer::charging)). The default bucket is charged as
/// well, first.
///
/// ```
/// use http::Method;
/// use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore, Outage, Route};
///
/// let admission = AdmissionLayer::builder(MemoryStore::new())
///     .identity(JwtIdentity::hs256(b"a secret of at least thirty-two bytes"))
///     .bucket(Bucket::per_second(20.0).capacity(40))
///     .bucket(Bucket::per_second(2.0).capacity(10).named("writes"))
///     .route(Route::path("/health").cost(0))
///     .route(Route::path("/v1/orders/*").methods([Method::POST, Method::PUT]).bucket("writes"))
///     .route(Route::path("/v1/payments/*").bucket("writes").on_outage(Outage::Closed))
///     .build()?;
/// # let _ = admission;
/// # Ok::<(), tower_merit::BuildError>(())
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct Route {
    path: Option<String>,
    methods: Vec<Method>,
    pub(super) buckets: Vec<String>,
    pub(super) cost: Cost,
    pub(super) default_cost: Option<u64>,
    pub(super) on_outage: Option<Outage>,
    pub(super) shadow: Option<bool>,
    pub(super) refund_on_5xx: Option<bool>,
    pub(super) reserve: bool,
    pub(super) settle_from: Option<HeaderName>,
    pub(super) strip_settle_field: bool,
    pub(super) unsettled_cost: Option<u64>,
}

impl Route {
    /// Returns the route of requests whose path matches `pattern`.
    ///
    /// A pattern begins with `/`. `*` as a segment matches one segment; at the end, `/*` matches the
    /// path before it and everything below. Text is compared decoded and without regard to ASCII
    /// case; a slash at the end of a path means nothing. A path that different servers would read
    /// differently (`//`, `/../`, `\`, `;`, encoded slashes) must lead to the same route however it
    /// is read, or the request is answered 400: no spelling takes a request from one route to
    /// another. Such a path may have 128 segments.
    ///
    /// Compared is the path that the layer sees: within `nest("/api", …)` of axum that is the path
    /// without `/api`, unless the layer is put around the outer router.
    pub fn path(pattern: &str) -> Self {
        Self { path: Some(pattern.to_owned()), ..Self::any() }
    }

    /// Returns the route of all requests.
    pub fn any() -> Self {
        Self {
            path: None,
            methods: Vec::new(),
            buckets: Vec::new(),
            cost: Cost::tokens(1),
            default_cost: None,
            on_outage: None,
            shadow: None,
            refund_on_5xx: None,
            reserve: false,
            settle_from: None,
            strip_settle_field: false,
            unsettled_cost: None,
        }
    }

    /// Binds it to these methods; to all unless set. `GET` means `HEAD` as well, which the same
    /// handlers answer.
    pub fn methods(mut self, methods: impl IntoIterator<Item = Method>) -> Self {
        self.methods.extend(methods);
        self
    }

    /// Charges this bucket too, beside the default one. Repeatable.
    pub fn bucket(mut self, name: &str) -> Self {
        self.buckets.push(name.to_owned());
        self
    }

    /// Sets what a request costs in every bucket of the route; 1 unless set.
    pub fn cost(mut self, cost: impl Into<Cost>) -> Self {
        self.cost = cost.into();
        self
    }

    /// Sets what a request costs in the default bucket, when that is something else: `1` counts
    /// requests there while another bucket counts tokens. What is settled later is the cost in the
    /// others.
    pub fn default_cost(mut self, tokens: u64) -> Self {
        self.default_cost = Some(tokens);
        self
    }

    /// Sets what happens when the store does not answer; as the layer does unless set.
    pub fn on_outage(mut self, outage: Outage) -> Self {
        self.on_outage = Some(outage);
        self
    }

    /// Sets whether requests pass on that are denied or of which too many are in flight; as the
    /// layer does unless set. Callers must identify themselves all the same, and bans and the policy
    /// for an outage hold: only the shadow of the whole layer
    /// ([`AdmissionBuilder::shadow`](super::AdmissionBuilder::shadow)) lets those pass as well.
    pub fn shadow(mut self, on: bool) -> Self {
        self.shadow = Some(on);
        self
    }

    /// Sets whether a request that fails, or is answered 5xx, gets its tokens back; as the layer
    /// does unless set.
    pub fn refund_on_5xx(mut self, on: bool) -> Self {
        self.refund_on_5xx = Some(on);
        self
    }

    /// Puts a [`Reservation`](super::Reservation) into the extensions of every request that passes,
    /// so that the service behind can settle what it really cost.
    pub fn reserve(mut self, on: bool) -> Self {
        self.reserve = on;
        self
    }

    /// Settles what the service behind says the request really cost, in tokens: a decimal in this
    /// field of its answer, or of the trailers at the end of it. Without the field, or with
    /// something else in it, what was charged stands.
    ///
    /// A caller that hangs up before the answer has ended keeps the field from coming. It then pays
    /// [`Route::unsettled_cost`], so reserve what a request costs at most and settle down: with
    /// [`Cost::from_header`] a request without the field reserves `max`.
    pub fn settle_from(mut self, field: HeaderName) -> Self {
        self.settle_from = Some(field);
        self
    }

    /// Sets what a request costs at least whose caller hangs up before the answer has ended and
    /// nothing has settled, in tokens. Unless set it is the `max` of [`Cost::from_header`], and with
    /// other costs what was charged. It does not hold with [`Route::reserve`]: there the service can
    /// settle whatever the caller does.
    pub fn unsettled_cost(mut self, tokens: u64) -> Self {
        self.unsettled_cost = Some(tokens);
        self
    }

    /// Sets whether the field of [`Route::settle_from`] is taken out of answers: of all
    /// of them, those to requests that were charged nothing too.
    pub fn strip_settle_field(mut self, on: bool) -> Self {
        self.strip_settle_field = on;
        self
    }

    /// Returns how the route is called in errors.
    pub(super) fn name(&self) -> String {
        self.path.clone().unwrap_or_else(|| "any path".to_owned())
    }

    pub(super) fn compile(
        &self,
        buckets: &[BucketRule],
        defaults: &Defaults,
    ) -> Result<Bound, BuildError> {
        let fault = |problem| BuildError::Path { path: self.name(), problem };
        let path = self.path.as_deref().map(PathPattern::parse).transpose().map_err(fault)?;
        let mut methods = self.methods.clone();
        if methods.contains(&Method::GET) {
            methods.push(Method::HEAD);
        }
        Ok(Bound { path, methods: methods.into(), plan: Plan::new(self, buckets, defaults)? })
    }
}

/// A route with all that was computed ahead.
pub(super) struct Bound {
    path: Option<PathPattern>,
    /// Empty: all.
    methods: Box<[Method]>,
    pub(super) plan: Plan,
}

/// Returns the position of the route that takes `request`.
pub(super) fn find<B>(routes: &[Bound], request: &Request<B>) -> Result<Option<usize>, TwoWays> {
    if routes.is_empty() {
        return Ok(None);
    }
    let takes = |index: usize| {
        let methods: &[Method] = &routes[index].methods;
        methods.is_empty() || methods.contains(request.method())
    };
    path::first_match(routes.iter().map(|route| route.path.as_ref()), takes, request.uri().path())
}
