//! What a replay prints: a table for people, one JSON object for machines, one row per agent in a file.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use serde::Serialize;
use serde_json::json;

use super::{
    personal::Measured,
    rows::Fault,
    summary::{Agent, Comparison, Distribution, PERCENTILES},
    timeline::Order,
};

/// How many bad rows are shown; the others are counted.
pub const FAULTS_SHOWN: usize = 10;

/// Rows that could not be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct BadRows {
    /// How many.
    pub count: u64,
    /// How many for each field that was wrong.
    pub by_field: BTreeMap<&'static str, u64>,
    /// The first [`FAULTS_SHOWN`].
    pub first: Vec<Fault>,
}

impl BadRows {
    /// Counts a fault, and keeps it when it is among the first.
    pub fn note(&mut self, fault: Fault) {
        self.count += 1;
        *self.by_field.entry(fault.field).or_default() += 1;
        if self.first.len() < FAULTS_SHOWN {
            self.first.push(fault);
        }
    }

    /// Returns them as lines of text, nothing when there are none.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if self.count == 0 {
            return text;
        }
        let fields: Vec<String> =
            self.by_field.iter().map(|(field, count)| format!("{field} {count}")).collect();
        let _ = writeln!(text, "{} bad rows left out ({}):", self.count, fields.join(", "));
        for fault in &self.first {
            let _ = writeln!(text, "  {fault}");
        }
        let more = self.count - self.first.len() as u64;
        if more > 0 {
            let _ = writeln!(text, "  and {more} more");
        }
        text
    }
}

/// The result of a replay.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The file.
    pub source: String,
    /// What scores were mapped from; on 1..5 they were not.
    pub scale: String,
    /// Good rows.
    pub ratings: u64,
    /// Rows that were left out.
    pub bad_rows: BadRows,
    /// Agents that were rated.
    pub agents: usize,
    /// Users who rated.
    pub users: usize,
    /// The first rating, in Unix milliseconds; nothing when rows have no time.
    pub first_ms: Option<u64>,
    /// The last rating, in Unix milliseconds.
    pub last_ms: Option<u64>,
    /// Whether the file was in the order of time; it was replayed in that order anyway.
    pub order: Order,
    /// The final rates under each policy.
    pub policies: Vec<Distribution>,
    /// The first policy against each other one, or against the start.
    pub comparisons: Vec<Comparison>,
    /// Wall-clock time of reading and folding, in seconds.
    pub seconds: f64,
    /// The model's error over the whole log, on the scale of 1 to 5, with `--personalize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rmse: Option<f64>,
    /// The prequential error of personalised ratings, with `--personalize`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub personalize: Option<Measured>,
    /// Files with figures.
    pub figures: Vec<String>,
}

impl Report {
    /// Returns the result for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Self { source, ratings, agents, users, seconds, .. } = self;
        #[allow(clippy::cast_precision_loss, reason = "fewer ratings than 2^52")]
        let per_second = *ratings as f64 / seconds.max(1e-9);
        let _ = writeln!(
            text,
            "{ratings} ratings of {agents} agents by {users} users in {source}; \
             {seconds:.2} s, {per_second:.0} a second"
        );
        if let (Some(first), Some(last)) = (self.first_ms, self.last_ms) {
            let _ = writeln!(text, "from {} to {}", moment(first), moment(last));
        }
        if self.scale != "1..5" {
            let _ = writeln!(text, "scores mapped from {} to 1..5", self.scale);
        }
        if let Some(line) = self.order.first_late_line {
            let late = self.order.late;
            let _ = writeln!(
                text,
                "the file is not in the order of time ({late} rows, first at line {line}): sorted"
            );
        }
        text.push_str(&self.bad_rows.text());
        if !self.policies.is_empty() {
            self.distributions(&mut text);
        }
        for comparison in &self.comparisons {
            movers(comparison, &mut text);
        }
        if let Some(measured) = &self.personalize {
            measured.describe(&mut text);
        }
        for figure in &self.figures {
            let _ = writeln!(text, "drawn {figure}");
        }
        text
    }

    fn distributions(&self, text: &mut String) {
        let width = self.policies.iter().map(|found| found.policy.chars().count()).max();
        let width = width.unwrap_or_default().max(6);
        let _ = write!(text, "\nFinal refill rates, tokens per second\n{:<width$}", "policy");
        for name in ["start", "mean"] {
            let _ = write!(text, " {name:>8}");
        }
        for percent in PERCENTILES {
            let _ = write!(text, " {:>8}", format!("p{percent}"));
        }
        let _ = writeln!(text, " {:>10} {:>8} {:>8}", "total", "raised", "lowered");
        for found in &self.policies {
            let _ = write!(
                text,
                "{:<width$} {:>8} {:>8}",
                found.policy,
                rate(found.start),
                rate(found.mean)
            );
            for value in found.percentiles {
                let _ = write!(text, " {:>8}", rate(value));
            }
            let Distribution { total, raised, lowered, .. } = found;
            let _ = writeln!(text, " {total:>10.1} {raised:>8} {lowered:>8}");
        }
    }
}

