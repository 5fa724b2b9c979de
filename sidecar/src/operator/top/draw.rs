//! The picture of `merit top`, drawn into a buffer of any size.
//!
//! Small terminals lose the figures first, then the events: the agents stay. Every text passes `visible`.

use std::collections::VecDeque;

use ratatui::{
    buffer::Buffer,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{
        Block, Borders, Paragraph, Row as Cells, Sparkline, StatefulWidget, Table, Widget, Wrap,
    },
};

use super::screen::{Screen, View};
use crate::operator::{
    agents::{quality, reasons, state, summary},
    answers::{Agent, Overview, Row},
    moment,
    show::{UNKNOWN, bars, known, number, visible},
};

/// From how many lines on there are figures, and events.
const FIGURES_FROM: u16 = 16;
const EVENTS_FROM: u16 = 22;
const FIGURES_HEIGHT: u16 = 5;
const EVENTS_HEIGHT: u16 = 6;
const LOST_HEIGHT: u16 = 2;
/// How many of an agent's rates its row shows.
const TREND: usize = 12;

/// Draws `screen` as it is at `now_ms`, in colours or without.
pub(super) fn draw(screen: &mut Screen, now_ms: u64, colours: bool, area: Rect, buf: &mut Buffer) {
    let hues = Hues(colours);
    let lost = if screen.lost.is_some() { LOST_HEIGHT } else { 0 };
    let figures = if area.height >= FIGURES_FROM { FIGURES_HEIGHT } else { 0 };
    let events = if area.height >= EVENTS_FROM { EVENTS_HEIGHT } else { 0 };
    let [head, away, body, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(lost),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    let [numbers, agents, told] = Layout::vertical([
        Constraint::Length(figures),
        Constraint::Fill(1),
        Constraint::Length(events),
    ])
    .areas(body);
    headline(screen, hues, head, buf);
    match &screen.overview {
        Some(overview) => {
            let overview = overview.clone();
            figures_of(screen, &overview, hues, numbers, buf);
            events_of(&overview, now_ms, told, buf);
        }
        None if screen.lost.is_none() => line("waits for the first answer", numbers, buf),
        None => {}
    }
    match screen.view {
        View::Agent => one_agent(screen, now_ms, agents, buf),
        View::Agents | View::Search => agents_of(screen, now_ms, hues, agents, buf),
    }
    if let Some(lost) = &screen.lost {
        // What is old must not look new.
        for part in [head, body] {
            buf.set_style(part, hues.old());
        }
        let since = moment::clock(lost.since_ms);
        let ago = moment::ago(lost.since_ms, now_ms);
        let kept = if screen.overview.is_some() { "; below is what was known then" } else { "" };
        let text = format!("DISCONNECTED since {since} UTC ({ago}){kept}. {}", visible(&lost.why));
        Paragraph::new(text).wrap(Wrap { trim: true }).style(hues.alarm()).render(away, buf);
    }
    footline(screen, hues, foot, buf);
}

fn line(text: &str, area: Rect, buf: &mut Buffer) {
    Paragraph::new(text.to_owned()).wrap(Wrap { trim: true }).render(area, buf);
}

/// Styles: colours only where they are wanted, else what every terminal has.
#[derive(Clone, Copy)]
struct Hues(bool);

impl Hues {
    fn of(self, colour: Color, modifier: Modifier) -> Style {
        let style = Style::new().add_modifier(modifier);
        if self.0 { style.fg(colour) } else { style }
    }

    fn head(self) -> Style {
        Style::new().add_modifier(Modifier::BOLD)
    }

    fn curve(self) -> Style {
        self.of(Color::Cyan, Modifier::empty())
    }

    fn bad(self) -> Style {
        self.of(Color::Red, Modifier::empty())
    }

    fn held(self) -> Style {
        self.of(Color::Cyan, Modifier::empty())
    }

    fn alarm(self) -> Style {
        self.of(Color::Red, Modifier::REVERSED | Modifier::BOLD)
    }

    fn old(self) -> Style {
        self.of(Color::DarkGray, Modifier::DIM)
    }
}

fn headline(screen: &Screen, hues: Hues, area: Rect, buf: &mut Buffer) {
    let mut spans = vec![
        Span::styled("merit", hues.head()),
        Span::raw(format!("  {}", visible(&screen.place))),
    ];
    if let Some(overview) = &screen.overview {
        let text = |text: &Option<String>| visible(text.as_deref().unwrap_or(UNKNOWN));
        let up = overview.uptime_seconds.and_then(moment::seconds);
        let up = up.unwrap_or_else(|| UNKNOWN.to_owned());
        let policy = overview.policy.as_ref().map_or_else(
            || UNKNOWN.to_owned(),
            |policy| match policy.mode.as_deref() {
                Some("live") | None => text(&policy.kind),
                Some(mode) => format!("{} ({})", text(&policy.kind), visible(mode)),
            },
        );
        let (role, version) = (text(&overview.role), text(&overview.version));
        spans.push(Span::raw(format!("  {role} {version}  up {up}  policy {policy}  ")));
        spans.push(match (overview.ready, overview.draining) {
            (_, Some(true)) => Span::styled("drains", hues.held()),
            (Some(true), _) => Span::raw("ready"),
            (Some(false), _) => {
                let parts = overview.parts.iter().flatten();
                let parts = parts.filter(|part| !part.ok && !part.spared);
                let names: Vec<String> = parts.map(|part| visible(&part.name)).collect();
                Span::styled(format!("not ready: {}", names.join(", ")), hues.bad())
            }
            (None, _) => Span::raw(UNKNOWN),
        });
    }
    Line::from(spans).render(area, buf);
}

fn figures_of(screen: &Screen, overview: &Overview, hues: Hues, area: Rect, buf: &mut Buffer) {
    let [ratings, requests, latency, market] =
        Layout::horizontal([3, 4, 4, 4].map(Constraint::Fill)).areas(area);
    let now = |line: &VecDeque<Option<f64>>| line.back().copied().flatten();
    let per_second =
        |value: Option<f64>| known(value, |value| format!("{}/s", number(round(value))));

    let title = format!("ratings {}", per_second(overview.ratings_per_second));
    curve(&title, &screen.trail.ratings, hues, ratings, buf);
    let (admitted, denied) = (now(&screen.trail.admitted), now(&screen.trail.denied));
    let title = format!("admitted {}, denied {}", per_second(admitted), per_second(denied));
    curve(&title, &screen.trail.admitted, hues, requests, buf);

    let quantiles = overview.rating_to_limit_seconds.clone().unwrap_or_default();
    let ms = |value: Option<f64>| {
        known(value, |seconds| format!("{} ms", number(round(seconds * 1000.0))))
    };
    let lines = [
        format!("p50 {}", ms(quantiles.p50)),
        format!("p95 {}  p99 {}", ms(quantiles.p95), ms(quantiles.p99)),
        format!("behind by {} ratings", known(overview.bus_lag_ratings, number)),
    ];
    boxed("rating to limit", &lines, latency, buf);

    let of_market = overview.market.clone().unwrap_or_default();
    let drift = overview.drift.clone().unwrap_or_default();
    let share = known(of_market.use_share, |share| format!("{} %", number(round(share * 100.0))));
    let lines = [
        format!("price {}  use {share}", known(of_market.price, number)),
        format!(
            "{} of {}",
            per_second(overview.used_per_second),
            per_second(of_market.service_capacity)
        ),
        format!("drift: {} fell, {} rose", known(drift.fall, number), known(drift.rise, number)),
    ];
    boxed("capacity", &lines, market, buf);
}

/// Rounds to three digits that matter.
fn round(value: f64) -> f64 {
    match value.abs() {
        size if size >= 100.0 => value.round(),
        size if size >= 10.0 => (value * 10.0).round() / 10.0,
        _ => (value * 100.0).round() / 100.0,
    }
}

fn boxed(title: &str, lines: &[String], area: Rect, buf: &mut Buffer) {
    let lines: Vec<Line<'_>> = lines.iter().map(|line| Line::raw(line.as_str())).collect();
    Paragraph::new(lines).block(frame(title)).render(area, buf);
}

fn frame(title: &str) -> Block<'_> {
    Block::new().borders(Borders::ALL).title(title)
}

