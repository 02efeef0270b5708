//! Directories that live as long as the build that fills them.
//!
//! Invariant: the builder holds a lock on the directory itself, so a directory that can be
//! locked belongs to nobody and may be removed. The lock goes with the process, however that
//! ends.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{FlockOperation, OFlags, flock};

use crate::error::ImageError;

/// Tells our directories from others' in a shared place such as `/var/tmp`.
const PREFIX: &str = "pandastack-build-";

/// mmdebstrap's trees are made in this folder of a work directory.
pub(crate) const TREES: &str = "trees";

/// A directory that is removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Workdir {
    path: PathBuf,
    _lock: File,
}

impl Workdir {
    /// Makes an empty, locked directory in `parent`.
    pub(crate) fn create(parent: &Path) -> Result<Self, ImageError> {
        let failed = |source| ImageError::file("create a directory in", parent)(source);
        loop {
            let suffix = format!(".{}", std::process::id());
            let made = tempfile::Builder::new()
                .prefix(PREFIX)
                .suffix(&suffix)
                .tempdir_in(parent)
                .map_err(failed)?;
            // Processes in a user namespace must get through, whatever the umask is.
            fs::set_permissions(made.path(), fs::Permissions::from_mode(0o711)).map_err(failed)?;
            // A sweep may lock and remove it before we lock it; then it has no links left.
            if let Some(lock) = try_lock(made.path()).map_err(failed)?
                && lock.metadata().map_err(failed)?.nlink() > 0
            {
                return Ok(Self { path: made.keep(), _lock: lock });
            }
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            // Processes of a cancelled build may still be dying. The next sweep gets it.
            tracing::debug!(path = %self.path.display(), %error, "left for the next sweep");
        }
    }
}

/// Removes what dead builds left in `parent`. Directories of other users and of live builds are
/// not touched, and neither is anything that cannot be removed.
pub(crate) fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    let own = rustix::process::geteuid().as_raw();
    for entry in entries.flatten() {
        let path = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|m| m.is_dir() && m.uid() == own);
        if !ours {
            continue;
        }
        if let Ok(Some(_lock)) = try_lock(&path)
            && let Err(error) = remove(&path)
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove an interrupted build");
        }
    }
}

/// Locks a directory unless someone else has.
fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
    let directory =
        fs::OpenOptions::new().read(true).custom_flags(flags.cast_signed()).open(path)?;
    match flock(&directory, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(directory)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Removes a work directory. Without root, a tree in it belongs to ids that only mmdebstrap's
/// user namespace can act as, so its helper empties it first.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // The trees' own top directories are in a folder of ours: those we can remove.
            Command::new("mmdebstrap")
                .args(["--unshare-helper", "find"])
                .arg(path.join(TREES))
                .args(["-mindepth", "2", "-delete"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()?;
            fs::remove_dir_all(path)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_gone_when_dropped() {
        let parent = tempfile::tempdir().unwrap();
        let workdir = Workdir::create(parent.path()).unwrap();
        fs::write(workdir.path().join("file"), "x").unwrap();
        drop(workdir);
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_sweep_takes_the_dead_and_leaves_the_living() {
        let parent = tempfile::tempdir().unwrap();
        let alive = Workdir::create(parent.path()).unwrap();
        let dead = parent.path().join(format!("{PREFIX}abc.1"));
        let foreign = parent.path().join("something-else");
        fs::create_dir_all(dead.join("trees/deep")).unwrap();
        fs::create_dir(&foreign).unwrap();
        sweep(parent.path());
        assert!(alive.path().exists());
        assert!(foreign.exists());
        assert!(!dead.exists());
    }
}
