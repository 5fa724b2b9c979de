//! Estimates against a logged bandit whose truth is known exactly.

#![allow(clippy::cast_possible_truncation, reason = "three arms, a thousand decisions")]

use std::collections::BTreeMap;

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::decisions::{Action, Arm, Choice, Decided};

const ARMS: usize = 3;

/// Contexts, all alike likely.
const CONTEXTS: [[f64; 2]; 4] = [[-1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [2.0, -1.0]];

/// A bandit of four contexts and three arms; rewards are its mean and noise of standard deviation 1.
struct Bandit {
    reward: fn(&[f64; 2], usize) -> f64,
}

/// What each arm earns is linear in the context: the model can be right.
const LINEAR: Bandit =
    Bandit { reward: |x, arm| 5.0 + x[0] * (arm as f64 - 1.0) + 0.5 * x[1] * arm as f64 };

/// What the log's policy does: every arm, the higher ones rather where the first feature is large.
fn logging(x: &[f64; 2]) -> [f64; ARMS] {
    softmax(|arm| 0.4 * x[0] * arm as f64)
}

/// What the policy in question does: rather the other way round.
fn asked(x: &[f64; 2]) -> [f64; ARMS] {
    softmax(|arm| -0.5 * x[0] * arm as f64 + 0.8 * x[1])
}

fn softmax(of: impl Fn(usize) -> f64) -> [f64; ARMS] {
    let powers: [f64; ARMS] = std::array::from_fn(|arm| of(arm).exp());
    powers.map(|power| power / powers.iter().sum::<f64>())
}

impl Bandit {
    /// Returns exactly what the policy in question earns.
    fn truth(&self) -> f64 {
        let of = |x: &[f64; 2]| -> f64 {
            asked(x).iter().enumerate().map(|(arm, share)| share * (self.reward)(x, arm)).sum()
        };
        CONTEXTS.iter().map(of).sum::<f64>() / CONTEXTS.len() as f64
    }

    /// Returns a log of `decisions` for `agents`, of which each adds `lasting` of its own to all of
    /// its rewards (as a standard deviation).
    fn log(&self, seed: u64, decisions: usize, agents: u32, lasting: f64) -> Logged {
        let mut rng = StdRng::seed_from_u64(seed);
        let own: Vec<f64> = (0..agents).map(|_| lasting * normal(&mut rng)).collect();
        let mut rows = Vec::new();
        let mut numbers = Vec::new();
        for at in 0..decisions {
            let x = CONTEXTS[rng.random_range(0..CONTEXTS.len())];
            let shares = logging(&x);
            let mut left = rng.random::<f64>();
            let arm = shares.iter().position(|share| {
                left -= share;
                left < 0.0
            });
            let arm = arm.unwrap_or(ARMS - 1);
            let agent = rng.random_range(0..agents);
            numbers.push(agent);
            rows.push(Decided {
                at_ms: at as u64,
                agent: format!("a{agent}").parse().unwrap(),
                policy: String::new(),
                version: String::new(),
                features: x.to_vec(),
                base: 10.0,
                action: Action {
                    change: 0.1 * arm as f64,
                    arm: Some(Arm { arm: arm as u16, arms: ARMS as u16 }),
                },
                propensity: shares[arm],
                reward: (self.reward)(&x, arm) + own[agent as usize] + normal(&mut rng),
                others: BTreeMap::from([("asked".to_owned(), Choice::Arms(asked(&x).to_vec()))]),
            });
        }
        Logged {
            rows,
            agents: numbers,
            agents_count: agents as usize,
            width: 2,
            arms: Some(ARMS as u16),
            deciders: BTreeMap::new(),
            bad: BadRows::default(),
        }
    }
}

/// Box & Muller, 1958.
fn normal(rng: &mut StdRng) -> f64 {
    let (radius, angle) = (1.0 - rng.random::<f64>(), rng.random::<f64>());
    (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos()
}

fn judged(log: &Logged, name: &str) -> Result<Samples, EvaluateError> {
    let actions = log.actions(None).unwrap();
    samples(log, &actions, &models(log), name, &name.parse().unwrap(), None)
}

/// What each estimator made of many logs.
struct Many {
    truth: f64,
    /// IPS, SNIPS, DR; each log's.
    estimates: Vec<[Estimate; 3]>,
    model: Vec<f64>,
}

fn many(bandit: &Bandit, logs: u64, decisions: usize, agents: u32, lasting: f64) -> Many {
    let mut all = Many { truth: bandit.truth(), estimates: Vec::new(), model: Vec::new() };
    for seed in 0..logs {
        let log = bandit.log(1000 + seed, decisions, agents, lasting);
        let samples = judged(&log, "asked").unwrap();
        all.estimates.push([samples.ips(), samples.snips(), samples.dr()]);
        all.model.push(samples.model());
    }
    all
}

impl Many {
    fn covered(&self, estimator: usize) -> f64 {
        let holds = |estimates: &&[Estimate; 3]| {
            let Estimate { low, high, .. } = estimates[estimator];
            (low..=high).contains(&self.truth)
        };
        self.estimates.iter().filter(holds).count() as f64 / self.estimates.len() as f64
    }

    /// Returns mean and standard deviation of an estimator's values.
    fn spread(&self, estimator: usize) -> (f64, f64) {
        spread(self.estimates.iter().map(|estimates| estimates[estimator].value))
    }
}

fn spread(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let count = values.clone().count() as f64;
    let mean = values.clone().sum::<f64>() / count;
    (mean, (values.map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0)).sqrt())
}

/// How many logs; the share of 95 % of them has a standard error of 0.0095.
const LOGS: u64 = 524;

/// Three standard errors around 95 %.
const NOMINAL: std::ops::RangeInclusive<f64> = 0.92..=0.98;

#[test]
fn intervals_hold_the_truth_as_often_as_they_say() {
    let many = many(&LINEAR, LOGS, 600, 100, 0.0);
    for (estimator, name) in ["ips", "snips", "dr"].iter().enumerate() {
        let covered = many.covered(estimator);
        assert!(NOMINAL.contains(&covered), "{name}: {covered}");
        // The standard error is what the values' spread over logs is.
        let (mean, deviation) = many.spread(estimator);
        let told = many.estimates.iter().map(|estimates| estimates[estimator].standard_error);
        let (told, _) = spread(told);
        assert!((told / deviation - 1.0).abs() < 0.12, "{name}: {told} {deviation}");
        let error = deviation / (LOGS as f64).sqrt();
        assert!((mean - many.truth).abs() < 4.0 * error, "{name}: {mean} {}", many.truth);
    }
}

#[test]
fn intervals_hold_the_truth_when_an_agents_rewards_hang_together_and_naive_ones_do_not() {
    // Twelve decisions for each agent, which share half of the noise's variance.
    let many = many(&LINEAR, LOGS, 1200, 100, 1.0);
    let covered = many.covered(2);
    assert!(NOMINAL.contains(&covered), "{covered}");
    let mut naive = 0;
    for seed in 0..LOGS {
        let mut log = LINEAR.log(1000 + seed, 1200, 100, 1.0);
        // Every decision an agent of its own: what ignoring agents would make of it.
        (log.agents, log.agents_count) = ((0..1200).collect(), 1200);
        let Estimate { low, high, .. } = judged(&log, "asked").unwrap().dr();
        naive += u64::from((low..=high).contains(&many.truth));
    }
    assert!((naive as f64 / LOGS as f64) < 0.9, "{naive} of {LOGS}");
}

#[test]
fn doubly_robust_estimates_vary_less_where_the_model_is_right() {
    let many = many(&LINEAR, 200, 600, 100, 0.0);
    let ((_, ips), (_, dr)) = (many.spread(0), many.spread(2));
    assert!(dr * dr < 0.5 * ips * ips, "variance {} against {}", dr * dr, ips * ips);
}

#[test]
fn ips_and_doubly_robust_estimates_are_unbiased_where_the_model_is_wrong() {
    let truth = LINEAR.truth();
    let mut values = [const { Vec::new() }; 3];
    for seed in 0..300 {
        let mut log = LINEAR.log(1000 + seed, 600, 100, 0.0);
        // What made the log's policy choose as it did was not written down: no model can be right.
        log.rows.iter_mut().for_each(|row| row.features = vec![1.0]);
        log.width = 1;
        let samples = judged(&log, "asked").unwrap();
        let found = [samples.ips().value, samples.dr().value, samples.model()];
        values.iter_mut().zip(found).for_each(|(values, found)| values.push(found));
    }
    let [ips, dr, model] = values.map(|values| spread(values.into_iter()));
    let error = |(_, deviation): (f64, f64)| deviation / 300_f64.sqrt();
    assert!((ips.0 - truth).abs() < 4.0 * error(ips), "ips: {ips:?} {truth}");
    assert!((dr.0 - truth).abs() < 4.0 * error(dr), "dr: {dr:?} {truth}");
    assert!((model.0 - truth).abs() > 20.0 * error(model), "model: {model:?} {truth}");
}

#[test]
fn a_density_is_evaluated_like_a_probability() {
    // Changes drawn from N(0, 0.1²); reward 1 + 4·change + noise; asked: N(0.05, 0.08²). Truth 1.2.
    let density = |change: f64| {
        let z = change / 0.1;
        (-0.5 * z * z).exp() / (0.1 * std::f64::consts::TAU.sqrt())
    };
    let mut covered = [0; 2];
    for seed in 0..200 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut log = LINEAR.log(seed, 800, 800, 0.0);
        log.arms = None;
        for row in &mut log.rows {
            let change = 0.1 * normal(&mut rng);
            row.action = Action { change, arm: None };
            row.propensity = density(change);
            row.reward = 1.0 + 4.0 * change + 0.5 * normal(&mut rng);
            let choice = Choice::Normal { mean: 0.05, std: 0.08 };
            row.others = BTreeMap::from([("asked".to_owned(), choice)]);
        }
        let dr = judged(&log, "asked").unwrap().dr();
        covered[0] += u64::from((dr.low..=dr.high).contains(&1.2));
        // One change only, through the kernel: 1 + 4·0.05, the kernel being symmetric.
        let dr = judged(&log, "change=0.05").unwrap().dr();
        covered[1] += u64::from((dr.low..=dr.high).contains(&1.2));
    }
    for covered in covered {
        assert!((180..=200).contains(&covered), "{covered} of 200");
    }
}

