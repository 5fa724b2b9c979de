//! What an operator asks of running processes and has them do: clients of the admin listener (docs/admin.md).
//!
//! 1. A command is one question or one write, and its answer on standard output: a table in plain text, or
//!    with `--json` one object on one line. Notes about the answer go to standard error.
//! 2. Nothing is changed by reading. Buckets are read, changed and written under the revision that was
//!    read, so that nobody's change is overwritten unseen.
//! 3. No token leaves this machine unencrypted (`place`); nothing that a server says can steer the
//!    terminal (`show`).
//! 4. What fails is told in a sentence with its remedy, and [`OperatorError::is_usage`] says whose fault it was.

mod answers;
pub mod args;
mod moment;
mod place;
mod show;

mod client;

mod agents;
mod buckets;
mod health;
mod policy;

mod top;

pub use health::Probe;

use std::io::{self, Write as _};

use serde_json::Value;

use args::{Agents, Buckets, Explain, Health, Look, Policy, Top};
use show::{Paint, one_line};

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OperatorError {
    /// Wrong usage.
    #[error("{0}")]
    Usage(String),
    /// Something on this side.
    #[error("{0}")]
    Failed(String),
    /// No connection, or none that lasted.
    #[error("{place} does not answer: {why}; {remedy}")]
    Away {
        /// Who.
        place: String,
        /// The last cause.
        why: String,
        /// What helps.
        remedy: &'static str,
    },
    /// No answer in time.
    #[error("{place} did not answer within {timeout_ms} ms; --timeout waits longer")]
    Late {
        /// Who.
        place: String,
        /// How long it had.
        timeout_ms: u64,
    },
    /// An answer that no admin listener of this version gives.
    #[error("what answers at {place} is no admin listener of this version of merit: {why}")]
    Foreign {
        /// Who.
        place: String,
        /// What was wrong.
        why: String,
    },
    /// The listener says no.
    #[error("{detail} ({status})")]
    Refused {
        /// The status of HTTP.
        status: u16,
        /// What it says, and every fault.
        detail: String,
    },
    /// The process is there, and does not work.
    #[error("{0}")]
    NotReady(String),
    /// Nobody reads what is printed.
    #[error("standard output is closed")]
    Closed(#[source] io::Error),
}

impl OperatorError {
    /// Returns true when the command was wrong, not what it met: exit code 2.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        // 400 and 422 speak of what was typed.
        matches!(self, Self::Usage(_) | Self::Refused { status: 400 | 422, .. })
    }
}

/// A command.
#[derive(Clone, Debug)]
pub enum Asked {
    /// `merit agents`.
    Agents(Agents),
    /// `merit buckets`.
    Buckets(Buckets),
    /// `merit explain`.
    Explain(Explain),
    /// `merit policy`.
    Policy(Policy),
    /// `merit health`, of what a configuration file says to ask.
    Health(Health, Option<Probe>),
    /// `merit top`.
    Top(Top),
}

/// Does what was asked.
///
/// # Errors
///
/// When the command was wrong, nobody answers, or the answer is no.
pub async fn run(asked: Asked) -> Result<(), OperatorError> {
    match asked {
        Asked::Agents(options) => agents::run(options).await,
        Asked::Buckets(options) => buckets::run(options).await,
        Asked::Explain(options) => agents::explain(options).await,
        Asked::Policy(options) => policy::run(options).await,
        Asked::Health(options, probe) => health::run(options, probe).await,
        Asked::Top(options) => top::run(options).await,
    }
}

/// Prints `value` as it is with `--json`, else as `text` says it.
fn print(
    look: Look,
    value: &Value,
    text: impl FnOnce(Paint) -> String,
) -> Result<(), OperatorError> {
    let text = if look.json { one_line(value) } else { text(Paint::of(look.color)) };
    say(&text)
}

fn say(text: &str) -> Result<(), OperatorError> {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()).map_err(OperatorError::Closed)
}

/// Tells something about the answer, on standard error; nobody may be reading there.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

#[cfg(test)]
mod tests;
