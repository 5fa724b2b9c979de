use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;

use super::*;

const MAX: u64 = 1 << 20;

/// A folder of its own, gone with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("merit-spool-{}-{number}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// Opens it; another test may just start a program, which holds a copy of every lock until it begins.
    fn open(&self) -> Spool {
        let began = std::time::Instant::now();
        loop {
            match Spool::open(&self.0, MAX) {
                Err(SpoolError::InUse { .. }) if began.elapsed().as_secs() < 5 => {
                    std::thread::sleep(std::time::Duration::from_millis(1));
                }
                opened => return opened.unwrap(),
            }
        }
    }

    fn files(&self) -> Vec<PathBuf> {
        self.ending(ENDING)
    }

    fn ending(&self, ending: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(&self.0).unwrap().flatten().map(|entry| entry.path());
        let mut files: Vec<_> =
            entries.filter(|path| path.to_string_lossy().ends_with(ending)).collect();
        files.sort();
        files
    }

    /// Asserts that the spool does not open, names `file` and `record`, and changes nothing.
    fn is_damaged(&self, file: &Path, record: u64) {
        let before = fs::read(file).unwrap();
        let error = Spool::open(&self.0, MAX).unwrap_err();
        assert!(!error.is_transient());
        let name = file.file_name().unwrap().to_str().unwrap();
        assert!(error.to_string().contains(name), "{error}");
        assert!(error.to_string().contains(&format!("at record {record},")), "{error}");
        assert_eq!(fs::read(file).unwrap(), before);
        assert!(self.ending(TORN).is_empty());
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn rating(text: &str) -> Received {
    Received { received_ms: 7, body: Bytes::copy_from_slice(text.as_bytes()) }
}

fn ratings(numbers: std::ops::Range<u64>) -> Vec<Received> {
    numbers.map(|number| rating(&number.to_string())).collect()
}

/// Returns the texts of everything from `from` on, read in small pieces.
fn texts(spool: &mut Spool, from: u64) -> Vec<String> {
    let (mut found, mut number) = (Vec::new(), from);
    loop {
        let records = spool.read(number, 3, 1 << 20).unwrap();
        if records.is_empty() {
            return found;
        }
        for record in records {
            assert_eq!(record.number, number);
            assert_eq!(record.rating.received_ms, 7);
            found.push(String::from_utf8(record.rating.body.to_vec()).unwrap());
            number += 1;
        }
    }
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

#[test]
fn what_was_appended_is_there_after_the_process_is_gone_and_goes_on_at_the_position() {
    let folder = Folder::new();
    let mut spool = folder.open();
    spool.append(&ratings(0..5)).unwrap();
    spool.append(&ratings(5..8)).unwrap();
    assert_eq!(texts(&mut spool, 0), numbers(0..8));
    spool.deliver(6).unwrap();
    drop(spool);
    let mut spool = folder.open();
    assert_eq!((spool.delivered(), spool.end()), (6, 8));
    assert_eq!(texts(&mut spool, 6), numbers(6..8));
    spool.append(&ratings(8..9)).unwrap();
    assert_eq!(texts(&mut spool, 7), numbers(7..9));
    assert_eq!(spool.last().unwrap().unwrap(), "8");
    spool.deliver(9).unwrap();
    drop(spool);
    let mut spool = folder.open();
    assert_eq!((spool.delivered(), spool.end()), (9, 9));
    assert_eq!(texts(&mut spool, 9), [""; 0]);
    assert_eq!(spool.last().unwrap().unwrap(), "8", "what came last is known after a restart");
}

#[test]
fn a_torn_end_is_cut_off_wherever_it_was_torn() {
    let folder = Folder::new();
    let mut spool = folder.open();
    spool.append(&ratings(0..3)).unwrap();
    let file = folder.files().pop().unwrap();
    let good = fs::read(&file).unwrap();
    spool.append(&ratings(3..4)).unwrap();
    let whole = fs::read(&file).unwrap();
    drop(spool);
    for length in good.len()..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        let mut spool = folder.open();
        assert_eq!(texts(&mut spool, 0), numbers(0..3), "torn at {length}");
        assert_eq!(fs::read(&file).unwrap(), good);
        // Nothing is thrown away.
        let aside = folder.ending(TORN);
        let kept: Vec<_> = aside.iter().map(|path| fs::read(path).unwrap()).collect();
        let expected = [whole[good.len()..length].to_vec()];
        assert_eq!(kept, expected[usize::from(length == good.len())..]);
        aside.iter().for_each(|path| fs::remove_file(path).unwrap());
    }
    // A page that never reached the disk reads as zeros.
    let mut zeros = good.clone();
    zeros.resize(whole.len() + 100, 0);
    fs::write(&file, zeros).unwrap();
    assert_eq!(texts(&mut folder.open(), 0), numbers(0..3));
}

#[test]
fn any_flipped_bit_is_found_and_nothing_is_cut_off_for_it() {
    let folder = Folder::new();
    let mut spool = folder.open();
    spool.append(&[rating("only")]).unwrap();
    drop(spool);
    let file = folder.files().pop().unwrap();
    let whole = fs::read(&file).unwrap();
    for bit in 0..8 * whole.len() {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        fs::write(&file, flipped).unwrap();
        folder.is_damaged(&file, 0);
    }
}

/// A bad bit in the first record of the newest file once cut off all of it.
#[test]
fn one_bad_bit_in_the_newest_file_costs_no_other_rating() {
    let folder = Folder::new();
    let mut spool = folder.open();
    for number in 0..50 {
        spool.append(&ratings(10 * number..10 * number + 10)).unwrap();
    }
    drop(spool);
    let file = folder.files().pop().unwrap();
    let whole = fs::read(&file).unwrap();
    let places = [16, 16 + 16 + 3, 16 + 32, whole.len() / 2, whole.len() - 1];
    for (place, record) in places.into_iter().zip([0, 0, 0, 250, 499]) {
        let mut flipped = whole.clone();
        flipped[place] ^= 4;
        fs::write(&file, &flipped).unwrap();
        let error = Spool::open(&folder.0, MAX).unwrap_err();
        let SpoolError::Damaged { record: found, .. } = error else { panic!("{error}") };
        assert!(found.abs_diff(record) <= 5, "{found} is not about {record}");
        assert!(fs::read(&file).unwrap() == flipped && folder.ending(TORN).is_empty());
        // The bridge goes on as soon as the file is whole again.
        fs::write(&file, &whole).unwrap();
        assert_eq!(folder.open().end(), 500);
    }
}

#[test]
fn a_sector_that_never_arrived_is_a_torn_end_in_the_last_append_and_damage_in_any_other() {
    let folder = Folder::new();
    let mut spool = folder.open();
    let long = |number: u64| rating(&format!("{number}-{}", "z".repeat(200)));
    spool.append(&(0..20).map(long).collect::<Vec<_>>()).unwrap();
    let file = folder.files().pop().unwrap();
    let before = fs::read(&file).unwrap().len();
    spool.append(&(20..40).map(long).collect::<Vec<_>>()).unwrap();
    drop(spool);
    let whole = fs::read(&file).unwrap();
    let without = |sector: usize| {
        let mut bytes = whole.clone();
        bytes[sector * 512..(sector * 512 + 512).min(whole.len())].fill(0);
        bytes
    };
    for sector in 1..whole.len() / 512 {
        fs::write(&file, without(sector)).unwrap();
        if sector * 512 < before {
            let error = Spool::open(&folder.0, MAX).unwrap_err();
            assert!(matches!(error, SpoolError::Damaged { .. }), "sector {sector}: {error}");
            continue;
        }
        let mut spool = folder.open();
        let end = spool.end();
        assert!((20..40).contains(&end), "sector {sector}: {end}");
        assert_eq!(texts(&mut spool, 0).len() as u64, end);
        let [aside] = &folder.ending(TORN)[..] else { panic!("sector {sector}") };
        let kept = fs::read(aside).unwrap();
        assert!(without(sector).ends_with(&kept) && kept.len() + before <= whole.len());
        fs::remove_file(aside).unwrap();
    }
}

#[test]
fn damage_in_the_middle_is_an_error_that_names_the_file() {
    let folder = Folder::new();
    let mut spool = folder.open();
    spool.append(&ratings(0..3)).unwrap();
    spool.active = None;
    spool.append(&ratings(3..6)).unwrap();
    drop(spool);
    let [first, _] = &folder.files()[..] else { panic!("two files") };
    let mut bytes = fs::read(first).unwrap();
    // What a failed write left behind the records that count does no harm …
    bytes.extend_from_slice(b"half a record");
    fs::write(first, &bytes).unwrap();
    assert_eq!(texts(&mut folder.open(), 0), numbers(0..6));
    // … nor does a whole append that was not synced …
    bytes.truncate(bytes.len() - b"half a record".len());
    fs::write(first, [&bytes[..], &segment::encode(3, &ratings(90..92))].concat()).unwrap();
    assert_eq!(texts(&mut folder.open(), 0), numbers(0..6));
    // … a record that is gone does.
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(first, &bytes).unwrap();
    folder.is_damaged(first, 2);
}

#[test]
fn a_file_that_is_moved_away_takes_its_own_ratings_with_it_and_no_others() {
    let folder = Folder::new();
    let mut spool = folder.open();
    for number in 0..3 {
        spool.append(&ratings(3 * number..3 * number + 3)).unwrap();
        spool.active = None;
    }
    spool.deliver(1).unwrap();
    drop(spool);
    let files = folder.files();
    let away = folder.0.join("away");
    fs::rename(&files[1], &away).unwrap();
    let mut spool = folder.open();
    assert_eq!((spool.delivered(), spool.end(), spool.waiting()), (1, 9, 5));
    let found = spool.read(1, 100, 1 << 20).unwrap();
    let found: Vec<u64> = found.iter().map(|record| record.number).collect();
    assert_eq!(found, [1, 2, 6, 7, 8]);
    spool.deliver(9).unwrap();
}

/// Numbers once began again below the position, which then passed over ratings that waited.
#[test]
fn no_number_is_given_twice_though_the_newest_file_is_gone() {
    let folder = Folder::new();
    let mut spool = folder.open();
    spool.append(&ratings(0..3)).unwrap();
    spool.active = None;
    spool.append(&ratings(3..9)).unwrap();
    spool.deliver(8).unwrap();
    drop(spool);
    fs::remove_file(folder.files().pop().unwrap()).unwrap();
    let mut spool = folder.open();
    assert_eq!((spool.delivered(), spool.end(), spool.waiting()), (8, 8, 0));
    spool.append(&ratings(8..10)).unwrap();
    drop(spool);
    let mut spool = folder.open();
    assert_eq!((spool.delivered(), spool.end(), spool.waiting()), (8, 10, 2));
    assert_eq!(texts(&mut spool, 8), numbers(8..10));
}

#[test]
fn the_bound_holds_and_space_comes_back_with_delivery() {
    let folder = Folder::new();
    let mut spool = folder.open();
    let large = vec![rating(&"x".repeat(10_000))];
    let mut taken = 0_u64;
    let full = loop {
        match spool.append(&large) {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, SpoolError::Full { max: MAX }), "{full}");
    assert!(taken > 90 && spool.bytes() <= MAX, "{taken} {}", spool.bytes());
    let on_disk: u64 = folder.files().iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    assert_eq!(spool.bytes(), on_disk);
    assert!(folder.files().len() >= usize::try_from(SEGMENTS_LEAST).unwrap() - 1);
    // Delivering half of it frees files, and what is left is still there.
    spool.deliver(taken / 2).unwrap();
    spool.append(&large).unwrap();
    drop(spool);
    let mut spool = folder.open();
    assert_eq!(texts(&mut spool, taken / 2).len() as u64, taken + 1 - taken / 2);
    // With nothing left to deliver, anything below the bound fits.
    spool.deliver(taken + 1).unwrap();
    spool.append(&[rating(&"y".repeat(900_000))]).unwrap();
}

#[test]
fn a_spool_is_of_one_process() {
    let folder = Folder::new();
    let first = folder.open();
    let second = Spool::open(&folder.0, MAX).unwrap_err();
    assert!(matches!(second, SpoolError::InUse { .. }), "{second}");
    drop(first);
    folder.open();
}

#[test]
fn a_torn_position_falls_back_to_the_one_before() {
    let folder = Folder::new();
    let mut spool = folder.open();
    spool.append(&ratings(0..9)).unwrap();
    spool.deliver(4).unwrap();
    spool.deliver(7).unwrap();
    drop(spool);
    let path = folder.0.join(POSITION);
    let whole = fs::read(&path).unwrap();
    let mut positions = Vec::new();
    for at in 0..whole.len() {
        let mut torn = whole.clone();
        torn[at] ^= 0xff;
        fs::write(&path, torn).unwrap();
        positions.push(folder.open().delivered());
    }
    assert!(positions.iter().all(|position| [4, 7].contains(position)), "{positions:?}");
    assert!(positions.contains(&4) && positions.contains(&7));
    // Lost as a whole, everything is delivered again: names make that harmless.
    fs::remove_file(&path).unwrap();
    assert_eq!(folder.open().delivered(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Against a list in memory: appends, deliveries and reopenings in any order.
    #[test]
    fn it_holds_what_a_list_would_hold(
        steps in prop::collection::vec((0_u8..4, 0_usize..40, 1_usize..3000), 1..60),
    ) {
        let folder = Folder::new();
        let mut spool = Some(folder.open());
        let (mut all, mut delivered) = (Vec::<String>::new(), 0_usize);
        for (what, count, length) in steps {
            let open = spool.as_mut().unwrap();
            match what {
                0 | 1 => {
                    let text = |n: usize| format!("{}-{}", all.len() + n, "z".repeat(length));
                    let new: Vec<String> = (0..count).map(text).collect();
                    let batch: Vec<Received> = new.iter().map(|text| rating(text)).collect();
                    match open.append(&batch) {
                        Ok(()) => all.extend(new),
                        Err(SpoolError::Full { .. }) => {}
                        Err(error) => return Err(TestCaseError::fail(error.to_string())),
                    }
                }
                2 => {
                    delivered += count.min(all.len() - delivered);
                    open.deliver(delivered as u64).unwrap();
                }
                _ => {
                    spool = None;
                    spool.replace(folder.open());
                }
            }
            let open = spool.as_mut().unwrap();
            prop_assert_eq!((open.delivered(), open.end()), (delivered as u64, all.len() as u64));
            prop_assert!(open.bytes() <= MAX);
            prop_assert_eq!(&texts(open, delivered as u64)[..], &all[delivered..]);
        }
    }
}
