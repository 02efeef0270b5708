//! Reading a file.

use std::os::fd::OwnedFd;

use pandastack_proto::{Channel, Encoder, Failure, Reply};
use rustix::fs::{CWD, Mode, OFlags, fstat, openat};
use rustix::io::Errno;

use super::{regular, resolve, text};
use crate::failure::because;
use crate::lane::{Lane, Progress};

/// A file that is being sent.
pub struct Read {
    file: OwnedFd,
    path: String,
    offset: u64,
    left: u64,
}

impl Read {
    /// Opens a regular file.
    pub fn open(path: &str, offset: u64, len: Option<u64>) -> Result<Self, Failure> {
        let path = resolve(path)?;
        // Looked at before it is opened, since opening a device may do something; and after,
        // since it may be another one by then. NONBLOCK keeps a FIFO from waiting for a writer.
        let stat = rustix::fs::stat(&path).map_err(because(|| text(&path)))?;
        regular(&path, &stat)?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = openat(CWD, &path, flags, Mode::empty()).map_err(because(|| text(&path)))?;
        regular(&path, &fstat(&file).map_err(because(|| text(&path)))?)?;
        Ok(Self { file, path: text(&path), offset, left: len.unwrap_or(u64::MAX) })
    }

    /// Sends one chunk.
    pub fn step(&mut self, lane: &mut Lane, out: &mut Encoder) -> Progress {
        let max = lane.room(out).min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if self.left == 0 {
            return Progress::Done(Ok(Reply::Done));
        }
        if max == 0 {
            return Progress::Waiting;
        }
        let (file, offset) = (&self.file, self.offset);
        match lane.send_with(out, Channel::File, max, |buf| rustix::io::pread(file, buf, offset)) {
            Ok(0) => Progress::Done(Ok(Reply::Done)),
            Ok(n) => {
                self.offset = self.offset.saturating_add(n as u64);
                self.left -= n as u64;
                Progress::Ready
            }
            Err(Errno::INTR) => Progress::Ready,
            Err(errno) => Progress::Done(Err(because(|| self.path.clone())(errno))),
        }
    }
}
