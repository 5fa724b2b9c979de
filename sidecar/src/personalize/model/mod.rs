//! Biased matrix factorisation, one stochastic gradient step per rating, in bounded memory.
//!
//! 1. The score of user u for item i is μ + b_u + b_i + q_i·(p_u + Σ v_c) + Σ b_c, held within [1, 5]:
//!    Koren, Bell and Volinsky, "Matrix Factorization Techniques for Recommender Systems" (2009), with
//!    the circumstances c of a rating as Rendle's factorisation machine has them (2010), meeting the
//!    item only.
//! 2. A rating moves each of its terms by a step that falls with the ratings the row has had (Funk,
//!    2006, has it constant): a single pass must get far with few.
//! 3. First factors are drawn by seed and id: a user who was forgotten and comes back begins as before.
//! 4. Unknown user: the item's popularity, its mean shrunk towards μ. Unknown item: μ + b_u. Neither
//!    known: μ.
//! 5. No number is ever infinite or NaN, whatever is rated in whatever order.
//! 6. Pure: the same ratings and the same [`Config`] give the same model, bit for bit.

mod config;
mod snapshot;
mod table;

pub use config::Config;
pub use snapshot::SnapshotError;
pub use table::Key;

use self::table::Table;
use crate::rating::{Context, Rating, SCORE_MAX, SCORE_MIN, Scalar};

/// A bias or factor is held within this: twice the width of the scale.
const NUMBER_MAX: f32 = 8.0;
/// The most that one rating may be off by.
const ERROR_MAX: f32 = 4.0;
/// First factors are drawn evenly within this of zero.
const FIRST_MAX: f32 = 0.2;
/// How many ratings at the middle of the scale μ begins with.
const MEAN_PRIOR: f64 = 10.0;
/// From so many ratings on, μ follows the newer ones.
const MEAN_MEMORY: f64 = 1e6;

/// Where a row's numbers stand: its bias, then an item's mean score, then the factors.
const BIAS: usize = 0;
const MEAN: usize = 1;
const USER_FACTORS: usize = 1;
const ITEM_FACTORS: usize = 2;
const CONTEXT_FACTORS: usize = 1;

/// One circumstance of a rating: a key with its value, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Circumstance(u64);

/// Returns the circumstances that `context` tells of: one for each `key=value`. A number is the same
/// circumstance as the same number only, so producers should send categories.
#[must_use]
pub fn circumstances(context: &Context) -> Vec<Circumstance> {
    let of = |(key, value): (&crate::rating::ContextKey, &Scalar)| {
        let value = match value {
            Scalar::Bool(value) => format!("b{value}"),
            Scalar::Integer(value) => format!("n{value}"),
            Scalar::Number(value) => format!("n{value}"),
            Scalar::Text(value) => format!("t{value}"),
        };
        let key = Key::of(&[b"context\0", key.as_str().as_bytes(), b"\0", value.as_bytes()]);
        Circumstance(key.draw(0, 0))
    };
    context.iter().map(of).collect()
}

/// Returns what a rating is about: the item that it names, else the agent. Nothing is about neither.
#[must_use]
pub fn item_of(rating: &Rating) -> Option<&str> {
    let agent = || rating.agent().map(tower_merit::AgentId::as_str);
    rating.item().map(crate::rating::ItemId::as_str).or_else(agent)
}

/// What is known of an item, whoever asks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Popularity {
    /// Ratings since it was last forgotten.
    pub ratings: u32,
    /// Their mean, 1 to 5.
    pub mean: f64,
    /// The mean shrunk towards that of all items: what somebody unknown is told.
    pub score: f64,
}

/// A user's side of a prediction, looked up once for many items.
#[derive(Clone, Copy, Debug)]
pub struct Viewer {
    row: Option<usize>,
}

/// How much a model holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Users with factors.
    pub users: usize,
    /// Items with factors.
    pub items: usize,
    /// Users and items that made room for others.
    pub forgotten: u64,
}

/// The model.
#[derive(Clone, Debug)]
pub struct Model {
    config: Config,
    mean: f64,
    ratings: f64,
    users: Table,
    items: Table,
    /// Rows of circumstances, made with the first one.
    context: Vec<f32>,
    /// Ratings of each of these rows.
    context_counts: Vec<u32>,
    /// What circumstances add to the user's factors; kept to save an allocation per rating.
    tilted: Vec<f32>,
}

