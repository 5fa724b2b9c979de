//! The newest events of this node, in the order in which it learned them: one buffer for all connections.
//!
//! Events are numbered without a gap, also over a change of the log, which drops them all. For each
//! partition it is known from which offset on everything is here (`floors`): whoever has read that far can go
//! on exactly.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
};

use tokio::sync::watch;

use super::id::{EventId, log_name};
use crate::{
    bus::Partition,
    personalize::{Positions, model::Key},
};

/// Somebody rated an item.
#[derive(Debug)]
pub struct Rated {
    /// The item.
    pub(super) key: Key,
    pub(super) partition: Partition,
    pub(super) offset: u64,
    /// The id of whoever has read up to this event, as this node did.
    pub(super) id: Box<str>,
    /// The event's `data` up to the score.
    pub(super) data: Box<str>,
}

/// Returns an event's `data` up to the score: one line, whatever the item's id holds.
pub(super) fn data_of(item: &str) -> Box<str> {
    let item = serde_json::to_string(item).expect("text is JSON");
    // JSON leaves these as they are. SSE breaks lines at CR and LF only, which JSON escapes; other readers
    // of lines know more of them.
    let item = item
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
        .replace('\u{85}', "\\u0085");
    format!("data: {{\"item_id\":{item},\"rating\":").into()
}

/// What connections read.
#[derive(Debug)]
pub(super) struct State {
    /// Names the log in ids.
    pub(super) log: [u8; 8],
    events: VecDeque<Arc<Rated>>,
    /// The number of the first event that is here.
    first: u64,
    floors: BTreeMap<Partition, u64>,
    max: usize,
}

impl State {
    /// Returns the number of the first event that is here.
    pub(super) fn first(&self) -> u64 {
        self.first
    }

    /// Returns the number that the next event will have.
    pub(super) fn head(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// Returns the events from number `from` on, which is not before the first.
    pub(super) fn from(&self, from: u64) -> impl Iterator<Item = &Arc<Rated>> {
        let skipped = usize::try_from(from.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.events.range(skipped.min(self.events.len())..)
    }

    /// Returns whether everything behind `positions` is here.
    pub(super) fn reaches_back_to(&self, positions: &Positions) -> bool {
        self.floors
            .iter()
            .all(|(partition, floor)| positions.next(*partition).unwrap_or(0) >= *floor)
    }
}

/// The buffer; the node writes, connections read.
#[derive(Debug)]
pub(in crate::personalize) struct Ring {
    state: RwLock<State>,
    /// The number that the next event will have, as far as connections were told.
    told: watch::Sender<u64>,
}

impl Ring {
    pub(in crate::personalize) fn new(max: usize) -> Self {
        let state = State {
            log: log_name(""),
            events: VecDeque::new(),
            first: 0,
            floors: BTreeMap::new(),
            max: max.max(1),
        };
        Self { state: RwLock::new(state), told: watch::Sender::new(0) }
    }

    /// Returns the events; none is added while the answer is held.
    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what changes when there is something new.
    pub(super) fn news(&self) -> watch::Receiver<u64> {
        self.told.subscribe()
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Begins with another log: what is here means nothing in it.
    pub(in crate::personalize) fn of_log(&self, source: &str) {
        self.change(|state| {
            state.first = state.head();
            state.events.clear();
            state.floors.clear();
            state.log = log_name(source);
        });
    }

    /// Notes that `partition` is read from `from` on; when that is further than it was read, events are
    /// missing.
    pub(in crate::personalize) fn begin(&self, partition: Partition, from: u64, gap: bool) {
        self.change(|state| {
            let floor = state.floors.entry(partition).or_insert(from);
            if gap {
                *floor = from.max(*floor);
            }
        });
    }

    /// Returns the event that `item` was rated at `offset`, for a node that has read `positions` with it.
    pub(in crate::personalize) fn event(
        &self,
        item: &str,
        (partition, offset): (Partition, u64),
        positions: &Positions,
    ) -> Rated {
        let log = log_name(&positions.source);
        Rated {
            key: Key::item(item),
            partition,
            offset,
            id: EventId::encode(log, positions).into(),
            data: data_of(item),
        }
    }

    /// Adds events; connections hear of them with [`Ring::tell`].
    pub(in crate::personalize) fn append(&self, events: Vec<Rated>) {
        self.change(|state| {
            for event in events {
                if state.events.len() == state.max
                    && let Some(oldest) = state.events.pop_front()
                {
                    state.first += 1;
                    let floor = state.floors.entry(oldest.partition).or_insert(0);
                    *floor = (oldest.offset + 1).max(*floor);
                }
                state.events.push_back(Arc::new(event));
            }
        });
    }

    /// Wakes the connections.
    pub(in crate::personalize) fn tell(&self) {
        let head = self.state().head();
        self.told.send_if_modified(|told| std::mem::replace(told, head) != head);
    }
}
