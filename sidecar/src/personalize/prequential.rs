//! Prequential error: each rating is predicted, then learned, so that nothing is tested on itself.
//!
//! Dawid, "Statistical Theory: The Prequential Approach" (1984). Beside the model stand two that know
//! nobody: the mean of all ratings so far, and the item's popularity.

use serde::Serialize;

use super::model::{Circumstance, Key, Model};

/// How many pieces the log is measured in at most; twice as many are made one when they are full.
const PIECES: usize = 2_000;

/// How far off predictions were, on the scale of 1 to 5.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Error {
    /// Root of the mean squared error.
    pub rmse: f64,
    /// Mean absolute error.
    pub mae: f64,
}

/// How far off each of them was over a part of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Errors {
    /// Ratings of this part.
    pub ratings: u64,
    /// The model.
    pub model: Error,
    /// The item's popularity: its mean so far, shrunk towards that of all.
    pub popularity: Error,
    /// The mean of all ratings so far.
    pub mean: Error,
}

#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    ratings: u64,
    /// Squared and absolute errors of the model, popularity and the mean.
    of: [(f64, f64); 3],
}

impl Sums {
    fn add(&mut self, other: &Self) {
        self.ratings += other.ratings;
        for (sum, more) in self.of.iter_mut().zip(other.of) {
            *sum = (sum.0 + more.0, sum.1 + more.1);
        }
    }

    fn errors(&self) -> Errors {
        #[allow(clippy::cast_precision_loss, reason = "fewer ratings than 2^52")]
        let count = self.ratings.max(1) as f64;
        let error = |(squared, absolute): (f64, f64)| Error {
            rmse: (squared / count).sqrt(),
            mae: absolute / count,
        };
        let [model, popularity, mean] = self.of.map(error);
        Errors { ratings: self.ratings, model, popularity, mean }
    }
}

/// Measures a model while it learns, in bounded memory.
#[derive(Clone, Debug)]
pub struct Prequential {
    pieces: Vec<Sums>,
    /// Ratings of a full piece.
    piece: u64,
}

impl Default for Prequential {
    fn default() -> Self {
        Self { pieces: Vec::new(), piece: 1 }
    }
}

impl Prequential {
    /// Predicts a rating, measures how far off that was, and has `model` learn it.
    pub fn learn(
        &mut self,
        model: &mut Model,
        user: Key,
        item: Key,
        circumstances: &[Circumstance],
        score: f64,
    ) {
        let mean = model.mean();
        let popularity = model.popularity(item).map_or(mean, |known| known.score);
        let predicted = model.learn(user, item, circumstances, score);
        let off = |guess: f64| ((guess - score).powi(2), (guess - score).abs());
        let of = [off(predicted), off(popularity), off(mean)];
        self.note(&Sums { ratings: 1, of });
    }

    fn note(&mut self, one: &Sums) {
        match self.pieces.last_mut() {
            Some(last) if last.ratings < self.piece => last.add(one),
            _ => {
                if self.pieces.len() == PIECES {
                    let pairs = self.pieces.chunks(2).map(|pair| {
                        let mut both = pair[0];
                        pair[1..].iter().for_each(|other| both.add(other));
                        both
                    });
                    self.pieces = pairs.collect();
                    self.piece *= 2;
                }
                self.pieces.push(*one);
            }
        }
    }

    /// Returns the errors over the whole log.
    #[must_use]
    pub fn whole(&self) -> Errors {
        let mut sums = Sums::default();
        self.pieces.iter().for_each(|piece| sums.add(piece));
        sums.errors()
    }

    /// Returns the errors of each tenth of the log, in order; of fewer parts when there are fewer
    /// than ten ratings. Their borders are right to a two-hundredth of a tenth.
    #[must_use]
    pub fn tenths(&self) -> Vec<Errors> {
        let parts = self.pieces.len().min(10);
        let part = |n: usize| {
            let mut sums = Sums::default();
            let (from, to) = (n * self.pieces.len() / parts, (n + 1) * self.pieces.len() / parts);
            self.pieces[from..to].iter().for_each(|piece| sums.add(piece));
            sums.errors()
        };
        (0..parts).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(ratings: u64) -> Prequential {
        let mut measured = Prequential::default();
        for n in 0..ratings {
            #[allow(clippy::cast_precision_loss, reason = "small numbers")]
            let off = n as f64;
            measured.note(&Sums { ratings: 1, of: [(off * off, off), (1.0, 1.0), (4.0, 2.0)] });
        }
        measured
    }

    #[test]
    fn no_rating_is_lost_or_counted_twice_however_long_the_log() {
        for ratings in [1, 2, 9, 10, 11, 1_999, 2_000, 2_001, 4_001, 30_123] {
            let measured = measured(ratings);
            let whole = measured.whole();
            assert_eq!(whole.ratings, ratings);
            assert_eq!((whole.popularity.rmse, whole.mean.mae), (1.0, 2.0));
            let tenths = measured.tenths();
            assert_eq!(tenths.len() as u64, ratings.min(10));
            assert_eq!(tenths.iter().map(|part| part.ratings).sum::<u64>(), ratings);
            assert!(measured.pieces.len() <= PIECES);
            for pair in tenths.windows(2) {
                assert!(pair[0].model.mae < pair[1].model.mae, "parts are in order");
                let (a, b) = (pair[0].ratings, pair[1].ratings);
                assert!(a.abs_diff(b) <= a.max(b) / 2, "{a} and {b}");
            }
        }
    }

    #[test]
    fn a_log_without_ratings_has_no_parts_and_no_error() {
        let nothing = Prequential::default();
        assert_eq!((nothing.tenths().len(), nothing.whole()), (0, Errors::default()));
    }
}
