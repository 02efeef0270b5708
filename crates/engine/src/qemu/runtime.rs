//! The file system of a jailed QEMU: a read-only directory that holds QEMU and nothing else.
//!
//! QEMU is a dynamic program with a module for its translator and firmware images. What it needs
//! is copied once into `<runtime>/<digest>/`, named by the paths, sizes and times of the
//! originals, so that an upgraded QEMU gets a new directory and running machines keep theirs.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::EngineError;

/// QEMU's name in Debian and most other distributions.
const PROGRAM: &str = "qemu-system-x86_64";
/// Firmware: the BIOS of the microvm machine and the option ROMs that load a kernel.
const FIRMWARE: &[&str] = &["bios-microvm.bin", "linuxboot_dma.bin", "pvh.bin"];
/// Where distributions keep firmware.
const FIRMWARE_DIRS: &[&str] =
    &["/usr/share/qemu", "/usr/share/seabios", "/usr/share/qemu-firmware"];
/// Loadable modules that this machine type needs, where QEMU is built with modules.
const MODULES: &[&str] = &["accel-tcg-x86_64.so"];

/// A jail root with QEMU in it.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    /// The directory that becomes `/`.
    pub root: PathBuf,
    /// QEMU's path below it.
    pub program: PathBuf,
    /// First line of `--version`.
    pub version: String,
    /// Stands for all of its files.
    pub digest: String,
}

impl Runtime {
    /// Finds the host's QEMU and makes its directory below `dir`, unless it is there already.
    pub fn prepare(dir: &Path) -> Result<Self, EngineError> {
        let program = find_program()?;
        let version = version(&program)?;
        let files = closure(&program)?;
        let digest = digest(&files)?;
        let root = dir.join(&digest);
        if !root.is_dir() {
            publish(dir, &root, &files)?;
        }
        Ok(Self { root, program, version, digest })
    }
}

/// QEMU on the search path, as an absolute path without links.
pub(super) fn find_program() -> Result<PathBuf, EngineError> {
    let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
    std::env::split_paths(&path)
        .map(|dir| dir.join(PROGRAM))
        .find(|file| file.is_file())
        .and_then(|file| fs::canonicalize(file).ok())
        .ok_or_else(|| EngineError::Host {
            what: PROGRAM.into(),
            hint: "install the package qemu-system-x86".into(),
        })
}

/// First line that QEMU prints of its version.
pub(super) fn version(program: &Path) -> Result<String, EngineError> {
    let text = output(Command::new(program).arg("--version"))?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}

/// Every file that QEMU opens by itself: (path in the jail, file on the host).
fn closure(program: &Path) -> Result<BTreeSet<(PathBuf, PathBuf)>, EngineError> {
    let mut files = BTreeSet::new();
    let mut objects = vec![program.to_owned()];
    for name in MODULES {
        objects.extend(module_dirs(program).map(|d| d.join(name)).find(|file| file.is_file()));
    }
    for object in &objects {
        files.insert((object.clone(), object.clone()));
        for library in libraries(object)? {
            files.insert((library.clone(), library));
        }
    }
    for name in FIRMWARE {
        // QEMU looks in /usr/share/qemu first; the host's file may be a link to another folder.
        let file = FIRMWARE_DIRS
            .iter()
            .map(|dir| Path::new(dir).join(name))
            .find(|file| file.is_file())
            .ok_or_else(|| EngineError::Host {
                what: format!("QEMU's firmware {name}"),
                hint: "install the packages qemu-system-data and seabios".into(),
            })?;
        files.insert((Path::new("/usr/share/qemu").join(name), file));
    }
    Ok(files)
}

/// Directories where QEMU looks for its modules.
fn module_dirs(program: &Path) -> impl Iterator<Item = PathBuf> + use<> {
    let prefix = program.parent().and_then(Path::parent).unwrap_or(Path::new("/usr")).to_owned();
    ["lib/x86_64-linux-gnu/qemu", "lib/qemu", "lib64/qemu"].into_iter().map(move |d| prefix.join(d))
}

/// Shared libraries of an object and the loader itself, as ldd(1) resolves them.
fn libraries(object: &Path) -> Result<Vec<PathBuf>, EngineError> {
    let text = output(Command::new("ldd").arg(object))?;
    // Lines read `name => /path (address)` or `/path/of/loader (address)`.
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

fn output(command: &mut Command) -> Result<String, EngineError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let unusable = |hint: String| EngineError::Host { what: program.clone(), hint };
    let output = command.env("LC_ALL", "C").output().map_err(|e| unusable(e.to_string()))?;
    if !output.status.success() {
        return Err(unusable(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn digest(files: &BTreeSet<(PathBuf, PathBuf)>) -> Result<String, EngineError> {
    let mut hash = blake3::Hasher::new();
    for (inside, outside) in files {
        let meta = fs::metadata(outside).map_err(|e| file_error("read", outside, e))?;
        let line = format!("{inside:?} {outside:?} {} {}\n", meta.size(), meta.mtime());
        hash.update(line.as_bytes());
    }
    Ok(hash.finalize().to_hex()[..16].to_owned())
}

/// Copies the files into a temporary directory and renames it: a crash leaves no half a runtime.
fn publish(
    dir: &Path,
    root: &Path,
    files: &BTreeSet<(PathBuf, PathBuf)>,
) -> Result<(), EngineError> {
    let staging = dir.join(format!("tmp.{}", std::process::id()));
    let staged = stage(&staging, files).and_then(|()| match fs::rename(&staging, root) {
        // Another process published the same directory meanwhile.
        Err(_) if root.is_dir() => Ok(()),
        other => other.map_err(|e| file_error("publish", root, e)),
    });
    let _ = fs::remove_dir_all(&staging);
    staged
}

fn stage(staging: &Path, files: &BTreeSet<(PathBuf, PathBuf)>) -> Result<(), EngineError> {
    let _ = fs::remove_dir_all(staging);
    make_dir(&staging.join("proc"))?;
    for (inside, outside) in files {
        let target = staging.join(inside.strip_prefix("/").unwrap_or(inside));
        make_dir(target.parent().unwrap_or(staging))?;
        fs::copy(outside, &target).map_err(|e| file_error("copy", outside, e))?;
        fs::set_permissions(&target, fs::Permissions::from_mode(0o555))
            .map_err(|e| file_error("protect", &target, e))?;
    }
    Ok(())
}

/// Makes a directory and its parents, open to the jailed user id whatever the umask.
fn make_dir(dir: &Path) -> Result<(), EngineError> {
    if dir.is_dir() {
        return Ok(());
    }
    if let Some(parent) = dir.parent() {
        make_dir(parent)?;
    }
    fs::create_dir(dir)
        .and_then(|()| fs::set_permissions(dir, fs::Permissions::from_mode(0o755)))
        .map_err(|e| file_error("create", dir, e))
}

pub(super) fn file_error(action: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::File { action, path: path.to_owned(), source }
}
