//! A schema registry (Confluent's API): which id our schema has, and what somebody else's id means.
//!
//! 1. Ids are for ever: what was learnt once is never asked again, and the registry may be away from then on.
//! 2. Who writes needs one id. Until the registry has given it nothing is published, and publishing says why.
//! 3. Who reads needs the schema of each id that it meets. While the registry does not say what an id means, the
//!    partition with it waits. Only the registry's own "no such schema", said twice, makes a record poison.
//! 4. One question is on its way for each schema; it is asked again until it is answered, with back-off.
//! 5. Whatever else goes wrong, a wrong path or password too, may be put right over there: it is asked again.

mod client;
pub mod config;
mod schemas;
mod subject;

pub use client::RegistryError;
pub use config::Config;
pub use schemas::{Found, Schemas};
pub use subject::Subject;

use std::time::{Duration, Instant};
use tracing::warn;

use crate::causes::with_causes;

/// Between questions that failed, at least and at most.
const AGAIN_LEAST: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(5);
/// A failure that repeats is logged this often.
const QUIET: Duration = Duration::from_secs(30);

/// When a question that failed is asked again, and logged.
struct Retry {
    pause: Duration,
    logged: Option<Instant>,
}

impl Retry {
    fn new() -> Self {
        Self { pause: AGAIN_LEAST, logged: None }
    }

    /// Takes note of a failure; `doing` says what waits for the answer. Returns how long to wait.
    fn failed(&mut self, error: &RegistryError, doing: &'static str) -> Duration {
        if self.logged.is_none_or(|logged| logged.elapsed() >= QUIET) {
            self.logged = Some(Instant::now());
            warn!(error = with_causes(error), "{doing}; asking again");
        }
        // Half of it by chance: after an outage not everybody asks at once.
        let pause = self.pause.mul_f64(0.5 + 0.5 * fastrand::f64());
        self.pause = (self.pause * 2).min(AGAIN_MOST);
        pause
    }
}

#[cfg(test)]
mod tests;
