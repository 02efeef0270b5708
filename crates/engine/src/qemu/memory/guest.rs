//! A machine's memory as its process has it, looked at from outside through `/proc`.
//!
//! QEMU maps the template's memfd privately, so a page that the guest has written is an anonymous
//! copy, and every other page is still the memfd's. `maps` says where the memory is, `pagemap`
//! which pages are copies, `mem` what is in any page, copied or not.
//!
//! The process is a hostile guest's. It can map what it likes under our memfd's name, and so
//! spoil the snapshot of itself; what is read here is bounded by the size that the machine was
//! given, because the mappings must cover exactly that, each byte once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind};
use std::mem;
use std::os::unix::fs::FileExt;

use super::{BLOCK, PAGE, blocks};

/// How `maps` calls the memfd of [`super::create`].
const NAME: &str = "/memfd:guest-memory (deleted)";

/// Bits of an entry of `pagemap`, see Documentation/admin-guide/mm/pagemap.rst.
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
const FILE: u64 = 1 << 61;

/// The memory of one machine. Its process must stand still.
pub(super) struct Guest {
    mappings: Vec<Mapping>,
    pagemap: File,
    mem: File,
}

/// Where a part of guest memory is in the process. The kernel may split one mapping into several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Mapping {
    /// In guest memory.
    offset: u64,
    bytes: u64,
    /// In the process.
    address: u64,
}

impl Mapping {
    fn end(&self) -> u64 {
        self.offset + self.bytes
    }
}

impl Guest {
    /// Finds the `bytes` of guest memory in a process.
    pub(super) fn open(pid: u32, bytes: u64) -> io::Result<Self> {
        let open = |name: &str| {
            let path = format!("/proc/{pid}/{name}");
            File::open(&path).map_err(|e| context(e, &path))
        };
        let maps = BufReader::new(open("maps")?);
        let mappings = find_mappings(maps, bytes)
            .map_err(|e| context(e, &format!("guest memory of process {pid}")))?;
        Ok(Self { mappings, pagemap: open("pagemap")?, mem: open("mem")? })
    }

    /// Size of the guest's memory.
    pub(super) fn bytes(&self) -> u64 {
        self.mappings.last().map_or(0, Mapping::end)
    }

    /// For every page of guest memory, whether it differs from the memfd's, or may.
    pub(super) fn changed(&self) -> io::Result<Vec<bool>> {
        const ENTRY: u64 = size_of::<u64>() as u64;
        let mut changed = Vec::with_capacity((self.bytes() / PAGE) as usize);
        let mut buffer = vec![0; BLOCK as usize];
        for mapping in &self.mappings {
            let start = mapping.address / PAGE * ENTRY;
            for block in blocks(start..start + mapping.bytes / PAGE * ENTRY) {
                let entries = &mut buffer[..(block.end - block.start) as usize];
                self.pagemap
                    .read_exact_at(entries, block.start)
                    .map_err(|e| context(e, "table of pages"))?;
                let (entries, _) = entries.as_chunks();
                changed.extend(entries.iter().map(|&entry| is_copy(u64::from_ne_bytes(entry))));
            }
        }
        Ok(changed)
    }

    /// Reads what the guest has at `offset` of its memory.
    pub(super) fn read_exact_at(&self, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
        let first = self.mappings.partition_point(|mapping| mapping.end() <= offset);
        for mapping in &self.mappings[first..] {
            let length = buffer.len().min((mapping.end() - offset) as usize);
            let (here, rest) = mem::take(&mut buffer).split_at_mut(length);
            self.mem
                .read_exact_at(here, mapping.address + (offset - mapping.offset))
                .map_err(|e| context(e, "guest memory"))?;
            buffer = rest;
            offset += length as u64;
            if buffer.is_empty() {
                return Ok(());
            }
        }
        Err(io::Error::new(ErrorKind::UnexpectedEof, "the end of guest memory"))
    }
}

/// Whether a page is the process's own. A page on its way between nodes or compressed counts as
/// swapped, and may still be the file's.
fn is_copy(entry: u64) -> bool {
    entry & (PRESENT | SWAPPED) != 0 && entry & FILE == 0
}

/// Finds the mappings that make up `bytes` of guest memory, in its order.
fn find_mappings(maps: impl BufRead, bytes: u64) -> io::Result<Vec<Mapping>> {
    let mut mappings = Vec::new();
    for line in maps.split(b'\n') {
        mappings.extend(parse(&line?)?);
    }
    if mappings.is_empty() {
        return Err(io::Error::new(ErrorKind::NotFound, "it is not mapped"));
    }
    mappings.sort_unstable_by_key(|mapping| mapping.offset);
    let mut end = 0;
    for mapping in &mappings {
        if mapping.offset != end {
            return Err(invalid("it is mapped in parts, or more than once"));
        }
        end = mapping.end();
    }
    if end != bytes {
        return Err(invalid(format!("{end} bytes of it are mapped instead of {bytes}")));
    }
    Ok(mappings)
}

