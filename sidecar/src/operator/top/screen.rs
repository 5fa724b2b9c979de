//! What `merit top` shows and what keys make of it; it knows no terminal and no network.
//!
//! While nobody answers, the last picture stays, and `lost` says since when: nothing that is shown then
//! passes for new.

use std::collections::VecDeque;

use crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;
use tower_merit::AgentId;

use crate::operator::{
    agents::in_query,
    answers::{Agent, Overview, Page},
    args::SORTS,
};

/// How many moments the curves show at most.
const TRAIL_MAX: usize = 240;
/// The longest text that is searched for: no agent's id is longer.
const SEARCH_MAX: usize = tower_merit::AGENT_ID_MAX;
/// How many agents are asked for at once; further ones are on further pages.
const PAGE_SIZE: u32 = 100;
/// How far a page key moves.
const LEAP: isize = 10;

/// What is asked of the listener for the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    pub(super) search: String,
    pub(super) sort: &'static str,
    pub(super) descending: bool,
    pub(super) page: u32,
    /// The agent that is looked at.
    pub(super) agent: Option<String>,
}

impl Wish {
    /// Returns the wish for the agents in `sort`'s order, such as `-refill_rate`.
    pub(super) fn new(search: Option<String>, sort: &str) -> Self {
        let field = sort.strip_prefix('-').unwrap_or(sort);
        let sort_of = SORTS.iter().find(|known| **known == field).unwrap_or(&SORTS[0]);
        Self {
            search: search.unwrap_or_default(),
            sort: *sort_of,
            descending: sort.starts_with('-'),
            page: 1,
            agent: None,
        }
    }

    /// Returns where the page of agents is.
    pub(super) fn path(&self) -> String {
        let minus = if self.descending { "-" } else { "" };
        let mut path =
            format!("/agents?sort={minus}{}&page={}&page_size={PAGE_SIZE}", self.sort, self.page);
        if !self.search.is_empty() {
            path.push_str(&format!("&q={}", in_query(&self.search)));
        }
        path
    }

    fn same_list(&self, other: &Self) -> bool {
        self.path() == other.path()
    }
}

/// What the listener answered.
#[derive(Clone, Debug)]
pub(super) struct News {
    /// What was asked.
    pub(super) wish: Wish,
    pub(super) overview: Overview,
    pub(super) page: Page,
    /// The agent that was asked for, or why there is none.
    pub(super) agent: Option<Result<Box<Agent>, String>>,
}

/// What is before the eyes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum View {
    Agents,
    /// Agents, and keys are text to search for.
    Search,
    Agent,
}

/// What happens after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Stay,
    /// Something else is to be asked for.
    Ask,
    Quit,
}

/// Since when nobody answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Lost {
    pub(super) since_ms: u64,
    pub(super) why: String,
}

/// What was told over time, oldest first; gaps are none.
#[derive(Clone, Debug, Default)]
pub(super) struct Trail {
    pub(super) ratings: VecDeque<Option<f64>>,
    pub(super) admitted: VecDeque<Option<f64>>,
    pub(super) denied: VecDeque<Option<f64>>,
}

/// The whole state.
#[derive(Clone, Debug)]
pub(super) struct Screen {
    pub(super) place: String,
    pub(super) wish: Wish,
    pub(super) view: View,
    pub(super) overview: Option<Overview>,
    pub(super) page: Option<Page>,
    pub(super) agent: Option<Result<Box<Agent>, String>>,
    pub(super) lost: Option<Lost>,
    pub(super) trail: Trail,
    pub(super) table: TableState,
    /// How far the detail is scrolled, in lines.
    pub(super) scrolled: u16,
    /// What was searched for before `/`.
    before: String,
}

impl Screen {
    pub(super) fn new(place: String, wish: Wish) -> Self {
        Self {
            place,
            wish,
            view: View::Agents,
            overview: None,
            page: None,
            agent: None,
            lost: None,
            trail: Trail::default(),
            table: TableState::default().with_selected(0),
            scrolled: 0,
            before: String::new(),
        }
    }

    /// Takes what the listener answered, or since `now_ms` why it does not.
    pub(super) fn told(&mut self, news: Result<News, String>, now_ms: u64) {
        let news = match news {
            Ok(news) => news,
            Err(why) => {
                let since_ms = self.lost.as_ref().map_or(now_ms, |lost| lost.since_ms);
                if self.lost.is_none() {
                    // What the counts did meanwhile is not known.
                    self.trail.push(None, None, None);
                }
                self.lost = Some(Lost { since_ms, why });
                return;
            }
        };
        let old = if self.lost.take().is_none() { self.overview.as_ref() } else { None };
        let rate = |pick: fn(&Overview) -> Option<f64>| per_second(old?, &news.overview, pick);
        self.trail.push(
            news.overview.ratings_per_second,
            rate(|overview| overview.admitted_total),
            rate(|overview| overview.denied_total),
        );
        self.overview = Some(news.overview);
        // An answer to what is no longer asked would move the selection.
        if news.wish.same_list(&self.wish) {
            let last = news.page.agents.len().saturating_sub(1);
            let selected = self.table.selected().unwrap_or_default().min(last);
            self.table.select(Some(selected));
            if news.page.pages > 0 && self.wish.page > news.page.pages {
                self.wish.page = news.page.pages;
            }
            self.page = Some(news.page);
        }
        if news.wish.agent == self.wish.agent {
            self.agent = news.agent;
        }
    }

