//! The newest ids of one agent's ratings: a repeat counts once, for 24 hours. A receipt counts once
//! for as long as it is valid, whatever the ids of the ratings that lean on it.
//!
//! Kept in slots of [`SLOT`] ids, so that a write carries one or two slots instead of the whole
//! window. A slot's text is `<number of its first id>:` and 32 hexadecimal digits per id: the id's
//! hash (16), the content's (8), the second it was accepted in (8). A rating with a verified receipt
//! has two entries, its id's and its receipt's.

use crate::rating::Rating;

/// Ids in a slot.
const SLOT: usize = 32;

/// Slots in a window: the newest one is being filled, the others hold at least 512 ids.
const SLOTS: usize = 17;

/// How long an id is remembered, in seconds.
const REMEMBERED_S: u32 = 24 * 3600;

/// How long a receipt is remembered, in seconds: longer than it is valid (7 days), by the clock
/// difference that its reader forgives and a day for the way from ingest to here.
const RECEIPT_REMEMBERED_S: u32 = 8 * 24 * 3600 + 60;

/// Digits per id in a slot's text.
const ENTRY_TEXT: usize = 32;

/// Digits of the number that a slot's text begins with, and the colon.
const FIRST_TEXT_MAX: usize = 21;

/// Whether a rating was seen before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// Never, within the window.
    New,
    /// Yes, the same.
    Repeat,
    /// Its id was, with another content: the first one counts.
    Conflict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    content: u32,
    accepted_s: u32,
}

/// The window. Tags, ids and the rest stand apart, so that looking for an id reads hardly more than tags.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Window {
    /// The low 16 bits of each id.
    tags: Vec<u16>,
    ids: Vec<u64>,
    entries: Vec<Entry>,
    /// How many ids there have ever been; id number `n` stands at `n % (SLOT * SLOTS)`.
    count: u64,
    /// The first id number that was not written yet.
    unwritten: u64,
}

/// Long past: it never counts as seen.
const UNKNOWN: Entry = Entry { content: 0, accepted_s: 0 };

const CAPACITY: u64 = (SLOT * SLOTS) as u64;

impl Window {
    /// Restores a window from its slots. A slot that cannot be read counts as absent.
    pub(super) fn restore(slots: &[(String, String)]) -> Self {
        let mut window = Self::default();
        let mut parsed: Vec<(u64, &str)> = slots
            .iter()
            .filter_map(|(_, text)| {
                let (first, ids) = text.split_once(':')?;
                Some((first.parse().ok()?, ids))
            })
            .collect();
        parsed.sort_unstable();
        for (first, ids) in parsed {
            if window.count == 0 && first > 0 {
                window.tags.resize(SLOT * SLOTS, 0);
                window.ids.resize(SLOT * SLOTS, 0);
                window.entries.resize(SLOT * SLOTS, UNKNOWN);
                window.count = first;
            }
            // A slot begins on its own boundary: ids between two slots are unknown, not shifted.
            for _ in window.count..first.min(window.count + CAPACITY) {
                window.put(0, UNKNOWN);
            }
            window.count = window.count.max(first);
            for entry in ids.as_bytes().chunks_exact(ENTRY_TEXT) {
                let hex = |range: std::ops::Range<usize>| {
                    u64::from_str_radix(std::str::from_utf8(&entry[range]).ok()?, 16).ok()
                };
                let (Some(id), Some(content), Some(second)) =
                    (hex(0..16), hex(16..24), hex(24..32))
                else {
                    continue;
                };
                window.put(id, Entry { content: low(content), accepted_s: low(second) });
            }
        }
        window.unwritten = window.count;
        window
    }

    fn put(&mut self, id: u64, entry: Entry) {
        let place = usize::try_from(self.count % CAPACITY).expect("below 544");
        if place < self.ids.len() {
            self.tags[place] = tag(id);
            self.ids[place] = id;
            self.entries[place] = entry;
        } else {
            self.tags.push(tag(id));
            self.ids.push(id);
            self.entries.push(entry);
        }
        self.count += 1;
    }

    /// Tells whether `rating` was seen, or one that leaned on the same receipt, and remembers it.
    pub(super) fn see(&mut self, rating: &Rating) -> Seen {
        let id = (rating.once_key(), REMEMBERED_S);
        let receipt = rating.receipt_key().map(|key| (key, RECEIPT_REMEMBERED_S));
        let content = rating.checksum();
        let accepted_s = u32::try_from(rating.accepted_at_us() / 1_000_000).unwrap_or(u32::MAX);
        let keys = || std::iter::once(id).chain(receipt);
        for (key, remembered_s) in keys() {
            let mut from = 0;
            while let Some(place) = self.find(from, key) {
                from = place + 1;
                let known = self.entries[place];
                if accepted_s.saturating_sub(known.accepted_s) < remembered_s {
                    return if known.content == content { Seen::Repeat } else { Seen::Conflict };
                }
            }
        }
        for (key, _) in keys() {
            self.put(key, Entry { content, accepted_s });
        }
        Seen::New
    }

