//! `merit replay --evaluate`: what a policy would have earned, from decisions that another one logged.
//!
//! 1. Estimates come with 95 % intervals and with how many decisions they rest on, or not at all:
//!    propensities that cannot be, policies that do what the log never tried, and logs too small are
//!    refused with the reason.
//! 2. A log is of one kind: all rows have the same features and choose from the same arms, or all
//!    change the rate by a continuous amount.
//! 3. The same log and policies give the same numbers, bit for bit.

mod estimate;
mod log;
mod model;
mod report;
mod target;

pub use estimate::{CLUSTERS_MIN, Clusters, Estimate, Sample, Samples};
pub use log::{ROWS_MAX, ROWS_MIN};
pub use report::{Evaluation, Worth};
pub use target::Target;

use std::path::PathBuf;

use indicatif::ProgressBar;

use self::{
    log::Logged,
    model::Model,
    target::{Actions, Judged, Spread},
};
use super::{
    Options as Ratings, ReplayError, Run, read,
    report::BadRows,
    rows::{Cast, Event, Fault},
    source::SourceError,
};
use crate::decisions::RowError;

/// The least number of its own decisions that a log must be worth to a policy.
pub const EFFECTIVE_MIN: f64 = 30.0;

/// The largest share of a policy's choices that the log may never have tried.
pub const UNTRIED_MAX: f64 = 0.01;

/// How far the mean weight may be beside 1 when chance does not explain it.
const WEIGHT_TOLERANCE: f64 = 0.1;

/// How many parts the agents are divided into, so that a model never saw the one it predicts for.
const FOLDS: u32 = 5;

/// What to evaluate.
#[derive(Clone, Debug)]
pub struct Options {
    /// The decision log; `-` is standard input.
    pub log: PathBuf,
    /// The policies, by the names that were asked for.
    pub targets: Vec<(String, Target)>,
    /// Recorded ratings, and those of the policies that are run over them, as candidates.
    pub ratings: Option<Ratings>,
    /// True when a line that was cut off ends it.
    pub strict: bool,
    /// Half the kernel's support for policies of one change, above 0.
    pub bandwidth: Option<f64>,
}

/// Why there is no estimate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvaluateError {
    /// The log cannot be read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The ratings cannot be replayed.
    #[error(transparent)]
    Ratings(#[from] ReplayError),
    /// A row says what cannot be.
    #[error("line {line}: {source}; no estimate can use this log: mend what writes it")]
    Row {
        /// Which.
        line: u64,
        /// What.
        source: RowError,
    },
    /// A line was cut off and `--strict` was given.
    #[error("{fault} (--strict: a bad row ends the evaluation)")]
    Strict {
        /// What is wrong.
        fault: Fault,
    },
    /// Rows of two kinds.
    #[error(
        "line {line}: has other arms or other features than the rows before it; evaluate one \
         version's rows at a time"
    )]
    Kinds {
        /// The first of the second kind.
        line: u64,
    },
    /// An arm means two things.
    #[error(
        "arm {arm} changes the rate by {one} and by {other}; evaluate one version's rows at a time"
    )]
    ArmMoved {
        /// Which.
        arm: u16,
        /// One change.
        one: f64,
        /// Another.
        other: f64,
    },
    /// Too few rows.
    #[error("{rows} decisions are too few: at least {ROWS_MIN} are needed\n{}", bad.text().trim_end())]
    TooFew {
        /// How many there are.
        rows: usize,
        /// What was left out.
        bad: BadRows,
    },
    /// Too many rows.
    #[error("more than {ROWS_MAX} decisions: evaluate a part of the log, the newest say")]
    TooManyRows,
    /// Every row made the same change.
    #[error("every decision of the log is the same: nothing can be told of any other policy")]
    NoChange,
    /// A policy of one kind of actions against a log of the other.
    #[error("its choices are of another kind than the log's: they must be {wanted}")]
    Mismatch {
        /// What they must be.
        wanted: &'static str,
    },
    /// The log does not tell of the policy, and it cannot be run.
    #[error(
        "{missing} rows do not tell what `{policy}` would have done (they tell of: {known}); name \
         base, uniform, arm=N, change=X, one of those, or give the recorded ratings to run it over"
    )]
    Unknown {
        /// The policy.
        policy: String,
        /// In how many rows it is missing.
        missing: usize,
        /// Whom the rows tell of.
        known: String,
    },
    /// A policy that ratings alone do not make.
    #[error(
        "`{policy}` goes by what agents ask for and by what capacity costs, which recorded ratings do not tell: what it \
         would have done cannot be known from them. Judge a policy that the log's rows tell of (`others`), base, uniform, arm=N \
         or change=X, or `additive`"
    )]
    Priced {
        /// The policy.
        policy: String,
    },
    /// Ratings without times cannot be set beside decisions.
    #[error("time=none: ratings must have times to be set beside logged decisions")]
    Timeless,
    /// The policy does what the log never tried.
    #[error(
        "no overlap between `{policy}` and the log: {problem}; let the policy that logs explore \
         more, or judge one that is nearer to it"
    )]
    NoOverlap {
        /// The policy.
        policy: String,
        /// What was found.
        problem: String,
    },
    /// One policy cannot be judged.
    #[error("`{policy}`")]
    Policy {
        /// Which.
        policy: String,
        /// Why.
        #[source]
        source: Box<EvaluateError>,
    },
}

