//! `merit replay` as a shell meets it.

#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::{
    fs::File,
    path::PathBuf,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn merit(arguments: &[&str], input: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_merit"));
    command.arg("replay").args(arguments).env_clear();
    command.stdin(input.map_or_else(Stdio::null, |path| File::open(path).unwrap().into()));
    command.output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn shown(arguments: &[&str]) -> String {
    let output = merit(arguments, None);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "", "progress is for terminals");
    text(&output.stdout)
}

fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let output = merit(arguments, None);
    assert_eq!(text(&output.stdout), "");
    (output.status.code(), text(&output.stderr))
}

fn file(name: &str, content: &str) -> String {
    let path = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

const MOVIELENS: &str = "userId,movieId,rating,timestamp\n1,296,5.0,1147880044\n1,306,3.5,1147868817\n\
                         2,296,0.5,1147868828\n3,307,5.0,1147868829\n";

#[test]
fn a_movielens_file_needs_one_flag() {
    let csv = file("ml-ratings.csv", MOVIELENS);
    let shown = shown(&[&csv, "--layout", "movielens", "--policy", "additive:alpha=5", "--json"]);
    let report: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!((&report["ratings"], &report["agents"]), (&4.into(), &3.into()));
    assert_eq!((&report["scale"], &report["bad_rows"]["count"]), (&"0.5..5".into(), &0.into()));
    // Half a star is a 1: 296 falls by 10 and rises by 10; 307 rises by 10.
    assert_eq!(report["comparisons"][0]["movers"][0]["agent_id"], "307");
    assert_eq!(report["comparisons"][0]["movers"][0]["rate"], 30.0);

    let tabs = file("u.data", "196\t242\t3\t881250949\n186\t302\t5\t891717742\n");
    let arguments = ["-", "--layout", "movielens-100k", "--policy", "additive", "--json"];
    let output = merit(&arguments, Some(&tabs));
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&report["ratings"], &report["source"]), (&2.into(), &"-".into()));
}

#[test]
fn half_stars_without_a_scale_are_bad_rows_that_say_what_to_do() {
    let csv = file("half-stars.csv", MOVIELENS);
    let columns = "user=userId,agent=movieId";
    let table = shown(&[&csv, "--columns", columns, "--policy", "additive"]);
    assert!(table.contains("1 bad rows left out (score 1)"), "{table}");
    assert!(table.contains("line 4: score \"0.5\" is outside 1..5: say with --scale"), "{table}");
    let strict = refused(&[&csv, "--columns", columns, "--policy", "additive", "--strict"]);
    assert_eq!(strict.0, Some(1));
    assert!(strict.1.starts_with("merit: line 4: score"), "{}", strict.1);
}

#[test]
fn policies_come_from_the_configuration_and_from_flags_beside_it() {
    let csv = file("config.csv", "user,agent,score,time\nu,a,5,1\n");
    let config = format!("{}/../deploy/merit.toml", env!("CARGO_MANIFEST_DIR"));
    let arguments = [
        &*csv,
        "--config",
        &config,
        "--policy",
        "additive",
        "--against",
        "additive:alpha=7",
        "--json",
    ];
    let report: Value = serde_json::from_str(&shown(&arguments)).unwrap();
    let mover = &report["comparisons"][0]["movers"][0];
    assert_eq!((mover["rate"].as_f64(), mover["against"].as_f64()), (Some(20.2), Some(34.0)));
    let arguments = [&*csv, "--policy", "additive:alpha=1", "--start-rate", "5", "--json"];
    let report: Value = serde_json::from_str(&shown(&arguments)).unwrap();
    assert_eq!(report["comparisons"][0]["movers"][0]["rate"], 7.0);
}

