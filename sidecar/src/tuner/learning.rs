//! Learning beside the loop, on a thread of its own: no rating ever waits for it.
//!
//! 1. The loop hands lessons over and never waits; when the thread is behind they are dropped, and
//!    counted. What the thread learned comes back as networks, which the loop takes up at its next tick.
//! 2. With a checkpoint on a shared volume one process is elected writer, by a lock that ends with the
//!    process. The writer learns and saves; the others load what it saved. A file that somebody else put
//!    there, an operator say, is loaded by all of them.
//! 3. Another configuration goes on with what was learned, unless it asks for networks of another shape.
//! 4. Whatever cannot be loaded or learned leaves the networks in force as they are, with a metric and
//!    a line that says why.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};
use tokio::sync::watch;
use tower_merit::AgentId;
use tracing::{debug, info, warn};

use crate::{
    causes::with_causes,
    checkpoint,
    policy::{
        self, Config, Kind, Lesson, Mode, Network, OBSERVATION,
        ppo::{Checkpoint, Expected, Experience, Gaussian, Horizon, Learner, Student},
    },
};

/// Steps that an update learns from, at least.
const STEPS: usize = 4_096;

/// Slices of lessons that may wait for the thread.
const QUEUE: usize = 64;

/// How often the volume is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How often agents that were not seen since make room for others.
const SWEEP_EVERY: Duration = Duration::from_secs(60);

/// How often what was learned is saved.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// The networks in force.
#[derive(Clone, Debug)]
pub(super) struct Published {
    pub(super) network: Arc<Network>,
    pub(super) version: u64,
}

/// The loop's end of learning.
pub(super) struct Learning {
    /// What the thread was started by.
    config: Config,
    lessons: Option<SyncSender<Vec<(AgentId, Lesson)>>>,
    slice: Vec<(AgentId, Lesson)>,
    published: watch::Receiver<Published>,
    thread: Option<thread::JoinHandle<Learner<Gaussian>>>,
    dropped: Counter,
}

impl Learning {
    /// Starts the thread; nothing when `config` has nothing that learns or is loaded. It goes on where `before` is,
    /// which is what another one ended with.
    pub(super) fn start(config: &Config, before: Option<&Learner<Gaussian>>) -> Option<Self> {
        if config.kind != Kind::Ppo {
            return None;
        }
        let (lessons, taught) = sync_channel(QUEUE);
        let goes_on = before.and_then(|before| before.under(&config.ppo, config.seed));
        let beginner = goes_on.unwrap_or_else(|| config.beginner());
        let first = Published {
            network: Arc::new(beginner.network().clone()),
            version: beginner.updates(),
        };
        let (publish, published) = watch::channel(first);
        let school = School::new(config, beginner, publish);
        let thread = thread::Builder::new().name("merit-learning".to_owned());
        let thread = match thread.spawn(move || school.run(&taught)) {
            Ok(thread) => Some(thread),
            Err(error) => {
                warn!(%error, "no thread to learn on: the networks stay as they are");
                None
            }
        };
        let dropped = counter!("merit_learning_lessons_dropped_total");
        let (config, lessons) = (config.clone(), Some(lessons));
        Some(Self { config, lessons, slice: Vec::new(), published, thread, dropped })
    }

    /// Returns true when it goes on as it is under `config`.
    pub(super) fn suits(&self, config: &Config) -> bool {
        let Config { kind, mode, seed, checkpoint, ppo, .. } = &self.config;
        (*kind, *mode, *seed) == (config.kind, config.mode, config.seed)
            && (checkpoint, ppo) == (&config.checkpoint, &config.ppo)
    }

    /// Returns the networks in force, when they are others than before.
    pub(super) fn news(&mut self) -> Option<Published> {
        let news = self.published.has_changed().unwrap_or(false);
        news.then(|| self.published.borrow_and_update().clone())
    }

    /// Notes a lesson of this slice.
    pub(super) fn note(&mut self, agent: &AgentId, lesson: Lesson) {
        self.slice.push((agent.clone(), lesson));
    }

    /// Hands the slice's lessons over.
    pub(super) fn hand_over(&mut self) {
        if self.slice.is_empty() {
            return;
        }
        let slice = std::mem::take(&mut self.slice);
        let count = slice.len() as u64;
        let sent = self.lessons.as_ref().map(|lessons| lessons.try_send(slice));
        if let Some(Err(TrySendError::Full(_) | TrySendError::Disconnected(_))) = sent {
            self.dropped.increment(count);
        }
    }

