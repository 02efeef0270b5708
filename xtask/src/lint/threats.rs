//! docs/threats.md: every number has a row, and every test that is named there exists.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::run::workspace;

const LIST: &str = "docs/threats.md";

/// What is wrong with the list of threats.
pub fn unproved() -> Result<Vec<String>> {
    let list = fs::read_to_string(workspace().join(LIST)).context(LIST)?;
    let source = |path: &str| fs::read_to_string(workspace().join(path)).ok();
    Ok(check(&list, source))
}

fn check(list: &str, source: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let mut findings = Vec::new();
    let mut rows: BTreeMap<&str, u32> = BTreeMap::new();
    for line in list.lines() {
        let Some((number, rest)) = line.strip_prefix("| ").and_then(|row| row.split_once(" | "))
        else {
            continue;
        };
        if !number.starts_with('T') {
            continue;
        }
        *rows.entry(number).or_default() += 1;
        let tests: Vec<_> = rest.split('`').skip(1).step_by(2).collect();
        if tests.is_empty() && !rest.contains("does not apply") {
            findings.push(format!("{LIST}: {number} has neither a test nor a reason"));
        }
        let missing = |test: &&&str| {
            let Some((path, name)) = test.split_once("::") else { return true };
            !source(path).is_some_and(|text| has_test(&text, name))
        };
        let missing = tests.iter().filter(missing);
        findings.extend(missing.map(|test| format!("{LIST}: {number}: there is no test {test}")));
    }
    let wanted = (20..=37).chain(40..=51).chain(60..=68).map(|number| format!("T{number}"));
    let wrong = wanted.filter(|number| rows.get(number.as_str()) != Some(&1));
    findings.extend(wrong.map(|number| format!("{LIST}: {number} has not exactly one row")));
    findings
}

/// Whether a function of this name is marked as a test, with other attributes or none in between.
fn has_test(source: &str, name: &str) -> bool {
    let definition = format!("fn {name}(");
    source.match_indices(&definition).any(|(at, _)| {
        let mut attributes = source[..at]
            .rsplit('\n')
            .skip(1)
            .take_while(|line| line.trim_start().starts_with("#["));
        attributes.any(|line| line.contains("test"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of all numbers but `left_out`, with a test that exists.
    fn list(left_out: u32) -> String {
        let numbers = (20..=37).chain(40..=51).chain(60..=68).filter(|n| *n != left_out);
        numbers.map(|number| format!("| T{number} | a | `a.rs::one` |\n")).collect()
    }

    fn findings(list: &str) -> Vec<String> {
        let text =
            "#[test]\nfn one() {}\n#[tokio::test]\n#[ignore]\nasync fn two() {}\nfn three() {}";
        check(list, |path| (path == "a.rs").then(|| text.to_owned()))
    }

    #[test]
    fn numbers_without_a_row_and_tests_that_are_not_there_are_found() {
        assert_eq!(findings(&list(0)), [""; 0]);
        assert_eq!(findings(&list(30)), ["docs/threats.md: T30 has not exactly one row"]);
        assert_eq!(findings(&(list(0) + "| T30 | twice | `a.rs::one` |")).len(), 1);
        for (row, good) in [
            ("| T30 | a | `a.rs::one`, `a.rs::two` |", true),
            ("| T30 | does not apply yet: for a reason | |", true),
            ("| T30 | a | |", false),
            ("| T30 | a | `a.rs::three` |", false),
            ("| T30 | a | `a.rs::on` |", false),
            ("| T30 | a | `b.rs::one` |", false),
            ("| T30 | a | `one` |", false),
        ] {
            assert_eq!(findings(&(list(30) + row)).is_empty(), good, "{row}");
        }
    }
}