fn curve(title: &str, line: &VecDeque<Option<f64>>, hues: Hues, area: Rect, buf: &mut Buffer) {
    let width = usize::from(area.width.saturating_sub(2));
    let shown = line.iter().skip(line.len().saturating_sub(width));
    let top = shown.clone().flatten().copied().fold(0.0, f64::max);
    // Bars are whole numbers: thousandths of the highest.
    let bar = |value: &Option<f64>| {
        value.map(|value| if top > 0.0 { thousandths(value / top) } else { 0 })
    };
    let bars: Vec<Option<u64>> = shown.map(bar).collect();
    let curve = Sparkline::default().block(frame(title)).max(1000).style(hues.curve());
    curve.data(bars).render(area, buf);
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is between 0 and 1000"
)]
fn thousandths(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * 1000.0).round() as u64
}

fn events_of(overview: &Overview, now_ms: u64, area: Rect, buf: &mut Buffer) {
    let events = overview.events.iter().flatten();
    let told = events.map(|event| {
        let when =
            event.at_ms.map_or_else(String::new, |at| format!("{:>12}  ", moment::ago(at, now_ms)));
        let agent = visible(event.agent_id.as_deref().unwrap_or_default());
        let text = visible(event.text.as_deref().or(event.kind.as_deref()).unwrap_or_default());
        Line::raw(format!("{when}{agent}  {text}"))
    });
    let lines: Vec<Line<'_>> = told.take(usize::from(area.height)).collect();
    let none = overview.events.is_none();
    let title = if none { "events (the tuner knows them)" } else { "events" };
    Paragraph::new(lines).block(Block::new().borders(Borders::TOP).title(title)).render(area, buf);
}

