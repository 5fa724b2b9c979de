//! What a running tuner answers to people: why an agent was moved, and what happened lately.
//!
//! Questions are answered by the loop itself between two batches, so that nothing is shared with it and
//! nothing is paid for while nobody asks. Whoever asks waits a moment and then does without.

use std::{collections::VecDeque, time::Duration};

use serde::Serialize;
use tokio::{
    sync::{mpsc, oneshot},
    time::timeout,
};
use tower_merit::AgentId;

use super::Move;
use crate::{
    clock::unix_ms,
    policy::{Drift, Reason},
};

/// How long an answer is waited for.
pub const PATIENCE: Duration = Duration::from_millis(250);

/// Questions that may wait; further ones are not asked.
const ASKS_MAX: usize = 64;

/// How many of the newest happenings are remembered.
pub const HAPPENINGS: usize = 50;

/// Something that an operator may want to know of.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Happening {
    /// When, in Unix milliseconds.
    pub at_ms: u64,
    /// `drift` or `guardrail`.
    pub kind: &'static str,
    /// To whom.
    pub agent_id: AgentId,
    /// What, as a sentence.
    pub text: String,
}

/// A question to a running tuner.
#[derive(Debug)]
pub(super) enum Ask {
    Moves(AgentId, oneshot::Sender<Option<Vec<Move>>>),
    Happenings(oneshot::Sender<Vec<Happening>>),
}

/// Asks a running tuner. Clones ask the same one.
#[derive(Clone, Debug)]
pub struct Insight(mpsc::Sender<Ask>);

/// Where a tuner hears questions.
#[derive(Debug)]
pub struct Asked(pub(super) mpsc::Receiver<Ask>);

/// Returns the two ends of asking.
#[must_use]
pub fn insight() -> (Insight, Asked) {
    let (asks, asked) = mpsc::channel(ASKS_MAX);
    (Insight(asks), Asked(asked))
}

impl Insight {
    /// Returns the agent's newest moves, newest first; nothing when the tuner does not have the agent in
    /// memory, or has no time.
    pub async fn moves(&self, agent: &AgentId) -> Option<Vec<Move>> {
        self.ask(|answer| Ask::Moves(agent.clone(), answer)).await?
    }

    /// Returns what happened lately, newest first; nothing when the tuner has no time.
    pub async fn happenings(&self) -> Option<Vec<Happening>> {
        self.ask(Ask::Happenings).await
    }

    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<T>) -> Ask) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(ask(answer)).ok()?;
        timeout(PATIENCE, answered).await.ok()?.ok()
    }
}

/// What happened lately, as it was noticed.
#[derive(Default)]
pub(super) struct Recent(VecDeque<(u64, AgentId, What)>);

#[derive(Clone, Copy)]
pub(super) enum What {
    Drift(Drift),
    Guardrail(Reason),
}

impl Recent {
    pub(super) fn note(&mut self, agent: &AgentId, what: What) {
        if self.0.len() == HAPPENINGS {
            self.0.pop_back();
        }
        let at_ms = unix_ms();
        self.0.push_front((at_ms, agent.clone(), what));
    }

    pub(super) fn told(&self) -> Vec<Happening> {
        let tell = |(at_ms, agent, what): &(u64, AgentId, What)| {
            let (kind, text) = match what {
                What::Drift(Drift { before, after, ratings, .. }) => {
                    let moved = if after < before { "fell" } else { "rose" };
                    let text = format!(
                        "quality {moved} from {before:.1} to {after:.1} within {ratings} ratings"
                    );
                    ("drift", text)
                }
                What::Guardrail(reason) => (
                    "guardrail",
                    format!("a guardrail stood in for the policy: {}", reason.as_str()),
                ),
            };
            Happening { at_ms: *at_ms, kind, agent_id: agent.clone(), text }
        };
        self.0.iter().map(tell).collect()
    }
}
