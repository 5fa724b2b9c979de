//! How soon a policy reports that an agent fell, and how often it reports what was not.
//!
//! 1. Looked at are agents whose quality falls by about 1.5 at half-time and who had been rated often
//!    enough to be known. The delay is the number of the agent's ratings from half-time to the first
//!    report of a fall.
//! 2. Who is served less is rated less: an agent that was not found by the end of the run was found
//!    later than its last rating, not never. The median is Kaplan and Meier's ("Nonparametric
//!    Estimation from Incomplete Observations", 1958), which counts such agents for what they tell.
//! 3. A report is false before half-time, and after it of an agent that did not change. That quality
//!    wanders is no change.

use super::{
    World,
    actors::Found,
    stream::{Purpose, Stream},
    world::count,
};

/// Falls that count, in points of score.
const FALL: std::ops::RangeInclusive<f64> = 1.25..=1.75;

/// Ratings that an agent had before, at least.
const KNOWN: u32 = 30;

/// Resamples of the bootstrap, and what they are drawn from.
const RESAMPLES: usize = 1000;
const RESAMPLE_SEED: u64 = 1;

/// Ratings from a fall until it was reported.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delay {
    /// Ratings since half-time: up to the report, or up to the end of the run.
    pub ratings: f64,
    /// Whether it was reported at all.
    pub found: bool,
}

/// What the reports of one run are worth.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Detection {
    /// One for each agent that fell.
    pub delays: Vec<Delay>,
    /// Reports of agents that had not changed.
    pub false_alarms: f64,
    /// Ratings of agents that had not changed.
    pub unchanged: f64,
}

impl Detection {
    /// Returns what `found` is worth, when the agents had `at_half` ratings by half-time and `at_end`
    /// by the end.
    #[must_use]
    pub fn of(world: &World, found: &[Found], at_half: &[u32], at_end: &[u32]) -> Self {
        let half = world.half_time();
        let (before, after) = (world.quality(half - 1), world.quality(half));
        let mut detection = Self::default();
        for agent in 0..world.agents() {
            let (known, all) = (at_half[agent], at_end[agent]);
            let changes = world.changes(agent);
            detection.unchanged += f64::from(if changes { known } else { all });
            let fell = changes && FALL.contains(&(before[agent] - after[agent]));
            if !fell || known < KNOWN {
                continue;
            }
            let report = found
                .iter()
                .find(|found| found.agent == agent && found.fell && found.tick >= half)
                .map(|found| found.ratings - known);
            let ratings = f64::from(report.unwrap_or(all - known));
            detection.delays.push(Delay { ratings, found: report.is_some() });
        }
        let wrong = found.iter().filter(|found| found.tick < half || !world.changes(found.agent));
        detection.false_alarms = count(wrong.count());
        detection
    }
}

/// Returns the median delay over all runs, in ratings, and the ends of its 95 % interval: percentiles
/// of medians of runs drawn with replacement (Efron, "Bootstrap Methods", 1979). `None` stands for
/// nobody fell, or fewer than half were found.
pub(super) fn median_delay(runs: &[&Detection]) -> Option<[Option<f64>; 3]> {
    let all = median(runs.iter().copied())?;
    let mut stream = Stream::new(RESAMPLE_SEED, Purpose::Policy);
    let most = u32::try_from(runs.len()).expect("fewer than SEEDS_MAX");
    let mut medians: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let drawn = (0..runs.len()).map(|_| runs[stream.below(most) as usize]);
            median(drawn).unwrap_or(f64::INFINITY)
        })
        .collect();
    medians.sort_by(f64::total_cmp);
    let end = |at: usize| Some(medians[at]).filter(|median| median.is_finite() && runs.len() > 1);
    Some([Some(all), end(RESAMPLES / 40), end(RESAMPLES - 1 - RESAMPLES / 40)])
}

/// Returns the first delay by which half are found.
fn median<'r>(runs: impl Iterator<Item = &'r Detection>) -> Option<f64> {
    let mut delays: Vec<Delay> = runs.flat_map(|run| run.delays.iter().copied()).collect();
    // At the same rating, who was found comes before who was no longer seen.
    delays.sort_by(|a, b| a.ratings.total_cmp(&b.ratings).then(b.found.cmp(&a.found)));
    let mut unfound = 1.0;
    for (at, delay) in delays.iter().enumerate().filter(|(_, delay)| delay.found) {
        let left = count(delays.len() - at);
        unfound *= 1.0 - 1.0 / left;
        if unfound <= 0.5 {
            return Some(delay.ratings);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(delays: &[(f64, bool)]) -> Detection {
        let delays = delays.iter().map(|&(ratings, found)| Delay { ratings, found }).collect();
        Detection { delays, ..Detection::default() }
    }

    #[test]
    fn whoever_was_not_found_yet_counts_for_as_long_as_it_was_seen() {
        let of = |delays: &[(f64, bool)]| median([run(delays)].iter());
        assert_eq!(of(&[(5.0, true), (1.0, true), (9.0, true)]), Some(5.0));
        // Kaplan & Meier by hand: 3/4 after 2, then one is out of sight, 3/8 after 6.
        let seen = [(2.0, true), (4.0, false), (6.0, true), (8.0, true)];
        assert_eq!(of(&seen), Some(6.0));
        assert_eq!(of(&[(2.0, true), (4.0, false), (6.0, false)]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn the_interval_is_of_runs_and_holds_the_median() {
        let runs: Vec<Detection> =
            (0..20).map(|n| run(&[(f64::from(n), true), (f64::from(n + 3), true)])).collect();
        let [all, low, high] = median_delay(&runs.iter().collect::<Vec<_>>()).unwrap();
        assert!(low < all && all < high, "{low:?} {all:?} {high:?}");
        assert_eq!(median_delay(&[&runs[3]]).unwrap()[1..], [None, None]);
    }

    #[test]
    fn reports_are_right_after_a_fall_and_false_otherwise() {
        let world = World::new("drift".parse().unwrap(), 1, 200, 200);
        let (before, after) = (world.quality(99), world.quality(100));
        let fell = |agent: &usize| (1.4..1.6).contains(&(before[*agent] - after[*agent]));
        let who: Vec<usize> = (0..200).filter(fell).collect();
        let (one, other) = (who[0], who[1]);
        let at = |agent, tick, ratings, fell| Found { agent, tick, ratings, fell };
        let found = [
            at(one, 50, 20, true),
            at(one, 120, 45, false),
            at(one, 130, 52, true),
            at(one, 150, 70, true),
        ];
        let mut known = vec![0; 200];
        (known[one], known[other]) = (40, 40);
        let mut all = known.clone();
        (all[one], all[other]) = (90, 60);
        let detection = Detection::of(&world, &found, &known, &all);
        assert_eq!(detection.false_alarms, 1.0);
        assert_eq!(detection.unchanged, 80.0);
        let mut delays = vec![
            (one, Delay { ratings: 12.0, found: true }),
            (other, Delay { ratings: 20.0, found: false }),
        ];
        delays.sort_by_key(|(agent, _)| *agent);
        let delays: Vec<Delay> = delays.into_iter().map(|(_, delay)| delay).collect();
        assert_eq!(detection.delays, delays);
    }
}
