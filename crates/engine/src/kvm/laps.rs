//! Where the time of an operation went: the server's own steps, and between them the monitor's.
//!
//! ```text
//!   server   ── cradle ──┬── request ────────── answer ──┐
//!   monitor              └─ halt ─ clone ─ resume ─┘ the rest: messages, waiting for a turn
//! ```
//!
//! Whatever a monitor says of its own time, the steps add up to what the server measured.

use std::time::{Duration, Instant};

use pandastack_vmm::control::Stages as Said;

use crate::Stages;
use crate::error::tame;

/// Steps that follow each other without a gap.
pub(super) struct Laps {
    last: Instant,
    steps: Stages,
}

impl Laps {
    /// Begins now.
    pub fn new() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    /// A step ends now, and the next one begins.
    pub fn lap(&mut self, step: &str) {
        let took = self.turn();
        self.steps.push((step.to_owned(), took));
    }

    /// A step ends now that consisted of what the monitor `said`, and of the `rest`.
    pub fn lap_of(&mut self, said: &Said, rest: &str) {
        let mut left = self.turn();
        for (step, micros) in said {
            let took = Duration::from_micros((*micros).into()).min(left);
            left -= took;
            self.steps.push((tame(step), took));
        }
        self.steps.push((rest.to_owned(), left));
    }

    /// The steps.
    pub fn finish(self) -> Stages {
        self.steps
    }

    fn turn(&mut self) -> Duration {
        let now = Instant::now();
        let took = now.duration_since(self.last);
        self.last = now;
        took
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_steps_add_up_whatever_a_monitor_says() {
        let begin = Instant::now();
        let mut laps = Laps::new();
        laps.lap("cradle");
        laps.lap_of(&vec![("halt".into(), 0), ("clone\n".into(), u32::MAX)], "answer");
        laps.lap_of(&Vec::new(), "birth");
        let most = begin.elapsed();
        let steps = laps.finish();
        let names: Vec<&str> = steps.iter().map(|(name, _)| &**name).collect();
        assert_eq!(names, ["cradle", "halt", "clone ", "answer", "birth"]);
        assert_eq!(steps[3].1, Duration::ZERO, "the lie took all there was");
        let sum: Duration = steps.iter().map(|(_, took)| took).sum();
        assert!(sum <= most, "{sum:?} of {most:?}");
    }
}
