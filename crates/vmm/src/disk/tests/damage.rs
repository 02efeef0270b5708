//! Files that somebody else has written: errors, never a panic, and nothing without an end.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt;
use std::sync::LazyLock;

use proptest::prelude::*;

use super::rig::{BYTES, CLUSTER, Rig, WINDOW, WINDOWS, open};
use crate::disk::{Disk, DiskError, EMPTY_BYTES, LayerError, write_empty};

const COPIED: u64 = 1 << 63;
/// Where [`write_empty`] puts the tables, and the first write the first second-level one.
const REFCOUNT_TABLE: u64 = CLUSTER;
const L1_TABLE: u64 = 3 * CLUSTER;
const L2_TABLE: u64 = EMPTY_BYTES + CLUSTER;

/// Entries that no table may have, in a file of `clusters` clusters.
fn bad_entries(clusters: u64) -> Vec<(&'static str, u64)> {
    let some = COPIED | L2_TABLE;
    vec![
        ("the header", COPIED),
        ("the refcount table", COPIED | REFCOUNT_TABLE),
        ("the L1 table", COPIED | L1_TABLE),
        ("beyond the end", COPIED | (clusters * CLUSTER)),
        ("far beyond the end", COPIED | 0x00ff_ffff_ffff_0000),
        ("between clusters", some | 512),
        ("somebody else's", L2_TABLE),
        ("compressed", some | 1 << 62),
        ("a reserved bit at the top", some | 1 << 57),
        ("a reserved bit at the bottom", some | 2),
        ("everything", u64::MAX),
    ]
}

/// A disk of a frozen layer and an empty top. The layer has one cluster, and its table after it.
fn rig() -> Rig {
    let mut rig = Rig::new();
    rig.write(0, 0, &[0x55; CLUSTER as usize]);
    rig.freeze();
    rig
}

fn kind<T>(result: io::Result<T>) -> Option<ErrorKind> {
    result.err().map(|error| error.kind())
}

#[test]
fn an_l2_entry_that_cannot_be_is_an_error_of_its_readers_and_writers() {
    for (what, entry) in bad_entries(6).into_iter().chain([("zeros of another's", L2_TABLE | 1)]) {
        let mut rig = rig();
        open(&rig.layers[0]).write_all_at(&entry.to_be_bytes(), L2_TABLE).unwrap();
        rig.disk = rig.another();
        let mut sector = [0; 512];
        assert_eq!(kind(rig.disk.read_at(0, &mut sector)), Some(ErrorKind::InvalidData), "{what}");
        assert_eq!(kind(rig.disk.write_at(0, &sector)), Some(ErrorKind::InvalidData), "{what}");
        assert_eq!(std::fs::metadata(&rig.layers[1]).unwrap().len(), EMPTY_BYTES, "{what}");
        rig.disk.read_at(512 << 20, &mut sector).unwrap();
    }
}

#[test]
fn an_l1_entry_that_cannot_be_is_found_when_the_layer_is_opened() {
    for (what, entry) in bad_entries(6) {
        let rig = rig();
        open(&rig.layers[0]).write_all_at(&entry.to_be_bytes(), L1_TABLE).unwrap();
        let base = || open(&rig.dir.path().join("base"));
        let frozen = Disk::layered(base(), vec![open(&rig.layers[0])], open(&rig.layers[1]));
        let top = Disk::layered(base(), vec![], open(&rig.layers[0]));
        for result in [frozen, top] {
            let Err(DiskError::Layer { number: 1, source: LayerError::Format(_) }) = result else {
                panic!("{what}");
            };
        }
    }
}

#[test]
fn a_refcount_block_that_cannot_be_is_an_error_of_the_first_write() {
    for block in [CLUSTER, 3 * CLUSTER, 2 * CLUSTER + 512, 4 * CLUSTER, u64::MAX] {
        let mut rig = Rig::new();
        open(&rig.layers[0]).write_all_at(&block.to_be_bytes(), REFCOUNT_TABLE).unwrap();
        rig.disk = rig.another();
        assert_eq!(kind(rig.disk.write_at(0, b"x")), Some(ErrorKind::InvalidData), "{block:x}");
        rig.verify_content();
    }
}

#[test]
fn a_file_that_ends_too_soon_is_an_error() {
    for length in [0, 50, 103, 3 * CLUSTER, 3 * CLUSTER + 8] {
        let rig = rig();
        open(&rig.layers[0]).set_len(length).unwrap();
        let base = open(&rig.dir.path().join("base"));
        let disk = Disk::layered(base, vec![open(&rig.layers[0])], open(&rig.layers[1]));
        assert!(matches!(disk, Err(DiskError::Layer { number: 1, .. })), "{length}");
    }
    // Truncated while it is in use.
    let mut rig = rig();
    open(&rig.layers[0]).set_len(5000).unwrap();
    assert_eq!(kind(rig.disk.read_at(0, &mut [0; 512])), Some(ErrorKind::UnexpectedEof));
}