    /// Ends the thread once it has saved what it learned, and returns that.
    pub(super) async fn finish(mut self) -> Option<Learner<Gaussian>> {
        self.lessons = None;
        let thread = self.thread.take()?;
        let ended = tokio::task::spawn_blocking(move || thread.join()).await;
        let Ok(Ok(learner)) = ended else {
            warn!("the learning thread ended by a fault of ours");
            return None;
        };
        Some(learner)
    }
}

/// What the thread works on.
struct School {
    student: Student<Gaussian>,
    experience: Experience<AgentId, OBSERVATION>,
    horizon: Horizon,
    learns: bool,
    /// True as long as nothing was loaded or learned.
    untouched: bool,
    volume: Option<Volume>,
    publish: watch::Sender<Published>,
    /// Updates that were saved, and when.
    saved: (u64, Instant),
    told: Told,
}

/// The checkpoint on its volume.
struct Volume {
    path: PathBuf,
    expected: Expected<Gaussian>,
    /// Held by the elected writer as long as it lives.
    writer: Option<File>,
    /// The file as it was last loaded or saved.
    seen: Option<(SystemTime, u64)>,
}

struct Told {
    updates: Counter,
    seconds: Histogram,
    kl: Gauge,
    explained: Gauge,
    version: Gauge,
    writer: Gauge,
    /// When the checkpoint on the volume was written, Unix seconds.
    written: Gauge,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            updates: counter!("merit_learning_updates_total"),
            seconds: histogram!("merit_learning_update_seconds"),
            kl: gauge!("merit_learning_kl_nats"),
            explained: gauge!("merit_learning_explained_variance"),
            version: gauge!("merit_policy_version"),
            writer: gauge!("merit_checkpoint_writer"),
            written: gauge!("merit_checkpoint_timestamp_seconds"),
        }
    }
}

fn checkpoint_outcome(outcome: &'static str) {
    counter!("merit_checkpoints_total", "outcome" => outcome).increment(1);
}

impl School {
    fn new(
        config: &Config,
        beginner: Learner<Gaussian>,
        publish: watch::Sender<Published>,
    ) -> Self {
        let volume = config.checkpoint.clone().map(|path| Volume {
            path,
            expected: policy::expected(&config.ppo),
            writer: None,
            seen: None,
        });
        Self {
            experience: Experience::new(STEPS),
            horizon: config.ppo.horizon(),
            // In other modes nothing is acted out, and there is nothing to learn from.
            learns: config.ppo.learn && config.ppo.explore && config.mode == Mode::Live,
            untouched: true,
            volume,
            publish,
            saved: (beginner.updates(), Instant::now()),
            student: Student::new(beginner),
            told: Told::default(),
        }
    }

