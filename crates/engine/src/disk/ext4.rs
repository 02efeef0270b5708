//! The file systems on writable disks.

use std::path::Path;

use tokio::process::Command;

use crate::error::{EngineError, file_error};
use crate::files;

/// Makes an empty ext4 file system of `megabytes` in a new sparse file. No journal: its owner
/// lives once.
pub(crate) async fn make(path: &Path, megabytes: u32) -> Result<(), EngineError> {
    make_with(path, megabytes, &["-O", "^has_journal"]).await
}

/// The same with a journal, for what outlives its owners. Tables and journal are holes of a new
/// file, which need not be overwritten with zeros.
pub(crate) async fn make_journalled(path: &Path, megabytes: u32) -> Result<(), EngineError> {
    let lazily = "lazy_itable_init=1,lazy_journal_init=1,root_owner=0:0";
    make_with(path, megabytes, &["-O", "has_journal", "-E", lazily]).await
}

async fn make_with(path: &Path, megabytes: u32, options: &[&str]) -> Result<(), EngineError> {
    let file = files::create(path)?;
    file.set_len(u64::from(megabytes) << 20).map_err(|e| file_error("size", path, e))?;
    tool(Command::new("mkfs.ext4").args(["-q", "-F", "-m", "0"]).args(options).arg(path)).await
}

async fn tool(command: &mut Command) -> Result<(), EngineError> {
    let what = command.as_std().get_program().to_string_lossy().into_owned();
    let output = command.kill_on_drop(true).output().await;
    let hint = match output {
        Ok(output) if output.status.success() => return Ok(()),
        Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        Err(error) => error.to_string(),
    };
    Err(EngineError::Host { what, hint })
}
