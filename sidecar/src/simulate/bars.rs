//! What a good policy must reach, and whether it does: the criteria, their bars, the numbers with their
//! intervals, and a verdict on each.
//!
//! A criterion is met when the whole 95 % interval lies on the right side of the bar, met on average
//! when only the mean does, and missed otherwise. What has no bar is reported.

use std::fmt;

use serde::Serialize;

use super::{
    PolicyName, REGIMES, Regime,
    compare::{Comparison, Request, Row},
    interval::Interval,
};

/// The regimes that the criteria are about, in the order of the worlds.
const REGIMES_JUDGED: [&str; 8] =
    ["base", "slack", "attack", "sybil", "sybil-require", "farm", "sparse", "drift"];

/// The regimes in which a policy has to be quiet: in the others raters lie in crowds.
const REGIMES_HONEST: [&str; 5] = ["base", "slack", "attack", "sparse", "drift"];

/// What the criteria compare with, and with `price`, which is what a learned policy stands on.
const RIVAL: PolicyName = PolicyName::AdditiveBest;

/// Policies judged when nobody names any.
pub const JUDGED: [PolicyName; 3] =
    [PolicyName::Price, PolicyName::PricePageHinkley, PolicyName::Bandit];

/// On which side of a number good lies.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case", tag = "side", content = "bar")]
pub enum Bar {
    /// At least this.
    AtLeast(f64),
    /// At most this.
    AtMost(f64),
    /// No bar: the number is told.
    None,
}

impl fmt::Display for Bar {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtLeast(bar) => write!(out, "≥ {bar}"),
            Self::AtMost(bar) => write!(out, "≤ {bar}"),
            Self::None => out.write_str("report"),
        }
    }
}

/// Whether a bar is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// The whole interval is on the right side.
    Met,
    /// The mean is, and not the whole interval.
    MetOnAverage,
    /// The mean is not, or there is no number.
    Missed,
    /// There is no bar.
    Reported,
}

impl fmt::Display for Verdict {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Met => "yes",
            Self::MetOnAverage => "on average",
            Self::Missed => "**no**",
            Self::Reported => "–",
        })
    }
}

/// One criterion and what a policy did about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Criterion {
    /// The policy's name.
    pub policy: String,
    /// What is asked, and in which unit.
    pub what: String,
    /// What is good enough.
    pub bar: Bar,
    /// The number; none where nothing could be measured.
    pub number: Option<f64>,
    /// The ends of its 95 % interval.
    pub interval: Option<(f64, f64)>,
    /// Whether it is good enough.
    pub verdict: Verdict,
}

impl Criterion {
    fn new(policy: &str, what: String, bar: Bar, number: Option<[Option<f64>; 3]>) -> Self {
        let [number, low, high] = number.unwrap_or([None; 3]);
        let interval = low.zip(high);
        let verdict = verdict(bar, number, interval);
        Self { policy: policy.to_owned(), what, bar, number, interval, verdict }
    }
}

/// Returns whether `bar` is reached by a `number` that may lie anywhere in `interval`.
fn verdict(bar: Bar, number: Option<f64>, interval: Option<(f64, f64)>) -> Verdict {
    let good = |number: f64| match bar {
        Bar::AtLeast(bar) => number >= bar,
        Bar::AtMost(bar) => number <= bar,
        Bar::None => false,
    };
    match (bar, number, interval) {
        (Bar::None, ..) => Verdict::Reported,
        (_, Some(_), Some((low, high))) if good(low) && good(high) => Verdict::Met,
        (_, Some(number), _) if good(number) => Verdict::MetOnAverage,
        _ => Verdict::Missed,
    }
}

/// Returns the comparison that the criteria need of `policies`, in the worlds of `request`.
#[must_use]
pub(super) fn request(request: &Request) -> Request {
    let judged = REGIMES.iter().filter(|regime| REGIMES_JUDGED.contains(&regime.name));
    let mut policies = vec![RIVAL, PolicyName::Price];
    policies.extend(request.policies.iter().filter(|policy| **policy != PolicyName::Price));
    policies.dedup();
    let regimes: Vec<Regime> = judged.copied().collect();
    Request { regimes, policies, versus: None, figures: false, ..request.clone() }
}

