//! Time as a guest has it: pauses do not count.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::sync::lock;

/// A clock that stands still while its sandbox is paused.
#[derive(Debug)]
pub(crate) struct RunClock(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    born: Instant,
    paused: Duration,
    paused_since: Option<Instant>,
}

impl RunClock {
    pub(crate) fn new(now: Instant) -> Self {
        Self(Mutex::new(Inner { born: now, paused: Duration::ZERO, paused_since: None }))
    }

    /// Stops the clock. Stopping a stopped one changes nothing.
    pub(crate) fn pause(&self, now: Instant) {
        lock(&self.0).paused_since.get_or_insert(now);
    }

    /// Lets the clock go on.
    pub(crate) fn resume(&self, now: Instant) {
        let mut inner = lock(&self.0);
        if let Some(since) = inner.paused_since.take() {
            inner.paused += now.saturating_duration_since(since);
        }
    }

    /// Time run until `now`.
    pub(crate) fn ran(&self, now: Instant) -> Duration {
        let inner = lock(&self.0);
        let until = inner.paused_since.unwrap_or(now);
        until.saturating_duration_since(inner.born).saturating_sub(inner.paused)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_do_not_count() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let clock = RunClock::new(start);
        assert_eq!(clock.ran(at(5)), Duration::from_secs(5));
        clock.pause(at(5));
        clock.pause(at(7));
        assert_eq!(clock.ran(at(100)), Duration::from_secs(5));
        clock.resume(at(100));
        clock.resume(at(101));
        assert_eq!(clock.ran(at(103)), Duration::from_secs(8));
    }
}
