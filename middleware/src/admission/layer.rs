//! The layer and its builder: what is checked once, before the first request.

use std::{num::NonZeroU32, sync::Arc};

use metrics::{Counter, Histogram, counter, histogram};
use tower_layer::Layer;

use super::AdmissionService;
use crate::{
    bucket::{BucketName, BucketNameError, Limits, LimitsError, Tokens},
    identity::{Identify, IdentityConfigError, IntoIdentify},
    outage::{Guard, Outage, Plan},
    store::{BucketRule, Spend, Take},
};

/// A bucket as a service describes it: how fast it fills, how much it holds.
///
/// ```
/// use tower_merit::Bucket;
/// let bucket = Bucket::per_second(20.0).capacity(40);
/// ```
#[derive(Clone, Debug)]
pub struct Bucket {
    name: String,
    refill_rate: f64,
    capacity: Option<u64>,
}

impl Bucket {
    /// Returns a bucket that gains `refill_rate` tokens per second, named `default`.
    #[must_use]
    pub fn per_second(refill_rate: f64) -> Self {
        Self { name: "default".to_owned(), refill_rate, capacity: None }
    }

    /// Sets how many tokens it holds: the largest burst. Unless set, one second's refill, and at
    /// least one token.
    #[must_use]
    pub fn capacity(mut self, tokens: u64) -> Self {
        self.capacity = Some(tokens);
        self
    }

    /// Sets the name that callers read in `RateLimit` fields.
    #[must_use]
    pub fn named(mut self, name: &str) -> Self {
        name.clone_into(&mut self.name);
        self
    }

    fn into_rule(self) -> Result<BucketRule, BuildError> {
        let name = BucketName::new(&self.name)?;
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates"
        )]
        let capacity = self.capacity.unwrap_or(self.refill_rate.max(1.0) as u64);
        let fault = |source| BuildError::Limits { bucket: name.to_string(), source };
        let limits = Limits::per_second(self.refill_rate, capacity).map_err(fault)?;
        if limits.capacity() == Tokens::ZERO || limits.refill().micro() == 0 {
            return Err(BuildError::Closed { bucket: self.name });
        }
        Ok(BucketRule { name, is_default: true, limits, shadow: false })
    }
}

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
    /// The identity cannot work.
    #[error("identity")]
    Identity(#[from] IdentityConfigError),
}

/// The builder's state before an identity is given.
#[derive(Debug)]
pub struct NoIdentity(());

/// Builds an [`AdmissionLayer`].
#[derive(Debug)]
pub struct AdmissionBuilder<S, I> {
    store: S,
    identity: I,
    bucket: Option<Bucket>,
    cost: u64,
    outage: Outage,
    nodes: NonZeroU32,
    realm: String,
    headers: bool,
}

impl<S> AdmissionBuilder<S, NoIdentity> {
    /// Sets how the agent is learned.
    #[must_use]
    pub fn identity<I: IntoIdentify>(self, identity: I) -> AdmissionBuilder<S, I> {
        let Self { store, identity: _, bucket, cost, outage, nodes, realm, headers } = self;
        AdmissionBuilder { store, identity, bucket, cost, outage, nodes, realm, headers }
    }
}

impl<S: Spend, I> AdmissionBuilder<S, I> {
    /// Sets the bucket of every agent that has no limits of its own.
    #[must_use]
    pub fn bucket(mut self, bucket: Bucket) -> Self {
        self.bucket = Some(bucket);
        self
    }

    /// Sets the tokens that each request costs; 1 unless set, 0 only looks.
    #[must_use]
    pub fn cost(mut self, tokens: u64) -> Self {
        self.cost = tokens;
        self
    }

    /// Sets what happens when the store does not answer; [`Outage::Local`] unless set.
    #[must_use]
    pub fn on_outage(mut self, outage: Outage) -> Self {
        self.outage = outage;
        self
    }

