//! How the bridge is doing, for readiness. Clones share it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::spool::SpoolError;
use crate::causes::with_causes;

/// Why the bridge is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotReady(String);

/// What may be wrong, the gravest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Spool,
    DeadLetters,
    Endpoint,
    Gap,
    Feed,
}

/// How the bridge is doing.
#[derive(Clone, Debug)]
pub struct Status(Arc<Mutex<BTreeMap<Part, String>>>);

impl Status {
    pub(super) fn new() -> Self {
        let feed = (Part::Feed, "not connected yet".to_owned());
        Self(Arc::new(Mutex::new(BTreeMap::from([feed]))))
    }

    fn troubles(&self) -> MutexGuard<'_, BTreeMap<Part, String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn fails(&self, part: Part, why: String) {
        self.troubles().insert(part, why);
    }

    fn works(&self, part: Part) {
        self.troubles().remove(&part);
    }

    pub(super) fn connected(&self) {
        self.works(Part::Feed);
    }

    pub(super) fn disconnected(&self, why: &str) {
        self.fails(Part::Feed, format!("not connected: {why}"));
    }

    pub(super) fn spool_fails(&self, error: &SpoolError) {
        self.fails(Part::Spool, with_causes(error));
    }

    pub(super) fn spool_works(&self) {
        self.works(Part::Spool);
    }

    /// The endpoint takes no rating at all.
    pub(super) fn endpoint_refuses(&self, why: &str) {
        self.fails(Part::Endpoint, why.to_owned());
    }

    pub(super) fn endpoint_takes(&self) {
        self.works(Part::Endpoint);
    }

    /// Ratings of the feed may be missing.
    pub(super) fn gap(&self, why: &str) {
        self.fails(Part::Gap, why.to_owned());
    }

    pub(super) fn gap_is_over(&self) {
        self.works(Part::Gap);
    }

    /// Ratings that were refused wait for their file.
    pub(super) fn dead_letters_wait(&self, why: &str) {
        self.fails(Part::DeadLetters, why.to_owned());
    }

    pub(super) fn dead_letters_work(&self) {
        self.works(Part::DeadLetters);
    }

    /// Returns whether the feed is connected, the endpoint takes ratings from us, and the disk does.
    ///
    /// # Errors
    ///
    /// With all that is wrong.
    pub fn check(&self) -> Result<(), NotReady> {
        let troubles: Vec<String> = self.troubles().values().cloned().collect();
        match troubles.is_empty() {
            true => Ok(()),
            false => Err(NotReady(troubles.join("; "))),
        }
    }
}
