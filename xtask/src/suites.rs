//! `cargo xtask test`: every suite that this host can run, one closing line for all of them.

mod nested;
mod skips;

use std::ffi::OsStr;
use std::fs;
use std::ops::{Add, AddAssign};
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use pandastack_tests::{Options, Server};

use crate::run::{cargo, exists, must, step, watch, workspace};
use crate::{fuzz, prepare, qemu, venv};
use skips::Skips;

/// Which suites to run.
#[derive(Args)]
pub struct Selection {
    /// Only these suites: rust, fuzz, qemu-10, sdk, published-python, published-typescript, nested,
    /// and those that run when they are asked for: nested-1, nested-2
    suites: Vec<String>,
}

/// Suites that take an hour or more: the kvm engine in an emulated machine.
const ONLY_WHEN_ASKED: [&str; 2] = ["nested-1", "nested-2"];

/// Fewest tests that run at a time: see `.config/nextest.toml`.
const LANES: usize = 3;

impl Selection {
    fn wants(&self, suite: &str) -> bool {
        self.suites.is_empty() || self.suites.iter().any(|s| s == suite)
    }

    /// Whether a suite is left out although nobody said so.
    fn leaves_out(&self, suite: &str) -> bool {
        self.suites.is_empty() && ONLY_WHEN_ASKED.contains(&suite)
    }

    /// Runs a suite, if it is wanted, and says how it went.
    fn run(&self, name: &str, suite: fn() -> Result<Tally>) -> Result<Tally> {
        if !self.wants(name) {
            return Ok(Tally::default());
        }
        step(&format!("suite {name}"));
        let begin = Instant::now();
        let tally = if self.leaves_out(name) {
            eprintln!("skipped: it takes long; `cargo xtask test {name}` runs it");
            Tally { skipped: 1, ..Tally::default() }
        } else {
            suite()?
        };
        eprintln!("suite {name}: {tally:?} in {} s", begin.elapsed().as_secs());
        Ok(tally)
    }
}

/// What a suite said when it closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
}

impl Add for Tally {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            passed: self.passed + other.passed,
            failed: self.failed + other.failed,
            skipped: self.skipped + other.skipped,
        }
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