    /// Sets how many nodes share the store, for [`Outage::Local`]; 1 unless set.
    #[must_use]
    pub fn expected_nodes(mut self, nodes: NonZeroU32) -> Self {
        self.nodes = nodes;
        self
    }

    /// Sets the realm of `WWW-Authenticate` (printable ASCII; other characters are left out);
    /// `merit` unless set.
    #[must_use]
    pub fn realm(mut self, realm: &str) -> Self {
        let printable = |c: &char| (' '..='~').contains(c) && *c != '"' && *c != '\\';
        self.realm = realm.chars().filter(printable).collect();
        self
    }

    /// Sets whether answers carry `RateLimit` and `RateLimit-Policy`; they do unless told not to.
    #[must_use]
    pub fn rate_limit_headers(mut self, on: bool) -> Self {
        self.headers = on;
        self
    }
}

impl<S: Spend, I: IntoIdentify> AdmissionBuilder<S, I> {
    /// Returns the layer. Install the metrics recorder before: its handles are taken here.
    ///
    /// # Errors
    ///
    /// When the bucket is missing or out of range, or the identity cannot work.
    pub fn build(self) -> Result<AdmissionLayer<S, I::Identify>, BuildError> {
        let bucket = self.bucket.ok_or(BuildError::NoBucket)?.into_rule()?;
        let cost = Tokens::new(self.cost).map_err(BuildError::Cost)?;
        let identity = self.identity.into_identify()?;
        Ok(AdmissionLayer {
            gate: Arc::new(Gate {
                identity,
                plan: Plan::new(vec![Take { bucket, cost }], self.nodes),
                guard: Guard::new(self.store, self.outage, self.nodes),
                realm: self.realm,
                headers: self.headers,
                metrics: Metrics::new(),
            }),
        })
    }
}

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
}

impl<S: Spend> AdmissionLayer<S, NoIdentity> {
    /// Returns a builder for a layer that spends from `store`.
    #[must_use]
    pub fn builder(store: S) -> AdmissionBuilder<S, NoIdentity> {
        AdmissionBuilder {
            store,
            identity: NoIdentity(()),
            bucket: None,
            cost: 1,
            outage: Outage::default(),
            nodes: NonZeroU32::MIN,
            realm: "merit".to_owned(),
            headers: true,
        }
    }
}

impl<S, I> Clone for AdmissionLayer<S, I> {
    fn clone(&self) -> Self {
        Self { gate: Arc::clone(&self.gate) }
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
        AdmissionService::new(inner, Arc::clone(&self.gate))
    }
}

/// All that the services of one layer share.
pub(super) struct Gate<S, I> {
    pub(super) identity: I,
    pub(super) plan: Plan,
    pub(super) guard: Guard<S>,
    pub(super) realm: String,
    pub(super) headers: bool,
    pub(super) metrics: Metrics,
}

/// Handles taken once: a lookup by name would cost more than a decision.
pub(super) struct Metrics {
    pub(super) admitted: Counter,
    pub(super) denied: Counter,
    pub(super) banned: Counter,
    pub(super) unauthenticated: Counter,
    pub(super) no_agent: Counter,
    pub(super) identity_unavailable: Counter,
    pub(super) outage_open: Counter,
    pub(super) outage_closed: Counter,
    pub(super) utilization: Histogram,
    pub(super) seconds: Histogram,
}

impl Metrics {
    fn new() -> Self {
        let decided =
            |outcome: &'static str| counter!("merit_decisions_total", "outcome" => outcome);
        Self {
            admitted: decided("admitted"),
            denied: decided("denied"),
            banned: decided("banned"),
            unauthenticated: decided("unauthenticated"),
            no_agent: decided("no_agent"),
            identity_unavailable: decided("identity_unavailable"),
            outage_open: decided("outage_open"),
            outage_closed: decided("outage_closed"),
            utilization: histogram!("bucket_utilization"),
            seconds: histogram!("merit_decision_seconds"),
        }
    }
}
