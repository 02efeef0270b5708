//! The diff of a snapshot: the pages in which a machine's memory differs from its template's.
//!
//! ```text
//!       0  "PANDADIF"
//!       8  version u32, bytes of a page u32
//!      16  bytes of guest memory u64
//!      24  number of extents u64
//!      32  extents: first page u64, number of pages u64   in order, none touches another's pages
//!          nothing, up to the next multiple of the page size
//!          the pages of the extents, in order             to the end of the file
//! ```
//!
//! Numbers are little endian. A page of zeros is in the file like any other, since it may cover
//! one of the template's that is not; it is a hole, and takes no space.
//!
//! The header is written last: what a failed [`save`] leaves behind is not a diff.

use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::FallocateFlags;

use super::guest::Guest;
use super::{BLOCK, PAGE, blocks};

const MAGIC: u64 = u64::from_le_bytes(*b"PANDADIF");
const VERSION: u64 = 1;

/// Version and page size, as one word of the header.
const LAYOUT: u64 = VERSION | PAGE << 32;

/// The header is four words, an extent two.
const WORD: usize = size_of::<u64>();
const HEADER: usize = 4 * WORD;
const EXTENT: usize = 2 * WORD;

/// What a diff came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::qemu) struct DiffStats {
    /// Pages in which the memory differs from its template's, or may.
    pub pages: u64,
    /// Bytes that were written, which leaves out pages of zeros.
    pub bytes: u64,
}

/// Writes a new file with all pages in which `bytes` of guest memory, those of the process `pid`,
/// differ from its template's. The process must stand still. `previous` is the diff that the
/// machine itself was restored from, if any.
pub(in crate::qemu) fn save(
    pid: u32,
    bytes: u64,
    previous: Option<&Path>,
    out: &Path,
) -> io::Result<DiffStats> {
    write(&Guest::open(pid, bytes)?, previous, out)
}

fn write(guest: &Guest, previous: Option<&Path>, out: &Path) -> io::Result<DiffStats> {
    let mut changed = guest.changed()?;
    if let Some(previous) = previous {
        // The process maps the previous diff's pages with the rest of its memfd: which ones they
        // are is all that has to be known, their contents are read like those of every other page.
        for Range { start, end } in Diff::open(previous, guest.bytes())?.extents {
            changed[start as usize..end as usize].fill(true);
        }
    }
    let extents: Vec<_> = runs(&changed, |&changed| changed)
        .filter(|&(changed, _)| changed)
        .map(|(_, run)| run.start as u64..run.end as u64)
        .collect();

    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(out)?;
    let mut index = BufWriter::new(&file);
    index.seek(SeekFrom::Start(HEADER as u64))?;
    for extent in &extents {
        index.write_all(&words([extent.start, extent.end - extent.start]))?;
    }
    index.flush()?;

    let pages = count(&extents);
    let mut at = data(extents.len() as u64);
    file.set_len(at + pages * PAGE)?;
    let mut written = (HEADER + extents.len() * EXTENT) as u64;
    let mut buffer = vec![0; BLOCK as usize];
    for place in extents.iter().flat_map(places) {
        let pages = &mut buffer[..(place.end - place.start) as usize];
        guest.read_exact_at(pages, place.start)?;
        for (_, part) in parts(pages).filter(|&(zero, _)| !zero) {
            file.write_all_at(&pages[part.clone()], at + part.start as u64)?;
            written += part.len() as u64;
        }
        at += pages.len() as u64;
    }
    let header = [MAGIC, LAYOUT, guest.bytes(), extents.len() as u64];
    file.write_all_at(&words(header), 0)?;
    file.sync_all()?;
    Ok(DiffStats { pages, bytes: written })
}

/// A diff that was opened, its index found sound.
pub(super) struct Diff {
    file: File,
    /// Ranges of pages, in order and apart, in bounds of the memory.
    extents: Vec<Range<u64>>,
}

impl Diff {
    /// Opens the diff of a memory of `bytes`.
    pub(super) fn open(path: &Path, bytes: u64) -> io::Result<Self> {
        File::open(path)
            .and_then(|file| Ok(Self { extents: read_index(&file, bytes)?, file }))
            .map_err(|e| io::Error::new(e.kind(), format!("{}: {e}", path.display())))
    }

