//! `cargo xtask qemu`: another QEMU than the host's, in a folder of its own.
//!
//! Packages are downloaded and unpacked, never installed (see [`crate::apt`]).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

use crate::apt;
use crate::run::{capture, must, step, workspace};

/// What `cargo xtask qemu` is told.
#[derive(Args)]
pub struct Arguments {
    /// Which QEMU
    #[arg(value_enum)]
    version: Version,
    /// Runs with that QEMU first on the search path; without a command, the folder is printed
    #[arg(last = true)]
    command: Vec<String>,
}

/// A QEMU besides the host's.
#[derive(Clone, Copy, ValueEnum)]
pub enum Version {
    /// Of Debian bookworm's backports, or newer where they moved on.
    #[value(name = "10.0")]
    V10_0,
}

const SUITE: &str = "bookworm-backports";
/// The program, its modules and its firmware. Its libraries are those of bookworm's QEMU.
const PACKAGES: &[&str] = &["qemu-system-x86", "qemu-system-common", "qemu-system-data", "seabios"];
const OLDEST: (u32, u32) = (10, 0);

/// Runs a command with that QEMU, or prints where it is.
pub fn run(arguments: &Arguments) -> Result<()> {
    let dir = folder(arguments.version)?;
    let Some((program, rest)) = arguments.command.split_first() else {
        println!("{}", dir.display());
        return Ok(());
    };
    must(Command::new(program).args(rest).env("PATH", search_path(&dir)?))
}

/// The folder of that QEMU's program, downloaded unless it is there. The error is the reason why
/// this host cannot have it.
pub fn folder(version: Version) -> Result<PathBuf> {
    let Version::V10_0 = version;
    let dir = workspace().join("target/qemu-10.0");
    let stamp = dir.join("stamp");
    let wanted = format!("{SUITE} {}", PACKAGES.join(" "));
    let programs = dir.join("usr/bin");
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(programs);
    }
    step(&format!("unpacking QEMU of {SUITE}"));
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    apt::unpack(SUITE, PACKAGES, &dir)?;
    let found = check(&programs.join("qemu-system-x86_64"))?;
    eprintln!("{found}");
    fs::write(stamp, wanted)?;
    Ok(programs)
}

/// The search path with a folder before everything else.
pub fn search_path(dir: &Path) -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::iter::once(dir.to_owned()).chain(std::env::split_paths(&path));
    std::env::join_paths(dirs).with_context(|| format!("{} cannot be searched", dir.display()))
}

/// Makes sure that the program runs here and is new enough; returns what it says of itself.
fn check(program: &Path) -> Result<String> {
    let (_, libraries) = capture(Command::new("ldd").arg(program))?;
    let missing: Vec<&str> =
        libraries.lines().filter_map(|line| line.trim().strip_suffix(" => not found")).collect();
    if !missing.is_empty() {
        bail!("install qemu-system-x86 for the libraries {}", missing.join(" "));
    }
    let (_, text) = capture(Command::new(program).arg("--version"))?;
    let line = text.lines().next().unwrap_or_default();
    let version =
        version_in(line).with_context(|| format!("{} does not run", program.display()))?;
    ensure!(version >= OLDEST, "{SUITE} has only {line}");
    Ok(line.to_owned())
}

/// Major and minor number in `QEMU emulator version 10.0.2 (…)`.
fn version_in(line: &str) -> Option<(u32, u32)> {
    let mut numbers = line.split_once(" version ")?.1.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers() {
        let old = version_in("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)").unwrap();
        let new = version_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)").unwrap();
        assert_eq!((old, new), ((7, 2), (10, 0)));
        assert!(old < OLDEST && new >= OLDEST);
        assert_eq!(version_in("no such thing"), None);
    }
}
