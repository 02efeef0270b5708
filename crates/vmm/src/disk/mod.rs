//! A machine's disk: a raw file, or a stack of immutable layers on one and a writable top.
//!
//! ```text
//!   base (raw, of the template)  ◀─ layer 1 ◀─ … ◀─ layer n ◀─ top
//!   shared by everybody             frozen by a fork or        written by this
//!                                   snapshot, read-only        machine alone
//! ```
//!
//! Layers are qcow2 images that QEMU reads too (`header.rs` says which dialect). They name no other
//! file: what lies under what is said by the order of the descriptors.
//!
//! **Nothing is buffered**, but by a disk that outlives its machine (`top.rs`). What was written is in the file, in a state that anybody may read, by
//! the time that [`Disk::write_at`] returns, and what is kept in memory (`map.rs`, first-level
//! tables) only repeats what is in files. So fork(2) copies a disk that is not being written to:
//! both sides [`freeze`](Disk::freeze) the top, each under a new one of its own, and go on.
//!
//! **Files are hostile.** A layer may have been written by a monitor that its guest took over. A
//! damaged one is an error of whoever opens it, or an I/O error of whoever reads the damaged part;
//! never a panic, a loop, or memory without a bound.
//!
//! Kernel calls: fstat, pread64, pwrite64, fdatasync, close.

mod header;
mod layer;
mod map;
mod merge;
mod stack;
mod top;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, fstat};

pub use header::{EMPTY_BYTES, check, write_empty};
pub use layer::LayerError;
pub use merge::{MergeError, merge};
use stack::Stack;

use crate::virtio::Storage;

/// Most frozen layers of a disk.
pub const MAX_LAYERS: usize = 64;

/// Most bytes of a disk: 1 TiB.
pub const MAX_BYTES: u64 = 1 << 40;

/// Bytes of a sector; a disk has a whole number of them.
const SECTOR: u64 = 512;

