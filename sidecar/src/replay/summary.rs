//! What a replay found: how rates are distributed under each policy, and who moves between two.

use serde::Serialize;
use tower_merit::AgentId;

use super::{
    candidate::Candidate,
    rows::Cast,
    run::{Rates, Run, Tally},
};

/// A change of a rate below this share counts as none.
const UNCHANGED: f64 = 0.01;

/// What stands in for the other policy when there is none: the rate before the first rating.
pub const START: &str = "start";

/// One agent: its ratings, and its rates under each policy, in tokens per second.
#[derive(Clone, Debug, PartialEq)]
pub struct Agent {
    /// Who.
    pub id: AgentId,
    /// Its number in the run.
    pub number: u32,
    /// Its ratings.
    pub tally: Tally,
    /// In the order of the policies.
    pub rates: Vec<Rates>,
}

impl Agent {
    /// Returns the mean of its scores, 1 to 5.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "fewer ratings than 2^52")]
    pub fn mean_score(&self) -> f64 {
        self.tally.score / self.tally.ratings as f64
    }
}

/// Returns the rated agents, by name.
#[must_use]
pub fn agents(run: &Run<'_>, cast: &Cast) -> Vec<Agent> {
    let named = run.agents().map(|(number, tally, rates)| Agent {
        id: cast.agents.all()[number as usize].clone(),
        number,
        tally,
        rates,
    });
    let mut all: Vec<Agent> = named.collect();
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

/// How the agents' final rates are distributed under one policy, in tokens per second.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// The policy, as it was asked for.
    pub policy: String,
    /// Before the first rating.
    pub start: f64,
    /// Mean over agents.
    pub mean: f64,
    /// The 5th, 25th, 50th, 75th and 95th percentile (nearest rank).
    pub percentiles: [f64; 5],
    /// Sum over agents: what the service would have to serve if all used what they may.
    pub total: f64,
    /// Agents whose rate rose above the start by more than 1 %.
    pub raised: u64,
    /// Agents whose rate fell below the start by more than 1 %.
    pub lowered: u64,
}

/// The percentiles of [`Distribution::percentiles`].
pub const PERCENTILES: [f64; 5] = [5.0, 25.0, 50.0, 75.0, 95.0];

/// One policy against another.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The policy.
    pub policy: String,
    /// What it is compared with: another policy, or [`START`].
    pub against: String,
    /// Agents whose rates differ by more than 1 %.
    pub differ: u64,
    /// Mean over agents of |ln(rate / other rate)|.
    pub mean_abs_log_ratio: f64,
    /// Rank correlation of the two rates over agents; nothing when either is the same for all.
    pub rank_correlation: Option<f64>,
    /// The agents whose rates differ most, by |ln(rate / other rate)|.
    pub movers: Vec<Mover>,
}

/// An agent that two policies treat differently.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Mover {
    /// Who.
    pub agent_id: AgentId,
    /// How many ratings it has.
    pub ratings: u64,
    /// Their mean, 1 to 5.
    pub mean_score: f64,
    /// Its final rate, in tokens per second.
    pub rate: f64,
    /// Its final rate under the other policy, in tokens per second.
    pub against: f64,
    /// The first by the second.
    pub ratio: f64,
}

/// Returns how the final rates under policy `index` are distributed; `agents` may not be empty.
#[must_use]
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "fewer agents than 2^32, ranks within them"
)]
pub fn distribution(agents: &[Agent], index: usize, candidate: &Candidate) -> Distribution {
    let start = candidate.start();
    let mut rates: Vec<f64> = agents.iter().map(|agent| agent.rates[index].end).collect();
    rates.sort_by(f64::total_cmp);
    let total: f64 = rates.iter().sum();
    let nearest = |percent: f64| {
        let rank = (percent / 100.0 * rates.len() as f64).ceil() as usize;
        rates[rank.clamp(1, rates.len()) - 1]
    };
    let beyond = |test: &dyn Fn(f64) -> bool| rates.iter().filter(|rate| test(**rate)).count();
    Distribution {
        policy: candidate.label.clone(),
        start,
        mean: total / rates.len() as f64,
        percentiles: PERCENTILES.map(nearest),
        total,
        raised: beyond(&|rate| rate > start * (1.0 + UNCHANGED)) as u64,
        lowered: beyond(&|rate| rate < start * (1.0 - UNCHANGED)) as u64,
    }
}

