//! The log's file: written by a task of its own, from a queue that drops rather than waits.
//!
//! Whoever decides hands a row over and goes on. A full queue, a malformed row or a disk that fails
//! loses rows, counted by outcome in `merit_decision_log_rows_total`; it never delays a decision. The
//! file is bounded: when it is full it becomes `<name>.1`, that one `<name>.2`, and the last is
//! removed. Rows reach the file whenever the queue is empty, and when the task is told to stop.

use std::{
    io,
    path::{Path, PathBuf},
};

use metrics::counter;
use tokio::{
    fs::{self, File, OpenOptions},
    io::{AsyncWriteExt, BufWriter},
    sync::mpsc,
    task::JoinHandle,
};
use tracing::{info, warn};

use super::Decided;

/// Where the log goes and how much of it there may be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// The file.
    pub path: PathBuf,
    /// Rows on their way; beyond them rows are dropped. 8,192 are about 4 MB.
    pub queue: usize,
    /// Bytes after which a new file is begun.
    pub bytes_max: u64,
    /// How many full files are kept beside the current one.
    pub kept: u32,
}

impl LogConfig {
    /// Returns a log at `path` of at most 5 × 256 MiB, about two million rows.
    #[must_use]
    pub fn at(path: PathBuf) -> Self {
        Self { path, queue: 8192, bytes_max: 256 * 1024 * 1024, kept: 4 }
    }
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
#[error("cannot append to the decision log {}", path.display())]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    /// Why.
    #[source]
    pub source: io::Error,
}

/// Takes rows. Cloning is cheap; the task ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Log {
    rows: mpsc::Sender<String>,
}

/// The task that writes.
#[derive(Debug)]
pub struct Logging(JoinHandle<()>);

/// What became of a row.
#[derive(Clone, Copy)]
enum Outcome {
    Written,
    QueueFull,
    Malformed,
    DiskFailed,
}

fn count(outcome: Outcome, rows: u64) {
    let outcome = match outcome {
        Outcome::Written => "written",
        Outcome::QueueFull => "queue_full",
        Outcome::Malformed => "malformed",
        Outcome::DiskFailed => "disk_failed",
    };
    counter!("merit_decision_log_rows_total", "outcome" => outcome).increment(rows);
}

impl Log {
    /// Opens the log for appending and starts its task.
    ///
    /// # Errors
    ///
    /// When the file cannot be opened.
    pub async fn open(config: LogConfig) -> Result<(Self, Logging), LogError> {
        let failed = |source| LogError { path: config.path.clone(), source };
        let current = Current::open(&config.path).await.map_err(failed)?;
        let (rows, queue) = mpsc::channel(config.queue.max(1));
        let writing = Writing { config, current: Some(current) };
        Ok((Self { rows }, Logging(tokio::spawn(writing.run(queue)))))
    }

    /// Hands a row over. Never waits: a row that finds the queue full, or that no estimate could
    /// use, is dropped and counted. Returns true when it is on its way.
    pub fn write(&self, row: &Decided) -> bool {
        // A full queue is told before anything is serialised.
        let Ok(place) = self.rows.try_reserve() else {
            count(Outcome::QueueFull, 1);
            return false;
        };
        match row.to_line() {
            Ok(line) => {
                place.send(line);
                true
            }
            Err(_) => {
                count(Outcome::Malformed, 1);
                false
            }
        }
    }
}

impl Logging {
    /// Waits until every row that was handed over is in the file; every [`Log`] must be dropped.
    pub async fn finish(self) {
        if let Err(panic) = self.0.await {
            warn!(%panic, "decision log ended");
        }
    }
}

/// The file that is written now.
struct Current {
    file: BufWriter<File>,
    bytes: u64,
    /// Rows since the last flush: what is lost when that fails.
    unflushed: u64,
}

impl Current {
    async fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).open(path).await?;
        let bytes = file.metadata().await?.len();
        Ok(Self { file: BufWriter::new(file), bytes, unflushed: 0 })
    }
}

struct Writing {
    config: LogConfig,
    /// Nothing while the disk fails.
    current: Option<Current>,
}

impl Writing {
    async fn run(mut self, mut queue: mpsc::Receiver<String>) {
        loop {
            let line = match queue.try_recv() {
                Ok(line) => line,
                Err(_) => {
                    self.flush().await;
                    match queue.recv().await {
                        Some(line) => line,
                        None => return,
                    }
                }
            };
            if let Err(error) = self.write(&line).await {
                self.gave_up(&error, 1);
            }
        }
    }