/// Why a disk cannot be made of these files, or not be changed like this. A disk that refuses a
/// change is as it was.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The raw file cannot be looked at, or is not a regular one.
    #[error("the raw file of the disk cannot be used")]
    Base(#[source] io::Error),
    /// The raw file is empty, too long, or has a part of a sector.
    #[error("a disk cannot have {0} bytes")]
    Length(u64),
    /// A layer cannot be used.
    #[error("layer {number} of the disk cannot be used")]
    Layer {
        /// Which one: the lowest is number 1.
        number: usize,
        /// What is wrong with it.
        #[source]
        source: LayerError,
    },
    /// The disk has [`MAX_LAYERS`].
    #[error("a disk has at most {MAX_LAYERS} frozen layers")]
    TooManyLayers,
    /// The disk is a plain file.
    #[error("a disk that is a plain file has no layers")]
    Plain,
    /// The file to read the frozen top through is another file.
    #[error("the frozen layer is not the file that was written")]
    OtherFile,
    /// What was held back cannot be written.
    #[error("the disk cannot be written")]
    Write(#[source] io::Error),
    /// The top is not untouched.
    #[error("the top layer was written to")]
    Written,
}

/// A disk. One thread uses it.
pub struct Disk {
    bytes: u64,
    content: Content,
}

enum Content {
    Plain { file: File, read_only: bool },
    Layered(Box<Stack>),
}

impl Disk {
    /// A plain (raw) file, open for writing too unless it is `read_only`.
    pub fn plain(file: File, read_only: bool) -> Result<Self, DiskError> {
        Ok(Self { bytes: length(&file)?, content: Content::Plain { file, read_only } })
    }

    /// A raw base, frozen layers on it, lowest first, all open for reading, and a top that is open
    /// for reading and writing. The top may have content.
    pub fn layered(base: File, layers: Vec<File>, top: File) -> Result<Self, DiskError> {
        let bytes = length(&base)?;
        if layers.len() > MAX_LAYERS {
            return Err(DiskError::TooManyLayers);
        }
        let stack = Stack::open(base, bytes, layers, top)?;
        Ok(Self { bytes, content: Content::Layered(Box::new(stack)) })
    }

    /// Bytes of the disk, a whole number of sectors of 512.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether every write fails.
    pub fn read_only(&self) -> bool {
        matches!(self.content, Content::Plain { read_only: true, .. })
    }

    /// Fills `buffer` from `offset`. `InvalidInput` beyond the end of the disk, `InvalidData` where
    /// a layer is damaged.
    pub fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.check(offset, buffer.len())?;
        match &mut self.content {
            Content::Plain { file, .. } => file.read_exact_at(buffer, offset),
            Content::Layered(stack) => stack.read(offset, buffer),
        }
    }

    /// Writes all of `bytes` at `offset`. After an error any part of them may have been written,
    /// and the disk can be used on. Errors as of [`Self::read_at`], and `ReadOnlyFilesystem`.
    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.check(offset, bytes.len())?;
        match &mut self.content {
            Content::Plain { read_only: true, .. } => {
                Err(io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "the disk is read-only"))
            }
            Content::Plain { file, .. } => file.write_all_at(bytes, offset),
            Content::Layered(stack) => stack.write(offset, bytes),
        }
    }

    /// Whether what is written is to outlive a failure of the host's power: that of a volume, not
    /// that of a disk whose machine ends then, with all that its memory holds. Not for a disk that
    /// is a plain file.
    pub fn set_lasting(&mut self, lasting: bool) -> Result<(), DiskError> {
        self.stack()?.set_lasting(lasting)
    }

    /// Puts into the files what a lasting disk holds back until it is flushed: before a copy is made
    /// of the process, and before anybody else reads them.
    pub fn commit(&mut self) -> Result<(), DiskError> {
        match &mut self.content {
            Content::Plain { .. } => Ok(()),
            Content::Layered(stack) => stack.commit(),
        }
    }

    /// Makes sure that what was written to a lasting disk outlives a failure of the host's power.
    /// Otherwise this does nothing, and that is enough: what was written is with the host's kernel
    /// already, so it outlives this process.
    pub fn flush(&mut self) -> io::Result<()> {
        match &mut self.content {
            Content::Plain { .. } => Ok(()),
            Content::Layered(stack) => stack.flush(),
        }
    }

    /// Makes the top a frozen layer, read through `frozen` from now on, which is the same file
    /// opened for reading only, and puts the empty image `top` on it. The descriptor through which
    /// the old top could be written is closed. Takes as long for a full disk as for an empty one.
    pub fn freeze(&mut self, frozen: File, top: File) -> Result<(), DiskError> {
        self.stack()?.freeze(frozen, top)
    }

    /// Exchanges a top that nothing was ever written to for another empty image.
    pub fn replace_top(&mut self, top: File) -> Result<(), DiskError> {
        self.stack()?.replace_top(top)
    }

    fn stack(&mut self) -> Result<&mut Stack, DiskError> {
        match &mut self.content {
            Content::Plain { .. } => Err(DiskError::Plain),
            Content::Layered(stack) => Ok(stack),
        }
    }

    fn check(&self, offset: u64, bytes: usize) -> io::Result<()> {
        match offset.checked_add(bytes as u64) {
            Some(end) if end <= self.bytes => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "beyond the end of the disk")),
        }
    }
}

impl Storage for Disk {
    fn bytes(&self) -> u64 {
        self.bytes()
    }

    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_at(offset, buffer)
    }

    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_at(offset, bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.flush()
    }
}

/// Whether a disk can have so many bytes.
fn possible(bytes: u64) -> bool {
    (SECTOR..=MAX_BYTES).contains(&bytes) && bytes.is_multiple_of(SECTOR)
}

/// Bytes of the disk that is in a raw file.
fn length(file: &File) -> Result<u64, DiskError> {
    let bytes = regular(file).map_err(DiskError::Base)?.length;
    if possible(bytes) { Ok(bytes) } else { Err(DiskError::Length(bytes)) }
}

/// What is to be known of a file.
struct Regular {
    length: u64,
    /// Device and inode.
    identity: (u64, u64),
}

/// Looks at a file, which must be a regular one.
fn regular(file: &File) -> io::Result<Regular> {
    let stat = fstat(file)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    Ok(Regular { length: stat.st_size as u64, identity: (stat.st_dev, stat.st_ino) })
}
