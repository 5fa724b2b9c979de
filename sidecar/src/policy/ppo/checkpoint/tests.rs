//! What comes back is what was written, and whatever else bytes may be is refused by its own name.

use super::super::{
    Categorical, End, Gaussian, Real, Room, Trajectory,
    random::{Purpose, normal, stream},
    rollout::Batch,
};
use super::*;

fn expected(hidden: usize) -> Expected<Gaussian> {
    let config = Config { hidden, ..Config::default() };
    Expected { policy: "ppo".to_owned(), head: Gaussian::default(), inputs: 3, config }
}

fn learned(updates: u64) -> Learner<Gaussian> {
    let mut learner = Learner::new(Gaussian::default(), 3, expected(8).config, 9);
    (0..updates).for_each(|_| once(&mut learner));
    learner
}

/// An update from samples that depend on the learner and the number of its update alone.
fn once(learner: &mut Learner<Gaussian>) {
    let mut random = stream(4, Purpose::Environment, learner.updates());
    let (mut batch, mut trajectory) = (Batch::new(3), Trajectory::new(3));
    let mut room = Room::default();
    for _ in 0..100 {
        let observation = [0; 3].map(|_| f32::of(normal(&mut random)));
        let drawn = learner.network().draw(&observation, &mut room, &mut random);
        let value = learner.network().value(&observation, &mut room);
        let reward = observation[0] * drawn.action;
        trajectory.push(&observation, value, drawn, reward, End::Continues);
    }
    trajectory.finish(0.5, learner.config().horizon(), &mut batch);
    learner.update(&batch).unwrap();
}

fn checkpoint(learner: Learner<Gaussian>) -> Checkpoint<Gaussian> {
    let notes = [("scene".to_owned(), "{\"a\":1}".to_owned())].into();
    Checkpoint { policy: "ppo".to_owned(), learner, notes }
}

fn error(bytes: &[u8]) -> CheckpointError {
    Checkpoint::decode(bytes, &expected(8)).map(|_| ()).unwrap_err()
}

/// The bytes of a checkpoint after `change` to its metadata and tensors, with a checksum that fits.
fn forged(change: impl FnOnce(&mut Meta, &mut Tensors)) -> Vec<u8> {
    let learner = learned(1);
    let mut meta = Meta {
        format: FORMAT.to_owned(),
        version: VERSION,
        policy: "ppo".to_owned(),
        shape: shape(learner.network()),
        seed: 9,
        updates: 1,
        optimizer_steps: 4,
        notes: BTreeMap::new(),
        sha256: String::new(),
    };
    let mut tensors = tensors(&learner);
    change(&mut meta, &mut tensors);
    write(meta, &tensors)
}

#[test]
fn what_is_read_is_what_was_written_bit_for_bit() {
    let checkpoint = checkpoint(learned(3));
    let bytes = checkpoint.encode().unwrap();
    let back = Checkpoint::decode(&bytes, &expected(8)).unwrap();
    assert_eq!(back.learner.network(), checkpoint.learner.network());
    assert_eq!(back.learner.adam(), checkpoint.learner.adam());
    assert_eq!((back.learner.seed(), back.learner.updates()), (9, 3));
    assert_eq!((back.policy, back.notes), (checkpoint.policy, checkpoint.notes));
}

#[test]
fn the_same_learner_gives_the_same_bytes() {
    let bytes = checkpoint(learned(2)).encode().unwrap();
    for _ in 0..5 {
        assert_eq!(checkpoint(learned(2)).encode().unwrap(), bytes);
    }
}

#[test]
fn three_updates_a_checkpoint_and_three_more_are_six_bit_for_bit() {
    let bytes = checkpoint(learned(3)).encode().unwrap();
    let mut resumed = Checkpoint::decode(&bytes, &expected(8)).unwrap().learner;
    (0..3).for_each(|_| once(&mut resumed));
    let straight = checkpoint(learned(6)).encode().unwrap();
    assert_eq!(checkpoint(resumed).encode().unwrap(), straight);
}

#[test]
fn other_tools_can_read_it() {
    let bytes = checkpoint(learned(1)).encode().unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("actor.0.weight").unwrap().shape(), [3, 8]);
    assert_eq!(file.len(), 39);
}

#[test]
fn a_checkpoint_cut_off_anywhere_or_added_to_is_truncated() {
    let mut bytes = checkpoint(learned(1)).encode().unwrap();
    for length in (0..bytes.len()).step_by(61) {
        assert_eq!(error(&bytes[..length]), CheckpointError::Truncated { bytes: length });
    }
    bytes.push(0);
    assert!(matches!(error(&bytes), CheckpointError::Truncated { .. }));
}

