//! How long to wait for a machine that boots.
//!
//! A busy host stretches a boot by any factor, but the work stays the same: a boot that hangs has
//! either done several times the work of a good one, or does none.

use std::fs;
use std::time::{Duration, Instant};

/// Processor time that no boot needs: good ones take about 7 s.
const WORK: Duration = Duration::from_secs(40);
/// How long no boot stands still.
const REST: Duration = Duration::from_secs(30);
/// Unit of times in `/proc/PID/stat`: USER_HZ of proc(5), which is 100 on every Linux that we
/// run on.
const TICK: Duration = Duration::from_millis(10);

/// Watches the processor time of a process.
pub struct Patience {
    process: u32,
    work: Duration,
    since: Instant,
}

impl Patience {
    /// How often to ask.
    pub const INTERVAL: Duration = Duration::from_secs(2);

    pub fn with(process: u32) -> Self {
        Self { process, work: Duration::ZERO, since: Instant::now() }
    }

    /// Whether the boot hangs.
    pub fn ends(&mut self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.process)).unwrap_or_default();
        self.ends_at(Instant::now(), work_in(&stat).unwrap_or(self.work))
    }

    fn ends_at(&mut self, now: Instant, work: Duration) -> bool {
        if work > self.work + Self::INTERVAL / 100 {
            self.work = work;
            self.since = now;
        }
        work > WORK || now.saturating_duration_since(self.since) > REST
    }
}

/// Processor time of a process by its line in `/proc`, which has the name in parentheses first.
fn work_in(stat: &str) -> Option<Duration> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut times = rest.split_whitespace().skip(11).map(|field| field.parse::<u32>().ok());
    Some(TICK * (times.next()?? + times.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_ends_by_work_and_by_rest() {
        let mut patience = Patience::with(0);
        let start = patience.since;
        let mut ends = |at, work| {
            let (at, work) = (Duration::from_secs(at), Duration::from_secs(work));
            patience.ends_at(start + at, work)
        };
        assert!(!ends(1, 1));
        assert!(!ends(500, 20), "a busy host");
        assert!(!ends(529, 20));
        assert!(ends(531, 20), "it rests");
        assert!(!ends(531, 21));
        assert!(ends(532, 41), "it works too much");
    }

    #[test]
    fn work_is_that_of_user_and_kernel() {
        let stat = "7 (a ) b) S 1 7 7 0 -1 4194560 1 2 3 4 150 50 9 9 20 0 1 0";
        assert_eq!(work_in(stat), Some(Duration::from_secs(2)));
        assert_eq!(work_in("7 (a) S 1"), None);
        assert!(work_in(&fs::read_to_string("/proc/self/stat").unwrap()).is_some());
    }
}
