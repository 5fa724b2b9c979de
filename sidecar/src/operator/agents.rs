//! `merit agents` and `merit explain`: one agent or many, and what an operator does to one.

use http::Method;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};
use tower_merit::AgentId;

use super::{
    OperatorError,
    answers::{Agent, Level, Move, Page, Row},
    args::{Agents, AgentsAction, Ban, Explain, List, Look, Set},
    client::Client,
    moment, note, print,
    show::{Cell, Hue, Paint, Table, UNKNOWN, bars, fields, known, number, visible},
};
use crate::clock::unix_ms;

/// Does what `merit agents` asks.
pub(super) async fn run(options: Agents) -> Result<(), OperatorError> {
    let Agents { action, reach, look } = options;
    let client = Client::new(&reach)?;
    let (one, verb, body) = match action {
        AgentsAction::List(list) => return self::list(&client, &list, look).await,
        AgentsAction::Show(one) => {
            let (value, agent) = one_agent(&client, &one.agent).await?;
            return print(look, &value, |paint| shown(&agent, unix_ms(), paint));
        }
        AgentsAction::Set(set) => (set.agent.clone(), "set", set_body(&set)),
        AgentsAction::Freeze(one) => (one.agent, "freeze", Value::Null),
        AgentsAction::Unfreeze(one) => (one.agent, "unfreeze", Value::Null),
        AgentsAction::Ban(ban) => (ban.agent.clone(), "ban", ban_body(&ban)),
        AgentsAction::Unban(one) => (one.agent, "unban", Value::Null),
        AgentsAction::Reset(one) => (one.agent, "reset", Value::Null),
    };
    let path = format!("{}/{verb}", path(&one));
    // A write without members still is JSON: so no web page's form can be one.
    let body = if body.is_null() { json!({}) } else { body };
    let value = client.send(Method::POST, &path, Some(&body)).await?;
    let agent: Agent = client.read(&path, &value)?;
    print(look, &value, |paint| shown(&agent, unix_ms(), paint))
}

/// Does what `merit explain` asks.
pub(super) async fn explain(options: Explain) -> Result<(), OperatorError> {
    let client = Client::new(&options.reach)?;
    let (value, agent) = one_agent(&client, &options.agent).await?;
    print(options.look, &value, |paint| {
        let title = format!(
            "{} {}",
            paint.text(&visible(&agent.row.agent_id), Hue::Bold),
            standing(&agent)
        );
        [vec![title], reasons(&agent, unix_ms())].concat().join("\n")
    })
}

async fn one_agent(client: &Client, agent: &AgentId) -> Result<(Value, Agent), OperatorError> {
    let path = path(agent);
    let value = client.get(&path).await?;
    let agent = client.read(&path, &value)?;
    Ok((value, agent))
}

/// Returns the path of an agent, whose id may stand in one as it is.
pub(super) fn path(agent: &AgentId) -> String {
    format!("/agents/{agent}")
}

/// Returns `text` as a value in a query.
pub(super) fn in_query(text: &str) -> String {
    utf8_percent_encode(text, NON_ALPHANUMERIC).to_string()
}

fn set_body(set: &Set) -> Value {
    let mut body = json!({});
    if let Some(rate) = set.rate {
        body["refill_rate"] = rate.into();
    }
    if let Some(capacity) = set.capacity {
        body["capacity"] = capacity.into();
    }
    if let Some(bucket) = &set.bucket {
        body["bucket_name"] = bucket.as_str().into();
    }
    body
}

fn ban_body(ban: &Ban) -> Value {
    match (ban.span, ban.until) {
        (Some(span), _) => json!({ "for": crate::bus::duration::format(span) }),
        (None, until) => json!({ "until_ms": until }),
    }
}

async fn list(client: &Client, list: &List, look: Look) -> Result<(), OperatorError> {
    let mut path =
        format!("/agents?sort={}&page={}&page_size={}", list.sort, list.page, list.page_size);
    if let Some(query) = &list.query {
        path.push_str(&format!("&q={}", in_query(query)));
    }
    if let Some(only) = list.only {
        path.push_str(&format!("&only={}", only.name()));
    }
    let value = client.get(&path).await?;
    let page: Page = client.read(&path, &value)?;
    print(look, &value, |paint| table(&page.agents, unix_ms()).text(paint))?;
    note(&summary(&page));
    Ok(())
}