    async fn write(&mut self, line: &str) -> io::Result<()> {
        let full = |current: &Current| current.bytes + line.len() as u64 > self.config.bytes_max;
        if self.current.as_ref().is_some_and(|current| current.bytes > 0 && full(current)) {
            self.flush().await;
            self.current = None;
            self.shift().await?;
        }
        let current = match &mut self.current {
            Some(current) => current,
            none => {
                let opened = none.insert(Current::open(&self.config.path).await?);
                info!(path = %self.config.path.display(), "decision log begins a file");
                opened
            }
        };
        current.file.write_all(line.as_bytes()).await?;
        current.bytes += line.len() as u64;
        current.unflushed += 1;
        Ok(())
    }

    async fn flush(&mut self) {
        let Some(current) = self.current.as_mut().filter(|current| current.unflushed > 0) else {
            return;
        };
        let rows = std::mem::take(&mut current.unflushed);
        match current.file.flush().await {
            Ok(()) => count(Outcome::Written, rows),
            Err(error) => self.gave_up(&error, rows),
        }
    }

    /// The file is opened anew with the next row: a disk that is full now may not be full then.
    fn gave_up(&mut self, error: &io::Error, rows: u64) {
        let lost = self.current.take().map_or(0, |current| current.unflushed);
        count(Outcome::DiskFailed, rows + lost);
        let path = self.config.path.display();
        warn!(%path, %error, rows = rows + lost, "decisions not logged");
    }

    /// Makes room for a new file: the oldest kept one goes, the others move on by one.
    async fn shift(&self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.config.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.config.kept == 0 {
            return fs::remove_file(&self.config.path).await;
        }
        for number in (1..self.config.kept).rev() {
            match fs::rename(numbered(number), numbered(number + 1)).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.config.path, numbered(1)).await
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests::row, *};

    /// A folder of its own for `name`, empty.
    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("merit-log-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn rows(path: &Path) -> Vec<u64> {
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().map(|line| Decided::from_line(line.as_bytes()).unwrap().at_ms).collect()
    }

    fn at(at_ms: u64) -> Decided {
        Decided { at_ms, ..row() }
    }

    #[tokio::test]
    async fn rows_are_in_the_file_in_order_and_an_existing_file_is_added_to() {
        let folder = folder("order");
        let path = folder.join("decisions.ndjson");
        for run in 0..2 {
            let (log, logging) = Log::open(LogConfig::at(path.clone())).await.unwrap();
            for n in 0..100 {
                assert!(log.write(&at(run * 100 + n)));
            }
            drop(log);
            logging.finish().await;
        }
        assert_eq!(rows(&path), (0..200).collect::<Vec<u64>>());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_full_queue_and_a_malformed_row_drop_and_are_counted_and_nobody_waits() {
        let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
        let folder = folder("full");
        let path = folder.join("decisions.ndjson");
        let config = LogConfig { queue: 3, ..LogConfig::at(path.clone()) };
        let (log, logging) = Log::open(config).await.unwrap();
        // On one thread the task does not run until this one waits.
        let taken: Vec<bool> = metrics::with_local_recorder(&recorder, || {
            assert!(!log.write(&Decided { propensity: f64::NAN, ..row() }));
            (0..5).map(|n| log.write(&at(n))).collect()
        });
        assert_eq!(taken, [true, true, true, false, false]);
        let shown = recorder.handle().render();
        for line in [r#"outcome="queue_full"} 2"#, r#"outcome="malformed"} 1"#] {
            assert!(shown.contains(&format!("merit_decision_log_rows_total{{{line}")), "{shown}");
        }
        drop(log);
        logging.finish().await;
        assert_eq!(rows(&path), [0, 1, 2]);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_full_file_moves_on_and_the_oldest_goes() {
        let folder = folder("shift");
        let path = folder.join("decisions.ndjson");
        let line = at(10).to_line().unwrap().len() as u64;
        let config = LogConfig { bytes_max: 10 * line, kept: 2, ..LogConfig::at(path.clone()) };
        let (log, logging) = Log::open(config).await.unwrap();
        (10..45).for_each(|n| assert!(log.write(&at(n))));
        drop(log);
        logging.finish().await;
        let kept = |name: &str| rows(&folder.join(name));
        assert_eq!(kept("decisions.ndjson").len() + kept("decisions.ndjson.1").len(), 5 + 10);
        assert_eq!(kept("decisions.ndjson.2").len(), 10);
        assert_eq!(kept("decisions.ndjson.2")[0], 20, "the first ten rows are gone");
        assert!(!folder.join("decisions.ndjson.3").exists());
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[tokio::test]
    async fn a_file_that_cannot_be_opened_is_an_error_that_names_it() {
        let path = folder("nowhere").join("no/such/folder/x.ndjson");
        let error = Log::open(LogConfig::at(path)).await.unwrap_err();
        assert!(error.to_string().contains("no/such/folder/x.ndjson"), "{error}");
    }
}
