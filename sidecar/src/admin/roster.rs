//! All agents with a record, as a table to search and sort: read from the store while somebody looks.
//!
//! 1. A sweep walks the records page by page and pauses in between (all but the first, for which somebody waits): it
//!    keeps the store busy for a quarter of the time at most, and on average for far less.
//! 2. Sweeps run only while somebody looked within the last [`LOOKED`]; a table that nobody looks at is dropped.
//! 3. Readers get an `Arc` of a finished table: nobody waits for a sweep, and none is held up by a sort.

use std::{
    cmp::Ordering,
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep, timeout},
};
use tower_merit::{
    AgentId,
    store::{Cursor, Record, StoreError, Tune},
};
use tracing::warn;

use crate::{
    clock::unix_ms,
    policy::{Hold, Policy, State},
    tuner::{self, Operator},
};

/// The most agents that a table holds; further ones are counted and not shown.
pub const ROSTER_MAX: usize = 200_000;

/// How many samples of an agent's rate and quality are kept.
pub const SAMPLES: usize = 24;

/// The largest page.
pub const PAGE_SIZE_MAX: usize = 500;

/// How long after the last look sweeps go on.
const LOOKED: Duration = Duration::from_secs(30);

/// When a table that nobody looks at is dropped.
const FORGOTTEN: Duration = Duration::from_secs(600);

/// Between the ends of two sweeps, at least.
const SWEEP_EVERY: Duration = Duration::from_secs(2);

/// Pauses within a sweep are so many times as long as what the store was asked for took.
const REST: u32 = 3;

/// Agents asked for in one call.
const CALL: usize = 500;

/// One agent.
#[derive(Clone, Debug)]
struct Row {
    agent: AgentId,
    rate: f64,
    capacity: u64,
    quality: Option<(f64, f64)>,
    ratings: Option<f64>,
    admitted: u64,
    denied: u64,
    hold: Hold,
    banned_until_ms: Option<u64>,
    operator: bool,
    history: History,
}

/// What was seen of an agent, oldest first.
#[derive(Clone, Debug, Default)]
struct History(Vec<(u64, f32, f32)>);

/// One agent as it is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AgentRow {
    /// Whose.
    pub agent_id: String,
    /// Tokens per second.
    pub refill_rate: f64,
    /// Tokens.
    pub capacity: u64,
    /// Estimated mean score, 1 to 5.
    pub quality: Option<f64>,
    /// Its standard deviation.
    pub deviation: Option<f64>,
    /// Ratings that it rests on, by weight.
    pub ratings: Option<f64>,
    /// Tokens admitted so far.
    pub admitted: u64,
    /// Tokens refused so far.
    pub denied: u64,
    /// `none`, `frozen` or `override`.
    pub held: String,
    /// The end of its ban, Unix milliseconds; absent when there is none or it is over.
    pub banned_until_ms: Option<u64>,
    /// True where limits stand that somebody wrote by hand and no rating has moved since.
    pub operator: bool,
    /// Rates seen lately, oldest first.
    pub rates: Vec<f64>,
    /// Qualities seen lately, oldest first.
    pub qualities: Vec<Option<f64>>,
}

/// What an agent's rate and quality were at one time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Unix milliseconds.
    pub at_ms: u64,
    /// Tokens per second.
    pub refill_rate: f64,
    /// Estimated mean score.
    pub quality: Option<f64>,
}

/// A page of the table.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Page {
    /// Agents with a record.
    pub total: usize,
    /// Those that were asked for.
    pub matching: usize,
    /// Which page this is, from 1.
    pub page: usize,
    /// Agents on a page.
    pub page_size: usize,
    /// How many pages there are, at least 1.
    pub pages: usize,
    /// How old the table is.
    pub age_ms: u64,
    /// Whether all agents are in it.
    pub complete: bool,
    /// The agents.
    pub agents: Vec<AgentRow>,
}

/// What is asked for.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Query {
    #[serde(default)]
    q: String,
    sort: Option<String>,
    only: Option<Only>,
    page: Option<usize>,
    page_size: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Only {
    Frozen,
    Banned,
    Operator,
}

