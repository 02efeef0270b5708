//! A failure of the host's power: of what was written to a lasting disk since the last sync, any
//! part may be lost.

use std::fs::File;

use proptest::prelude::*;

use super::fault::{self, Event};
use super::rig::{CLUSTER, empty, noise, open};
use crate::disk::Disk;

/// Second-level tables end in the middle of it.
const BYTES: u64 = 1 << 30;
/// Where something is written: around the border of a table.
const AREA: u64 = (512 << 20) - 8 * CLUSTER;
const CLUSTERS: usize = 24;
const SIZE: usize = CLUSTERS * CLUSTER as usize;
const SECTOR: usize = 512;

/// A file of which a failure leaves what was synced, and of the rest what `kept` says, write by
/// write and page by page.
fn after_failure(events: &[Event], kept: &mut impl FnMut() -> bool) -> Vec<u8> {
    let last = events.iter().rposition(|event| matches!(event, Event::Sync)).map_or(0, |at| at + 1);
    let mut image = Vec::new();
    let mut apply = |at: u64, bytes: &[u8]| {
        let at = at as usize;
        image.resize(image.len().max(at + bytes.len()), 0);
        image[at..at + bytes.len()].copy_from_slice(bytes);
    };
    for (number, event) in events.iter().enumerate() {
        let Event::Write(at, bytes) = event else { continue };
        let (mut at, mut bytes) = (*at, &bytes[..]);
        while !bytes.is_empty() {
            let page = bytes.len().min(4096 - at as usize % 4096);
            if number < last || kept() {
                apply(at, &bytes[..page]);
            }
            (at, bytes) = (at + page as u64, &bytes[page..]);
        }
    }
    image
}

/// Writes what was left of the top layer to a new file.
fn write(dir: &tempfile::TempDir, name: &str, image: &[u8]) -> File {
    let path = dir.path().join(name);
    std::fs::write(&path, image).unwrap();
    open(&path)
}

fn read(disk: &mut Disk) -> Vec<u8> {
    let mut found = vec![0xee; SIZE];
    disk.read_at(AREA, &mut found).unwrap();
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn what_was_flushed_is_there_and_the_rest_is_old_or_new(
        writes in prop::collection::vec((0..SIZE / SECTOR, 1..150usize, any::<bool>()), 1..12),
        cut in any::<prop::sample::Index>(),
        mut luck in any::<u64>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let base = File::create(dir.path().join("base")).unwrap();
        base.set_len(BYTES).unwrap();
        let old = noise(5, SIZE);
        std::os::unix::fs::FileExt::write_all_at(&base, &old, AREA).unwrap();
        let base = || File::open(dir.path().join("base")).unwrap();

        let top = empty(&dir.path().join("top"), BYTES);
        let made = std::fs::read(dir.path().join("top")).unwrap();
        let mut disk = Disk::layered(base(), vec![], top).unwrap();
        disk.set_lasting(true).unwrap();
        fault::events();
        let mut events = vec![Event::Write(0, made), Event::Sync];
        // What the disk held after so many events, and whether all of it was flushed then.
        let mut content = old;
        let mut moments = vec![(events.len(), content.clone(), true)];
        for (seed, (sector, sectors, flush)) in (0..).zip(writes) {
            let at = sector * SECTOR;
            let bytes = noise(seed, (sectors * SECTOR).min(SIZE - at));
            disk.write_at(AREA + at as u64, &bytes).unwrap();
            content[at..at + bytes.len()].copy_from_slice(&bytes);
            if flush {
                disk.flush().unwrap();
            }
            events.extend(fault::events());
            moments.push((events.len(), content.clone(), flush));
        }

        // After a write: after a sync there is nothing to lose.
        let cuts: Vec<_> = (moments[0].0..events.len())
            .filter(|at| matches!(events[*at], Event::Write(..)))
            .collect();
        let cut = cuts[cut.index(cuts.len())] + 1;
        let mut kept = || {
            luck = luck.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            luck >> 63 == 1
        };
        let image = after_failure(&events[..cut], &mut kept);
        let mut disk = Disk::layered(base(), vec![], write(&dir, "left", &image)).unwrap();
        let found = read(&mut disk);
        let flushed = moments.iter().rposition(|(at, _, flushed)| *flushed && *at <= cut).unwrap();
        let until = moments.iter().position(|(at, _, _)| *at >= cut).unwrap();
        let possible = &moments[flushed..=until];
        for (number, sector) in found.chunks(SECTOR).enumerate() {
            let at = number * SECTOR;
            let was = |content: &[u8]| content[at..at + SECTOR] == *sector;
            let same = possible.iter().all(|(_, content, _)| {
                content[at..at + SECTOR] == possible[0].1[at..at + SECTOR]
            });
            // A sector that nobody wrote to is as it was; another one may be whatever was under way.
            prop_assert!(!same || was(&possible[0].1), "sector {number} was not written to");
        }

        // It is a disk like any other: what is written now changes nothing else.
        let mut expected = found;
        for (seed, cluster) in (100..).zip(0..CLUSTERS) {
            let at = cluster * CLUSTER as usize + SECTOR;
            let bytes = noise(seed, SECTOR);
            disk.write_at(AREA + at as u64, &bytes).unwrap();
            expected[at..at + SECTOR].copy_from_slice(&bytes);
        }
        prop_assert!(read(&mut disk) == expected);
    }
}