fn agents_of(screen: &mut Screen, now_ms: u64, hues: Hues, area: Rect, buf: &mut Buffer) {
    let Some(page) = &screen.page else { return };
    let wish = &screen.wish;
    let arrow = if wish.descending { "▼" } else { "▲" };
    let heading = |field: &str, name: &'static str, right: bool| {
        let text = if wish.sort == field { format!("{name}{arrow}") } else { name.to_owned() };
        let line = Line::raw(text);
        if right { line.right_aligned() } else { line }
    };
    let header = Cells::new([
        heading("agent_id", "AGENT", false),
        heading("refill_rate", "RATE/S", true),
        heading("capacity", "CAP", true),
        heading("quality", "QUALITY", true),
        heading("ratings", "RATINGS", true),
        heading("admitted", "ADMITTED", true),
        heading("denied", "DENIED", true),
        heading("", "TREND", false),
        heading("", "STATE", false),
    ])
    .style(hues.head());
    let rows: Vec<Cells<'_>> = page.agents.iter().map(|row| cells(row, now_ms, hues)).collect();
    let widths = [
        Constraint::Min(12),
        Constraint::Length(8),
        Constraint::Length(7),
        Constraint::Length(11),
        Constraint::Length(8),
        Constraint::Length(9),
        Constraint::Length(8),
        Constraint::Length(12),
        Constraint::Max(24),
    ];
    let title = summary(page);
    let title = match wish.search.is_empty() {
        true => title,
        false => format!("{title} with `{}`", visible(&wish.search)),
    };
    let table = Table::new(rows, widths)
        .header(header)
        .block(Block::new().borders(Borders::TOP).title(title))
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED));
    let mut state = screen.table;
    StatefulWidget::render(table, area, buf, &mut state);
    // Of a page that is not there yet the selection is not known to fit.
    if page.page == wish.page {
        screen.table = state;
    }
}

fn cells(row: &Row, now_ms: u64, hues: Hues) -> Cells<'static> {
    let (state, _) = state(row, now_ms);
    let right = |text: String| Line::raw(text).right_aligned();
    let rates = row.rates.as_deref().unwrap_or_default();
    let style = match row.banned_until_ms.is_some_and(|until| until > now_ms) {
        true => hues.bad(),
        false if state.is_empty() => Style::new(),
        false => hues.held(),
    };
    Cells::new([
        Line::raw(visible(&row.agent_id)),
        right(known(row.refill_rate.map(round), number)),
        right(known(row.capacity, number)),
        right(quality(row)),
        right(known(row.ratings.map(round), number)),
        right(known(row.admitted, number)),
        right(known(row.denied, number)),
        Line::raw(bars(&rates[rates.len().saturating_sub(TREND)..])),
        Line::raw(visible(&state)),
    ])
    .style(style)
}

fn one_agent(screen: &mut Screen, now_ms: u64, area: Rect, buf: &mut Buffer) {
    let id = visible(screen.wish.agent.as_deref().unwrap_or_default());
    let lines = match &screen.agent {
        None => vec!["waits for the answer".to_owned()],
        Some(Err(why)) => vec![visible(why)],
        Some(Ok(agent)) => [standing(agent, now_ms), reasons(agent, now_ms)].concat(),
    };
    let last = u16::try_from(lines.len()).unwrap_or(u16::MAX).saturating_sub(1);
    screen.scrolled = screen.scrolled.min(last);
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::raw).collect();
    Paragraph::new(lines)
        .wrap(Wrap { trim: false })
        .scroll((screen.scrolled, 0))
        .block(Block::new().borders(Borders::TOP).title(format!("agent {id}")))
        .render(area, buf);
}

fn standing(agent: &Agent, now_ms: u64) -> Vec<String> {
    let row = &agent.row;
    let (state, _) = state(row, now_ms);
    let limits = format!(
        "{}/s, capacity {}, quality {}, {} ratings (by weight)",
        known(row.refill_rate, number),
        known(row.capacity, number),
        quality(row),
        known(row.ratings, number)
    );
    let requests =
        format!("admitted {}, denied {}", known(row.admitted, number), known(row.denied, number));
    let mut lines = vec![limits, requests];
    for (label, values) in [("rate   ", &row.rates), ("quality", &row.qualities)] {
        let curve = bars(values.as_deref().unwrap_or_default());
        if !curve.is_empty() {
            lines.push(format!("{label} {curve}"));
        }
    }
    if !state.is_empty() {
        lines.push(visible(&state));
    }
    if agent.known == Some(false) {
        lines.push("nobody knows it yet: these are the limits it would start with".to_owned());
    }
    lines
}

fn footline(screen: &Screen, hues: Hues, area: Rect, buf: &mut Buffer) {
    let text = match screen.view {
        View::Search => format!("/{}_  enter keeps it, esc does not", visible(&screen.wish.search)),
        View::Agent => "esc back  ↑↓ scroll  q quit".to_owned(),
        View::Agents => "↑↓ move  enter agent  s sort  r reverse  / search  q quit".to_owned(),
    };
    Paragraph::new(text).style(hues.of(Color::Reset, Modifier::DIM)).render(area, buf);
}