/// A query that cannot be answered, naming the member.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct BadQuery(String);

/// A finished sweep.
#[derive(Debug)]
struct Table {
    rows: Vec<Row>,
    /// Agents that were found, also those beyond [`ROSTER_MAX`].
    found: usize,
    complete: bool,
    at: Instant,
}

/// The table, and who keeps it.
#[derive(Debug)]
pub(super) struct Roster {
    table: watch::Sender<Option<Arc<Table>>>,
    looked: Mutex<Instant>,
    look: Notify,
}

impl Roster {
    pub(super) fn new() -> Arc<Self> {
        let (table, _) = watch::channel(None);
        Arc::new(Self { table, looked: Mutex::new(Instant::now()), look: Notify::new() })
    }

    /// Sweeps while somebody looks, for ever.
    pub(super) async fn keep<T: Tune>(self: Arc<Self>, operator: Operator<T>) {
        loop {
            let idle = self.looked.lock().unwrap_or_else(PoisonError::into_inner).elapsed();
            let none = self.table.borrow().is_none();
            if idle > LOOKED || none {
                let again = timeout(FORGOTTEN, self.look.notified()).await;
                if again.is_err() {
                    self.table.send_replace(None);
                    continue;
                }
            }
            let began = Instant::now();
            if let Err(error) = self.sweep(&operator).await {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                warn!(%error, cause, "the table of agents is not read anew");
            }
            sleep(SWEEP_EVERY.max(began.elapsed())).await;
        }
    }

    async fn sweep<T: Tune>(&self, operator: &Operator<T>) -> Result<(), StoreError> {
        let policy = operator.policy();
        let start = operator.start();
        let before = self.table.borrow().clone();
        let mut histories: HashMap<&AgentId, &History> = HashMap::new();
        if let Some(before) = &before {
            histories.extend(before.rows.iter().map(|row| (&row.agent, &row.history)));
        }
        // A walk may tell of an agent twice.
        let mut known: HashMap<AgentId, usize> = HashMap::new();
        let (mut rows, mut next, mut found) = (Vec::new(), Some(Cursor::START), 0);
        let mut shown = 0;
        while let Some(from) = next {
            let asked = Instant::now();
            let (mut page, then) = operator.agents(from, CALL).await?;
            next = then;
            page.retain(|agent| !known.contains_key(agent));
            page.sort_unstable();
            page.dedup();
            found += page.len();
            page.truncate(ROSTER_MAX - rows.len());
            let records = operator.records(&page).await?;
            let now = unix_ms();
            for (agent, record) in page.into_iter().zip(records) {
                // One that cannot be read is told of in the tuner's log.
                let Ok(record) = record else { continue };
                let history = histories.get(&agent).map(|history| (*history).clone());
                known.insert(agent.clone(), rows.len());
                rows.push(Row::new(
                    agent,
                    &record,
                    &policy,
                    start,
                    history.unwrap_or_default(),
                    now,
                ));
            }
            let took = asked.elapsed();
            // The first table grows before the eyes of who waits for it.
            if before.is_none() && next.is_some() && rows.len() > 2 * shown {
                shown = rows.len();
                let table =
                    Table { rows: rows.clone(), found, complete: false, at: Instant::now() };
                self.table.send_replace(Some(Arc::new(table)));
            }
            if before.is_some() && next.is_some() {
                sleep(took * REST).await;
            }
        }
        let complete = found <= ROSTER_MAX;
        self.table.send_replace(Some(Arc::new(Table {
            rows,
            found,
            complete,
            at: Instant::now(),
        })));
        Ok(())
    }

    /// Returns the table; waits a moment for the first one.
    async fn table(&self) -> Option<Arc<Table>> {
        *self.looked.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.look.notify_one();
        let mut changes = self.table.subscribe();
        let first = changes.wait_for(Option::is_some);
        let first = timeout(Duration::from_secs(2), first).await.ok()?.ok()?;
        first.clone()
    }

    /// Returns how many agents there are, if somebody looked lately.
    pub(super) fn known(&self) -> Option<usize> {
        self.table.borrow().as_ref().map(|table| table.found)
    }