fn movers(comparison: &Comparison, text: &mut String) {
    let Comparison { policy, against, differ, mean_abs_log_ratio, .. } = comparison;
    let _ = writeln!(
        text,
        "\n{policy} against {against}: {differ} agents differ by more than 1 %, mean |ln ratio| \
         {mean_abs_log_ratio:.3}{}",
        comparison
            .rank_correlation
            .map_or_else(String::new, |rho| format!(", rank correlation {rho:.3}"))
    );
    if comparison.movers.is_empty() {
        return;
    }
    let names = comparison.movers.iter().map(|mover| mover.agent_id.as_str().len());
    let width = names.max().unwrap_or_default().max(5);
    let _ = writeln!(
        text,
        "{:<width$} {:>8} {:>10} {:>8} {:>8} {:>7}",
        "agent", "ratings", "mean score", "rate", "against", "ratio"
    );
    for mover in &comparison.movers {
        let _ = writeln!(
            text,
            "{:<width$} {:>8} {:>10.2} {:>8} {:>8} {:>7.2}",
            mover.agent_id.as_str(),
            mover.ratings,
            mover.mean_score,
            rate(mover.rate),
            rate(mover.against),
            mover.ratio
        );
    }
}

/// Returns a rate with three digits that mean something, as the table has room for it.
fn rate(value: f64) -> String {
    if value < 1.0 { format!("{value:.4}") } else { format!("{value:.2}") }
}

/// Returns a moment as RFC 3339, in UTC.
pub(super) fn moment(ms: u64) -> String {
    let nanoseconds = i128::from(ms) * 1_000_000;
    time::OffsetDateTime::from_unix_timestamp_nanos(nanoseconds)
        .ok()
        .and_then(|at| at.format(&time::format_description::well_known::Rfc3339).ok())
        .unwrap_or_else(|| format!("{ms} ms"))
}

/// How agents are written to a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AgentsFormat {
    /// Comma-separated with a header.
    Csv,
    /// One JSON object a line.
    Ndjson,
    /// One JSON array.
    Json,
}

impl AgentsFormat {
    /// Returns the format that the name of a file says.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.extension()?.to_str()? {
            "csv" => Some(Self::Csv),
            "ndjson" | "jsonl" => Some(Self::Ndjson),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

/// Writes one row per agent to `path`: its ratings, and its rates under each of `policies`, in
/// tokens per second.
///
/// # Errors
///
/// When the file cannot be written.
pub fn write_agents(
    path: &Path,
    format: AgentsFormat,
    policies: &[&str],
    agents: &[Agent],
) -> io::Result<()> {
    let mut out = BufWriter::new(File::create(path)?);
    match format {
        AgentsFormat::Csv => {
            write!(out, "agent_id,ratings,mean_score,first_ms,last_ms")?;
            for policy in policies {
                for what in ["rate", "least", "largest"] {
                    write!(out, ",\"{} {what}\"", policy.replace('"', "\"\""))?;
                }
            }
            writeln!(out)?;
            for agent in agents {
                let tally = &agent.tally;
                // An agent's id holds no comma, no quote and no formula.
                let (id, mean) = (&agent.id, agent.mean_score());
                write!(out, "{id},{},{mean},", tally.ratings)?;
                write!(out, "{},{}", tally.first_ms, tally.last_ms)?;
                for rates in &agent.rates {
                    write!(out, ",{},{},{}", rates.end, rates.least, rates.largest)?;
                }
                writeln!(out)?;
            }
        }
        AgentsFormat::Ndjson => {
            for agent in agents {
                writeln!(out, "{}", object(policies, agent))?;
            }
        }
        AgentsFormat::Json => {
            for (number, agent) in agents.iter().enumerate() {
                write!(
                    out,
                    "{}\n{}",
                    if number == 0 { "[" } else { "," },
                    object(policies, agent)
                )?;
            }
            writeln!(out, "{}", if agents.is_empty() { "[]" } else { "\n]" })?;
        }
    }
    out.flush()
}

fn object(policies: &[&str], agent: &Agent) -> serde_json::Value {
    let rates: serde_json::Map<String, serde_json::Value> = policies
        .iter()
        .zip(&agent.rates)
        .map(|(policy, rates)| {
            let about = json!({"rate": rates.end, "least": rates.least, "largest": rates.largest});
            ((*policy).to_owned(), about)
        })
        .collect();
    json!({
        "agent_id": agent.id,
        "ratings": agent.tally.ratings,
        "mean_score": agent.mean_score(),
        "first_ms": agent.tally.first_ms,
        "last_ms": agent.tally.last_ms,
        "policies": rates,
    })
}
