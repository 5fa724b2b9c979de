//! What requests go through at the moment: buckets and routes that change while the gateway serves.
//!
//! 1. A request takes what is in force when it arrives and keeps that to its end, the fields that it was
//!    priced by included. Nobody waits for a change, and a change waits for nobody.
//! 2. Looking up what is in force is one load without a lock (`arc-swap`); a request pays some ten
//!    nanoseconds for it.

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
};

use arc_swap::ArcSwap;
use axum::{Router, body::Body, response::Response};
use futures_util::future::BoxFuture;
use http::{HeaderName, Request};
use tower::{Layer as _, Service};

use tower_merit::{AdmissionLayer, AdmissionService, Identify, Spend, admission::AdmissionFuture};

use super::{Charged, Config, GatewayError, Tee, proxy::Proxy};

/// The gateway, and the admission in force there. Clones share both.
pub struct Live<S, I> {
    proxy: Proxy,
    now: Arc<ArcSwap<InForce<S, I>>>,
}

/// What holds for a request.
pub(super) struct InForce<S, I> {
    pub(super) layer: AdmissionLayer<S, I>,
    service: AdmissionService<Pass, S, I>,
    /// The routes, as callers read them.
    pub(super) charges: Vec<Charged>,
}

impl<S: Spend, I: Identify> Live<S, I> {
    /// Returns a gateway as `config` has it, behind `admission`, whose routes are `charges`.
    ///
    /// # Errors
    ///
    /// When the upstream's address cannot be used, or a path for `tee_ratings` is configured and no
    /// `tee` is given or the other way round.
    pub fn new(
        config: &Config,
        admission: AdmissionLayer<S, I>,
        charges: Vec<Charged>,
        tee: Option<Tee>,
    ) -> Result<Self, GatewayError> {
        if config.tee_ratings.is_some() != tee.is_some() {
            return Err(GatewayError::Tee);
        }
        let proxy = Proxy::new(config, tee)?;
        let now = Arc::new(ArcSwap::from_pointee(InForce::new(&proxy, admission, charges)));
        Ok(Self { proxy, now })
    }

    /// Returns the routes of the gateway listener; see [`router`](super::router).
    pub fn router(&self) -> Router {
        Router::new().fallback_service(Front { now: Arc::clone(&self.now) })
    }

    /// Puts `admission` in force, whose routes are `charges`, for requests that arrive from now on.
    pub fn put(&self, admission: AdmissionLayer<S, I>, charges: Vec<Charged>) {
        self.now.store(Arc::new(InForce::new(&self.proxy, admission, charges)));
    }

    /// Returns the admission in force.
    #[must_use]
    pub fn admission(&self) -> AdmissionLayer<S, I> {
        self.now.load().layer.clone()
    }

    pub(super) fn in_force(&self) -> Arc<InForce<S, I>> {
        self.now.load_full()
    }
}

impl<S, I> Clone for Live<S, I> {
    fn clone(&self) -> Self {
        Self { proxy: self.proxy.clone(), now: Arc::clone(&self.now) }
    }
}

impl<S, I> std::fmt::Debug for Live<S, I> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").finish_non_exhaustive()
    }
}

impl<S: Spend, I: Identify> InForce<S, I> {
    fn new(proxy: &Proxy, layer: AdmissionLayer<S, I>, charges: Vec<Charged>) -> Self {
        let pass = Pass { proxy: proxy.clone(), priced_by: layer.cost_fields().into() };
        Self { service: layer.layer(pass), layer, charges }
    }
}

/// Where requests arrive.
struct Front<S, I> {
    now: Arc<ArcSwap<InForce<S, I>>>,
}

impl<S, I> Clone for Front<S, I> {
    fn clone(&self) -> Self {
        Self { now: Arc::clone(&self.now) }
    }
}

impl<S: Spend, I: Identify> Service<Request<Body>> for Front<S, I> {
    type Response = <AdmissionService<Pass, S, I> as Service<Request<Body>>>::Response;
    type Error = Infallible;
    type Future = AdmissionFuture<Pass, S, I, Body>;

    /// Always ready, as [`Pass`] is: nothing is held until a request comes.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.now.load().service.clone().call(request)
    }
}

/// The way to the upstream of requests that were priced by `priced_by`.
#[derive(Clone)]
struct Pass {
    proxy: Proxy,
    priced_by: Arc<[HeaderName]>,
}

impl Service<Request<Body>> for Pass {
    type Response = Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Self { proxy, priced_by } = self.clone();
        Box::pin(async move { Ok(proxy.pass(request, &priced_by).await) })
    }
}
