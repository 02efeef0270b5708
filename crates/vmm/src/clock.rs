//! Measures steps that follow each other.

use std::time::Instant;

/// Steps with the microseconds that each took.
#[derive(Debug)]
pub struct Stages {
    last: Instant,
    steps: Vec<(String, u32)>,
}

impl Stages {
    /// Begins now.
    pub fn new() -> Self {
        Self { last: Instant::now(), steps: Vec::new() }
    }

    /// A step ends now, and the next one begins.
    pub fn lap(&mut self, step: &str) {
        let now = Instant::now();
        let took = now.duration_since(self.last).as_micros();
        self.steps.push((step.to_owned(), u32::try_from(took).unwrap_or(u32::MAX)));
        self.last = now;
    }

    /// The steps so far, taken out.
    pub fn take(&mut self) -> Vec<(String, u32)> {
        std::mem::take(&mut self.steps)
    }
}
