//! Writing a file.
//!
//! The content goes into a nameless-looking neighbour that takes the file's place at the end, so
//! a reader sees the old file or the new one, and a write that is given up leaves nothing.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::{AtomicU32, Ordering};

use pandastack_proto::{Encoder, ErrorCode, Failure, Reply};
use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Uid, fchmod, fchown, openat, renameat, statat,
    unlinkat,
};
use rustix::io::Errno;

use super::{make_dirs, open_dir, regular, resolve, text};
use crate::failure::{because, refuse};
use crate::lane::{Lane, Progress};

/// Mode of a new file.
const DEFAULT_MODE: u32 = 0o644;

/// A file that is being received.
pub struct Write {
    path: CString,
    dir: OwnedFd,
    name: CString,
    temporary: CString,
    file: OwnedFd,
    bytes: u64,
    in_place: bool,
}

impl Write {
    /// Makes the neighbour of the file at `path`, and the directories above it.
    pub fn open(path: &str, mode: Option<u32>) -> Result<Self, Failure> {
        let path = through_link(resolve(path)?);
        let (parent, name) = split(&path)?;
        make_dirs(&parent)?;
        let dir = open_dir(CWD, &parent, OFlags::PATH).map_err(because(|| text(&parent)))?;
        let old = match statat(&dir, &name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink => None,
            Ok(stat) => {
                regular(&path, &stat)?;
                Some(stat)
            }
            Err(Errno::NOENT) => None,
            Err(errno) => return Err(because(|| text(&path))(errno)),
        };
        let (temporary, file) = temporary(&dir).map_err(because(|| text(&path)))?;
        let this = Self { path, dir, name, temporary, file, bytes: 0, in_place: false };
        let kept = old.as_ref().map_or(DEFAULT_MODE, |stat| stat.st_mode & 0o7777);
        let mode = Mode::from_raw_mode(mode.map_or(kept, |mode| mode & 0o7777));
        if let Some(old) = old {
            let (uid, gid) = (Uid::from_raw(old.st_uid), Gid::from_raw(old.st_gid));
            fchown(&this.file, Some(uid), Some(gid)).map_err(because(|| text(&this.path)))?;
        }
        // After the owner, because changing that clears the set-user-id bit.
        fchmod(&this.file, mode).map_err(because(|| text(&this.path)))?;
        Ok(this)
    }

    /// Appends a frame.
    pub fn data(&mut self, bytes: &[u8], lane: &mut Lane, out: &mut Encoder) -> Progress {
        let mut rest = bytes;
        while !rest.is_empty() {
            match rustix::io::write(&self.file, rest) {
                Ok(n) => rest = &rest[n..],
                Err(Errno::INTR) => {}
                Err(errno) => return Progress::Done(Err(because(|| text(&self.path))(errno))),
            }
        }
        self.bytes += bytes.len() as u64;
        lane.used(out, bytes.len());
        Progress::Waiting
    }

    /// Puts the file in its place.
    pub fn finish(&mut self) -> Progress {
        let placed = renameat(&self.dir, &self.temporary, &self.dir, &self.name);
        self.in_place = placed.is_ok();
        Progress::Done(
            placed
                .map(|()| Reply::Written { bytes: self.bytes })
                .map_err(because(|| text(&self.path))),
        )
    }
}

impl Drop for Write {
    fn drop(&mut self) {
        if !self.in_place {
            // If it is gone already, so much the better.
            let _ = unlinkat(&self.dir, &self.temporary, AtFlags::empty());
        }
    }
}

/// Where a link leads: writing to a link changes the file behind it, as `>` does. A link to
/// nothing is replaced.
fn through_link(path: CString) -> CString {
    let is_link = rustix::fs::lstat(&path)
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink);
    if !is_link {
        return path;
    }
    let target = std::fs::canonicalize(std::ffi::OsStr::from_bytes(path.to_bytes()));
    target.ok().and_then(|t| CString::new(t.as_os_str().as_bytes()).ok()).unwrap_or(path)
}

fn split(path: &CStr) -> Result<(CString, CString), Failure> {
    let bytes = path.to_bytes();
    let at = bytes.iter().rposition(|&b| b == b'/').unwrap_or(0);
    let (parent, name) = (&bytes[..at.max(1)], &bytes[at + 1..]);
    if matches!(name, b"" | b"." | b"..") {
        return Err(refuse(ErrorCode::IsDirectory, format!("{} is a directory", text(path))));
    }
    let part = |bytes: &[u8]| {
        CString::new(bytes).map_err(|_| refuse(ErrorCode::InvalidArgument, "a path with NUL"))
    };
    Ok((part(parent)?, part(name)?))
}

/// A new file with a name that nobody uses.
fn temporary(dir: &OwnedFd) -> rustix::io::Result<(CString, OwnedFd)> {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // A copy of a guest counts on from where the original was, next to leftovers of it.
    for _ in 0..100 {
        let name = format!(".panda-write-{}", NEXT.fetch_add(1, Ordering::Relaxed));
        let Ok(name) = CString::new(name) else { break };
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(dir.as_fd(), &name, flags, Mode::from_raw_mode(0o600)) {
            Err(Errno::EXIST) => {}
            made => return made.map(|file| (name, file)),
        }
    }
    Err(Errno::EXIST)
}
