//! Cohorts: agents that are alike share what is learned of them.
//!
//! k-means (Lloyd 1982) from k-means++ starts (Arthur & Vassilvitskii 2007), by linfa, on features
//! brought to mean 0 and variance 1. Cohorts are numbered by their mean quality, lowest first, so that
//! a number means about the same after the next fit.

use linfa::{DatasetBase, traits::Fit};
use linfa_clustering::KMeans;
use ndarray::Array2;
use rand_xoshiro::{Xoshiro256Plus, rand_core::SeedableRng};
use serde::{Deserialize, Serialize};

/// How many numbers describe an agent.
pub const FEATURES: usize = 4;

/// The most cohorts there are.
pub const COHORTS_MAX: usize = 16;

/// The most agents that one fit looks at; of more, take a sample.
pub const AGENTS_MAX: usize = 100_000;

/// Starts, of which the best fit is kept, and Lloyd's steps in each.
const STARTS: usize = 4;
const STEPS_MAX: u64 = 100;

/// A feature whose standard deviation is below this says nothing, and is not blown up.
const DEVIATION_MIN: f64 = 1e-6;

/// Why agents could not be sorted into cohorts.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CohortError {
    /// The number of cohorts is out of range.
    #[error("cohorts must be 1 to {COHORTS_MAX}, are {cohorts}")]
    Cohorts {
        /// The refused number.
        cohorts: usize,
    },
    /// There are fewer agents than cohorts, or too many for one fit.
    #[error(
        "agents must be {cohorts} to {AGENTS_MAX} for {cohorts} cohorts, are {agents}: fit a sample"
    )]
    Agents {
        /// How many there are.
        agents: usize,
        /// How many cohorts were asked for.
        cohorts: usize,
    },
    /// A feature is not finite.
    #[error("feature {feature} of agent {agent} is not finite: leave that agent out")]
    Feature {
        /// Which agent, from 0.
        agent: usize,
        /// Which feature, from 0.
        feature: usize,
    },
    /// The clustering itself failed.
    #[error("k-means found no cohorts: {0}")]
    Clustering(String),
}

/// Where the cohorts lie; by default there is one, and everybody is in it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cohorts {
    mean: [f64; FEATURES],
    deviation: [f64; FEATURES],
    /// In units of deviations from the mean; empty for one cohort.
    centres: Vec<[f64; FEATURES]>,
}

impl Cohorts {
    /// Sorts `agents` into `cohorts`; the same agents and seed give the same cohorts.
    ///
    /// # Errors
    ///
    /// [`CohortError`] when a number is out of range or not finite.
    pub fn fit(agents: &[[f64; FEATURES]], cohorts: usize, seed: u64) -> Result<Self, CohortError> {
        if !(1..=COHORTS_MAX).contains(&cohorts) {
            return Err(CohortError::Cohorts { cohorts });
        }
        if !(cohorts..=AGENTS_MAX).contains(&agents.len()) {
            return Err(CohortError::Agents { agents: agents.len(), cohorts });
        }
        for (agent, features) in agents.iter().enumerate() {
            if let Some(feature) = features.iter().position(|number| !number.is_finite()) {
                return Err(CohortError::Feature { agent, feature });
            }
        }
        let (mean, deviation) = spread(agents);
        let mut scaled = Self { mean, deviation, centres: Vec::new() };
        let flat = agents.iter().flat_map(|features| scaled.scale(features)).collect();
        let table = Array2::from_shape_vec((agents.len(), FEATURES), flat)
            .expect("as many numbers as agents times features");
        let random = Xoshiro256Plus::seed_from_u64(seed);
        let model = KMeans::params_with_rng(cohorts, random)
            .n_runs(STARTS)
            .max_n_iterations(STEPS_MAX)
            .fit(&DatasetBase::from(table))
            .map_err(|error| CohortError::Clustering(error.to_string()))?;
        let rows = model.centroids().rows();
        scaled.centres =
            rows.into_iter().map(|row| std::array::from_fn(|feature| row[feature])).collect();
        scaled.centres.sort_by(|a, b| a[0].total_cmp(&b[0]));
        Ok(scaled)
    }

