//! What a connection is told, over nodes, breaks and slow readers.

use proptest::prelude::*;

use super::*;
use crate::{bus::Partition, personalize::events::Ring};

const LOG: &str = "s1";
const PIECE: usize = 4;

/// A node that learns ratings of a few items from a log of three partitions.
struct Node {
    ring: Ring,
    positions: Positions,
}

impl Node {
    fn new(max: usize) -> Self {
        let ring = Ring::new(max);
        ring.of_log(LOG);
        for partition in 0..3 {
            ring.begin(Partition(partition), 0, false);
        }
        let mut positions = Positions::of(LOG);
        (0..3).for_each(|partition| positions.advance(Partition(partition), 0));
        Self { ring, positions }
    }

    /// Learns the rating at `offset` of `partition`, which is of the item `item`.
    fn learn(&mut self, partition: u32, offset: u64, item: &str) {
        self.positions.advance(Partition(partition), offset + 1);
        let event = self.ring.event(item, (Partition(partition), offset), &self.positions);
        self.ring.append(vec![event]);
    }

    fn connect(&self, items: Option<&[String]>, last: Option<&str>) -> Cursor {
        Cursor::new(&self.ring.state(), items, last, 256)
    }

    /// Returns at most `max` events that `cursor` is told, as (partition, offset), with the last id.
    fn told(&self, cursor: &mut Cursor, max: usize) -> (Vec<(u32, u64)>, Option<String>, bool) {
        let (mut told, mut last, mut reset) = (Vec::new(), None, false);
        while told.len() < max {
            let next = cursor.next(&self.ring.state(), PIECE.min(max - told.len()));
            reset |= next.reset;
            let ended = next.events.is_empty() && next.all;
            for event in next.events {
                if let Said::Rated(rated) = &event.event {
                    told.push((rated.partition.0, rated.offset));
                }
                last = event.id.map(String::from).or(last);
            }
            if ended {
                break;
            }
        }
        (told, last, reset)
    }
}

fn item(partition: u32, offset: u64) -> String {
    format!("i{}", (u64::from(partition) + offset) % 5)
}

proptest! {
    /// Two nodes read one log, each in an order of its own and at a pace of its own. A client breaks off
    /// wherever it likes and goes on at either of them.
    #[test]
    fn wherever_a_client_goes_on_it_is_told_every_event_once(
        reads in proptest::collection::vec((0_usize..2, 0_u32..3, 1_u64..4), 0..120),
        breaks in proptest::collection::vec((0_usize..2, 0_usize..9), 1..40),
        filtered in any::<bool>(),
    ) {
        let mut nodes = [Node::new(1000), Node::new(1000)];
        let wanted = ["i1".to_owned(), "i3".to_owned()];
        let items = filtered.then_some(&wanted[..]);
        // From the start of the log.
        let start = EventId::encode(super::super::id::log_name(LOG), &nodes[0].positions);
        let mut last = start;
        let mut all: Vec<(u32, u64)> = Vec::new();
        let mut reads = reads.into_iter();
        for (at, take) in breaks {
            for (node, partition, count) in reads.by_ref().take(5) {
                for _ in 0..count {
                    let offset = nodes[node].positions.next(Partition(partition)).unwrap();
                    nodes[node].learn(partition, offset, &item(partition, offset));
                }
            }
            let mut cursor = nodes[at].connect(items, Some(&last));
            let (told, id, reset) = nodes[at].told(&mut cursor, take);
            prop_assert!(!reset);
            all.extend(told);
            last = id.unwrap_or(last);
        }
        // In the end both have read everything, and the client is told the rest by either.
        for partition in 0..3 {
            let end = nodes.iter().map(|n| n.positions.next(Partition(partition)).unwrap()).max().unwrap();
            for node in &mut nodes {
                for offset in node.positions.next(Partition(partition)).unwrap()..end {
                    node.learn(partition, offset, &item(partition, offset));
                }
            }
        }
        let mut cursor = nodes[0].connect(items, Some(&last));
        let (told, ..) = nodes[0].told(&mut cursor, usize::MAX);
        all.extend(told);
        let mut expected: Vec<(u32, u64)> = (0..3).flat_map(|partition| {
            let end = nodes[0].positions.next(Partition(partition)).unwrap();
            (0..end).map(move |offset| (partition, offset))
        }).filter(|(p, o)| !filtered || wanted.contains(&item(*p, *o))).collect();
        all.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(all, expected);
    }
}