    /// Returns the first place from `from` on at which the id `key` stands.
    fn find(&self, mut from: usize, key: u64) -> Option<usize> {
        loop {
            let place = find(&self.tags, from, tag(key))?;
            if self.ids[place] == key {
                return Some(place);
            }
            from = place + 1;
        }
    }

    /// Returns the slots that changed since they were last taken, as `(slot, text)`.
    pub(super) fn take_unwritten(&mut self) -> Vec<(String, String)> {
        if self.unwritten == self.count {
            return Vec::new();
        }
        // At most one window's worth: older slots were overwritten meanwhile.
        let slot = SLOT as u64;
        let oldest = ((self.count - 1) / slot).saturating_sub(SLOTS as u64 - 1);
        let first = (self.unwritten / slot).max(oldest);
        let slots = (first * slot..self.count).step_by(SLOT).map(|number| {
            let name = (number / slot) % SLOTS as u64;
            (name.to_string(), self.slot_text(number, (number + slot).min(self.count)))
        });
        let slots = slots.collect();
        self.unwritten = self.count;
        slots
    }

    fn slot_text(&self, from: u64, to: u64) -> String {
        let mut text = Vec::with_capacity(FIRST_TEXT_MAX + SLOT * ENTRY_TEXT);
        text.extend_from_slice(from.to_string().as_bytes());
        text.push(b':');
        for number in from..to {
            let place = usize::try_from(number % CAPACITY).expect("below 544");
            let Entry { content, accepted_s } = self.entries[place];
            text.extend_from_slice(&hex(self.ids[place]));
            text.extend_from_slice(&hex((u64::from(content) << 32) | u64::from(accepted_s)));
        }
        String::from_utf8(text).expect("digits are ASCII")
    }
}

/// What is compared first of an id.
#[allow(clippy::cast_possible_truncation, reason = "the low bits are what is compared")]
fn tag(id: u64) -> u16 {
    id as u16
}

/// Returns the first place from `from` on at which `tag` stands. A window is searched at every rating: tags
/// are compared by the chunk, which takes a quarter of the time that one after another does.
fn find(tags: &[u16], from: usize, tag: u16) -> Option<usize> {
    const CHUNK: usize = 32;
    let (chunks, rest) = tags.get(from..)?.as_chunks::<CHUNK>();
    let holds = |chunk: &[u16; CHUNK]| chunk.iter().fold(false, |found, &one| found | (one == tag));
    let passed = chunks.iter().position(holds).unwrap_or(chunks.len()) * CHUNK;
    let tags = chunks.get(passed / CHUNK).map_or(rest, <[u16; CHUNK]>::as_slice);
    let within = tags.iter().position(|&one| one == tag)?;
    Some(from + passed + within)
}

/// Returns `number` in 16 hexadecimal digits. A write carries up to 32 ids, so that formatting them digit by
/// digit would cost more than folding the rating: here eight digits are made at a time, a byte for each.
fn hex(number: u64) -> [u8; 16] {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let digits = |half: u64| {
        let pairs = ((half << 16) | half) & 0x0000_ffff_0000_ffff;
        let bytes = ((pairs << 8) | pairs) & 0x00ff_00ff_00ff_00ff;
        let nibbles = ((bytes << 4) | bytes) & 0x0f0f_0f0f_0f0f_0f0f;
        // 1 where a digit is a letter: those are further on in ASCII.
        let letters = ((nibbles + 6 * EACH) >> 4) & EACH;
        let text = nibbles + u64::from(b'0') * EACH + u64::from(b'a' - b'0' - 10) * letters;
        text.to_be_bytes()
    };
    let mut text = [0; 16];
    text[..8].copy_from_slice(&digits(number >> 32));
    text[8..].copy_from_slice(&digits(number & 0xffff_ffff));
    text
}

