//! Where the time of a create, a hibernation or a wake goes.

use std::time::{Duration, Instant};

/// Stage names with their durations. They add up to the whole, because each mark ends the stage
/// that the one before it began.
#[derive(Clone, Debug)]
pub struct Stages {
    started: Instant,
    last: Instant,
    marks: Vec<(&'static str, Duration)>,
}

impl Stages {
    /// Starts the clock.
    pub fn start() -> Self {
        let now = Instant::now();
        Self { started: now, last: now, marks: Vec::with_capacity(8) }
    }

    /// Ends the stage called `name`.
    pub fn mark(&mut self, name: &'static str) {
        let now = Instant::now();
        self.marks.push((name, now - self.last));
        self.last = now;
    }

    /// From the start to the last mark.
    pub fn total(&self) -> Duration {
        self.last - self.started
    }

    /// The stages in order.
    pub fn marks(&self) -> &[(&'static str, Duration)] {
        &self.marks
    }

    /// As the value of a `Server-Timing` header, in milliseconds.
    pub fn server_timing(&self) -> String {
        let mut parts: Vec<String> = self
            .marks
            .iter()
            .map(|(name, took)| format!("{name};dur={:.3}", took.as_secs_f64() * 1e3))
            .collect();
        parts.push(format!("total;dur={:.3}", self.total().as_secs_f64() * 1e3));
        parts.join(", ")
    }

    /// As pairs of name and microseconds, for the sandbox's history.
    pub fn to_json(&self) -> serde_json::Value {
        self.marks
            .iter()
            .map(|(name, took)| serde_json::json!([name, took.as_micros() as u64]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_to_the_total() {
        let mut stages = Stages::start();
        for name in ["admission", "restore", "handshake"] {
            std::thread::sleep(Duration::from_millis(1));
            stages.mark(name);
        }
        assert_eq!(stages.marks().iter().map(|(_, d)| *d).sum::<Duration>(), stages.total());
        let header = stages.server_timing();
        assert!(header.starts_with("admission;dur="), "{header}");
        assert!(header.contains(", total;dur="), "{header}");
    }
}
