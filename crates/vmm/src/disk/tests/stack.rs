//! What a disk accepts and refuses, and what its files look like afterwards.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::rig::{BYTES, CLUSTER, Rig, WINDOW, empty, noise, open};
use crate::disk::{Disk, DiskError, EMPTY_BYTES, LayerError, MAX_LAYERS};

/// Bytes of the file of the top layer.
fn length(rig: &Rig) -> u64 {
    std::fs::metadata(rig.layers.last().unwrap()).unwrap().len()
}

#[test]
fn a_plain_file_is_read_and_written_in_place() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(1 << 20).unwrap();
    let mut disk = Disk::plain(file.try_clone().unwrap(), false).unwrap();
    assert_eq!((disk.bytes(), disk.read_only()), (1 << 20, false));
    disk.write_at(1000, b"content").unwrap();
    disk.flush().unwrap();
    let mut found = [0; 7];
    file.read_exact_at(&mut found, 1000).unwrap();
    assert_eq!(&found, b"content");
    assert!(matches!(disk.replace_top(file.try_clone().unwrap()), Err(DiskError::Plain)));

    let mut disk = Disk::plain(file, true).unwrap();
    assert!(disk.read_only());
    assert_eq!(disk.write_at(0, b"x").unwrap_err().kind(), ErrorKind::ReadOnlyFilesystem);
    disk.read_at(1000, &mut found).unwrap();
    assert_eq!(&found, b"content");
}

#[test]
fn a_disk_has_whole_sectors_and_an_end() {
    for bytes in [0, 511, (1 << 20) + 1, (1 << 40) + 512] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        assert!(matches!(Disk::plain(file, true), Err(DiskError::Length(b)) if b == bytes));
    }
    assert!(matches!(Disk::plain(File::open("/dev/zero").unwrap(), true), Err(DiskError::Base(_))));

    let mut rig = Rig::new();
    for (at, bytes) in [(BYTES, 1), (BYTES - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 100)] {
        let mut buffer = vec![0; bytes];
        let errors =
            [rig.disk.read_at(at, &mut buffer), rig.disk.write_at(at, &buffer)].map(Result::err);
        assert!(errors.iter().all(|e| e.as_ref().unwrap().kind() == ErrorKind::InvalidInput));
    }
    rig.disk.read_at(BYTES, &mut []).unwrap();
    assert_eq!(length(&rig), EMPTY_BYTES);
}

/// The largest disk, at places of which many share a slot of the map: it has one for each 32 MiB
/// of 16 GiB.
#[test]
fn a_disk_of_a_tebibyte_is_one_all_over() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = 1 << 40;
    let base = tempfile::tempfile_in(dir.path()).unwrap();
    base.set_len(bytes).unwrap();
    base.write_all_at(&noise(1, 5000), 64 << 30).unwrap();
    let path = dir.path().join("top");
    let mut disk = Disk::layered(base, vec![], empty(&path, bytes)).unwrap();
    let places = [0, 16 << 30, 32 << 30, bytes / 3, bytes - 5000];
    for seed in 1..3 {
        for at in places {
            disk.write_at(at, &noise(at + seed, 5000)).unwrap();
        }
        for (at, seed) in places.map(|at| (at, at + seed)).into_iter().chain([(64 << 30, 1)]) {
            let mut found = vec![0; 5000];
            disk.read_at(at, &mut found).unwrap();
            assert!(found == noise(seed, 5000), "{at}");
        }
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), EMPTY_BYTES + 10 * CLUSTER);
    super::qemu::check(&path);
}

#[test]
fn reading_writes_nothing() {
    let mut rig = Rig::new();
    rig.verify();
    let meta = std::fs::metadata(&rig.layers[0]).unwrap();
    assert_eq!(meta.len(), EMPTY_BYTES);
    assert!(meta.blocks() * 512 <= 64 << 10);
}

#[test]
fn a_cluster_is_taken_once() {
    let mut rig = Rig::new();
    rig.write(0, 0, &noise(1, 512));
    assert_eq!(length(&rig), EMPTY_BYTES + 2 * CLUSTER, "a table and a cluster");
    for sector in 0..CLUSTER / 512 {
        rig.write(0, sector * 512, &noise(sector, 512));
    }
    rig.write(0, 0, &noise(3, CLUSTER as usize));
    assert_eq!(length(&rig), EMPTY_BYTES + 2 * CLUSTER);
    rig.write(0, CLUSTER, &noise(3, 3 * CLUSTER as usize));
    assert_eq!(length(&rig), EMPTY_BYTES + 5 * CLUSTER);
    rig.verify();
}