    /// Writes the pages over those of `memory`, a memfd.
    pub(super) fn apply(&self, memory: &File) -> io::Result<()> {
        let mut at = data(self.extents.len() as u64);
        let mut buffer = vec![0; BLOCK as usize];
        for place in self.extents.iter().flat_map(places) {
            let pages = &mut buffer[..(place.end - place.start) as usize];
            self.file.read_exact_at(pages, at)?;
            for (zero, part) in parts(pages) {
                let offset = place.start + part.start as u64;
                if zero {
                    let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(memory, hole, offset, part.len() as u64)?;
                } else {
                    memory.write_all_at(&pages[part], offset)?;
                }
            }
            at += pages.len() as u64;
        }
        Ok(())
    }
}

/// Reads and checks all of a diff but its pages, from the beginning of `file`.
fn read_index(file: &File, bytes: u64) -> io::Result<Vec<Range<u64>>> {
    let length = file.metadata()?.len();
    let mut file = BufReader::new(file);
    if length < HEADER as u64 {
        return Err(invalid("ends in its header"));
    }
    let [magic, layout, memory, extents] = read_words(&mut file)?;
    if magic != MAGIC {
        return Err(invalid("is not a diff of memory"));
    }
    if layout != LAYOUT {
        let (version, page) = (layout & u64::from(u32::MAX), layout >> 32);
        return Err(invalid(format!("has version {version} and pages of {page} bytes")));
    }
    if memory != bytes {
        return Err(invalid(format!("is of {memory} bytes of memory instead of {bytes}")));
    }
    // Before anything is allocated or multiplied: no extent is empty.
    let pages = bytes / PAGE;
    if extents > pages {
        return Err(invalid(format!("has {extents} extents in {pages} pages")));
    }
    if length < data(extents) {
        return Err(invalid("ends in its index"));
    }
    let mut index: Vec<Range<u64>> = Vec::with_capacity(extents as usize);
    for _ in 0..extents {
        let [start, count] = read_words(&mut file)?;
        let earliest = index.last().map_or(0, |extent| extent.end);
        match start.checked_add(count) {
            Some(end) if earliest <= start && start < end && end <= pages => {
                index.push(start..end);
            }
            _ => return Err(invalid(format!("has an extent of {count} pages at page {start}"))),
        }
    }
    let expected = data(extents) + count(&index) * PAGE;
    if length != expected {
        return Err(invalid(format!("is {length} bytes long instead of {expected}")));
    }
    Ok(index)
}

/// Where the pages begin in a file of so many extents.
fn data(extents: u64) -> u64 {
    (HEADER as u64 + extents * EXTENT as u64).next_multiple_of(PAGE)
}

/// The number of pages in `extents`.
fn count(extents: &[Range<u64>]) -> u64 {
    extents.iter().map(|extent| extent.end - extent.start).sum()
}

/// Where in guest memory the pages of an extent are, a buffer's worth at a time.
fn places(extent: &Range<u64>) -> impl Iterator<Item = Range<u64>> + use<> {
    blocks(extent.start * PAGE..extent.end * PAGE)
}

/// Cuts `pages` into parts in which every page is all zeros (`true`), or none is.
fn parts(pages: &[u8]) -> impl Iterator<Item = (bool, Range<usize>)> {
    const SIZE: usize = PAGE as usize;
    let (pages, _) = pages.as_chunks();
    runs(pages, |page| *page == [0; SIZE])
        .map(|(zero, run)| (zero, run.start * SIZE..run.end * SIZE))
}

/// The runs of values that answer the same to a question, with the answer.
fn runs<T>(
    values: &[T],
    question: impl Fn(&T) -> bool + Copy,
) -> impl Iterator<Item = (bool, Range<usize>)> {
    let mut end = 0;
    values.chunk_by(move |a, b| question(a) == question(b)).map(move |run| {
        let start = end;
        end += run.len();
        (question(&run[0]), start..end)
    })
}

fn words<const N: usize>(words: [u64; N]) -> Vec<u8> {
    words.into_iter().flat_map(u64::to_le_bytes).collect()
}

fn read_words<const N: usize>(from: &mut impl Read) -> io::Result<[u64; N]> {
    let mut words = [[0; WORD]; N];
    from.read_exact(words.as_flattened_mut())?;
    Ok(words.map(u64::from_le_bytes))
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

#[cfg(test)]
mod tests;
