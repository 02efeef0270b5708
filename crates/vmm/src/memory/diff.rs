//! A diff: the pages in which a snapshot's memory differs from the bake that it descends from.
//!
//! ```text
//!   header  magic(8) version(4) extents(4) memory pages(8) BLAKE3 of the table(32)
//!   table   first page(8) pages(8) …                        integers little-endian
//!   pages   from the next page boundary on, in the order of the table
//! ```
//!
//! Page contents begin at page boundaries, so each extent is mapped as it is. There are at most
//! [`MAX_EXTENTS`], each a mapping of the process: more are merged when the diff is written. A page
//! of zeros is a hole in the file.
//!
//! A file that is to be mapped is hostile input: everything is checked before anything is.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::{Extent, Mapping, PAGE};

const MAGIC: &[u8; 8] = b"PANDDIFF";
const VERSION: u32 = 1;
const HEADER: usize = 56;
const ENTRY: usize = 16;

/// Most extents of a diff. The kernel allows 65,530 mappings to a process.
pub const MAX_EXTENTS: usize = 8192;

/// Why a diff cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DiffError {
    /// It cannot be read.
    #[error("the memory diff cannot be read")]
    Read(#[source] io::Error),
    /// It is damaged, or something else.
    #[error("the memory diff is damaged: {0}")]
    Damaged(&'static str),
    /// It is of another version.
    #[error("the memory diff has version {0}, not {VERSION}")]
    Version(u32),
}

/// The table of a diff that was checked.
#[derive(Debug, PartialEq, Eq)]
pub struct Diff {
    extents: Vec<Extent>,
}

impl Diff {
    /// Reads and checks a diff for a memory of so many pages.
    pub fn open(file: &File, pages: u64) -> Result<Self, DiffError> {
        let mut header = [0u8; HEADER];
        file.read_exact_at(&mut header, 0).map_err(DiffError::Read)?;
        if header[..8] != MAGIC[..] {
            return Err(DiffError::Damaged("it begins with something else"));
        }
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("4 bytes"));
        if word(8) != VERSION {
            return Err(DiffError::Version(word(8)));
        }
        let count = word(12) as usize;
        if count > MAX_EXTENTS || header[16..24] != pages.to_le_bytes() {
            return Err(DiffError::Damaged("it is for another memory"));
        }
        let mut table = vec![0u8; count * ENTRY];
        file.read_exact_at(&mut table, HEADER as u64).map_err(DiffError::Read)?;
        if header[24..] != digest(&table)[..] {
            return Err(DiffError::Damaged("its table is not what was written"));
        }
        let diff = Self { extents: parse(&table, pages)? };
        let length = file.metadata().map_err(DiffError::Read)?.len();
        // Mapping what is not there would end the process when the guest touches it.
        if length != diff.length() {
            return Err(DiffError::Damaged("it has another length"));
        }
        Ok(diff)
    }

    /// Where each extent's pages are in the file.
    pub fn extents(&self) -> impl Iterator<Item = (Extent, u64)> + '_ {
        let mut at = self.first_page();
        self.extents.iter().map(move |extent| {
            let here = at;
            at += extent.count * PAGE;
            (*extent, here)
        })
    }

    /// The pages, in order.
    pub fn pages(&self) -> &[Extent] {
        &self.extents
    }

    fn first_page(&self) -> u64 {
        ((HEADER + self.extents.len() * ENTRY) as u64).next_multiple_of(PAGE)
    }

    fn length(&self) -> u64 {
        self.first_page() + self.extents.iter().map(|e| e.count * PAGE).sum::<u64>()
    }
}

fn parse(table: &[u8], pages: u64) -> Result<Vec<Extent>, DiffError> {
    let mut end = 0;
    let mut extents = Vec::with_capacity(table.len() / ENTRY);
    for entry in table.chunks_exact(ENTRY) {
        let (start, count) = entry.split_at(8);
        let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
        let extent = Extent { start: number(start), count: number(count) };
        let fits = extent.start.checked_add(extent.count).is_some_and(|end| end <= pages);
        if !fits || extent.count == 0 || extent.start < end {
            return Err(DiffError::Damaged("a run of pages is in the wrong place"));
        }
        end = extent.end();
        extents.push(extent);
    }
    Ok(extents)
}

fn digest(table: &[u8]) -> [u8; 32] {
    *blake3::hash(table).as_bytes()
}

/// Writes these pages of a memory that stands still into an empty file.
pub fn write(mapping: &Mapping, extents: Vec<Extent>, file: &File) -> io::Result<()> {
    let extents = super::pages::coalesce(extents, MAX_EXTENTS);
    let table: Vec<u8> = extents
        .iter()
        .flat_map(|e| [e.start.to_le_bytes(), e.count.to_le_bytes()])
        .flatten()
        .collect();
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(VERSION.to_le_bytes());
    header.extend((extents.len() as u32).to_le_bytes());
    header.extend((mapping.bytes() / PAGE).to_le_bytes());
    header.extend(digest(&table));
    let diff = Diff { extents };
    file.set_len(diff.length())?;
    file.write_all_at(&header, 0)?;
    file.write_all_at(&table, HEADER as u64)?;
    for (extent, offset) in diff.extents() {
        write_pages(mapping, &extent, file, offset)?;
    }
    Ok(())
}