#[test]
fn no_flipped_bit_anywhere_goes_unnoticed() {
    let bytes = checkpoint(learned(1)).encode().unwrap();
    for place in 0..bytes.len() {
        let mut spoiled = bytes.clone();
        spoiled[place] ^= 1 << (place % 8);
        assert!(Checkpoint::decode(&spoiled, &expected(8)).is_err(), "byte {place}");
    }
    let last = bytes.len() - 1;
    let mut spoiled = bytes;
    spoiled[last] ^= 1;
    assert!(matches!(error(&spoiled), CheckpointError::Corrupt { .. }));
}

#[test]
fn a_newer_version_says_so_even_when_nothing_else_of_it_can_be_read() {
    let bytes = forged(|meta, _| meta.version = VERSION + 1);
    assert_eq!(error(&bytes), CheckpointError::Newer { found: VERSION + 1 });
    let entry = format!("{{\"format\":\"{FORMAT}\",\"version\":7,\"unheard\":[1]}}");
    let entries = Some([(ENTRY.to_owned(), entry)].into_iter().collect());
    let bytes = safetensors::serialize(Vec::<(&str, TensorView<'_>)>::new(), entries).unwrap();
    assert_eq!(error(&bytes), CheckpointError::Newer { found: 7 });
    assert!(matches!(error(&forged(|meta, _| meta.version = 0)), CheckpointError::Corrupt { .. }));
}

#[test]
fn networks_of_another_shape_are_named_with_what_is_needed() {
    let bytes = checkpoint(learned(1)).encode().unwrap();
    let refused = Checkpoint::decode(&bytes, &expected(16)).map(|_| ()).unwrap_err();
    let (found, needed) = ("gaussian 3x8x8x1".to_owned(), "gaussian 3x16x16x1".to_owned());
    assert_eq!(refused, CheckpointError::Shape { found, expected: needed });
    let head = Categorical { actions: 1 };
    let Expected { policy, inputs, config, .. } = expected(8);
    let other = Expected { policy, head, inputs, config };
    let refused = Checkpoint::decode(&bytes, &other).map(|_| ()).unwrap_err();
    assert!(matches!(refused, CheckpointError::Shape { .. }));
}

#[test]
fn tensors_that_are_not_those_of_the_shape_it_names_are_corrupt() {
    for bytes in [
        forged(|_, tensors| drop(tensors.remove("adam.first.critic.1.bias"))),
        forged(|_, tensors| drop(tensors.insert("more".to_owned(), (vec![1], vec![0; 4])))),
        forged(|_, tensors| tensors.get_mut("actor.0.weight").unwrap().0.reverse()),
        forged(|_, tensors| {
            tensors.get_mut("adam.second.actor.0.bias").unwrap().1[..4]
                .copy_from_slice(&(-1.0_f32).to_le_bytes());
        }),
    ] {
        assert!(matches!(error(&bytes), CheckpointError::Corrupt { .. }), "{:?}", error(&bytes));
    }
}

#[test]
fn a_number_that_is_not_finite_is_neither_read_nor_written() {
    for (name, number) in
        [("critic.2.bias", f32::NAN), ("adam.second.actor.1.weight", f32::INFINITY)]
    {
        let bytes = forged(|_, tensors| {
            tensors.get_mut(name).unwrap().1[..4].copy_from_slice(&number.to_le_bytes());
        });
        assert_eq!(error(&bytes), CheckpointError::NotFinite { tensor: name.to_owned() });
    }
    let mut network = learned(1).network().clone();
    network.parameters_mut()[0] = f32::NAN;
    let adam = Adam::new(network.parameters().len());
    let spoiled = Learner::resume(network, adam, expected(8).config, 1, 1);
    let tensor = "actor.0.weight".to_owned();
    assert_eq!(checkpoint(spoiled).encode(), Err(CheckpointError::NotFinite { tensor }));
}

#[test]
fn files_of_others_and_of_other_policies_are_told_apart_from_damage() {
    let empty = safetensors::serialize(Vec::<(&str, TensorView<'_>)>::new(), None).unwrap();
    assert_eq!(error(&empty), CheckpointError::Foreign);
    let bytes = forged(|meta, _| meta.policy = "bandit".to_owned());
    let (found, expected) = ("bandit".to_owned(), "ppo".to_owned());
    assert_eq!(error(&bytes), CheckpointError::Policy { found, expected });
    let bytes = vec![0; BYTES_MAX + 1];
    assert_eq!(error(&bytes), CheckpointError::TooLarge { bytes: BYTES_MAX + 1 });
}
