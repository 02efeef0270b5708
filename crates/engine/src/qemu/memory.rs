//! Guest memory of a bake: a sparse file on disk, a sealed memfd while in use.
//!
//! QEMU insists on opening the memory file for writing even to map it privately. A memfd sealed
//! against writing satisfies that and cannot be changed by anybody: a restored machine, even one
//! whose QEMU was taken over, holds nothing through which it could alter the template.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};

/// A new memfd of `bytes` zeros, for the machine that is being baked.
pub(super) fn create(bytes: u64) -> io::Result<OwnedFd> {
    let fd =
        rustix::fs::memfd_create(c"guest-memory", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, bytes)?;
    Ok(fd)
}

/// Loads a memory file into a memfd that nobody can change.
pub(super) fn load(path: &Path) -> io::Result<OwnedFd> {
    let source = File::open(path)?;
    let memory = File::from(create(source.metadata()?.len())?);
    copy_sparse(&source, &memory)?;
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

/// Copies the allocated parts of `from` to the same places in `to`, leaving out blocks of zeros.
fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    const BLOCK: usize = 64 << 10;
    let end = from.metadata()?.len();
    let mut buffer = vec![0u8; BLOCK];
    let mut at = 0;
    while let Some((start, stop)) = next_data(from, at, end)? {
        at = start;
        while at < stop {
            let length = BLOCK.min((stop - at) as usize);
            from.read_exact_at(&mut buffer[..length], at)?;
            if buffer[..length].iter().any(|&byte| byte != 0) {
                to.write_all_at(&buffer[..length], at)?;
            }
            at += length as u64;
        }
    }
    Ok(())
}

/// The next allocated range at or after `at`.
fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
    if at >= end {
        return Ok(None);
    }
    let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(start) => start,
        Err(rustix::io::Errno::NXIO) => return Ok(None), // only a hole follows
        Err(e) => return Err(e.into()),
    };
    let stop = rustix::fs::seek(file, SeekFrom::Hole(start))?;
    Ok(Some((start, stop.min(end))))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

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

        let loaded = File::from(load(&path).unwrap());
        let mut word = [0u8; 4];
        loaded.read_exact_at(&mut word, bytes - 4).unwrap();
        assert_eq!(&word, b"last");
    }

    #[test]
    fn loaded_memory_cannot_be_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("memory");
        save(create(1 << 20).unwrap(), &path).unwrap();
        let loaded = File::from(load(&path).unwrap());
        assert!(loaded.write_all_at(b"x", 0).is_err());
        assert!(loaded.set_len(0).is_err());
    }
}
