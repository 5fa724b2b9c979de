//! The log of what a policy decided: one JSON object a line, with how likely the decision was.
//!
//! 1. A row says what the policy saw, what it did, with what propensity, and the reward that followed:
//!    all that an off-policy estimate needs (`merit replay --evaluate`).
//! 2. The propensity is that of the action *as it was drawn*: a probability for one of several arms, a
//!    density for a continuous change. A row without a finite, positive one is worthless and is
//!    never written.
//! 3. Reading refuses what writing would not have written.
//!
//! The format is here and pure; `writer` puts rows into a file without ever delaying who decides.

mod writer;

pub use writer::{Log, LogConfig, LogError, Logging};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tower_merit::AgentId;

/// The most features that a row may have.
pub const FEATURES_MAX: usize = 64;
/// The most arms that a policy may choose from.
pub const ARMS_MAX: usize = 64;
/// The longest name of a policy or a version, in bytes.
pub const NAME_MAX: usize = 128;
/// The most other policies whose choices a row may tell.
pub const OTHERS_MAX: usize = 8;
/// How far the probabilities of arms may sum beside 1: they were rounded on their way.
pub const SUM_TOLERANCE: f64 = 1e-4;

/// One decision and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decided {
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// For whom.
    pub agent: AgentId,
    /// Which policy chose.
    pub policy: String,
    /// Which version of it: a checkpoint's or a configuration's hash.
    pub version: String,
    /// What it saw; at most [`FEATURES_MAX`], the same number in every row of a log.
    pub features: Vec<f64>,
    /// The rate that the action changes, in tokens per second: what the base law asked for.
    pub base: f64,
    /// What it did.
    pub action: Action,
    /// How likely that was: a probability in (0, 1] for an arm, a density above 0 for a change.
    pub propensity: f64,
    /// What the decision was worth, once that was known.
    pub reward: f64,
    /// What other policies would have done in the same place, by their names.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub others: BTreeMap<String, Choice>,
}

/// A change of the base rate: rate = base · exp(change).
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Action {
    /// ln(rate / base), as drawn, before guardrails.
    pub change: f64,
    /// Which of several, when there are only so many.
    #[serde(default, flatten, skip_serializing_if = "Option::is_none")]
    pub arm: Option<Arm>,
}

/// One of several possible changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Arm {
    /// Which, from 0.
    pub arm: u16,
    /// Of how many, 2 to [`ARMS_MAX`].
    pub arms: u16,
}

/// What a policy would do in one place.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// Each arm with this probability; they sum to 1.
    Arms(Vec<f64>),
    /// A change drawn from a normal distribution.
    Normal {
        /// Its mean.
        mean: f64,
        /// Its standard deviation, above 0.
        std: f64,
    },
    /// This change, always.
    Change(f64),
}

/// Why a row cannot be written or read.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// It is not JSON of the right form.
    #[error("row is no decision: {problem}")]
    Form {
        /// What is wrong.
        problem: String,
    },
    /// A number is not finite, or out of its range.
    #[error("{field} is {value}; it must be {wanted}")]
    Number {
        /// Which.
        field: &'static str,
        /// Its value.
        value: f64,
        /// What it may be.
        wanted: &'static str,
    },
    /// There is too much of something.
    #[error("{field} has {count}; at most {max}")]
    TooMany {
        /// Of what.
        field: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
}

impl Decided {
    /// Returns the row as one line, with its line break.
    ///
    /// # Errors
    ///
    /// When a number is not finite or out of its range, or there is too much of something.
    pub fn to_line(&self) -> Result<String, RowError> {
        self.check()?;
        let mut line = serde_json::to_string(self)
            .map_err(|error| RowError::Form { problem: error.to_string() })?;
        line.push('\n');
        Ok(line)
    }

    /// Reads a line.
    ///
    /// # Errors
    ///
    /// When it is no row, or one that [`Decided::to_line`] would not have written.
    pub fn from_line(line: &[u8]) -> Result<Self, RowError> {
        let read = serde_json::from_slice::<Self>(line);
        let row = read.map_err(|error| RowError::Form { problem: error.to_string() })?;
        row.check()?;
        Ok(row)
    }

    fn check(&self) -> Result<(), RowError> {
        let bound = |field, count, max| match count > max {
            true => Err(RowError::TooMany { field, count, max }),
            false => Ok(()),
        };
        bound("features", self.features.len(), FEATURES_MAX)?;
        bound("policy", self.policy.len(), NAME_MAX)?;
        bound("version", self.version.len(), NAME_MAX)?;
        bound("others", self.others.len(), OTHERS_MAX)?;
        let finite = "a finite number";
        for &value in &self.features {
            number("features", value, finite, f64::is_finite(value))?;
        }
        number("reward", self.reward, finite, self.reward.is_finite())?;
        let above = self.base.is_finite() && self.base > 0.0;
        number("base", self.base, "a finite rate above 0", above)?;
        number("change", self.action.change, finite, self.action.change.is_finite())?;
        let propensity = self.propensity;
        match self.action.arm {
            Some(Arm { arm, arms }) => {
                bound("arms", usize::from(arms), ARMS_MAX)?;
                let wanted = "one of at least 2 arms, from 0";
                number("arm", f64::from(arm), wanted, arms >= 2 && arm < arms)?;
                let probable = propensity > 0.0 && propensity <= 1.0;
                number("propensity", propensity, "a probability above 0 and at most 1", probable)?;
            }
            None => {
                let dense = propensity.is_finite() && propensity > 0.0;
                number("propensity", propensity, "a finite density above 0", dense)?;
            }
        }
        self.others.values().try_for_each(Choice::check)
    }
}

