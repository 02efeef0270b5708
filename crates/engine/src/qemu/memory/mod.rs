//! Guest memory of a bake: a sparse file on disk, a sealed memfd while in use.
//!
//! QEMU insists on opening the memory file for writing even to map it privately. A memfd sealed
//! against writing satisfies that and cannot be changed by anybody: a restored machine, even one
//! whose QEMU was taken over, holds nothing through which it could alter the template.
//!
//! A snapshot keeps only what its machine changed. The invariant: **memory = template + one
//! diff**, never a chain. A machine that was itself restored from a snapshot maps a memfd that
//! has the old diff in it already, so its next diff holds the union of both ([`diff`]).
//!
//! Everything here blocks.

pub(super) mod diff;
mod guest;
pub(super) mod loaded;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags};

use self::diff::Diff;
use crate::sparse::copy_sparse;

/// Bytes of a page. x86-64, the only architecture of this engine, has no other base page.
const PAGE: u64 = 4096;

/// Most bytes that are in a buffer at once while pages are copied.
const BLOCK: u64 = 1 << 20;

/// A new memfd of `bytes` zeros, for the machine that is being baked.
pub(super) fn create(bytes: u64) -> io::Result<OwnedFd> {
    let fd =
        rustix::fs::memfd_create(c"guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

/// Loads a memory file, and over it the diff of a snapshot, into a memfd that nobody can change.
/// A diff that is damaged or of another memory is `InvalidData`.
pub(super) fn load(memory: &Path, diff: Option<&Path>) -> io::Result<OwnedFd> {
    let source = File::open(memory)?;
    let bytes = source.metadata()?.len();
    let diff = diff.map(|path| Diff::open(path, bytes)).transpose()?;
    let memory = File::from(create(bytes)?);
    copy_sparse(&source, &memory)?;
    if let Some(diff) = diff {
        diff.apply(&memory)?;
    }
    let fd = OwnedFd::from(memory);
    rustix::fs::fcntl_add_seals(
        &fd,
        SealFlags::WRITE | SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL,
    )?;
    Ok(fd)
}

/// Writes the baked machine's memory to a new file, holes kept.
pub(super) fn save(memory: OwnedFd, path: &Path) -> io::Result<()> {
    let memory = File::from(memory);
    let target = File::create_new(path)?;
    target.set_len(memory.metadata()?.len())?;
    copy_sparse(&memory, &target)?;
    target.sync_all()
}

/// Cuts `range` into pieces of at most [`BLOCK`] bytes.
fn blocks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(BLOCK as usize).map(move |start| start..end.min(start + BLOCK))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt, MetadataExt};

    use super::*;

    #[test]
    fn memory_survives_the_disk_and_holes_stay_holes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        let bytes = 8 << 20;
        let memory = File::from(create(bytes).unwrap());
        memory.write_all_at(b"first", 0).unwrap();
        memory.write_all_at(b"last", bytes - 4).unwrap();
        save(memory.into(), &path).unwrap();
        let on_disk = std::fs::metadata(&path).unwrap();
        assert_eq!(on_disk.len(), bytes);
        assert!(on_disk.blocks() * 512 < 1 << 20, "{} blocks", on_disk.blocks());

        let loaded = File::from(load(&path, None).unwrap());
        let mut word = [0u8; 4];
        loaded.read_exact_at(&mut word, bytes - 4).unwrap();
        assert_eq!(&word, b"last");
    }

    #[test]
    fn loaded_memory_cannot_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        save(create(1 << 20).unwrap(), &path).unwrap();
        let loaded = File::from(load(&path, None).unwrap());
        assert!(loaded.write_all_at(b"x", 0).is_err());
        assert!(loaded.set_len(0).is_err());
    }

    #[test]
    fn blocks_cover_a_range_once() {
        assert_eq!(blocks(5..5).count(), 0);
        let cut: Vec<_> = blocks(7..2 * BLOCK + 8).collect();
        assert_eq!(cut, [7..BLOCK + 7, BLOCK + 7..2 * BLOCK + 7, 2 * BLOCK + 7..2 * BLOCK + 8]);
    }
}
