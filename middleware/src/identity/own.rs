//! Bring your own identity: what an earlier layer left, or a function of yours.

use std::future::{Future, Ready, ready};

use http::{Extensions, HeaderMap, Method, Request, Uri};
use tokio::time::Instant;

use super::{Caller, Identify, IdentityError};
use crate::AgentId;

/// Takes the [`Caller`], or else the [`AgentId`], that an earlier layer left in the request's
/// extensions.
#[derive(Clone, Copy, Debug, Default)]
pub struct ExtensionIdentity;

impl Identify for ExtensionIdentity {
    type Future = Ready<Result<Caller, IdentityError>>;

    fn identify<B>(&self, request: &Request<B>) -> Self::Future {
        let left = request.extensions();
        let caller = left
            .get::<Caller>()
            .cloned()
            .or_else(|| left.get::<AgentId>().cloned().map(Caller::from));
        let reason = "no earlier layer identified the agent";
        ready(caller.ok_or(IdentityError::Unauthenticated { reason, presented: false }))
    }

    fn identify_now<B>(
        &self,
        request: &Request<B>,
        _: Instant,
    ) -> Option<Result<Caller, IdentityError>> {
        Some(self.identify(request).into_inner())
    }
}

/// A request without its body, as [`identify_fn`] shows it.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URI.
    pub uri: &'a Uri,
    /// The header fields.
    pub headers: &'a HeaderMap,
    /// What earlier layers left.
    pub extensions: &'a Extensions,
}

/// Returns an identity that asks `identify`; what its future needs of the request is taken out
/// before.
///
/// ```
/// use std::future::ready;
/// use tower_merit::{AgentId, Caller, identity::{IdentityError, identify_fn}};
///
/// let by_mesh = identify_fn(|head| {
///     let name = head.headers.get("x-mesh-workload").and_then(|value| value.to_str().ok());
///     let agent = name.and_then(|name| AgentId::new(name).ok()).map(Caller::from);
///     let reason = "the mesh names no workload";
///     ready(agent.ok_or(IdentityError::Unauthenticated { reason, presented: false }))
/// });
/// # let _ = by_mesh;
/// ```
pub fn identify_fn<F, A>(identify: F) -> IdentifyFn<F>
where
    F: Fn(RequestHead<'_>) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Caller, IdentityError>> + Send + 'static,
{
    IdentifyFn { identify }
}

/// Made by [`identify_fn`].
#[derive(Clone, Copy)]
pub struct IdentifyFn<F> {
    identify: F,
}

impl<F> std::fmt::Debug for IdentifyFn<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IdentifyFn").finish_non_exhaustive()
    }
}

impl<F, A> Identify for IdentifyFn<F>
where
    F: Fn(RequestHead<'_>) -> A + Send + Sync + 'static,
    A: Future<Output = Result<Caller, IdentityError>> + Send + 'static,
{
    type Future = A;

    fn identify<B>(&self, request: &Request<B>) -> A {
        (self.identify)(RequestHead {
            method: request.method(),
            uri: request.uri(),
            headers: request.headers(),
            extensions: request.extensions(),
        })
    }
}
