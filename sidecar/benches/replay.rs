//! How fast recorded ratings are replayed, beside the policy's fold alone.
//!
//! `cargo bench -p merit-sidecar --bench replay` writes a million ratings from a seed (10,000 agents by
//! Zipf's law, 50,000 users), replays them in each form and prints the median of five runs.

#![allow(clippy::unwrap_used, reason = "a measurement may stop where it stands")]

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use flate2::{Compression, write::GzEncoder};
use indicatif::ProgressBar;
use merit_sidecar::{
    policy::Config,
    rating::{Rating, Score, UserId},
    replay::{Options, SORT_MAX, candidate::Candidate, layout_of, replay},
};
use rand::{RngExt, SeedableRng, rngs::StdRng, seq::SliceRandom};
use tower_merit::{AgentId, bucket::Limits};

const RATINGS: usize = 1_000_000;
const AGENTS: usize = 10_000;
const USERS: u32 = 50_000;
const RUNS: usize = 5;

struct Row {
    user: u32,
    agent: usize,
    score: f64,
    time: u64,
}

fn rows(seed: u64) -> Vec<Row> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut sum = 0.0;
    let shares: Vec<f64> = (1..=AGENTS)
        .map(|rank| {
            sum += (rank as f64).powf(-1.1);
            sum
        })
        .collect();
    let row = |at: usize| Row {
        user: rng.random_range(0..USERS),
        agent: shares.partition_point(|share| *share < rng.random::<f64>() * sum).min(AGENTS - 1),
        score: f64::from(rng.random_range(2..=10_u8)) / 2.0,
        time: 1_600_000_000 + at as u64 * 30,
    };
    (0..RATINGS).map(row).collect()
}

fn csv(rows: &[Row]) -> String {
    let mut text = String::from("user_id,agent_id,score,timestamp\n");
    for Row { user, agent, score, time } in rows {
        writeln!(text, "{user},{agent},{score},{time}").unwrap();
    }
    text
}

fn median(mut run: impl FnMut() -> Duration) -> Duration {
    let mut times: Vec<Duration> = (0..RUNS).map(|_| run()).collect();
    times.sort();
    times[RUNS / 2]
}

fn show(what: &str, time: Duration) {
    let rate = RATINGS as f64 / time.as_secs_f64();
    println!("{what:<34} {:>8.3} s {rate:>14.0} ratings/s", time.as_secs_f64());
}

fn options(file: &Path, policies: &[&str]) -> Options {
    let start = Limits::per_second(20.0, 40).unwrap();
    let candidate = |label: &&str| Candidate::new(label, &Config::default(), start).unwrap();
    Options {
        personalize: None,
        file: file.to_owned(),
        layout: layout_of(file, None, None, None, None, None).unwrap(),
        candidates: policies.iter().map(candidate).collect(),
        strict: true,
        sort_max: SORT_MAX,
        top: 10,
        agents_to: None,
        plot_to: None,
    }
}

fn main() {
    let mut rows = rows(1);
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        fs::write(&path, bytes).unwrap();
        path
    };

    let start = Limits::per_second(20.0, 40).unwrap();
    let candidate = Candidate::new("additive", &Config::default(), start).unwrap();
    let policy = &candidate.policy;
    let recorded = |row: &Row| {
        let agent = AgentId::new(&row.agent.to_string()).unwrap();
        let user = UserId::new(&row.user.to_string()).unwrap();
        (row.agent, Rating::recorded(agent, user, Score::new(row.score).unwrap(), row.time * 1000))
    };
    let ratings: Vec<(usize, Rating)> = rows.iter().map(recorded).collect();
    let fold = median(|| {
        let mut states = vec![policy.begin(); AGENTS];
        let started = Instant::now();
        let worth: f64 =
            ratings.iter().map(|(agent, rating)| policy.fold(&mut states[*agent], rating)).sum();
        let time = started.elapsed();
        assert!(worth.is_finite());
        time
    });
    show("fold alone, additive", fold);
    drop(ratings);

    let text = csv(&rows);
    let mut gzip = GzEncoder::new(Vec::new(), Compression::default());
    gzip.write_all(text.as_bytes()).unwrap();
    let mut objects = String::new();
    for Row { user, agent, score, time } in &rows {
        writeln!(
            objects,
            r#"{{"user_id":"{user}","agent_id":"{agent}","score":{score},"timestamp":{time}}}"#
        )
        .unwrap();
    }
    let in_order = file("million.csv", text.as_bytes());
    let gzipped = file("million.csv.gz", &gzip.finish().unwrap());
    let ndjson = file("million.ndjson", objects.as_bytes());
    rows.shuffle(&mut StdRng::seed_from_u64(2));
    let shuffled = file("million-shuffled.csv", csv(&rows).as_bytes());

    let two = ["additive", "additive:alpha=5"];
    for (what, path, policies) in [
        ("csv, one policy", &in_order, &two[..1]),
        ("csv, two policies", &in_order, &two),
        ("csv out of order, two policies", &shuffled, &two),
        ("csv.gz, two policies", &gzipped, &two),
        ("ndjson, two policies", &ndjson, &two),
    ] {
        let options = options(path, policies);
        let time = median(|| {
            let started = Instant::now();
            let report = replay(&options, &ProgressBar::hidden()).unwrap();
            assert_eq!(report.ratings, RATINGS as u64);
            started.elapsed()
        });
        show(what, time);
    }
    for path in [in_order, gzipped, ndjson, shuffled] {
        fs::remove_file(path).unwrap();
    }
}
