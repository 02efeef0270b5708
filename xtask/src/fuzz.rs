//! `cargo xtask fuzz`: runs the targets in `fuzz/`, as many at a time as there are processors and
//! three at least.
//!
//! ```text
//!   fuzz/fuzz_targets/NAME.rs    the target
//!   fuzz/corpus/NAME/            seeds, and inputs that were findings once: in git
//!   target/fuzz/corpus/NAME/     what earlier runs found to be interesting
//!   target/fuzz/findings/NAME/   inputs that broke a target
//!   target/fuzz/log/NAME         what the last run said
//! ```
//!
//! The binaries are libFuzzer's and take its options; cargo builds them, so nothing has to be
//! installed but a C++ compiler. They are made with AddressSanitizer, overflow checks and debug
//! assertions. The sanitizer is part of every toolchain, though its flag is not a stable one yet:
//! hence `RUSTC_BOOTSTRAP`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::prepare;
use crate::run::{cargo, must, step, workspace};

/// Naming it keeps the flags below away from build scripts.
const PLATFORM: &str = "x86_64-unknown-linux-gnu";

/// What libFuzzer learns coverage from (LLVM's SanitizerCoverage), and the sanitizer.
const FLAGS: &[&str] = &[
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Zsanitizer=address",
];

/// An input that takes longer than 20 seconds is a finding, and so is one for which 64 MiB are
/// asked for at once: nothing that is read here may decide over so much memory.
const LIMITS: &[&str] =
    &["-timeout=20", "-malloc_limit_mb=64", "-rss_limit_mb=2048", "-print_final_stats=1"];

/// Lines of a broken target's output that are shown.
const LINES: usize = 40;

/// What to run.
#[derive(Args)]
pub struct Arguments {
    /// Only these targets
    targets: Vec<String>,
    #[command(flatten)]
    extent: Extent,
    /// Runs one target once, with the bytes of this file
    #[arg(long)]
    input: Option<PathBuf>,
}

/// How far each target goes.
#[derive(Args, Clone, Copy)]
pub struct Extent {
    /// How long each target runs
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// How often each target runs at most
    #[arg(long)]
    pub runs: Option<u64>,
    /// Where its random numbers begin; 0 is another one each time
    #[arg(long, default_value_t = 0)]
    pub seed: u32,
}

impl Extent {
    /// What CI runs. It is the same on a host of any speed that gets so far in a minute: whoever
    /// breaks something is told, and not whoever comes after on a faster host. New inputs are
    /// found by longer runs from other seeds, by hand.
    pub const KNOWN: Self = Self { seconds: 60, runs: Some(100_000), seed: 1 };
}

/// Targets at a time, at least: those that talk to the kernel wait for it now and then.
const AT_ONCE: usize = 3;

/// How often a target ran and how many branches of the code it has seen, or what broke it.
type Outcome = Result<(u64, u64), String>;

/// Runs targets; a finding is an error.
pub fn run(arguments: &Arguments) -> Result<()> {
    let known = targets()?;
    let wanted = if arguments.targets.is_empty() { &known } else { &arguments.targets };
    if let Some(unknown) = wanted.iter().find(|name| !known.contains(name)) {
        bail!("there is no target {unknown}, but {}", known.join(", "));
    }
    if let Some(input) = &arguments.input {
        let [target] = &wanted[..] else { bail!("--input is for one target") };
        build(wanted)?;
        return must(fuzzer(target).args(LIMITS).arg(input));
    }
    let (clean, broken) = run_all(wanted, arguments.extent)?;
    println!("{clean} targets without a finding, {broken} with one");
    if broken > 0 {
        bail!("there are findings");
    }
    Ok(())
}

/// Every target there is: how many of them found nothing and something.
pub fn all(extent: Extent) -> Result<(u64, u64)> {
    run_all(&targets()?, extent)
}

