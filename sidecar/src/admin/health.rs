//! Whether the parts that this process needs do answer.

use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use crate::causes::with_causes;

/// How long one part may take to answer: above the second that the bus gives its broker.
pub const CHECK_DEADLINE: Duration = Duration::from_millis(1500);

/// How long a report is believed: probes from many sides ask the parts only this often.
pub const REPORT_FRESH: Duration = Duration::from_millis(500);

type Check = dyn Fn() -> BoxFuture<'static, Result<(), String>> + Send + Sync;

/// The parts of this process, each with a way to ask whether it works. Clones share everything.
#[derive(Clone, Default)]
pub struct Health {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    checks: Vec<(&'static str, Spared, Box<Check>)>,
    last: Mutex<Option<(Instant, Arc<Report>)>>,
    draining: AtomicBool,
}

/// Which parts the process can do without once it has had them: the outage policy serves in their stead.
#[derive(Debug, Default)]
struct Spared {
    /// When it is away, the process is ready all the same.
    yes: bool,
    /// It answered once.
    seen: AtomicBool,
}

/// What the parts answered.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Report {
    /// True when every part answered that is needed, and the process does not drain.
    pub ready: bool,
    /// True when the process finishes what it has and takes nothing new.
    pub draining: bool,
    /// The parts, in the order in which they were added.
    pub parts: Vec<Part>,
}

/// What one part answered.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Part {
    /// Its name.
    pub name: &'static str,
    /// True when it works.
    pub ok: bool,
    /// What is wrong, with its causes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// True when the process is ready without it: requests are decided without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub spared: bool,
}

impl Health {
    /// Returns a process without parts: always ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a part; it must answer within [`CHECK_DEADLINE`], and its error names no secret.
    ///
    /// # Panics
    ///
    /// When this was cloned already: all parts are known before anybody asks.
    #[must_use]
    pub fn part<C, F, E>(mut self, name: &'static str, check: C) -> Self
    where
        C: Fn() -> F + Send + Sync + 'static,
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: Error,
    {
        let inner = Arc::get_mut(&mut self.inner).expect("parts are added before the first clone");
        let check = move || -> BoxFuture<'static, Result<(), String>> {
            let answer = check();
            Box::pin(async move { answer.await.map_err(|error| with_causes(&error)) })
        };
        inner.checks.push((name, Spared::default(), Box::new(check)));
        self
    }

    /// Lets the process be ready while the part `name` is away, from when it has answered once: for what an
    /// outage policy stands in for. A process that starts is not ready before it has met all of its parts.
    ///
    /// # Panics
    ///
    /// As [`Health::part`].
    #[must_use]
    pub fn spare(mut self, name: &str) -> Self {
        let inner = Arc::get_mut(&mut self.inner).expect("parts are added before the first clone");
        for (part, spared, _) in &mut inner.checks {
            spared.yes |= *part == name;
        }
        self
    }

    /// Lets the process be ready whatever becomes of the part `name`: for what nobody waits for who sends it requests.
    ///
    /// # Panics
    ///
    /// As [`Health::part`].
    #[must_use]
    pub fn tell_only(mut self, name: &str) -> Self {
        self = self.spare(name);
        // As if it had answered.
        for (_, spared, _) in self.inner.checks.iter().filter(|(part, ..)| *part == name) {
            spared.seen.store(true, Ordering::Relaxed);
        }
        self
    }

    /// Makes the process not ready from now on, so that nobody sends it new work.
    pub fn drain(&self) {
        self.inner.draining.store(true, Ordering::Relaxed);
    }

    /// Returns what the parts answer now, or did at most [`REPORT_FRESH`] ago.
    pub async fn report(&self) -> Arc<Report> {
        let draining = self.inner.draining.load(Ordering::Relaxed);
        // Held while the parts are asked: whoever comes meanwhile waits for the same answers.
        let mut last = self.inner.last.lock().await;
        if let Some((when, report)) = &*last
            && when.elapsed() < REPORT_FRESH
            && report.draining == draining
        {
            return Arc::clone(report);
        }
        let parts = join_all(self.inner.checks.iter().map(|(name, spared, check)| async {
            let outcome = timeout(CHECK_DEADLINE, check()).await.unwrap_or_else(|_| {
                Err(format!("did not answer within {} ms", CHECK_DEADLINE.as_millis()))
            });
            let seen = match &outcome {
                Ok(()) => {
                    spared.seen.store(true, Ordering::Relaxed);
                    true
                }
                Err(_) => spared.seen.load(Ordering::Relaxed),
            };
            let ok = outcome.is_ok();
            Part { name, ok, error: outcome.err(), spared: !ok && spared.yes && seen }
        }))
        .await;
        let ready = !draining && parts.iter().all(|part| part.ok || part.spared);
        let report = Arc::new(Report { ready, draining, parts });
        *last = Some((Instant::now(), Arc::clone(&report)));
        report
    }
}

impl std::fmt::Debug for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names = self.inner.checks.iter().map(|(name, ..)| name);
        f.debug_list().entries(names).finish()
    }
}
