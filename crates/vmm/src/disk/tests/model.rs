//! Random requests, compared with the model after each.

use std::os::unix::fs::FileExt;

use proptest::prelude::*;

use super::check::check;
use super::fault;
use super::rig::{CLUSTER, Rig, WINDOW, WINDOWS, cut, empty, noise, open};
use crate::disk::{EMPTY_BYTES, MAX_LAYERS};

#[derive(Clone, Debug)]
pub enum Op {
    Read { window: usize, at: u64, bytes: u64 },
    Write { window: usize, at: u64, bytes: u64, seed: u64 },
    Freeze,
    ReplaceTop,
    Reopen,
    Merge,
}

/// Where a request begins: anywhere, at a sector, or at a cluster of the disk.
fn place() -> impl Strategy<Value = (usize, u64)> {
    let window = 0..WINDOWS.len();
    let unit = prop_oneof![Just(1), Just(512), Just(CLUSTER)];
    (window, unit, 0..WINDOW).prop_map(|(window, unit, at)| {
        let start = WINDOWS[window];
        (window, ((start + at).next_multiple_of(unit) - start).min(WINDOW))
    })
}

fn length() -> impl Strategy<Value = u64> {
    let clusters = (1..6u64).prop_map(|n| n * CLUSTER);
    prop_oneof![0..4096u64, (1..16u64).prop_map(|n| n * 512), clusters, 0..WINDOW]
}

/// A write of noise, or of zeros if the seed is 0.
pub fn write() -> impl Strategy<Value = (usize, u64, u64, u64)> {
    (place(), length(), prop_oneof![1 => Just(0), 3 => 1..u64::MAX])
        .prop_map(|((window, at), bytes, seed)| (window, at, bytes, seed))
}

pub fn op() -> impl Strategy<Value = Op> {
    let write = write().prop_map(|(window, at, bytes, seed)| Op::Write { window, at, bytes, seed });
    let read = (place(), length()).prop_map(|((window, at), bytes)| Op::Read { window, at, bytes });
    prop_oneof![
        8 => write,
        4 => read,
        2 => Just(Op::Freeze),
        1 => Just(Op::ReplaceTop),
        1 => Just(Op::Reopen),
        1 => Just(Op::Merge),
    ]
}

fn content(seed: u64, bytes: u64) -> Vec<u8> {
    if seed == 0 { vec![0; bytes as usize] } else { noise(seed, bytes as usize) }
}

