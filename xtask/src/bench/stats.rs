//! Samples and their percentiles.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// Durations in milliseconds, by the name of what was timed, in the order of first use.
#[derive(Default)]
pub struct Samples {
    order: Vec<String>,
    values: BTreeMap<String, Vec<f64>>,
}

impl Samples {
    /// Adds one sample.
    pub fn add(&mut self, name: &str, value: f64) {
        if !self.values.contains_key(name) {
            self.order.push(name.to_owned());
        }
        self.values.entry(name.to_owned()).or_default().push(value);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Adds all samples of another run.
    pub fn merge(&mut self, other: Samples) {
        for name in &other.order {
            for value in &other.values[name] {
                self.add(name, *value);
            }
        }
    }

    /// A Markdown table with a row for each name.
    pub fn table(&self, unit: &str) -> String {
        let mut text =
            format!("| {unit} | n | min | p50 | p95 | p99 |\n|---|---:|---:|---:|---:|---:|\n");
        for name in &self.order {
            let of = |q| percentile(&self.values[name], q);
            text += &format!(
                "| {name} | {} | {:.1} | {:.1} | {:.1} | {:.1} |\n",
                self.values[name].len(),
                of(0.0),
                of(0.5),
                of(0.95),
                of(0.99)
            );
        }
        text
    }

    /// The same as JSON.
    pub fn json(&self) -> Value {
        let rows = self.order.iter().map(|name| {
            let of = |q| percentile(&self.values[name], q);
            let row = json!({
                "n": self.values[name].len(), "min": of(0.0), "p50": of(0.5), "p95": of(0.95),
                "p99": of(0.99),
            });
            (name.clone(), row)
        });
        Value::Object(rows.collect())
    }
}

/// The nearest-rank percentile: the smallest sample that at least `q` of all do not exceed.
pub fn percentile(samples: &[f64], q: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * sorted.len() as f64).ceil().max(1.0) as usize;
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_rank() {
        let hundred: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&hundred, 0.5), 50.0);
        assert_eq!(percentile(&hundred, 0.99), 99.0);
        assert_eq!(percentile(&hundred, 0.0), 1.0);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert!(percentile(&[], 0.5).is_nan());
    }
}
