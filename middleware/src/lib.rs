//! Rate limits that AI agents earn.
mod agent;

pub mod bucket;

pub mod store;

pub use agent::{AGENT_ID_MAX, AgentId, AgentIdError};
pub use store::{MemoryStore, RedisStore};
