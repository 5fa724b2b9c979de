//! Decisions on their way into the log: each waits until it is known what it was worth.
//!
//! Only decisions with chance in them are logged: the others teach an off-policy estimate nothing.
//! Soft: a restart loses what is not settled, and so does the [`UNSETTLED_MAX`]th agent.

use std::collections::{BTreeMap, HashMap};

use tower_merit::AgentId;

use crate::{
    clock::unix_ms,
    decisions::{Action, Arm, Decided, Log},
    policy::{ARMS, AnyLaw, Decision, Outcome, Policy, State},
};

/// Agents whose last decision waits to be settled.
const UNSETTLED_MAX: usize = 10_000;

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

    /// Takes in a tick of `agent`: it settles what was drawn before, and may have drawn anew.
    pub(super) fn note(
        &mut self,
        agent: &AgentId,
        state: &State,
        decision: &Decision,
        outcome: Option<Outcome>,
        policy: &Policy,
    ) {
        let (settled, arm) = match (policy.law(), state) {
            (AnyLaw::Bandit(_), State::Bandit(state)) => {
                let Some(arm) = state.arm() else { return };
                let arms = u16::try_from(ARMS).expect("few");
                (outcome.map(|outcome| outcome.reward), Some(Arm { arm: u16::from(arm), arms }))
            }
            // Each tick draws anew; without exploring nothing is drawn.
            (AnyLaw::Ppo(law), State::Ppo(_)) if law.explores() => (Some(decision.reward), None),
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
        if decision.held.is_some() || self.unsettled.contains_key(agent) {
            return;
        }
        if self.unsettled.len() >= UNSETTLED_MAX {
            // Some of them are of agents that were forgotten, and would wait for ever.
            self.unsettled.clear();
        }
        let Some(features) = policy.observation(state) else { return };
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
