//! The buckets in force: those of the file until somebody puts others into the store, which every gateway and
//! tuner then takes over while it runs.
//!
//! 1. The store is read once before anything is served, for [`FIRST_WAIT`] at most, and from then on every
//!    second or so, or at once when this very process was told. A store that is away changes nothing.
//! 2. A document is checked as the file is, against this process's own file. One that cannot be used (a newer
//!    version wrote it) is told once and counted, and what is in force stays.
//! 3. The gateway's requests go over from one arrival to the next ([`gateway::Live`]); the tuner goes on from its
//!    next rating.
//! 4. A store that has lost the document (it came back empty) has none: the file is in force again, and the log
//!    says so.

use std::{error::Error as _, sync::Arc, time::Duration};

use metrics::{counter, gauge};
use tokio::{
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use tower_merit::{
    BuildError, Tune as _,
    store::{BucketRule, Document},
};
use tracing::{debug, info, warn};

use super::Store;
use crate::{
    config::{Agents, Config},
    gateway, rls, tuner,
};

/// How long the start waits for the store to say which buckets there are.
const FIRST_WAIT: Duration = Duration::from_secs(1);

/// How often the store is read, less up to [`JITTER_MS`]: with the time of a call below the two seconds within
/// which a change is promised everywhere.
const READ_EVERY: Duration = Duration::from_millis(1_000);

/// Nodes that started together do not read together.
const JITTER_MS: u64 = 200;

/// The gateway that takes buckets over.
pub(super) type Gateway = gateway::Live<Store, Agents>;

/// What answers proxies by the buckets in force.
pub(super) type Rls = rls::Live<Store, Agents>;

/// Those who go by the buckets in force.
pub(super) struct Those {
    /// The gateway of this process.
    pub(super) gateway: Option<Gateway>,
    /// What answers proxies.
    pub(super) rls: Option<Rls>,
    /// The tuner, and operators.
    pub(super) aims: watch::Sender<tuner::Aim>,
    /// Operators.
    pub(super) rules: watch::Sender<Arc<[BucketRule]>>,
}

impl Those {
    /// Has requests decided by the buckets of `config`, or leaves everything as it is.
    fn put(&self, config: &Config) -> Result<(), BuildError> {
        let gateway = self.gateway.as_ref().map(|gateway| {
            let (buckets, routes) = (config.layer_buckets(), config.layer_routes());
            gateway.admission().with_buckets(buckets, routes).map(|layer| (gateway, layer))
        });
        let rls = self.rls.as_ref().map(|rls| {
            let (buckets, routes) = (config.layer_buckets(), config.rls_routes());
            rls.admission().with_buckets(buckets, routes).map(|layer| (rls, layer))
        });
        let (gateway, rls) = (gateway.transpose()?, rls.transpose()?);
        if let Some((gateway, layer)) = gateway {
            gateway.put(layer, config.charges());
        }
        if let Some((rls, layer)) = rls {
            rls.put(layer);
        }
        Ok(())
    }
}

/// Reads the store's document and puts it in force.
pub(super) struct Buckets {
    file: Arc<Config>,
    store: Store,
    /// What was read last, usable or not.
    known: Document,
    in_force: Config,
    /// Whether the store was away when it was last asked.
    away: bool,
}

impl Buckets {
    /// Reads which buckets to start with.
    pub(super) async fn open(file: &Config, store: Store) -> Self {
        let mut buckets = Self {
            file: Arc::new(file.clone()),
            store,
            known: Document::default(),
            in_force: file.clone(),
            away: false,
        };
        match timeout(FIRST_WAIT, buckets.read()).await {
            Ok(Some(config)) => buckets.in_force = config,
            Ok(None) => {}
            Err(_) => {
                buckets.away = true;
                warn!(
                    "bucket store does not say which buckets there are: those of the file are in force"
                );
            }
        }
        rev_in_force(&buckets.known);
        buckets
    }

    /// Returns the configuration with the buckets in force.
    pub(super) fn in_force(&self) -> &Config {
        &self.in_force
    }

    /// Reads on until `stop`, also whenever `told`, and puts what is new in force with `those`.
    pub(super) async fn follow(mut self, those: Those, told: Arc<Notify>, stop: CancellationToken) {
        loop {
            let pause = READ_EVERY - Duration::from_millis(fastrand::u64(0..=JITTER_MS));
            tokio::select! {
                biased;
                () = stop.cancelled() => return,
                () = told.notified() => {}
                () = tokio::time::sleep(pause) => {}
            }
            let Some(config) = self.read().await else { continue };
            if let Err(error) = those.put(&config) {
                self.unusable(&error.to_string());
                continue;
            }
            those.aims.send_if_modified(|aim| {
                let tuner::Aim { start, earned, .. } = config.aim();
                let moved = (aim.start, &aim.earned) != (start, &earned);
                (aim.start, aim.earned) = (start, earned);
                moved
            });
            those.rules.send_replace(config.bucket_rules());
            rev_in_force(&self.known);
            self.in_force = config;
        }
    }

    /// Returns the configuration to go on by, when the store says something new that can be used.
    async fn read(&mut self) -> Option<Config> {
        let found = match self.store.document().await {
            Ok(found) => found,
            Err(error) => {
                if self.away {
                    debug!(%error, "buckets not read");
                } else {
                    let cause = error.source().map(ToString::to_string);
                    warn!(%error, cause, "buckets not read: those in force stay");
                    count("away");
                }
                self.away = true;
                return None;
            }
        };
        if std::mem::take(&mut self.away) {
            info!("bucket store says again which buckets there are");
        }
        if found == self.known {
            return None;
        }
        let before = std::mem::replace(&mut self.known, found);
        let (rev, Some(text)) = (self.known.rev, &self.known.text) else {
            // What was removed may have been put and removed between two looks.
            before.text.as_ref()?;
            if self.known.rev == 0 {
                warn!(
                    lost = before.rev,
                    "bucket store has lost its buckets: those of the file are in force"
                );
            } else {
                info!(rev = self.known.rev, "buckets of the file are in force again");
            }
            count("file");
            return Some((*self.file).clone());
        };
        match self.file.with_document_text(text) {
            Ok(config) => {
                info!(
                    rev,
                    buckets = config.bucket.len(),
                    routes = config.route.len(),
                    "buckets of the store are in force"
                );
                count("taken");
                Some(config)
            }
            Err(error) => {
                self.unusable(&error.to_string());
                None
            }
        }
    }

    /// Says that what was read last is of no use here; that is said once, because it is known by now.
    fn unusable(&self, error: &str) {
        warn!(
            rev = self.known.rev,
            error, "buckets of the store cannot be used here: those in force stay"
        );
        count("unusable");
    }
}

fn count(outcome: &'static str) {
    counter!("merit_buckets_reload_total", "outcome" => outcome).increment(1);
}

/// Shows the revision in force, 0 for the file's: nodes that show the same charge the same.
fn rev_in_force(known: &Document) {
    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    let rev = known.text.as_ref().map_or(0.0, |_| known.rev as f64);
    gauge!("merit_buckets_rev").set(rev);
}
