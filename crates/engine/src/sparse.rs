//! Large files that never change, most of them holes: shared where that is possible, copied hole
//! by hole where it is not, and hashed without reading the holes.
//!
//! Everything here blocks.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, SeekFrom};

/// Bytes that are read at a time; also the unit of [`digest`].
const BLOCK: u64 = 64 << 10;

/// Makes `to` another name of `from`, a file that never changes; a copy, holes kept, where the
/// file system cannot do that.
pub(crate) fn share(from: &Path, to: &Path) -> io::Result<()> {
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

/// Makes `to` a name of a file that is open: the path that it was opened by may be gone. A copy
/// where it has no name left at all, or the file system cannot do that.
pub(crate) fn share_open(from: &File, to: &Path) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    // linkat(2): the way to link a descriptor that needs no capability.
    let name = format!("/proc/self/fd/{}", from.as_raw_fd());
    match rustix::fs::linkat(CWD, &name, CWD, to, AtFlags::SYMLINK_FOLLOW) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::EXIST) => Err(ErrorKind::AlreadyExists.into()),
        Err(_) => copy_open(from, to),
    }
}

/// Copies a file, holes and mode kept.
fn copy(from: &Path, to: &Path) -> io::Result<()> {
    copy_open(&File::open(from)?, to)
}

fn copy_open(source: &File, to: &Path) -> io::Result<()> {
    let metadata = source.metadata()?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    target.set_len(metadata.len())?;
    copy_sparse(source, &target)?;
    target.set_permissions(metadata.permissions())?; // not above: the umask would apply
    target.sync_all()
}

/// Copies the allocated parts of `from` to the same places in `to`, leaving out blocks of zeros.
pub(crate) fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    let end = from.metadata()?.len();
    let mut buffer = vec![0u8; BLOCK as usize];
    let mut at = 0;
    while let Some((start, stop)) = next_data(from, at, end)? {
        at = start;
        while at < stop {
            let length = BLOCK.min(stop - at) as usize;
            from.read_exact_at(&mut buffer[..length], at)?;
            if buffer[..length].iter().any(|&byte| byte != 0) {
                to.write_all_at(&buffer[..length], at)?;
            }
            at += length as u64;
        }
    }
    Ok(())
}

/// BLAKE3 of a file's length and of every block of it that is not all zeros, each after its
/// number. So a file has one digest, whatever of its zeros are holes.
pub(crate) fn digest(file: &File) -> io::Result<blake3::Hash> {
    let end = file.metadata()?.len();
    let mut hash = blake3::Hasher::new();
    hash.update(&end.to_le_bytes());
    let mut buffer = vec![0u8; BLOCK as usize];
    let mut at = 0;
    while let Some((start, stop)) = next_data(file, at, end)? {
        // A block may begin in a hole; one that two ranges share is read once.
        at = at.max(start - start % BLOCK);
        while at < stop {
            let length = BLOCK.min(end - at) as usize;
            file.read_exact_at(&mut buffer[..length], at)?;
            if buffer[..length].iter().any(|&byte| byte != 0) {
                hash.update(&(at / BLOCK).to_le_bytes());
                hash.update(&buffer[..length]);
            }
            at += length as u64;
        }
    }
    Ok(hash.finalize())
}

/// The next allocated range at or after `at`.
pub(crate) fn next_data(file: &File, at: u64, end: u64) -> io::Result<Option<(u64, u64)>> {
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
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    use super::*;

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
    fn a_file_without_its_path_is_shared_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let [from, other, to, copy] =
            ["from", "other", "to", "copy"].map(|name| dir.path().join(name));
        fs::write(&from, "template").unwrap();
        fs::hard_link(&from, &other).unwrap();
        let open = File::open(&from).unwrap();
        fs::remove_file(&from).unwrap();
        share_open(&open, &to).unwrap();
        assert_eq!(fs::metadata(&other).unwrap().ino(), fs::metadata(&to).unwrap().ino());
        assert_eq!(share_open(&open, &to).unwrap_err().kind(), ErrorKind::AlreadyExists);
        for name in [&other, &to] {
            fs::remove_file(name).unwrap();
        }
        share_open(&open, &copy).unwrap();
        assert_eq!(fs::read(&copy).unwrap(), b"template");
    }

    /// The definition, without any care for holes.
    fn digest_of(bytes: &[u8]) -> blake3::Hash {
        let mut hash = blake3::Hasher::new();
        hash.update(&(bytes.len() as u64).to_le_bytes());
        for (number, block) in bytes.chunks(BLOCK as usize).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                hash.update(&(number as u64).to_le_bytes()).update(block);
            }
        }
        hash.finalize()
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]
        #[test]
        fn a_digest_does_not_depend_on_holes(
            length in 0u64..8 * BLOCK,
            writes in proptest::collection::vec((0u64..8 * BLOCK, 1usize..20_000, 0u8..3), 0..6),
        ) {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            let mut bytes = vec![0; length as usize];
            for (at, count, byte) in writes {
                let count = count.min(length.saturating_sub(at) as usize);
                file.write_all_at(&vec![byte; count], at.min(length)).unwrap();
                bytes[at.min(length) as usize..][..count].fill(byte);
            }
            proptest::prop_assert_eq!(digest(&file).unwrap(), digest_of(&bytes));
        }
    }

    #[test]
    fn every_byte_and_its_place_counts() {
        let digest = |length: u64, at: u64| {
            let file = tempfile::tempfile().unwrap();
            file.set_len(length).unwrap();
            file.write_all_at(b"x", at).unwrap();
            digest(&file).unwrap()
        };
        let base = digest(1 << 20, 5000);
        assert_eq!(base, digest(1 << 20, 5000));
        assert_ne!(base, digest(1 << 20, 5001));
        assert_ne!(base, digest(1 << 20, 5000 + BLOCK));
        assert_ne!(base, digest((1 << 20) + 1, 5000));
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
}