    /// Returns how many cohorts there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.centres.len().max(1)
    }

    /// Returns false: there is always one.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the cohort of an agent, below [`Cohorts::len`]: the one whose centre is nearest, the
    /// first for an agent whose features are not finite.
    #[must_use]
    pub fn of(&self, features: &[f64; FEATURES]) -> usize {
        let scaled = self.scale(features);
        let distance = |centre: &[f64; FEATURES]| -> f64 {
            centre.iter().zip(&scaled).map(|(a, b)| (a - b) * (a - b)).sum()
        };
        let nearest = self
            .centres
            .iter()
            .map(distance)
            .enumerate()
            .filter(|(_, distance)| distance.is_finite())
            .min_by(|(_, a), (_, b)| a.total_cmp(b));
        nearest.map_or(0, |(cohort, _)| cohort)
    }

    fn scale(&self, features: &[f64; FEATURES]) -> [f64; FEATURES] {
        std::array::from_fn(|at| {
            (features[at] - self.mean[at]) / self.deviation[at].max(DEVIATION_MIN)
        })
    }
}

/// Returns mean and standard deviation of each feature.
#[allow(clippy::cast_precision_loss, reason = "at most AGENTS_MAX")]
fn spread(agents: &[[f64; FEATURES]]) -> ([f64; FEATURES], [f64; FEATURES]) {
    let count = agents.len() as f64;
    let mean = std::array::from_fn(|at| agents.iter().map(|one| one[at]).sum::<f64>() / count);
    let deviation = std::array::from_fn(|at| {
        let squares = agents.iter().map(|one| (one[at] - mean[at]).powi(2));
        (squares.sum::<f64>() / count).sqrt().max(DEVIATION_MIN)
    });
    (mean, deviation)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::chance::Chance;

    /// Three groups of 100 around qualities 2, 3.5 and 4.6 with demands of their own.
    fn agents() -> Vec<[f64; FEATURES]> {
        let mut chance = Chance::new(3);
        let groups = [(4.6, 3.0), (2.0, 1.0), (3.5, 2.0)];
        let mut one = |(quality, demand): (f64, f64)| {
            let mut near = |middle: f64| middle + 0.1 * chance.normal();
            [near(quality), near(demand), 0.1, 3.0]
        };
        groups.into_iter().flat_map(|group| [group; 100]).map(&mut one).collect()
    }

    #[test]
    fn groups_that_lie_apart_are_found_and_numbered_by_quality() {
        let cohorts = Cohorts::fit(&agents(), 3, 1).unwrap();
        let found: Vec<usize> = agents().iter().map(|agent| cohorts.of(agent)).collect();
        assert!(found[..100].iter().all(|&cohort| cohort == 2), "{found:?}");
        assert!(found[100..200].iter().all(|&cohort| cohort == 0));
        assert!(found[200..].iter().all(|&cohort| cohort == 1));
    }

    #[test]
    fn the_same_seed_gives_the_same_cohorts() {
        let fit = |seed| Cohorts::fit(&agents(), 5, seed).unwrap();
        assert_eq!(fit(1), fit(1));
        assert_ne!(fit(1), fit(2), "five cohorts of three groups lie otherwise");
    }

    #[test]
    fn alike_agents_make_cohorts_all_the_same() {
        let alike = vec![[3.5, 2.0, 0.0, 1.0]; 50];
        let cohorts = Cohorts::fit(&alike, 3, 1).unwrap();
        assert!(cohorts.of(&alike[0]) < cohorts.len());
    }

    #[test]
    fn what_cannot_be_sorted_is_named() {
        let error =
            |agents: &[[f64; FEATURES]], cohorts| Cohorts::fit(agents, cohorts, 1).unwrap_err();
        assert_eq!(error(&agents(), 0), CohortError::Cohorts { cohorts: 0 });
        assert_eq!(error(&agents(), 17), CohortError::Cohorts { cohorts: 17 });
        let few = CohortError::Agents { agents: 2, cohorts: 3 };
        assert_eq!(error(&agents()[..2], 3), few);
        let mut broken = agents();
        broken[7][1] = f64::NAN;
        assert_eq!(error(&broken, 3), CohortError::Feature { agent: 7, feature: 1 });
    }

    #[test]
    fn an_agent_that_is_not_finite_is_in_the_first_cohort() {
        let cohorts = Cohorts::fit(&agents(), 3, 1).unwrap();
        assert_eq!(cohorts.of(&[f64::NAN; FEATURES]), 0);
        assert_eq!(Cohorts::default().of(&[4.0; FEATURES]), 0);
        assert_eq!(Cohorts::default().len(), 1);
    }
}
