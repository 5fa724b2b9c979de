//! What the learning costs, on one thread.
//!
//! ```text
//! cargo bench -p merit-sidecar --features full --bench policy
//! ```
//!
//! The networks are those of the policy: 12 → 64 → 64 → 1, actor and critic, 10,115 parameters. `infer`
//! is one decision; `update` is 256 samples, 4 epochs, minibatches of 64, all epochs gone through. POLICY
//! section 5 has the bars: 1.06 µs for one actor, 4.7 ms for an update.

#![allow(missing_docs, reason = "criterion's macros write no docs")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use merit_sidecar::policy::ppo::{
    Batch, Checkpoint, Config, End, Expected, Gaussian, Learner, Purpose, Room, Trajectory, normal,
    stream,
};

const SAMPLES: usize = 256;

fn learner() -> Learner<Gaussian> {
    // No early stop: the bar is for an update that goes all the way.
    let config = Config { kl_stop: 0.0, kl_max: 100.0, ..Config::default() };
    Learner::new(Gaussian::default(), 12, config, 1)
}

/// Samples that the networks of `learner` made, in trajectories of 32 ticks.
#[allow(clippy::cast_possible_truncation, reason = "noise")]
fn batch(learner: &Learner<Gaussian>) -> Batch<f32> {
    let mut random = stream(1, Purpose::Environment, 0);
    let (mut batch, mut trajectory) = (Batch::new(12), Trajectory::new(12));
    let mut room = Room::default();
    for n in 1..=SAMPLES {
        let observation = [0; 12].map(|_| normal(&mut random) as f32);
        let drawn = learner.network().draw(&observation, &mut room, &mut random);
        let value = learner.network().value(&observation, &mut room);
        trajectory.push(&observation, value, drawn, normal(&mut random) as f32, End::Continues);
        if n % 32 == 0 {
            trajectory.finish(0.0, learner.config().horizon(), &mut batch);
        }
    }
    batch
}

fn infer(criterion: &mut Criterion) {
    let learner = learner();
    let network = learner.network();
    let mut room = Room::default();
    let observation = [0.1_f32, 0.2, -0.3, 0.4, 0.5, -0.6, 0.7, 0.8, 0.9, 1.0, -0.1, 0.2];
    let mut random = stream(1, Purpose::Actions, 0);
    let mut group = criterion.benchmark_group("infer one");
    group.bench_function("actor", |bencher| {
        bencher.iter(|| network.best(black_box(&observation), &mut room));
    });
    group.bench_function("actor, drawn with its density", |bencher| {
        bencher.iter(|| network.draw(black_box(&observation), &mut room, &mut random));
    });
    group.bench_function("critic", |bencher| {
        bencher.iter(|| network.value(black_box(&observation), &mut room));
    });
}

fn update(criterion: &mut Criterion) {
    let learner = learner();
    let batch = batch(&learner);
    let mut group = criterion.benchmark_group("update");
    group.bench_function("256 samples, 4 epochs, minibatch 64", |bencher| {
        bencher.iter_batched_ref(
            || learner.clone(),
            |learner| learner.update(black_box(&batch)).expect("the samples are sound"),
            criterion::BatchSize::SmallInput,
        );
    });
}

fn checkpoint(criterion: &mut Criterion) {
    let learner = learner();
    let expected = Expected {
        policy: "ppo".to_owned(),
        head: Gaussian::default(),
        inputs: 12,
        config: learner.config().clone(),
    };
    let notes = std::collections::BTreeMap::new();
    let checkpoint = Checkpoint { policy: "ppo".to_owned(), learner, notes };
    let bytes = checkpoint.encode().expect("every number is finite");
    let mut group = criterion.benchmark_group("checkpoint");
    group.bench_function("encode", |bencher| bencher.iter(|| checkpoint.encode()));
    group.bench_function("decode", |bencher| {
        bencher.iter(|| Checkpoint::decode(black_box(&bytes), &expected));
    });
}

criterion_group!(benches, infer, update, checkpoint);
criterion_main!(benches);