#[allow(clippy::cast_possible_truncation, reason = "the low half is what is kept")]
fn low(number: u64) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::rating::{Poster, RatingRequest, ReceiptId};

    fn rating(id: u32, score: u32, second: u64) -> Rating {
        let body = format!(r#"{{"agent_id":"a","user_id":"u","score":{score},"id":"i{id}"}}"#);
        let request = RatingRequest::from_json(body.as_bytes()).unwrap();
        request.into_rating(Poster::new("p").unwrap(), second * 1_000_000).unwrap()
    }

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn a_repeat_is_seen_and_another_content_under_the_same_id_is_a_conflict() {
        let mut window = Window::default();
        assert_eq!(window.see(&rating(1, 5, NOW)), Seen::New);
        assert_eq!(window.see(&rating(1, 5, NOW + 9)), Seen::Repeat);
        assert_eq!(window.see(&rating(1, 4, NOW + 9)), Seen::Conflict);
        assert_eq!(window.see(&rating(2, 5, NOW)), Seen::New);
    }

    #[test]
    fn an_id_is_found_wherever_it_stands_and_again_behind_that() {
        for length in [0, 1, 31, 32, 33, 80, 544_u64] {
            let mut window = Window::default();
            // Ids that share a tag with others are told apart.
            let id = |n: u64| (n % 7) | (n % 3) << 16;
            (0..length).for_each(|n| window.put(id(n), UNKNOWN));
            for key in (0..8).flat_map(|low| (0..4).map(move |high| low | high << 16)) {
                let mut from = 0;
                let mut found = Vec::new();
                while let Some(place) = window.find(from, key) {
                    found.push(place as u64);
                    from = place + 1;
                }
                let all = (0..length).filter(|&n| id(n) == key);
                assert_eq!(found, all.collect::<Vec<_>>(), "{key} of {length}");
            }
        }
    }

    #[test]
    fn digits_are_those_that_formatting_gives() {
        let mut number = 1_u64;
        for _ in 0..10_000 {
            number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            assert_eq!(hex(number).as_slice(), format!("{number:016x}").as_bytes());
        }
        for number in [0, 9, 10, 0x99, 0xaa, 0x0123_4567_89ab_cdef, u64::MAX] {
            assert_eq!(hex(number).as_slice(), format!("{number:016x}").as_bytes());
        }
    }

    #[test]
    fn a_slot_is_the_text_that_is_stored_already() {
        let mut window = Window::default();
        window.put(0x0123_4567_89ab_cdef, Entry { content: 0xfe, accepted_s: 0x6b49_d200 });
        window.put(1, Entry { content: u32::MAX, accepted_s: 0 });
        let slots = window.take_unwritten();
        let text = "0:0123456789abcdef000000fe6b49d2000000000000000001ffffffff00000000";
        assert_eq!(slots, [("0".to_owned(), text.to_owned())]);
    }

    #[test]
    fn an_id_is_forgotten_after_a_day() {
        let mut window = Window::default();
        window.see(&rating(1, 5, NOW));
        assert_eq!(window.see(&rating(1, 5, NOW + 86_399)), Seen::Repeat);
        assert_eq!(window.see(&rating(1, 5, NOW + 86_400)), Seen::New);
    }

    #[test]
    fn a_receipt_counts_once_for_longer_than_it_is_valid_whatever_the_ids() {
        let of = |receipt: &str, id, score, second| {
            rating(id, score, second).receipted(ReceiptId::new(receipt).unwrap())
        };
        let mut window = Window::default();
        assert_eq!(window.see(&of("r1", 1, 5, NOW)), Seen::New);
        assert_eq!(window.see(&of("r1", 2, 5, NOW)), Seen::Repeat);
        assert_eq!(window.see(&of("r1", 2, 1, NOW)), Seen::Conflict, "the first opinion counts");
        assert_eq!(window.see(&of("r2", 2, 1, NOW)), Seen::New);
        assert_eq!(window.see(&of("r3", 2, 1, NOW)), Seen::Repeat, "ids count once as ever");
        let slots = window.take_unwritten();
        let mut restored = Window::restore(&slots);
        let week = tower_merit::receipt::VALID_FOR.as_secs();
        let last = NOW + week + tower_merit::receipt::CLOCK_DIFFERENCE_MAX.as_secs();
        assert_eq!(restored.see(&of("r1", 7, 5, last)), Seen::Repeat);
        assert_eq!(restored.see(&rating(7, 5, last)), Seen::New, "a refusal remembers nothing");
    }

    #[test]
    fn the_newest_512_ids_are_remembered_and_memory_is_bounded() {
        let mut window = Window::default();
        for id in 0..2_000 {
            assert_eq!(window.see(&rating(id, 5, NOW)), Seen::New);
        }
        for id in 2_000 - 512..2_000 {
            assert_eq!(window.see(&rating(id, 5, NOW)), Seen::Repeat, "{id}");
        }
        assert!(window.ids.len() <= SLOT * SLOTS);
    }

    #[test]
    fn what_was_written_slot_by_slot_restores_the_window() {
        let mut window = Window::default();
        let mut store = BTreeMap::new();
        for id in 0..1_500 {
            window.see(&rating(id, 5, NOW));
            if id % 7 == 0 {
                let slots = window.take_unwritten();
                assert!(slots.len() <= 2, "a write of {} slots for seven ids", slots.len());
                store.extend(slots);
            }
        }
        store.extend(window.take_unwritten());
        assert!(window.take_unwritten().is_empty());
        let slots: Vec<_> = store.into_iter().collect();
        let mut restored = Window::restore(&slots);
        for id in 1_500 - 512..1_500 {
            assert_eq!(restored.see(&rating(id, 5, NOW)), Seen::Repeat, "{id}");
        }
        assert_eq!(restored.see(&rating(1_500, 5, NOW)), Seen::New);
        assert_eq!(restored.take_unwritten().len(), 1);
    }

    #[test]
    fn a_whole_window_of_new_ids_is_written_at_once() {
        let mut window = Window::default();
        for id in 0..1_000 {
            window.see(&rating(id, 5, NOW));
        }
        let slots = window.take_unwritten();
        let mut restored = Window::restore(&slots);
        assert!((1_000 - 512..1_000).all(|id| restored.see(&rating(id, 5, NOW)) == Seen::Repeat));
    }
}
