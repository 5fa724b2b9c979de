//! Policies over regimes and seeds: each in the same worlds as the reference, side by side.

use std::{
    fmt,
    str::FromStr,
    sync::atomic::{AtomicUsize, Ordering},
};

use serde::Serialize;

use super::{
    Detection, Outcome, PolicyName, Recovery, Regime, World,
    bars::ends,
    detection::median_delay,
    interval::Interval,
    run::{Watched, run},
    world::count,
};

/// The most seeds of one comparison.
const SEEDS_MAX: u64 = 10_000;

/// Which seeds: the first and the last, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seeds {
    first: u64,
    last: u64,
}

impl Seeds {
    /// Returns the seeds, in order.
    pub fn iter(self) -> impl Iterator<Item = u64> {
        self.first..=self.last
    }

    /// Returns how many there are: 1 to 10,000.
    #[must_use]
    pub fn len(self) -> usize {
        usize::try_from(self.last - self.first + 1).expect("parsed: at most SEEDS_MAX")
    }

    /// Returns false: there is at least one.
    #[must_use]
    pub fn is_empty(self) -> bool {
        false
    }
}

impl fmt::Display for Seeds {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}..{}", self.first, self.last)
    }
}

impl FromStr for Seeds {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let number = |text: &str| text.parse::<u64>().ok();
        let seeds = match text.split_once("..") {
            None => number(text).map(|last| (1, last)),
            Some((first, last)) => number(first).zip(number(last.trim_start_matches('='))),
        };
        let fault = || {
            format!(
                "seeds are how many (10), or the first and the last (1..10), at most {SEEDS_MAX} \
                 of them"
            )
        };
        let (first, last) = seeds.ok_or_else(fault)?;
        if last < first || last - first >= SEEDS_MAX {
            return Err(fault());
        }
        Ok(Self { first, last })
    }
}

/// What is to be compared.
#[derive(Clone, Debug)]
pub struct Request {
    /// In which regimes.
    pub regimes: Vec<Regime>,
    /// Which policies.
    pub policies: Vec<PolicyName>,
    /// In the worlds of which seeds.
    pub seeds: Seeds,
    /// How many agents a world has, at least 10.
    pub agents: usize,
    /// How many ticks a run has, at least 2.
    pub ticks: usize,
    /// How many worlds are simulated at once, at least 1.
    pub jobs: usize,
    /// Whom all others are compared with, pair by pair.
    pub versus: Option<PolicyName>,
    /// In the worlds of which seeds `additive:best` chooses its α; those of the table are others.
    pub tuning: Seeds,
    /// Keep what figures are drawn from.
    pub figures: bool,
}

impl Request {
    /// Returns how many runs it takes.
    #[must_use]
    pub fn runs(&self) -> usize {
        let chosen = self.policies.contains(&PolicyName::AdditiveBest);
        let tuned = if chosen { self.tuning.len() * (ALPHAS.len() + 1) } else { 0 };
        self.regimes.len() * (self.seeds.len() * (self.policies.len() + 1) + tuned)
    }
}

/// The α that `additive:best` chooses from.
const ALPHAS: [f64; 12] = [0.1, 0.3, 1.0, 2.0, 3.0, 5.0, 7.0, 10.0, 14.0, 20.0, 30.0, 50.0];

/// What came of it.
#[derive(Clone, Debug)]
pub struct Comparison {
    /// One for each regime and policy, in the order of the request.
    pub rows: Vec<Row>,
    /// One for each regime, where asked for.
    pub figures: Vec<Figure>,
}

