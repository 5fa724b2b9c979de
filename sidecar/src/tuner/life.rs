//! Which life of the store memory belongs to: it is asked before anything is written over a new
//! connection, and when it is another one, the loop forgets everything and goes back.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower_merit::store::{Life, StoreError, Tune};
use tracing::{info, warn};

use super::{Interrupt, RETRY_MAX, RETRY_MIN, Tuner, TunerError, wait_or_stop};
use crate::clock::unix_time;

/// The life of the store that memory belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) run_id: String,
    pub(super) epoch: String,
}

impl<T: Tune> Tuner<T> {
    /// Waits until the store answers.
    ///
    /// # Errors
    ///
    /// [`Interrupt::NewLife`] when it is not the one that memory belongs to. It is the known one
    /// from then on.
    pub(super) async fn same_life(&mut self, stop: &CancellationToken) -> Result<(), Interrupt> {
        let mut pause = RETRY_MIN;
        loop {
            match self.ask_life().await {
                Ok(life) if self.is_known(&life) => return Ok(()),
                Ok(_) => return Err(Interrupt::NewLife),
                Err(failure) => self.failed("bucket store not reached", &failure),
            }
            if wait_or_stop(pause, stop).await {
                return Err(Interrupt::Stop);
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    /// Takes over `life`; returns false when memory belongs to another one.
    pub(super) fn is_known(&mut self, now: &Known) -> bool {
        match self.life.replace(now.clone()) {
            Some(before) if before != *now => {
                warn!(before = before.run_id, now = now.run_id, "bucket store is another one now");
                if before.epoch != now.epoch {
                    warn!(
                        "it holds none of our data: limits are rebuilt from the log, and what \
                         compaction removed from that is not in them"
                    );
                }
                false
            }
            _ => true,
        }
    }

    /// Asks which life of the store this is; an empty one becomes ours.
    pub(super) async fn ask_life(&self) -> Result<Known, StoreError> {
        loop {
            let Life { run_id, epoch } = self.store.life().await?;
            match epoch {
                Some(epoch) => return Ok(Known { run_id, epoch }),
                None => self.store.begin_epoch(&unique()).await?,
            }
        }
    }

    /// Forgets everything and goes back to the stored progress.
    pub(super) async fn begin_again(&mut self, stop: &CancellationToken) -> Result<(), TunerError> {
        match self.read_progress(stop).await {
            Some((progress, _)) => self.go_back(&progress),
            None => Ok(()),
        }
    }

    pub(super) fn go_back(&mut self, progress: &HashMap<String, u64>) -> Result<(), TunerError> {
        self.metrics.rewinds.increment(1);
        self.agents.forget_all();
        for partition in self.positions.partitions() {
            let from = progress.get(&*self.logs[&partition]).copied().unwrap_or(0);
            info!(%partition, from, "giving the store its last ratings again");
            self.consumer.seek(partition, from)?;
            self.positions.begin(partition, from, Instant::now());
        }
        Ok(())
    }

    /// Returns the stored progress once the store answers, and whether it is the store that memory
    /// belongs to; `None` when it is time to stop.
    pub(super) async fn read_progress(
        &mut self,
        stop: &CancellationToken,
    ) -> Option<(HashMap<String, u64>, bool)> {
        let (mut pause, mut same) = (RETRY_MIN, true);
        loop {
            let progress = match self.ask_life().await {
                Ok(life) => {
                    same &= self.is_known(&life);
                    self.store.progress().await
                }
                Err(failure) => Err(failure),
            };
            match progress {
                Ok(progress) => return Some((progress.into_iter().collect(), same)),
                Err(failure) => self.failed("progress not read", &failure),
            }
            if wait_or_stop(pause, stop).await {
                return None;
            }
            pause = (pause * 2).min(RETRY_MAX);
        }
    }
}

/// Returns a name, of a life of the store or of a tuner: no two are alike, and nothing else is asked
/// of it.
pub(super) fn unique() -> String {
    let since = unix_time();
    format!("{:x}-{:08x}", since.as_millis(), RandomState::new().hash_one(since) >> 32)
}