/// Understands a line of `maps`; `None` for a mapping of something else.
///
/// ```text
/// 7fe6b7e8b000-7fe6b7e9b000 rw-p 00000000 00:01 1038          /memfd:guest-memory (deleted)
/// address                   mode offset   device inode        path, its newlines escaped
/// ```
fn parse(line: &[u8]) -> io::Result<Option<Mapping>> {
    let Ok(line) = str::from_utf8(line) else { return Ok(None) };
    let mut fields = line.splitn(6, ' ');
    let mut field = || fields.next().unwrap_or_default();
    let [addresses, mode, offset, _device, _inode, path] = std::array::from_fn(|_| field());
    if path.trim_start_matches(' ') != NAME {
        return Ok(None);
    }
    if !mode.ends_with('p') {
        return Err(invalid("it is shared with the machine's supervisor: this is a bake"));
    }
    let hex = |digits| u64::from_str_radix(digits, 16).ok().filter(|value| value % PAGE == 0);
    addresses
        .split_once('-')
        .and_then(|(start, end)| {
            let (address, offset) = (hex(start)?, hex(offset)?);
            let bytes = hex(end)?.checked_sub(address)?;
            offset.checked_add(bytes)?;
            Some(Mapping { offset, bytes, address })
        })
        .map(Some)
        .ok_or_else(|| invalid(format!("{line:?} is no mapping")))
}

fn invalid(text: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, text.into())
}

fn context(error: io::Error, what: &str) -> io::Error {
    io::Error::new(error.kind(), format!("{what}: {error}"))
}

#[cfg(test)]
impl Guest {
    /// A guest of `contents`, mapped in parts that begin at the pages `cuts` and lie in the
    /// opposite order in the process.
    pub(super) fn fake(contents: &[u8], changed: &[bool], cuts: &[u64]) -> Self {
        let pages = changed.len() as u64;
        assert_eq!(contents.len() as u64, pages * PAGE);
        let mut starts: Vec<u64> = cuts.iter().map(|cut| cut % pages).chain([0]).collect();
        starts.sort_unstable();
        starts.dedup();

        let guest = Self {
            mappings: starts
                .iter()
                .zip(starts[1..].iter().chain([&pages]))
                .map(|(&start, &end)| Mapping {
                    offset: start * PAGE,
                    bytes: (end - start) * PAGE,
                    address: (1 << 30) - (start + end) * PAGE, // a gap after each
                })
                .collect(),
            pagemap: tempfile::tempfile().unwrap(),
            mem: tempfile::tempfile().unwrap(),
        };
        for mapping in &guest.mappings {
            let part = mapping.offset as usize..mapping.end() as usize;
            guest.mem.write_all_at(&contents[part], mapping.address).unwrap();
            for page in 0..mapping.bytes / PAGE {
                let entry = match changed[(mapping.offset / PAGE + page) as usize] {
                    true => [PRESENT, SWAPPED][page as usize % 2],
                    false => [0, PRESENT | FILE, SWAPPED | FILE][page as usize % 3],
                };
                let at = (mapping.address / PAGE + page) * 8;
                guest.pagemap.write_all_at(&entry.to_ne_bytes(), at).unwrap();
            }
        }
        guest
    }