    /// Does what `key` means.
    pub(super) fn key(&mut self, key: KeyEvent) -> Next {
        if key.kind == KeyEventKind::Release {
            return Next::Stay;
        }
        // Raw terminals send no signal for it.
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Next::Quit } else { Next::Stay };
        }
        match self.view {
            View::Search => self.search_key(key.code),
            View::Agent => self.agent_key(key.code),
            View::Agents => self.agents_key(key.code),
        }
    }

    fn search_key(&mut self, code: KeyCode) -> Next {
        match code {
            KeyCode::Enter => self.view = View::Agents,
            KeyCode::Esc => {
                self.view = View::Agents;
                let before = std::mem::take(&mut self.before);
                return self.search(before);
            }
            KeyCode::Backspace => {
                let mut text = self.wish.search.clone();
                text.pop();
                return self.search(text);
            }
            KeyCode::Char(c) if self.wish.search.len() < SEARCH_MAX && !c.is_control() => {
                return self.search(format!("{}{c}", self.wish.search));
            }
            _ => {}
        }
        Next::Stay
    }

    fn search(&mut self, text: String) -> Next {
        self.wish.search = text;
        self.begin_list()
    }

    fn begin_list(&mut self) -> Next {
        self.wish.page = 1;
        self.table = TableState::default().with_selected(0);
        Next::Ask
    }

    fn agent_key(&mut self, code: KeyCode) -> Next {
        match code {
            KeyCode::Char('q') => return Next::Quit,
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace | KeyCode::Left => {
                self.view = View::Agents;
                (self.wish.agent, self.agent) = (None, None);
                return Next::Ask;
            }
            KeyCode::Down | KeyCode::Char('j') => self.scrolled = self.scrolled.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            _ => {}
        }
        Next::Stay
    }

    fn agents_key(&mut self, code: KeyCode) -> Next {
        match code {
            KeyCode::Char('q') => Next::Quit,
            KeyCode::Esc if !self.wish.search.is_empty() => self.search(String::new()),
            KeyCode::Char('s') => {
                let at =
                    SORTS.iter().position(|field| *field == self.wish.sort).unwrap_or_default();
                self.wish.sort = SORTS[(at + 1) % SORTS.len()];
                // Names go up, numbers down, until somebody turns them.
                self.wish.descending = self.wish.sort != "agent_id";
                self.begin_list()
            }
            KeyCode::Char('r') => {
                self.wish.descending = !self.wish.descending;
                self.begin_list()
            }
            KeyCode::Char('/') => {
                self.view = View::Search;
                self.before = self.wish.search.clone();
                Next::Stay
            }
            KeyCode::Down | KeyCode::Char('j') => self.step(1),
            KeyCode::Up | KeyCode::Char('k') => self.step(-1),
            KeyCode::PageDown | KeyCode::Right => self.step(LEAP),
            KeyCode::PageUp | KeyCode::Left => self.step(-LEAP),
            KeyCode::Home => self.begin_list(),
            KeyCode::Enter => {
                let Some(id) = self.selected() else { return Next::Stay };
                self.wish.agent = Some(id);
                (self.view, self.agent, self.scrolled) = (View::Agent, None, 0);
                Next::Ask
            }
            _ => Next::Stay,
        }
    }

    /// Returns the id of the selected agent, unless what the server calls one can be none.
    fn selected(&self) -> Option<String> {
        let id = &self.page.as_ref()?.agents.get(self.table.selected()?)?.agent_id;
        AgentId::new(id).ok().map(|id| id.to_string())
    }

    /// Moves the selection, over the ends of a page to the next one.
    fn step(&mut self, by: isize) -> Next {
        let Some(page) = &self.page else { return Next::Stay };
        let last = page.agents.len().saturating_sub(1);
        let at = self.table.selected().unwrap_or_default().min(last);
        let to = match (by < 0, by.unsigned_abs()) {
            (true, _) if at == 0 && self.wish.page > 1 => {
                self.wish.page -= 1;
                // The page's end is known when it is there.
                self.table = TableState::default().with_selected(usize::MAX);
                return Next::Ask;
            }
            (false, _) if at == last && self.wish.page < page.pages => {
                self.wish.page += 1;
                self.table = TableState::default().with_selected(0);
                return Next::Ask;
            }
            (true, by) => at.saturating_sub(by),
            (false, by) => at.saturating_add(by).min(last),
        };
        self.table.select(Some(to));
        Next::Stay
    }
}

impl Trail {
    fn push(&mut self, ratings: Option<f64>, admitted: Option<f64>, denied: Option<f64>) {
        for (line, value) in [
            (&mut self.ratings, ratings),
            (&mut self.admitted, admitted),
            (&mut self.denied, denied),
        ] {
            if line.len() == TRAIL_MAX {
                line.pop_front();
            }
            line.push_back(value);
        }
    }
}

/// Returns by how much a count grew per second; none where it fell, as it does when its process starts anew.
fn per_second(old: &Overview, new: &Overview, pick: fn(&Overview) -> Option<f64>) -> Option<f64> {
    let ms = new.at_ms?.checked_sub(old.at_ms?).filter(|ms| *ms > 0)?;
    let grown = pick(new)? - pick(old)?;
    let seconds = std::time::Duration::from_millis(ms).as_secs_f64();
    (grown >= 0.0).then_some(grown / seconds)
}
