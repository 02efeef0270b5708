//! `cargo xtask qemu`: another QEMU than the host's, in a folder of its own.
//!
//! Packages are downloaded and unpacked, never installed. Apt works on a state and cache of its
//! own, so that it changes nothing of the host and need not run as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};

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

const DISTRIBUTION: &str = "bookworm";
const SUITE: &str = "bookworm-backports";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
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
    unpack(&dir)?;
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

/// Downloads the packages from the mirror that has them and unpacks them into `dir`.
fn unpack(dir: &Path) -> Result<()> {
    let mirrors = mirrors()?;
    ensure!(!mirrors.is_empty(), "no package source of this host is Debian {DISTRIBUTION}");
    let apt = Apt::new(dir.join("apt"))?;
    let has_suite = |mirror: &&String| apt.update(mirror).is_ok();
    let mirror = mirrors.iter().find(has_suite);
    ensure!(mirror.is_some(), "{SUITE} is not to be had from {}", mirrors.join(" or "));
    for package in apt.download()? {
        must(Command::new("dpkg-deb").arg("-x").arg(package).arg(dir))?;
    }
    Ok(fs::remove_dir_all(apt.dir)?)
}

/// Where this host gets Debian from.
fn mirrors() -> Result<Vec<String>> {
    let (ok, text) = capture(Command::new("apt-get").args(["update", "--print-uris"]))?;
    ensure!(ok, "apt-get cannot tell its package sources");
    Ok(mirrors_in(&text))
}

/// Mirrors among the addresses that apt would read.
fn mirrors_in(text: &str) -> Vec<String> {
    let end = format!("/dists/{DISTRIBUTION}/InRelease'");
    let first = text.lines().filter_map(|line| line.split_whitespace().next());
    first.filter_map(|uri| Some(uri.strip_prefix('\'')?.strip_suffix(&end)?.to_owned())).collect()
}

/// apt-get with a state, a cache and a source of its own, and the host's way to the network.
struct Apt {
    dir: PathBuf,
}

impl Apt {
    fn new(dir: PathBuf) -> Result<Self> {
        for part in ["lists/partial", "archives/partial", "none"] {
            fs::create_dir_all(dir.join(part))?;
        }
        let path = dir.to_str().context("the workspace's path is not text")?;
        // The host's settings tell proxies; its hooks after an update would tidy the host's cache.
        let config = format!(
            "#include \"/etc/apt/apt.conf.d/\";\n\
             #clear APT::Update;\n\
             APT::Sandbox::User \"root\";\n\
             Dir::State \"{path}\";\n\
             Dir::State::status \"/dev/null\";\n\
             Dir::Cache \"{path}\";\n\
             Dir::Etc::parts \"{path}/none\";\n\
             Dir::Etc::preferences \"/dev/null\";\n\
             Dir::Etc::preferencesparts \"{path}/none\";\n\
             Dir::Etc::sourcelist \"{path}/sources.list\";\n\
             Dir::Etc::sourceparts \"{path}/none\";\n"
        );
        fs::write(dir.join("apt.conf"), config)?;
        Ok(Self { dir })
    }

    /// Reads the suite's index from a mirror.
    fn update(&self, mirror: &str) -> Result<()> {
        let source = format!("deb [signed-by={KEYRING}] {mirror} {SUITE} main\n");
        fs::write(self.dir.join("sources.list"), source)?;
        must(self.get().args(["update", "--error-on=any"]))
    }

    /// Downloads the packages and returns their files.
    fn download(&self) -> Result<Vec<PathBuf>> {
        must(self.get().arg("download").args(PACKAGES))?;
        let files = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.path());
        Ok(files.filter(|file| file.extension().is_some_and(|e| e == "deb")).collect())
    }

    fn get(&self) -> Command {
        let mut command = Command::new("apt-get");
        command.current_dir(&self.dir).env("APT_CONFIG", self.dir.join("apt.conf")).arg("-qq");
        command
    }
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
    fn mirrors_are_those_of_the_distribution_itself() {
        let text = "'http://a.example/debian/dists/bookworm/InRelease' a_dists_bookworm 0 \n\
                    'http://a.example/debian/dists/bookworm-updates/InRelease' a_updates 0 \n\
                    'http://a.example/debian/dists/bookworm/main/binary-amd64/Packages.xz' a 0 \n\
                    'https://b.example/dists/trixie/InRelease' b_dists_trixie 0 \n";
        assert_eq!(mirrors_in(text), ["http://a.example/debian"]);
        assert!(mirrors_in("").is_empty());
    }

    #[test]
    fn versions_compare_as_numbers() {
        let old = version_in("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7)").unwrap();
        let new = version_in("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)").unwrap();
        assert_eq!((old, new), ((7, 2), (10, 0)));
        assert!(old < OLDEST && new >= OLDEST);
        assert_eq!(version_in("no such thing"), None);
    }
}