/// Returns how much of how many agents a page shows, and how old that is.
pub(super) fn summary(page: &Page) -> String {
    let Page { total, matching, page: number, pages, .. } = page;
    let mut text = match matching == total {
        true => format!("{total} agents"),
        false => format!("{matching} of {total} agents"),
    };
    if *pages > 1 {
        text.push_str(&format!(", page {number} of {pages}"));
    }
    if let Some(age_ms) = page.age_ms {
        let age = moment::span(std::time::Duration::from_millis(age_ms));
        text.push_str(&format!(", read {age} ago"));
    }
    if page.complete == Some(false) {
        text.push_str("; not all agents are in it yet");
    }
    text
}

/// Returns what holds an agent, and how that is coloured.
pub(super) fn state(row: &Row, now_ms: u64) -> (String, Hue) {
    let mut words = Vec::new();
    let mut hue = Hue::Held;
    if let Some(until) = row.banned_until_ms.filter(|until| *until > now_ms) {
        let left = moment::span(std::time::Duration::from_millis(until - now_ms));
        words.push(format!("banned, {left} left"));
        hue = Hue::Bad;
    }
    match row.held.as_deref() {
        None | Some("none") => {}
        Some(held) => words.push(held.to_owned()),
    }
    if row.operator {
        words.push("operator".to_owned());
    }
    (words.join(", "), hue)
}

/// Returns a quality with its deviation.
pub(super) fn quality(row: &Row) -> String {
    match (row.quality, row.deviation) {
        (Some(quality), Some(deviation)) => format!("{quality:.2} ± {deviation:.2}"),
        (Some(quality), None) => format!("{quality:.2}"),
        (None, _) => UNKNOWN.to_owned(),
    }
}

fn table(rows: &[Row], now_ms: u64) -> Table {
    let mut table = Table::new(&[
        "AGENT",
        ">RATE/S",
        ">CAPACITY",
        ">QUALITY",
        ">RATINGS",
        ">ADMITTED",
        ">DENIED",
        "TREND",
        "STATE",
    ]);
    for row in rows {
        let (state, hue) = state(row, now_ms);
        table.row([
            row.agent_id.as_str().into(),
            known(row.refill_rate, number).into(),
            known(row.capacity, number).into(),
            quality(row).into(),
            known(row.ratings, number).into(),
            known(row.admitted, number).into(),
            known(row.denied, number).into(),
            Cell::new(bars(row.rates.as_deref().unwrap_or_default()), Hue::Dim),
            Cell::new(state, hue),
        ]);
    }
    table
}

fn limits(rate: Option<f64>, capacity: Option<f64>) -> String {
    format!("{}/s, capacity {}", known(rate, number), known(capacity, number))
}

/// Returns an agent's limits and what holds them, as the rest of a sentence.
fn standing(agent: &Agent) -> String {
    let row = &agent.row;
    let mut text = format!("has {}", limits(row.refill_rate, row.capacity));
    if agent.known == Some(false) {
        text =
            format!("is not known; it would start with {}", limits(row.refill_rate, row.capacity));
    }
    text
}

fn shown(agent: &Agent, now_ms: u64, paint: Paint) -> String {
    let row = &agent.row;
    let (state, hue) = state(row, now_ms);
    let free = || "ratings move it".to_owned();
    let mut lines = vec![
        ("agent", row.agent_id.clone(), Hue::Bold),
        ("limits", limits(row.refill_rate, row.capacity), Hue::Plain),
        ("held", if state.is_empty() { free() } else { state }, hue),
        ("quality", quality(row), Hue::Plain),
        ("ratings", known(row.ratings, number), Hue::Plain),
        ("admitted", known(row.admitted, number), Hue::Plain),
        ("denied", known(row.denied, number), Hue::Plain),
    ];
    if let Some(policy) = &agent.policy {
        lines.push(("policy", policy.clone(), Hue::Plain));
    }
    let rates = row.rates.as_deref().unwrap_or_default();
    if rates.len() > 1 {
        lines.push(("rates", bars(rates), Hue::Dim));
    }
    if agent.known == Some(false) {
        lines.push((
            "note",
            "not known yet: these are the limits it starts with".into(),
            Hue::Held,
        ));
    }
    let mut buckets =
        Table::new(&["BUCKET", ">RATE/S", ">CAPACITY", ">LEVEL", "FULL IN", "LIMITS"]);
    for level in &agent.buckets {
        buckets.row([
            level.bucket_name.as_str().into(),
            known(level.refill_rate, number).into(),
            known(level.capacity, number).into(),
            known(level.level, number).into(),
            full_in(level).unwrap_or_else(|| UNKNOWN.to_owned()).into(),
            if level.own { "its own" } else { "configured" }.into(),
        ]);
    }
    format!("{}\n{}", fields(&lines, paint), buckets.text(paint))
}

