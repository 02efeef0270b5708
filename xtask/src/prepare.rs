//! What every command needs first: packages of the host, the program, its templates.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::run::{cargo, exists, must, step, workspace};

/// A package of the host and how to see that it is there.
struct Package {
    name: &'static str,
    present: fn() -> bool,
}

/// What the program itself needs of a Debian host.
const SERVER: &[Package] = &[
    Package { name: "qemu-system-x86", present: || exists("qemu-system-x86_64") },
    Package { name: "mmdebstrap", present: || exists("mmdebstrap") },
    Package { name: "erofs-utils", present: || exists("mkfs.erofs") },
    Package { name: "e2fsprogs", present: || exists("mkfs.ext4") },
    Package { name: "uidmap", present: || exists("newuidmap") },
    Package {
        name: "debian-archive-keyring",
        present: || Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists(),
    },
    Package { name: "python3", present: || exists("python3") },
    Package { name: "python3-venv", present: python_has_venv },
];

/// What the tests need besides.
const TESTS: &[Package] = &[
    Package { name: "iproute2", present: || exists("ip") },
    Package { name: "openssl", present: || exists("openssl") },
    Package { name: "nodejs", present: || exists("node") },
    Package { name: "npm", present: || exists("npm") },
];

fn python_has_venv() -> bool {
    let probe = Command::new("python3").args(["-c", "import ensurepip, venv"]).output();
    probe.is_ok_and(|output| output.status.success())
}

/// What the comparison of transports needs.
const TRANSPORT: &[Package] = &[Package { name: "qemu-user", present: || exists("qemu-x86_64") }];

/// Makes sure of what the program needs, and the tests if asked.
pub fn packages(with_tests: bool) -> Result<()> {
    install(SERVER.iter().chain(if with_tests { TESTS } else { &[] }))
}

/// What an emulated machine with KVM needs.
const NESTED: &[Package] = &[
    Package { name: "qemu-system-x86", present: || exists("qemu-system-x86_64") },
    Package { name: "mmdebstrap", present: || exists("mmdebstrap") },
    Package { name: "erofs-utils", present: || exists("mkfs.erofs") },
    Package { name: "e2fsprogs", present: || exists("mkfs.ext4") && exists("debugfs") },
    Package {
        name: "debian-archive-keyring",
        present: || Path::new("/usr/share/keyrings/debian-archive-keyring.gpg").exists(),
    },
    Package { name: "uidmap", present: || is_root() || exists("newuidmap") },
];

/// Makes sure of what an emulated machine with KVM needs.
pub fn nested_packages() -> Result<()> {
    install(NESTED.iter())
}

/// Makes sure of what the comparison of transports needs.
pub fn transport_packages() -> Result<()> {
    install(TRANSPORT.iter())
}

/// What libFuzzer is built with.
const FUZZ: &[Package] = &[Package { name: "g++", present: || exists("c++") }];

/// Makes sure of what the fuzz targets are built with.
pub fn fuzz_packages() -> Result<()> {
    install(FUZZ.iter())
}

/// Installs missing packages as root; otherwise says exactly what is missing.
fn install<'a>(wanted: impl Iterator<Item = &'a Package>) -> Result<()> {
    let missing: Vec<&str> = wanted.filter(|p| !(p.present)()).map(|p| p.name).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !is_root() || !exists("apt-get") {
        bail!(
            "these Debian packages are missing: {list}\n\
             install them and run this command again:\n\n    \
             sudo apt-get update && sudo apt-get install --no-install-recommends {list}",
            list = missing.join(" ")
        );
    }
    step(&format!("installing {}", missing.join(" ")));
    let apt = |args: &[&str]| {
        must(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args))
    };
    apt(&["update", "-q"])?;
    let mut install = vec!["install", "-q", "-y", "--no-install-recommends"];
    install.extend(&missing);
    apt(&install)
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|o| o.stdout.trim_ascii() == b"0")
}

/// Builds the program and returns its path.
pub fn program() -> Result<PathBuf> {
    step("building pandastack");
    must(&mut cargo(&["build", "--release", "--locked", "-p", "pandastack"]))?;
    Ok(pandastack_tests::program())
}

/// Builds the program with the places where tests kill it, beside the one that people get. Unoptimised:
/// all that it does not share with the tests' own build are three crates.
pub fn faulty_program() -> Result<()> {
    step("building pandastack with fault points");
    must(&mut cargo(&["build", "--locked", "-p", "pandastack", "--features", "fault-points"]))?;
    let path = pandastack_tests::faulty_program();
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    // A new file: the old one may still be running.
    let new = path.with_extension("new");
    fs::copy(workspace().join("target/debug/pandastack"), &new)?;
    Ok(fs::rename(new, path)?)
}

/// Builds and bakes the shipped templates, unless they are there.
pub fn templates(program: &Path) -> Result<()> {
    step("building and baking the templates (a minute or two each the first time)");
    must(
        Command::new(program)
            .args(["template", "build", "--all", "--data-dir"])
            .arg(pandastack_tests::shared_data()),
    )
}
