//! Which pages a machine has, according to the kernel.
//!
//! In a private mapping of a file, a page that was written is anonymous, and one that was only
//! read is the file's. `PAGEMAP_SCAN` (Linux 6.7, `Documentation/admin-guide/mm/pagemap.rst`) tells
//! them apart for a whole range at once; before it, the table in `/proc/PID/pagemap` does, at 8
//! bytes a page. Where neither can be had, all pages count as written: correct, and slow.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use super::{Extent, Mapping, PAGE};

/// `PAGEMAP_SCAN`: `_IOWR('f', 16, struct pm_scan_arg)`.
pub const PAGEMAP_SCAN: u64 = 0xc060_6610;
const IS_FILE: u64 = 1 << 2;
const IS_PRESENT: u64 = 1 << 3;
const IS_SWAPPED: u64 = 1 << 4;
/// Of the table: in memory, in swap, of a file (or shared).
const BIT_PRESENT: u64 = 1 << 63;
const BIT_SWAPPED: u64 = 1 << 62;
const BIT_FILE: u64 = 1 << 61;

/// Regions that one call answers.
const REGIONS: usize = 1024;

/// `struct page_region`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Default)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// What to look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Pages that were written.
    Written,
    /// Pages that are mapped and were only read.
    Read,
}

/// The pages of this kind, in order. `pagemap` is the process's own.
pub fn find(mapping: &Mapping, pagemap: &File, kind: Kind) -> io::Result<Vec<Extent>> {
    match scan(mapping, pagemap, kind) {
        // A kernel that does not know it.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => {
            from_table(mapping, pagemap, kind)
        }
        found => found,
    }
}

/// Every page.
pub fn all(mapping: &Mapping) -> Vec<Extent> {
    vec![Extent { start: 0, count: mapping.bytes() / PAGE }]
}

fn scan(mapping: &Mapping, pagemap: &File, kind: Kind) -> io::Result<Vec<Extent>> {
    let base = mapping.start().as_ptr() as u64;
    let end = base + mapping.bytes();
    let mut regions = [PageRegion::default(); REGIONS];
    let mut found = Extents::default();
    let mut at = base;
    while at < end {
        let mut arguments = ScanArguments {
            size: size_of::<ScanArguments>() as u64,
            start: at,
            end,
            vec: regions.as_mut_ptr() as u64,
            vec_len: REGIONS as u64,
            category_mask: IS_FILE,
            category_anyof_mask: IS_PRESENT | IS_SWAPPED,
            category_inverted: if kind == Kind::Written { IS_FILE } else { 0 },
            ..ScanArguments::default()
        };
        // SAFETY: the arguments describe memory of ours, with room for as many regions.
        let count =
            unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arguments) };
        if count < 0 {
            return Err(io::Error::last_os_error());
        }
        for region in &regions[..(count as usize).min(REGIONS)] {
            found.add((region.start - base) / PAGE, (region.end - region.start) / PAGE);
        }
        if arguments.walk_end <= at {
            break;
        }
        at = arguments.walk_end;
    }
    Ok(found.list)
}

fn from_table(mapping: &Mapping, pagemap: &File, kind: Kind) -> io::Result<Vec<Extent>> {
    let first = mapping.start().as_ptr() as u64 / PAGE;
    let pages = mapping.bytes() / PAGE;
    let mut buffer = vec![0u8; 64 << 10];
    let mut found = Extents::default();
    let mut page = 0;
    while page < pages {
        let count = ((pages - page) as usize).min(buffer.len() / 8);
        let bytes = &mut buffer[..count * 8];
        pagemap.read_exact_at(bytes, (first + page) * 8)?;
        for entry in bytes.chunks_exact(8) {
            let entry = u64::from_le_bytes(entry.try_into().expect("eight bytes"));
            let here = entry & (BIT_PRESENT | BIT_SWAPPED) != 0;
            if here && (entry & BIT_FILE == 0) == (kind == Kind::Written) {
                found.add(page, 1);
            }
            page += 1;
        }
    }
    Ok(found.list)
}

