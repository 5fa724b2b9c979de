//! Who did what to which agent: one line before a write and one after it.

use std::{
    collections::VecDeque,
    io,
    path::Path,
    sync::{Mutex, PoisonError},
};

use serde::Serialize;
use tokio::{fs::File, io::AsyncWriteExt};
use tracing::{info, warn};

use crate::clock::unix_ms;

/// How many finished deeds are kept in memory.
pub(super) const KEPT: usize = 200;

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(super) struct Entry {
    /// Unix milliseconds.
    pub(super) at_ms: u64,
    /// For example `freeze`.
    pub(super) action: &'static str,
    /// To whom; absent where it is about all.
    pub(super) agent_id: Option<String>,
    /// With what, as it was asked for.
    pub(super) detail: serde_json::Value,
    /// `begun`, `done`, or why not.
    pub(super) outcome: String,
    /// From which address.
    pub(super) from: Option<String>,
}

/// The log, and the newest of it.
#[derive(Debug, Default)]
pub(super) struct Audit {
    file: Option<tokio::sync::Mutex<File>>,
    recent: Mutex<VecDeque<Entry>>,
}

impl Audit {
    /// Appends to the file at `path`, which only its owner may read; without one, deeds go to the process's
    /// log alone.
    pub(super) fn open(path: Option<&Path>) -> io::Result<Self> {
        let open = |path: &Path| {
            let mut options = std::fs::OpenOptions::new();
            options.create(true).append(true);
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            options.open(path)
        };
        let file = path.map(open).transpose()?;
        let file = file.map(|file| tokio::sync::Mutex::new(File::from_std(file)));
        Ok(Self { file, recent: Mutex::default() })
    }

    /// Notes that a write begins.
    ///
    /// # Errors
    ///
    /// When the line does not reach the disk: then nothing may be done.
    pub(super) async fn begin(&self, mut entry: Entry) -> io::Result<Entry> {
        entry.at_ms = unix_ms();
        "begun".clone_into(&mut entry.outcome);
        self.append(&entry).await?;
        Ok(entry)
    }

    /// Notes what became of it.
    pub(super) async fn end(&self, mut entry: Entry, outcome: String) {
        entry.at_ms = unix_ms();
        entry.outcome = outcome;
        let Entry { action, agent_id, detail, outcome, from, .. } = &entry;
        info!(target: "merit::audit", action, agent_id, %detail, outcome, from, "an operator's deed");
        if let Err(error) = self.append(&entry).await {
            warn!(%error, "what became of an operator's deed is not in the audit log");
        }
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.truncate(KEPT - 1);
        recent.push_front(entry);
    }

    /// Returns the newest `most` finished deeds, newest first.
    pub(super) fn newest(&self, most: usize) -> Vec<Entry> {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        recent.iter().take(most).cloned().collect()
    }

    async fn append(&self, entry: &Entry) -> io::Result<()> {
        let Some(file) = &self.file else { return Ok(()) };
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let mut file = file.lock().await;
        // One write for a whole line: a reader never sees a part of one that fitted.
        file.write_all(&line).await?;
        file.flush().await?;
        file.sync_data().await
    }
}
