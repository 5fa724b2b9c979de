//! The demo shows what it claims: who serves well earns more, and it is the ratings that do it.

use std::{collections::BTreeMap, time::Duration};

use merit_integration::{Folder, Process, binary};
use serde_json::Value;

/// One row of the table that the demo ends with.
#[derive(Clone, Debug)]
struct Agent {
    quality: f64,
    rate_start: f64,
    rate_end: f64,
    admitted: f64,
    denied: f64,
}

async fn demo(seconds: u64, seed: u64, shuffled: bool) -> BTreeMap<String, Agent> {
    demo_with_bombing(seconds, seed, shuffled).await.0
}

/// Returns the rows, and what the demo says of the agent that is rated down.
async fn demo_with_bombing(
    seconds: u64,
    seed: u64,
    shuffled: bool,
) -> (BTreeMap<String, Agent>, Value) {
    let folder = Folder::new("demo");
    let duration = format!("{seconds}s");
    let seed = seed.to_string();
    let mut arguments = vec!["demo", "--duration", &duration, "--seed", &seed, "--json"];
    if shuffled {
        arguments.push("--shuffle-ratings");
    }
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    let binary = binary();
    let program = binary.to_str().expect("the target folder's name is text");
    let mut process = Process::start("demo", program, &arguments, &[], folder.path());
    let status = process.wait(Duration::from_secs(seconds + 60)).await;
    let output = process.output();
    assert!(status.success(), "the demo ended with {status}: {output}");

    // Standard output holds one object on one line; what the log holds besides is standard error.
    let objects: Vec<Value> = output
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|value| value["agents"].is_array())
        .collect();
    assert_eq!(objects.len(), 1, "{output}");
    let number = |row: &Value, name: &str| {
        row[name].as_f64().unwrap_or_else(|| panic!("{name} is no number in {row}"))
    };
    let rows = objects[0]["agents"].as_array().expect("it is an array").iter().map(|row| {
        let agent = Agent {
            quality: number(row, "quality"),
            rate_start: number(row, "rate_start"),
            rate_end: number(row, "rate_end"),
            admitted: number(row, "admitted"),
            denied: number(row, "denied"),
        };
        assert!(number(row, "rate_base") > 0.0 && number(row, "residual").abs() <= 1.0, "{row}");
        (row["agent_id"].as_str().expect("an agent has a name").to_owned(), agent)
    });
    (rows.collect(), objects[0]["bombing"].clone())
}

/// Returns the ranks of `values`, from 1; equal values share the mean of their ranks.
fn ranks(values: &[f64]) -> Vec<f64> {
    let count = |predicate: &dyn Fn(f64) -> bool| {
        f64::from(u32::try_from(values.iter().filter(|v| predicate(**v)).count()).expect("few"))
    };
    let rank = |&value: &f64| count(&|v| v < value) + (count(&|v| v == value) + 1.0) / 2.0;
    values.iter().map(rank).collect()
}

/// Returns Spearman's rank correlation between quality and final rate.
fn correlation(table: &BTreeMap<String, Agent>) -> f64 {
    let quality = ranks(&table.values().map(|agent| agent.quality).collect::<Vec<_>>());
    let rate = ranks(&table.values().map(|agent| agent.rate_end).collect::<Vec<_>>());
    let mean = f64::midpoint(1.0, f64::from(u32::try_from(table.len()).expect("few")));
    let sum = |pairs: &mut dyn Iterator<Item = (&f64, &f64)>| -> f64 {
        pairs.map(|(a, b)| (a - mean) * (b - mean)).sum()
    };
    let both = sum(&mut quality.iter().zip(&rate));
    let spread = sum(&mut quality.iter().zip(&quality)) * sum(&mut rate.iter().zip(&rate));
    both / spread.sqrt()
}

#[test]
fn the_correlation_of_ranks_is_one_for_any_rising_curve_and_halves_ties() {
    let table = |rates: [f64; 4]| {
        let row = |(n, rate_end): (u8, f64)| {
            let agent = Agent {
                quality: f64::from(n),
                rate_start: 0.0,
                rate_end,
                admitted: 0.0,
                denied: 0.0,
            };
            (n.to_string(), agent)
        };
        (0_u8..).zip(rates).map(row).collect::<BTreeMap<_, _>>()
    };
    assert!((correlation(&table([1.0, 2.0, 40.0, 41.0])) - 1.0).abs() < 1e-12);
    assert!((correlation(&table([4.0, 3.0, 2.0, 1.0])) + 1.0).abs() < 1e-12);
    assert_eq!(ranks(&[5.0, 1.0, 5.0]), [2.5, 1.0, 2.5]);
}

#[tokio::test]
async fn quality_earns_rate_and_only_through_ratings() {
    let (honest, bombing) = demo_with_bombing(30, 1, false).await;
    let earned = correlation(&honest);
    println!("rank correlation of quality and final rate: {earned:.3}");
    assert!(honest.len() >= 20, "{} agents", honest.len());
    assert!(earned >= 0.8, "{earned}: {honest:#?}");
    let first = honest.values().next().expect("there are agents").rate_start;
    assert!(honest.values().all(|agent| agent.rate_start == first), "all start alike: {honest:#?}");
    assert!(honest.values().all(|agent| agent.admitted > 0.0), "{honest:#?}");
    assert!(honest.values().any(|agent| agent.denied > 0.0), "nobody was ever refused");

    // Ten users rate one of two equal agents down: raters who lie far off count little.
    println!("{bombing}");
    assert!(bombing["ratings"].as_f64().is_some_and(|ratings| ratings > 50.0), "{bombing}");
    let kept = bombing["rate_to_twin"].as_f64().expect("a share");
    assert!((0.9..=1.1).contains(&kept), "{bombing}: {honest:#?}");

    let shuffled = demo(30, 1, true).await;
    let left = correlation(&shuffled);
    println!("the same with ratings shuffled among the agents: {left:.3}");
    assert!(left.abs() < 0.5, "{left}: {shuffled:#?}");
    let qualities = |table: &BTreeMap<String, Agent>| {
        table.iter().map(|(id, agent)| (id.clone(), agent.quality.to_string())).collect::<Vec<_>>()
    };
    assert_eq!(qualities(&shuffled), qualities(&honest), "one seed, one world");

    let other = demo(5, 2, false).await;
    assert_ne!(qualities(&other), qualities(&honest), "another seed, another world");
}
