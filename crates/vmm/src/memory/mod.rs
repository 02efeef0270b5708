//! Guest memory: a private mapping, so that a fork of the process is a copy of the guest.
//!
//! ```text
//!   booted:    ┌────────────── anonymous ──────────────┐
//!   restored:  ┌──────── memory of the bake ───────────┐  private, read from its file
//!                   ▲▲▲      pages of the diff             private, over it
//! ```
//!
//! A page that is anonymous in a restored machine is one that it has written ([`pages`]).

pub mod diff;
pub mod pages;
pub mod working_set;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::{self, NonNull};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestRegionMmap};

use self::diff::{Diff, DiffError};
use crate::{GuestMemory, layout};

/// Bytes of a page.
pub const PAGE: u64 = 4096;

/// A run of pages, by their numbers in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Extent {
    /// First page.
    pub start: u64,
    /// How many.
    pub count: u64,
}

impl Extent {
    /// The page after its last.
    pub fn end(&self) -> u64 {
        self.start + self.count
    }
}

/// Why memory could not be mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The kernel refused.
    #[error("cannot map guest memory")]
    Map(#[source] io::Error),
    /// The file is not as long as the memory.
    #[error("the memory file has {found} bytes and not {wanted}")]
    Length {
        /// What it should have.
        wanted: u64,
        /// What it has.
        found: u64,
    },
    /// The diff cannot be used.
    #[error(transparent)]
    Diff(#[from] DiffError),
}

/// The mapping behind a [`GuestMemory`], which stays for the life of the process.
#[derive(Clone, Copy, Debug)]
pub struct Mapping {
    start: NonNull<u8>,
    bytes: u64,
}

// SAFETY: it is an address; whoever goes through it says why that is sound.
unsafe impl Send for Mapping {}

impl Mapping {
    /// Memory of zeros.
    pub fn anonymous(bytes: u64) -> Result<Self, MapError> {
        map(None, bytes, libc::MAP_ANONYMOUS, None)
    }

    /// Memory as `base` holds it, changed by `diff`, and the pages in which it is. Both files must never change again, and a
    /// `base` that is cut short later would end the process.
    pub fn of_files(
        base: &File,
        diff: Option<&File>,
        bytes: u64,
    ) -> Result<(Self, Vec<Extent>), MapError> {
        let found = base.metadata().map_err(MapError::Map)?.len();
        if found != bytes {
            return Err(MapError::Length { wanted: bytes, found });
        }
        let mapping = map(Some((base, 0)), bytes, 0, None)?;
        let Some(file) = diff else { return Ok((mapping, Vec::new())) };
        let diff = Diff::open(file, bytes / PAGE)?;
        for (extent, offset) in diff.extents() {
            // SAFETY: `open` has checked that extents lie within the memory.
            let at = unsafe { mapping.start.add((extent.start * PAGE) as usize) };
            map(Some((file, offset)), extent.count * PAGE, libc::MAP_FIXED, Some(at))?;
        }
        Ok((mapping, diff.pages().to_vec()))
    }

    /// The memory as devices and vCPUs see it.
    pub fn guest(&self) -> GuestMemory {
        // SAFETY: the mapping has this length and stays for the life of the process.
        let region = unsafe {
            MmapRegionBuilder::new(self.bytes as usize)
                .with_raw_mmap_pointer(self.start.as_ptr())
                .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
                .with_mmap_flags(libc::MAP_PRIVATE)
                .build()
        };
        let region = region.expect("a mapping that exists has a length and an address");
        let region = GuestRegionMmap::new(region, GuestAddress(0)).expect("it starts at 0");
        GuestMemory::from_regions(vec![region]).expect("there is one region")
    }

    /// Its first byte.
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    /// Its length.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether these pages are in it.
    pub fn holds(&self, extent: &Extent) -> bool {
        extent.start.checked_add(extent.count).is_some_and(|end| end <= self.bytes / PAGE)
    }

    /// Gives the kernel advice on some pages.
    fn advise(&self, extent: &Extent, advice: i32) -> io::Result<()> {
        assert!(self.holds(extent), "callers check");
        let at = self.start.as_ptr() as usize + (extent.start * PAGE) as usize;
        // SAFETY: the range is within the mapping, and no advice used here changes its content.
        match unsafe { libc::madvise(at as *mut _, (extent.count * PAGE) as usize, advice) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

fn map(
    file: Option<(&File, u64)>,
    bytes: u64,
    flags: i32,
    at: Option<NonNull<u8>>,
) -> Result<Mapping, MapError> {
    if bytes == 0 || bytes > layout::RAM_END_MAX {
        let found = io::Error::other("no machine has so much memory");
        return Err(MapError::Map(found));
    }
    let (fd, offset) = file.map_or((-1, 0), |(file, at)| (file.as_fd().as_raw_fd(), at));
    let wanted = at.map_or(ptr::null_mut(), |at| at.as_ptr().cast());
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_NORESERVE | flags;
    // SAFETY: a new private mapping, or one in place of a part of our own, which `at` is in.
    let start = unsafe { libc::mmap(wanted, bytes as usize, protection, flags, fd, offset as i64) };
    if start == libc::MAP_FAILED {
        return Err(MapError::Map(io::Error::last_os_error()));
    }
    let start = NonNull::new(start.cast()).expect("the kernel maps nothing at 0");
    Ok(Mapping { start, bytes })
}
