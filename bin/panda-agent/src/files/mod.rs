//! Files of the guest.
//!
//! Reading and writing is for regular files only: a FIFO or a device could keep the one thread of
//! the agent waiting, or do something when it is opened. Long operations are jobs
//! that move a bounded piece at a time.

mod list;
mod read;
mod remove;
mod write;

use std::ffi::{CStr, CString};
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use pandastack_proto::{DirEntry, ErrorCode, Failure, FileKind};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, mkdir, openat, statat};
use rustix::io::Errno;

use crate::failure::{because, refuse};

pub use list::List;
pub use read::Read;
pub use remove::Remove;
pub use write::Write;

/// The directory that relative paths start from.
const BASE: &str = "/root";

/// A request's path as the kernel takes it.
pub fn resolve(path: &str) -> Result<CString, Failure> {
    if path.is_empty() {
        return Err(refuse(ErrorCode::InvalidArgument, "a path cannot be empty"));
    }
    let absolute = if path.starts_with('/') { path.to_owned() } else { format!("{BASE}/{path}") };
    CString::new(absolute)
        .map_err(|_| refuse(ErrorCode::InvalidArgument, "a path cannot contain a NUL character"))
}

/// The first `max` bytes of a file that a tenant may have replaced by anything.
pub fn read_start(path: &str, max: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Errno::INVAL.into());
    }
    let mut bytes = Vec::new();
    file.take(max).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Describes what is at `path`.
pub fn stat(path: &str, follow: bool) -> Result<DirEntry, Failure> {
    let path = resolve(path)?;
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let stat = statat(rustix::fs::CWD, &path, flags).map_err(because(|| text(&path)))?;
    Ok(entry(rustix::fs::CWD, &path, &stat))
}

/// Creates a directory and its parents.
pub fn make_dir(path: &str) -> Result<(), Failure> {
    let path = resolve(path)?;
    make_dirs(&path)
}

fn make_dirs(path: &CStr) -> Result<(), Failure> {
    let bytes = path.to_bytes();
    // The usual case first: only the last part is missing, or nothing.
    match make_one(path) {
        Err(Errno::NOENT) => {}
        done => return done.map_err(because(|| text(path))),
    }
    let slashes = bytes.iter().enumerate().skip(1).filter(|&(_, &b)| b == b'/').map(|(at, _)| at);
    for end in slashes.chain([bytes.len()]) {
        let part = CString::new(&bytes[..end])
            .map_err(|_| refuse(ErrorCode::InvalidArgument, "a path cannot contain NUL"))?;
        make_one(&part).map_err(because(|| text(&part)))?;
    }
    Ok(())
}

fn make_one(path: &CStr) -> rustix::io::Result<()> {
    match mkdir(path, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) if is_dir(rustix::fs::CWD, path) => Ok(()),
        Err(Errno::EXIST) => Err(Errno::NOTDIR),
        other => other,
    }
}

/// Whether `name` leads to a directory, through links.
fn is_dir(dir: BorrowedFd<'_>, name: &CStr) -> bool {
    statat(dir, name, AtFlags::empty())
        .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

/// An entry for `name` in `dir`.
fn entry(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> DirEntry {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => FileKind::File,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let last = name.to_bytes().rsplit(|&b| b == b'/').find(|part| !part.is_empty());
    DirEntry {
        name: String::from_utf8_lossy(last.unwrap_or(b"/")).into_owned(),
        kind,
        leads_to_dir: kind == FileKind::Symlink && is_dir(dir, name),
        size: u64::try_from(stat.st_size).unwrap_or(0),
        mode: stat.st_mode,
        mtime: stat.st_mtime,
    }
}

/// Fails unless `stat` is of a regular file.
fn regular(path: &CStr, stat: &Stat) -> Result<(), Failure> {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(()),
        FileType::Directory => {
            Err(refuse(ErrorCode::IsDirectory, format!("{} is a directory", text(path))))
        }
        _ => {
            let message = format!("{} is not a regular file", text(path));
            Err(refuse(ErrorCode::InvalidArgument, message))
        }
    }
}

/// Opens a directory to work in it.
fn open_dir(dir: BorrowedFd<'_>, name: &CStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    openat(dir, name, flags | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// A path for people.
fn text(path: &CStr) -> String {
    path.to_string_lossy().into_owned()
}