/// One policy in one regime, over all seeds.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The regime's name.
    pub regime: &'static str,
    /// The policy's name.
    pub policy: String,
    /// The α that `additive:best` chose for this regime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpha: Option<f64>,
    /// Utility in per cent of the reference's in the same world, mean over seeds.
    pub percent_of_reference: f64,
    /// The lower end of its 95 % interval; none for one seed.
    pub low: Option<f64>,
    /// The upper end of its 95 % interval; none for one seed.
    pub high: Option<f64>,
    /// The same of each seed, in order.
    pub percent_by_seed: Vec<f64>,
    /// How many points better than the policy compared with: the paired difference, and the ends of
    /// its 95 % interval.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<[Option<f64>; 3]>,
    /// Requests admitted for which there was no capacity, per 100 served.
    pub shed_percent: f64,
    /// Mean |Δ ln rate| in a tick, times 100.
    pub step_percent: f64,
    /// Ratings per agent until the share of the reference is back at 95 % of what it was before
    /// half-time: mean over the seeds that came back.
    pub recovery_ratings_per_agent: Option<f64>,
    /// The same in ticks.
    pub recovery_ticks: Option<f64>,
    /// Of each seed that some agents change in: ratings per agent until it came back, or until the end
    /// of the run where it did not.
    #[serde(skip)]
    pub recovery_by_seed: Vec<f64>,
    /// Of each seed: admitted and not served, per 100 served.
    #[serde(skip)]
    pub shed_by_seed: Vec<f64>,
    /// Of each seed: mean |Δ ln rate| in a tick, times 100.
    #[serde(skip)]
    pub step_by_seed: Vec<f64>,
    /// How many seeds came back.
    pub recovered_seeds: usize,
    /// Ratings until half of the agents that fell by about 1.5 were reported, and the ends of its
    /// 95 % interval; none of policies that report nothing and where nobody falls.
    pub drift_ratings: Option<[Option<f64>; 3]>,
    /// False reports in 10,000 ratings, and the ends of its 95 % interval.
    pub false_alarms: Option<[Option<f64>; 3]>,
    /// Requests served per 100 of capacity.
    pub used_percent: f64,
    /// Jain's index of fairness, 0 to 1.
    pub fairness: f64,
    /// Agents and times (100 ticks) that got next to nothing, in per cent.
    pub starved_percent: f64,
}

/// What figures of one regime are drawn from.
#[derive(Clone, Debug)]
pub struct Figure {
    /// The regime.
    pub regime: Regime,
    /// How many seeds the curves are means of.
    pub seeds: usize,
    /// The tick at which agents change, when any do.
    pub change: Option<usize>,
    /// The reference, then each policy.
    pub lines: Vec<Line>,
    /// The true quality of the agent that is watched, tick after tick; empty when none is.
    pub quality: Vec<f64>,
}

/// One policy in a figure.
#[derive(Clone, Debug)]
pub struct Line {
    /// Which policy.
    pub policy: PolicyName,
    /// Utility by tick, mean over seeds.
    pub utility: Vec<f64>,
    /// Rates at the end of all agents of all seeds.
    pub rates: Vec<f64>,
    /// The agent that is watched in the first seed's world.
    pub watched: Option<Watched>,
}

/// What remains of one run.
struct Run {
    share: f64,
    recovery: Option<Recovery>,
    /// Ratings after half-time.
    ratings: f64,
    outcome: Outcome,
}

/// Runs all policies in all worlds and calls `progress` after each run. The same request gives the
/// same comparison, whatever `jobs` is.
#[must_use]
pub fn compare(request: &Request, progress: &(dyn Fn() + Sync)) -> Comparison {
    let mut alphas = vec![None; request.regimes.len()];
    if request.policies.contains(&PolicyName::AdditiveBest) {
        let tuning = Request {
            policies: ALPHAS.map(PolicyName::Additive).to_vec(),
            seeds: request.tuning,
            versus: None,
            figures: false,
            ..request.clone()
        };
        let regimes = all_worlds(&tuning, &vec![None; request.regimes.len()], progress);
        for (alpha, seeds) in alphas.iter_mut().zip(regimes) {
            *alpha = Some(best_alpha(&seeds));
        }
    }
    let regimes = all_worlds(request, &alphas, progress);
    let mut comparison = Comparison { rows: Vec::new(), figures: Vec::new() };
    for ((regime, seeds), alpha) in request.regimes.iter().zip(regimes).zip(alphas) {
        comparison.rows.extend(rows(request, *regime, alpha, &seeds));
        if request.figures {
            comparison.figures.push(figure(request, *regime, seeds));
        }
    }
    comparison
}