/// Extents in order, neighbours joined.
#[derive(Default)]
struct Extents {
    list: Vec<Extent>,
}

impl Extents {
    fn add(&mut self, start: u64, count: u64) {
        match self.list.last_mut() {
            Some(last) if last.end() == start => last.count += count,
            _ if count > 0 => self.list.push(Extent { start, count }),
            _ => {}
        }
    }
}

/// The pages of either list, both in order.
pub fn union(one: &[Extent], other: &[Extent]) -> Vec<Extent> {
    let mut sorted: Vec<Extent> = one.iter().chain(other).copied().collect();
    sorted.sort_by_key(|extent| extent.start);
    let mut list: Vec<Extent> = Vec::with_capacity(sorted.len());
    for extent in sorted {
        match list.last_mut() {
            Some(last) if last.end() >= extent.start => {
                last.count = last.end().max(extent.end()) - last.start;
            }
            _ => list.push(extent),
        }
    }
    list
}

/// At most `most` extents with at least the same pages: the smallest gaps are filled.
pub fn coalesce(mut list: Vec<Extent>, most: usize) -> Vec<Extent> {
    let mut gap = 1;
    while list.len() > most {
        let mut joined: Vec<Extent> = Vec::with_capacity(list.len());
        for extent in list {
            match joined.last_mut() {
                Some(last) if extent.start - last.end() <= gap => {
                    last.count = extent.end() - last.start;
                }
                _ => joined.push(extent),
            }
        }
        list = joined;
        gap *= 2;
    }
    list
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use proptest::prelude::*;

    use super::*;

    fn touched(kind: Kind, find: impl Fn(&Mapping, &File, Kind) -> io::Result<Vec<Extent>>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 * PAGE).unwrap();
        file.write_all_at(&[7; PAGE as usize], 9 * PAGE).unwrap();
        let mapping = Mapping::of_files(&file, None, 64 * PAGE).unwrap().0;
        for page in [3u64, 4, 40] {
            // SAFETY: within the mapping.
            unsafe { mapping.start().add((page * PAGE) as usize).write_volatile(1) };
        }
        // SAFETY: within the mapping.
        assert_eq!(unsafe { mapping.start().add((9 * PAGE) as usize).read_volatile() }, 7);
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        let found = find(&mapping, &pagemap, kind).unwrap();
        let holds = |page| found.iter().any(|e| (e.start..e.end()).contains(&page));
        match kind {
            Kind::Written => {
                let expected = [Extent { start: 3, count: 2 }, Extent { start: 40, count: 1 }];
                assert_eq!(found, expected);
            }
            Kind::Read => assert!(holds(9) && !holds(3) && !holds(40), "{found:?}"),
        }
    }

    #[test]
    fn written_and_read_pages_are_told_apart_by_a_scan_and_by_the_table() {
        for kind in [Kind::Written, Kind::Read] {
            touched(kind, find);
            touched(kind, from_table);
        }
    }

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        prop::collection::btree_set(0u64..200, 0..60).prop_map(|pages| {
            let mut list = Extents::default();
            pages.into_iter().for_each(|page| list.add(page, 1));
            list.list
        })
    }

    fn pages(list: &[Extent]) -> Vec<u64> {
        list.iter().flat_map(|e| e.start..e.end()).collect()
    }

    proptest! {
        #[test]
        fn a_union_has_the_pages_of_both(one in extents(), other in extents()) {
            let mut expected = pages(&one);
            expected.extend(pages(&other));
            expected.sort_unstable();
            expected.dedup();
            prop_assert_eq!(pages(&union(&one, &other)), expected);
        }

        #[test]
        fn coalescing_loses_no_page(list in extents(), most in 1usize..20) {
            let fewer = coalesce(list.clone(), most);
            prop_assert!(fewer.len() <= most);
            let all = pages(&fewer);
            prop_assert!(pages(&list).iter().all(|page| all.contains(page)));
        }
    }
}
