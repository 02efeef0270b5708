//! Python environments of the demo and the tests, made once per set of requirements.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::run::{must, step, workspace};

/// The environment `name` with `requirements` installed; returns its interpreter. Made again
/// when the requirements, or the files in `sources`, changed.
pub fn python(name: &str, requirements: &[&str], sources: Option<&Path>) -> Result<PathBuf> {
    let dir = workspace().join("target/venv").join(name);
    let python = dir.join("bin/python");
    let stamp = dir.join("stamp");
    let wanted = format!("{requirements:?} {:?}", sources.map(newest_change));
    if python.exists() && fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(python);
    }
    step(&format!("making the Python environment {name:?}"));
    must(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&dir))?;
    must(
        Command::new(&python)
            .current_dir(workspace())
            .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
            .args(requirements),
    )?;
    fs::write(stamp, wanted)?;
    Ok(python)
}

/// The latest change below a directory, in nanoseconds; generated files do not count.
fn newest_change(dir: &Path) -> u128 {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let changes = entries.filter_map(|entry| {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with('.')
            || name == "__pycache__"
            || name.ends_with(".egg-info")
            || name == "build"
        {
            return None;
        }
        let meta = entry.metadata().ok()?;
        if meta.is_dir() {
            return Some(newest_change(&entry.path()));
        }
        Some(meta.modified().ok()?.duration_since(std::time::UNIX_EPOCH).ok()?.as_nanos())
    });
    changes.max().unwrap_or(0)
}
