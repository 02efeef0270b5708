//! The user's terminal, which progress bars and lines of text share.

use std::io::{self, Write};
use std::sync::LazyLock;

use indicatif::MultiProgress;

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Every progress bar of the program. They are drawn on standard error if it is a terminal, and
/// nowhere otherwise.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// Writes a line to standard error, above the bars.
pub fn line(text: &str) {
    BARS.suspend(|| eprintln!("{text}"));
}

/// Standard error for the log: what is written lands above the bars.
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
