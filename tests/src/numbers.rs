//! A command that prints one number after another, and a reader that misses none.
//!
//! Invariant: as long as nothing failed, every number from 1 to [`Numbers::last`] came once and in
//! its order, whatever was done to the sandbox meanwhile.

use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};

use crate::{Client, Sandbox, wait_until};

/// A line that counts in `i` and does `what`, in Bash and without single quotes, all so many seconds.
/// It starts no process for that: a copy of a guest that does is busy with nothing else where a
/// processor is emulated.
pub fn every(seconds: &str, what: &str) -> String {
    format!(
        "bash -c 'exec 3<> <(:); i=0; while ! read -t {seconds} -u 3; do i=$((i+1)); {what}; done'"
    )
}

/// An open stream of numbers.
pub struct Numbers {
    sandbox: Sandbox,
    last: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
    reader: JoinHandle<Result<()>>,
}

impl Numbers {
    /// Starts the command and waits for the first number.
    pub fn start(client: &Client, sandbox: &Sandbox) -> Result<Self> {
        let line = "i=0; while [ ! -e /run/over ]; do i=$((i+1)); echo $i; sleep 0.1; done";
        let body = json!({ "cmd": line, "timeout_seconds": 86_400 }).to_string();
        let response = client.patient().open(
            "POST",
            &sandbox.path("/exec/stream"),
            Some(("application/json", body.as_bytes())),
        )?;
        let (last, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (counter, ending) = (last.clone(), over.clone());
        let reader = std::thread::spawn(move || {
            let events = BufReader::new(response.into_body().into_reader());
            follow(events, &counter)?;
            ensure!(ending.load(Ordering::SeqCst), "the stream ended by itself");
            Ok(())
        });
        let numbers = Self { sandbox: sandbox.clone(), last, over, reader };
        numbers.wait_for(1)?;
        Ok(numbers)
    }

    /// The last number that came.
    pub fn last(&self) -> u64 {
        self.last.load(Ordering::SeqCst)
    }

    /// Waits until `more` numbers have come since the call.
    pub fn wait_for(&self, more: u64) -> Result<()> {
        let wanted = self.last() + more;
        let there = || self.last() >= wanted || self.reader.is_finished();
        ensure!(wait_until(Duration::from_secs(30), there), "no number after {}", self.last());
        ensure!(self.last() >= wanted, "the stream failed after {}", self.last());
        Ok(())
    }

    /// Ends the command in good order; how many numbers came.
    pub fn finish(self) -> Result<u64> {
        self.over.store(true, Ordering::SeqCst);
        self.sandbox.output("touch /run/over")?;
        match self.reader.join() {
            Ok(read) => read?,
            Err(_) => bail!("the reader of the stream panicked"),
        }
        Ok(self.last.load(Ordering::SeqCst))
    }
}

/// Reads server-sent events up to their end, and checks each number in them.
fn follow(events: impl BufRead, last: &AtomicU64) -> Result<()> {
    let mut text = String::new();
    for line in events.lines() {
        let line = line?;
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let data: Value = serde_json::from_str(data)?;
        text += data["chunk"].as_str().unwrap_or_default();
        while let Some((number, rest)) = text.split_once('\n') {
            let next: u64 = number.parse()?;
            let previous = last.fetch_add(1, Ordering::SeqCst);
            ensure!(next == previous + 1, "{next} came after {previous}");
            text = rest.to_owned();
        }
    }
    ensure!(text.is_empty(), "{text:?} is half a number");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(chunks: &[&str]) -> Result<u64> {
        let last = AtomicU64::new(0);
        let events: String = chunks
            .iter()
            .map(|chunk| format!("event: stdout\ndata: {}\n\n", json!({ "chunk": chunk })))
            .collect();
        follow(events.as_bytes(), &last)?;
        Ok(last.into_inner())
    }

    #[test]
    fn a_number_that_is_missing_or_comes_twice_is_noticed() {
        assert_eq!(read(&["1\n2", "\n3\n"]).unwrap(), 3);
        for bad in [&["1\n3\n"][..], &["1\n", "1\n"], &["2\n"], &["1\n2"], &["1\n", "2x\n"]] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
