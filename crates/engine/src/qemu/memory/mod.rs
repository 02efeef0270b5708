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

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{MemfdFlags, SealFlags, SeekFrom};

use self::diff::Diff;

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

/// Makes `to` another name of `from`, a file that never changes; a copy, holes kept, where the
/// file system cannot do that.
pub(super) fn share(from: &Path, to: &Path) -> io::Result<()> {
    // Not permitted: no links in this file system, or none to files of their owner.
    let unlinkable = |e: &io::Error| {
        use ErrorKind::{CrossesDevices, PermissionDenied, TooManyLinks, Unsupported};
        matches!(e.kind(), CrossesDevices | PermissionDenied | TooManyLinks | Unsupported)
    };
    match fs::hard_link(from, to) {
        Err(e) if unlinkable(&e) => copy(from, to),
        linked => linked,
    }
}

/// Copies a file, holes and mode kept.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    let source = File::open(from)?;
    let metadata = source.metadata()?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    target.set_len(metadata.len())?;
    copy_sparse(&source, &target)?;
    target.set_permissions(metadata.permissions())?; // not above: the umask would apply
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

/// Cuts `range` into pieces of at most [`BLOCK`] bytes.
fn blocks(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    range.step_by(BLOCK as usize).map(move |start| start..end.min(start + BLOCK))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

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
    fn a_shared_file_is_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        fs::write(&from, "template").unwrap();
        share(&from, &to).unwrap();
        assert_eq!(fs::metadata(&from).unwrap().ino(), fs::metadata(&to).unwrap().ino());
        assert_eq!(share(&from, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_copied_file_keeps_its_contents_its_holes_and_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| dir.path().join(name));
        let source = File::create_new(&from).unwrap();
        source.set_len(8 << 20).unwrap();
        source.write_all_at(b"middle", 4 << 20).unwrap();
        source.set_permissions(fs::Permissions::from_mode(0o446)).unwrap();

        copy(&from, &to).unwrap();
        let copied = fs::metadata(&to).unwrap();
        assert_eq!(copied.mode() & 0o7777, 0o446);
        assert!(copied.blocks() * 512 < 1 << 20, "{} blocks", copied.blocks());
        assert!(fs::read(&from).unwrap() == fs::read(&to).unwrap());
        assert_eq!(copy(&from, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
    }

    #[test]
    fn a_file_is_shared_with_another_file_system() {
        let [here, there] = [tempfile::tempdir(), tempfile::tempdir_in("/dev/shm")]
            .map(|dir| dir.expect("a directory"));
        let [from, to] = [&here, &there].map(|dir| dir.path().join("memory"));
        fs::write(&from, "template").unwrap();
        share(&from, &to).unwrap();
        assert_eq!(fs::read(&to).unwrap(), b"template");
    }

    #[test]
    fn blocks_cover_a_range_once() {
        assert_eq!(blocks(5..5).count(), 0);
        let cut: Vec<_> = blocks(7..2 * BLOCK + 8).collect();
        assert_eq!(cut, [7..BLOCK + 7, BLOCK + 7..2 * BLOCK + 7, 2 * BLOCK + 7..2 * BLOCK + 8]);
    }
}
