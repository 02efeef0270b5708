//! Listing a directory.

use pandastack_proto::{Channel, Encoder, ErrorCode, Failure, MAX_DATA, Reply};
use rustix::fs::{AtFlags, CWD, Dir, OFlags, statat};

use super::{entry, open_dir, resolve, text};
use crate::failure::{because, refuse};
use crate::lane::{Lane, Progress};

/// Entries per frame: each is a stat, and other streams wait meanwhile.
const BATCH: usize = 64;
/// Most bytes of a batch: 64 names of 255 bytes, each of them three when it is not UTF-8.
const MAX_BATCH: usize = MAX_DATA;

/// A directory that is being sent.
pub struct List {
    dir: Dir,
    path: String,
}

impl List {
    /// Opens a directory.
    pub fn open(path: &str) -> Result<Self, Failure> {
        let path = resolve(path)?;
        let dir = open_dir(CWD, &path, OFlags::RDONLY)
            .and_then(Dir::new)
            .map_err(because(|| text(&path)))?;
        Ok(Self { dir, path: text(&path) })
    }

    /// Sends one batch.
    pub fn step(&mut self, lane: &mut Lane, out: &mut Encoder) -> Progress {
        if !lane.fits(out, MAX_BATCH) {
            return Progress::Waiting;
        }
        let mut batch = Vec::new();
        let mut end = false;
        while batch.len() < BATCH {
            let found = match self.dir.read() {
                Some(Ok(found)) => found,
                Some(Err(errno)) => {
                    return Progress::Done(Err(because(|| self.path.clone())(errno)));
                }
                None => {
                    end = true;
                    break;
                }
            };
            let name = found.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let Ok(dir) = self.dir.fd() else { continue };
            // Gone since: then it is not in the directory.
            if let Ok(stat) = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                batch.push(entry(dir, name, &stat));
            }
        }
        if !batch.is_empty() {
            match out.data_message(lane.id, Channel::Entries, &batch) {
                Ok(len) => lane.sent(len),
                Err(_) => return Progress::Done(Err(refuse(ErrorCode::Io, "names too long"))),
            }
        }
        if end { Progress::Done(Ok(Reply::Done)) } else { Progress::Ready }
    }
}
