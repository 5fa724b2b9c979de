//! A decision log, read: rows of one kind, who they are for, and what is wrong with the rest.
//!
//! A line that is no JSON was cut off when a process died: it is left out and counted. A row that is
//! whole and says what cannot be (a propensity of 0, a reward of null) is refused with the whole log:
//! leaving such rows out would bias every estimate.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    path::Path,
};

use indicatif::ProgressBar;
use serde_json::Value;
use tower_merit::AgentId;

use super::{EvaluateError, target::Actions};
use crate::{
    decisions::{Arm, Decided, RowError},
    replay::{
        report::BadRows,
        rows::{Fault, fault},
        source::{Line, Lines},
    },
};

/// The most rows that are read, about 1.5 GB.
pub const ROWS_MAX: usize = 4_000_000;

/// The least rows that are worth an estimate: below, no interval holds what it promises.
pub const ROWS_MIN: usize = 100;

/// How far an arm's change may differ between rows.
const SAME_CHANGE: f64 = 1e-6;

/// A whole log.
#[derive(Debug)]
pub(super) struct Logged {
    pub(super) rows: Vec<Decided>,
    /// The number of each row's agent.
    pub(super) agents: Vec<u32>,
    pub(super) agents_count: usize,
    /// How many features every row has.
    pub(super) width: usize,
    /// How many arms there are; nothing over changes.
    pub(super) arms: Option<u16>,
    /// How many rows each policy and version decided.
    pub(super) deciders: BTreeMap<String, u64>,
    pub(super) bad: BadRows,
}

/// Reads the log at `path`; with `strict`, a line that was cut off ends it too.
pub(super) fn read(path: &Path, strict: bool, bar: &ProgressBar) -> Result<Logged, EvaluateError> {
    let mut lines = Lines::open(path, bar)?;
    let mut names: HashMap<AgentId, u32> = HashMap::new();
    let mut log = Logged {
        rows: Vec::new(),
        agents: Vec::new(),
        agents_count: 0,
        width: 0,
        arms: None,
        deciders: BTreeMap::new(),
        bad: BadRows::default(),
    };
    loop {
        let line = lines.number() + 1;
        let Some(text) = lines.next_line()? else { break };
        let mut row = match parse(text, line)? {
            Ok(row) => row,
            Err(fault) if strict => return Err(EvaluateError::Strict { fault }),
            Err(fault) => {
                log.bad.note(fault);
                continue;
            }
        };
        if log.rows.len() == ROWS_MAX {
            return Err(EvaluateError::TooManyRows);
        }
        let arms = row.action.arm.map(|arm| arm.arms);
        if log.rows.is_empty() {
            (log.width, log.arms) = (row.features.len(), arms);
        } else if arms != log.arms || row.features.len() != log.width {
            return Err(EvaluateError::Kinds { line });
        }
        let decider = format!("{} {}", row.policy, row.version);
        *log.deciders.entry(decider).or_default() += 1;
        (row.policy, row.version) = (String::new(), String::new());
        let next = u32::try_from(names.len()).expect("fewer agents than rows");
        log.agents.push(*names.entry(row.agent.clone()).or_insert(next));
        log.rows.push(row);
    }
    log.agents_count = names.len();
    if log.rows.len() < ROWS_MIN {
        return Err(EvaluateError::TooFew { rows: log.rows.len(), bad: log.bad });
    }
    Ok(log)
}

/// Returns the row, or the fault of a line that was cut off.
fn parse(line: Line<'_>, number: u64) -> Result<Result<Decided, Fault>, EvaluateError> {
    let cut = |problem: String, text: &[u8]| Fault {
        line: number,
        ..fault("row", &String::from_utf8_lossy(text), problem)
    };
    let Line::Whole(text) = line else {
        return Ok(Err(cut("is too long to be a decision".to_owned(), b"")));
    };
    match Decided::from_line(text) {
        Ok(row) => Ok(Ok(row)),
        Err(RowError::Form { problem }) => {
            match serde_json::from_slice::<Value>(text) {
                Err(_) => Ok(Err(cut(format!("is no JSON: {problem}"), text))),
                Ok(row) => {
                    // JSON has no NaN: whoever writes one writes null.
                    let null = ["propensity", "reward", "base"]
                        .into_iter()
                        .find(|name| row.get(name).is_some_and(Value::is_null));
                    let source = null.map_or(RowError::Form { problem }, |field| {
                        RowError::Number { field, value: f64::NAN, wanted: "a finite number" }
                    });
                    Err(EvaluateError::Row { line: number, source })
                }
            }
        }
        Err(source) => Err(EvaluateError::Row { line: number, source }),
    }
}

impl Logged {
    /// Returns what the log's actions are. Over changes, the kernel is `bandwidth` wide on each side;
    /// by default 2.345·σ·n^(−1/5), σ being the standard deviation of the changes (Silverman, 1986,
    /// section 3.4.2, for Epanechnikov's kernel).
    #[allow(clippy::cast_precision_loss, reason = "at most ROWS_MAX rows")]
    pub(super) fn actions(&self, bandwidth: Option<f64>) -> Result<Actions, EvaluateError> {
        if let Some(arms) = self.arms {
            let mut changes = vec![None; usize::from(arms)];
            for row in &self.rows {
                let Arm { arm, .. } = row.action.arm.expect("all rows are of one kind");
                let change: &mut Option<f64> = &mut changes[usize::from(arm)];
                let known = *change.get_or_insert(row.action.change);
                if (known - row.action.change).abs() > SAME_CHANGE {
                    return Err(EvaluateError::ArmMoved {
                        arm,
                        one: known,
                        other: row.action.change,
                    });
                }
            }
            return Ok(Actions::Arms(changes));
        }
        let count = self.rows.len() as f64;
        let mean = self.rows.iter().map(|row| row.action.change).sum::<f64>() / count;
        let squares = self.rows.iter().map(|row| (row.action.change - mean).powi(2));
        let deviation = (squares.sum::<f64>() / (count - 1.0)).sqrt();
        let bandwidth = bandwidth.unwrap_or(2.345 * deviation * count.powf(-0.2));
        if bandwidth > 0.0 {
            Ok(Actions::Changes { bandwidth })
        } else {
            Err(EvaluateError::NoChange)
        }
    }

    /// Returns the names under which rows tell of other policies.
    pub(super) fn others(&self) -> BTreeSet<&str> {
        self.rows.iter().flat_map(|row| row.others.keys().map(String::as_str)).collect()
    }
}
