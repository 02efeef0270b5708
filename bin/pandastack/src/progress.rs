//! A template build, shown while it runs: a bar on a terminal, plain lines otherwise.

use std::io::{IsTerminal, stderr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use pandastack_image::{Progress, Step};

use crate::terminal;

/// Length of the bar: fractions are shown in hundredths.
const BAR_LENGTH: f32 = 100.0;
/// Where it is known how much is done, and where it is not.
const BAR: &str = "{prefix:18} {bar:24} {elapsed:>4}  {wide_msg}";
const SPINNER: &str = "{prefix:18} {spinner} {elapsed:>4}  {wide_msg}";
/// How often the time on the screen goes on.
const TICK: Duration = Duration::from_millis(200);

/// Shows one build, until it is dropped.
#[derive(Default)]
pub struct BuildProgress {
    shown: Mutex<Shown>,
}

#[derive(Default)]
struct Shown {
    /// There from the first step on, on a terminal.
    bar: Option<ProgressBar>,
    /// The last line, so that it is not repeated for a step that only moves the bar.
    line: String,
}

impl Progress for BuildProgress {
    fn step(&self, step: &Step) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!("{}: {}", step.stage, step.detail);
        if stderr().is_terminal() {
            draw(shown.bar.get_or_insert_with(new_bar), step, &line);
        } else if line != shown.line {
            terminal::line(&format!("template {}: {line}", step.template));
        }
        shown.line = line;
    }
}

impl Drop for BuildProgress {
    fn drop(&mut self) {
        let shown = self.shown.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(bar) = &shown.bar {
            bar.finish_and_clear();
        }
    }
}

fn new_bar() -> ProgressBar {
    let bar = terminal::bars().add(ProgressBar::new(BAR_LENGTH as u64));
    bar.enable_steady_tick(TICK);
    bar
}

fn draw(bar: &ProgressBar, step: &Step, line: &str) {
    let template = if step.fraction.is_some() { BAR } else { SPINNER };
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    if let Some(fraction) = step.fraction {
        bar.set_position((fraction.clamp(0.0, 1.0) * BAR_LENGTH) as u64);
    }
    bar.set_prefix(step.template.to_string());
    bar.set_message(line.to_owned());
}
