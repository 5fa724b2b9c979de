//! Rate limits that AI agents earn.
mod agent;

pub use agent::{AGENT_ID_MAX, AgentId, AgentIdError};