#[test]
fn wrong_usage_is_code_2_and_names_the_flag_and_a_failure_is_code_1() {
    let csv = file("usage.csv", "user,agent,score,time\nu,a,5,1\n");
    for (arguments, said) in [
        (vec![&*csv, "--policy", "oracle"], "oracle"),
        (vec![&*csv, "--policy", "additive:beta=1"], "beta"),
        (vec![&*csv, "--policy", "additive", "--against", "additive"], "named twice"),
        (vec![&*csv, "--policy", "additive", "--scale", "5..1"], "--scale"),
        (vec![&*csv, "--policy", "additive", "--columns", "who=1"], "no such field"),
        (vec![&*csv, "--policy", "additive", "--columns", "user=nobody"], "no column for user"),
        (vec![&*csv, "--policy", "additive", "--per-agent", "x.xlsx"], "--per-agent x.xlsx"),
        (vec![&*csv, "--policy", "additive", "--sort-max", "1"], "--sort-max"),
        (vec![&*csv, "--policy", "additive", "--start-rate=-1"], "--start-rate"),
        (vec!["u.data", "--policy", "additive"], "--format"),
        (vec!["--policy", "additive"], "FILE"),
        (vec![&*csv], "--policy"),
        (vec![&*csv, "--personalize", "--against", "additive"], "--policy"),
    ] {
        let (code, error) = refused(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }
    let (code, error) = refused(&["no/such/file.csv", "--policy", "additive"]);
    assert_eq!(code, Some(1));
    assert!(error.starts_with("merit: cannot open no/such/file.csv: "), "{error}");
    let (code, error) = refused(&["--policy", "uniform", "--evaluate", "no/such/log.ndjson"]);
    assert_eq!(code, Some(1));
    assert!(error.starts_with("merit: cannot open no/such/log.ndjson: "), "{error}");
}

#[test]
fn a_log_of_decisions_is_judged_and_figures_are_drawn() {
    let log: String = (0..400)
        .map(|at| {
            let (arm, agent) = (at % 2, at / 2 % 40);
            format!(
                r#"{{"at_ms":{at},"agent":"a{agent}","policy":"bandit","version":"1","features":[1.0],"base":10.0,"action":{{"change":{},"arm":{arm},"arms":2}},"propensity":0.5,"reward":{}}}"#,
                f64::from(arm) / 10.0,
                1.0 + f64::from(arm) + f64::from(at % 7) / 10.0,
            ) + "\n"
        })
        .collect();
    let log = file("decisions.ndjson", &log);
    let arguments = ["--evaluate", &log, "--policy", "arm=1", "--against", "base", "--json"];
    let report: Value = serde_json::from_str(&shown(&arguments)).unwrap();
    let value =
        |policy: usize, what: &str| report["policies"][policy][what]["value"].as_f64().unwrap();
    assert!((value(0, "snips") - 2.3).abs() < 0.05 && (value(1, "snips") - 1.3).abs() < 0.05);
    assert!(value(0, "gain") > 0.4 && value(1, "gain") < -0.4);
    let table = shown(&["--evaluate", &log, "--policy", "arm=1"]);
    assert!(table.contains("better than what was logged"), "{table}");

    let (code, error) = refused(&["--evaluate", &log, "--policy", "ppo"]);
    assert_eq!(code, Some(1));
    assert!(error.contains("what `ppo` would have done"), "{error}");

    let csv = file("figures.csv", MOVIELENS);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("figures");
    let table = shown(&[
        &csv,
        "--layout",
        "movielens",
        "--policy",
        "additive:alpha=5",
        "--plot",
        folder.to_str().unwrap(),
    ]);
    assert!(table.contains("rates.svg") && folder.join("rates.png").exists(), "{table}");
}

#[test]
fn personalised_ratings_need_no_policy_and_go_beside_one() {
    let csv = file("personal.csv", MOVIELENS);
    let arguments = [&*csv, "--layout", "movielens", "--personalize", "--json"];
    let report: Value = serde_json::from_str(&shown(&arguments)).unwrap();
    assert_eq!(report["personalize"]["overall"]["ratings"], 4);
    assert!(report["rmse"].as_f64().unwrap() > 0.0, "{report}");
    assert_eq!(report["policies"], serde_json::json!([]));
    let both = [&arguments[..4], &["--policy", "additive:alpha=5"]].concat();
    let text = shown(&both);
    assert!(text.contains("Final refill rates") && text.contains("Personalised ratings"), "{text}");
}
