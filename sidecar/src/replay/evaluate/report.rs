//! What an evaluation prints.

use std::{collections::BTreeMap, fmt::Write as _, path::Path};

use serde::Serialize;

use super::{
    estimate::{CLUSTERS_MIN, Clusters, Estimate, Samples},
    log::Logged,
    target::Actions,
};
use crate::replay::report::BadRows;

/// The result of an evaluation.
#[derive(Clone, Debug, Serialize)]
pub struct Evaluation {
    /// The log.
    pub log: String,
    /// How many decisions.
    pub decisions: usize,
    /// For how many agents.
    pub agents: usize,
    /// Who decided: policy and version, and how often.
    pub deciders: BTreeMap<String, u64>,
    /// Lines that were left out.
    pub bad_rows: BadRows,
    /// Half the kernel's support around a policy's one change; nothing for a log of arms.
    pub bandwidth: Option<f64>,
    /// What intervals are over.
    pub clusters: Clusters,
    /// The policies.
    pub policies: Vec<Worth>,
}

/// What one policy would have earned, in mean reward of a decision.
#[derive(Clone, Debug, Serialize)]
pub struct Worth {
    /// The policy.
    pub policy: String,
    /// What the log's own policy earned.
    pub logged: Estimate,
    /// By inverse propensity scoring.
    pub ips: Estimate,
    /// By self-normalised inverse propensity scoring.
    pub snips: Estimate,
    /// Doubly robust.
    pub dr: Estimate,
    /// Doubly robust, less what the log's own policy earned.
    pub gain: Estimate,
    /// What the model alone says; biased by whatever it misses.
    pub model: f64,
    /// How many decisions of its own the log is worth.
    pub effective: f64,
    /// The mean weight: 1 but for chance.
    pub mean_weight: f64,
    /// The largest weight.
    pub largest_weight: f64,
}

pub(super) fn worth(policy: &str, samples: &Samples) -> Worth {
    Worth {
        policy: policy.to_owned(),
        logged: samples.logged(),
        ips: samples.ips(),
        snips: samples.snips(),
        dr: samples.dr(),
        gain: samples.gain(),
        model: samples.model(),
        effective: samples.effective(),
        mean_weight: samples.mean_weight(),
        largest_weight: samples.largest_weight(),
    }
}

pub(super) fn evaluation(
    path: &Path,
    log: &Logged,
    actions: &Actions,
    policies: Vec<Worth>,
) -> Evaluation {
    let clusters = Samples::new(Vec::new(), log.agents_count).clusters();
    Evaluation {
        log: path.display().to_string(),
        decisions: log.rows.len(),
        agents: log.agents_count,
        deciders: log.deciders.clone(),
        bad_rows: log.bad.clone(),
        bandwidth: match actions {
            Actions::Changes { bandwidth } => Some(*bandwidth),
            Actions::Arms(_) => None,
        },
        clusters,
        policies,
    }
}

impl Evaluation {
    /// Returns the result for people.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        let Self { log, decisions, agents, .. } = self;
        let _ = writeln!(text, "{decisions} decisions for {agents} agents in {log}, made by");
        for (decider, count) in &self.deciders {
            let _ = writeln!(text, "  {decider}: {count}");
        }
        text.push_str(&self.bad_rows.text());
        let over = match self.clusters {
            Clusters::Agents => "over agents".to_owned(),
            Clusters::Decisions => format!(
                "over decisions as if independent: with fewer than {CLUSTERS_MIN} agents they may \
                 be too narrow"
            ),
        };
        let _ = writeln!(text, "mean reward of a decision, 95 % intervals (Student's t {over})");
        if let Some(bandwidth) = self.bandwidth {
            let _ = writeln!(
                text,
                "a policy of one change is widened by a kernel of ±{bandwidth:.4} (--bandwidth)"
            );
        }
        for worth in &self.policies {
            let Worth { policy, effective, mean_weight, largest_weight, .. } = worth;
            let _ = writeln!(
                text,
                "\n{policy}: the log is worth {effective:.0} decisions of its own (mean weight \
                 {mean_weight:.3}, largest {largest_weight:.1})"
            );
            let _ = writeln!(
                text,
                "{:<8} {:>10} {:>10} {:>10} {:>9}",
                "", "value", "low", "high", "s.e."
            );
            for (name, estimate) in [
                ("logged", &worth.logged),
                ("ips", &worth.ips),
                ("snips", &worth.snips),
                ("dr", &worth.dr),
                ("gain", &worth.gain),
            ] {
                let Estimate { value, low, high, standard_error } = estimate;
                let _ = writeln!(
                    text,
                    "{name:<8} {value:>10.4} {low:>10.4} {high:>10.4} {standard_error:>9.4}"
                );
            }
            let _ = writeln!(text, "the model alone says {:.4}; {}", worth.model, worth.verdict());
        }
        text
    }
}

impl Worth {
    /// Returns what the interval of the gain says.
    fn verdict(&self) -> &'static str {
        if self.gain.low > 0.0 {
            "better than what was logged"
        } else if self.gain.high < 0.0 {
            "worse than what was logged"
        } else {
            "not told apart from what was logged"
        }
    }
}
