//! The files of bakes and machines: their names, and how they are opened.
//!
//! A bake's directory and a machine's look the same to both engines; each reads the contents that
//! it wrote itself.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::error::{EngineError, file_error};

/// Guest memory of a bake.
pub(crate) const MEMORY: &str = "memory";
/// Its devices and vCPUs.
pub(crate) const STATE: &str = "state";
/// Pages in which a snapshot's memory differs from `memory`.
pub(crate) const DIFF: &str = "memory.diff";
/// Process id of a machine, for people.
pub(crate) const MACHINE_PID: &str = "pid";

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> Result<File, EngineError> {
    File::open(path).map_err(|e| file_error("open", path, e))
}

/// Opens an existing file for reading and writing.
pub(crate) fn open_rw(path: &Path) -> Result<File, EngineError> {
    File::options().read(true).write(true).open(path).map_err(|e| file_error("open", path, e))
}

/// Makes a new file, open for reading and writing.
pub(crate) fn create(path: &Path) -> Result<File, EngineError> {
    File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(path)
        .map_err(|e| file_error("create", path, e))
}

/// Changes who may do what with a file.
pub(crate) fn set_mode(path: &Path, mode: u32) -> Result<(), EngineError> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .map_err(|e| file_error("protect", path, e))
}

/// Writes the process id of the machine in `dir` where people look for it.
pub(crate) fn note_pid(dir: &Path, pid: u32) -> Result<(), EngineError> {
    let path = dir.join(MACHINE_PID);
    fs::write(&path, pid.to_string()).map_err(|e| file_error("write", &path, e))
}

/// A machine's name: that of its directory.
pub(crate) fn name_of(dir: &Path) -> String {
    dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}