/// The names of all targets, in order.
fn targets() -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(workspace().join("fuzz/fuzz_targets"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs") {
            names.extend(path.file_stem().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    names.sort();
    Ok(names)
}

fn folder(kind: &str, target: &str) -> PathBuf {
    workspace().join("target/fuzz").join(kind).join(target)
}

fn build(targets: &[String]) -> Result<()> {
    prepare::fuzz_packages()?;
    step("building the fuzz targets");
    let mut command = yielding(cargo(&["build", "--locked", "--manifest-path", "fuzz/Cargo.toml"]));
    command.args(["--target", PLATFORM, "--target-dir", "target/fuzz"]);
    for target in targets {
        command.args(["--bin", target]);
    }
    must(command.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", FLAGS.join(" ")))
}

/// The same command, for whatever time other processes leave: nothing here has a deadline that
/// depends on it, and what runs beside it may.
fn yielding(command: Command) -> Command {
    let mut nice = Command::new("nice");
    nice.args(["-n", "10"]).arg(command.get_program()).args(command.get_args());
    nice.current_dir(workspace());
    nice
}

/// The program of a target.
fn fuzzer(target: &str) -> Command {
    let mut command = yielding(Command::new(folder(PLATFORM, "debug").join(target)));
    // Leaks are looked for with ptrace(2), which not every container has.
    command.current_dir(workspace()).env("ASAN_OPTIONS", "detect_leaks=0");
    command.env("RUST_BACKTRACE", "1");
    command
}

/// Builds targets and runs them, each so far. Says how many found nothing and something.
fn run_all(targets: &[String], extent: Extent) -> Result<(u64, u64)> {
    build(targets)?;
    let (count, seconds) = (targets.len(), extent.seconds);
    step(&format!("running {count} fuzz targets for {seconds} s each at most"));
    let processors = thread::available_parallelism().map_or(1, usize::from);
    let workers = processors.max(AT_ONCE).min(targets.len());
    let (waiting, tally) = (Mutex::new(targets.iter()), Mutex::new((0, 0)));
    let work = || -> Result<()> {
        loop {
            let next = lock(&waiting).next();
            let Some(target) = next else { return Ok(()) };
            let outcome = run_one(target, extent)?;
            let mut tally = lock(&tally);
            match outcome {
                Ok((runs, edges)) => {
                    tally.0 += 1;
                    eprintln!("fuzz {target}: no finding in {runs} runs, {edges} branches seen");
                }
                Err(report) => {
                    tally.1 += 1;
                    eprintln!("fuzz {target}: FINDING\n{report}");
                }
            }
        }
    };
    thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    Ok(*lock(&tally))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn run_one(target: &str, extent: Extent) -> Result<Outcome> {
    let (corpus, findings) = (folder("corpus", target), folder("findings", target));
    let seeds = workspace().join("fuzz/corpus").join(target);
    for folder in [&corpus, &findings, &folder("log", "")] {
        fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    let log = folder("log", target);
    let output = File::create(&log)?;
    let begun = Instant::now();
    eprintln!("fuzz {target}: running");
    let mut command = fuzzer(target);
    command.arg(&corpus);
    // New inputs go to the first folder; the others are only read.
    if seeds.exists() {
        command.arg(seeds);
    }
    command.args(LIMITS).arg(format!("-max_total_time={}", extent.seconds));
    command.arg(format!("-seed={}", extent.seed));
    if let Some(runs) = extent.runs {
        command.arg(format!("-runs={runs}"));
    }
    command.arg(format!("-artifact_prefix={}/", findings.display()));
    let status = command.stdout(output.try_clone()?).stderr(output).status();
    let status = status.with_context(|| format!("cannot run the target {target}"))?;
    let text = String::from_utf8_lossy(&fs::read(&log)?).into_owned();
    Ok(match (status.success(), numbers(&text)) {
        (true, Some(numbers)) => Ok(numbers),
        _ => Err(format!(
            "{}\n{status} after {} s; all of its output is in {}",
            report(target, &text),
            begun.elapsed().as_secs(),
            log.display()
        )),
    })
}

/// Runs and branches, out of what libFuzzer says at its end.
fn numbers(text: &str) -> Option<(u64, u64)> {
    let runs = text.lines().find_map(|l| l.strip_prefix("stat::number_of_executed_units:"))?;
    let state = text.lines().rfind(|line| line.contains(" cov: "))?;
    let edges = state.split(" cov: ").nth(1)?.split_whitespace().next()?;
    Some((runs.trim().parse().ok()?, edges.parse().ok()?))
}

/// The end of what a broken target said, and how to see it again.
fn report(target: &str, text: &str) -> String {
    // Progress comes before, the input's bytes after what matters.
    let said: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let what = |line: &&str| line.contains("panicked at") || line.contains("ERROR: ");
    let from = said.iter().position(what).unwrap_or(said.len().saturating_sub(LINES));
    let mut report: Vec<String> =
        said[from..].iter().take(LINES).map(|line| format!("    {line}")).collect();
    let input = text.lines().rfind(|line| line.contains("Test unit written to "));
    if let Some(path) = input.and_then(|line| line.rsplit(' ').next()) {
        let path = Path::new(path).strip_prefix(workspace()).unwrap_or(Path::new(path)).display();
        report.push(format!("the input is {path}; to run it again:"));
        report.push(format!("    cargo xtask fuzz {target} --input {path}"));
    }
    report.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLEAN: &str = "INFO: Seed: 1\n#2\tINITED cov: 7 ft: 8 corp: 1/1b\n\
        #900\tDONE   cov: 812 ft: 1200 corp: 9/99b lim: 60 exec/s: 9 rss: 9Mb\n\
        stat::number_of_executed_units: 900\nstat::peak_rss_mb:              9\n";

    #[test]
    fn the_numbers_at_the_end_are_read() {
        assert_eq!(numbers(CLEAN), Some((900, 812)));
        assert_eq!(numbers("#900\tDONE   cov: 812 ft: 1\n"), None);
    }

    #[test]
    fn a_finding_is_reported_with_its_input() {
        let text = "INFO: Seed: 1\n#2\tINITED cov: 7 ft: 8\n\
            thread '<unnamed>' panicked at crates/x.rs:1:2:\nattempt to add\n\
            artifact_prefix='/a/'; Test unit written to /a/crash-12\nBase64: AAAA\n";
        let report = report("block", text);
        assert!(report.starts_with("    thread '<unnamed>' panicked"), "{report}");
        assert!(report.ends_with("cargo xtask fuzz block --input /a/crash-12"), "{report}");
        assert!(!report.contains("cov:"));
    }

    #[test]
    fn every_target_has_seeds_and_is_built() {
        let manifest = fs::read_to_string(workspace().join("fuzz/Cargo.toml")).unwrap();
        let targets = targets().unwrap();
        assert!(targets.len() > 10);
        for target in targets {
            let seeds = fs::read_dir(workspace().join("fuzz/corpus").join(&target));
            assert!(seeds.is_ok_and(|mut seeds| seeds.next().is_some()), "{target}");
            assert!(manifest.contains(&format!("name = \"{target}\"")), "{target}");
        }
    }
}
