use crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::{
    Terminal,
    backend::TestBackend,
    style::{Color, Modifier},
};
use serde_json::{Value, json};

use super::{
    screen::{Next, View},
    *,
};

const NOW: u64 = 1_800_000_000_000;

fn overview(at_ms: u64, admitted: u64) -> Value {
    json!({"at_ms": at_ms, "role": "all", "version": "0.1.0", "uptime_seconds": 12.5, "ready": true, "draining": false,
        "parts": [{"name": "store", "ok": true}],
        "policy": {"kind": "price", "mode": "live", "version": "7f3a"},
        "market": {"price": 0.82, "use_share": 0.97, "service_capacity": 500.0},
        "ratings_per_second": 12.5, "ratings_total": 4711, "admitted_total": admitted, "denied_total": 122,
        "used_per_second": 480.2, "rating_to_limit_seconds": {"p50": 0.004, "p95": 0.009, "p99": 0.02},
        "bus_lag_ratings": 7, "agents": 50, "drift": {"fall": 1, "rise": 0},
        "events": [{"at_ms": NOW - 3000, "kind": "drift", "agent_id": "a1", "text": "quality fell from 4.2 to 2.1"}]})
}

fn page(ids: &[&str], page: u32, pages: u32) -> Value {
    let agents: Vec<Value> = ids
        .iter()
        .map(|id| {
            json!({"agent_id": id, "refill_rate": 23.5, "capacity": 47, "quality": 4.1, "deviation": 0.2, "ratings": 31.5,
                "admitted": 1200, "denied": 3, "held": "frozen", "banned_until_ms": null, "operator": false,
                "rates": [20.0, 21.2, 23.5], "qualities": [3.4, null, 4.1]})
        })
        .collect();
    json!({"total": 300, "matching": 300, "page": page, "page_size": 100, "pages": pages, "age_ms": 900,
        "complete": true, "agents": agents})
}

fn news(wish: &Wish, overview: Value, page: Value) -> Result<News, String> {
    let overview = serde_json::from_value(overview).unwrap();
    Ok(News {
        wish: wish.clone(),
        overview,
        page: serde_json::from_value(page).unwrap(),
        agent: None,
    })
}

fn screen() -> Screen {
    let mut screen = Screen::new("http://127.0.0.1:9900".into(), Wish::new(None, "-refill_rate"));
    let wish = screen.wish.clone();
    screen.told(news(&wish, overview(NOW - 2000, 1000), page(&["a1", "a2"], 1, 3)), NOW - 2000);
    screen.told(news(&wish, overview(NOW, 1960), page(&["a1", "a2"], 1, 3)), NOW);
    screen
}

fn press(screen: &mut Screen, codes: &[KeyCode]) -> Next {
    let keys = codes.iter().map(|code| KeyEvent::new(*code, KeyModifiers::NONE));
    keys.map(|key| screen.key(key)).last().unwrap()
}

/// Returns what a terminal of this size shows, and its cells.
fn seen(screen: &mut Screen, colours: bool, width: u16, height: u16) -> (String, Buffer) {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    let frame = terminal
        .draw(|frame| {
            let area = frame.area();
            draw::draw(screen, NOW, colours, area, frame.buffer_mut());
        })
        .unwrap();
    (plain(frame.buffer), frame.buffer.clone())
}

#[test]
fn a_picture_shows_the_loop_the_agents_and_what_happened() {
    let (text, _) = seen(&mut screen(), false, 110, 30);
    for shown in [
        "merit  http://127.0.0.1:9900  all 0.1.0  up 12 s  policy price  ready",
        "ratings 12.5/s",
        "admitted 480/s, denied 0/s",
        "p50 4 ms",
        "p95 9 ms  p99 20 ms",
        "behind by 7 ratings",
        "price 0.82  use 97 %",
        "480/s of 500/s",
        "drift: 1 fell, 0 rose",
        "300 agents, page 1 of 3, read 900 ms ago",
        "RATE/S▼",
        "4.10 ± 0.20",
        "▁▃█",
        "frozen",
        "3 s ago  a1  quality fell from 4.2 to 2.1",
        "q quit",
    ] {
        assert!(text.contains(shown), "{shown} is not in\n{text}");
    }
}

