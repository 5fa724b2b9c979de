//! Lessons: a service wrapped by tower-merit, one file each in `src/bin`.
//!
//! What they share is what is not the lesson: a development secret and tokens signed with it.

use std::time::{Duration, SystemTime, SystemTimeError, UNIX_EPOCH};

use anyhow::Context;
use tokio::net::TcpListener;

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

/// Returns the port in `PORT`, or `default_port`.
///
/// # Errors
///
/// When `PORT` is no port.
pub fn port(default_port: u16) -> anyhow::Result<u16> {
    match std::env::var("PORT") {
        Ok(text) => text.parse().with_context(|| format!("PORT: {text:?} is not a port")),
        Err(_) => Ok(default_port),
    }
}

/// Listens on loopback, on the port in `PORT` or on `default_port`.
///
/// # Errors
///
/// When `PORT` is no port, or the port is taken.
pub async fn listen(default_port: u16) -> anyhow::Result<TcpListener> {
    let port = port(default_port)?;
    let taken = || format!("cannot listen on 127.0.0.1:{port}; choose another port with PORT=3100");
    TcpListener::bind(("127.0.0.1", port)).await.with_context(taken)
}