    /// Returns what was seen of one agent, oldest first.
    pub(super) async fn history(&self, agent: &AgentId) -> Vec<Sample> {
        let Some(table) = self.table.borrow().clone() else { return Vec::new() };
        let row = table.rows.iter().find(|row| row.agent == *agent);
        row.map_or_else(Vec::new, |row| row.history.samples().collect())
    }

    /// Returns the page that `query` asks for; nothing while the store does not answer.
    ///
    /// # Errors
    ///
    /// When the query cannot be answered.
    pub(super) async fn page(&self, query: &Query) -> Result<Option<Page>, BadQuery> {
        let order = Order::of(query.sort.as_deref().unwrap_or("-refill_rate"))?;
        let page_size = query.page_size.unwrap_or(50);
        if !(1..=PAGE_SIZE_MAX).contains(&page_size) {
            let fault = format!("page_size: must be 1 to {PAGE_SIZE_MAX}, is {page_size}");
            return Err(BadQuery(fault));
        }
        let page = query.page.unwrap_or(1);
        if page == 0 {
            return Err(BadQuery("page: begins at 1, is 0".to_owned()));
        }
        let Some(table) = self.table().await else { return Ok(None) };
        let (now, wanted) = (unix_ms(), query.q.to_ascii_lowercase());
        let mut rows: Vec<&Row> = table
            .rows
            .iter()
            .filter(|row| wanted.is_empty() || contains(row.agent.as_str(), &wanted))
            .filter(|row| match query.only {
                None => true,
                Some(Only::Frozen) => !row.hold.is_none(),
                Some(Only::Banned) => row.banned_until_ms.is_some_and(|until| until > now),
                Some(Only::Operator) => row.operator,
            })
            .collect();
        let matching = rows.len();
        let pages = matching.div_ceil(page_size).max(1);
        let from = page.saturating_sub(1).saturating_mul(page_size).min(matching);
        let to = from.saturating_add(page_size).min(matching);
        // Only the page is sorted, after what belongs before and behind it was told apart.
        if from > 0 && from < matching {
            rows.select_nth_unstable_by(from, |a, b| order.compare(a, b));
        }
        let rest = &mut rows[from..];
        if to - from < rest.len() {
            rest.select_nth_unstable_by(to - from, |a, b| order.compare(a, b));
        }
        let shown = &mut rest[..to - from];
        shown.sort_unstable_by(|a, b| order.compare(a, b));
        Ok(Some(Page {
            total: table.found,
            matching,
            page,
            page_size,
            pages,
            age_ms: u64::try_from(table.at.elapsed().as_millis()).unwrap_or(u64::MAX),
            complete: table.complete,
            agents: shown.iter().map(|row| row.told(now)).collect(),
        }))
    }
}

fn contains(text: &str, lowercase: &str) -> bool {
    text.to_ascii_lowercase().contains(lowercase)
}

/// Rounds for people: three digits behind the point.
pub(super) fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

impl Row {
    fn new(
        agent: AgentId,
        record: &Record,
        policy: &Policy,
        start: tower_merit::bucket::Limits,
        mut history: History,
        now: u64,
    ) -> Self {
        let state = tuner::state_of(record);
        let limits = record.limits.unwrap_or(start);
        let quality = state.as_ref().and_then(|state| policy.belief(state));
        let quality = quality.map(|belief| (belief.mean, belief.variance.sqrt()));
        let evidence =
            state.as_ref().and_then(State::standing).map(|known| known.estimator().evidence());
        history.note(now, limits.refill().tokens(), quality.map(|(mean, _)| mean));
        Self {
            agent,
            rate: limits.refill().tokens(),
            capacity: limits.capacity().get(),
            quality,
            ratings: evidence,
            admitted: record.demand.admitted,
            denied: record.demand.denied,
            hold: state.as_ref().map_or(Hold::None, State::hold),
            banned_until_ms: record.banned_until_ms,
            operator: record.operator,
            history,
        }
    }

