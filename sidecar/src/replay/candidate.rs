//! The policies that a replay runs: the configured one, with a kind and numbers given beside it.
//!
//! `additive:alpha=5,r_max=80` is the policy `additive` with the `[policy]` of the configuration (or
//! its defaults) but for the two keys named. A key of a table is `table.key`. All that `[policy]`
//! may say may be said here, so a new kind of policy needs nothing more.

use serde_json::{Map, Value};
use tower_merit::bucket::Limits;

use crate::policy::{Config, Kind, Policy};

/// A policy under the name it was asked for.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// As it was asked for.
    pub label: String,
    /// What it says.
    pub policy: Policy,
    /// Which kind it is.
    pub kind: Kind,
}

/// Why a policy cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("--policy or --against `{label}`: {}", faults.join("; "))]
pub struct CandidateError {
    /// As it was asked for.
    pub label: String,
    /// Everything that is wrong with it.
    pub faults: Vec<String>,
}

impl Candidate {
    /// Returns the policy that `label` names (`KIND[:KEY=VALUE[,…]]`), for agents that start from
    /// `start`; keys not named are as in `base`.
    ///
    /// # Errors
    ///
    /// With every fault of the kind, a key or a value.
    pub fn new(label: &str, base: &Config, start: Limits) -> Result<Self, CandidateError> {
        let failed = |faults| CandidateError { label: label.to_owned(), faults };
        let one = |fault: String| failed(vec![fault]);
        let (kind, keys) = label.split_once(':').unwrap_or((label, ""));
        let mut base = base.clone();
        // A kind that is none is refused below, beside whatever else is wrong.
        if let Ok(kind) = serde_json::from_value::<Kind>(Value::from(kind)) {
            base.become_kind(kind);
        }
        let plain = serde_json::to_value(base).expect("a configuration is plain data");
        let Value::Object(mut table) = plain else { unreachable!("a struct is an object") };
        table.insert("kind".to_owned(), Value::from(kind));
        for pair in keys.split(',').filter(|pair| !pair.is_empty()) {
            let Some((key, value)) = pair.split_once('=') else {
                return Err(one(format!("`{pair}`: write key=value, like alpha=0.5")));
            };
            // What is no JSON scalar is a text, so that `tick=1s` needs no quotes.
            let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
            set(&mut table, key.trim(), value).map_err(one)?;
        }
        let config = serde_json::from_value::<Config>(Value::Object(table));
        let config = config.map_err(|error| one(error.to_string()))?;
        let mut faults = Vec::new();
        config.validate("policy", &mut faults);
        if faults.is_empty() {
            let (label, kind) = (label.to_owned(), config.kind);
            Ok(Self { label, policy: Policy::new(&config, start), kind })
        } else {
            Err(failed(faults))
        }
    }

    /// Returns the refill rate of an agent that nobody rated yet, in tokens per second.
    #[must_use]
    pub fn start(&self) -> f64 {
        self.policy.limits(&self.policy.begin()).refill().tokens()
    }
}

fn set(table: &mut Map<String, Value>, key: &str, value: Value) -> Result<(), String> {
    match key.split_once('.') {
        None => {
            table.insert(key.to_owned(), value);
            Ok(())
        }
        Some((name, rest)) => match table.entry(name).or_insert_with(|| Map::new().into()) {
            Value::Object(inner) => set(inner, rest, value),
            _ => Err(format!("`{key}`: {name} is no table of [policy]")),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        policy::Mode,
        rating::{Rating, Score, UserId},
    };

    fn start() -> Limits {
        Limits::per_second(20.0, 40).unwrap()
    }

    fn after_a_five(label: &str) -> f64 {
        let candidate = Candidate::new(label, &Config::default(), start()).unwrap();
        let mut state = candidate.policy.begin();
        let (agent, user) = ("a".parse().unwrap(), UserId::new("u").unwrap());
        let rating = Rating::recorded(agent, user, Score::new(5.0).unwrap(), 1);
        candidate.policy.fold(&mut state, &rating);
        candidate.policy.limits(&state).refill().tokens()
    }

    #[test]
    fn keys_named_beside_a_kind_go_before_the_configuration() {
        assert_eq!(after_a_five("additive"), 20.2);
        assert_eq!(after_a_five("additive:alpha=5"), 30.0);
        assert_eq!(after_a_five("additive:alpha=50,r_max=60"), 60.0);
        assert_eq!(after_a_five("additive:alpha=5,tick=1s"), 30.0);
    }

    #[test]
    fn a_policy_runs_in_the_mode_that_it_ships_with_unless_one_is_named() {
        let ppo = Config { kind: Kind::Ppo, mode: Kind::Ppo.shipped_mode(), ..Config::default() };
        let killed = Config { mode: Mode::Base, ..Config::default() };
        for (label, base, mode) in [
            ("ppo:service_capacity=500", &Config::default(), Mode::Shadow),
            ("ppo:service_capacity=500,mode=live", &Config::default(), Mode::Live),
            ("bandit:service_capacity=500", &ppo, Mode::Live),
            ("ppo:service_capacity=500", &ppo, Mode::Shadow),
            ("bandit:service_capacity=500", &killed, Mode::Base),
        ] {
            let candidate = Candidate::new(label, base, start()).unwrap();
            assert_eq!(candidate.policy.mode(), Some(mode), "{label}");
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (label, said) in [
            ("oracle", "oracle"),
            ("", "must be"),
            ("additive:alpha", "key=value"),
            ("additive:beta=1", "beta"),
            ("additive:alpha=-1", "policy.alpha: must be"),
            ("additive:alpha=soon", "soon"),
            ("additive:alpha.x=1", "no table"),
            ("additive:r_min=50", "policy.r_min: must be at most"),
        ] {
            let error = Candidate::new(label, &Config::default(), start()).unwrap_err();
            assert!(error.to_string().contains(said), "{label}: {error}");
        }
    }
}
