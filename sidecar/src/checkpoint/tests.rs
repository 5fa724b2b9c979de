//! Every way in which a file can be wrong, and what is offered instead.

use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::policy::ppo::{Config, Gaussian, Learner};

/// A folder of its own, gone when the test is.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("merit-checkpoint-{}-{count}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        fs::create_dir(&folder).unwrap();
        Self(folder)
    }

    fn model(&self) -> PathBuf {
        self.0.join("model.chkpt")
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
        let mut names: Vec<String> = entries.map(|entry| name(entry).unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn expected() -> Expected<Gaussian> {
    let config = Config { hidden: 8, ..Config::default() };
    Expected { policy: "ppo".to_owned(), head: Gaussian::default(), inputs: 3, config }
}

fn checkpoint(seed: u64) -> Checkpoint<Gaussian> {
    let Expected { policy, head, inputs, config } = expected();
    let learner = Learner::new(head, inputs, config, seed);
    Checkpoint { policy, learner, notes: [].into() }
}

fn seed(found: &Checkpoint<Gaussian>) -> u64 {
    found.learner.seed()
}

/// Saves seeds 1 and 2, does `harm` to the file, and returns why it cannot be read. The last good one,
/// of seed 1, is offered.
fn harmed(harm: impl FnOnce(&Path)) -> FileError {
    let folder = Folder::new();
    let model = folder.model();
    save(&model, &checkpoint(1)).unwrap();
    save(&model, &checkpoint(2)).unwrap();
    harm(&model);
    let LoadError { error, last_good } = load(&model, &expected()).unwrap_err();
    assert_eq!(last_good.as_deref().map(seed), Some(1), "{error}");
    // Nothing of a broken file becomes the last good one.
    save(&model, &checkpoint(3)).unwrap();
    assert_eq!(seed(&load(&model, &expected()).unwrap()), 3);
    assert_eq!(seed(&decode(&last_good_path(&model), &expected()).unwrap()), 1);
    error
}

fn source(error: FileError) -> CheckpointError {
    match error {
        FileError::Refused { source, .. } => source,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_loaded_is_what_was_saved_last_and_what_was_before_is_kept() {
    let folder = Folder::new();
    let model = folder.model();
    for n in 1..=3 {
        save(&model, &checkpoint(n)).unwrap();
        assert_eq!(fs::read(&model).unwrap(), checkpoint(n).encode().unwrap());
        assert_eq!(seed(&load(&model, &expected()).unwrap()), n);
    }
    assert_eq!(seed(&decode(&last_good_path(&model), &expected()).unwrap()), 2);
    assert_eq!(folder.names(), ["model.chkpt", "model.chkpt.good", "model.chkpt.lock"]);
}

#[test]
fn where_nothing_was_saved_the_error_says_that_it_is_absent() {
    let folder = Folder::new();
    let LoadError { error, last_good } = load(&folder.model(), &expected()).unwrap_err();
    assert!(error.is_absent() && last_good.is_none(), "{error}");
}

#[test]
fn a_truncated_file_brings_the_last_good_one() {
    let error = source(harmed(|model| {
        let bytes = fs::read(model).unwrap();
        fs::write(model, &bytes[..bytes.len() / 2]).unwrap();
    }));
    assert!(matches!(error, CheckpointError::Truncated { .. }), "{error}");
    let empty = source(harmed(|model| fs::write(model, []).unwrap()));
    assert_eq!(empty, CheckpointError::Truncated { bytes: 0 });
}

#[test]
fn a_corrupted_file_brings_the_last_good_one() {
    let error = source(harmed(|model| {
        let mut bytes = fs::read(model).unwrap();
        let middle = bytes.len() - 100;
        bytes[middle] ^= 0x10;
        fs::write(model, bytes).unwrap();
    }));
    assert!(matches!(error, CheckpointError::Corrupt { .. }), "{error}");
}

#[test]
fn a_file_of_another_shape_brings_the_last_good_one() {
    let error = source(harmed(|model| {
        let Expected { policy, head, config, .. } = expected();
        let learner = Learner::new(head, 4, config, 9);
        let other = Checkpoint { policy, learner, notes: [].into() };
        fs::write(model, other.encode().unwrap()).unwrap();
    }));
    let (found, expected) = ("gaussian 4x8x8x1".to_owned(), "gaussian 3x8x8x1".to_owned());
    assert_eq!(error, CheckpointError::Shape { found, expected });
}

#[test]
fn a_file_that_is_gone_brings_the_last_good_one() {
    assert!(harmed(|model| fs::remove_file(model).unwrap()).is_absent());
}

#[test]
fn a_second_writer_is_told_so_and_changes_nothing() {
    let folder = Folder::new();
    let model = folder.model();
    save(&model, &checkpoint(1)).unwrap();
    let other = OpenOptions::new().write(true).open(beside(&model, ".lock")).unwrap();
    other.lock().unwrap();
    let error = save(&model, &checkpoint(2)).unwrap_err();
    assert!(error.is_transient(), "{error}");
    assert_eq!(seed(&load(&model, &expected()).unwrap()), 1);
    drop(other);
    save(&model, &checkpoint(2)).unwrap();
}

#[test]
fn what_a_crash_left_half_written_is_neither_read_nor_in_the_way() {
    let folder = Folder::new();
    let model = folder.model();
    save(&model, &checkpoint(1)).unwrap();
    fs::write(beside(&model, ".new"), b"half").unwrap();
    assert_eq!(seed(&load(&model, &expected()).unwrap()), 1);
    save(&model, &checkpoint(2)).unwrap();
    assert_eq!(seed(&load(&model, &expected()).unwrap()), 2);
}

#[test]
fn readers_never_see_a_part_while_a_writer_writes() {
    let folder = Folder::new();
    let model = folder.model();
    save(&model, &checkpoint(0)).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| (1..=50).for_each(|n| save(&model, &checkpoint(n)).unwrap()));
        let mut last = 0;
        while !writer.is_finished() {
            let found = seed(&load(&model, &expected()).unwrap());
            assert!(found >= last, "a checkpoint never goes back");
            last = found;
        }
    });
    assert_eq!(seed(&load(&model, &expected()).unwrap()), 50);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let path = Path::new("/nowhere/at/all/model.chkpt");
    let error = save(path, &checkpoint(1)).unwrap_err();
    assert!(error.to_string().contains("/nowhere/at/all/model.chkpt.lock"), "{error}");
}
