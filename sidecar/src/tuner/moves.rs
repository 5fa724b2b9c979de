//! What moved an agent lately: the newest few decisions of each agent in memory, for people who ask why.

use serde::Serialize;

use crate::policy::Reason;

/// How many of an agent's decisions are remembered.
pub const MOVES: usize = 8;

/// What made a policy decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Cause {
    /// A rating came in.
    Rating,
    /// A tick: the price, or what the agent asks for, changed.
    Tick,
    /// An operator set its limits.
    Operator,
}

/// One decision that was in force.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Move {
    /// When it was made, in Unix milliseconds.
    pub at_ms: u64,
    /// What made it.
    pub cause: Cause,
    /// The rating's score, 1 to 5.
    pub score: Option<f32>,
    /// The rate before, tokens per second.
    pub from: f32,
    /// The rate after, tokens per second.
    pub to: f32,
    /// Why the policy's wish was not followed, if so.
    pub held: Option<Reason>,
}

/// An agent's newest moves. Empty, it is one pointer.
#[derive(Clone, Debug, Default)]
pub(super) struct Moves(Option<Box<Ring>>);

#[derive(Clone, Debug)]
struct Ring {
    moves: [Option<Move>; MOVES],
    /// Where the next one goes.
    next: u8,
    /// How many of the newest are not in force yet.
    unwritten: u8,
}

#[allow(clippy::cast_possible_truncation, reason = "there are 8 of them")]
const LAST: u8 = MOVES as u8 - 1;

impl Moves {
    /// Remembers a decision that is not in force before [`Moves::written`].
    pub(super) fn note(&mut self, one: Move) {
        let ring = self
            .0
            .get_or_insert_with(|| Box::new(Ring { moves: [None; MOVES], next: 0, unwritten: 0 }));
        ring.moves[usize::from(ring.next)] = Some(one);
        ring.next = if ring.next == LAST { 0 } else { ring.next + 1 };
        ring.unwritten = (ring.unwritten + 1).min(LAST + 1);
    }

    /// What was noted is in force.
    pub(super) fn written(&mut self) {
        if let Some(ring) = &mut self.0 {
            ring.unwritten = 0;
        }
    }

    /// What was noted and is not in force never was.
    pub(super) fn undo(&mut self) {
        let Some(ring) = &mut self.0 else { return };
        for _ in 0..ring.unwritten {
            ring.next = if ring.next == 0 { LAST } else { ring.next - 1 };
            ring.moves[usize::from(ring.next)] = None;
        }
        ring.unwritten = 0;
    }

    /// Returns those in force, newest first.
    pub(super) fn newest_first(&self) -> Vec<Move> {
        let Some(ring) = &self.0 else { return Vec::new() };
        let (older, newer) = ring.moves.split_at(usize::from(ring.next));
        let all = older.iter().rev().chain(newer.iter().rev()).flatten();
        all.skip(usize::from(ring.unwritten)).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at_ms: u64) -> Move {
        Move { at_ms, cause: Cause::Tick, score: None, from: 1.0, to: 2.0, held: None }
    }

    fn times(moves: &Moves) -> Vec<u64> {
        moves.newest_first().iter().map(|one| one.at_ms).collect()
    }

    #[test]
    fn the_newest_are_kept_and_what_never_was_in_force_is_not_told() {
        let mut moves = Moves::default();
        assert_eq!(times(&moves), [0; 0]);
        for at_ms in 1..=3 {
            moves.note(at(at_ms));
        }
        assert_eq!(times(&moves), [0; 0]);
        moves.written();
        assert_eq!(times(&moves), [3, 2, 1]);
        for at_ms in 4..=11 {
            moves.note(at(at_ms));
            moves.written();
        }
        assert_eq!(times(&moves), [11, 10, 9, 8, 7, 6, 5, 4]);
        moves.note(at(12));
        moves.note(at(13));
        assert_eq!(times(&moves), [11, 10, 9, 8, 7, 6]);
        moves.undo();
        assert_eq!(times(&moves), [11, 10, 9, 8, 7, 6]);
        moves.note(at(14));
        moves.written();
        assert_eq!(times(&moves), [14, 11, 10, 9, 8, 7, 6]);
    }
}