/// Returns the α of [`ALPHAS`] whose share of the reference is largest over `seeds`.
fn best_alpha(seeds: &[Seed]) -> f64 {
    let share = |n: usize| seeds.iter().map(|seed| seed.runs[n].share).sum::<f64>();
    let best = (0..ALPHAS.len()).max_by(|a, b| share(*a).total_cmp(&share(*b)));
    ALPHAS[best.expect("there are some")]
}

/// Returns the worlds of each regime, in the order of the seeds.
fn all_worlds(
    request: &Request,
    alphas: &[Option<f64>],
    progress: &(dyn Fn() + Sync),
) -> Vec<Vec<Seed>> {
    let worlds: Vec<(Regime, Option<f64>, u64)> = request
        .regimes
        .iter()
        .zip(alphas)
        .flat_map(|(regime, alpha)| request.seeds.iter().map(|seed| (*regime, *alpha, seed)))
        .collect();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(&(regime, alpha, seed)) = worlds.get(at) else { return done };
            done.push((at, one_world(request, regime, alpha, seed, progress)));
        }
    };
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> =
            (0..request.jobs.clamp(1, worlds.len().max(1))).map(|_| scope.spawn(work)).collect();
        let results = workers.into_iter().map(std::thread::ScopedJoinHandle::join);
        let results = results.map(|result| result.expect("a panic of ours ends the process"));
        results.flatten().collect::<Vec<_>>()
    });
    done.sort_by_key(|(at, _)| *at);
    let mut done = done.into_iter().map(|(_, runs)| runs);
    let regimes = request.regimes.iter();
    regimes.map(|_| done.by_ref().take(request.seeds.len()).collect()).collect()
}

/// All policies in one world.
struct Seed {
    reference: Run,
    runs: Vec<Run>,
    quality: Vec<f64>,
}

fn one_world(
    request: &Request,
    regime: Regime,
    alpha: Option<f64>,
    seed: u64,
    progress: &(dyn Fn() + Sync),
) -> Seed {
    let world = World::new(regime, seed, request.agents, request.ticks);
    let first = request.seeds.iter().next() == Some(seed);
    let watch = if request.figures && first { worth_watching(&world) } else { None };
    let reference = run(PolicyName::Reference, &world, watch);
    progress();
    let total = reference.total();
    let runs = request.policies.iter().map(|policy| {
        let policy = match (policy, alpha) {
            (PolicyName::AdditiveBest, Some(alpha)) => PolicyName::Additive(alpha),
            (policy, _) => *policy,
        };
        let mut outcome = run(policy, &world, watch);
        let recovery = Recovery::of(&world, &outcome.utility, &reference.utility, &outcome.ratings);
        let share = 100.0 * outcome.total() / total;
        let ratings = outcome.ratings[world.half_time()..].iter().sum();
        outcome.ratings = Vec::new();
        if !request.figures {
            (outcome.utility, outcome.rates) = (Vec::new(), Vec::new());
        }
        progress();
        Run { share, recovery, ratings, outcome }
    });
    let runs = runs.collect();
    let quality = watch.map_or_else(Vec::new, |agent| {
        (0..world.ticks()).map(|tick| world.quality(tick)[agent]).collect()
    });
    Seed {
        reference: Run { share: 100.0, recovery: None, ratings: 0.0, outcome: reference },
        runs,
        quality,
    }
}

/// Demand of an agent worth watching: enough to be rated, within the largest rate.
const WATCHED_DEMAND: std::ops::Range<f64> = 8.0..25.0;

/// Returns the agent whose quality falls most at half-time, of those who ask for neither little nor
/// more than they can get.
fn worth_watching(world: &World) -> Option<usize> {
    let half = world.half_time();
    let (before, after) = (world.quality(half - 1), world.quality(half));
    (0..world.agents())
        .filter(|agent| world.changes(*agent))
        .filter(|agent| WATCHED_DEMAND.contains(&world.mean_demand(half)[*agent]))
        .max_by(|a, b| (before[*a] - after[*a]).total_cmp(&(before[*b] - after[*b])))
}

