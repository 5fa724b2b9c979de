//! One connection's place among the events: what it is told next, and under which id.
//!
//! Pure: the node's events in, the events to send out. An event is told once: those that another node told
//! before (`seen`) are left out, and as long as this node has not read as far as that one had, ids say
//! the further of both.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use super::{
    id::EventId,
    ring::{Rated, State, data_of},
};
use crate::personalize::{Positions, model::Key};

/// How many events are looked at under one lock.
const LOOKED_AT: usize = 1024;

/// An event to send.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) key: Key,
    /// Its id; none when events before it are still to come.
    pub(super) id: Option<Box<str>>,
    pub(super) event: Said,
}

/// Where the beginning of its `data` is.
#[derive(Debug)]
pub(super) enum Said {
    Rated(Arc<Rated>),
    Item(Box<str>),
}

impl Said {
    pub(super) fn data(&self) -> &str {
        match self {
            Self::Rated(event) => &event.data,
            Self::Item(data) => data,
        }
    }
}

/// What is to be sent.
#[derive(Debug, Default)]
pub(super) struct Next {
    /// Whether events were lost: what follows is the newest of each item.
    pub(super) reset: bool,
    pub(super) events: Vec<Told>,
    /// Events that newer ones of their items replaced.
    pub(super) replaced: u64,
    /// Whether there is nothing more at present.
    pub(super) all: bool,
}

/// A connection's place.
#[derive(Debug)]
pub(super) struct Cursor {
    /// The number of the next event to look at.
    next: u64,
    /// The items that it is about, by key; nothing for all.
    items: Option<HashMap<Key, Box<str>>>,
    /// What was read before, on another connection; until this node has read as far.
    seen: Option<Positions>,
    /// The newest event of each item, once it fell behind.
    waiting: VecDeque<Told>,
    reset: bool,
    behind_max: u64,
}

impl Cursor {
    /// Returns a cursor at the present, about `items` or all; with `last`, behind the event of that id, or
    /// reset when not everything behind it is here.
    pub(super) fn new(
        state: &State,
        items: Option<&[String]>,
        last: Option<&str>,
        behind_max: usize,
    ) -> Self {
        let key = |item: &String| (Key::item(item), data_of(item));
        let mut cursor = Self {
            next: state.head(),
            items: items.map(|items| items.iter().map(key).collect()),
            seen: None,
            waiting: VecDeque::new(),
            reset: false,
            behind_max: behind_max as u64,
        };
        let Some(last) = last else { return cursor };
        cursor.next = state.first();
        match EventId::decode(last) {
            Some(id) if id.log == state.log && state.reaches_back_to(&id.positions) => {
                cursor.seen = Some(id.positions);
            }
            _ => cursor.reset = true,
        }
        cursor
    }

    fn wants(&self, event: &Rated) -> bool {
        let seen = self.seen.as_ref().and_then(|seen| seen.next(event.partition));
        seen.is_none_or(|next| event.offset >= next)
            && self.items.as_ref().is_none_or(|items| items.contains_key(&event.key))
    }

    /// Returns at most `max` events to send next.
    pub(super) fn next(&mut self, state: &State, max: usize) -> Next {
        let mut next = Next::default();
        if self.next < state.first() {
            // What it would have been told is gone, or of another log.
            self.reset = true;
            self.seen = None;
            self.waiting.clear();
        }
        if self.reset {
            next.reset = true;
            next.replaced = self.fall_back(state, true);
        } else if self.waiting.is_empty()
            && self.seen.is_none()
            && state.head() - self.next > self.behind_max
        {
            next.replaced = self.fall_back(state, false);
        }
        while next.events.len() < max
            && let Some(told) = self.waiting.pop_front()
        {
            next.events.push(told);
        }
        if self.waiting.is_empty() {
            let from = self.next;
            for event in state.from(from).take(LOOKED_AT) {
                if next.events.len() == max {
                    break;
                }
                self.next += 1;
                if self.wants(event) {
                    let event = Arc::clone(event);
                    let id = Some(self.id_after(state, &event));
                    next.events.push(Told { key: event.key, id, event: Said::Rated(event) });
                }
            }
        }
        next.all = self.waiting.is_empty() && self.next == state.head();
        next
    }

    /// Puts the newest event of each item into `waiting`, and goes to the present. After a reset it is
    /// told of the items that it asks for in any case. Returns how many events were replaced.
    fn fall_back(&mut self, state: &State, reset: bool) -> u64 {
        self.reset = false;
        let from = if reset { state.first() } else { self.next };
        let mut newest: HashMap<Key, u64> = HashMap::new();
        let mut wanted = 0;
        for (number, event) in (from..).zip(state.from(from)) {
            if self.wants(event) {
                wanted += 1;
                newest.insert(event.key, number);
            }
        }
        let kept = newest.len() as u64;
        if reset && let Some(items) = &self.items {
            let mut quiet: Vec<(Key, &str)> = items
                .iter()
                .filter(|(key, _)| !newest.contains_key(*key))
                .map(|(key, data)| (*key, &**data))
                .collect();
            quiet.sort_unstable();
            // Without ids: whoever breaks off among them is reset again.
            let told =
                |(key, data): (Key, &str)| Told { key, id: None, event: Said::Item(data.into()) };
            self.waiting.extend(quiet.into_iter().map(told));
        }
        for (number, event) in (from..).zip(state.from(from)) {
            if newest.get(&event.key) == Some(&number) {
                let id = Some(event.id.clone());
                let event = Arc::clone(event);
                self.waiting.push_back(Told { key: event.key, id, event: Said::Rated(event) });
            }
        }
        self.next = state.head();
        wanted - kept
    }

    /// Returns the id under which `event` is told here: the further of what was read here and before.
    fn id_after(&mut self, state: &State, event: &Rated) -> Box<str> {
        let Some(seen) = &mut self.seen else { return event.id.clone() };
        let read = EventId::decode(&event.id).map(|id| id.positions).unwrap_or_default();
        let ahead = |(partition, next): (&_, &u64)| read.next(*partition).unwrap_or(0) < *next;
        if !seen.next.iter().any(ahead) {
            self.seen = None;
            return event.id.clone();
        }
        for (partition, next) in &read.next {
            seen.advance(*partition, *next);
        }
        // What was read before is as far as it was: only here is it further now.
        EventId::encode(state.log, seen).into()
    }
}

#[cfg(test)]
mod tests;
