use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use proptest::collection::vec;
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::load;
use super::*;

const SIZE: usize = PAGE as usize;

/// Contents of a memory, told apart by page: `fill` and where it is, or zeros.
fn page(fill: u8, at: usize) -> Vec<u8> {
    let mut page = vec![fill; SIZE];
    if fill != 0 {
        page[SIZE - 8..].copy_from_slice(&at.to_le_bytes());
    }
    page
}

fn memory(fills: &[u8]) -> Vec<u8> {
    fills.iter().enumerate().flat_map(|(at, &fill)| page(fill, at)).collect()
}

/// A bake's directory with the memory file alone.
struct Bake {
    dir: TempDir,
    memory: PathBuf,
}

impl Bake {
    fn new(contents: &[u8]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let memory = dir.path().join("memory");
        fs::write(&memory, contents).unwrap();
        Self { dir, memory }
    }

    fn path(&self, name: impl ToString) -> PathBuf {
        self.dir.path().join(name.to_string())
    }

    fn load(&self, diff: Option<&Path>) -> io::Result<Vec<u8>> {
        let memory = File::from(load(&self.memory, diff)?);
        let mut contents = vec![0; memory.metadata()?.len() as usize];
        memory.read_exact_at(&mut contents, 0)?;
        Ok(contents)
    }
}

/// What a generation of a machine does to each page, and where its mappings are split.
type Generation = (Vec<Option<u8>>, Vec<u64>);