/// Evaluates every policy against the log; `bar` shows how far the reading is.
///
/// # Errors
///
/// When the log cannot be read, or no honest estimate can be given for one of the policies.
pub fn evaluate(options: &Options, bar: &ProgressBar) -> Result<Evaluation, EvaluateError> {
    let log = log::read(&options.log, options.strict, bar)?;
    let actions = log.actions(options.bandwidth)?;
    let folded = match &options.ratings {
        Some(ratings) => folded(&log, ratings, bar)?,
        None => Vec::new(),
    };
    bar.set_message("fitting the model");
    let models = models(&log);
    let mut worths = Vec::new();
    for (name, target) in &options.targets {
        let run = options.ratings.iter().flat_map(|ratings| &ratings.candidates);
        let changes = run.zip(&folded).find(|(candidate, _)| candidate.label == *name);
        let changes = changes.map(|(_, changes)| &changes[..]);
        let samples = samples(&log, &actions, &models, name, target, changes)?;
        worths.push(report::worth(name, &samples));
    }
    Ok(report::evaluation(&options.log, &log, &actions, worths))
}

/// Returns ln(rate / base) for each candidate at each decision: the rate being what the candidate
/// gives that decision's agent after all ratings up to its time.
fn folded(
    log: &Logged,
    ratings: &Ratings,
    bar: &ProgressBar,
) -> Result<Vec<Vec<f64>>, EvaluateError> {
    if ratings.layout.columns.timeless {
        return Err(EvaluateError::Timeless);
    }
    if let Some(priced) = ratings.candidates.iter().find(|one| one.kind.knows_a_price()) {
        return Err(EvaluateError::Priced { policy: priced.label.clone() });
    }
    let mut order: Vec<usize> = (0..log.rows.len()).collect();
    order.sort_by_key(|&at| log.rows[at].at_ms);
    let mut changes = vec![vec![0.0; log.rows.len()]; ratings.candidates.len()];
    let mut next = 0;
    let mut run = Run::new(&ratings.candidates);
    let mut note = |run: &Run<'_>, cast: &Cast, before_ms: Option<u64>| {
        while let Some(&at) = order.get(next)
            && before_ms.is_none_or(|before_ms| log.rows[at].at_ms < before_ms)
        {
            let row = &log.rows[at];
            for (index, changes) in changes.iter_mut().enumerate() {
                let number = cast.agents.get(row.agent.as_str());
                let start = || ratings.candidates[index].start();
                let rate = number.map_or_else(start, |number| run.rate(number, index));
                changes[at] = (rate / row.base).ln();
            }
            next += 1;
        }
    };
    let mut take = |run: &mut Run<'_>, event: Event, cast: &Cast| {
        note(run, cast, Some(event.at_ms));
        run.fold(event, cast);
    };
    let recorded = read(ratings, bar, |event, cast| take(&mut run, event, cast))?;
    for &event in &recorded.rest {
        take(&mut run, event, &recorded.cast);
    }
    note(&run, &recorded.cast, None);
    Ok(changes)
}

