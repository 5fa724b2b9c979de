//! `merit simulate`: the table, the JSON, the progress bar.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::Instant,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{
    Comparison, Criterion, PlotError, PolicyName, Request, Row, bars, compare, plot, world::count,
};
use crate::figure::FORMATS;

/// The most agents times ticks of one world: its numbers take 24 bytes each, per thread.
const CELLS_MAX: usize = 20_000_000;

/// Why a simulation was not made or not shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SimulateError {
    /// Nobody to compare with.
    #[error("--versus {policy} is not among --policies: name it there too")]
    Versus {
        /// Whom.
        policy: String,
    },
    /// A rival would be judged on the worlds that it was tuned on.
    #[error(
        "--seeds and --tuning-seeds share {seed}: `additive:best` would be judged in a world that its α was chosen in; \
         keep them apart"
    )]
    Shared {
        /// The first seed of both.
        seed: u64,
    },
    /// A world would not fit.
    #[error(
        "--agents {agents} × --ticks {ticks} is {cells}: ask for at most {CELLS_MAX} agent-ticks"
    )]
    TooLarge {
        /// How many agents.
        agents: usize,
        /// How many ticks.
        ticks: usize,
        /// Their product.
        cells: usize,
    },
    /// A figure cannot be drawn.
    #[error("--plot {}", folder.display())]
    Plot {
        /// Where to.
        folder: PathBuf,
        /// Why not.
        #[source]
        source: PlotError,
    },
    /// Nobody reads the table.
    #[error("standard output is closed")]
    Output(#[from] io::Error),
}

impl SimulateError {
    /// Returns true when the command line is at fault.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Versus { .. } | Self::Shared { .. } | Self::TooLarge { .. })
    }
}

/// Compares what `request` names and prints a table, or with `json` one object on one line. Figures go
/// to the folder `plot`, which is made when it is missing.
///
/// # Errors
///
/// When the request is at fault, or the result can be neither printed nor drawn.
pub fn simulate(
    mut request: Request,
    json: bool,
    plot: Option<PathBuf>,
) -> Result<(), SimulateError> {
    if let Some(versus) = request.versus.filter(|versus| !request.policies.contains(versus)) {
        return Err(SimulateError::Versus { policy: versus.to_string() });
    }
    fits(&request)?;
    apart(&request)?;
    request.figures = plot.is_some();
    if let Some(folder) = &plot {
        // Before the work, not after it.
        plot::prepare(folder)
            .map_err(|source| SimulateError::Plot { folder: folder.clone(), source })?;
    }
    let comparison = timed(&request);
    let shown = if json { as_json(&request, &comparison) } else { table(&request, &comparison) };
    writeln!(io::stdout(), "{shown}")?;
    if let Some(folder) = plot {
        for figure in &comparison.figures {
            let drawn = plot::draw(figure, &folder);
            let names =
                drawn.map_err(|source| SimulateError::Plot { folder: folder.clone(), source })?;
            for name in names {
                eprintln!("drew {}.{{{}}}", folder.join(name).display(), FORMATS.join(","));
            }
        }
    }
    Ok(())
}

/// Judges the policies of `request` by the criteria of `bars` and prints the verdicts, or with
/// `json` one object on one line. Its regimes are those that the criteria are about.
///
/// # Errors
///
/// When the request is at fault, or nobody reads the result.
pub fn judge(request: &Request, json: bool) -> Result<(), SimulateError> {
    fits(request)?;
    let request = bars::request(request);
    apart(&request)?;
    let criteria = bars::judge(&request, &timed(&request));
    let shown = if json { judged(&request, &criteria) } else { bars::table(&request, &criteria) };
    writeln!(io::stdout(), "{shown}")?;
    Ok(())
}

/// Refuses to tune and to judge on the same seed.
fn apart(request: &Request) -> Result<(), SimulateError> {
    let tunes = request.policies.contains(&PolicyName::AdditiveBest);
    let shared = request.seeds.iter().find(|seed| request.tuning.iter().any(|own| own == *seed));
    match shared.filter(|_| tunes) {
        Some(seed) => Err(SimulateError::Shared { seed }),
        None => Ok(()),
    }
}

