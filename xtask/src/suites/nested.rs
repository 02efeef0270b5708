//! The suites that run the real server with the kvm engine, in a machine that has KVM.
//!
//! ```text
//!  host     cargo ▶ pandastack, test programs ──┐        ┌── root of the template
//!           target/nested-suite/programs, roots ◀┴─ links ┘
//!  level 1  nested.py ▶ one bake ▶ each test in a process of its own
//! ```
//!
//! The links keep their inodes and times as long as nothing is built anew, so that the harness
//! packs only what changed.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::{Tally, closed, site_packages, tally_of};
use crate::nested::{Machine, Share};
use crate::run::{capture, cargo, workspace};
use crate::venv;

/// Test programs of the crate `pandastack-tests`, in the order in which they run.
const PROGRAMS: [&str; 4] = ["conformance", "volumes", "leaks", "cycles"];
/// The templates of the tests and of the sample.
const TEMPLATES: [&str; 2] = ["base", "code-interpreter"];
/// How much longer everything takes in there.
const SLOWNESS: &str = "20";
/// For all of the tests.
const TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// MiB of level 1: twenty guests at once, and the templates in the page cache.
const MEMORY_MB: u32 = 8192;
/// Which tests, how much of each, and on which host: as in a run on this one. Later ones win.
const PASSED_ON: [&str; 8] = [
    "NESTED_TESTS",
    "PANDASTACK_TEST_AT_ONCE",
    "PANDASTACK_TEST_CREATES",
    "PANDASTACK_TEST_CYCLES",
    "PANDASTACK_TEST_NAPS",
    "PANDASTACK_TEST_PAUSES",
    "PANDASTACK_TEST_SEED",
    "PANDASTACK_TEST_SLOWNESS",
];
const RUNNER: &str = include_str!("nested.py");

/// What always runs: a test of each kind.
const SOME: [(&str, &str); 2] = [
    ("PANDASTACK_TEST_NAPS", "3"),
    (
        "NESTED_TESTS",
        "life::a_forked,life::a_parked,life::a_restored,clock::a_parked,snapshots::a_snapshot_is,ends::,\
     forks::a_chain,forks::two,limits::a_machine,network::a_guest,network::copies,hibernation::nothing,\
     volumes::forks",
    ),
];

/// Runs a test of each kind.
pub fn some() -> Result<Tally> {
    run(1, &SOME)
}

/// Runs all tests on a machine with so many processors.
pub fn all(cpus: u32) -> Result<Tally> {
    run(cpus, &[])
}

fn run(cpus: u32, chosen: &[(&str, &str)]) -> Result<Tally> {
    let stage = workspace().join("target/nested-suite");
    let [programs, roots, sample] = ["programs", "roots", "sample"].map(|name| stage.join(name));
    stage_programs(&programs)?;
    stage_root(TEMPLATES[0], &roots)?;
    stage_root(TEMPLATES[1], &sample.join("roots"))?;
    link(&workspace().join("xtask/src/sample.py"), &sample.join("sample.py"))?;
    let share = |host: PathBuf, name: &str| Share { host, name: name.to_owned() };
    let shares = vec![
        share(programs, "programs"),
        share(roots, "roots"),
        share(sample, "sample"),
        share(sdk()?, "sdk"),
    ];
    let engine = [("PANDASTACK_TEST_ENGINE", "kvm"), ("PANDASTACK_TEST_SLOWNESS", SLOWNESS)];
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    let mut env: Vec<_> = engine.iter().chain(chosen).map(own).collect();
    env.extend(std::env::vars().filter(|(name, _)| PASSED_ON.contains(&name.as_str())));
    let machine =
        Machine { cpus, memory_mb: MEMORY_MB, shares, env, timeout: TIMEOUT, ..Machine::default() };
    let command: Vec<String> =
        ["python3", "-c", RUNNER].into_iter().chain(PROGRAMS).map(str::to_owned).collect();
    let mut printed = Tee(Vec::new());
    let outcome = machine.run(&command, &mut printed)?;
    let text = String::from_utf8_lossy(&printed.0);
    let last = text.lines().rfind(|line| line.starts_with("nested: "));
    Ok(closed(outcome.status == 0, last.map(tally_of).unwrap_or_default()))
}

/// Shows what comes and keeps it.
struct Tee(Vec<u8>);

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        io::stderr().write_all(bytes)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Builds the test programs and links them, and the program under test, into `dir`.
fn stage_programs(dir: &Path) -> Result<()> {
    let mut command = cargo(&["test", "--locked", "--no-run", "--message-format=json"]);
    command.args(["--package", "pandastack-tests"]);
    command.args(PROGRAMS.iter().flat_map(|name| ["--test", name]));
    let (ok, text) = capture(&mut command)?;
    ensure!(ok, "the tests do not build");
    let messages: Vec<Value> =
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    for name in PROGRAMS {
        let built = messages.iter().filter(|message| message["target"]["name"] == name);
        let program = built.filter_map(|message| message["executable"].as_str()).next_back();
        link(
            Path::new(program.with_context(|| format!("cargo built no {name}"))?),
            &dir.join(name),
        )?;
    }
    link(&pandastack_tests::program(), &dir.join("pandastack"))
}

/// The Python packages of our own SDK and what it needs, for the host's release of Python, which is
/// also that of level 1.
fn sdk() -> Result<PathBuf> {
    let source = workspace().join("sdk/python");
    let python = venv::python("demo", &["./sdk/python"], Some(&source))?;
    let lib = python.parent().and_then(Path::parent).map(|dir| dir.join("lib"));
    lib.and_then(|lib| site_packages(&lib)).context("the environment has no packages")
}

/// Links the root that a template's bake is made of into `dir`. All else is made of it in there,
/// without network or other programs.
fn stage_root(template: &str, dir: &Path) -> Result<()> {
    let mut list = Command::new(pandastack_tests::program());
    list.args(["template", "ls", "--json", "--data-dir"]).arg(pandastack_tests::shared_data());
    let (_, text) = capture(&mut list)?;
    let views: Value = serde_json::from_str(&text).context("the list of templates")?;
    let mut views = views.as_array().into_iter().flatten();
    let view = views.find(|view| view["name"] == template).context("there is no such template")?;
    let roots = pandastack_tests::shared_data().join("templates/roots");
    for entry in fs::read_dir(roots)?.flatten() {
        let manifest = fs::read_to_string(entry.path().join("manifest.json")).unwrap_or_default();
        let manifest: Value = serde_json::from_str(&manifest).unwrap_or_default();
        if manifest["content"] == view["digest"] {
            keep_only(dir, &entry.file_name())?;
            return link_all(&entry.path(), &dir.join(entry.file_name()));
        }
    }
    bail!("the root of {template} is not there")
}

/// Removes what is not called `name`.
fn keep_only(dir: &Path, name: &OsStr) -> Result<()> {
    fs::create_dir_all(dir)?;
    for entry in fs::read_dir(dir)?.flatten().filter(|entry| entry.file_name() != name) {
        fs::remove_dir_all(entry.path())?;
    }
    Ok(())
}

fn link_all(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)?.flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            link_all(&entry.path(), &target)?;
        } else {
            link(&entry.path(), &target)?;
        }
    }
    Ok(())
}

/// Makes `to` another name of the file `from`, or a copy where it is on another file system.
fn link(from: &Path, to: &Path) -> Result<()> {
    if let Some(dir) = to.parent() {
        fs::create_dir_all(dir)?;
    }
    let _ = fs::remove_file(to);
    let linked = fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop));
    linked.with_context(|| format!("cannot link {}", from.display()))
}