#[test]
fn a_policy_that_is_the_logs_own_has_weights_of_one_and_gains_nothing() {
    let mut log = LINEAR.log(1, 2000, 50, 0.0);
    for row in &mut log.rows {
        let x = [row.features[0], row.features[1]];
        row.others.insert("same".to_owned(), Choice::Arms(logging(&x).to_vec()));
    }
    let samples = judged(&log, "same").unwrap();
    assert!((samples.mean_weight() - 1.0).abs() < 1e-9);
    assert!((samples.effective() - 2000.0).abs() < 1e-6);
    let (ips, logged) = (samples.ips(), samples.logged());
    assert!((ips.value - logged.value).abs() < 1e-9);
    assert!(samples.gain().low < 0.0 && samples.gain().high > 0.0);
}

#[test]
fn what_cannot_be_judged_is_refused_with_the_reason() {
    let refusal = |log: &Logged, name: &str| judged(log, name).unwrap_err();
    let mut log = LINEAR.log(1, 600, 50, 0.0);

    let unknown = refusal(&log, "nobody-knows");
    let text = unknown.to_string();
    assert!(text.contains("600 rows") && text.contains("tell of: asked"), "{text}");

    log.rows.iter_mut().for_each(|row| row.propensity = (row.propensity * 0.3).min(1.0));
    let wrong = refusal(&log, "asked").to_string();
    assert!(
        wrong.contains("weights average") && wrong.contains("propensities are wrong"),
        "{wrong}"
    );

    let mut log = LINEAR.log(1, 600, 50, 0.0);
    let taken = log.rows.iter().enumerate().filter(|(_, row)| row.action.arm.unwrap().arm != 2);
    let kept: Vec<usize> = taken.map(|(at, _)| at).collect();
    log.rows = kept.iter().map(|&at| log.rows[at].clone()).collect();
    log.agents = kept.iter().map(|&at| log.agents[at]).collect();
    let untried = refusal(&log, "asked").to_string();
    assert!(untried.contains("no overlap") && untried.contains("was never tried"), "{untried}");
    let never = refusal(&log, "arm=2").to_string();
    assert!(never.contains("100.0 % of what it does was never tried"), "{never}");
    assert!(judged(&log, "arm=0").is_ok());
    assert!(matches!(refusal(&log, "arm=7"), EvaluateError::Unknown { .. }));

    // An arm that is taken, but hardly ever.
    let mut log = LINEAR.log(1, 600, 50, 0.0);
    let mut few = 0;
    for row in &mut log.rows {
        let arm = row.action.arm.as_mut().unwrap();
        few += u16::from(arm.arm == 2);
        if arm.arm == 2 && few > 10 {
            (arm.arm, row.action.change) = (0, 0.0);
        }
    }
    let rare = refusal(&log, "arm=2").to_string();
    assert!(rare.contains("600 decisions are worth 8.5 of its own, and at least 30"), "{rare}");

    let mut log = LINEAR.log(1, 600, 50, 0.0);
    log.rows[7].action.change = 0.9;
    assert!(matches!(log.actions(None).unwrap_err(), EvaluateError::ArmMoved { .. }));
    for row in &mut log.rows {
        (row.action, row.propensity) = (Action { change: 0.0, arm: None }, 1.0);
    }
    log.arms = None;
    assert!(matches!(log.actions(None).unwrap_err(), EvaluateError::NoChange));
}

