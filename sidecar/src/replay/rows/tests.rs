use super::{super::layout::Preset, *};

fn layout(format: Format, columns: &str, header: bool) -> Layout {
    let columns = if columns.is_empty() { Default::default() } else { columns.parse().unwrap() };
    Layout { format, columns, header, scale: Default::default() }
}

fn read(layout: Layout, lines: &[&str]) -> (Vec<Result<Event, Fault>>, Cast) {
    let mut reader = Reader::new(layout).unwrap();
    let mut cast = Cast::default();
    let mut all = Vec::new();
    for (number, line) in lines.iter().enumerate() {
        if reader.wants_header() {
            reader.read_header(line.as_bytes()).unwrap();
            continue;
        }
        all.push(reader.read(number as u64 + 1, line.as_bytes(), &mut cast));
    }
    (all, cast)
}

#[test]
fn movielens_is_read_under_one_name_with_half_stars_on_their_own_scale() {
    let (rows, cast) = read(
        Preset::Movielens.layout(),
        &["userId,movieId,rating,timestamp", "1,296,5.0,1147880044", "1,306,0.5,1147868817"],
    );
    let scores: Vec<f64> = rows.iter().map(|row| row.as_ref().unwrap().score).collect();
    assert_eq!(scores, [5.0, 1.0]);
    assert_eq!(rows[0].as_ref().unwrap().at_ms, 1_147_880_044_000);
    assert_eq!(cast.agents.all().iter().map(AgentId::as_str).collect::<Vec<_>>(), ["296", "306"]);
    assert_eq!(cast.users.all().len(), 1);

    let (rows, cast) = read(Preset::Movielens100k.layout(), &["196\t242\t3\t881250949"]);
    let event = Event { at_ms: 881_250_949_000, score: 3.0, agent: 0, user: 0 };
    assert_eq!(rows, [Ok(event)]);
    assert_eq!(cast.agents.get("242"), Some(0));
    assert_eq!(cast.users.get("196"), Some(0));
}

#[test]
fn merits_own_forms_need_no_columns_in_csv_or_json() {
    let expected = Event { at_ms: 1_700_000_000_000, score: 4.5, agent: 0, user: 0 };
    let (rows, _) = read(
        layout(Format::Csv, "", true),
        &["note,user_id,score,agent_id,timestamp", "\"a, \"\"b\"\"\",u,4.5,a,1700000000"],
    );
    assert_eq!(rows, [Ok(expected)]);
    let (rows, cast) = read(
        layout(Format::Ndjson, "", true),
        &[
            r#"{"agent_id":"a","user_id":"u","score":4.5,"timestamp":1700000000,"x":[{}]}"#,
            r#"{"user_id":"u","item_id":"a","rating":4.5,"timestamp":"2023-11-14T22:13:20Z"}"#,
            r#"{"item_id":"other","agent_id":"\u0061","agentId":null,"userId":"u","score":4.5,"timestamp":1700000000.0}"#,
        ],
    );
    assert_eq!(rows, [Ok(expected), Ok(expected), Ok(expected)]);
    assert_eq!((cast.agents.all().len(), cast.users.all().len()), (1, 1));
}