fn rows(request: &Request, regime: Regime, alpha: Option<f64>, seeds: &[Seed]) -> Vec<Row> {
    let shares = |n: usize| -> Vec<f64> { seeds.iter().map(|seed| seed.runs[n].share).collect() };
    let versus = request.versus.and_then(|versus| {
        request.policies.iter().position(|policy| *policy == versus).map(shares)
    });
    let policies = request.policies.iter().enumerate();
    policies
        .map(|(n, policy)| {
            let by_seed = shares(n);
            let share = Interval::of(&by_seed);
            let by_seed_of = |of: &dyn Fn(&Outcome) -> f64| -> Vec<f64> {
                seeds.iter().map(|seed| of(&seed.runs[n].outcome)).collect()
            };
            let mean = |of: &dyn Fn(&Outcome) -> f64| {
                by_seed_of(of).iter().sum::<f64>() / count(seeds.len())
            };
            let came_back = |seed: &Seed| {
                let run = &seed.runs[n];
                run.recovery.map_or(run.ratings, |recovery| recovery.ratings)
            };
            let changing = if regime.changed > 0.0 { seeds } else { &[] };
            let back: Vec<Recovery> =
                seeds.iter().filter_map(|seed| seed.runs[n].recovery).collect();
            let over_back = |of: &dyn Fn(&Recovery) -> f64| {
                let sum: f64 = back.iter().map(of).sum();
                (!back.is_empty()).then(|| sum / count(back.len()))
            };
            let difference = versus.as_ref().map(|versus| {
                let pairs: Vec<f64> =
                    by_seed.iter().zip(versus).map(|(ours, theirs)| ours - theirs).collect();
                ends(&pairs)
            });
            let detections: Vec<&Detection> =
                seeds.iter().filter_map(|seed| seed.runs[n].outcome.detection.as_ref()).collect();
            let false_alarms: Vec<f64> = detections
                .iter()
                .map(|run| 1e4 * run.false_alarms / run.unchanged.max(1.0))
                .collect();
            let agents = count(request.agents);
            Row {
                regime: regime.name,
                policy: policy.to_string(),
                alpha: alpha.filter(|_| *policy == PolicyName::AdditiveBest),
                percent_of_reference: share.mean,
                low: share.half_width.map(|_| share.low()),
                high: share.half_width.map(|_| share.high()),
                percent_by_seed: by_seed,
                difference,
                shed_percent: 100.0 * mean(&|outcome| outcome.shed),
                step_percent: 100.0 * mean(&|outcome| outcome.step),
                recovery_ratings_per_agent: over_back(&|recovery| recovery.ratings / agents),
                recovery_ticks: over_back(&|recovery| count(recovery.ticks)),
                recovery_by_seed: changing
                    .iter()
                    .map(|seed| came_back(seed) / count(request.agents))
                    .collect(),
                shed_by_seed: by_seed_of(&|outcome| 100.0 * outcome.shed),
                step_by_seed: by_seed_of(&|outcome| 100.0 * outcome.step),
                recovered_seeds: back.len(),
                drift_ratings: median_delay(&detections),
                false_alarms: (!detections.is_empty()).then(|| ends(&false_alarms)),
                used_percent: 100.0 * mean(&|outcome| outcome.used),
                fairness: mean(&|outcome| outcome.fairness),
                starved_percent: 100.0 * mean(&|outcome| outcome.starved),
            }
        })
        .collect()
}