fn full_in(level: &Level) -> Option<String> {
    level.full_in_ms.map(|ms| match ms {
        0 => "full".to_owned(),
        ms => moment::span(std::time::Duration::from_millis(ms)),
    })
}

/// Returns why an agent has what it has, in plain words, a line each; `merit top` shows the same.
pub(super) fn reasons(agent: &Agent, now_ms: u64) -> Vec<String> {
    let mut lines = Vec::new();
    let mut under = |title: &str, told: Vec<String>| {
        if !told.is_empty() {
            lines.extend([String::new(), title.to_owned()]);
            lines.extend(told.into_iter().map(|line| format!("  {line}")));
        }
    };
    let sentences = agent.why.iter().flat_map(|why| &why.sentences);
    under("Why", sentences.map(|sentence| visible(sentence)).collect());
    let mut holds = Vec::new();
    let (state, _) = state(&agent.row, now_ms);
    if !state.is_empty() {
        holds.push(format!("Held: {}.", visible(&state)));
    }
    if let Some(until) = agent.row.banned_until_ms.filter(|until| *until > now_ms) {
        holds.push(format!("Its requests are answered 403 until {}.", moment::utc(until)));
    }
    under("What an operator did", holds);
    under("Buckets", agent.buckets.iter().map(bucket).collect());
    match &agent.moves {
        Some(moves) => under("Moves, newest first", moves.iter().map(|step| moved(step, now_ms)).collect()),
        None => under(
            "Moves",
            vec!["This process does not know them: ask the admin listener of the tuner that has the agent.".into()],
        ),
    }
    lines
}

fn bucket(level: &Level) -> String {
    let limits_of = if level.own { "limits of its own" } else { "the configured limits" };
    let name = visible(&level.bucket_name);
    let mut text = format!("{name}: {limits_of}, {}", limits(level.refill_rate, level.capacity));
    if let Some(tokens) = level.level {
        text.push_str(&format!("; {} tokens are there", number(tokens)));
    }
    match level.full_in_ms {
        Some(0) => text.push_str(", which is all it holds"),
        Some(_) => text.push_str(&format!(", full in {}", full_in(level).unwrap_or_default())),
        None => {}
    }
    text
}

