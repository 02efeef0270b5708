//! Tests that did not do their work and say so: see `pandastack_tests::skip`.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::Tally;
use crate::run::workspace;

/// The file that the tests of one run note their skips in.
pub struct Skips(PathBuf);

impl Skips {
    /// Tells the tests that `command` runs where to note them.
    pub fn collect(command: &mut Command) -> Result<Self> {
        let file = workspace().join("target/test-skips");
        if file.exists() {
            fs::remove_file(&file)?;
        }
        command.env("PANDASTACK_TEST_SKIPS", &file);
        Ok(Self(file))
    }

    /// Prints them, and counts tests that passed for the runner as skipped.
    pub fn taken_from(&self, tally: Tally) -> Tally {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        text.lines().for_each(|line| eprintln!("skipped: {line}"));
        corrected(tally, &text)
    }
}

/// A test may give several reasons and counts once; one that failed in the end has failed.
fn corrected(tally: Tally, text: &str) -> Tally {
    let tests: BTreeSet<&str> =
        text.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
    let skipped = tally.passed.min(tests.len() as u64);
    Tally { passed: tally.passed - skipped, skipped: tally.skipped + skipped, ..tally }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_gave_reasons_counts_once_and_as_skipped() {
        let tally = Tally { passed: 3, failed: 1, skipped: 1 };
        let text = "a::b: no network\na::b: no time\nc: no: such thing\n";
        assert_eq!(corrected(tally, text), Tally { passed: 1, failed: 1, skipped: 3 });
        assert_eq!(corrected(tally, ""), tally);
    }
}