fn judged(request: &Request, criteria: &[Criterion]) -> String {
    json!({
        "agents": request.agents,
        "ticks": request.ticks,
        "seeds": request.seeds.iter().collect::<Vec<_>>(),
        "tuning_seeds": request.tuning.iter().collect::<Vec<_>>(),
        "criteria": criteria,
    })
    .to_string()
}

fn fits(request: &Request) -> Result<(), SimulateError> {
    let (agents, ticks) = (request.agents, request.ticks);
    let cells = agents.saturating_mul(ticks);
    if cells > CELLS_MAX {
        return Err(SimulateError::TooLarge { agents, ticks, cells });
    }
    Ok(())
}

/// Compares, and says what it took.
fn timed(request: &Request) -> Comparison {
    let runs = request.runs();
    let bar = bar(runs);
    let began = Instant::now();
    let comparison = compare(request, &|| bar.inc(1));
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    let rate = count(runs) * count(request.agents * request.ticks) / seconds / 1e6;
    eprintln!("{runs} runs in {seconds:.1} s: {rate:.1} million agent-ticks a second");
    comparison
}

fn bar(runs: usize) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "{elapsed:>4} [{bar:30}] {pos} of {len} runs, {eta} left";
    let style = ProgressStyle::with_template(style).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(runs as u64).with_style(style)
}

fn as_json(request: &Request, comparison: &Comparison) -> String {
    let seeds: Vec<u64> = request.seeds.iter().collect();
    json!({
        "agents": request.agents,
        "ticks": request.ticks,
        "seeds": seeds,
        "tuning_seeds": request.tuning.iter().collect::<Vec<_>>(),
        "interval": "95 %, Student's t over seeds, paired with the reference of the same world",
        "versus": request.versus.map(|policy| policy.to_string()),
        "results": comparison.rows,
    })
    .to_string()
}

