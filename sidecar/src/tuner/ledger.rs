//! Decisions on their way into the log: each waits until it is known what it was worth.
//!
//! Only decisions with chance in them are logged: the others teach an off-policy estimate nothing.
//! Soft: a restart loses what is not settled, and so does the [`UNSETTLED_MAX`]th agent.
//!
//! The features of a row are what was known *before* the decision ([`Before`]): a rate that the action has moved
//! already would tell a model of rewards what was done, and the estimate of another policy would be wrong by as much.

use std::collections::{BTreeMap, HashMap};

use tower_merit::AgentId;

use crate::{
    clock::unix_ms,
    decisions::{Action, Arm, Decided, Log},
    policy::{ARMS, AnyLaw, Decision, OBSERVATION, Outcome, Policy, State},
};

/// Agents whose last decision waits to be settled.
const UNSETTLED_MAX: usize = 10_000;

/// What was known of an agent before a decision at a tick.
#[derive(Clone, Copy)]
pub(super) struct Before {
    features: Option<[f32; OBSERVATION]>,
    arm: Option<u8>,
}

impl Before {
    /// Returns what `policy` sees in `state`.
    pub(super) fn of(state: &State, policy: &Policy) -> Self {
        let arm = if let State::Bandit(state) = state { state.arm() } else { None };
        Self { features: policy.observation(state), arm }
    }
}

/// The log, and what waits for it.
pub(super) struct Ledger {
    log: Log,
    unsettled: HashMap<AgentId, Decided>,
}

impl Ledger {
    pub(super) fn new(log: Log) -> Self {
        Self { log, unsettled: HashMap::new() }
    }

    /// Forgets what waits: another policy decides from now on.
    pub(super) fn forget(&mut self) {
        self.unsettled.clear();
    }

    /// Takes in a tick of `agent`: it settles what was drawn before, and may have drawn anew from what was known
    /// `before`.
    pub(super) fn note(
        &mut self,
        agent: &AgentId,
        state: &State,
        before: &Before,
        decision: &Decision,
        outcome: Option<Outcome>,
        policy: &Policy,
    ) {
        let (settled, arm, drew) = match (policy.law(), state) {
            (AnyLaw::Bandit(_), State::Bandit(state)) => {
                let Some(arm) = state.arm() else { return };
                let arms = u16::try_from(ARMS).expect("few");
                let arm = Arm { arm: u16::from(arm), arms };
                // An arm that an earlier rating drew has moved the rate since.
                let drew = outcome.is_some() || before.arm.is_none();
                (outcome.map(|outcome| outcome.reward), Some(arm), drew)
            }
            // Each tick draws anew; without exploring nothing is drawn.
            (AnyLaw::Ppo(law), State::Ppo(_)) if law.explores() => {
                (Some(decision.reward), None, true)
            }
            _ => return,
        };
        if let Some(reward) = settled
            && let Some(row) = self.unsettled.remove(agent)
            // An agent that was forgotten and loaded again may follow an arm that was never noted.
            && outcome.is_none_or(|outcome| {
                row.action.arm.is_some_and(|arm| arm.arm == u16::from(outcome.arm))
            })
        {
            self.log.write(&Decided { reward, ..row });
        }
        // What was not followed says nothing of what it would have been worth.
        if !drew || decision.held.is_some() || self.unsettled.contains_key(agent) {
            return;
        }
        if self.unsettled.len() >= UNSETTLED_MAX {
            // Some of them are of agents that were forgotten, and would wait for ever.
            self.unsettled.clear();
        }
        let Some(features) = before.features else { return };
        let row = Decided {
            at_ms: unix_ms(),
            agent: agent.clone(),
            policy: policy.law().name().to_owned(),
            version: policy.version().to_owned(),
            features: features.map(f64::from).to_vec(),
            base: decision.base,
            action: Action { change: decision.residual, arm },
            propensity: decision.propensity,
            reward: 0.0,
            others: BTreeMap::new(),
        };
        self.unsettled.insert(agent.clone(), row);
    }
}
