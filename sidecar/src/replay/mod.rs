//! `merit replay`: recorded ratings through policies, and off-policy estimates from logged decisions.
//!
//! 1. Ratings are replayed in the order of time, whatever the order of the file; what cannot be
//!    sorted within the bound is an error that says how to sort it.
//! 2. No row is bent to fit: a bad one is left out, counted and named, or fatal with `strict`.
//! 3. The same file and the same policies give the same result, bit for bit (the time taken aside).
//! 4. Memory is bounded by the agents and users that appear and by `sort_max` ratings of 24 bytes.
//!
//! Files and the terminal are here, the folding in `policy`, the estimates in `evaluate`, pure.

pub mod candidate;
pub mod evaluate;
mod json_rows;
pub mod layout;
pub mod personal;
pub mod plot;
pub mod report;
pub mod rows;
mod run;
pub mod source;
pub mod summary;
pub mod timeline;

pub use run::{Rates, Run, Tally};

use std::{
    io,
    path::{Path, PathBuf},
    time::Instant,
};

use indicatif::{ProgressBar, ProgressStyle};

use self::{
    candidate::Candidate,
    layout::Layout,
    personal::Personal,
    plot::{PlotError, Way},
    report::{AgentsFormat, BadRows, Report},
    rows::{Cast, Event, Fault, LayoutError, Reader},
    source::{LINE_MAX, Line, Lines, SourceError},
    summary::Agent,
    timeline::{Order, OutOfOrder, Timeline},
};
use crate::personalize::model;

/// How many ratings are held back for sorting unless told otherwise: 1.5 GB, enough for the whole of
/// the largest public MovieLens file, which is in the order of users.
pub const SORT_MAX: usize = 64_000_000;

/// How often the bar learns where the reader is, in rows.
const BAR_ROWS: u64 = 1 << 16;