/// A file of its own, removed when the test is over.
struct Written(PathBuf);

impl Written {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("merit-judge-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Written {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn lines(log: &Logged) -> String {
    let line = |row: &Decided| {
        let row = Decided { policy: "bandit".to_owned(), version: "v1".to_owned(), ..row.clone() };
        row.to_line().unwrap()
    };
    log.rows.iter().map(line).collect()
}

fn asked_of(log: &Written, names: &[&str]) -> Options {
    let targets = names.iter().map(|name| ((*name).to_owned(), name.parse().unwrap())).collect();
    Options { log: log.0.clone(), targets, ratings: None, strict: false, bandwidth: None }
}

#[test]
fn a_log_read_from_a_file_gives_what_its_rows_give_and_a_cut_line_is_told() {
    let mut log = LINEAR.log(3, 1500, 60, 0.0);
    // Agents are numbered as they appear, and divided for the model by their numbers.
    let mut order: Vec<u32> = Vec::new();
    for agent in &mut log.agents {
        let known = order.iter().position(|known| known == agent);
        let number = known.unwrap_or(order.len());
        if known.is_none() {
            order.push(*agent);
        }
        *agent = number as u32;
    }
    let mut text = lines(&log);
    text.push_str(r#"{"at_ms":18000"#);
    let file = Written::new("cut.ndjson", &text);
    let mut options = asked_of(&file, &["asked", "uniform", "base"]);
    let found = evaluate(&options, &ProgressBar::hidden()).unwrap();
    let expected = judged(&log, "asked").unwrap();
    assert_eq!(found.policies[0].dr, expected.dr());
    assert_eq!(found.policies[0].ips, expected.ips());
    // The base law is the arm of change 0, the first.
    assert_eq!(found.policies[2].ips.value, judged(&log, "arm=0").unwrap().ips().value);
    assert_eq!((found.decisions, found.agents, found.bad_rows.count), (1500, 60, 1));
    assert_eq!(found.deciders, BTreeMap::from([("bandit v1".to_owned(), 1500)]));
    let shown = found.text();
    assert!(
        shown.contains("1 bad rows left out (row 1)") && shown.contains("line 1501"),
        "{shown}"
    );

    options.strict = true;
    let error = evaluate(&options, &ProgressBar::hidden()).unwrap_err();
    assert!(matches!(error, EvaluateError::Strict { .. }), "{error}");
}

#[test]
fn a_row_that_cannot_be_refuses_the_whole_log_with_its_line() {
    let text = lines(&LINEAR.log(3, 200, 60, 0.0));
    let mut rows: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
    let whole = rows[9].clone();
    let start = whole.find("\"propensity\":").unwrap() + "\"propensity\":".len();
    let end = start + whole[start..].find(',').unwrap();
    for (value, said) in [("0", "propensity is 0"), ("null", "propensity is NaN"), ("1.5", "1.5")] {
        rows[9] = format!("{}{value}{}", &whole[..start], &whole[end..]);
        let file = Written::new("zero.ndjson", &rows.join("\n"));
        let error = evaluate(&asked_of(&file, &["uniform"]), &ProgressBar::hidden()).unwrap_err();
        let error = error.to_string();
        assert!(error.starts_with("line 10: propensity") && error.contains(said), "{error}");
    }
    let few = Written::new("few.ndjson", &text.lines().take(99).collect::<Vec<_>>().join("\n"));
    let error = evaluate(&asked_of(&few, &["uniform"]), &ProgressBar::hidden()).unwrap_err();
    assert!(error.to_string().starts_with("99 decisions are too few"), "{error}");
}

#[test]
fn a_policy_run_over_ratings_takes_the_arm_nearest_to_the_rate_it_would_have_given() {
    use crate::{
        policy::Config,
        replay::{SORT_MAX, candidate::Candidate, layout_of},
    };
    let mut log = LINEAR.log(5, 2000, 40, 0.0);
    // Agents of even number are rated 5 at second 1000: additive:alpha=0.55 goes from 10 to 11.1, which
    // is nearest to arm 1, and stays at 10, arm 0, before that and for all others.
    log.rows.iter_mut().for_each(|row| row.at_ms *= 1000);
    let ratings: String = (0..40).step_by(2).map(|n| format!("u,a{n},5,1000\n")).collect();
    let ratings = Written::new("run.csv", &format!("user,agent,score,time\n{ratings}"));
    let name = "additive:alpha=0.55";
    let start = tower_merit::bucket::Limits::per_second(10.0, 20).unwrap();
    let file = Written::new("run.ndjson", &lines(&log));
    let mut options = asked_of(&file, &[name]);
    options.ratings = Some(Ratings {
        file: ratings.0.clone(),
        layout: layout_of(&ratings.0, None, None, None, None, None).unwrap(),
        candidates: vec![Candidate::new(name, &Config::default(), start).unwrap()],
        personalize: None,
        strict: true,
        sort_max: SORT_MAX,
        top: 0,
        agents_to: None,
        plot_to: None,
    });
    let found = evaluate(&options, &ProgressBar::hidden()).unwrap();
    let mut expected = 0.0;
    for row in &log.rows {
        let even = row.agent.as_str()[1..].parse::<u32>().unwrap() % 2 == 0;
        let wanted = u16::from(even && row.at_ms >= 1_000_000);
        if row.action.arm.unwrap().arm == wanted {
            expected += row.reward / row.propensity / log.rows.len() as f64;
        }
    }
    let value = found.policies[0].ips.value;
    assert!((value - expected).abs() < 1e-9, "{value} {expected}");
}