/// Returns every criterion for every policy of `request`, from a comparison that [`request`] asked for.
#[must_use]
pub(super) fn judge(request: &Request, comparison: &Comparison) -> Vec<Criterion> {
    let policies = request.policies.iter().filter(|policy| **policy != RIVAL);
    policies.flat_map(|policy| Judge::new(comparison, *policy).all()).collect()
}

/// The rows of one policy.
struct Judge<'c> {
    comparison: &'c Comparison,
    policy: PolicyName,
    name: String,
}

impl<'c> Judge<'c> {
    fn new(comparison: &'c Comparison, policy: PolicyName) -> Self {
        Self { comparison, policy, name: policy.to_string() }
    }

    fn row(&self, regime: &str, policy: PolicyName) -> Option<&'c Row> {
        let name = policy.to_string();
        self.comparison.rows.iter().find(|row| row.regime == regime && row.policy == name)
    }

    fn all(&self) -> Vec<Criterion> {
        let mut all = Vec::new();
        let mut add = |what: &str, bar, number| {
            all.push(Criterion::new(&self.name, what.to_owned(), bar, number));
        };
        let of = |regime: &str, values: fn(&Row) -> &Vec<f64>| {
            self.row(regime, self.policy).map(|row| ends(values(row)))
        };
        let share = |regime: &str| of(regime, |row| &row.percent_by_seed);
        add("base, % of the reference", Bar::AtLeast(95.5), share("base"));
        add("slack, % of the reference", Bar::AtLeast(97.0), share("slack"));
        add("sparse, % of the reference", Bar::AtLeast(88.0), share("sparse"));
        for (regime, bar) in [("base", 2.0), ("attack", 15.0), ("slack", -1.0)] {
            let alpha = self.row(regime, RIVAL).and_then(|row| row.alpha);
            let alpha = alpha.map_or_else(String::new, |alpha| format!(" (α = {alpha})"));
            let what = format!("{regime}, points above `additive` retuned for it{alpha}");
            add(&what, Bar::AtLeast(bar), self.above(regime, RIVAL));
        }
        add("5 % bombers and 5 % colluders, %", Bar::AtLeast(92.0), share("attack"));
        add("points lost to them", Bar::AtMost(4.0), self.lost("base", "attack"));
        add("500 sybils, receipts off, %", Bar::None, share("sybil"));
        add("500 sybils, receipts required, %", Bar::AtLeast(92.0), share("sybil-require"));
        add("agents farming receipts, %", Bar::None, share("farm"));
        let reports = self.row("drift", self.policy);
        let quiet = self.row("base", self.policy);
        if let Some(quiet) = quiet.and_then(|row| row.false_alarms) {
            // A detector that finds fewer than half has no median: it misses the bar, and does not escape it.
            let delay = reports.and_then(|row| row.drift_ratings);
            add("ratings to find a fall of 1.5, median", Bar::AtMost(25.0), delay);
            add("false finds in 10,000 ratings", Bar::AtMost(1.0), Some(quiet));
        }
        for (regime, bar) in
            [("base", Bar::AtMost(45.0)), ("attack", Bar::AtMost(45.0)), ("drift", Bar::None)]
        {
            let what = format!("{regime}, ratings per agent until 95 % of the share before");
            add(&what, bar, of(regime, |row| &row.recovery_by_seed));
        }
        let (shed, step) =
            (self.worst(|row| &row.shed_by_seed), self.worst(|row| &row.step_by_seed));
        add("shed, % of what was served, worst regime", Bar::AtMost(1.0), shed);
        add("mean step of log r, % a tick, worst regime", Bar::AtMost(2.0), step);
        if self.policy != PolicyName::Price {
            let above = |regimes: &[&str]| -> Vec<_> {
                regimes.iter().filter_map(|regime| self.above(regime, PolicyName::Price)).collect()
            };
            let by_mean = |a: &&[Option<f64>; 3], b: &&[Option<f64>; 3]| a[0].partial_cmp(&b[0]);
            let order = |a: &_, b: &_| by_mean(a, b).unwrap_or(std::cmp::Ordering::Equal);
            // Anywhere (POLICY section 7): with sybils and farmed receipts too.
            let (anywhere, open) = (above(&REGIMES_JUDGED), above(&["sparse", "drift"]));
            let worst = anywhere.iter().min_by(order).copied();
            add("points above `price`, worst regime", Bar::AtLeast(-1.0), worst);
            let room = open.iter().max_by(order).copied();
            add("points above `price`, sparse or drift", Bar::AtLeast(2.0), room);
        }
        all
    }

    /// Returns how many points better it is than `rival`, paired by world.
    fn above(&self, regime: &str, rival: PolicyName) -> Option<[Option<f64>; 3]> {
        let (ours, theirs) = (self.row(regime, self.policy)?, self.row(regime, rival)?);
        let pairs = ours.percent_by_seed.iter().zip(&theirs.percent_by_seed);
        Some(ends(&pairs.map(|(ours, theirs)| ours - theirs).collect::<Vec<_>>()))
    }

    /// Returns how many points less it is worth in `regime` than in `clean`, paired by seed.
    fn lost(&self, clean: &str, regime: &str) -> Option<[Option<f64>; 3]> {
        let (clean, regime) = (self.row(clean, self.policy)?, self.row(regime, self.policy)?);
        let pairs = clean.percent_by_seed.iter().zip(&regime.percent_by_seed);
        Some(ends(&pairs.map(|(clean, regime)| clean - regime).collect::<Vec<_>>()))
    }

    /// Returns the largest mean over the regimes, with its interval.
    fn worst(&self, values: fn(&Row) -> &Vec<f64>) -> Option<[Option<f64>; 3]> {
        let rows = REGIMES_HONEST.iter().filter_map(|regime| self.row(regime, self.policy));
        let all = rows.map(|row| ends(values(row)));
        all.max_by(|a, b| a[0].partial_cmp(&b[0]).unwrap_or(std::cmp::Ordering::Equal))
    }
}