/// Writes the whole memory, holes for pages of zeros, to an empty file.
pub fn write_whole(mapping: &Mapping, written: &[Extent], file: &File) -> io::Result<()> {
    file.set_len(mapping.bytes())?;
    written.iter().try_for_each(|extent| write_pages(mapping, extent, file, extent.start * PAGE))
}

/// Writes pages to a place in a file, leaving out those of zeros.
fn write_pages(mapping: &Mapping, extent: &Extent, file: &File, offset: u64) -> io::Result<()> {
    assert!(mapping.holds(extent), "extents of this memory");
    // SAFETY: within the mapping, and nobody writes: the machine's vCPUs and devices stand still.
    let bytes = unsafe {
        let start = mapping.start().add((extent.start * PAGE) as usize);
        std::slice::from_raw_parts(start.as_ptr(), (extent.count * PAGE) as usize)
    };
    let page = PAGE as usize;
    let is_zero = |at: usize| bytes[at..at + page].iter().all(|&byte| byte == 0);
    let mut at = 0;
    while at < bytes.len() {
        if is_zero(at) {
            at += page;
            continue;
        }
        let begin = at;
        // At most a MiB at a time: a page is looked at, then written, while it is in the cache.
        while at < bytes.len() && at - begin < 1 << 20 && !is_zero(at) {
            at += page;
        }
        file.write_all_at(&bytes[begin..at], offset + begin as u64)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PAGES: u64 = 64;

    fn base() -> (File, Mapping) {
        let file = tempfile::tempfile().unwrap();
        for page in 0..PAGES {
            file.write_all_at(&[page as u8 + 1; PAGE as usize], page * PAGE).unwrap();
        }
        let mapping = Mapping::of_files(&file, None, PAGES * PAGE).unwrap().0;
        (file, mapping)
    }

    fn fill(mapping: &Mapping, page: u64, value: u8) {
        // SAFETY: within the mapping.
        unsafe {
            mapping.start().add((page * PAGE) as usize).write_bytes(value, PAGE as usize);
        }
    }

    fn content(mapping: &Mapping) -> Vec<u8> {
        // SAFETY: the mapping; nobody writes.
        unsafe {
            std::slice::from_raw_parts(mapping.start().as_ptr(), mapping.bytes() as usize).to_vec()
        }
    }

    #[test]
    fn memory_comes_back_from_base_and_diff() {
        let (base, mapping) = base();
        [(3, 200), (4, 0), (63, 9)].iter().for_each(|&(page, value)| fill(&mapping, page, value));
        let dirty = vec![Extent { start: 3, count: 2 }, Extent { start: 63, count: 1 }];
        let file = tempfile::tempfile().unwrap();
        write(&mapping, dirty.clone(), &file).unwrap();
        assert_eq!(Diff::open(&file, PAGES).unwrap().pages(), dirty);
        let again = Mapping::of_files(&base, Some(&file), PAGES * PAGE).unwrap().0;
        assert!(content(&again) == content(&mapping));
    }

    #[test]
    fn a_whole_memory_comes_back() {
        let mapping = Mapping::anonymous(PAGES * PAGE).unwrap();
        fill(&mapping, 5, 7);
        let file = tempfile::tempfile().unwrap();
        write_whole(&mapping, &super::super::pages::all(&mapping), &file).unwrap();
        let again = Mapping::of_files(&file, None, PAGES * PAGE).unwrap().0;
        assert!(content(&again) == content(&mapping));
    }

    #[test]
    fn a_diff_of_another_memory_or_length_is_refused() {
        let (base, mapping) = base();
        let file = tempfile::tempfile().unwrap();
        write(&mapping, vec![Extent { start: 0, count: 1 }], &file).unwrap();
        assert!(matches!(Diff::open(&file, PAGES + 1), Err(DiffError::Damaged(_))));
        file.set_len(file.metadata().unwrap().len() - 1).unwrap();
        assert!(matches!(Diff::open(&file, PAGES), Err(DiffError::Damaged(_))));
        let short = Mapping::of_files(&base, None, (PAGES + 1) * PAGE);
        assert!(matches!(short, Err(MapError::Length { .. })));
    }

    use super::super::MapError;

    proptest! {
        #[test]
        fn a_damaged_diff_is_refused(at in 0usize..88, bit in 0u8..8) {
            let (_, mapping) = base();
            let file = tempfile::tempfile().unwrap();
            let dirty = vec![Extent { start: 1, count: 2 }, Extent { start: 9, count: 1 }];
            write(&mapping, dirty, &file).unwrap();
            let mut byte = [0u8];
            file.read_exact_at(&mut byte, at as u64).unwrap();
            byte[0] ^= 1 << bit;
            file.write_all_at(&byte, at as u64).unwrap();
            prop_assert!(Diff::open(&file, PAGES).is_err());
        }

        #[test]
        fn arbitrary_bytes_are_no_diff(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let file = tempfile::tempfile().unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            prop_assert!(Diff::open(&file, PAGES).is_err());
        }
    }
}