/// Returns policy 0 against policy `other`, or against its own start; with the `top` that differ
/// most. `agents` may not be empty.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "fewer agents than 2^52")]
pub fn compare(
    agents: &[Agent],
    candidates: &[Candidate],
    other: Option<usize>,
    top: usize,
) -> Comparison {
    let start = candidates[0].start();
    let pair =
        |agent: &Agent| (agent.rates[0].end, other.map_or(start, |other| agent.rates[other].end));
    let distance = |agent: &Agent| {
        let (rate, against) = pair(agent);
        (rate / against).ln().abs()
    };
    let mut order: Vec<(f64, &Agent)> =
        agents.iter().map(|agent| (distance(agent), agent)).collect();
    // Ties by name, so that the same file gives the same table.
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.id.cmp(&b.1.id)));
    let mover = |agent: &Agent| {
        let (rate, against) = pair(agent);
        Mover {
            agent_id: agent.id.clone(),
            ratings: agent.tally.ratings,
            mean_score: agent.mean_score(),
            rate,
            against,
            ratio: rate / against,
        }
    };
    let unchanged = (1.0 + UNCHANGED).ln();
    let moved = order.iter().take_while(|(distance, _)| *distance > unchanged);
    let (rates, others): (Vec<f64>, Vec<f64>) = agents.iter().map(pair).unzip();
    Comparison {
        policy: candidates[0].label.clone(),
        against: other.map_or(START, |other| &candidates[other].label).to_owned(),
        differ: moved.count() as u64,
        mean_abs_log_ratio: order.iter().map(|(distance, _)| distance).sum::<f64>()
            / agents.len() as f64,
        rank_correlation: rank_correlation(&rates, &others),
        movers: order
            .iter()
            .take(top)
            .filter(|(distance, _)| *distance > 0.0)
            .map(|(_, agent)| mover(agent))
            .collect(),
    }
}

/// Returns Spearman's rank correlation, ties sharing their mean rank; nothing when a column is the
/// same throughout (Spearman, 1904: Pearson's correlation of the ranks).
fn rank_correlation(a: &[f64], b: &[f64]) -> Option<f64> {
    let (a, b) = (ranks(a), ranks(b));
    #[allow(clippy::cast_precision_loss, reason = "fewer agents than 2^52")]
    let mean = (a.len() as f64 + 1.0) / 2.0;
    let moment = |x: &[f64], y: &[f64]| -> f64 {
        x.iter().zip(y).map(|(x, y)| (x - mean) * (y - mean)).sum()
    };
    let scale = (moment(&a, &a) * moment(&b, &b)).sqrt();
    (scale > 0.0).then(|| moment(&a, &b) / scale)
}

#[allow(clippy::cast_precision_loss, reason = "fewer agents than 2^52")]
fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut below = 0;
    for tied in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let rank = below as f64 + (tied.len() as f64 + 1.0) / 2.0;
        tied.iter().for_each(|&index| ranks[index] = rank);
        below += tied.len();
    }
    ranks
}

#[cfg(test)]
mod tests {
    use tower_merit::bucket::Limits;

    use super::*;
    use crate::policy::Config;

    fn candidates(labels: &[&str]) -> Vec<Candidate> {
        let start = Limits::per_second(20.0, 40).unwrap();
        labels
            .iter()
            .map(|label| Candidate::new(label, &Config::default(), start).unwrap())
            .collect()
    }

    fn agent(id: &str, ends: &[f64]) -> Agent {
        let rates = ends.iter().map(|&end| Rates { end, least: end, largest: end }).collect();
        let tally = Tally { ratings: 2, score: 7.0, first_ms: 0, last_ms: 1 };
        Agent { id: id.parse().unwrap(), number: 0, tally, rates }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank_and_changes_below_one_percent_are_none() {
        let ends = [19.0, 20.1, 20.0, 30.0];
        let agents: Vec<Agent> =
            ends.iter().enumerate().map(|(n, end)| agent(&format!("a{n}"), &[*end])).collect();
        let found = distribution(&agents, 0, &candidates(&["additive"])[0]);
        assert_eq!(found.percentiles, [19.0, 19.0, 20.0, 20.1, 30.0]);
        assert_eq!((found.raised, found.lowered, found.start), (1, 1, 20.0));
        assert!((found.mean - 22.275).abs() < 1e-12 && (found.total - 89.1).abs() < 1e-12);
    }

    #[test]
    fn movers_are_those_whose_rates_differ_most_whichever_way() {
        let agents = [
            agent("same", &[20.0, 20.0]),
            agent("half", &[10.0, 20.0]),
            agent("triple", &[30.0, 10.0]),
            agent("little", &[20.1, 20.0]),
        ];
        let both = candidates(&["additive", "additive:alpha=1"]);
        let found = compare(&agents, &both, Some(1), 3);
        let movers: Vec<(&str, f64)> =
            found.movers.iter().map(|mover| (mover.agent_id.as_str(), mover.ratio)).collect();
        assert_eq!(movers, [("triple", 3.0), ("half", 0.5), ("little", 20.1 / 20.0)]);
        assert_eq!((found.differ, &*found.against), (2, "additive:alpha=1"));
        let alone = compare(&agents, &both[..1], None, 10);
        assert_eq!((&*alone.against, alone.movers.len()), (START, 3));
        assert_eq!(alone.rank_correlation, None, "the start is the same for all");
    }

    #[test]
    fn rank_correlation_is_1_for_one_order_minus_1_for_the_other_and_shares_ties() {
        let up = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(rank_correlation(&up, &[10.0, 20.0, 30.0, 99.0]), Some(1.0));
        assert_eq!(rank_correlation(&up, &[4.0, 3.0, 2.0, 1.0]), Some(-1.0));
        let tied = rank_correlation(&up, &[1.0, 1.0, 2.0, 3.0]).unwrap();
        assert!((tied - 0.948_683).abs() < 1e-6, "{tied}");
    }
}
