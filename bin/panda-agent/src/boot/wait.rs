//! Waiting for a device that the kernel is about to find.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;

/// Longest wait. Devices are there before init runs, or right after their module is loaded.
const PATIENCE: Duration = Duration::from_secs(10);

/// Tries until `find` finds something.
pub fn until<T>(what: &str, mut find: impl FnMut() -> Option<T>) -> anyhow::Result<T> {
    let begin = Instant::now();
    loop {
        if let Some(found) = find() {
            return Ok(found);
        }
        if begin.elapsed() > PATIENCE {
            bail!("{what} did not appear");
        }
        sleep(Duration::from_millis(2));
    }
}
