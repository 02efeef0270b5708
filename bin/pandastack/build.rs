//! Builds the programs that go into machines, so that `cargo build` alone gives one self-contained
//! program: the guest's agent, the keeper of a machine's namespaces, the monitor of a machine, the
//! gateway of all machines' networks, and the library that forks QEMU.
//!
//! They are made by nested cargos in target directories of their own: the outer cargo holds the
//! lock of the usual one. Template ids contain the agent's hash, so it has to come out byte for
//! byte the same wherever and whenever it is built.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What machines run on.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the parts are made of, relative to the workspace.
const INPUTS: [&str; 15] = [
    "bin/panda-agent",
    "bin/panda-gateway",
    "bin/panda-keeper",
    "bin/panda-qemu-fork",
    "bin/panda-vmm",
    "crates/datagram",
    "crates/fork",
    "crates/gateway",
    "crates/jail",
    "crates/policy",
    "crates/proto",
    "crates/types",
    "crates/vmm",
    "Cargo.lock",
    "Cargo.toml",
];

/// A nested build.
struct Build {
    packages: &'static [&'static str],
    /// Files to take over, by the names they have here.
    products: &'static [&'static str],
    /// Name of its target directory.
    dir: &'static str,
    flags: &'static [&'static str],
}

/// Static, because the guest has no libraries yet when the agent starts, the keeper's process is to
/// have as few pages as possible, and the jails of monitor and gateway have no file but these.
const PROGRAMS: Build = Build {
    packages: &["panda-agent", "panda-gateway", "panda-keeper", "panda-vmm"],
    products: &["panda-agent", "panda-gateway", "panda-keeper", "panda-vmm"],
    dir: "guest-agent",
    flags: &["-Ctarget-feature=+crt-static"],
};

/// Loaded into a dynamic program, whose C library it uses.
const LIBRARY: Build = Build {
    packages: &["panda-qemu-fork"],
    products: &["libpanda_qemu_fork.so"],
    dir: "qemu-fork",
    flags: &[],
};

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.ancestors().nth(2).ok_or("this package is not in its workspace")?;
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    for build in [PROGRAMS, LIBRARY] {
        let made = build.run(workspace, &target_root(&out).join(build.dir))?;
        for product in build.products {
            std::fs::copy(made.join(product), out.join(product))?;
        }
    }
    Ok(())
}

/// The outer cargo's target directory, which cargo marks for backup programs.
fn target_root(out: &Path) -> &Path {
    out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}

impl Build {
    /// Runs the nested cargo and says where its products are.
    fn run(&self, workspace: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
        let cargo = env::var_os("CARGO").ok_or("cargo sets CARGO")?;
        let mut command = Command::new(cargo);
        for (name, _) in env::vars_os() {
            if leaks_into_build(&name) {
                command.env_remove(name);
            }
        }
        command
            .current_dir(workspace)
            .env("CARGO_ENCODED_RUSTFLAGS", self.rustflags(workspace, target_dir)?)
            .args(["build", "--profile", "agent", "--locked", "--target", TARGET, "--target-dir"])
            .arg(target_dir);
        for package in self.packages {
            command.args(["--package", package]);
        }
        let status = command.status()?;
        if !status.success() {
            return Err(format!("{} does not build: {status}", self.packages.join(", ")).into());
        }
        Ok(target_dir.join(TARGET).join("agent"))
    }

    /// Its own flags, and no path of this host in what it makes.
    fn rustflags(&self, workspace: &Path, target_dir: &Path) -> Result<String, Box<dyn Error>> {
        let cargo_home = env::var_os("CARGO_HOME")
            .map(PathBuf::from)
            .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
            .ok_or("neither CARGO_HOME nor HOME is set")?;
        let mut flags: Vec<String> = self.flags.iter().map(|&flag| flag.to_owned()).collect();
        // The last prefix that fits wins, so the innermost directory comes last.
        for (from, to) in
            [(cargo_home.as_path(), "/cargo"), (workspace, "/pandastack"), (target_dir, "/target")]
        {
            let from = from.to_str().ok_or("paths of the build must be UTF-8")?;
            flags.push(format!("--remap-path-prefix={from}={to}"));
        }
        Ok(flags.join("\x1f"))
    }
}

/// Whether a variable of this build script's environment would change the nested build: flags
/// and wrappers of the outer one (clippy's, for example) and everything cargo tells build
/// scripts. How cargo reaches its registry and the shared job server stay.
fn leaks_into_build(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let kept = ["CARGO_HOME", "CARGO_MAKEFLAGS", "CARGO_HTTP_", "CARGO_NET_", "CARGO_REGISTR"];
    let cleared = ["CARGO_", "RUSTFLAGS", "RUSTC_", "RUSTDOC", "CLIPPY_"];
    cleared.iter().any(|prefix| name.starts_with(prefix))
        && !kept.iter().any(|prefix| name.starts_with(prefix))
}