#[test]
fn what_no_process_knows_is_no_number() {
    let mut screen = Screen::new("http://h".into(), Wish::new(None, "agent_id"));
    let wish = screen.wish.clone();
    let row = json!({"agents": [{"agent_id": "a1", "quality": null, "rates": null}], "pages": 1, "page": 1});
    screen.told(news(&wish, json!({"at_ms": NOW, "role": "ingest"}), row), NOW);
    let (text, _) = seen(&mut screen, false, 110, 30);
    for shown in [
        "ingest -  up -  policy -",
        "admitted -, denied -",
        "price -  use -",
        "AGENT▲",
        "(the tuner knows them)",
    ] {
        assert!(text.contains(shown), "{shown} is not in\n{text}");
    }
}

#[test]
fn a_small_terminal_keeps_its_agents_and_none_is_too_small() {
    let mut screen = screen();
    let (text, _) = seen(&mut screen, false, 110, 12);
    assert!(text.contains("a2") && !text.contains("p50") && !text.contains("ago  a1"), "{text}");
    for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 16), (300, 100)] {
        seen(&mut screen, true, width, height);
    }
    screen.told(Err("away".into()), NOW);
    press(&mut screen, &[KeyCode::Enter]);
    for (width, height) in [(1, 1), (3, 2), (20, 5), (40, 16), (300, 100)] {
        seen(&mut screen, true, width, height);
    }
}

#[test]
fn a_lost_connection_is_told_with_its_beginning_and_the_old_picture_is_grey() {
    let mut screen = screen();
    screen.told(Err("connection refused\u{1b}[2J".into()), NOW - 10_000);
    screen.told(Err("connection refused\u{1b}[2J".into()), NOW);
    let (text, cells) = seen(&mut screen, true, 110, 30);
    assert!(
        text.contains("DISCONNECTED since 07:59:50 UTC (10 s ago); below is what was known then"),
        "{text}"
    );
    assert!(
        text.contains("refused\\u{1b}[2J") && text.contains("a2") && text.contains("p50 4 ms"),
        "{text}"
    );
    let row = text.lines().position(|line| line.starts_with("a2")).unwrap();
    let old = cells.cell((0, u16::try_from(row).unwrap())).unwrap();
    assert_eq!((old.fg, old.modifier.contains(Modifier::DIM)), (Color::DarkGray, true));
    // Back again: the curve has a gap, and no rate spans it.
    let wish = screen.wish.clone();
    screen.told(news(&wish, overview(NOW + 60_000, 999_999), page(&["a1"], 1, 3)), NOW + 60_000);
    let (text, cells) = seen(&mut screen, true, 110, 30);
    assert!(!text.contains("DISCONNECTED") && text.contains("admitted -"), "{text}");
    let row = text.lines().position(|line| line.starts_with("a1")).unwrap();
    assert_ne!(cells.cell((0, u16::try_from(row).unwrap())).unwrap().fg, Color::DarkGray);
    assert!(screen.trail.admitted.contains(&None));
}

#[test]
fn nobody_there_from_the_start_is_told_too() {
    let mut screen = Screen::new("http://h".into(), Wish::new(None, "agent_id"));
    let (text, _) = seen(&mut screen, false, 80, 24);
    assert!(text.contains("waits for the first answer"), "{text}");
    screen.told(Err("nobody listens there".into()), NOW);
    let (text, _) = seen(&mut screen, false, 80, 24);
    assert!(text.contains("DISCONNECTED") && !text.contains("was known"), "{text}");
}

#[test]
fn without_colours_there_are_none() {
    let mut screen = screen();
    screen.told(Err("away".into()), NOW);
    let (_, cells) = seen(&mut screen, false, 110, 30);
    let coloured =
        cells.content().iter().find(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset);
    assert!(coloured.is_none(), "{coloured:?}");
    let (_, cells) = seen(&mut screen, true, 110, 30);
    assert!(cells.content().iter().any(|cell| cell.fg != Color::Reset));
}

