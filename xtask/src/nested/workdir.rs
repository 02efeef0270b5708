//! The folder of one run: its disks, its job, its console.
//!
//! Invariant: a folder is somebody's as long as its lock is held, which ends with the process
//! however that ends. Folders of nobody are removed by the next run.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use super::cache;
use crate::run::must;

/// Size of an empty disk. It takes what is written to it.
const DISK_BYTES: u64 = 32 << 30;

/// A folder that goes with its value.
pub struct Workdir {
    path: PathBuf,
    _lock: File,
}

impl Workdir {
    /// Makes a folder, and removes those that nobody uses.
    pub fn create() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let parent = cache()?.join("run");
        fs::create_dir_all(&parent)?;
        let guard = File::create(parent.with_extension("lock"))?;
        guard.lock()?;
        for entry in fs::read_dir(&parent)?.flatten() {
            sweep(&entry.path());
        }
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = parent.join(format!("{}-{number}", std::process::id()));
        fs::create_dir(&path)?;
        let lock = File::create(path.join("lock"))?;
        lock.lock()?;
        Ok(Self { path, _lock: lock })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an empty file system.
    pub fn disk(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        File::create(&path)?.set_len(DISK_BYTES)?;
        must(
            Command::new("mkfs.ext4")
                .args(["-q", "-F", "-m", "0", "-O", "^has_journal"])
                .args(["-E", "lazy_itable_init=1,nodiscard,root_owner=0:0"])
                .arg(&path),
        )?;
        Ok(path)
    }

    /// Makes a disk that is an archive of `files`.
    pub fn archive(&self, name: &str, files: &[(&str, String)]) -> Result<PathBuf> {
        let source = self.path.join("files");
        fs::create_dir(&source)?;
        for (name, text) in files {
            fs::write(source.join(name), text)?;
        }
        let path = self.path.join(name);
        must(Command::new("tar").arg("-cf").arg(&path).arg("-C").arg(&source).arg("."))?;
        Ok(path)
    }

    /// The last lines of a text file in the folder, without those that are `harmless`. Empty if
    /// there is no such file.
    pub fn tail(&self, name: &str, harmless: Option<&str>) -> String {
        const LINES: usize = 40;
        let bytes = fs::read(self.path.join(name)).unwrap_or_default();
        let text = String::from_utf8_lossy(&bytes);
        let counts = |line: &&str| !harmless.is_some_and(|words| line.contains(words));
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(counts).collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

impl Drop for Workdir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path);
    }
}

fn sweep(dir: &Path) {
    let free = File::open(dir.join("lock")).map_or(true, |lock| lock.try_lock().is_ok());
    if free {
        let _ = fs::remove_dir_all(dir);
    }
}

/// Copies everything in a file system, which need not have been unmounted, into the folder `to`,
/// over what is there under the same names.
pub fn copy_out(disk: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    // debugfs leaves folders alone that exist, so it gets an empty one.
    let fresh = disk.with_extension("files");
    fs::create_dir(&fresh)?;
    let mut debugfs = Command::new("debugfs");
    debugfs.current_dir(&fresh).args(["-R", "rdump / ."]).arg(disk);
    let output = debugfs.output().context("cannot run debugfs")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // It begins with its version, and its status tells nothing.
    for line in said.lines().filter(|line| !line.starts_with("debugfs ")) {
        eprintln!("nested: /out: {line}");
    }
    must(Command::new("cp").args(["-a", "--sparse=always", "--"]).arg(fresh.join(".")).arg(to))
}
