//! Directories that become `/` of a jail: read-only, complete or not there.
//!
//! A root is named by what is in it, so that a new version gets a new directory and running
//! machines keep theirs.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// The keeper, in every root: process 1 of every jail.
pub const KEEPER: &str = "/panda-keeper";

/// A program that others may read, and one of which nobody can look into the process.
pub const READABLE: u32 = 0o555;
/// See [`READABLE`].
pub const UNREADABLE: u32 = 0o111;

/// Why a root could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct RootError {
    /// What was tried.
    pub action: &'static str,
    /// With which file.
    pub path: PathBuf,
    /// Why not.
    #[source]
    pub source: io::Error,
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> RootError {
    let path = path.to_owned();
    move |source| RootError { action, path, source }
}

/// Makes `root` with what `fill` puts into it, unless it is there already. `dir` is on the same
/// file system: the work is done in there and renamed, so a crash leaves no half a root.
pub fn publish<E: From<RootError>>(
    dir: &Path,
    root: &Path,
    fill: impl FnOnce(&Path) -> Result<(), E>,
) -> Result<(), E> {
    if root.is_dir() {
        return Ok(());
    }
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let staging = dir.join(format!("tmp.{}.{name}", std::process::id()));
    let _ = fs::remove_dir_all(&staging);
    let filled = make_dir(&staging.join("proc")).map_err(E::from).and_then(|()| fill(&staging));
    let published = filled.and_then(|()| match fs::rename(&staging, root) {
        // Another process published the same directory meanwhile.
        Err(_) if root.is_dir() => Ok(()),
        other => other.map_err(failed("publish", root)).map_err(E::from),
    });
    let _ = fs::remove_dir_all(&staging);
    published
}

/// Writes a file of our own into a root that is being filled.
pub fn place(staging: &Path, inside: &str, content: &[u8], mode: u32) -> Result<(), RootError> {
    let target = staging.join(inside.trim_start_matches('/'));
    fs::write(&target, content).map_err(failed("write", &target))?;
    set_mode(&target, mode)
}

/// Makes a directory and its parents, open to the jailed user id whatever the umask.
pub fn make_dir(dir: &Path) -> Result<(), RootError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_dir(parent)?;
    }
    fs::create_dir(dir).map_err(failed("create", dir))?;
    set_mode(dir, 0o755)
}

fn set_mode(path: &Path, mode: u32) -> Result<(), RootError> {
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("protect", path))
}
