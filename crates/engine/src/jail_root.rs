//! Directories that become `/` of a jail: read-only, complete or not there.
//!
//! A root is named by what is in it, so that a new version gets a new directory and running
//! machines keep theirs.

use std::fs;
use std::path::Path;

use crate::error::{EngineError, file_error};
use crate::files::set_mode;

/// The keeper, in every root: process 1 of every machine's namespace.
pub(crate) const KEEPER: &str = "/panda-keeper";

/// A program that others may read, and one of which nobody can look into the process.
pub(crate) const READABLE: u32 = 0o555;
/// See [`READABLE`].
pub(crate) const UNREADABLE: u32 = 0o111;

/// Makes `root` with what `fill` puts into it, unless it is there already. `dir` is on the same
/// file system: the work is done in there and renamed, so a crash leaves no half a root.
pub(crate) fn publish(
    dir: &Path,
    root: &Path,
    fill: impl FnOnce(&Path) -> Result<(), EngineError>,
) -> Result<(), EngineError> {
    if root.is_dir() {
        return Ok(());
    }
    let staging = dir.join(format!("tmp.{}", std::process::id()));
    let _ = fs::remove_dir_all(&staging);
    let filled = make_dir(&staging.join("proc")).and_then(|()| fill(&staging));
    let published = filled.and_then(|()| match fs::rename(&staging, root) {
        // Another process published the same directory meanwhile.
        Err(_) if root.is_dir() => Ok(()),
        other => other.map_err(|e| file_error("publish", root, e)),
    });
    let _ = fs::remove_dir_all(&staging);
    published
}

/// Writes a file of our own into a root that is being filled.
pub(crate) fn place(
    staging: &Path,
    inside: &str,
    content: &[u8],
    mode: u32,
) -> Result<(), EngineError> {
    let target = staging.join(inside.trim_start_matches('/'));
    fs::write(&target, content).map_err(|e| file_error("write", &target, e))?;
    set_mode(&target, mode)
}

/// Makes a directory and its parents, open to the jailed user id whatever the umask.
pub(crate) fn make_dir(dir: &Path) -> Result<(), EngineError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_dir(parent)?;
    }
    fs::create_dir(dir).map_err(|e| file_error("create", dir, e))?;
    set_mode(dir, 0o755)
}
