//! Lessons: a service wrapped by tower-merit, one file each in `src/bin`.
//!
//! What they share is what is not the lesson: a development secret and tokens signed with it.

use std::time::{Duration, SystemTime, SystemTimeError, UNIX_EPOCH};

/// The secret of the lessons. A real one comes from the environment or a file.
pub const SECRET: &[u8] = b"a development secret, known to all";

/// Returns a token that names `agent`, valid for an hour.
///
/// # Errors
///
/// When the clock is before 1970, or the token cannot be signed.
pub fn token(agent: &str) -> anyhow::Result<String> {
    let now: Result<Duration, SystemTimeError> = SystemTime::now().duration_since(UNIX_EPOCH);
    let claims = serde_json::json!({ "agent_id": agent, "exp": now?.as_secs() + 3600 });
    let key = jsonwebtoken::EncodingKey::from_secret(SECRET);
    Ok(jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key)?)
}