#[test]
fn what_a_server_says_does_not_reach_the_terminal_as_it_is() {
    let mut screen = Screen::new("http://h".into(), Wish::new(None, "-denied"));
    let wish = screen.wish.clone();
    let hostile = "\u{1b}[2Jx\u{202e}y\u{9b}31m\n";
    let mut told = overview(NOW, 1);
    for member in ["role", "version"] {
        told[member] = hostile.into();
    }
    told["ready"] = false.into();
    told["parts"] = json!([{"name": hostile, "ok": false}]);
    told["policy"] = json!({"kind": hostile, "mode": hostile});
    told["events"] = json!([{"at_ms": NOW, "kind": hostile, "agent_id": hostile, "text": hostile}]);
    let mut rows = page(&[hostile], 1, 1);
    rows["agents"][0]["held"] = hostile.into();
    let mut arrived = news(&wish, told, rows.clone()).unwrap();
    screen.told(Ok(arrived.clone()), NOW);
    let clean = |screen: &mut Screen| {
        let (_, cells) = seen(screen, true, 200, 40);
        for cell in cells.content() {
            let drawn =
                cell.symbol().chars().all(|c| c.escape_debug().len() == 1 || "'\"\\".contains(c));
            assert!(drawn, "{:?}", cell.symbol());
        }
    };
    clean(&mut screen);
    assert_eq!(press(&mut screen, &[KeyCode::Enter]), Next::Stay, "what is no id is not asked for");
    screen.view = View::Agent;
    screen.wish.agent = Some(hostile.to_owned());
    let mut agent = rows["agents"][0].clone();
    agent["why"] = json!({"sentences": [hostile]});
    agent["buckets"] = json!([{"bucket_name": hostile}]);
    agent["moves"] = json!([{"cause": hostile, "held": hostile}]);
    arrived.wish = screen.wish.clone();
    arrived.agent = Some(Ok(Box::new(serde_json::from_value(agent).unwrap())));
    screen.told(Ok(arrived.clone()), NOW);
    clean(&mut screen);
    arrived.agent = Some(Err(hostile.to_owned()));
    screen.told(Ok(arrived), NOW);
    clean(&mut screen);
}

#[test]
fn keys_sort_search_and_turn_pages() {
    let mut screen = screen();
    assert_eq!(screen.wish.path(), "/agents?sort=-refill_rate&page=1&page_size=100");
    assert_eq!(press(&mut screen, &[KeyCode::Char('s')]), Next::Ask);
    assert_eq!(press(&mut screen, &[KeyCode::Char('r')]), Next::Ask);
    assert_eq!(screen.wish.path(), "/agents?sort=quality&page=1&page_size=100");
    for _ in 0..6 {
        press(&mut screen, &[KeyCode::Char('s')]);
    }
    assert_eq!(screen.wish.sort, "refill_rate", "the orders go round");

    press(
        &mut screen,
        &[
            KeyCode::Char('/'),
            KeyCode::Char('q'),
            KeyCode::Char('&'),
            KeyCode::Char('x'),
            KeyCode::Backspace,
        ],
    );
    assert_eq!(screen.wish.path(), "/agents?sort=-refill_rate&page=1&page_size=100&q=q%26");
    let (text, _) = seen(&mut screen, false, 110, 30);
    assert!(text.contains("/q&_"), "{text}");
    press(&mut screen, &[KeyCode::Esc]);
    assert_eq!((screen.wish.search.as_str(), screen.view), ("", View::Agents), "as before");
    press(&mut screen, &[KeyCode::Char('/'), KeyCode::Char('a'), KeyCode::Enter]);
    assert_eq!((screen.wish.search.as_str(), screen.view), ("a", View::Agents));
    press(&mut screen, &[KeyCode::Esc]);
    assert_eq!(screen.wish.search, "");

    assert_eq!(press(&mut screen, &[KeyCode::Down]), Next::Stay);
    assert_eq!(press(&mut screen, &[KeyCode::Down]), Next::Ask, "over the end of the page");
    assert_eq!(screen.wish.page, 2);
    let wish = screen.wish.clone();
    screen.told(news(&wish, overview(NOW, 2), page(&["b1"], 2, 3)), NOW);
    assert_eq!(press(&mut screen, &[KeyCode::Up]), Next::Ask);
    // The page before has more rows than the one that is still shown.
    seen(&mut screen, false, 110, 30);
    let wish = screen.wish.clone();
    screen.told(news(&wish, overview(NOW, 3), page(&["a1", "a2"], 1, 3)), NOW);
    assert_eq!((screen.wish.page, screen.table.selected()), (1, Some(1)));
    assert_eq!(press(&mut screen, &[KeyCode::Char('q')]), Next::Quit);
}

