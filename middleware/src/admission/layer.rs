//! The layer, and all that its services share.

use std::{collections::HashSet, sync::Arc};

use http::HeaderName;
use tower_layer::Layer;

use super::{
    AdmissionBuilder, AdmissionService, BuildError, NoIdentity, Route,
    concurrency::InFlight,
    metrics::Metrics,
    plan::{Defaults, Plan},
    proof::Receipts,
    reservation::Settle,
    response::Answers,
    route::Bound,
};
use crate::{
    AgentId,
    identity::Identify,
    outage::{By, Guard},
    store::{BucketRule, Settlement, Spend},
};

/// Limits each agent at the rate its ratings earned. Clones, and the services they make, share
/// everything: a layer cloned for each connection still limits.
///
/// ```
/// use tower::{ServiceBuilder, service_fn};
/// use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore};
///
/// let admission = AdmissionLayer::builder(MemoryStore::new())
///     .identity(JwtIdentity::hs256(b"a secret of at least thirty-two bytes").claim("agent_id"))
///     .bucket(Bucket::per_second(20.0).capacity(40))
///     .build()?;
/// let service = ServiceBuilder::new().layer(admission).service(service_fn(
///     async |request: http::Request<()>| {
///         Ok::<_, std::convert::Infallible>(http::Response::new(request.uri().to_string()))
///     },
/// ));
/// # let _ = service;
/// # Ok::<(), tower_merit::BuildError>(())
/// ```
pub struct AdmissionLayer<S, I> {
    gate: Arc<Gate<S, I>>,
    /// What this layer charges whatever the request's path; nothing when the routes say it.
    own: Option<Arc<Plan>>,
}

impl<S: Spend> AdmissionLayer<S, NoIdentity> {
    /// Returns a builder for a layer that spends from `store`.
    pub fn builder(store: S) -> AdmissionBuilder<S, NoIdentity> {
        AdmissionBuilder::new(store)
    }
}

impl<S: Spend, I> AdmissionLayer<S, I> {
    pub(super) fn new(gate: Gate<S, I>) -> Self {
        Self { gate: Arc::new(gate), own: None }
    }

    /// Returns a layer that shares everything with this one (store, identity, allow-list, requests in
    /// flight) and charges every request it sees as `route` says. The route's path and methods are
    /// not looked at: whoever wears the layer has chosen. What `route` leaves open is as it was built.
    ///
    /// A request that passes two layers is charged twice, so put each around different routes.
    ///
    /// ```
    /// use axum::{Router, routing::{get, post}};
    /// use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore, Route};
    ///
    /// let admission = AdmissionLayer::builder(MemoryStore::new())
    ///     .identity(JwtIdentity::hs256(b"a secret of at least thirty-two bytes"))
    ///     .bucket(Bucket::per_second(20.0).capacity(40))
    ///     .bucket(Bucket::per_second(2.0).capacity(10).named("writes"))
    ///     .build()?;
    /// let export = admission.charging(Route::any().cost(5))?;
    /// let writes = admission.charging(Route::any().bucket("writes"))?;
    /// let app: Router = Router::new()
    ///     .route("/export", get(async || "…").layer(export))
    ///     .route("/orders", post(async || "…").layer(writes))
    ///     .merge(Router::new().route("/", get(async || "hello")).layer(admission));
    /// # let _ = app;
    /// # Ok::<(), tower_merit::BuildError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// When the route names a bucket that is not there, or its cost is out of range.
    pub fn charging(&self, route: Route) -> Result<Self, BuildError> {
        let plan = Plan::new(&route, &self.gate.buckets, &self.gate.defaults)?;
        Ok(Self { gate: Arc::clone(&self.gate), own: Some(Arc::new(plan)) })
    }
}

impl<S, I> AdmissionLayer<S, I> {
    /// Returns the fields of a request that say what it costs ([`Cost::from_header`]). A proxy that
    /// wears this layer passes them on even when `Connection` names them: a caller must not be able
    /// to state a cost here that the service behind never reads.
    ///
    /// [`Cost::from_header`]: super::Cost::from_header
    #[must_use]
    pub fn cost_fields(&self) -> Vec<HeaderName> {
        let plans = self.gate.routes.iter().map(|route| &route.plan);
        let plans = plans.chain([&self.gate.base]).chain(self.own.as_deref());
        plans.filter_map(Plan::cost_field).cloned().collect()
    }
}

impl<S, I> Clone for AdmissionLayer<S, I> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate), own: self.own.clone() }
    }
}

impl<S, I> std::fmt::Debug for AdmissionLayer<S, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AdmissionLayer").finish_non_exhaustive()
    }
}

impl<S: Spend, I: Identify, T> Layer<T> for AdmissionLayer<S, I> {
    type Service = AdmissionService<T, S, I>;

    fn layer(&self, inner: T) -> Self::Service {
        AdmissionService::new(inner, Arc::clone(&self.gate), self.own.clone())
    }
}

/// All that the services of one layer share.
pub(super) struct Gate<S, I> {
    pub(super) identity: I,
    pub(super) guard: Guard<S>,
    /// What a request is charged that no route takes.
    pub(super) base: Plan,
    pub(super) routes: Box<[Bound]>,
    pub(super) allow: HashSet<AgentId>,
    pub(super) in_flight: Option<Arc<InFlight>>,
    pub(super) answers: Answers,
    pub(super) receipts: Option<Receipts>,
    pub(super) metrics: Metrics,
    pub(super) buckets: Box<[BucketRule]>,
    pub(super) defaults: Defaults,
}

impl<S: Spend, I: Identify> Settle for Gate<S, I> {
    fn settle(&self, settlement: Settlement, by: By) {
        self.guard.settle(settlement, by);
    }
}