fn figure(request: &Request, regime: Regime, seeds: Vec<Seed>) -> Figure {
    let n = seeds.len();
    let policies = [PolicyName::Reference].into_iter().chain(request.policies.iter().copied());
    let mut lines: Vec<Line> = policies
        .map(|policy| Line {
            policy,
            utility: vec![0.0; request.ticks],
            rates: Vec::new(),
            watched: None,
        })
        .collect();
    let mut quality = Vec::new();
    for seed in seeds {
        if quality.is_empty() {
            quality = seed.quality;
        }
        let runs = [seed.reference].into_iter().chain(seed.runs);
        for (line, run) in lines.iter_mut().zip(runs) {
            for (sum, utility) in line.utility.iter_mut().zip(run.outcome.utility) {
                *sum += utility / count(n);
            }
            line.rates.extend(run.outcome.rates);
            line.watched = line.watched.take().or(run.outcome.watched);
        }
    }
    let change = (regime.changed > 0.0).then_some(request.ticks / 2);
    Figure { regime, seeds: n, change, lines, quality }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(jobs: usize) -> Request {
        Request {
            regimes: vec!["base".parse().unwrap(), "attack".parse().unwrap()],
            policies: vec![PolicyName::Static, PolicyName::PriceKalman, PolicyName::Reference],
            seeds: "3..5".parse().unwrap(),
            agents: 40,
            ticks: 300,
            jobs,
            versus: Some(PolicyName::Static),
            tuning: "7..7".parse().unwrap(),
            figures: true,
        }
    }

    #[test]
    fn seeds_are_how_many_or_the_first_and_the_last() {
        let seeds = |text: &str| text.parse::<Seeds>();
        assert_eq!(seeds("3").unwrap().iter().collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(seeds("7..9").unwrap().iter().collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(seeds("7..=9").unwrap().len(), 3);
        for wrong in ["0", "9..7", "1..99999", "x", "1..", "-1", ""] {
            assert!(seeds(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn threads_change_nothing() {
        let shown = |jobs| serde_json::to_string(&compare(&request(jobs), &|| {}).rows).unwrap();
        assert_eq!(shown(1), shown(3));
    }

    #[test]
    fn the_reference_is_a_hundred_and_differences_are_paired() {
        let comparison = compare(&request(2), &|| {});
        assert_eq!(comparison.rows.len(), 6);
        for rows in comparison.rows.chunks(3) {
            assert_eq!(rows[2].percent_by_seed, [100.0; 3]);
            assert_eq!(rows[0].difference, Some([Some(0.0); 3]));
            let [mean, low, high] = rows[1].difference.unwrap().map(Option::unwrap);
            let gain = rows[1].percent_of_reference - rows[0].percent_of_reference;
            assert!((mean - gain).abs() < 1e-9 && low < mean && mean < high);
        }
    }

    #[test]
    fn the_best_alpha_is_chosen_on_other_seeds_and_told() {
        let policies = vec![PolicyName::Additive(0.1), PolicyName::AdditiveBest];
        let request = Request { policies, tuning: "8..9".parse().unwrap(), ..request(2) };
        let runs = AtomicUsize::new(0);
        let comparison = compare(&request, &|| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(runs.load(Ordering::Relaxed), request.runs());
        for rows in comparison.rows.chunks(2) {
            let alpha = rows[1].alpha.unwrap();
            assert!(rows[0].alpha.is_none() && ALPHAS.contains(&alpha), "{alpha}");
            // It is what `additive` at that α is worth, on the seeds of the table.
            let one: Request = Request {
                policies: vec![PolicyName::Additive(alpha)],
                regimes: vec![rows[1].regime.parse().unwrap()],
                versus: None,
                ..request.clone()
            };
            let same = &compare(&one, &|| {}).rows[0];
            assert_eq!(same.percent_by_seed, rows[1].percent_by_seed);
            assert!(rows[1].percent_of_reference > rows[0].percent_of_reference);
        }
    }

    #[test]
    fn every_run_is_progress() {
        let runs = AtomicUsize::new(0);
        let _ = compare(&request(2), &|| {
            runs.fetch_add(1, Ordering::Relaxed);
        });
        // 2 regimes, 3 seeds, 3 policies and the reference they are measured against.
        assert_eq!(runs.load(Ordering::Relaxed), 24);
    }

    #[test]
    fn figures_hold_the_reference_first_and_an_agent_that_fell() {
        let figures = compare(&request(2), &|| {}).figures;
        let figure = &figures[0];
        assert_eq!(figure.lines[0].policy, PolicyName::Reference);
        assert_eq!(figure.lines[2].rates.len(), 3 * 40);
        assert!(figure.quality[149] > figure.quality[150] + 0.5);
        assert_eq!(figure.lines[2].watched.as_ref().unwrap().rate.len(), 300);
    }
}
