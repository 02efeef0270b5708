//! The private directory of one `run` that brings its own server.
//!
//! ```text
//! <data>/run/lock          held for moments: directories appear and disappear under it
//! <data>/run/<uuid>/alive  held by the process that the directory belongs to
//! ```
//!
//! A killed process lets go of its `alive`, and the next one that comes along removes what it
//! left.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use uuid::Uuid;

/// A private directory, removed when this is dropped.
pub struct Instance {
    path: PathBuf,
    _alive: File,
}

impl Instance {
    /// Makes a directory in `data_dir`, after removing those that killed processes left there.
    pub fn create(data_dir: &Path) -> anyhow::Result<Self> {
        let parent = data_dir.join("run");
        Self::create_in(&parent).with_context(|| format!("cannot use {}", parent.display()))
    }

    fn create_in(parent: &Path) -> io::Result<Self> {
        let directory = |recursive: bool, path: &Path| {
            DirBuilder::new().recursive(recursive).mode(0o700).create(path)
        };
        directory(true, parent)?;
        // A directory whose `alive` is not held yet looks like a dead one; under this lock there
        // is none.
        let turn = File::create(parent.join("lock"))?;
        turn.lock()?;
        sweep(parent)?;
        let path = parent.join(Uuid::new_v4().to_string());
        directory(false, &path)?;
        let alive = File::create(path.join("alive"))?;
        alive.lock()?;
        Ok(Self { path, _alive: alive })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(%error, path = %self.path.display(), "cannot remove a private directory");
        }
    }
}

/// Removes the directories that nobody holds any more.
fn sweep(parent: &Path) -> io::Result<()> {
    for entry in fs::read_dir(parent)? {
        let path = entry?.path();
        if path.is_dir() && !is_alive(&path) {
            tracing::info!(path = %path.display(), "removing what a killed run left");
            // One that cannot be removed must not keep the next from running.
            let _ = fs::remove_dir_all(&path);
        }
    }
    Ok(())
}

fn is_alive(path: &Path) -> bool {
    let Ok(alive) = File::open(path.join("alive")) else { return false };
    matches!(alive.try_lock(), Err(TryLockError::WouldBlock))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_holds_is_removed() {
        let data = tempfile::tempdir().unwrap();
        let living = Instance::create(data.path()).unwrap();
        fs::write(living.path().join("records"), "x").unwrap();
        let dead = data.path().join("run").join(Uuid::new_v4().to_string());
        fs::create_dir(&dead).unwrap();
        fs::write(dead.join("alive"), "").unwrap();
        let half_made = data.path().join("run").join(Uuid::new_v4().to_string());
        fs::create_dir(&half_made).unwrap();

        let next = Instance::create(data.path()).unwrap();
        assert!(living.path().join("records").exists());
        assert!(!dead.exists() && !half_made.exists());
        assert_ne!(living.path(), next.path());

        let path = next.path().to_owned();
        drop(next);
        assert!(!path.exists());
    }
}