impl Model {
    /// Returns a model that has seen nothing.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            mean: f64::midpoint(SCORE_MIN, SCORE_MAX),
            ratings: MEAN_PRIOR,
            users: Table::new(USER_FACTORS + config.factors, config.users_max),
            items: Table::new(ITEM_FACTORS + config.factors, config.items_max),
            context: Vec::new(),
            context_counts: Vec::new(),
            tilted: vec![0.0; config.factors],
            config,
        }
    }

    /// Returns how it learns.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Returns how much it holds.
    #[must_use]
    pub fn size(&self) -> Size {
        Size {
            users: self.users.len(),
            items: self.items.len(),
            forgotten: self.users.evicted() + self.items.evicted(),
        }
    }

    /// Returns the mean of all ratings, 1 to 5.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.mean
    }

    /// Returns a user's side; it holds until the model learns.
    #[must_use]
    pub fn viewer(&self, user: Key) -> Viewer {
        Viewer { row: self.users.find(user) }
    }

    /// Returns the score that the viewer would give `item`, within [1, 5].
    #[must_use]
    pub fn score(&self, viewer: Viewer, item: Key) -> f64 {
        let score = match (viewer.row, self.items.find(item)) {
            (None, None) => self.mean,
            (None, Some(item)) => self.popularity_of(item).score,
            (Some(user), None) => self.mean + f64::from(self.users.row(user)[BIAS]),
            (Some(user), Some(item)) => {
                let (user, item) = (self.users.row(user), self.items.row(item));
                let taste = dot(&user[USER_FACTORS..], &item[ITEM_FACTORS..]);
                self.mean + f64::from(user[BIAS] + item[BIAS] + taste)
            }
        };
        score.clamp(SCORE_MIN, SCORE_MAX)
    }

    /// Returns the score that `user` would give `item`, within [1, 5].
    #[must_use]
    pub fn predict(&self, user: Key, item: Key) -> f64 {
        self.score(self.viewer(user), item)
    }

    /// Returns what is known of `item`; nothing when it was never rated or is forgotten.
    #[must_use]
    pub fn popularity(&self, item: Key) -> Option<Popularity> {
        self.items.find(item).map(|row| self.popularity_of(row))
    }

    fn popularity_of(&self, row: usize) -> Popularity {
        let (ratings, mean) = (self.items.count(row), f64::from(self.items.row(row)[MEAN]));
        let (weight, prior) = (f64::from(ratings), f64::from(self.config.popularity_prior));
        let score = (weight * mean + prior * self.mean) / (weight + prior);
        Popularity { ratings, mean, score }
    }

    /// Learns that `user` gave `item` this `score` under these circumstances; returns what it would
    /// have predicted, within [1, 5].
    ///
    /// # Panics
    ///
    /// Never for a score that is finite and within [1, 5].
    #[allow(clippy::cast_possible_truncation, reason = "scores and errors are small numbers")]
    pub fn learn(
        &mut self,
        user: Key,
        item: Key,
        circumstances: &[Circumstance],
        score: f64,
    ) -> f64 {
        assert!((SCORE_MIN..=SCORE_MAX).contains(&score), "a score is parsed at the edge");
        let known = (self.users.find(user), self.items.find(item));
        let fallback = self.predict(user, item);
        let (seed, factors) = (self.config.seed, self.config.factors);
        let user = self.users.touch(user, |row| begin(row, USER_FACTORS, user, seed));
        let item = self.items.touch(item, |row| begin(row, ITEM_FACTORS, item, seed));
        let rows = self.context_rows(circumstances);

        self.tilted.copy_from_slice(&self.users.row(user)[USER_FACTORS..]);
        let mut circumstance = 0.0;
        for &row in &rows {
            let row = &self.context[row..row + CONTEXT_FACTORS + factors];
            circumstance += row[BIAS];
            add(&mut self.tilted, &row[CONTEXT_FACTORS..]);
        }
        let taste = dot(&self.tilted, &self.items.row(item)[ITEM_FACTORS..]);
        let biases = self.users.row(user)[BIAS] + self.items.row(item)[BIAS] + circumstance;
        let linear = self.mean + f64::from(biases + taste);
        let predicted = match known {
            (Some(_), Some(_)) => linear.clamp(SCORE_MIN, SCORE_MAX),
            _ => fallback,
        };
        let error = ((score - linear) as f32).clamp(-ERROR_MAX, ERROR_MAX);
        self.step(user, item, &rows, error);

        let count = self.items.count(item) as f32;
        let mean = &mut self.items.row_mut(item)[MEAN];
        // From 2^24 ratings on an f32 counts no further: the mean then follows the newer ones.
        *mean += (score as f32 - *mean) / (count + 1.0);
        self.users.note_rating(user);
        self.items.note_rating(item);
        for row in rows {
            let count = &mut self.context_counts[row / (CONTEXT_FACTORS + factors)];
            *count = count.saturating_add(1);
        }
        self.ratings = (self.ratings + 1.0).min(MEAN_MEMORY);
        self.mean += (score - self.mean) / self.ratings;
        predicted
    }

    /// Moves every term of a rating that was off by `error`.
    fn step(&mut self, user: usize, item: usize, rows: &[usize], error: f32) {
        let Config { factors, regularisation, bias_regularisation, .. } = self.config;
        let bias = |config: &Config, count: u32, bias: &mut f32| {
            #[allow(clippy::cast_precision_loss, reason = "a step needs no more digits")]
            let rate = (1.0 / (count as f32 + config.bias_prior)).max(config.bias_rate);
            *bias = held(*bias + rate * (error - bias_regularisation * *bias));
        };
        #[allow(clippy::cast_precision_loss, reason = "a step needs no more digits")]
        let rate = |config: &Config, count: u32| {
            (config.rate_first / (1.0 + count as f32 / config.rate_half)).max(config.rate)
        };
        let (users, items) = (self.users.count(user), self.items.count(item));
        bias(&self.config, users, &mut self.users.row_mut(user)[BIAS]);
        bias(&self.config, items, &mut self.items.row_mut(item)[BIAS]);
        let of_user = rate(&self.config, users);
        let of_item = rate(&self.config, items);
        for &row in rows {
            let width = CONTEXT_FACTORS + factors;
            let count = self.context_counts[row / width];
            let of_row = rate(&self.config, count);
            let row = &mut self.context[row..row + width];
            bias(&self.config, count, &mut row[BIAS]);
            let item = &self.items.row(item)[ITEM_FACTORS..];
            for (v, q) in row[CONTEXT_FACTORS..].iter_mut().zip(item) {
                *v = held(*v + of_row * (error * q - regularisation * *v));
            }
        }
        let user = &mut self.users.row_mut(user)[USER_FACTORS..];
        let item = &mut self.items.row_mut(item)[ITEM_FACTORS..];
        for ((p, q), tilted) in user.iter_mut().zip(item).zip(&self.tilted) {
            let (before, slope) = (*q, *tilted);
            *q = held(*q + of_item * (error * slope - regularisation * *q));
            *p = held(*p + of_user * (error * before - regularisation * *p));
        }
    }

    /// Returns where the rows of `circumstances` begin, each once.
    fn context_rows(&mut self, circumstances: &[Circumstance]) -> Vec<usize> {
        let (rows, width) = (self.config.context_rows, CONTEXT_FACTORS + self.config.factors);
        if circumstances.is_empty() || rows == 0 {
            return Vec::new();
        }
        if self.context.is_empty() {
            self.context.resize(rows * width, 0.0);
            self.context_counts.resize(rows, 0);
        }
        #[allow(clippy::cast_possible_truncation, reason = "below the number of rows")]
        let place = |c: &Circumstance| (c.0 % rows as u64) as usize * width;
        let mut places: Vec<usize> = circumstances.iter().map(place).collect();
        places.sort_unstable();
        places.dedup();
        places
    }
}

/// Fills the row of a user or item that is new.
fn begin(row: &mut [f32], factors: usize, key: Key, seed: u64) {
    row[..factors].fill(0.0);
    for (index, factor) in (0..).zip(&mut row[factors..]) {
        // The upper 24 bits are an f32 in [0, 1) exactly.
        #[allow(clippy::cast_precision_loss, reason = "24 bits fit")]
        let share = (key.draw(seed, index) >> 40) as f32 / (1_u32 << 24) as f32;
        *factor = FIRST_MAX * (2.0 * share - 1.0);
    }
}

/// Returns `value` within bounds; zero when it is no number.
fn held(value: f32) -> f32 {
    if value.is_nan() { 0.0 } else { value.clamp(-NUMBER_MAX, NUMBER_MAX) }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

#[cfg(test)]
mod tests;