    /// As if the process had ended: the kernel has nothing of its memory any more.
    pub(super) fn ended(&self) {
        self.mem.set_len(0).unwrap();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As QEMU has it, and around it what must not be taken for it.
    const MAPS: &str = "\
55a0c0000000-55a0c0800000 r-xp 00000000 fe:00 411                        /usr/bin/qemu-system-x86_64
7f0000000000-7f0000004000 rw-p 00000000 00:01 1038                       /memfd:guest-memory (deleted)
7f0000004000-7f0000005000 ---p 00000000 00:00 0 
7f0000005000-7f0000006000 rw-p 00000000 00:00 0                          [anon:/memfd:guest-memory (deleted)]
7f0000006000-7f0000007000 rw-s 00000000 00:01 1039                       /memfd:guest-memory2 (deleted)
7f0000007000-7f0000008000 rw-s 00000000 00:01 1039                       /memfd:guest-memory
7f0000008000-7f0000009000 rw-s 00000000 fe:00 1040                       /tmp/a /memfd:guest-memory (deleted)
7f0000009000-7f000000a000 rw-s 00000000 fe:00 1040                       /tmp/a\\012 /memfd:guest-memory (deleted)
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
";

    fn find(maps: impl AsRef<[u8]>, pages: u64) -> io::Result<Vec<Mapping>> {
        find_mappings(maps.as_ref(), pages * PAGE)
    }

    /// Lines of `maps`: address and offset in pages, then how many.
    fn lines(mappings: &[(u64, u64, u64)]) -> String {
        mappings
            .iter()
            .map(|&(address, offset, pages)| {
                let [start, end] = [address, address + pages].map(|page| page * PAGE);
                format!("{start:08x}-{end:08x} rw-p {:08x} 00:01 7   {NAME}\n", offset * PAGE)
            })
            .collect()
    }

    #[test]
    fn only_the_memfd_is_guest_memory() {
        let memory = Mapping { offset: 0, bytes: 4 * PAGE, address: 0x7f00_0000_0000 };
        assert_eq!(find(MAPS, 4).unwrap(), [memory]);
        let strange = [b"\xff\xfe /memfd:guest-memory (deleted)\n\n \n", MAPS.as_bytes()].concat();
        assert_eq!(find(strange, 4).unwrap(), [memory]);
    }

    #[test]
    fn a_mapping_that_was_split_is_put_together_by_offset() {
        let found = find(lines(&[(100, 5, 3), (200, 0, 4), (300, 4, 1)]), 8).unwrap();
        let addresses: Vec<_> = found.iter().map(|mapping| mapping.address / PAGE).collect();
        assert_eq!(addresses, [200, 300, 100]);
    }

    #[test]
    fn memory_must_be_mapped_whole_and_once() {
        for (pages, mappings) in [
            (8, &[(100, 0, 9)][..]),                            // too much
            (8, &[(100, 0, 7)]),                                // too little
            (8, &[(100, 1, 8)]),                                // not from its beginning
            (8, &[(100, 0, 3), (200, 4, 4)]),                   // with a gap
            (8, &[(100, 0, 5), (200, 4, 4)]),                   // in part twice
            (8, &[(100, 0, 8), (200, 0, 8)]),                   // twice
            (8, &[(100, 0, 8), (200, 8, 1 << 35)]),             // endlessly
            (8, &[(100, 0, 8), (1, (u64::MAX / PAGE) - 1, 1)]), // at the end of the world
        ] {
            let error = find(lines(mappings), pages).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{mappings:?}: {error}");
        }
        assert_eq!(find("", 8).unwrap_err().kind(), ErrorKind::NotFound);
    }

    #[test]
    fn lines_that_make_no_sense_are_errors() {
        for line in [
            "1000-2000 rw-s 00000000 00:01 7 ",              // shared
            "1000 rw-p 00000000 00:01 7 ",                   // no end
            "2000-1000 rw-p 00000000 00:01 7 ",              // backwards
            "1000-2001 rw-p 00000000 00:01 7 ",              // part of a page
            "1000-2000 rw-p 00000800 00:01 7 ",              // from within a page
            "1000-3000 rw-p fffffffffffff000 00:01 7 ",      // beyond every file
            "-1000-2000 rw-p 00000000 00:01 7 ",             // no number
            "10000000000000000-2000 rw-p 00000000 00:01 7 ", // too large a number
            "1000-2000     ",                                // nothing more
        ] {
            let error = find(format!("{line}{NAME}\n"), 1).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidData, "{line}: {error}");
        }
    }

    #[test]
    fn reads_cross_mappings_and_end_with_the_memory() {
        let contents: Vec<u8> = (0..4 * PAGE).map(|at| (at / 7) as u8).collect();
        let guest = Guest::fake(&contents, &[true, false, true, true], &[1, 2]);
        assert_eq!(guest.mappings.len(), 3);
        assert_eq!(guest.changed().unwrap(), [true, false, true, true]);
        let mut buffer = vec![0; 2 * PAGE as usize + 2];
        guest.read_exact_at(&mut buffer, PAGE - 1).unwrap();
        assert!(buffer == contents[PAGE as usize - 1..][..buffer.len()]);
        let error = guest.read_exact_at(&mut buffer, 2 * PAGE - 1).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }

    #[test]
    fn a_process_that_ended_is_an_error() {
        let guest = Guest::fake(&[0; 4096], &[true], &[]);
        guest.pagemap.set_len(0).unwrap();
        guest.ended();
        assert_eq!(guest.changed().unwrap_err().kind(), ErrorKind::UnexpectedEof);
        let error = guest.read_exact_at(&mut [0; 8], 0).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    }
}