/// Returns one model for each part of the agents, fitted on all others; with fewer agents than parts
/// decisions are divided instead.
fn models(log: &Logged) -> Vec<Model> {
    (0..FOLDS)
        .map(|part| {
            let others = log.rows.iter().enumerate().filter(|(at, _)| part_of(log, *at) != part);
            Model::fit(others.map(|(_, row)| row), log.width, log.arms)
        })
        .collect()
}

#[allow(clippy::cast_possible_truncation, reason = "a remainder of FOLDS")]
fn part_of(log: &Logged, at: usize) -> u32 {
    match log.agents_count >= CLUSTERS_MIN {
        true => log.agents[at] % FOLDS,
        false => (at % FOLDS as usize) as u32,
    }
}

fn samples(
    log: &Logged,
    actions: &Actions,
    models: &[Model],
    name: &str,
    target: &Target,
    folded: Option<&[f64]>,
) -> Result<Samples, EvaluateError> {
    let failed =
        |source| EvaluateError::Policy { policy: name.to_owned(), source: Box::new(source) };
    let mut samples = Vec::with_capacity(log.rows.len());
    let (mut untried, mut missing) = (0.0, 0);
    for (at, row) in log.rows.iter().enumerate() {
        let Some(choice) = target.choice(row, actions, folded.map(|changes| changes[at])) else {
            missing += 1;
            continue;
        };
        let Judged { likelihood, choice } = actions.judge(row, &choice).map_err(failed)?;
        if let (Spread::Arms(arms), Actions::Arms(tried)) = (&choice, actions) {
            let never = arms.iter().zip(tried).filter(|(_, tried)| tried.is_none());
            untried += never.map(|(share, _)| share).sum::<f64>();
        }
        let model = &models[part_of(log, at) as usize];
        samples.push(Sample {
            weight: likelihood / row.propensity,
            reward: row.reward,
            modelled: model.of_action(row),
            modelled_policy: model.of_policy(row, &choice.moments()),
            agent: log.agents[at],
        });
    }
    if missing > 0 {
        let known: Vec<&str> = log.others().into_iter().collect();
        let known = if known.is_empty() { "nobody".to_owned() } else { known.join(", ") };
        return Err(EvaluateError::Unknown { policy: name.to_owned(), missing, known });
    }
    let samples = Samples::new(samples, log.agents_count);
    overlap(log, &samples, untried)
        .map_err(|problem| EvaluateError::NoOverlap { policy: name.to_owned(), problem })?;
    Ok(samples)
}

#[allow(clippy::cast_precision_loss, reason = "at most ROWS_MAX rows")]
fn overlap(log: &Logged, samples: &Samples, untried: f64) -> Result<(), String> {
    let untried = untried / log.rows.len() as f64;
    if untried > UNTRIED_MAX {
        return Err(format!("{:.1} % of what it does was never tried", untried * 100.0));
    }
    let effective = samples.effective();
    if effective < EFFECTIVE_MIN {
        return Err(format!(
            "{} decisions are worth {effective:.1} of its own, and at least {EFFECTIVE_MIN} are \
             needed",
            log.rows.len()
        ));
    }
    // The mean weight is 1 whenever propensities are right and cover what the policy does.
    let weights = samples.weights();
    let beside = (weights.value - 1.0).abs();
    if beside > WEIGHT_TOLERANCE && beside > 4.0 * weights.standard_error {
        return Err(format!(
            "weights average {:.3} instead of 1: it does what was never tried, or the propensities \
             are wrong",
            weights.value
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