#[test]
fn a_disk_that_ends_with_its_machine_is_never_synced() {
    let dir = tempfile::tempdir().unwrap();
    let base = File::create(dir.path().join("base")).unwrap();
    base.set_len(BYTES).unwrap();
    let base = File::open(dir.path().join("base")).unwrap();
    let mut disk = Disk::layered(base, vec![], empty(&dir.path().join("top"), BYTES)).unwrap();
    fault::events();
    let synced = |events: &[Event]| events.iter().filter(|e| matches!(e, Event::Sync)).count();
    disk.write_at(0, b"content").unwrap();
    disk.flush().unwrap();
    assert_eq!(synced(&fault::events()), 0);

    disk.set_lasting(true).unwrap();
    disk.write_at(7, b"content").unwrap();
    assert_eq!(synced(&fault::events()), 0, "it has a cluster for this");
    let frozen = File::open(dir.path().join("top")).unwrap();
    disk.freeze(frozen, empty(&dir.path().join("next"), BYTES)).unwrap();
    disk.flush().unwrap();
    assert_eq!(synced(&fault::events()), 1, "it lasts under another top as well");
}

/// What is held back is read wherever it is asked for, also when the map has forgotten it: places
/// that are 16 GiB apart share a slot there.
#[test]
fn what_is_held_back_is_there_for_the_disk_itself_and_after_a_commit_for_others() {
    const APART: u64 = 16 << 30;
    let bytes = 4 * APART;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    File::create(path("base")).unwrap().set_len(bytes).unwrap();
    let base = || File::open(path("base")).unwrap();
    let mut disk = Disk::layered(base(), vec![], empty(&path("top"), bytes)).unwrap();
    disk.set_lasting(true).unwrap();
    fault::events();
    // More than are ever held back.
    let clusters = 1100;
    let content = |at: u64| noise(at, SECTOR);
    let places = |step: u64| (0..4).map(move |part| part * APART + step * CLUSTER + 4096);
    for at in (0..clusters).flat_map(places) {
        disk.write_at(at, &content(at)).unwrap();
    }
    let syncs = fault::events().iter().filter(|event| matches!(event, Event::Sync)).count();
    assert!((1..100).contains(&syncs), "{syncs} syncs");
    let compare = |disk: &mut Disk| {
        for at in (0..clusters).step_by(50).flat_map(places) {
            let mut found = [0; SECTOR];
            disk.read_at(at, &mut found).unwrap();
            assert!(found[..] == content(at)[..], "at {at}");
        }
    };
    compare(&mut disk);
    let other = || Disk::layered(base(), vec![], open(&path("top"))).unwrap();
    let last = places(clusters - 1).next().unwrap();
    let mut found = [0xee; SECTOR];
    other().read_at(last, &mut found).unwrap();
    assert_eq!(found, [0; SECTOR], "nobody else sees what was not flushed");
    disk.commit().unwrap();
    compare(&mut other());
}