#[test]
fn zeros_take_no_room_and_hide_what_is_below() {
    let mut rig = Rig::new();
    rig.write(0, 0, &vec![0; 4 * CLUSTER as usize]);
    assert_eq!(length(&rig), EMPTY_BYTES + CLUSTER, "only a table");
    rig.freeze();
    rig.write(0, 0, &vec![0; 4 * CLUSTER as usize]);
    assert_eq!(length(&rig), EMPTY_BYTES, "they are zeros already");
    rig.write(0, CLUSTER + 5, b"something");
    rig.verify();
}

#[test]
fn a_freeze_that_is_refused_changes_nothing() {
    let mut rig = Rig::new();
    rig.write(0, 0, &noise(1, 1000));
    let path = |name: &str| rig.dir.path().join(name);
    let below = || File::open(&rig.layers[0]).unwrap();

    let other = empty(&path("other"), BYTES);
    let refused = rig.disk.freeze(other, empty(&path("top-1"), BYTES));
    assert!(matches!(refused, Err(DiskError::OtherFile)));
    let refused = rig.disk.freeze(below(), open(&rig.layers[0]));
    assert!(matches!(refused, Err(DiskError::OtherFile)));

    let refused = rig.disk.freeze(below(), empty(&path("top-2"), BYTES + 512));
    let Err(DiskError::Layer { number: 2, source: LayerError::Size(_) }) = refused else {
        panic!("{refused:?}");
    };
    let mut written = Rig::new();
    written.write(0, 0, b"content");
    let refused = rig.disk.freeze(below(), open(&written.layers[0]));
    let Err(DiskError::Layer { number: 2, source: LayerError::NotEmpty }) = refused else {
        panic!("{refused:?}");
    };
    let refused = rig.disk.replace_top(empty(&path("top-3"), BYTES));
    assert!(matches!(refused, Err(DiskError::Written)));

    rig.write(0, CLUSTER, &noise(2, 1000));
    rig.verify();
    rig.freeze();
    rig.verify();
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let rig = Rig::new();
    let base = || File::open(rig.dir.path().join("base")).unwrap();
    let many = (0..=MAX_LAYERS).map(|_| File::open(&rig.layers[0]).unwrap()).collect();
    assert!(matches!(Disk::layered(base(), many, base()), Err(DiskError::TooManyLayers)));

    let small = empty(&rig.dir.path().join("small"), BYTES - 512);
    let refused = Disk::layered(base(), vec![small], open(&rig.layers[0]));
    assert!(matches!(
        refused,
        Err(DiskError::Layer { number: 1, source: LayerError::Size(b) }) if b == BYTES - 512
    ));
    let refused = Disk::layered(base(), vec![], base());
    assert!(matches!(
        refused,
        Err(DiskError::Layer { number: 1, source: LayerError::Format("no qcow2 image") })
    ));
}

/// An entry that QEMU makes when it discards what was written: zeros, with room set aside.
#[test]
fn room_that_is_set_aside_is_used() {
    let mut rig = Rig::new();
    rig.write(0, 0, &noise(1, 4 * CLUSTER as usize));
    let top = open(&rig.layers[0]);
    let table = EMPTY_BYTES + 4 * CLUSTER;
    for cluster in [1, 2, 3] {
        let mut entry = [0; 8];
        top.read_exact_at(&mut entry, table + 8 * cluster).unwrap();
        entry[7] |= 1;
        top.write_all_at(&entry, table + 8 * cluster).unwrap();
    }
    rig.model[0][CLUSTER as usize..4 * CLUSTER as usize].fill(0);
    rig.disk = rig.another();
    let before = length(&rig);
    rig.verify();
    rig.write(0, CLUSTER + 100, b"a part");
    rig.write(0, 2 * CLUSTER, &noise(7, 2 * CLUSTER as usize));
    assert_eq!(length(&rig), before);
    rig.verify();
    rig.freeze();
    rig.write(0, 0, &noise(9, WINDOW as usize));
    rig.verify();
}