/// Returns the mean of `values`, and the ends of its interval when there is one.
pub(super) fn ends(values: &[f64]) -> [Option<f64>; 3] {
    if values.is_empty() {
        return [None; 3];
    }
    let interval = Interval::of(values);
    let end = |end: f64| interval.half_width.map(|_| end);
    [Some(interval.mean), end(interval.low()), end(interval.high())]
}

/// Returns `number` to two places, and nothing below 0 as 0.
fn shown(number: f64) -> String {
    let text = format!("{number:.2}");
    if text == "-0.00" { "0.00".to_owned() } else { text }
}

/// Returns the criteria as Markdown, a table for each policy.
pub(super) fn table(request: &Request, criteria: &[Criterion]) -> String {
    let mut text = format!(
        "{} agents, {} ticks, seeds {}; α of `{RIVAL}` chosen on seeds {}; 95 % intervals over \
         seeds\n",
        request.agents, request.ticks, request.seeds, request.tuning
    );
    for rows in criteria.chunk_by(|one, next| one.policy == next.policy) {
        text.push_str(&format!("\n**{}**\n\n", rows[0].policy));
        text.push_str("| criterion | bar | number | 95 % interval | met |\n");
        text.push_str("| --- | --- | ---: | ---: | --- |\n");
        for row in rows {
            let number = row.number.map_or("–".to_owned(), shown);
            let range =
                row.interval.map(|(low, high)| format!("{} to {}", shown(low), shown(high)));
            let range = range.unwrap_or("–".to_owned());
            let Criterion { what, bar, verdict, .. } = row;
            text.push_str(&format!("| {what} | {bar} | {number} | {range} | {verdict} |\n"));
        }
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simulate::compare;

    #[test]
    fn a_bar_is_met_by_the_whole_interval_on_average_by_the_mean_and_missed_otherwise() {
        let least = |number, low, high| verdict(Bar::AtLeast(92.0), number, Some((low, high)));
        assert_eq!(least(Some(93.0), 92.0, 94.0), Verdict::Met);
        assert_eq!(least(Some(93.0), 91.9, 94.1), Verdict::MetOnAverage);
        assert_eq!(least(Some(91.9), 90.0, 93.8), Verdict::Missed);
        let most = |number, low, high| verdict(Bar::AtMost(4.0), number, Some((low, high)));
        assert_eq!(most(Some(3.0), 2.0, 4.0), Verdict::Met);
        assert_eq!(most(Some(3.5), 2.9, 4.1), Verdict::MetOnAverage);
        assert_eq!(most(Some(4.1), 3.0, 5.2), Verdict::Missed);
        assert_eq!(verdict(Bar::AtMost(4.0), None, None), Verdict::Missed);
        assert_eq!(verdict(Bar::AtMost(4.0), Some(1.0), None), Verdict::MetOnAverage);
        assert_eq!(verdict(Bar::None, Some(1.0), Some((0.0, 2.0))), Verdict::Reported);
        assert_eq!(verdict(Bar::AtMost(4.0), Some(f64::NAN), None), Verdict::Missed);
    }

    fn judged(policies: &[PolicyName]) -> (Request, Vec<Criterion>) {
        let asked = Request {
            regimes: Vec::new(),
            policies: policies.to_vec(),
            seeds: "3..4".parse().unwrap(),
            agents: 40,
            ticks: 400,
            jobs: 2,
            versus: None,
            tuning: "7..7".parse().unwrap(),
            figures: false,
        };
        let asked = request(&asked);
        let comparison = compare(&asked, &|| {});
        let criteria = judge(&asked, &comparison);
        (asked, criteria)
    }

    #[test]
    fn a_policy_that_limits_nobody_is_told_so() {
        let (_, criteria) = judged(&[PolicyName::StaticMax]);
        let of = |what: &str| {
            let mut found = criteria.iter().filter(|one| one.policy == "static-max");
            found.find(|one| one.what.starts_with(what)).unwrap()
        };
        assert_eq!(of("base, %").verdict, Verdict::Missed);
        assert_eq!(of("base, points above `additive`").verdict, Verdict::Missed);
        assert_eq!(of("shed").verdict, Verdict::Missed);
        assert_eq!(of("mean step of log r").verdict, Verdict::Met);
        assert_eq!(of("points above `price`, worst").verdict, Verdict::Missed);
        assert_eq!(of("500 sybils, receipts off").verdict, Verdict::Reported);
        // It reports no drift, so it is not asked how well.
        assert!(
            !criteria.iter().any(|one| one.policy == "static-max" && one.what.contains("fall"))
        );
    }

    #[test]
    fn the_table_names_each_policy_once_and_the_base_law_is_not_compared_with_itself() {
        let (asked, criteria) = judged(&[PolicyName::Static, PolicyName::Price]);
        assert!(!criteria.iter().any(|one| one.policy == "price" && one.what.contains("`price`")));
        assert!(!criteria.iter().any(|one| one.policy.starts_with("additive")));
        let text = table(&asked, &criteria);
        for name in ["**price**", "**static**"] {
            assert_eq!(text.matches(name).count(), 1, "{text}");
        }
        assert!(text.contains("(α = "), "{text}");
        // A bar within a cell would end it.
        let rows = text.lines().filter(|line| line.starts_with("| "));
        assert!(rows.clone().count() > 20 && rows.clone().all(|row| row.matches('|').count() == 6));
        assert_eq!((shown(-0.001), shown(-0.01)), ("0.00".to_owned(), "-0.01".to_owned()));
    }
}
