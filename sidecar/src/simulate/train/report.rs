//! `merit train`: the bar, the checkpoint's file, the table.

use std::{
    io::{self, IsTerminal, Write},
    path::{Path, PathBuf},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::{Course, HELD_OUT, Judged, judge::judge, learn};
use crate::{
    checkpoint::{self, FileError},
    simulate::{REGIMES, Seeds, actors::settled},
};

/// Agents and ticks of the worlds that the result is judged in.
const SIZE: (usize, usize) = (200, 2_000);

/// Why nothing was trained, or nothing shown.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// Worlds that training may use prove nothing.
    #[error("--evaluate {seeds}: seeds from {} on may be trained with: name lower ones", HELD_OUT.end)]
    Seeds {
        /// Which.
        seeds: Seeds,
    },
    /// The checkpoint was not written.
    #[error("--out")]
    File(#[from] FileError),
    /// Nobody reads the table.
    #[error("standard output is closed")]
    Output(#[from] io::Error),
}

impl TrainError {
    /// Returns true when the command line is at fault.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::Seeds { .. })
    }
}

/// Trains as `course` says, writes the checkpoint to `out`, and prints what it is worth in the worlds of
/// `seeds`, which taught nothing: a table, or with `json` one object on one line.
///
/// # Errors
///
/// When seeds may be trained with, the file cannot be written, or the result cannot be printed.
pub fn train(course: Course, out: &Path, seeds: Seeds, json: bool) -> Result<(), TrainError> {
    if seeds.iter().any(|seed| !HELD_OUT.contains(&seed)) {
        return Err(TrainError::Seeds { seeds });
    }
    let updates = bar(course.updates, "updates");
    let mut refused = 0_u64;
    let trained = learn(course, &mut |student, learned| {
        refused += u64::from(learned.is_err());
        updates.set_position(student.version());
    });
    updates.finish_and_clear();
    checkpoint::save(out, &trained)?;
    let worlds = bar((REGIMES.len() * seeds.len()) as u64, "worlds");
    let judged = judge(&settled(&trained.learner), seeds, SIZE, &mut || worlds.inc(1));
    worlds.finish_and_clear();
    let shown =
        if json { as_json(course, refused, out, &judged) } else { table(refused, out, &judged) };
    writeln!(io::stdout(), "{shown}")?;
    Ok(())
}

fn bar(length: u64, of: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = format!("{{elapsed:>4}} [{{bar:30}}] {{pos}} of {{len}} {of}, {{eta}} left");
    let style = ProgressStyle::with_template(&style).unwrap_or(ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}

fn as_json(course: Course, refused: u64, out: &Path, judged: &Judged) -> String {
    json!({
        "checkpoint": PathBuf::from(out),
        "seed": course.seed,
        "updates": course.updates,
        "updates_refused": refused,
        "interval": "95 %, Student's t over seeds, ppo and price paired in the same world",
        "held_out": judged,
    })
    .to_string()
}

fn table(refused: u64, out: &Path, judged: &Judged) -> String {
    let mut text = format!(
        "{}; {refused} updates refused\n\nheld-out worlds, seeds {}, % of the reference\n\n\
         {:14} {:>7} {:>7} {:>8}  {:>16} {:>7} {:>7}\n",
        out.display(),
        judged.seeds,
        "regime",
        "price",
        "ppo",
        "gain",
        "95 % interval",
        "step %",
        "shed %"
    );
    for verdict in &judged.regimes {
        let [mean, low, high] = verdict.difference;
        let range = low.zip(high).map(|(low, high)| format!("{low:+.2} to {high:+.2}"));
        text.push_str(&format!(
            "{:14} {:7.2} {:7.2} {:+8.2}  {:>16} {:7.2} {:7.2}\n",
            verdict.regime,
            verdict.price,
            verdict.ppo,
            mean.unwrap_or_default(),
            range.unwrap_or_default(),
            verdict.step_percent,
            verdict.shed_percent
        ));
    }
    text.trim_end().to_owned()
}