#[test]
fn numbers_are_names_in_objects_too() {
    let columns = "user=userId,agent=movieId,score=rating,time=timestamp";
    let (rows, cast) = read(
        layout(Format::Ndjson, columns, false),
        &[r#"{"userId":7,"movieId":296,"rating":4,"timestamp":1700000000}"#],
    );
    assert!(rows[0].is_ok(), "{rows:?}");
    assert_eq!((cast.users.get("7"), cast.agents.get("296")), (Some(0), Some(0)));
}

#[test]
fn what_is_wrong_with_a_row_is_named_with_line_field_value_and_remedy() {
    let header = "user,agent,score,time";
    for (row, field, value, said) in [
        ("u,a,0.5,1", "score", "0.5", "say with --scale LOW..HIGH"),
        ("u,a,NaN,1", "score", "NaN", "is outside 1..5"),
        ("u,a,inf,1", "score", "inf", "is outside 1..5"),
        ("u,a,good,1", "score", "good", "is no number"),
        ("u,a,,1", "score", "", "is no number"),
        ("u,a b,3,1", "agent", "a b", "may hold letters"),
        ("u,,3,1", "agent", "", "1 to 128"),
        (",a,3,1", "user", "", "1 to 256"),
        ("u,a,3,soon", "time", "soon", "is no time"),
        ("u,a,3,-1", "time", "-1", "is no time"),
        ("u,a,3", "time", "u,a,3", "has no field 4: it has 3"),
        ("", "row", "", "is empty"),
        ("u,\"a,3,1", "row", "u,\"a,3,1", "not closed"),
    ] {
        let (rows, _) = read(layout(Format::Csv, "", true), &[header, row]);
        let fault = rows[0].clone().unwrap_err();
        assert_eq!((fault.line, fault.field, &*fault.value), (2, field, value), "{row}");
        assert!(fault.problem.contains(said), "{row}: {fault}");
    }
    for (row, field, said) in [
        (r#"{"agent_id":"a","user_id":"u","score":"4","timestamp":1}"#, "score", "is a string"),
        (r#"{"agent_id":"a","user_id":"u","timestamp":1}"#, "score", "is missing"),
        (r#"{"agent_id":["a"],"user_id":"u","score":4,"timestamp":1}"#, "agent", "no text"),
        (r#"{"agent_id":"a","user_id":"u","score":4}"#, "time", "is missing"),
        (r#"{"agent_id":"a","user_id":true,"score":4,"timestamp":1}"#, "user", "no text"),
        (r#"[1,2]"#, "row", "no JSON object"),
        (r#"{"agent_id":"a""#, "row", "no JSON object"),
        ("", "row", "no JSON object"),
    ] {
        let (rows, _) = read(layout(Format::Ndjson, "", true), &[row]);
        let fault = rows[0].clone().unwrap_err();
        assert_eq!(fault.field, field, "{row}: {fault}");
        assert!(fault.problem.contains(said), "{row}: {fault}");
    }
}

#[test]
fn a_long_or_hostile_value_is_shortened_and_cannot_write_to_the_terminal() {
    let score = format!("\u{1b}[31m{}", "9".repeat(300));
    let (rows, _) = read(
        layout(Format::Csv, "", true),
        &["user,agent,score,time", &{ format!("u,a,{score},1") }],
    );
    let fault = rows[0].clone().unwrap_err();
    assert_eq!(fault.value.chars().count(), SHOWN_MAX + 1);
    assert!(!fault.value.contains('\u{1b}'));
}

#[test]
fn a_row_of_too_many_fields_is_one_fault_and_the_next_is_read() {
    let wide = vec!["1"; FIELDS_MAX + 1].join(",");
    let (rows, _) =
        read(layout(Format::Csv, "user=1,agent=2,score=3,time=4", false), &[&wide, "1,2,3,4"]);
    assert!(rows[0].clone().unwrap_err().problem.contains("more than 256 fields"));
    assert!(rows[1].is_ok());
}

#[test]
fn columns_that_cannot_be_found_are_told_with_what_there_is() {
    let mut reader = Reader::new(layout(Format::Csv, "agent=movieId", true)).unwrap();
    let error = reader.read_header(b"userId,movie,rating,timestamp").unwrap_err().to_string();
    assert!(error.contains("agent") && error.contains("movie, rating"), "{error}");
    let error = Reader::new(layout(Format::Csv, "user=1,agent=2,score=rating", false)).unwrap_err();
    assert!(matches!(error, LayoutError::NoHeader { field: "score" }), "{error}");
    let error = Reader::new(layout(Format::Ndjson, "user=1", false)).unwrap_err();
    assert!(matches!(error, LayoutError::NoPlaces { field: "user" }), "{error}");
    let timeless = layout(Format::Tsv, "user=1,agent=2,score=3,time=none", false);
    let (rows, _) = read(timeless, &["u\ta\t3"]);
    assert_eq!(rows[0].as_ref().unwrap().at_ms, 0);
}
