//! How far a copy has come, shown to people and counted for programs.

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::terminal;

/// A copy under way.
pub struct Transfer {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
    files: u64,
    left_out: u64,
}

/// What a copy has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Files copied.
    pub files: u64,
    /// Bytes copied.
    pub bytes: u64,
    /// Symbolic links, special files and names that could not be copied.
    pub left_out: u64,
}

/// Counts bytes from wherever they pass.
#[derive(Clone)]
pub struct Counter {
    bar: ProgressBar,
    bytes: Arc<AtomicU64>,
}

impl Counter {
    /// Some bytes were copied.
    pub fn advance(&self, bytes: usize) {
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.bar.inc(bytes as u64);
    }
}

impl Transfer {
    /// Nothing is copied yet; the bar is drawn on a terminal only.
    pub fn begin() -> Self {
        let bar = terminal::bars().add(ProgressBar::new(0));
        let template = "{bytes:>10} of {total_bytes} {bytes_per_sec:>12}  {wide_msg}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Self { bar, bytes: Arc::default(), files: 0, left_out: 0 }
    }

    /// A file of about `size` bytes is next.
    pub fn file(&mut self, name: impl Display, size: u64) {
        self.files += 1;
        self.bar.inc_length(size);
        self.bar.set_message(name.to_string());
    }

    /// Counts the bytes of the files.
    pub fn counter(&self) -> Counter {
        Counter { bar: self.bar.clone(), bytes: self.bytes.clone() }
    }

    /// Something is not copied.
    pub fn leave_out(&mut self, what: impl Display, why: &str) {
        self.left_out += 1;
        terminal::line(&format!("pandastack: left out {what}: {why}"));
    }

    /// The end.
    pub fn finish(self) -> Summary {
        self.bar.finish_and_clear();
        let bytes = self.bytes.load(Ordering::Relaxed);
        Summary { files: self.files, bytes, left_out: self.left_out }
    }
}
