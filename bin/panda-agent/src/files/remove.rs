//! Removing a file or a whole directory.
//!
//! Works with descriptors of directories and never through a path of more than one part, so a
//! link that appears on the way leads nowhere. A directory that is nested too deeply for the
//! descriptors is first moved up to the top of what is being removed.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};

use pandastack_proto::{ErrorCode, Failure, Reply};
use rustix::fs::{AtFlags, CWD, Dir, FileType, OFlags, renameat, statat, unlinkat};
use rustix::io::Errno;

use super::{open_dir, resolve, text};
use crate::failure::{because, refuse};
use crate::lane::Progress;

/// Entries removed before other streams get their turn.
const BATCH: usize = 256;
/// Most directories that are open at once.
const MAX_DEPTH: usize = 64;
/// How often a directory is looked through again because something new is in it.
const MAX_SCANS: u32 = 1000;

/// A tree that is being removed.
pub struct Remove {
    path: String,
    /// The directory that the top is in.
    parent: OwnedFd,
    levels: Vec<Level>,
    moved: u32,
}

/// A directory on the way down.
struct Level {
    name: CString,
    dir: Dir,
    scans: u32,
}

impl Level {
    fn open(parent: impl AsFd, name: &CStr) -> rustix::io::Result<Self> {
        let fd = open_dir(parent.as_fd(), name, OFlags::RDONLY | OFlags::NOFOLLOW)?;
        Ok(Self { name: name.to_owned(), dir: Dir::new(fd)?, scans: 0 })
    }
}

impl Remove {
    /// Removes what is no directory at once; `None` says that this was all.
    pub fn start(path: &str) -> Result<Option<Self>, Failure> {
        let path = resolve(path)?;
        let failed = |errno: Errno| because(|| text(&path))(errno);
        let (parent, name) = split(&path).ok_or_else(|| {
            refuse(ErrorCode::InvalidArgument, format!("{} cannot be removed", text(&path)))
        })?;
        let parent = open_dir(CWD, &parent, OFlags::PATH).map_err(failed)?;
        let stat = statat(&parent, &name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            unlinkat(&parent, &name, AtFlags::empty()).map_err(failed)?;
            return Ok(None);
        }
        let levels = vec![Level::open(&parent, &name).map_err(failed)?];
        Ok(Some(Self { path: text(&path), parent, levels, moved: 0 }))
    }

    /// Removes one batch.
    pub fn step(&mut self) -> Progress {
        for _ in 0..BATCH {
            match self.remove_one() {
                Ok(()) if self.levels.is_empty() => return Progress::Done(Ok(Reply::Done)),
                Ok(()) => {}
                Err(errno) => return Progress::Done(Err(because(|| self.path.clone())(errno))),
            }
        }
        Progress::Ready
    }

    /// One entry of the deepest directory, or that directory itself once it is empty.
    fn remove_one(&mut self) -> rustix::io::Result<()> {
        let depth = self.levels.len();
        let Some(level) = self.levels.last_mut() else { return Ok(()) };
        let Some(found) = level.dir.read() else { return self.leave() };
        let found = found?;
        let name = found.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            return Ok(());
        }
        let dir = level.dir.fd()?;
        // The type is a hint that saves a call; file systems may leave it out.
        let removed = match found.file_type() {
            FileType::Directory => Err(Errno::ISDIR),
            _ => unlinkat(dir, name, AtFlags::empty()),
        };
        match removed {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::ISDIR) if depth < MAX_DEPTH => {
                let deeper = Level::open(dir, name)?;
                self.levels.push(deeper);
                Ok(())
            }
            Err(Errno::ISDIR) => {
                let name = name.to_owned();
                self.move_up(&name)
            }
            Err(errno) => Err(errno),
        }
    }

    /// The deepest directory was looked through: it is empty, or has to be looked through again.
    fn leave(&mut self) -> rustix::io::Result<()> {
        let Some(mut level) = self.levels.pop() else { return Ok(()) };
        let parent = match self.levels.last() {
            Some(above) => above.dir.fd()?,
            None => self.parent.as_fd(),
        };
        match unlinkat(parent, &level.name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(Errno::NOTEMPTY | Errno::EXIST) if level.scans < MAX_SCANS => {
                level.scans += 1;
                level.dir.rewind();
                self.levels.push(level);
                Ok(())
            }
            Err(errno) => Err(errno),
        }
    }

    /// Moves a directory of the deepest one to the top, where it is found later.
    fn move_up(&mut self, name: &CStr) -> rustix::io::Result<()> {
        let (Some(top), Some(deepest)) = (self.levels.first(), self.levels.last()) else {
            return Ok(());
        };
        let new = format!(".panda-remove-{}", self.moved);
        self.moved += 1;
        renameat(deepest.dir.fd()?, name, top.dir.fd()?, new)
    }
}

/// Parent and last part of a path, without slashes at its end. `None` for what has no name.
fn split(path: &CStr) -> Option<(CString, CString)> {
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|&b| b != b'/')? + 1;
    let at = bytes[..end].iter().rposition(|&b| b == b'/')?;
    let name = &bytes[at + 1..end];
    if matches!(name, b"." | b"..") {
        return None;
    }
    Some((CString::new(&bytes[..at.max(1)]).ok()?, CString::new(name).ok()?))
}