/// Runs the suites and prints the sum.
pub fn run(selection: &Selection) -> Result<()> {
    prepare::packages(true)?;
    let program = prepare::program()?;
    // The one waits for a mirror, the other for the compiler.
    thread::scope(|scope| {
        let baking = scope.spawn(|| prepare::templates(&program));
        if selection.wants("rust") {
            // First, so that the usual program is the last one under its name.
            prepare::faulty_program()?;
            step("building the tests");
            must(&mut cargo_test(&["--workspace", "--no-run"]))?;
        }
        baking.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    let one = |name: &str, suite: fn() -> Result<Tally>| selection.run(name, suite);
    let mut total = one("rust", rust)?;
    total += one("qemu-10", qemu_10)?;
    // These use one processor most of the time: the fuzzers have the other, and yield to them.
    total += thread::scope(|scope| {
        let fuzzing = scope.spawn(|| one("fuzz", fuzz_targets));
        let rest = || -> Result<Tally> {
            let mut total = one("sdk", sdk)?;
            total += one("published-python", published_python)?;
            total += one("published-typescript", published_typescript)?;
            Ok(total + one("nested", nested::some)?)
        };
        let rest = rest();
        let fuzzed = fuzzing.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        Ok::<_, anyhow::Error>(rest? + fuzzed?)
    })?;
    total += one("nested-1", || nested::all(1))?;
    total += one("nested-2", || nested::all(2))?;
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    if total.failed > 0 || total.passed == 0 {
        bail!("not every test passed");
    }
    Ok(())
}

/// Unit tests of every crate, and the end-to-end tests with real guests.
fn rust() -> Result<Tally> {
    cargo_tests(&["--workspace"], None, &[])
}

/// Every fuzz target: a test each.
fn fuzz_targets() -> Result<Tally> {
    let (passed, failed) = fuzz::all(fuzz::Extent::KNOWN)?;
    Ok(Tally { passed, failed, skipped: 0 })
}

/// The other QEMU that it must work with: its forks, its volumes, and machines that outlive servers.
fn qemu_10() -> Result<Tally> {
    let dir = match qemu::folder(qemu::Version::V10_0) {
        Ok(dir) => dir,
        Err(reason) => {
            eprintln!("skipped: {reason:#}");
            return Ok(Tally { skipped: 1, ..Tally::default() });
        }
    };
    let path = qemu::search_path(&dir)?;
    let mut build = Command::new(pandastack_tests::program());
    // All of them: a server bakes what is missing, beside its tests.
    build.args(["template", "build", "--all", "--data-dir"]).arg(pandastack_tests::shared_data());
    must(build.env("PATH", &path))?;
    // What is different in there is the process that is forked, not how often.
    let few = [("PANDASTACK_STRESS_FORKS", "8")];
    let tests = ["fork", "volumes", "adoption"].into_iter().flat_map(|name| ["--test", name]);
    let tests: Vec<&str> = ["--package", "pandastack-tests"].into_iter().chain(tests).collect();
    cargo_tests(&tests, Some(&path), &few)
}

/// What runs Rust tests here.
fn cargo_test(which: &[&str]) -> Command {
    let nextest = exists("cargo-nextest");
    let mut command = cargo(if nextest { &["nextest", "run"] } else { &["test"] });
    command.arg("--locked").args(which);
    command
}

/// Runs Rust tests, with another search path if there is one, and with variables.
fn cargo_tests(which: &[&str], path: Option<&OsStr>, set: &[(&str, &str)]) -> Result<Tally> {
    let nextest = exists("cargo-nextest");
    let mut command = cargo_test(which);
    command.arg("--no-fail-fast");
    if nextest {
        let processors = thread::available_parallelism().map_or(1, usize::from);
        command.args(["--color=never", "--test-threads", &processors.max(LANES).to_string()]);
    } else {
        command.args(["--", "--test-threads=2"]);
    }
    // nextest reports on standard error, cargo test on standard output.
    let mut shell = Command::new("sh");
    shell.current_dir(workspace()).args(["-c", "\"$@\" 2>&1", "sh"]).arg(command.get_program());
    shell.args(command.get_args());
    shell.envs(set.iter().copied());
    if let Some(path) = path {
        shell.env("PATH", path);
    }
    let skips = Skips::collect(&mut shell)?;
    let (ok, text) = watch(&mut shell)?;
    let tally = if nextest { nextest_tally(&text) } else { cargo_tally(&text) };
    Ok(closed(ok, skips.taken_from(tally)))
}

/// Our own Python SDK: its tests need no server.
fn sdk() -> Result<Tally> {
    let source = workspace().join("sdk/python");
    let published = venv::python("published", &["-r", "tests/sdk-python/requirements.txt"], None)?;
    let python = venv::python("sdk", &["./sdk/python", "pytest"], Some(&source))?;
    let site = published.parent().and_then(Path::parent).map(|dir| dir.join("lib"));
    let mut command = Command::new(python);
    command.current_dir(source).args(["-m", "pytest", "-q", "-rs", "tests"]);
    if let Some(site) = site.and_then(|lib| site_packages(&lib)) {
        command.env("PANDASTACK_PUBLISHED_SITE", site);
    }
    pytest(&mut command)
}

/// The published Python SDK, unmodified, against a real server.
fn published_python() -> Result<Tally> {
    let python = venv::python("published", &["-r", "tests/sdk-python/requirements.txt"], None)?;
    with_server(|environment| {
        let mut command = Command::new(&python);
        command.current_dir(workspace().join("tests/sdk-python"));
        pytest(command.args(["-m", "pytest", "-q", "-rs"]).envs(environment))
    })
}

/// The published TypeScript SDK, unmodified, against a real server.
fn published_typescript() -> Result<Tally> {
    let source = workspace().join("tests/sdk-typescript");
    let dir = workspace().join("target/sdk-typescript");
    if dir.exists() {
        fs::remove_dir_all(&dir)?;
    }
    must(Command::new("cp").arg("-r").arg(&source).arg(&dir))?;
    must(Command::new("npm").current_dir(&dir).args([
        "ci",
        "--silent",
        "--no-audit",
        "--no-fund",
    ]))?;
    with_server(|environment| {
        let mut command = Command::new("node");
        command.current_dir(&dir).args(["--test", "--test-reporter=tap"]).envs(environment);
        let (ok, text) = watch(&mut command)?;
        Ok(closed(ok, tap_tally(&text)))
    })
}

/// Runs `suite` with the address and key of a server of its own.
fn with_server(suite: impl Fn([(&'static str, String); 2]) -> Result<Tally>) -> Result<Tally> {
    let server = Server::start(Options { pool: 1, fork: true, ..Options::default() })?;
    server.wait_for_zygotes()?;
    let key = fs::read_to_string(server.data().join("api-key"))?.trim().to_owned();
    let tally = suite([("PANDASTACK_API", server.url().to_owned()), ("PANDASTACK_API_KEY", key)])?;
    if tally.failed > 0 {
        eprintln!("--- the server said:\n{}", server.log());
    }
    server.stop()?;
    Ok(tally)
}

fn site_packages(lib: &Path) -> Option<std::path::PathBuf> {
    let python = fs::read_dir(lib).ok()?.flatten().next()?;
    Some(python.path().join("site-packages"))
}

fn pytest(command: &mut Command) -> Result<Tally> {
    let (ok, text) = watch(command)?;
    Ok(closed(ok, pytest_tally(&text)))
}

/// A suite that failed without a failed test failed as a whole.
fn closed(ok: bool, mut tally: Tally) -> Tally {
    if !ok && tally.failed == 0 {
        tally.failed = 1;
    }
    tally
}

/// The number before `word` in a line such as `3 passed, 1 failed`.
fn before(line: &str, word: &str) -> u64 {
    let words: Vec<&str> = line
        .split(|c: char| c.is_whitespace() || ",;".contains(c))
        .filter(|w| !w.is_empty())
        .collect();
    let at = words.iter().position(|w| *w == word);
    at.and_then(|at| words.get(at.checked_sub(1)?)?.parse().ok()).unwrap_or(0)
}

fn tally_of(line: &str) -> Tally {
    Tally {
        passed: before(line, "passed"),
        failed: before(line, "failed") + before(line, "error") + before(line, "errors"),
        skipped: before(line, "skipped"),
    }
}

fn nextest_tally(text: &str) -> Tally {
    text.lines().rfind(|l| l.contains("Summary [")).map(tally_of).unwrap_or_default()
}

fn pytest_tally(text: &str) -> Tally {
    let closes = |l: &&str| {
        l.contains(" in ") && (l.contains("passed") || l.contains("failed") || l.contains("error"))
    };
    text.lines().rfind(closes).map(tally_of).unwrap_or_default()
}

fn cargo_tally(text: &str) -> Tally {
    text.lines()
        .filter(|l| l.starts_with("test result:"))
        .map(tally_of)
        .fold(Tally::default(), Tally::add)
}

fn tap_tally(text: &str) -> Tally {
    let of = |name: &str| {
        let line = text.lines().rfind(|l| l.starts_with(&format!("# {name} ")));
        line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0)
    };
    Tally { passed: of("pass"), failed: of("fail") + of("cancelled"), skipped: of("skipped") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_of_every_runner_are_read() {
        let tally = |passed, failed, skipped| Tally { passed, failed, skipped };
        let nextest = "  Summary [ 0.5s] 10/12 tests run: 7 passed (1 slow), 2 failed, 3 skipped";
        assert_eq!(nextest_tally(nextest), tally(7, 2, 3));
        let pytest = "x\n===== 1 failed, 4 passed, 2 skipped, 1 error in 3.10s =====";
        assert_eq!(pytest_tally(pytest), tally(4, 2, 2));
        let cargo = "test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured\n\
                     test result: FAILED. 1 passed; 2 failed; 0 ignored";
        assert_eq!(cargo_tally(cargo), tally(4, 2, 0));
        assert_eq!(tap_tally("# pass 5\n# fail 1\n# cancelled 1\n# skipped 2"), tally(5, 2, 2));
    }
}
