//! What a test is told of its surroundings, and how it says that it could not do its work there.
//!
//! | variable | meaning |
//! |---|---|
//! | `PANDASTACK_BIN` | the program under test; the release build of this workspace otherwise |
//! | `PANDASTACK_FAULTY_BIN` | the program with places where tests kill it; that of `cargo xtask faulty` otherwise |
//! | `PANDASTACK_TEST_DATA` | data directory whose templates are shared; that of `cargo xtask` otherwise |
//! | `PANDASTACK_TEST_ENGINE` | `qemu` (default) or `kvm`: what runs the guests |
//! | `PANDASTACK_TEST_SLOWNESS` | how much slower than usual this host is (default 1): every deadline is longer by this factor |
//! | `PANDASTACK_TEST_SKIPS` | file that [`skip`] adds a line to |
//!
//! Invariant: a test that did not do its work passes for the test runner, which knows no third
//! outcome at run time, but leaves a line in the file of skips. `cargo xtask test` counts those as
//! skipped and not as passed.

use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::LazyLock;
use std::time::Duration;

use anyhow::{Context, Result};

/// The program under test.
pub fn program() -> PathBuf {
    env::var_os("PANDASTACK_BIN")
        .map_or_else(|| workspace().join("target/release/pandastack"), PathBuf::from)
}

/// The program with places where tests kill it.
pub fn faulty_program() -> PathBuf {
    env::var_os("PANDASTACK_FAULTY_BIN")
        .map_or_else(|| workspace().join("target/faulty/pandastack"), PathBuf::from)
}

/// The data directory whose templates are shared.
pub fn shared_data() -> PathBuf {
    env::var_os("PANDASTACK_TEST_DATA")
        .map_or_else(|| workspace().join("target/pandastack"), PathBuf::from)
}

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("a workspace").to_owned()
}

/// `qemu` or `kvm`.
pub fn engine() -> String {
    env::var("PANDASTACK_TEST_ENGINE").unwrap_or_else(|_| "qemu".to_owned())
}

/// How much slower than usual this host is; never below 1.
pub fn slowness() -> f64 {
    static FACTOR: LazyLock<f64> =
        LazyLock::new(|| number("PANDASTACK_TEST_SLOWNESS", 1.0_f64).clamp(1.0, 1000.0));
    *FACTOR
}

/// A deadline on this host, for something that has `usual` on an ordinary one.
pub fn deadline(usual: Duration) -> Duration {
    usual.mul_f64(slowness())
}

/// Seconds on this host, for a limit of `usual` seconds on an ordinary one.
pub fn seconds(usual: u64) -> u64 {
    deadline(Duration::from_secs(usual)).as_secs()
}

/// A number from the environment: how much of something a test does. What is no number there is
/// as good as nothing.
pub fn number<T: FromStr>(variable: &str, otherwise: T) -> T {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// Says that the running test, or a part of it, could not be done here, and why. The value is
/// what a test that ends with it returns.
pub fn skip(reason: &str) -> Result<()> {
    // Test runners name a test's thread after it.
    let thread = std::thread::current();
    let test = thread.name().filter(|name| *name != "main").unwrap_or("a test");
    eprintln!("skipped: {test}: {reason}");
    let Some(path) = env::var_os("PANDASTACK_TEST_SKIPS") else { return Ok(()) };
    let line = format!("{test}: {}\n", reason.replace('\n', " "));
    let file = fs::OpenOptions::new().append(true).create(true).open(&path);
    let noted = file.and_then(|mut file| file.write_all(line.as_bytes()));
    noted.with_context(|| format!("cannot note a skip in {}", Path::new(&path).display()))
}
