//! What personalised ratings cost, on one thread, with a million users and 100,000 items.
//!
//! ```text
//! cargo bench -p merit-sidecar --features full --bench personalize
//! ```
//!
//! Users and items are drawn at random, so that nearly every row is fetched from memory. `rows alone` is the
//! physical limit beside it: the same rows, found by number, read and (for learning) written. `by name` is
//! what one would write first: a map from ids to vectors.

#![allow(missing_docs, reason = "criterion's macros write no docs")]

use std::{collections::HashMap, hint::black_box};

use criterion::{Criterion, criterion_group, criterion_main};
use merit_sidecar::personalize::model::{Config, Key, Model};

const USERS: u32 = 1_000_000;
const ITEMS: u32 = 100_000;
const FACTORS: usize = 16;

/// Draws pairs without an end, the same ones in each run.
struct Draw(u64);

impl Draw {
    #[allow(clippy::cast_possible_truncation, reason = "a number below `below`")]
    fn below(&mut self, below: u32) -> u32 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((self.0 >> 33) % u64::from(below)) as u32
    }
}

fn keys() -> (Vec<Key>, Vec<Key>) {
    let users = (0..USERS).map(|n| Key::user(&format!("user-{n}"))).collect();
    let items = (0..ITEMS).map(|n| Key::item(&format!("item-{n}"))).collect();
    (users, items)
}

fn model(users: &[Key], items: &[Key]) -> Model {
    let mut model = Model::new(Config { factors: FACTORS, ..Config::default() });
    let mut draw = Draw(1);
    for user in users {
        let item = items[draw.below(ITEMS) as usize];
        model.learn(*user, item, &[], f64::from(1 + draw.below(5)));
    }
    model
}

fn million(criterion: &mut Criterion) {
    let (users, items) = keys();
    let mut model = model(&users, &items);
    let mut draw = Draw(2);
    let mut group = criterion.benchmark_group("predict");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| {
            let (user, item) = (draw.below(USERS) as usize, draw.below(ITEMS) as usize);
            black_box(model.predict(users[user], items[item]))
        });
    });
    group.bench_function("ours, ids hashed as well", |bencher| {
        bencher.iter(|| {
            let user = Key::user(black_box("user-314159"));
            let item = Key::item(black_box("item-27182"));
            black_box(model.predict(user, item))
        });
    });
    let rows = vec![[0.1_f32; FACTORS + 2]; USERS as usize];
    let of_items = vec![[0.1_f32; FACTORS + 2]; ITEMS as usize];
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    group.bench_function("rows alone", |bencher| {
        bencher.iter(|| {
            let (user, item) = (draw.below(USERS) as usize, draw.below(ITEMS) as usize);
            black_box(dot(&rows[user], &of_items[item]))
        });
    });
    let named: HashMap<String, Vec<f32>> =
        (0..USERS).map(|n| (format!("user-{n}"), vec![0.1; FACTORS + 1])).collect();
    let named_items: HashMap<String, Vec<f32>> =
        (0..ITEMS).map(|n| (format!("item-{n}"), vec![0.1; FACTORS + 1])).collect();
    let names: Vec<String> = (0..USERS).map(|n| format!("user-{n}")).collect();
    let item_names: Vec<String> = (0..ITEMS).map(|n| format!("item-{n}")).collect();
    group.bench_function("by name", |bencher| {
        bencher.iter(|| {
            let (user, item) = (draw.below(USERS) as usize, draw.below(ITEMS) as usize);
            black_box(dot(&named[&names[user]], &named_items[&item_names[item]]))
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("learn");
    group.bench_function("ours", |bencher| {
        bencher.iter(|| {
            let (user, item) = (draw.below(USERS) as usize, draw.below(ITEMS) as usize);
            black_box(model.learn(users[user], items[item], &[], 4.0))
        });
    });
    let (mut rows, mut of_items) = (rows, of_items);
    group.bench_function("rows alone", |bencher| {
        bencher.iter(|| {
            let (user, item) = (draw.below(USERS) as usize, draw.below(ITEMS) as usize);
            let (user, item) = (&mut rows[user], &mut of_items[item]);
            let error = 0.001 * dot(user, item);
            for (p, q) in user.iter_mut().zip(item.iter_mut()) {
                let before = *q;
                *q += error * *p;
                *p += error * before;
            }
        });
    });
    group.finish();

    let mut group = criterion.benchmark_group("snapshot of a million users");
    group.sample_size(10);
    group.bench_function("encode", |bencher| bencher.iter(|| black_box(model.snapshot()).len()));
    group.finish();
}

criterion_group!(benches, million);
criterion_main!(benches);
