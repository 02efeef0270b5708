//! Debian packages that are unpacked into a folder, never installed.
//!
//! Apt works on a state and cache of its own, so that it changes nothing of the host and need not
//! run as root. It takes the host's way to the network and the host's mirrors.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{capture, must};

/// The release whose mirrors are asked, for its own suites and for its backports.
pub const DISTRIBUTION: &str = "bookworm";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Downloads packages of `suite`, from the first mirror that has it, and unpacks them into `dir`.
/// A package that only stands for the newest of several brings that one along.
pub fn unpack(suite: &str, packages: &[&str], dir: &Path) -> Result<()> {
    let mirrors = mirrors()?;
    ensure!(!mirrors.is_empty(), "no package source of this host is Debian {DISTRIBUTION}");
    let apt = Apt::new(dir.join("apt"))?;
    let has_suite = |mirror: &&String| apt.update(mirror, suite).is_ok();
    let mirror = mirrors.iter().find(has_suite);
    ensure!(mirror.is_some(), "{suite} is not to be had from {}", mirrors.join(" or "));
    for package in apt.download(packages)? {
        must(Command::new("dpkg-deb").arg("-x").arg(package).arg(dir))?;
    }
    Ok(fs::remove_dir_all(apt.dir)?)
}

/// Where this host gets Debian from.
pub fn mirrors() -> Result<Vec<String>> {
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
    fn update(&self, mirror: &str, suite: &str) -> Result<()> {
        let source = format!("deb [signed-by={KEYRING}] {mirror} {suite} main\n");
        fs::write(self.dir.join("sources.list"), source)?;
        must(self.program("apt-get").args(["-qq", "update", "--error-on=any"]))
    }

    /// Downloads the packages and returns their files.
    fn download(&self, packages: &[&str]) -> Result<Vec<PathBuf>> {
        for package in packages {
            let newest = self.newest(package)?;
            must(self.program("apt-get").args(["-qq", "download", &newest]))?;
        }
        let files = fs::read_dir(&self.dir)?.flatten().map(|entry| entry.path());
        Ok(files.filter(|file| file.extension().is_some_and(|e| e == "deb")).collect())
    }

    /// The package with files that `package` stands for: `linux-image-cloud-amd64` is empty and
    /// depends on `linux-image-6.12.9-cloud-amd64`.
    fn newest(&self, package: &str) -> Result<String> {
        let (_, text) = capture(self.program("apt-cache").args(["depends", package]))?;
        Ok(kernel_in(&text).unwrap_or(package).to_owned())
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(name);
        command.current_dir(&self.dir).env("APT_CONFIG", self.dir.join("apt.conf"));
        command
    }
}

/// The versioned kernel among the dependencies of a package.
fn kernel_in(depends: &str) -> Option<&str> {
    let versioned = |name: &&str| {
        let version = name.strip_prefix("linux-image-");
        version.is_some_and(|v| v.starts_with(|c: char| c.is_ascii_digit()))
    };
    depends.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).find(versioned)
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
    fn a_package_that_stands_for_a_kernel_is_seen_through() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-base\n  \
                    Depends: linux-image-6.12.9-cloud-amd64\n";
        assert_eq!(kernel_in(text), Some("linux-image-6.12.9-cloud-amd64"));
        assert_eq!(kernel_in("seabios\n  Depends: linux-image-amd64\n"), None);
    }
}