#[test]
fn an_agent_is_looked_at_and_left_again() {
    let mut screen = screen();
    assert_eq!(press(&mut screen, &[KeyCode::Down, KeyCode::Enter]), Next::Ask);
    assert_eq!(screen.wish.agent.as_deref(), Some("a2"));
    // The answer to what was asked before is not taken for it.
    let mut old = news(&screen.wish, overview(NOW, 4), page(&["a1", "a2"], 1, 3)).unwrap();
    old.wish.agent = None;
    screen.told(Ok(old.clone()), NOW);
    let (text, _) = seen(&mut screen, false, 110, 30);
    assert!(text.contains("agent a2") && text.contains("waits for the answer"), "{text}");
    let mut agent = page(&["a2"], 1, 1)["agents"][0].clone();
    agent["why"] = json!({"sentences": ["Its ratings say a quality of 4.10."]});
    agent["moves"] = json!([{"at_ms": NOW - 5000, "cause": "rating", "score": 5.0, "from": 23.1, "to": 23.5, "held": null}]);
    old.wish = screen.wish.clone();
    old.agent = Some(Ok(Box::new(serde_json::from_value(agent).unwrap())));
    screen.told(Ok(old), NOW);
    let (text, _) = seen(&mut screen, false, 110, 40);
    for shown in [
        "Its ratings say a quality of 4.10.",
        "5 s ago: a rating of 5 moved it from 23.1/s to 23.5/s",
        "quality ▁ █",
    ] {
        assert!(text.contains(shown), "{shown} is not in\n{text}");
    }
    assert_eq!(press(&mut screen, &[KeyCode::Esc]), Next::Ask);
    assert_eq!((screen.view, &screen.wish.agent), (View::Agents, &None));
    let control_c = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(screen.key(control_c), Next::Quit);
}

#[test]
fn a_process_that_starts_anew_makes_no_negative_rate() {
    let mut screen = screen();
    let wish = screen.wish.clone();
    screen.told(news(&wish, overview(NOW + 1000, 3), page(&["a1"], 1, 1)), NOW + 1000);
    assert_eq!(screen.trail.admitted.back(), Some(&None));
}

/// Set for the process that panics on a terminal of its own.
const PANICS: &str = "MERIT_TEST_TOP_PANICS";

#[test]
fn a_panic_gives_the_terminal_back_before_it_speaks() {
    if std::env::var_os(PANICS).is_some() {
        let mut terminal = begin().unwrap();
        let _ = terminal.draw(|_| panic!("nothing is drawn"));
        return;
    }
    let test = std::env::current_exe().unwrap();
    let name = "operator::top::tests::a_panic_gives_the_terminal_back_before_it_speaks";
    let line = format!(
        "stty rows 24 cols 80; {PANICS}=1 '{}' --exact {name} --nocapture; stty -a",
        test.display()
    );
    let done = std::process::Command::new("script")
        .args(["-qec", &line, "/dev/null"])
        .env("TERM", "xterm")
        .stdin(std::process::Stdio::null())
        .output()
        .expect("script is there (apt-get install bsdutils)");
    let seen = String::from_utf8_lossy(&done.stdout);
    let at = |text: &str| seen.find(text).unwrap_or_else(|| panic!("{text:?} is not in {seen:?}"));
    let (taken, given, said) = (at("\u{1b}[?1049h"), at("\u{1b}[?1049l"), at("nothing is drawn"));
    assert!(taken < given && given < said, "{seen:?}");
    let after: Vec<&str> = seen[said..].split([' ', ';', '\r', '\n']).collect();
    assert!(after.contains(&"icanon") && after.contains(&"echo"), "{seen:?}");
}
