//! `cargo xtask lint`: format, clippy, docs, and the rules of this house that no other tool knows.

mod threats;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::run::{capture, cargo, must, step, workspace};

/// The libraries from the ground up: each may use those before it and none after it.
const LAYERS: &[&str] = &[
    "pandastack-policy",
    "pandastack-types",
    "pandastack-proto",
    "pandastack-datagram",
    "pandastack-fork",
    "pandastack-jail",
    "pandastack-holder",
    "pandastack-gateway",
    "pandastack-vmm",
    "pandastack-engine",
    "pandastack-image",
    "pandastack-store",
    "pandastack-sandbox",
    "pandastack-api",
];

/// Crates with `unsafe` in them, each block with its reason (a clippy lint sees to that).
const MAY_BE_UNSAFE: &[&str] = &[
    "crates/fork",
    "crates/jail",
    "crates/vmm",
    "bin/panda-agent",
    "bin/panda-keeper",
    "bin/panda-qemu-fork",
    "bin/panda-vmm",
];

/// Licences that an Apache-2.0 program may be made of.
const LICENCES: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Lines above which a file surely has more than one concept.
const MAX_LINES: usize = 800;

/// Runs every check; all findings of our own rules are reported at once.
pub fn run() -> Result<()> {
    step("format");
    must(&mut cargo(&["fmt", "--all", "--check"]))?;
    step("house rules");
    let metadata = metadata()?;
    let mut findings = layering(&metadata);
    findings.extend(licences(&metadata));
    findings.extend(unsafe_corners()?);
    findings.extend(long_files()?);
    findings.extend(dead_links()?);
    findings.extend(threats::unproved()?);
    for finding in &findings {
        eprintln!("  {finding}");
    }
    if !findings.is_empty() {
        bail!("{} findings", findings.len());
    }
    step("clippy");
    let clippy = ["clippy", "--locked", "--workspace", "--all-targets", "--", "-D", "warnings"];
    must(&mut cargo(&clippy))?;
    // What only the tests' build has.
    let faulty = ["-p", "pandastack-sandbox", "--features", "fault-points", "--", "-D", "warnings"];
    must(cargo(&["clippy", "--locked"]).args(faulty))?;
    step("docs");
    must(
        cargo(&["doc", "--locked", "--workspace", "--no-deps", "--quiet"])
            .env("RUSTDOCFLAGS", "-D warnings"),
    )
}

fn metadata() -> Result<Value> {
    let platform = "--filter-platform=x86_64-unknown-linux-gnu";
    let arguments = ["metadata", "--locked", "--format-version=1", platform];
    let (ok, text) = capture(&mut cargo(&arguments))?;
    if !ok {
        bail!("cargo metadata failed");
    }
    serde_json::from_str(&text).context("cargo metadata")
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

/// Arrows between our crates that point up.
fn layering(metadata: &Value) -> Vec<String> {
    let layer = |name: &str| LAYERS.iter().position(|l| *l == name);
    let mut findings = Vec::new();
    for package in list(metadata, "packages").filter(|p| p["source"].is_null()) {
        let name = text(package, "name");
        let folder = Path::new(text(package, "manifest_path")).parent().unwrap_or(Path::new(""));
        let is_library = folder.parent().is_some_and(|dir| dir.ends_with("crates"));
        let Some(own) = layer(name) else {
            if is_library {
                findings.push(format!("{name} has no layer: add it to LAYERS"));
            }
            continue;
        };
        for dependency in list(package, "dependencies").filter(|d| d["kind"].is_null()) {
            let used = text(dependency, "name");
            if layer(used).is_some_and(|other| other >= own) {
                findings.push(format!("{name} uses {used}, which is above it"));
            }
        }
    }
    findings
}

/// Dependencies under a licence that is not on the list.
fn licences(metadata: &Value) -> Vec<String> {
    let allowed = |expression: &str| {
        // One of the alternatives must consist of allowed licences only.
        expression.replace('/', " OR ").split(" OR ").any(|alternative| {
            alternative.split(" AND ").all(|l| {
                LICENCES.contains(&l.trim_matches(|c: char| c == '(' || c == ')' || c == ' '))
            })
        })
    };
    list(metadata, "packages")
        .filter(|package| !allowed(text(package, "license")))
        .map(|p| format!("{} is under {:?}", text(p, "name"), text(p, "license")))
        .collect()
}

/// Crates that neither forbid `unsafe` nor may use it.
fn unsafe_corners() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for group in ["crates", "bin"] {
        for entry in fs::read_dir(workspace().join(group))?.flatten() {
            let name = format!("{group}/{}", entry.file_name().to_string_lossy());
            let roots = ["src/lib.rs", "src/main.rs"].map(|file| entry.path().join(file));
            for root in roots.iter().filter(|root| root.exists()) {
                let forbids = fs::read_to_string(root)?.contains("#![forbid(unsafe_code)]");
                if !forbids && !MAY_BE_UNSAFE.contains(&name.as_str()) {
                    findings.push(format!("{name} does not forbid unsafe code"));
                }
            }
        }
    }
    Ok(findings)
}

fn long_files() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in tracked(&["*.rs", "*.py"])? {
        let lines = fs::read_to_string(&file)?.lines().count();
        if lines > MAX_LINES {
            findings.push(format!("{} has {lines} lines", file.display()));
        }
    }
    Ok(findings)
}

/// Links in our documents to files that are not there.
fn dead_links() -> Result<Vec<String>> {
    let mut findings = Vec::new();
    for file in tracked(&["*.md"])? {
        let folder = file.parent().unwrap_or(Path::new("")).to_owned();
        for link in fs::read_to_string(&file)?.split("](").skip(1) {
            let target = link.split([')', '#']).next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://");
            if !elsewhere && !folder.join(target).exists() {
                findings.push(format!("{}: no {target}", file.display()));
            }
        }
    }
    Ok(findings)
}

/// Files that git knows, by pattern; some may be deleted in the working tree.
fn tracked(patterns: &[&str]) -> Result<Vec<PathBuf>> {
    let mut command = std::process::Command::new("git");
    command.current_dir(workspace()).args(["ls-files", "-z", "--"]).args(patterns);
    let (_, files) = capture(&mut command)?;
    let paths = files.split('\0').filter(|f| !f.is_empty()).map(|f| workspace().join(f));
    Ok(paths.filter(|path| path.exists()).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, uses: &[&str], license: &str) -> Value {
        let dependencies: Vec<_> =
            uses.iter().map(|u| json!({ "name": u, "kind": null })).collect();
        json!({
            "name": name, "source": null, "license": license, "dependencies": dependencies,
            "manifest_path": "/w/crates/x/Cargo.toml",
        })
    }

    #[test]
    fn arrows_that_point_up_are_found() {
        let good = package("pandastack-engine", &["pandastack-jail", "serde"], "MIT");
        let bad = package("pandastack-jail", &["pandastack-engine"], "MIT");
        let unknown = package("pandastack-new", &[], "MIT");
        let findings = layering(&json!({ "packages": [good, bad, unknown] }));
        assert_eq!(findings.len(), 2, "{findings:?}");
    }

    #[test]
    fn licence_expressions_are_read() {
        let of = |l| licences(&json!({ "packages": [package("x", &[], l)] })).is_empty();
        assert!(of("MIT OR GPL-3.0") && of("MIT/Apache-2.0") && of("(MIT OR Zlib) AND ISC"));
        assert!(!of("GPL-3.0") && !of("MIT AND GPL-3.0") && !of(""));
    }
}
