//! Whole files through whole replays.

use std::io::Write;

use super::{
    layout::{Columns, Preset},
    *,
};
use crate::policy::Config;
use tower_merit::bucket::Limits;

/// A file of its own, removed when the test is over.
struct Recorded(PathBuf);

impl Recorded {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("merit-replay-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Self(path)
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn options(file: &Path, layout: Layout, policies: &[&str]) -> Options {
    let start = Limits::per_second(20.0, 40).unwrap();
    let candidate = |label: &&str| Candidate::new(label, &Config::default(), start).unwrap();
    Options {
        file: file.to_owned(),
        layout,
        candidates: policies.iter().map(candidate).collect(),
        personalize: None,
        strict: false,
        sort_max: SORT_MAX,
        top: 10,
        agents_to: None,
        plot_to: None,
    }
}

fn run(options: &Options) -> Result<Report, ReplayError> {
    replay(options, &ProgressBar::hidden())
}

fn layout(file: &Path) -> Layout {
    layout_of(file, None, None, None, None, None).unwrap()
}

#[test]
fn rates_are_those_of_the_rule_applied_by_hand_in_the_order_of_time() {
    // At α = 10 agent a is at 40 after its five (20 + 20), 30 after the two, and at 40 again; in the
    // order of the file it would end at 30.
    let text = "user,agent,score,time\nu,a,2,200\nv,a,5,100\nw,a,4,300\nu,b,1,150\n";
    let file = Recorded::new("order.csv", text.as_bytes());
    let report =
        run(&options(&file.0, layout(&file.0), &["additive:alpha=10", "additive"])).unwrap();
    assert_eq!((report.ratings, report.agents, report.users), (4, 2, 3));
    assert_eq!(report.order, Order { late: 2, first_late_line: Some(3) });
    assert_eq!((report.first_ms, report.last_ms), (Some(100_000), Some(300_000)));
    let movers = &report.comparisons[0].movers;
    assert_eq!((movers[0].agent_id.as_str(), movers[0].rate), ("b", 0.5));
    assert!((movers[0].against - 19.8).abs() < 1e-9);
    assert_eq!((movers[1].agent_id.as_str(), movers[1].rate), ("a", 40.0));
    assert!((movers[1].against - 20.2).abs() < 1e-9);
    assert!(report.text().contains("not in the order of time (2 rows, first at line 3)"));
}

#[test]
fn a_replay_gives_what_the_tuners_own_fold_gives_bit_for_bit() {
    let mut text = String::from("user_id,agent_id,score,timestamp\n");
    let scores = [4.7, 1.3, 3.9, 2.2, 5.0, 4.1, 1.0];
    for at in 0..5_000_u32 {
        text += &format!("u{},a{},{},{at}\n", at % 97, at % 13, scores[at as usize % 7]);
    }
    let file = Recorded::new("bits.csv", text.as_bytes());
    let label = "additive:alpha=0.37,burst_seconds=2";
    let mut asked = options(&file.0, layout(&file.0), &[label]);
    let out = file.0.with_extension("out.ndjson");
    asked.agents_to = Some((out.clone(), AgentsFormat::of(&out).unwrap()));
    run(&asked).unwrap();
    let written = std::fs::read_to_string(&out).unwrap();
    std::fs::remove_file(&out).unwrap();
    assert_eq!(written.lines().count(), 13);

    for line in written.lines() {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let number: u32 = row["agent_id"].as_str().unwrap()[1..].parse().unwrap();
        let policy = &asked.candidates[0].policy;
        let mut state = policy.begin();
        for at in (0..5_000).filter(|at| at % 13 == number) {
            let body = format!(
                r#"{{"agent_id":"a","user_id":"u","score":{},"timestamp":{at}}}"#,
                scores[at as usize % 7]
            );
            let request = crate::rating::RatingRequest::from_json(body.as_bytes()).unwrap();
            let poster = crate::rating::Poster::new("p").unwrap();
            policy.fold(&mut state, &request.into_rating(poster, 1_700_000_000_000_000).unwrap());
        }
        let rate = policy.limits(&state).refill().tokens();
        assert_eq!(row["policies"][label]["rate"].as_f64(), Some(rate), "{line}");
    }
}

#[test]
fn bad_rows_are_left_out_counted_and_shown_up_to_a_bound_and_fatal_when_strict() {
    let mut text = String::from("user,agent,score,time\nu,a,4,1\n");
    (0..25).for_each(|_| text += "u,a,0.5,2\n");
    text += "u,a b,4,3\nu,a,4,4\n";
    let file = Recorded::new("bad.csv", text.as_bytes());
    let mut asked = options(&file.0, layout(&file.0), &["additive"]);
    let report = run(&asked).unwrap();
    assert_eq!((report.ratings, report.bad_rows.count), (2, 26));
    assert_eq!(
        report.bad_rows.by_field.iter().collect::<Vec<_>>(),
        [(&"agent", &1), (&"score", &25)]
    );
    let shown = report.text();
    assert!(shown.contains("26 bad rows left out (agent 1, score 25)"), "{shown}");
    assert!(shown.contains("line 3: score \"0.5\" is outside 1..5"), "{shown}");
    assert!(shown.contains("and 16 more"), "{shown}");

    asked.strict = true;
    let error = run(&asked).unwrap_err().to_string();
    assert!(error.starts_with("line 3: score \"0.5\"") && error.contains("--strict"), "{error}");

    asked.strict = false;
    asked.layout.scale = "0.5..5".parse().unwrap();
    let report = run(&asked).unwrap();
    assert_eq!((report.ratings, report.bad_rows.count), (27, 1));
    assert!(report.text().contains("scores mapped from 0.5..5 to 1..5"));
}

#[test]
fn a_file_without_a_good_row_is_an_error_that_shows_why() {
    let file = Recorded::new("none.csv", b"user,agent,score,time\nu,a,9,1\n");
    let error = run(&options(&file.0, layout(&file.0), &["additive"])).unwrap_err().to_string();
    assert!(error.contains("no rating that could be read") && error.contains("line 2"), "{error}");
    let empty = Recorded::new("empty.csv", b"");
    let error = run(&options(&empty.0, layout(&empty.0), &["additive"])).unwrap_err();
    assert!(matches!(error, ReplayError::Empty { .. }), "{error}");
}

#[test]
fn memory_for_sorting_is_bounded_and_its_size_changes_no_result() {
    let mut text = String::new();
    for at in 0..3_000_u32 {
        // Nearly in order: pairs are swapped.
        text += &format!("u{}\ta{}\t{}\t{}\n", at % 50, at % 20, 1 + at * 7 % 5, (at ^ 1) * 10);
    }
    let file = Recorded::new("pairs.tsv", text.as_bytes());
    let columns: Columns = "user=1,agent=2,score=3,time=4".parse().unwrap();
    let layout = layout_of(&file.0, None, None, Some(columns), None, None).unwrap();
    assert!(!layout.header);
    let mut asked = options(&file.0, layout, &["additive:alpha=3"]);
    let whole = run(&asked).unwrap();
    asked.sort_max = 64;
    let bounded = run(&asked).unwrap();
    assert_eq!((&bounded.policies, &bounded.comparisons), (&whole.policies, &whole.comparisons));
    assert_eq!((bounded.order, bounded.ratings), (whole.order, 3_000));

    let far = Recorded::new("far.tsv", format!("{text}u\ta\t3\t0\n").as_bytes());
    asked.file.clone_from(&far.0);
    let error = run(&asked).unwrap_err().to_string();
    assert!(error.contains("line 3001") && error.contains("sort the file by time"), "{error}");
}

#[test]
fn the_same_ratings_in_another_form_give_the_same_result() {
    let rows: Vec<(u32, u32, f64, u32)> = (0..800)
        .map(|at| (at % 31, at % 11, 0.5 + f64::from(at * 3 % 10) / 2.0, 1_000_000_000 + at))
        .collect();
    let table = |between: &str| -> String {
        let row = |(user, agent, score, time): &(u32, u32, f64, u32)| {
            [user.to_string(), agent.to_string(), score.to_string(), time.to_string()].join(between)
        };
        rows.iter().map(|parts| row(parts) + "\n").collect()
    };
    let csv = format!("userId,movieId,rating,timestamp\n{}", table(","));
    let csv = Recorded::new("form.csv", csv.as_bytes());
    let objects: String = rows
        .iter()
        .map(|(user, agent, score, time)| {
            format!(
                r#"{{"user_id":"{user}","item_id":{agent},"rating":{score},"timestamp":{time}}}"#
            ) + "\n"
        })
        .collect();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(objects.as_bytes()).unwrap();
    let ndjson = Recorded::new("form.ndjson.gz", &gzip.finish().unwrap());

    let one = run(&options(&csv.0, Preset::Movielens.layout(), &["additive:alpha=0.5"])).unwrap();
    let half_stars = Some("0.5..5".parse().unwrap());
    let same = layout_of(&ndjson.0, None, None, None, None, half_stars).unwrap();
    let other = run(&options(&ndjson.0, same, &["additive:alpha=0.5"])).unwrap();
    assert_eq!((&one.policies, &one.comparisons), (&other.policies, &other.comparisons));
    assert_eq!((one.ratings, one.bad_rows.count), (800, 0));
}

#[test]
fn agents_are_written_in_every_form_with_the_policies_names() {
    let file = Recorded::new("forms.csv", b"user,agent,score,time\nu,b,5,1\nu,a,1,2\n");
    for name in ["rates.csv", "rates.json"] {
        let mut asked =
            options(&file.0, layout(&file.0), &["additive", "additive:alpha=1,r_max=30"]);
        let out = file.0.with_extension(name);
        asked.agents_to = Some((out.clone(), AgentsFormat::of(&out).unwrap()));
        run(&asked).unwrap();
        let text = std::fs::read_to_string(&out).unwrap();
        std::fs::remove_file(&out).unwrap();
        if name == "rates.csv" {
            let lines: Vec<&str> = text.lines().collect();
            assert_eq!(
                lines[0],
                "agent_id,ratings,mean_score,first_ms,last_ms,\"additive rate\",\"additive least\",\
                 \"additive largest\",\"additive:alpha=1,r_max=30 rate\",\
                 \"additive:alpha=1,r_max=30 least\",\"additive:alpha=1,r_max=30 largest\""
            );
            assert_eq!(lines[1], "a,1,1,2000,2000,19.8,19.8,20,18,18,20");
            assert_eq!(lines[2], "b,1,5,1000,1000,20.2,20,20.2,22,20,22");
        } else {
            let rows: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
            assert_eq!(rows[1]["policies"]["additive:alpha=1,r_max=30"]["rate"], 22.0);
        }
    }
    assert_eq!(AgentsFormat::of(Path::new("rates.xlsx")), None);
}

#[test]
fn a_file_whose_name_says_nothing_needs_a_format() {
    let error = layout_of(Path::new("u.data"), None, None, None, None, None).unwrap_err();
    assert!(error.contains("--format csv, tsv or ndjson"), "{error}");
    let preset = layout_of(Path::new("-"), Some(Preset::Movielens100k), None, None, None, None);
    assert_eq!(preset.unwrap(), Preset::Movielens100k.layout());
}

#[test]
fn a_movielens_file_tells_the_prequential_error_beside_the_baselines_and_needs_no_policy() {
    // Ten users each like half of eight films and dislike the others, in half stars, three times over.
    let mut text = String::from("userId,movieId,rating,timestamp\n");
    for round in 0..30 {
        for user in 0..10 {
            for film in 0..8 {
                let likes = (user + film) % 2 == 0;
                let stars = if likes { "4.5" } else { "1.0" };
                let at = 1_000 + round * 100 + user * 8 + film;
                text.push_str(&format!("{user},{film},{stars},{at}\n"));
            }
        }
    }
    let file = Recorded::new("personal.csv", text.as_bytes());
    let movielens = Preset::Movielens.layout();
    let asked = Options {
        personalize: Some(crate::personalize::model::Config::default()),
        ..options(&file.0, movielens, &[])
    };
    let report = run(&asked).unwrap();
    let measured = report.personalize.as_ref().unwrap();
    assert_eq!(
        (report.ratings, measured.overall.ratings, measured.tenths.len()),
        (2_400, 2_400, 10)
    );
    assert_eq!((measured.users, measured.items, measured.forgotten), (10, 8, 0));
    // Every film is liked by half: popularity knows nothing, the model learns it.
    let last = &measured.tenths[9];
    assert!(last.popularity.rmse > 1.5 && last.mean.rmse > 1.5, "{last:?}");
    assert!(last.model.rmse < 0.15, "{last:?}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["rmse"], measured.overall.model.rmse);
    assert_eq!(json["personalize"]["tenths"][9]["model"]["rmse"], last.model.rmse);
    let own = measured.on_file_scale.unwrap();
    assert!((own.rmse - measured.overall.model.rmse * 4.5 / 4.0).abs() < 1e-12);
    let text = report.text();
    assert!(text.contains("10 of 10") && text.contains("popularity"), "{text}");
    assert!(!text.contains("refill rates"), "no policy was asked for: {text}");
}