/// Opens files as a stack, the last as its top, and uses it. What is an error is one of the few
/// kinds that there are.
fn exercise(rig: &Rig) {
    let base = open(&rig.dir.path().join("base"));
    let (top, frozen) = rig.layers.split_last().unwrap();
    let frozen = frozen.iter().map(|layer| open(layer)).collect();
    let Ok(mut disk) = Disk::layered(base, frozen, open(top)) else { return };
    let expected = |result: io::Result<()>| {
        let kinds = [ErrorKind::InvalidData, ErrorKind::UnexpectedEof, ErrorKind::StorageFull];
        if let Err(error) = result {
            assert!(kinds.contains(&error.kind()), "{error:?}");
        }
    };
    let mut buffer = vec![0; WINDOW as usize];
    for round in 0..3 {
        for at in WINDOWS {
            expected(disk.read_at(at, &mut buffer));
            expected(disk.write_at(at + 1000, &[round; 100_000]));
            expected(disk.read_at(at, &mut buffer));
        }
        let next = tempfile::NamedTempFile::new_in(rig.dir.path()).unwrap();
        write_empty(next.as_file(), BYTES).unwrap();
        if round == 1 {
            // A layer that cannot be frozen or replaced is refused, and the disk is used on.
            let _ = disk.freeze(open(top), open(next.path()));
        } else {
            let _ = disk.replace_top(open(next.path()));
        }
    }
}

/// An image, and the places of the words in it that mean something to its reader.
struct Image {
    bytes: Vec<u8>,
    words: Vec<usize>,
}

/// Three layers with content, all bytes of which are the same.
static IMAGES: LazyLock<Vec<Image>> = LazyLock::new(|| {
    let mut rig = Rig::new();
    for layer in 1..=3u8 {
        for window in 0..WINDOWS.len() {
            rig.write(window, u64::from(layer) * 50_000, &[0x11 * layer; 70_000]);
        }
        if layer < 3 {
            rig.freeze();
        }
    }
    let image = |path| {
        let bytes = std::fs::read(path).unwrap();
        // All of the header; else what is neither nothing nor content.
        let words = (0..bytes.len())
            .step_by(8)
            .filter(|at| *at < 112 || bytes[*at..at + 8].iter().any(|byte| *byte != bytes[*at]));
        Image { words: words.collect(), bytes }
    };
    rig.layers.iter().map(image).collect()
});

/// One thing that is wrong with an image.
#[derive(Clone, Debug)]
enum Damage {
    /// The word at this place is this one.
    Word(usize, u64),
    /// These bits of the word at this place are others.
    Bits(usize, u64),
    /// It ends here.
    End(usize),
}

/// Something wrong with one of the [`IMAGES`].
fn damage() -> impl Strategy<Value = (usize, Damage)> {
    let near = (0..40u64).prop_map(|cluster| cluster * CLUSTER);
    let word = prop_oneof![
        any::<u64>(),
        near.clone(),
        near.clone().prop_map(|offset| COPIED | offset),
        near.prop_map(|offset| COPIED | offset | 1),
    ];
    (0..IMAGES.len()).prop_flat_map(move |image| {
        let at = || prop::sample::select(&IMAGES[image].words[..]);
        let damage = prop_oneof![
            4 => (at(), word.clone()).prop_map(|(at, word)| Damage::Word(at, word)),
            4 => (at(), 0..64u32).prop_map(|(at, bit)| Damage::Bits(at, 1 << bit)),
            1 => (0..IMAGES[image].bytes.len()).prop_map(Damage::End),
        ];
        (Just(image), damage)
    })
}

fn apply(damage: &Damage, file: &File) {
    match *damage {
        Damage::Word(at, word) => file.write_all_at(&word.to_be_bytes(), at as u64).unwrap(),
        Damage::Bits(at, bits) => {
            let mut word = [0; 8];
            let _ = file.read_at(&mut word, at as u64).unwrap();
            apply(&Damage::Word(at, u64::from_be_bytes(word) ^ bits), file);
        }
        Damage::End(at) => file.set_len(at as u64).unwrap(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    #[test]
    fn a_damaged_stack_panics_nowhere(damages in proptest::collection::vec(damage(), 1..6)) {
        let mut rig = Rig::new();
        rig.layers = (0..IMAGES.len()).map(|i| rig.dir.path().join(format!("image-{i}"))).collect();
        for (layer, image) in rig.layers.iter().zip(IMAGES.iter()) {
            std::fs::write(layer, &image.bytes).unwrap();
        }
        damages.iter().for_each(|(image, damage)| apply(damage, &open(&rig.layers[*image])));
        exercise(&rig);
    }

    /// Anything behind a header, or no header at all.
    #[test]
    fn arbitrary_bytes_panic_nowhere(
        bytes in proptest::collection::vec(any::<u8>(), 0..2048),
        clusters in 0..8u64,
        at in proptest::collection::vec((0..8 * CLUSTER, any::<u64>()), 0..20),
        layer in 0..2usize,
    ) {
        let mut rig = Rig::new();
        rig.freeze();
        let file = open(&rig.layers[layer]);
        if clusters == 0 {
            file.set_len(0).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
        } else {
            // The tables and what they may point to, over and over.
            for place in (CLUSTER..clusters * CLUSTER).step_by(bytes.len().max(512)) {
                file.write_all_at(&bytes, place).unwrap();
            }
            for (place, word) in at {
                file.write_all_at(&word.to_be_bytes(), CLUSTER + place).unwrap();
            }
        }
        exercise(&rig);
    }
}