    fn told(&self, now: u64) -> AgentRow {
        AgentRow {
            agent_id: self.agent.to_string(),
            refill_rate: rounded(self.rate),
            capacity: self.capacity,
            quality: self.quality.map(|(mean, _)| rounded(mean)),
            deviation: self.quality.map(|(_, deviation)| rounded(deviation)),
            ratings: self.ratings.map(rounded),
            admitted: self.admitted,
            denied: self.denied,
            held: self.hold.as_str().to_owned(),
            banned_until_ms: self.banned_until_ms.filter(|until| *until > now),
            operator: self.operator,
            rates: self.history.samples().map(|sample| sample.refill_rate).collect(),
            qualities: self.history.samples().map(|sample| sample.quality).collect(),
        }
    }
}

/// Returns one agent's row, read now.
pub(super) fn row_of(
    agent: &AgentId,
    record: &Record,
    policy: &Policy,
    start: tower_merit::bucket::Limits,
) -> AgentRow {
    let now = unix_ms();
    Row::new(agent.clone(), record, policy, start, History::default(), now).told(now)
}

impl History {
    #[allow(clippy::cast_possible_truncation, reason = "for people to look at")]
    fn note(&mut self, at_ms: u64, rate: f64, quality: Option<f64>) {
        if self.0.len() == SAMPLES {
            self.0.remove(0);
        }
        self.0.push((at_ms, rate as f32, quality.map_or(f32::NAN, |quality| quality as f32)));
    }

    fn samples(&self) -> impl Iterator<Item = Sample> + '_ {
        self.0.iter().map(|(at_ms, rate, quality)| Sample {
            at_ms: *at_ms,
            refill_rate: rounded(f64::from(*rate)),
            quality: Some(rounded(f64::from(*quality))).filter(|quality| quality.is_finite()),
        })
    }
}

/// How rows are sorted.
#[derive(Clone, Copy, Debug)]
struct Order {
    key: Key,
    descending: bool,
}

#[derive(Clone, Copy, Debug)]
enum Key {
    AgentId,
    RefillRate,
    Capacity,
    Quality,
    Ratings,
    Admitted,
    Denied,
}

impl Order {
    fn of(text: &str) -> Result<Self, BadQuery> {
        let (name, descending) = match text.strip_prefix('-') {
            Some(name) => (name, true),
            None => (text, false),
        };
        let key = match name {
            "agent_id" => Key::AgentId,
            "refill_rate" => Key::RefillRate,
            "capacity" => Key::Capacity,
            "quality" => Key::Quality,
            "ratings" => Key::Ratings,
            "admitted" => Key::Admitted,
            "denied" => Key::Denied,
            _ => {
                return Err(BadQuery(format!(
                    "sort: must be agent_id, refill_rate, capacity, quality, ratings, admitted or denied, with - in \
                     front to turn it round; is {text:?}"
                )));
            }
        };
        Ok(Self { key, descending })
    }

    /// What is unknown comes last either way, and equals come by id.
    fn compare(self, a: &Row, b: &Row) -> Ordering {
        let numbers = |a: Option<f64>, b: Option<f64>| match (a, b) {
            (Some(a), Some(b)) if self.descending => b.total_cmp(&a),
            (Some(a), Some(b)) => a.total_cmp(&b),
            (a, b) => b.is_some().cmp(&a.is_some()),
        };
        let counts = |a: u64, b: u64| if self.descending { b.cmp(&a) } else { a.cmp(&b) };
        let by_id = a.agent.cmp(&b.agent);
        match self.key {
            Key::AgentId if self.descending => by_id.reverse(),
            Key::AgentId => by_id,
            Key::RefillRate => numbers(Some(a.rate), Some(b.rate)).then(by_id),
            Key::Capacity => counts(a.capacity, b.capacity).then(by_id),
            Key::Quality => {
                numbers(a.quality.map(|(mean, _)| mean), b.quality.map(|(mean, _)| mean))
                    .then(by_id)
            }
            Key::Ratings => numbers(a.ratings, b.ratings).then(by_id),
            Key::Admitted => counts(a.admitted, b.admitted).then(by_id),
            Key::Denied => counts(a.denied, b.denied).then(by_id),
        }
    }
}