/// A memory, and the machines that are restored from it, each from the snapshot of the one before.
fn histories() -> impl Strategy<Value = (Vec<u8>, Vec<Generation>)> {
    (1..40usize).prop_flat_map(|pages| {
        let change = prop_oneof![3 => Just(None), 1 => (0..4u8).prop_map(Some)];
        let generation = (vec(change, pages), vec(any::<u64>(), 0..4));
        (vec(0..4u8, pages), vec(generation, 1..4))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn template_and_diff_are_the_memory_of_every_generation(
        (base, generations) in histories(),
    ) {
        let bake = Bake::new(&memory(&base));
        let mut expected = memory(&base);
        let mut differs = vec![false; base.len()];
        let mut previous: Option<PathBuf> = None;
        for (number, (changes, cuts)) in generations.iter().enumerate() {
            let changed: Vec<bool> = changes.iter().map(Option::is_some).collect();
            for (at, fill) in changes.iter().enumerate().filter_map(|(at, c)| Some((at, (*c)?))) {
                expected[at * SIZE..][..SIZE].copy_from_slice(&page(fill, at));
                differs[at] = true;
            }
            let diff = bake.path(number);
            let guest = Guest::fake(&expected, &changed, cuts);
            let stats = write(&guest, previous.as_deref(), &diff).unwrap();
            prop_assert_eq!(stats.pages, differs.iter().filter(|&&differs| differs).count() as u64);
            prop_assert!(bake.load(Some(&diff)).unwrap() == expected);
            previous = Some(diff);
        }
    }

    #[test]
    fn a_damaged_diff_is_refused_or_harmless(
        damage in vec((0..200usize, any::<u8>()), 1..4),
        end in prop_oneof![Just(usize::MAX), 0..8 * SIZE],
    ) {
        let (bake, diff) = sample();
        let mut bytes = fs::read(&diff).unwrap();
        for (at, value) in damage {
            bytes[at] = value;
        }
        bytes.truncate(end);
        fs::write(&diff, bytes).unwrap();
        match bake.load(Some(&diff)) {
            Ok(contents) => prop_assert_eq!(contents.len(), 8 * SIZE),
            Err(e) => prop_assert_eq!(e.kind(), ErrorKind::InvalidData),
        }
    }
}

/// Eight pages, of which the diff has 1, 2 and 5.
fn sample() -> (Bake, PathBuf) {
    let bake = Bake::new(&memory(&[1; 8]));
    let diff = bake.path("memory.diff");
    let changed: [bool; 8] = std::array::from_fn(|page| [1, 2, 5].contains(&page));
    let guest = Guest::fake(&memory(&[1, 2, 0, 1, 1, 3, 1, 1]), &changed, &[]);
    let stats = write(&guest, None, &diff).unwrap();
    assert_eq!(stats, DiffStats { pages: 3, bytes: 64 + 2 * PAGE });
    (bake, diff)
}

#[test]
fn the_file_is_as_documented() {
    let (bake, diff) = sample();
    let metadata = fs::metadata(&diff).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o600);

    let mut expected = b"PANDADIF".to_vec();
    expected.extend([1, 0, 0, 0, 0, 0x10, 0, 0]); // version, page size
    for word in [8 * PAGE, 2, 1, 2, 5, 1] {
        expected.extend(word.to_le_bytes());
    }
    expected.resize(SIZE, 0);
    expected.extend([page(2, 1), page(0, 2), page(3, 5)].concat());
    assert!(fs::read(&diff).unwrap() == expected);
    assert!(bake.load(Some(&diff)).unwrap() == memory(&[1, 2, 0, 1, 1, 3, 1, 1]));
}

#[test]
fn pages_of_zeros_take_no_space_and_cover_others() {
    let pages = 700; // more than two buffers
    let bake = Bake::new(&memory(&vec![1; pages]));
    let diff = bake.path("memory.diff");
    let zeros = vec![0; pages * SIZE];
    let stats = write(&Guest::fake(&zeros, &vec![true; pages], &[300]), None, &diff).unwrap();
    assert_eq!(stats, DiffStats { pages: 700, bytes: 48 });
    assert!(fs::metadata(&diff).unwrap().blocks() * 512 <= 2 * PAGE);

    assert!(bake.load(Some(&diff)).unwrap() == zeros);
    let loaded = File::from(load(&bake.memory, Some(&diff)).unwrap());
    assert_eq!(loaded.metadata().unwrap().blocks(), 0);
}

#[test]
fn long_extents_are_copied_whole() {
    let fills: Vec<u8> = (0..700).map(|page| (page % 251) as u8).collect();
    let bake = Bake::new(&memory(&[9; 700]));
    let diff = bake.path("memory.diff");
    let changed: Vec<bool> = (0..700).map(|page| page > 3 && page != 600).collect();
    write(&Guest::fake(&memory(&fills), &changed, &[10, 255, 256]), None, &diff).unwrap();
    let mut expected = fills;
    expected[..4].fill(9);
    expected[600] = 9;
    assert!(bake.load(Some(&diff)).unwrap() == memory(&expected));
}

#[test]
fn a_machine_that_changed_nothing_has_an_empty_diff() {
    let bake = Bake::new(&memory(&[1; 8]));
    let diff = bake.path("memory.diff");
    let guest = Guest::fake(&memory(&[1; 8]), &[false; 8], &[]);
    assert_eq!(write(&guest, None, &diff).unwrap(), DiffStats { pages: 0, bytes: 32 });
    assert!(bake.load(Some(&diff)).unwrap() == memory(&[1; 8]));
}

#[test]
fn a_process_without_guest_memory_has_no_diff() {
    let dir = tempfile::tempdir().unwrap();
    let diff = dir.path().join("memory.diff");
    let error = save(std::process::id(), PAGE, None, &diff).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert!(!diff.exists());
}

#[test]
fn an_existing_file_is_not_overwritten() {
    let (_bake, diff) = sample();
    let guest = Guest::fake(&memory(&[1; 8]), &[false; 8], &[]);
    assert_eq!(write(&guest, None, &diff).unwrap_err().kind(), ErrorKind::AlreadyExists);
}

#[test]
fn every_kind_of_damage_is_told() {
    fn word(at: usize, value: u64) -> impl Fn(&mut Vec<u8>) {
        move |file| file[at..at + 8].copy_from_slice(&value.to_le_bytes())
    }
    type Damage = Box<dyn Fn(&mut Vec<u8>)>;
    let damages: [(&str, Damage); 23] = [
        ("ends in its header", Box::new(|file| file.clear())),
        ("ends in its header", Box::new(|file| file.truncate(31))),
        ("is not a diff of memory", Box::new(word(0, 0))),
        ("is not a diff of memory", Box::new(|file| file[7] ^= 1)),
        ("has version 2 and", Box::new(|file| file[8] = 2)),
        ("pages of 4097 bytes", Box::new(|file| file[12] = 1)),
        ("is of 36864 bytes of memory instead of 32768", Box::new(word(16, 9 * PAGE))),
        ("has 9 extents in 8 pages", Box::new(word(24, 9))),
        ("extents in 8 pages", Box::new(word(24, u64::MAX))),
        ("ends in its index", Box::new(|file| file.truncate(63))),
        ("ends in its index", Box::new(|file| file.truncate(SIZE - 1))),
        ("is 16384 bytes long instead of 12288", Box::new(word(24, 1))), // an extent less
        ("an extent of 0 pages at page 0", Box::new(word(24, 3))),       // an extent more
        ("an extent of 0 pages at page 1", Box::new(word(40, 0))),
        ("an extent of 8 pages at page 1", Box::new(word(40, 8))), // out of range
        ("an extent of 1 pages at page 8", Box::new(word(48, 8))),
        ("an extent of 1 pages", Box::new(word(48, u64::MAX))), // overflows
        ("an extent of 1 pages at page 2", Box::new(word(48, 2))), // overlaps
        ("an extent of 1 pages at page 0", Box::new(word(48, 0))), // out of order
        ("is 16384 bytes long instead of 20480", Box::new(word(56, 2))),
        ("is 16383 bytes long", Box::new(|file| file.truncate(4 * SIZE - 1))),
        ("is 4096 bytes long", Box::new(|file| file.truncate(SIZE))),
        ("is 16385 bytes long instead of 16384", Box::new(|file| file.push(0))),
    ];
    for (text, damage) in damages {
        let (bake, diff) = sample();
        let mut file = fs::read(&diff).unwrap();
        damage(&mut file);
        fs::write(&diff, file).unwrap();

        let error = bake.load(Some(&diff)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData, "{error}");
        assert!(error.to_string().contains(text), "{error}, not {text}");
        // Nor is it built upon.
        let guest = Guest::fake(&memory(&[1; 8]), &[true; 8], &[]);
        let next = bake.path("next");
        assert_eq!(write(&guest, Some(&diff), &next).unwrap_err().kind(), ErrorKind::InvalidData);
        assert!(!next.exists());
    }
}

#[test]
fn a_missing_diff_is_named() {
    let bake = Bake::new(&memory(&[1]));
    let error = bake.load(Some(&bake.path("memory.diff"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains("memory.diff"), "{error}");
}

#[test]
fn what_a_failed_save_leaves_is_not_a_diff() {
    let bake = Bake::new(&memory(&[1; 8]));
    let diff = bake.path("memory.diff");
    let guest = Guest::fake(&memory(&[1; 8]), &[true; 8], &[]);
    guest.ended();
    write(&guest, None, &diff).unwrap_err();
    assert_eq!(bake.load(Some(&diff)).unwrap_err().kind(), ErrorKind::InvalidData);
}
