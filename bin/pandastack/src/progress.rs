//! Template builds, shown while they run: a bar each on a terminal, plain lines otherwise.

use std::collections::HashMap;
use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, PoisonError};

use indicatif::{ProgressBar, ProgressStyle};
use pandastack_image::{Progress, Step};
use pandastack_types::TemplateName;

use crate::terminal;

/// Steps of a bar: fractions come in hundredths.
const BAR_LENGTH: u64 = 100;

/// Shows the builds of any number of templates at the same time.
pub struct BuildProgress {
    /// What is on the screen for each template.
    shown: Mutex<HashMap<TemplateName, Shown>>,
    terminal: bool,
}

struct Shown {
    bar: ProgressBar,
    /// The last line, so that a line is not repeated for a step that only moves the bar.
    line: String,
}

impl BuildProgress {
    /// Nothing is shown until there is a step.
    pub fn new() -> Self {
        Self { shown: Mutex::default(), terminal: stderr().is_terminal() }
    }

    fn bar(&self) -> ProgressBar {
        if !self.terminal {
            return ProgressBar::hidden();
        }
        let bar = terminal::bars().add(ProgressBar::new(BAR_LENGTH));
        if let Ok(style) = ProgressStyle::with_template("{prefix:18} {bar:24} {elapsed} {wide_msg}")
        {
            bar.set_style(style);
        }
        bar
    }
}

impl Progress for BuildProgress {
    fn step(&self, step: &Step) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let shown = shown.entry(step.template.clone()).or_insert_with(|| {
            let bar = self.bar();
            bar.set_prefix(step.template.to_string());
            Shown { bar, line: String::new() }
        });
        if let Some(fraction) = step.fraction {
            shown.bar.set_position((fraction.clamp(0.0, 1.0) * BAR_LENGTH as f32) as u64);
        }
        let line = format!("{}: {}", step.stage, step.detail);
        if line != shown.line {
            shown.bar.set_message(line.clone());
            if !self.terminal {
                eprintln!("template {}: {line}", step.template);
            }
            shown.line = line;
        }
    }
}

impl Drop for BuildProgress {
    fn drop(&mut self) {
        let shown = self.shown.get_mut().unwrap_or_else(PoisonError::into_inner);
        for shown in shown.values() {
            shown.bar.finish_and_clear();
        }
    }
}
