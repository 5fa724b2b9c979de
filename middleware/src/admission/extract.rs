//! The agent as an axum extractor.

use std::convert::Infallible;

use axum_core::{
    extract::{FromRequestParts, OptionalFromRequestParts},
    response::{IntoResponse, Response},
};
use http::{StatusCode, request::Parts};

use crate::AgentId;

/// The agent that a request was admitted for.
///
/// ```
/// use tower_merit::admission::Agent;
///
/// async fn hello(Agent(agent): Agent) -> String {
///     format!("hello, {agent}")
/// }
/// # let _ = hello;
/// ```
#[derive(Clone, Debug)]
pub struct Agent(pub AgentId);

/// The handler asks for an agent, and no admission layer is around it: 500.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("no admission layer identified an agent for this route")]
pub struct NoAgent;

impl IntoResponse for NoAgent {
    fn into_response(self) -> Response {
        (StatusCode::INTERNAL_SERVER_ERROR, self.to_string()).into_response()
    }
}

impl<S: Sync> FromRequestParts<S> for Agent {
    type Rejection = NoAgent;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, NoAgent> {
        parts.extensions.get::<AgentId>().cloned().map(Self).ok_or(NoAgent)
    }
}

impl<S: Sync> OptionalFromRequestParts<S> for Agent {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Option<Self>, Infallible> {
        Ok(parts.extensions.get::<AgentId>().cloned().map(Self))
    }
}