/// A column: its head, whether its cells stand right, and what it shows of a row.
type Column = (&'static str, bool, fn(&Row, usize) -> String);

const COLUMNS: &[Column] = &[
    ("policy", false, |row, _| match row.alpha {
        Some(alpha) => format!("{} (α = {alpha})", row.policy),
        None => row.policy.clone(),
    }),
    ("% of reference", true, |row, _| format!("{:.1}", row.percent_of_reference)),
    ("95 % interval", true, |row, _| range(row.low, row.high, false)),
    ("shed %", true, |row, _| format!("{:.2}", row.shed_percent)),
    ("mean step %", true, |row, _| format!("{:.2}", row.step_percent)),
    ("ratings/agent to recover", true, recovery),
    ("ratings to find a fall", true, |row, _| three(row.drift_ratings, 0)),
    ("false finds / 10⁴", true, |row, _| three(row.false_alarms, 2)),
    ("starved %", true, |row, _| format!("{:.1}", row.starved_percent)),
];

/// Shown when there is somebody to compare with.
const VERSUS: Column = ("difference", true, |row, _| {
    let Some([Some(mean), low, high]) = row.difference else { return "–".to_owned() };
    format!("{mean:+.1} ({})", range(low, high, true))
});

/// Returns the table as Markdown: readable on a terminal, and ready for the documentation.
fn table(request: &Request, comparison: &Comparison) -> String {
    let mut columns = COLUMNS.to_vec();
    if request.versus.is_some() {
        columns.insert(3, VERSUS);
    }
    let mut text = format!(
        "{} agents, {} ticks, seeds {}; 95 % intervals: Student's t over seeds, each paired with the \
         reference in the same world",
        request.agents, request.ticks, request.seeds
    );
    if let Some(versus) = request.versus {
        text.push_str(&format!("; differences are to `{versus}`, paired by seed"));
    }
    if request.policies.contains(&PolicyName::AdditiveBest) {
        let tuning = request.tuning;
        text.push_str(&format!("; α of `additive:best` chosen for each regime on seeds {tuning}"));
    }
    text.push('\n');
    let by_regime = comparison.rows.chunks(request.policies.len());
    for (regime, rows) in request.regimes.iter().zip(by_regime) {
        text.push_str(&format!("\n**{}**: {}\n\n", regime.name, regime.about));
        let cells = |row| columns.iter().map(move |(.., show)| show(row, request.seeds.len()));
        let body: Vec<Vec<String>> = rows.iter().map(|row| cells(row).collect()).collect();
        let wide = |text: &str| text.chars().count();
        let widths: Vec<usize> = columns
            .iter()
            .enumerate()
            .map(|(n, (head, ..))| {
                body.iter().map(|row| wide(&row[n])).fold(wide(head), usize::max)
            })
            .collect();
        let heads: Vec<String> = columns.iter().map(|(head, ..)| (*head).to_owned()).collect();
        let rule = columns.iter().zip(&widths).map(|((_, right, _), width)| {
            format!("{}{}", "-".repeat(width - 1), if *right { ":" } else { "-" })
        });
        for row in [heads, rule.collect()].iter().chain(&body) {
            let cells = row.iter().zip(&columns).zip(&widths);
            for ((cell, (_, right, _)), width) in cells {
                let width = *width;
                let cell =
                    if *right { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                text.push_str(&format!("| {cell} "));
            }
            text.push_str("|\n");
        }
    }
    text.truncate(text.trim_end().len());
    text
}

fn range(low: Option<f64>, high: Option<f64>, signed: bool) -> String {
    match low.zip(high) {
        Some((low, high)) if signed => format!("{low:+.1} to {high:+.1}"),
        Some((low, high)) => format!("{low:.1} to {high:.1}"),
        None => "–".to_owned(),
    }
}

/// Returns a number and its interval.
fn three(number: Option<[Option<f64>; 3]>, digits: usize) -> String {
    match number {
        Some([Some(mean), Some(low), Some(high)]) => {
            format!("{mean:.digits$} ({low:.digits$} to {high:.digits$})")
        }
        Some([Some(mean), ..]) => format!("{mean:.digits$}"),
        _ => "–".to_owned(),
    }
}

fn recovery(row: &Row, seeds: usize) -> String {
    match row.recovery_ratings_per_agent {
        None => "–".to_owned(),
        Some(ratings) if row.recovered_seeds == seeds => format!("{ratings:.0}"),
        Some(ratings) => format!("{ratings:.0} ({} of {seeds} seeds)", row.recovered_seeds),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request {
            regimes: vec!["base".parse().unwrap()],
            policies: vec![PolicyName::Static, PolicyName::Additive(1.0)],
            seeds: "2".parse().unwrap(),
            agents: 20,
            ticks: 300,
            jobs: 1,
            versus: Some(PolicyName::Static),
            tuning: "7..7".parse().unwrap(),
            figures: false,
        }
    }

    #[test]
    fn the_table_has_a_row_for_each_policy_and_all_its_lines_are_as_wide() {
        let request = request();
        let text = table(&request, &compare(&request, &|| {}));
        let lines: Vec<&str> = text.lines().filter(|line| line.starts_with('|')).collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(lines.iter().all(|line| line.chars().count() == lines[0].chars().count()));
        assert!(lines[2].starts_with("| static ") && lines[3].starts_with("| additive:1 "));
        assert!(lines[0].contains(" difference |"));
    }

    #[test]
    fn the_json_is_one_line_with_one_result_for_each_policy() {
        let request = request();
        let text = as_json(&request, &compare(&request, &|| {}));
        assert!(!text.contains('\n'));
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["results"].as_array().unwrap().len(), 2);
        let row = &value["results"][1];
        assert_eq!((&row["regime"], &row["policy"]), (&json!("base"), &json!("additive:1")));
        assert!(row["low"].as_f64() < row["percent_of_reference"].as_f64());
    }

    #[test]
    fn requests_that_cannot_be_met_say_what_to_do() {
        let nobody = Request { versus: Some(PolicyName::Greedy), ..request() };
        let error = simulate(nobody, true, None).unwrap_err();
        assert!(error.is_usage() && error.to_string().contains("name it there too"), "{error}");
        let huge = Request { agents: 100_000, ticks: 100_000, ..request() };
        let error = simulate(huge, true, None).unwrap_err();
        assert!(error.to_string().contains("at most 20000000 agent-ticks"), "{error}");
    }
}