/// What to replay, and what to make of it.
#[derive(Clone, Debug)]
pub struct Options {
    /// The ratings; `-` is standard input.
    pub file: PathBuf,
    /// How they are laid out.
    pub layout: Layout,
    /// The policies; the first is compared with the others. At least one, unless `personalize` is given.
    pub candidates: Vec<Candidate>,
    /// How personalised ratings learn, when their error is asked for.
    pub personalize: Option<model::Config>,
    /// True when a bad row ends the replay.
    pub strict: bool,
    /// How many ratings are held back for sorting, at least 2.
    pub sort_max: usize,
    /// How many movers a table shows.
    pub top: usize,
    /// Where to write one row per agent.
    pub agents_to: Option<(PathBuf, AgentsFormat)>,
    /// The folder for figures.
    pub plot_to: Option<PathBuf>,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    /// The ratings cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Its columns cannot be found.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// A row is bad and `--strict` was given.
    #[error("{fault} (--strict: a bad row ends the replay)")]
    Strict {
        /// What is wrong.
        fault: Fault,
    },
    /// There is no good row.
    #[error("{} has no rating that could be read\n{}", path.display(), bad.text().trim_end())]
    Empty {
        /// The file.
        path: PathBuf,
        /// Its bad rows.
        bad: BadRows,
    },
    /// A policy goes by time, and the rows have none.
    #[error(
        "time=none: `{policy}` moves a rate by a step in a tick, and without times all ratings come in one; name the \
         column of the time, or replay `additive`"
    )]
    Timeless {
        /// The policy.
        policy: String,
    },
    /// It is out of order by more than can be sorted.
    #[error(transparent)]
    Order(#[from] OutOfOrder),
    /// A result cannot be written.
    #[error("cannot write {}", path.display())]
    Write {
        /// Where to.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A figure cannot be drawn.
    #[error(transparent)]
    Plot(#[from] PlotError),
}

/// Replays `options.file`; `bar` shows how far it is.
///
/// # Errors
///
/// When the file cannot be read, sorted, or has no good row; with `strict`, on the first bad one.
pub fn replay(options: &Options, bar: &ProgressBar) -> Result<Report, ReplayError> {
    if options.layout.columns.timeless
        && let Some(timed) = options.candidates.iter().find(|one| one.kind.knows_a_price())
    {
        return Err(ReplayError::Timeless { policy: timed.label.clone() });
    }
    let started = Instant::now();
    let mut run = Run::new(&options.candidates);
    let mut personal = options.personalize.clone().map(Personal::new);
    let mut span = Span::default();
    let mut fold = |event, cast: &Cast| {
        span.note(event);
        run.fold(event, cast);
        if let Some(personal) = &mut personal {
            personal.learn(event, cast);
        }
    };
    let mut recorded = read(options, bar, &mut fold)?;
    bar.set_message("folding");
    for &event in &recorded.rest {
        fold(event, &recorded.cast);
    }
    let seconds = started.elapsed().as_secs_f64();
    bar.finish_and_clear();

    let agents = summary::agents(&run, &recorded.cast);
    if let Some((path, format)) = &options.agents_to {
        let policies: Vec<&str> =
            options.candidates.iter().map(|candidate| &*candidate.label).collect();
        report::write_agents(path, *format, &policies, &agents)
            .map_err(|source| ReplayError::Write { path: path.clone(), source })?;
    }
    let held = std::mem::take(&mut recorded.rest);
    let mut report = report(options, &recorded, &agents, span, seconds);
    report.personalize = personal.map(|personal| personal.measured(options.layout.scale));
    report.rmse = report.personalize.as_ref().map(|measured| measured.overall.model.rmse);
    if let Some(folder) = &options.plot_to {
        let way = way(options, &recorded, &held, &report);
        let policies: Vec<&str> =
            options.candidates.iter().map(|candidate| &*candidate.label).collect();
        let files = plot::draw(folder, &policies, &agents, way.as_ref())?;
        report.figures = files.iter().map(|file| file.display().to_string()).collect();
    }
    Ok(report)
}

/// Returns the rates of the agent that differs most, after each of its ratings; nothing when ratings
/// were let go before the end, so that its own may be among them.
fn way(options: &Options, recorded: &Recorded, held: &[Event], report: &Report) -> Option<Way> {
    let mover = report.comparisons.first()?.movers.first()?;
    let number = recorded.cast.agents.get(mover.agent_id.as_str())?;
    if !recorded.whole {
        return None;
    }
    let timed = !options.layout.columns.timeless;
    let mut way = Way { agent: mover.agent_id.to_string(), timed, ..Way::default() };
    let own: Vec<Event> = held.iter().filter(|event| event.agent == number).copied().collect();
    #[allow(clippy::cast_precision_loss, reason = "a Unix time in milliseconds")]
    let at = |(index, event): (usize, &Event)| match timed {
        true => event.at_ms as f64,
        false => index as f64 + 1.0,
    };
    way.at = own.iter().enumerate().map(at).collect();
    for candidate in &options.candidates {
        let mut state = candidate.policy.begin();
        let (agents, users) = (recorded.cast.agents.all(), recorded.cast.users.all());
        let rates = own.iter().map(|&event| {
            run::fold(&candidate.policy, &mut state, &run::rating_of(event, agents, users))
        });
        way.rates.push(rates.collect());
    }
    Some(way)
}

/// When the ratings were.
#[derive(Clone, Copy, Debug, Default)]
struct Span {
    ratings: u64,
    first_ms: u64,
    last_ms: u64,
}

impl Span {
    fn note(&mut self, event: Event) {
        if self.ratings == 0 {
            self.first_ms = event.at_ms;
        }
        self.ratings += 1;
        self.last_ms = event.at_ms;
    }
}

fn report(
    options: &Options,
    recorded: &Recorded,
    agents: &[Agent],
    span: Span,
    seconds: f64,
) -> Report {
    let candidates = &options.candidates;
    let policies = candidates.iter().enumerate();
    let others: Vec<Option<usize>> =
        if candidates.len() == 1 { vec![None] } else { (1..candidates.len()).map(Some).collect() };
    let timed = !options.layout.columns.timeless;
    Report {
        source: options.file.display().to_string(),
        scale: options.layout.scale.to_string(),
        ratings: span.ratings,
        bad_rows: recorded.bad.clone(),
        agents: agents.len(),
        users: recorded.cast.users.all().len(),
        first_ms: timed.then_some(span.first_ms),
        last_ms: timed.then_some(span.last_ms),
        order: recorded.order,
        policies: policies
            .map(|(index, candidate)| summary::distribution(agents, index, candidate))
            .collect(),
        comparisons: others
            .into_iter()
            .map(|other| summary::compare(agents, candidates, other, options.top))
            .collect(),
        seconds,
        rmse: None,
        personalize: None,
        figures: Vec::new(),
    }
}

/// What was read, but for the ratings that were let go meanwhile.
struct Recorded {
    /// The ratings still held, in order.
    rest: Vec<Event>,
    /// True when all of them are.
    whole: bool,
    cast: Cast,
    order: Order,
    bad: BadRows,
}

/// Reads every rating; those that cannot be held back `go`, in the order of time.
fn read(
    options: &Options,
    bar: &ProgressBar,
    mut go: impl FnMut(Event, &Cast),
) -> Result<Recorded, ReplayError> {
    let mut lines = Lines::open(&options.file, bar)?;
    let mut reader = Reader::new(options.layout.clone())?;
    let mut timeline = Timeline::new(options.sort_max);
    let (mut cast, mut bad) = (Cast::default(), BadRows::default());
    loop {
        let number = lines.number() + 1;
        let Some(line) = lines.next_line()? else { break };
        let row = match line {
            Line::Whole(text) if reader.wants_header() => {
                reader.read_header(text)?;
                continue;
            }
            Line::Whole(text) => reader.read(number, text, &mut cast),
            Line::TooLong => {
                let problem = format!("is longer than {LINE_MAX} bytes: no row of ratings is");
                Err(Fault { line: number, field: "row", value: String::new(), problem })
            }
        };
        match row {
            Ok(event) => timeline.push(number, event, |event| go(event, &cast))?,
            Err(fault) if options.strict => return Err(ReplayError::Strict { fault }),
            Err(fault) => bad.note(fault),
        }
        if number % BAR_ROWS == 0 {
            bar.set_message(format!("{number} rows"));
        }
    }
    let whole = !timeline.let_some_go();
    let (rest, order) = timeline.finish();
    if whole && rest.is_empty() {
        return Err(ReplayError::Empty { path: options.file.clone(), bad });
    }
    Ok(Recorded { rest, whole, cast, order, bad })
}

/// Returns a bar for reading a file: on a terminal, on standard error.
#[must_use]
pub fn bar() -> ProgressBar {
    let style = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}";
    let style = ProgressStyle::with_template(style).expect("the template is well-formed");
    ProgressBar::new(0).with_style(style)
}

/// Returns how a file is laid out: what is given, then the preset, then what its name says.
///
/// # Errors
///
/// When neither says what the format is.
pub fn layout_of(
    file: &Path,
    preset: Option<layout::Preset>,
    format: Option<layout::Format>,
    columns: Option<layout::Columns>,
    header: Option<bool>,
    scale: Option<layout::Scale>,
) -> Result<Layout, String> {
    let preset = preset.map(layout::Preset::layout);
    let format = format
        .or(preset.as_ref().map(|preset| preset.format))
        .or_else(|| layout::Format::of(file))
        .ok_or_else(|| {
            format!(
                "{}: its name does not say how it is written: give --format csv, tsv or ndjson, \
                 or --layout",
                file.display()
            )
        })?;
    let given = columns.unwrap_or_default();
    let columns = match &preset {
        Some(preset) => given.or(preset.columns.clone()),
        None => given,
    };
    let header = header
        .or(preset.as_ref().map(|preset| preset.header))
        .unwrap_or_else(|| !columns.all_by_place());
    let scale = scale.or(preset.map(|preset| preset.scale)).unwrap_or_default();
    Ok(Layout { format, columns, header, scale })
}

#[cfg(test)]
mod tests;
