//! Files that say where memory is: diffs and working sets.
//!
//! A diff that is taken lies within its memory and its file, and can be mapped. A working set that
//! is taken does no harm, whatever pages it names.
#![no_main]

use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::{Script, file, sparse};
use pandastack_vmm::memory::diff::Diff;
use pandastack_vmm::memory::working_set::WorkingSet;
use pandastack_vmm::memory::{Mapping, PAGE};

const PAGES: u64 = 64;

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    match script.u8() {
        Some(0) => {
            assert!(Diff::open(&file(script.0), PAGES).is_err(), "it has its own hash in it")
        }
        Some(kind) if kind & 1 == 1 => {
            diff(&mut script);
        }
        Some(_) => working_set(script.0),
        None => {}
    }
});

/// A diff whose header is right.
fn diff(script: &mut Script<'_>) -> Option<()> {
    let (pages, missing) = (u64::from(script.u8()?), u64::from(script.u8()?));
    let table: Vec<u8> = entries(script).into_iter().flat_map(u64::to_le_bytes).collect();
    let (count, counted) = (table.len() / 16, table.chunks_exact(16));
    let wanted = counted.fold(0u64, |sum, entry| {
        sum.wrapping_add(u64::from_le_bytes(entry[8..].try_into().expect("eight bytes")))
    });
    let first = (56 + table.len() as u64).next_multiple_of(PAGE);
    let length = first.saturating_add((wanted % (4 * PAGES)) * PAGE).saturating_sub(missing);
    let mut header = b"PANDDIFF".to_vec();
    header.extend(1u32.to_le_bytes());
    header.extend((count as u32).to_le_bytes());
    header.extend(pages.to_le_bytes());
    header.extend(blake3::hash(&table).as_bytes());
    header.extend(&table);
    let file = file(&header);
    file.set_len(length).expect("a length");
    let diff = Diff::open(&file, pages).ok()?;

    let mut end = 0;
    let mut at = first;
    for (extent, offset) in diff.extents() {
        assert!(extent.count > 0 && extent.start >= end && extent.end() <= pages);
        assert_eq!(offset, at);
        file.write_all_at(&[extent.start as u8 + 1; 1], offset).expect("within the file");
        (end, at) = (extent.end(), offset + extent.count * PAGE);
    }
    assert_eq!(at, length, "its pages are the rest of the file");

    if pages == 0 {
        return None;
    }
    let base = sparse(pages * PAGE);
    let mapping = Mapping::of_files(&base, Some(&file), pages * PAGE).expect("a checked diff").0;
    for (extent, _) in diff.extents() {
        // SAFETY: within the mapping, which lives until the end of this function.
        let found = unsafe { mapping.start().add((extent.start * PAGE) as usize).read() };
        assert_eq!(found, extent.start as u8 + 1);
    }
    unmap(mapping);
    Some(())
}

/// First page and number of pages in turn, mostly small and in order.
fn entries(script: &mut Script<'_>) -> Vec<u64> {
    let (mut entries, mut at) = (Vec::new(), 0u64);
    while let Some(kind) = script.u8() {
        let (gap, few) = (u64::from(kind >> 4 & 7), u64::from(kind & 0xf));
        let (start, count) = match kind {
            0 => (script.u64(), script.u64()),
            1..0x80 => (Some(at.wrapping_add(gap)), Some(few)),
            _ => (Some(at.wrapping_sub(gap)), Some(few)),
        };
        let (Some(start), Some(count)) = (start, count) else { break };
        entries.extend([start, count]);
        at = start.wrapping_add(count);
    }
    entries
}

fn working_set(bytes: &[u8]) {
    let set = WorkingSet::read(&file(bytes));
    let again = file(&[]);
    set.write(&again).expect("a file");
    assert_eq!(WorkingSet::read(&again), set);
    let mapping = Mapping::anonymous(PAGES * PAGE).expect("memory");
    set.fetch(&mapping);
    set.copy(&mapping);
    unmap(mapping);
}

/// A mapping stays for the life of a process, and this process has many lives.
fn unmap(mapping: Mapping) {
    // SAFETY: the whole mapping, which nobody uses any more.
    let unmapped =
        unsafe { rustix::mm::munmap(mapping.start().as_ptr().cast(), mapping.bytes() as usize) };
    unmapped.expect("a mapping");
}