fn moved(step: &Move, now_ms: u64) -> String {
    let cause = match (step.cause.as_deref(), step.score) {
        (Some("rating"), Some(score)) => format!("a rating of {}", number(score)),
        (Some("rating"), None) => "a rating".to_owned(),
        (Some("tick"), _) => "a tick".to_owned(),
        (Some("operator"), _) => "an operator".to_owned(),
        (Some(cause), _) => visible(cause),
        (None, _) => "something".to_owned(),
    };
    let rates = match (step.from, step.to) {
        (Some(from), Some(to)) if number(from) == number(to) => {
            format!("left it at {}/s", number(to))
        }
        (Some(from), Some(to)) => format!("moved it from {}/s to {}/s", number(from), number(to)),
        (None, Some(to)) => format!("put it at {}/s", number(to)),
        (_, None) => "was seen".to_owned(),
    };
    let when = step.at_ms.map_or_else(String::new, |at| format!("{}: ", moment::ago(at, now_ms)));
    let held = step.held.as_deref().filter(|held| *held != "none");
    let held = held.map_or_else(String::new, |held| format!(" (held: {})", visible(held)));
    format!("{when}{cause} {rates}{held}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn agent(held: &str) -> Agent {
        serde_json::from_value(json!({
            "agent_id": "a1", "refill_rate": 23.5, "capacity": 47, "quality": 4.1, "deviation": 0.2, "ratings": 31.5,
            "admitted": 1200, "denied": 3, "held": held, "banned_until_ms": NOW + 3_600_000, "operator": true,
            "rates": [20.0, 23.5], "qualities": [null, 4.1], "rev": 17, "policy": "price", "known": true,
            "buckets": [
                {"bucket_name": "main", "default": true, "refill_rate": 23.5, "capacity": 47, "level": 40.25, "full_in_ms": 288, "own": true},
                {"bucket_name": "writes", "default": false, "refill_rate": 2, "capacity": 10, "level": 10, "full_in_ms": 0, "own": false}],
            "history": [], "why": {"policy": "price", "sentences": ["Its ratings say a quality of 4.10 ± 0.20."]},
            "moves": [
                {"at_ms": NOW - 12_000, "cause": "rating", "score": 5.0, "from": 23.1, "to": 23.5, "held": null},
                {"at_ms": NOW - 13_000, "cause": "tick", "score": null, "from": 23.1, "to": 23.1, "held": "step"},
                {"at_ms": NOW - 14_000, "cause": "operator", "from": null, "to": 23.1, "held": null}]
        }))
        .unwrap()
    }

    #[test]
    fn an_agent_is_shown_with_all_that_holds_it() {
        let text = "\
agent     a1
limits    23.5/s, capacity 47
held      banned, 1 h 0 min left, frozen, operator
quality   4.10 ± 0.20
ratings   31.5
admitted  1200
denied    3
policy    price
rates     ▁█

BUCKET  RATE/S  CAPACITY  LEVEL  FULL IN  LIMITS
main      23.5        47  40.25  288 ms   its own
writes       2        10     10  full     configured
";
        assert_eq!(shown(&agent("frozen"), NOW, Paint(false)), text);
    }

    #[test]
    fn an_explanation_is_in_plain_words() {
        let text = "
Why
  Its ratings say a quality of 4.10 ± 0.20.

What an operator did
  Held: banned, 1 h 0 min left, operator.
  Its requests are answered 403 until 2027-01-15T09:00:00Z.

Buckets
  main: limits of its own, 23.5/s, capacity 47; 40.25 tokens are there, full in 288 ms
  writes: the configured limits, 2/s, capacity 10; 10 tokens are there, which is all it holds

Moves, newest first
  12 s ago: a rating of 5 moved it from 23.1/s to 23.5/s
  13 s ago: a tick left it at 23.1/s (held: step)
  14 s ago: an operator put it at 23.1/s";
        assert_eq!(reasons(&agent("none"), NOW).join("\n"), text);
        let elsewhere = Agent { moves: None, ..agent("none") };
        assert!(reasons(&elsewhere, NOW).join("\n").contains("the tuner that has the agent"));
    }

    #[test]
    fn an_agent_that_nobody_knows_is_no_error_and_no_claim() {
        let unknown: Agent = serde_json::from_value(json!({
            "agent_id": "new", "known": false, "refill_rate": 20, "capacity": 40, "quality": null, "held": null
        }))
        .unwrap();
        assert_eq!(standing(&unknown), "is not known; it would start with 20/s, capacity 40");
        assert!(shown(&unknown, NOW, Paint(false)).contains("note      not known yet"));
    }

    #[test]
    fn a_list_is_a_table_and_says_how_much_of_it_there_is() {
        let row: Row = agent("none").row;
        let past = Row { banned_until_ms: Some(NOW - 1), operator: false, ..row.clone() };
        let text = "\
AGENT  RATE/S  CAPACITY      QUALITY  RATINGS  ADMITTED  DENIED  TREND  STATE
a1       23.5        47  4.10 ± 0.20     31.5      1200       3  ▁█     banned, 1 h 0 min left, operator
a1       23.5        47  4.10 ± 0.20     31.5      1200       3  ▁█
";
        assert_eq!(table(&[row, past], NOW).text(Paint(false)), text);
        let page = Page { total: 9, matching: 9, pages: 1, ..Page::default() };
        assert_eq!(summary(&page), "9 agents");
        let page = Page {
            matching: 3,
            page: 2,
            pages: 3,
            age_ms: Some(900),
            complete: Some(false),
            ..page
        };
        let text = "3 of 9 agents, page 2 of 3, read 900 ms ago; not all agents are in it yet";
        assert_eq!(summary(&page), text);
    }

    #[test]
    fn what_a_server_says_of_an_agent_cannot_steer_the_terminal() {
        let hostile = "\u{1b}]0;x\u{7}\u{202e}\r";
        let mut agent = agent(hostile);
        agent.row.agent_id = hostile.to_owned();
        agent.policy = Some(hostile.to_owned());
        agent.buckets[0].bucket_name = hostile.to_owned();
        agent.why.as_mut().unwrap().sentences[0] = hostile.to_owned();
        let step =
            Move { cause: Some(hostile.into()), held: Some(hostile.into()), ..Move::default() };
        agent.moves = Some(vec![step]);
        let texts = [
            shown(&agent, NOW, Paint(false)),
            reasons(&agent, NOW).join("\n"),
            table(std::slice::from_ref(&agent.row), NOW).text(Paint(false)),
        ];
        for text in texts {
            assert!(text.contains("\\u{1b}]0;x\\u{7}\\u{202e}\\r"), "{text}");
            assert!(!text.contains(['\u{1b}', '\u{7}', '\u{202e}', '\r']), "{text:?}");
        }
    }
}
