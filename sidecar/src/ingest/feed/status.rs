//! How the bridge is doing, for readiness. Clones share it.

use std::sync::{Arc, Mutex, PoisonError};

use super::spool::SpoolError;
use crate::causes::with_causes;

/// Why the bridge is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(String);

/// What is wrong with each part; nothing when it works.
#[derive(Debug, Default)]
struct Troubles {
    feed: Option<String>,
    spool: Option<String>,
}

/// How the bridge is doing.
#[derive(Clone, Debug)]
pub struct Status(Arc<Mutex<Troubles>>);

impl Status {
    pub(super) fn new() -> Self {
        let feed = Some("not connected yet".to_owned());
        Self(Arc::new(Mutex::new(Troubles { feed, spool: None })))
    }

    fn with<T>(&self, act: impl FnOnce(&mut Troubles) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    pub(super) fn connected(&self) {
        self.with(|troubles| troubles.feed = None);
    }

    pub(super) fn disconnected(&self, why: &str) {
        self.with(|troubles| troubles.feed = Some(format!("not connected: {why}")));
    }

    pub(super) fn spool_fails(&self, error: &SpoolError) {
        self.with(|troubles| troubles.spool = Some(with_causes(error)));
    }

    pub(super) fn spool_works(&self) {
        self.with(|troubles| troubles.spool = None);
    }

    /// Returns whether the feed is connected and the spool takes ratings.
    ///
    /// # Errors
    ///
    /// With what is wrong.
    pub fn check(&self) -> Result<(), NotReady> {
        let trouble = self.with(|troubles| troubles.spool.clone().or(troubles.feed.clone()));
        trouble.map_or(Ok(()), |trouble| Err(NotReady(trouble)))
    }
}
