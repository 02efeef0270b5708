//! Steps that follow each other without a gap, so that they add up to the whole.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// The steps of one operation, in microseconds, and moments in it.
pub struct Laps {
    begin: Instant,
    last: Instant,
    steps: Vec<(String, f64)>,
    moments: Vec<(&'static str, f64)>,
}

impl Laps {
    /// The request comes now.
    pub fn begin() -> Self {
        let now = Instant::now();
        Self { begin: now, last: now, steps: Vec::new(), moments: Vec::new() }
    }

    /// A step ends now, and the next one begins.
    pub fn lap(&mut self, step: &str) {
        let took = self.turn();
        self.steps.push((step.to_owned(), micros(took)));
    }

    /// A step ends now, of which parts are known; what they leave is in a part of its own.
    pub fn lap_of(&mut self, step: &str, parts: &[(String, Duration)]) {
        let took = self.turn();
        let known: Duration = parts.iter().map(|(_, part)| part).sum();
        let named = parts.iter().map(|(part, took)| (format!("{step}: {part}"), micros(*took)));
        self.steps.extend(named);
        self.steps.push((format!("{step}: around it"), micros(took) - micros(known)));
    }

    /// Something that is waited for has happened, with the end of the last step.
    pub fn moment(&mut self, name: &'static str) {
        self.moments.push((name, micros(self.last - self.begin)));
    }

    /// Something that another clock measured.
    pub fn note(&mut self, name: &'static str, took: Duration) {
        self.moments.push((name, micros(took)));
    }

    fn turn(&mut self) -> Duration {
        let now = Instant::now();
        now - std::mem::replace(&mut self.last, now)
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1e3
}

/// Measurements by their names, in the order of first use.
#[derive(Default)]
pub struct Samples {
    steps: Named,
    moments: Named,
}

type Named = Vec<(String, Vec<f64>)>;

impl Samples {
    /// Adds one operation.
    pub fn add(&mut self, laps: Laps) {
        laps.steps.iter().for_each(|(name, value)| add(&mut self.steps, name, *value));
        laps.moments.iter().for_each(|(name, value)| add(&mut self.moments, name, *value));
    }

    /// `steps` and `moments`: names with their samples, in microseconds.
    pub fn json(&self) -> Value {
        json!({ "steps": self.steps, "moments": self.moments })
    }
}

fn add(to: &mut Named, name: &str, value: f64) {
    match to.iter_mut().find(|(known, _)| known == name) {
        Some((_, values)) => values.push(value),
        None => to.push((name.to_owned(), vec![value])),
    }
}
