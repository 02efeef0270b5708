//! Builds the guest agent, so that `cargo build` alone gives one self-contained program.
//!
//! The agent is a static executable for the guest, made by a nested cargo in a target directory
//! of its own: the outer cargo holds the lock of the usual one. Template ids contain the agent's
//! hash, so it has to come out byte for byte the same wherever and whenever it is built.

use std::env;
use std::error::Error;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the guest runs.
const GUEST_TARGET: &str = "x86_64-unknown-linux-gnu";

/// What the agent is made of, relative to the workspace.
const INPUTS: [&str; 4] = ["bin/panda-agent", "crates/proto", "Cargo.lock", "Cargo.toml"];

fn main() -> Result<(), Box<dyn Error>> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    let workspace = manifest.ancestors().nth(2).ok_or("this package is not in its workspace")?;
    for input in INPUTS {
        println!("cargo::rerun-if-changed={}", workspace.join(input).display());
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);
    let agent = build_agent(workspace, &target_root(&out).join("guest-agent"))?;
    std::fs::copy(agent, out.join("panda-agent"))?;
    Ok(())
}

/// The outer cargo's target directory, which cargo marks for backup programs.
fn target_root(out: &Path) -> &Path {
    out.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).unwrap_or(out)
}

/// Runs the nested cargo and says where the agent is.
fn build_agent(workspace: &Path, target_dir: &Path) -> Result<PathBuf, Box<dyn Error>> {
    let cargo = env::var_os("CARGO").ok_or("cargo sets CARGO")?;
    let mut build = Command::new(cargo);
    for (name, _) in env::vars_os() {
        if leaks_into_build(&name) {
            build.env_remove(name);
        }
    }
    let status = build
        .current_dir(workspace)
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags(workspace, target_dir)?)
        .args(["build", "--package", "panda-agent", "--profile", "agent", "--locked"])
        .args(["--target", GUEST_TARGET, "--target-dir"])
        .arg(target_dir)
        .status()?;
    if !status.success() {
        return Err(format!("the guest agent does not build: {status}").into());
    }
    Ok(target_dir.join(GUEST_TARGET).join("agent/panda-agent"))
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

/// Static linking, because the guest has no libraries yet when the agent starts, and no path of
/// this host in the program.
fn rustflags(workspace: &Path, target_dir: &Path) -> Result<String, Box<dyn Error>> {
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))
        .ok_or("neither CARGO_HOME nor HOME is set")?;
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    // The last prefix that fits wins, so the innermost directory comes last.
    for (from, to) in
        [(cargo_home.as_path(), "/cargo"), (workspace, "/pandastack"), (target_dir, "/target")]
    {
        let from = from.to_str().ok_or("paths of the build must be UTF-8")?;
        flags.push(format!("--remap-path-prefix={from}={to}"));
    }
    Ok(flags.join("\x1f"))
}