impl Choice {
    fn check(&self) -> Result<(), RowError> {
        match self {
            Self::Arms(arms) => {
                if arms.len() > ARMS_MAX {
                    let count = arms.len();
                    return Err(RowError::TooMany { field: "others.arms", count, max: ARMS_MAX });
                }
                for &arm in arms {
                    let probable = (0.0..=1.0).contains(&arm);
                    number("others.arms", arm, "a probability", probable)?;
                }
                let sum: f64 = arms.iter().sum();
                let whole = (sum - 1.0).abs() <= SUM_TOLERANCE;
                number("sum of others.arms", sum, "1", whole)
            }
            Self::Normal { mean, std } => {
                number("others.normal.mean", *mean, "a finite number", mean.is_finite())?;
                let spread = std.is_finite() && *std > 0.0;
                number("others.normal.std", *std, "a finite number above 0", spread)
            }
            Self::Change(change) => {
                number("others.change", *change, "a finite number", change.is_finite())
            }
        }
    }
}

fn number(
    field: &'static str,
    value: f64,
    wanted: &'static str,
    holds: bool,
) -> Result<(), RowError> {
    if holds { Ok(()) } else { Err(RowError::Number { field, value, wanted }) }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn row() -> Decided {
        Decided {
            at_ms: 1_800_000_000_000,
            agent: "a1".parse().unwrap(),
            policy: "bandit".to_owned(),
            version: "v1".to_owned(),
            features: vec![0.5, -1.0],
            base: 12.5,
            action: Action { change: 0.25, arm: Some(Arm { arm: 2, arms: 3 }) },
            propensity: 0.2,
            reward: 1.5,
            others: BTreeMap::from([("ppo".to_owned(), Choice::Arms(vec![0.1, 0.2, 0.7]))]),
        }
    }

    #[test]
    fn a_row_is_one_line_and_reads_back_as_it_was() {
        let line = row().to_line().unwrap();
        assert_eq!(
            line,
            "{\"at_ms\":1800000000000,\"agent\":\"a1\",\"policy\":\"bandit\",\"version\":\"v1\",\
             \"features\":[0.5,-1.0],\"base\":12.5,\"action\":{\"change\":0.25,\"arm\":2,\"arms\":3},\
             \"propensity\":0.2,\"reward\":1.5,\"others\":{\"ppo\":{\"arms\":[0.1,0.2,0.7]}}}\n"
        );
        assert_eq!(Decided::from_line(line.as_bytes()), Ok(row()));
        let mut changed = row();
        changed.action.arm = None;
        changed.propensity = 3.7;
        changed.others = BTreeMap::from([
            ("ppo".to_owned(), Choice::Normal { mean: 0.1, std: 0.05 }),
            ("price".to_owned(), Choice::Change(0.0)),
        ]);
        let line = changed.to_line().unwrap();
        assert!(line.contains(r#""action":{"change":0.25},"propensity":3.7"#), "{line}");
        assert_eq!(Decided::from_line(line.as_bytes()), Ok(changed));
    }

    #[test]
    fn what_an_estimate_could_not_use_is_neither_written_nor_read() {
        type Spoil = fn(&mut Decided);
        let cases: [(&str, Spoil); 12] = [
            ("propensity", |row| row.propensity = 0.0),
            ("propensity", |row| row.propensity = f64::NAN),
            ("propensity", |row| row.propensity = 1.1),
            ("propensity", |row| {
                row.action.arm = None;
                row.propensity = f64::INFINITY;
            }),
            ("reward", |row| row.reward = f64::NAN),
            ("features", |row| row.features[0] = f64::INFINITY),
            ("features", |row| row.features = vec![0.0; FEATURES_MAX + 1]),
            ("base", |row| row.base = 0.0),
            ("arm", |row| row.action.arm = Some(Arm { arm: 3, arms: 3 })),
            ("change", |row| row.action.change = f64::NAN),
            ("sum of others.arms", |row| {
                row.others.insert("x".to_owned(), Choice::Arms(vec![0.5, 0.4]));
            }),
            ("others.normal.std", |row| {
                row.others.insert("x".to_owned(), Choice::Normal { mean: 0.0, std: 0.0 });
            }),
        ];
        for (field, spoil) in cases {
            let mut row = row();
            spoil(&mut row);
            let error = row.to_line().unwrap_err().to_string();
            assert!(error.starts_with(field), "{error}");
            // JSON has no NaN: serde writes null, which is no number when it is read.
            let line = serde_json::to_string(&row).unwrap();
            assert!(Decided::from_line(line.as_bytes()).is_err(), "{line}");
        }
    }
}