#[test]
fn who_connects_anew_is_told_what_comes_and_nothing_of_before() {
    let mut node = Node::new(10);
    node.learn(0, 0, "a");
    let mut cursor = node.connect(None, None);
    assert_eq!(node.told(&mut cursor, 9), (vec![], None, false));
    node.learn(1, 0, "b");
    let (told, id, _) = node.told(&mut cursor, 9);
    assert_eq!(told, [(1, 0)]);
    assert_eq!(EventId::decode(&id.unwrap()).unwrap().positions.next, node.positions.next);
}

#[test]
fn who_falls_behind_is_told_the_newest_of_each_item_once_and_in_order() {
    let mut node = Node::new(1000);
    let mut slow = node.connect(None, None);
    for offset in 0..600 {
        node.learn(0, offset, if offset % 100 == 7 { "rare" } else { "often" });
    }
    let next = slow.next(&node.ring.state(), 100);
    let told: Vec<u64> = next
        .events
        .iter()
        .map(|told| match &told.event {
            Said::Rated(event) => event.offset,
            Said::Item(_) => unreachable!("nothing was reset"),
        })
        .collect();
    assert_eq!((told, next.replaced, next.reset, next.all), (vec![507, 599], 598, false, true));
    node.learn(0, 600, "often");
    assert_eq!(node.told(&mut slow, 9).0, [(0, 600)]);
}

#[test]
fn an_id_that_is_too_old_of_another_log_or_none_at_all_resets_to_the_newest_of_each_item() {
    let mut node = Node::new(5);
    let log = super::super::id::log_name(LOG);
    let old = EventId::encode(log, &node.positions);
    for offset in 0..8 {
        node.learn(0, offset, if offset % 2 == 0 { "a" } else { "b" });
    }
    let other = EventId::encode(super::super::id::log_name("s2"), &node.positions);
    for last in [&*old, &other, "nonsense", ""] {
        let mut cursor = node.connect(None, Some(last));
        let (told, id, reset) = node.told(&mut cursor, 9);
        assert_eq!((told, reset), (vec![(0, 6), (0, 7)], true), "{last}");
        let again = node.connect(None, id.as_deref());
        assert!(again.seen.is_some(), "it goes on exactly from there");
    }
    // Of items that nobody rated lately the present score is told, before the others and without an id.
    let items = ["quiet".to_owned(), "b".to_owned()];
    let mut cursor = node.connect(Some(&items), Some("nonsense"));
    let next = cursor.next(&node.ring.state(), 9);
    let ids: Vec<bool> = next.events.iter().map(|told| told.id.is_some()).collect();
    assert_eq!((ids, next.reset), (vec![false, true], true));
    assert!(next.events[0].event.data().contains("quiet"));
}

#[test]
fn a_gap_or_another_log_resets_who_was_before_it() {
    let mut node = Node::new(100);
    node.learn(0, 0, "a");
    let mut cursor = node.connect(None, None);
    let (_, id, _) = {
        node.learn(0, 1, "a");
        node.told(&mut cursor, 9)
    };
    let id = id.unwrap();
    assert!(node.connect(None, Some(&id)).seen.is_some());
    node.ring.begin(Partition(0), 9, true);
    assert!(node.connect(None, Some(&id)).reset, "what was missed cannot be told");
    node.ring.of_log("s2");
    let next = cursor.next(&node.ring.state(), 9);
    assert!(next.all && !next.reset, "nothing was lost to who had read all");
    node.positions = Positions::of("s2");
    node.learn(0, 0, "a");
    assert_eq!(node.told(&mut cursor, 9).0, [(0, 0)]);
}

#[test]
fn data_is_one_line_whatever_an_item_is_called() {
    for item in ["a\u{2028}b", "a\"}\n\ndata: x", "<script>", "\u{202e}rtl", "\u{85}", "\r"] {
        let data = data_of(item);
        let lines = |c: char| matches!(c, '\n' | '\r' | '\u{85}' | '\u{2028}' | '\u{2029}');
        assert!(!data.contains(lines), "{data:?}");
        let json = format!("{}1}}", data.strip_prefix("data: ").unwrap());
        let value: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!(value["item_id"], item);
    }
}
