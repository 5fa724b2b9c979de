//! The model: what it learns in a world that is known, and what it may never do.

use proptest::prelude::*;
use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::*;
use crate::personalize::prequential::Prequential;

fn small() -> Config {
    Config { factors: 4, users_max: 100, items_max: 50, context_rows: 64, ..Config::default() }
}

fn user(n: u32) -> Key {
    Key::user(&n.to_string())
}

fn item(n: u32) -> Key {
    Key::item(&n.to_string())
}

fn normal(random: &mut StdRng) -> f64 {
    (0..12).map(|_| random.random::<f64>()).sum::<f64>() - 6.0
}

/// A world of rank 4: true scores have a standard deviation of about 0.8, of which 0.6 are taste.
struct World {
    users: Vec<[f64; 5]>,
    items: Vec<[f64; 5]>,
}

const NOISE: f64 = 0.4;

impl World {
    fn new(users: usize, items: usize, random: &mut StdRng) -> Self {
        let taste = (0.6 / 2.0_f64).sqrt();
        let mut row = |bias: f64| -> [f64; 5] {
            std::array::from_fn(|n| normal(random) * if n == 0 { bias } else { taste })
        };
        Self {
            users: (0..users).map(|_| row(0.3)).collect(),
            items: (0..items).map(|_| row(0.4)).collect(),
        }
    }

    fn truth(&self, user: usize, item: usize) -> f64 {
        let (user, item) = (&self.users[user], &self.items[item]);
        let taste: f64 = user[1..].iter().zip(&item[1..]).map(|(a, b)| a * b).sum();
        (3.2 + user[0] + item[0] + taste).clamp(1.0, 5.0)
    }
}

#[test]
fn in_a_low_rank_world_the_error_comes_within_a_tenth_of_the_noise_and_far_below_popularity() {
    let mut random = StdRng::seed_from_u64(7);
    let world = World::new(1_000, 300, &mut random);
    let mut model = Model::new(Config::default());
    let mut measured = Prequential::default();
    let (mut floor, mut late, all) = (0.0, 0.0, 200_000);
    for n in 0..all {
        let rater = random.random_range(0..1_000_usize);
        // Few items have most of the ratings, as in shops.
        let place = random.random::<f64>() * random.random::<f64>() * 300.0;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0..300")]
        let rated = place as usize;
        let truth = world.truth(rater, rated);
        let score = (truth + NOISE * normal(&mut random)).clamp(1.0, 5.0);
        let (who, what) =
            (user(u32::try_from(rater).unwrap()), item(u32::try_from(rated).unwrap()));
        measured.learn(&mut model, who, what, &[], score);
        if n >= all * 9 / 10 {
            floor += (score - truth).powi(2);
            late += 1.0;
        }
    }
    let floor = (floor / late).sqrt();
    let last = measured.tenths().pop().unwrap();
    assert!(last.model.rmse < 1.1 * floor, "{} is far above {floor}", last.model.rmse);
    assert!(last.model.rmse < 0.6 * last.popularity.rmse, "{last:?}");
    assert!(last.popularity.rmse < last.mean.rmse, "{last:?}");
}

#[test]
fn somebody_unknown_is_told_the_items_popularity_and_of_an_unknown_item_the_mean() {
    let mut model = Model::new(small());
    assert_eq!(model.predict(user(1), item(1)), 3.0);
    for n in 0..40 {
        model.learn(user(n), item(1), &[], 5.0);
        model.learn(user(n), item(2), &[], 2.0);
    }
    let known = model.popularity(item(1)).unwrap();
    assert_eq!((known.ratings, known.mean), (40, 5.0));
    assert!(known.score < 5.0 && known.score > 4.5, "{known:?}");
    assert_eq!(model.predict(user(99), item(1)), known.score);
    assert_eq!(model.predict(user(99), item(9)), model.mean());
    assert_eq!(model.popularity(item(9)), None);
    assert!(model.predict(user(3), item(1)) > model.predict(user(3), item(2)) + 1.5);
}

