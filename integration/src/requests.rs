//! Requests of many agents, for benches: made once and asked in a circle.

use http::{Request, header};
use serde_json::json;

use crate::keys;

/// The field by which layers know an agent that verify nothing.
pub const AGENT_HEADER: &str = "x-agent";

/// Lifetime of the tokens, longer than any bench runs.
const LIFETIME_SECONDS: u64 = 36_000;

/// Returns a request of each of `agents` agents, with a token of its own signed with
/// [`SECRET`](crate::SECRET) and with its id in [`AGENT_HEADER`].
///
/// # Panics
///
/// Never: ids and tokens are visible ASCII.
#[must_use]
pub fn requests(agents: usize) -> Vec<Request<()>> {
    let exp = keys::now() + LIFETIME_SECONDS;
    let request = |index| {
        let agent = format!("agent-{index}");
        let token = keys::hs256(&json!({"agent_id": agent, "exp": exp}));
        Request::builder()
            .header(header::AUTHORIZATION, format!("Bearer {token}"))
            .header(AGENT_HEADER, agent)
            .body(())
            .expect("ids and tokens are visible ASCII")
    };
    (0..agents).map(request).collect()
}
