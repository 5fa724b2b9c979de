//! What an agent is told of its record: what holds its rate, and what moved it.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tower_merit::{AgentId, store::Record};

use crate::{
    gateway::{Explain, Explained},
    policy::{Market, Policy},
    tuner::{self, Aim},
};

/// Returns what reads records for agents, by the policy that `aim` names.
pub(super) fn explain(mut aim: watch::Receiver<Aim>) -> Explain {
    let policy = |aim: &Aim| Policy::new(&aim.policy, aim.start);
    let first = policy(&aim.borrow_and_update());
    let known = Mutex::new((aim, first));
    Arc::new(move |_: &AgentId, record: &Record| {
        // Whole after a panic elsewhere: it is replaced in one step.
        let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
        let (aim, in_force) = &mut *known;
        if aim.has_changed().unwrap_or(false) {
            *in_force = policy(&aim.borrow_and_update());
        }
        explained(in_force, record)
    })
}

fn explained(policy: &mut Policy, record: &Record) -> Explained {
    let Some(state) = tuner::state_of(record) else {
        let said = match record.limits {
            Some(_) => "Its limits were set by hand; the next rating moves them on from there.",
            None => "No rating has moved it yet: it has the limits that everybody starts with.",
        };
        return Explained { held: "none".to_owned(), sentences: vec![said.to_owned()] };
    };
    if let Some(standing) = state.standing() {
        // What the agent was last decided at: a gateway sees no market of its own.
        let market = *policy.market();
        policy.see(Market { price: standing.price(), ..market });
    }
    let why = policy.why(&state);
    let mut sentences = why.sentences;
    if record.operator {
        let said = "An operator set its limits by hand; the next rating moves them on from there.";
        sentences.insert(0, said.to_owned());
    }
    Explained { held: why.held, sentences }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tower_merit::bucket::Limits;

    use super::*;
    use crate::policy::{Config, Kind, Vote};

    fn record(policy: &Policy, score: f64) -> Record {
        let mut state = policy.begin();
        for index in 0..30 {
            let at_ms = 1_800_000_000_000 + 1_000 * index;
            policy.vote(&mut state, Vote { score, rater: index, at_ms, weight: 1.0 });
        }
        let mut record = Record::default();
        (record.rev, record.limits) = (30, Some(state.limits()));
        record.state = json!({"epoch": "e", "state": state}).to_string();
        record
    }

    #[test]
    fn an_agent_is_told_what_moved_it_by_the_policy_in_force() {
        let start = Limits::per_second(20.0, 40).unwrap();
        let (aims, aim) = watch::channel(Aim::new(Config::default(), start));
        let (explain, agent) = (explain(aim), AgentId::new("a").unwrap());
        let fresh = explain(&agent, &Record::default());
        assert_eq!((fresh.held.as_str(), fresh.sentences.len()), ("none", 1));
        let additive = Policy::new(&Config::default(), start);
        let told = explain(&agent, &record(&additive, 5.0)).sentences.join(" ");
        assert!(told.contains("Each rating moves its rate by 0.1"), "{told}");

        let price =
            Config { kind: Kind::Price, service_capacity: Some(100.0), ..Config::default() };
        aims.send_modify(|aim| aim.policy = price.clone());
        let told = explain(&agent, &record(&Policy::new(&price, start), 1.0)).sentences.join(" ");
        assert!(told.contains("say a quality of 1."), "{told}");
    }
}