#[test]
fn circumstances_are_learned_and_do_not_spoil_what_is_known_without_them() {
    let mut model = Model::new(small());
    let rainy = [Circumstance(7)];
    let mut off = 0.0;
    for n in 0..4_000_u32 {
        let (rain, who, what) = (n % 2 == 0, user(n % 10), item(n % 7));
        let (score, told) = if rain { (2.0, &rainy[..]) } else { (4.0, &[][..]) };
        let predicted = model.learn(who, what, told, score);
        off = f64::midpoint(off, (predicted - score).abs());
    }
    assert!(off < 0.1, "still off by {off}");
    assert!((model.predict(user(1), item(1)) - 4.0).abs() < 0.3);
}

#[test]
fn who_was_forgotten_and_comes_back_begins_as_before() {
    let config = Config { users_max: 1, ..small() };
    let mut model = Model::new(config);
    model.learn(user(1), item(1), &[], 5.0);
    let first: Vec<f32> = model.users.row(model.users.find(user(1)).unwrap()).to_vec();
    model.learn(user(2), item(2), &[], 1.0);
    assert_eq!((model.users.find(user(1)), model.size().forgotten), (None, 1));
    let mut fresh = vec![0.0; first.len()];
    begin(&mut fresh, USER_FACTORS, user(1), 1);
    let row = model.users.touch(user(1), |row| begin(row, USER_FACTORS, user(1), 1));
    assert_eq!(model.users.row(row), fresh);
    assert_eq!(model.users.count(row), 0);
}

#[test]
fn a_snapshot_gives_the_model_back_bit_for_bit_and_nothing_else_is_taken_for_one() {
    let mut model = Model::new(small());
    for n in 0..500 {
        model.learn(user(n % 120), item(n % 60), &[Circumstance(n.into())], f64::from(1 + n % 5));
    }
    let bytes = model.snapshot();
    let mut again = Model::from_snapshot(&bytes, small()).unwrap();
    assert_eq!(again.snapshot(), bytes);
    for n in 0..500 {
        let score = f64::from(1 + n % 4);
        let (a, b) = (user(n * 7 % 150), item(n * 3 % 70));
        assert_eq!(model.learn(a, b, &[], score), again.learn(a, b, &[], score));
    }
    assert_eq!(model.snapshot(), again.snapshot(), "also who is forgotten next");

    let other = |change: Config| Model::from_snapshot(&bytes, change).unwrap_err();
    let wrong = other(Config { factors: 5, ..small() });
    assert_eq!(wrong, SnapshotError::Settings { key: "factors", found: 4, wanted: 5 });
    assert!(matches!(other(Config { seed: 2, ..small() }), SnapshotError::Settings { .. }));
    for length in 0..bytes.len() {
        assert!(Model::from_snapshot(&bytes[..length], small()).is_err(), "{length} bytes");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert_eq!(Model::from_snapshot(&longer, small()).unwrap_err(), SnapshotError::Length);
    let smaller = Config { users_max: 3, ..small() };
    assert_eq!(Model::from_snapshot(&bytes, smaller).unwrap().size().users, 3);
}

proptest! {
    #[test]
    fn whatever_is_rated_scores_stay_within_the_scale_and_every_number_is_one(
        ratings in proptest::collection::vec(
            (0_u32..6, 0_u32..6, proptest::collection::vec(0_u64..9, 0..4), 1.0..=5.0_f64), 0..300,
        ),
        rate_first in 0.001_f32..=1.0, regularisation in 0.0_f32..=1.0, bias_rate in 0.0_f32..=1.0,
    ) {
        let config = Config {
            rate_first, rate: rate_first, regularisation, bias_rate, users_max: 4, items_max: 4,
            rate_half: 1e9, context_rows: 5, ..small()
        };
        let mut model = Model::new(config.clone());
        for (who, what, context, score) in ratings {
            let context: Vec<Circumstance> = context.into_iter().map(Circumstance).collect();
            let predicted = model.learn(user(who), item(what), &context, score);
            prop_assert!((1.0..=5.0).contains(&predicted));
        }
        for who in 0..6 {
            for what in 0..6 {
                prop_assert!((1.0..=5.0).contains(&model.predict(user(who), item(what))));
            }
        }
        // It refuses numbers that are none.
        prop_assert!(Model::from_snapshot(&model.snapshot(), config).is_ok());
    }
}
