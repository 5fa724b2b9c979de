//! The layer, and all that its services share.

use std::{collections::HashSet, sync::Arc};

use bytes::Bytes;
use http::{HeaderName, Request, Response};
use tokio::time::Instant;
use tower_layer::Layer;

use super::{
    AdmissionBuilder, AdmissionService, Bucket, BuildError, Cost, NoIdentity, Refusal, Route,
    concurrency::{CONCURRENCY_POLICY, InFlight},
    metrics::Metrics,
    plan::{Defaults, Plan},
    proof::Receipts,
    reservation::Settle,
    response::{Answers, Head},
    route::{Bound, ROUTES_MAX},
};
use crate::{
    AgentId,
    identity::{Caller, Identify},
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
        let plan = Plan::new(&route, &self.gate.buckets, &self.gate.shared.defaults)?;
        Ok(Self { gate: Arc::clone(&self.gate), own: Some(Arc::new(plan)) })
    }

    /// Returns a layer with other buckets and routes that shares everything else with this one: store
    /// and breaker, what stands in for the store in an outage, identity, allow-list, receipts, metrics,
    /// and the requests in flight, whichever of the two they came through. Requests that this layer let
    /// in end under its own rules: their corrections go to the buckets that they were charged in.
    ///
    /// So a service changes its buckets while it serves: it puts the new layer where it had the old one.
    /// Limits of the default bucket stand in the same place whatever that is called, and those of a named one
    /// under its name; new limits clamp what an agent holds and never add to it. What
    /// [`AdmissionLayer::charging`] added is not taken along.
    ///
    /// ```
    /// use tower_merit::{AdmissionLayer, Bucket, JwtIdentity, MemoryStore, Route};
    ///
    /// let admission = AdmissionLayer::builder(MemoryStore::new())
    ///     .identity(JwtIdentity::hs256(b"a secret of at least thirty-two bytes"))
    ///     .bucket(Bucket::per_second(20.0).capacity(40))
    ///     .build()?;
    /// let halved = admission.with_buckets([Bucket::per_second(10.0).capacity(20)], [])?;
    /// # let _ = halved;
    /// # Ok::<(), tower_merit::BuildError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`AdmissionBuilder::build`] has of buckets and routes.
    pub fn with_buckets(
        &self,
        buckets: impl IntoIterator<Item = Bucket>,
        routes: impl IntoIterator<Item = Route>,
    ) -> Result<Self, BuildError> {
        let routes: Vec<Route> = routes.into_iter().collect();
        Gate::new(Arc::clone(&self.gate.shared), buckets, &routes).map(Self::new)
    }
}

impl<S: Spend, I: Identify> AdmissionLayer<S, I> {
    /// Learns who sent `request` as admission does, and charges nothing: for a page that tells callers of
    /// their own limits, also those that have no tokens left or are banned.
    ///
    /// # Errors
    ///
    /// With the answer that admission has for a caller it does not know. It is counted as one.
    pub async fn learn<B: Sync>(&self, request: &Request<B>) -> Result<Caller, Response<Bytes>> {
        let shared = &self.gate.shared;
        let learned = match shared.identity.identify_now(request, Instant::now()) {
            Some(learned) => learned,
            None => shared.identity.identify(request).await,
        };
        learned.map_err(|error| {
            let refusal = Refusal::from(error);
            shared.metrics.refused(&refusal, false);
            shared.answers.respond(&refusal, Head::of(request), &self.gate.base.shown, None)
        })
    }
}

impl<S, I> AdmissionLayer<S, I> {
    /// Returns the buckets, with the limits of agents that have none of their own.
    #[must_use]
    pub fn buckets(&self) -> &[BucketRule] {
        &self.gate.buckets
    }

    /// Returns true when `agent` is on the allow-list.
    #[must_use]
    pub fn allows(&self, agent: &AgentId) -> bool {
        self.gate.shared.allow.contains(agent)
    }

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
    pub(super) shared: Arc<Shared<S, I>>,
    /// What a request is charged that no route takes.
    pub(super) base: Plan,
    pub(super) routes: Box<[Bound]>,
    pub(super) buckets: Box<[BucketRule]>,
}

/// What stays when buckets and routes are replaced: who is asked, and all that is known of requests
/// under way.
pub(super) struct Shared<S, I> {
    pub(super) identity: I,
    pub(super) guard: Guard<S>,
    pub(super) allow: HashSet<AgentId>,
    pub(super) in_flight: Option<Arc<InFlight>>,
    pub(super) answers: Answers,
    pub(super) receipts: Option<Receipts>,
    pub(super) metrics: Metrics,
    pub(super) defaults: Defaults,
    /// Of requests that no route takes.
    pub(super) cost: Cost,
}

impl<S, I> Gate<S, I> {
    /// Checks `buckets` and `routes`, and computes ahead what their requests are charged.
    pub(super) fn new(
        shared: Arc<Shared<S, I>>,
        buckets: impl IntoIterator<Item = Bucket>,
        routes: &[Route],
    ) -> Result<Self, BuildError> {
        if routes.len() > ROUTES_MAX {
            return Err(BuildError::TooManyRoutes { count: routes.len() });
        }
        let defaults = &shared.defaults;
        let buckets = rules(buckets.into_iter().collect(), defaults.concurrency.is_some())?;
        let base = Plan::new(&Route::any().cost(shared.cost.clone()), &buckets, defaults)?;
        let compile = |route: &Route| route.compile(&buckets, defaults);
        let routes = routes.iter().map(compile).collect::<Result<_, _>>()?;
        Ok(Self { base, routes, buckets, shared })
    }
}

/// Checks the buckets among each other.
fn rules(buckets: Vec<Bucket>, concurrency: bool) -> Result<Box<[BucketRule]>, BuildError> {
    if buckets.is_empty() {
        return Err(BuildError::NoBucket);
    }
    let marked = buckets.iter().filter(|bucket| bucket.marked_default).count();
    if marked > 1 {
        return Err(BuildError::Defaults { count: marked });
    }
    let mut names = HashSet::new();
    let rule = |(index, bucket): (usize, Bucket)| {
        let is_default = if marked == 0 { index == 0 } else { bucket.marked_default };
        let rule = bucket.into_rule(is_default)?;
        let reserved = concurrency && rule.name.as_str() == CONCURRENCY_POLICY;
        if reserved || !names.insert(rule.name.clone()) {
            return Err(BuildError::NameTaken { bucket: rule.name.to_string() });
        }
        Ok(rule)
    };
    buckets.into_iter().enumerate().map(rule).collect()
}

impl<S: Spend, I: Identify> Settle for Shared<S, I> {
    fn settle(&self, settlement: Settlement, by: By) {
        self.guard.settle(settlement, by);
    }
}