impl Rig {
    pub fn perform(&mut self, op: &Op) {
        match *op {
            Op::Read { window, at, bytes } => self.read(window, at, bytes),
            Op::Write { window, at, bytes, seed } => self.write(window, at, &content(seed, bytes)),
            Op::Freeze => self.freeze(),
            Op::ReplaceTop => self.replace_top(),
            Op::Reopen => self.disk = self.another(),
            Op::Merge => self.merge(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_disk_is_what_was_written_to_it(ops in proptest::collection::vec(op(), 1..40)) {
        let mut rig = Rig::new();
        for op in &ops {
            rig.perform(op);
        }
        rig.verify();
    }

    /// A write that fails midway, or a process that dies there, leaves a valid image: every byte
    /// of the request is what it was or what it should be, and nothing else has changed.
    #[test]
    fn a_write_that_fails_breaks_nothing(
        before in proptest::collection::vec(op(), 0..12),
        failing in proptest::collection::vec((write(), 0..6u32), 1..6),
        after in proptest::collection::vec(op(), 0..6),
    ) {
        let mut rig = Rig::new();
        before.iter().for_each(|op| rig.perform(op));
        for ((window, at, bytes, seed), writes) in failing {
            let bytes = content(seed, bytes);
            let (at, bytes) = cut(at, &bytes);
            fault::after(writes);
            let result = rig.disk.write_at(WINDOWS[window] + at as u64, bytes);
            fault::after(u32::MAX);

            let top = rig.layers.last().unwrap();
            prop_assert_eq!(check(top).errors, 0, "{:?}", result);
            let mut found = vec![0; bytes.len()];
            rig.another().read_at(WINDOWS[window] + at as u64, &mut found).unwrap();
            let old = &mut rig.model[window][at..at + bytes.len()];
            for ((found, old), new) in found.iter().zip(old.iter()).zip(bytes) {
                prop_assert!(found == new || (result.is_err() && found == old));
            }
            old.copy_from_slice(&found);
            rig.verify_content();
        }
        after.iter().for_each(|op| rig.perform(op));
        rig.verify_content();
        for layer in &rig.layers {
            prop_assert_eq!(check(layer).errors, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// The contract with fork(2): both sides have the same object, freeze the same file, and never
    /// see each other again.
    #[test]
    fn both_sides_of_a_fork_go_on_with_their_copy(
        before in proptest::collection::vec(op(), 0..20),
        sides in proptest::collection::vec(proptest::collection::vec(op(), 1..10), 2),
    ) {
        let mut rig = Rig::new();
        before.iter().for_each(|op| rig.perform(op));
        rig.write(0, 4096, &noise(1, 100_000));
        let frozen = rig.layers.last().unwrap().clone();
        let content = std::fs::read(&frozen).unwrap();
        let go_on = |rig: &mut Rig, side: usize| {
            rig.name = ["parent", "child"][side];
            rig.freeze();
            sides[side].iter().for_each(|op| rig.perform(op));
            rig.verify();
        };
        // SAFETY: the child works on its copies alone and leaves with _exit.
        let child = unsafe { libc::fork() };
        assert!(child >= 0);
        if child == 0 {
            let work = std::panic::AssertUnwindSafe(|| go_on(&mut rig, 1));
            let failed = std::panic::catch_unwind(work).is_err();
            // SAFETY: it has no conditions. No destructor may run twice, the directory's least of all.
            unsafe { libc::_exit(i32::from(failed)) };
        }
        go_on(&mut rig, 0);
        let mut status = -1;
        // SAFETY: `status` is a valid place for the answer.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0, "the child failed");
        rig.verify();
        assert!(std::fs::read(&frozen).unwrap() == content, "a frozen layer changed");
    }
}

#[test]
fn the_highest_stack_there_may_be_is_read_through() {
    let mut rig = Rig::new();
    for layer in 0..MAX_LAYERS as u64 {
        rig.write(layer as usize % WINDOWS.len(), layer * 5000, &noise(layer + 1, 3000));
        rig.freeze();
    }
    rig.verify();
    let (below, top) = (rig.layers.last().unwrap().clone(), rig.dir.path().join("one-more"));
    let refused = rig.disk.freeze(open(&below), empty(&top, rig.disk.bytes()));
    assert!(matches!(refused, Err(crate::disk::DiskError::TooManyLayers)));
    rig.write(1, 0, &noise(99, 1000));
    rig.verify();
}

/// A file of 2 GiB and more needs a second refcount block, which counts itself.
#[test]
fn a_file_grows_beyond_its_first_refcount_block() {
    // The last cluster that the first block counts is taken, or free, or the one before it is.
    for end in [32768, 32767, 32766] {
        let mut rig = Rig::new();
        let top = rig.layers.last().unwrap().clone();
        open(&top).set_len(end * CLUSTER).unwrap();
        rig.disk = rig.another();
        for at in [0, 3 * CLUSTER + 512] {
            rig.write(0, at, &noise(end, 3 * CLUSTER as usize));
        }
        rig.verify_content();
        let file = open(&top);
        let mut entry = [0; 8];
        file.read_exact_at(&mut entry, CLUSTER + 8).unwrap();
        let block = u64::from_be_bytes(entry);
        assert_eq!(block, 32768 * CLUSTER, "{end}");
        assert!(file.metadata().unwrap().len() > block && EMPTY_BYTES < block);
        super::qemu::check(&top);
    }
}

/// A block that takes the last cluster that it counts, so that the next cluster needs another one.
#[test]
fn a_refcount_block_may_count_nothing_but_itself() {
    let mut rig = Rig::new();
    let top = rig.layers.last().unwrap().clone();
    open(&top).set_len(65535 * CLUSTER).unwrap();
    rig.disk = rig.another();
    rig.write(0, 0, &noise(1, 3 * CLUSTER as usize));
    rig.verify_content();
    let mut table = [0; 24];
    open(&top).read_exact_at(&mut table, CLUSTER).unwrap();
    let blocks: Vec<u64> = crate::disk::layer::entries(&table).collect();
    assert_eq!(blocks, [2 * CLUSTER, 65535 * CLUSTER, 65536 * CLUSTER]);
    super::qemu::check(&top);
}