    fn run(mut self, taught: &Receiver<Vec<(AgentId, Lesson)>>) -> Learner<Gaussian> {
        self.look();
        let (mut looked, mut swept) = (Instant::now(), Instant::now());
        loop {
            match taught.recv_timeout(LOOK_EVERY) {
                Ok(lessons) => self.take_in(lessons),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if self.experience.ready() {
                self.update();
            }
            if looked.elapsed() >= LOOK_EVERY {
                self.look();
                looked = Instant::now();
            }
            if swept.elapsed() >= SWEEP_EVERY {
                self.experience.sweep();
                swept = Instant::now();
            }
            if self.saved.1.elapsed() >= SAVE_EVERY {
                self.save();
            }
        }
        self.save();
        self.student.learner().clone()
    }

    fn take_in(&mut self, lessons: Vec<(AgentId, Lesson)>) {
        if !self.learns || self.volume.as_ref().is_some_and(|volume| volume.writer.is_none()) {
            return;
        }
        for (agent, lesson) in lessons {
            let reward = lesson.reward(lesson.mean);
            self.experience.note(agent, &lesson.step, reward, lesson.after);
        }
    }

    fn update(&mut self) {
        let began = Instant::now();
        let (network, version) = (self.student.network(), self.student.version());
        let batch = self.experience.take(&network, version, self.horizon);
        if batch.is_empty() {
            return;
        }
        match self.student.learn(&batch) {
            Ok(report) => {
                self.untouched = false;
                self.told.updates.increment(1);
                self.told.seconds.record(began.elapsed());
                self.told.kl.set(report.kl);
                self.told.explained.set(report.explained_variance);
                debug!(?report, "the policy was updated");
                // An update that stopped before its first step has learned nothing.
                if report.steps > 0 {
                    self.publish();
                }
            }
            Err(refused) => {
                let reason = refused.as_str();
                counter!("merit_learning_refused_total", "reason" => reason).increment(1);
                warn!(reason, error = %refused, "the policy learned nothing from a batch");
            }
        }
    }

    #[allow(clippy::cast_precision_loss, reason = "a gauge")]
    fn publish(&self) {
        let version = self.student.version();
        self.told.version.set(version as f64);
        self.publish.send_replace(Published { network: self.student.network(), version });
    }

    /// Looks at the volume: stands for writer, and loads what somebody else put there.
    fn look(&mut self) {
        let Some(volume) = &mut self.volume else { return };
        if self.learns {
            volume.stand();
        }
        self.told.writer.set(f64::from(u8::from(volume.writer.is_some())));
        let loaded = volume.load(self.untouched);
        volume.tell(&self.told.written);
        let Some(learner) = loaded else { return };
        self.untouched = false;
        info!(path = %volume.path.display(), updates = learner.updates(), "checkpoint loaded");
        self.saved = (learner.updates(), Instant::now());
        self.student = Student::new(learner);
        // It was made by other networks.
        self.experience = Experience::new(STEPS);
        self.publish();
    }

    fn save(&mut self) {
        let (updates, _) = self.saved;
        self.saved.1 = Instant::now();
        let Some(volume) = self.volume.as_mut().filter(|volume| volume.writer.is_some()) else {
            return;
        };
        let learner = self.student.learner();
        if learner.updates() == updates {
            return;
        }
        let saving = Checkpoint {
            policy: policy::CHECKPOINT_POLICY.to_owned(),
            learner: learner.clone(),
            notes: std::collections::BTreeMap::new(),
        };
        match checkpoint::save(&volume.path, &saving) {
            Ok(()) => {
                checkpoint_outcome("saved");
                volume.seen = stamp(&volume.path);
                volume.tell(&self.told.written);
                self.saved.0 = learner.updates();
            }
            Err(error) => {
                checkpoint_outcome("not_saved");
                warn!(error = %with_causes(&error), "checkpoint not saved: learning goes on");
            }
        }
    }
}

impl Volume {
    /// Tells when the checkpoint that was last loaded or saved was written.
    fn tell(&self, written: &Gauge) {
        let since = self.seen.and_then(|(at, _)| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        if let Some(since) = since {
            written.set(since.as_secs_f64());
        }
    }

    /// Becomes the writer if nobody is.
    fn stand(&mut self) {
        if self.writer.is_some() {
            return;
        }
        let mut name = self.path.clone().into_os_string();
        name.push(".writer");
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&name);
        let locked = opened.map(|file| (file.try_lock(), file));
        match locked {
            Ok((Ok(()), file)) => {
                info!(path = %self.path.display(), "this process learns and writes the checkpoint");
                self.writer = Some(file);
            }
            Ok((Err(TryLockError::WouldBlock), _)) => {}
            Ok((Err(TryLockError::Error(error)), _)) | Err(error) => {
                checkpoint_outcome("no_volume");
                warn!(path = %self.path.display(), %error, "checkpoint's volume cannot be used");
            }
        }
    }

    /// Returns what stands on the volume when it is another than was seen last. In place of one that is
    /// refused, the last good one is of use to an `untouched` school only: others know more.
    fn load(&mut self, untouched: bool) -> Option<Learner<Gaussian>> {
        let now = stamp(&self.path);
        if now.is_none() || now == self.seen {
            return None;
        }
        self.seen = now;
        match checkpoint::load(&self.path, &self.expected) {
            Ok(loaded) => {
                checkpoint_outcome("loaded");
                Some(loaded.learner)
            }
            Err(failure) => {
                checkpoint_outcome("refused");
                let last_good = failure.last_good.filter(|_| untouched);
                let good = last_good.is_some();
                warn!(
                    error = %with_causes(&failure.error), last_good = good,
                    "checkpoint refused: the last good one is used, or what is in force"
                );
                last_good.map(|good| good.learner)
            }
        }
    }
}

/// Returns what tells one file from another: when it was written, and its length.
fn stamp(path: &Path) -> Option<(SystemTime, u64)> {
    let metadata = path.metadata().ok()?;
    Some((metadata.modified().ok()?, metadata.len()))
}
