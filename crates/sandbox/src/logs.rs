//! What the commands of a sandbox printed lately, by lines.
//!
//! Commands run side by side and print in pieces, so each output stream collects its own line
//! until it is whole ([`LineWriter`]); lines of different commands never mix.

use std::mem;

use crate::ring::{Cursor, Ring};

/// Longest line; a longer one is cut there, so that a stream without line ends stays bounded.
const MAX_LINE: usize = 8 << 10;

/// Bytes of lines kept of a sandbox that has ended by itself.
const LAST_WORDS: usize = 16 << 10;

/// What a line costs besides its text.
const LINE_OVERHEAD: usize = 48;

/// Where a line came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line, without its line end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Where it came from.
    pub stream: LogStream,
    /// Its text; bytes that are not UTF-8 are replaced.
    pub text: String,
}

/// The lines of one sandbox.
#[derive(Debug)]
pub struct Logs(Ring<LogLine>);

impl Logs {
    pub(crate) fn new(budget: usize) -> Self {
        Self(Ring::new(budget))
    }

    /// The last `count` lines of one stream, or of both for `None`, and the place after them.
    pub fn tail(&self, count: usize, only: Option<LogStream>) -> (Vec<LogLine>, Cursor) {
        self.0.tail(count, |line| only.is_none_or(|stream| stream == line.stream))
    }

    /// The lines after `cursor`, and the place after them.
    pub fn after(&self, cursor: Cursor) -> (Vec<LogLine>, Cursor) {
        self.0.after(cursor)
    }

    /// Waits for a line after `cursor`; `false` when the sandbox has ended.
    pub async fn more(&self, cursor: Cursor) -> bool {
        self.0.more(cursor).await
    }

    /// Keeps only the last lines: of a sandbox that ended and of which many are remembered.
    pub(crate) fn shrink(&self) {
        self.0.shrink(LAST_WORDS);
    }

    pub(crate) fn close(&self) {
        self.0.close();
    }

    fn push(&self, stream: LogStream, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes).into_owned();
        self.0.push(text.len() + LINE_OVERHEAD, LogLine { stream, text });
    }
}

/// Cuts one output stream of one command into lines.
#[derive(Debug)]
pub(crate) struct LineWriter {
    stream: LogStream,
    partial: Vec<u8>,
}

impl LineWriter {
    pub(crate) fn new(stream: LogStream) -> Self {
        Self { stream, partial: Vec::new() }
    }

    pub(crate) fn write(&mut self, logs: &Logs, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            match piece.strip_suffix(b"\n") {
                Some(end) => {
                    self.append(logs, end);
                    self.end_line(logs);
                }
                None => self.append(logs, piece),
            }
        }
    }

    /// Writes what has no line end yet. Called when the stream ends.
    pub(crate) fn finish(&mut self, logs: &Logs) {
        if !self.partial.is_empty() {
            self.end_line(logs);
        }
    }

    fn append(&mut self, logs: &Logs, mut bytes: &[u8]) {
        while self.partial.len() + bytes.len() > MAX_LINE {
            let (fits, rest) = bytes.split_at(MAX_LINE - self.partial.len());
            self.partial.extend_from_slice(fits);
            self.end_line(logs);
            bytes = rest;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn end_line(&mut self, logs: &Logs) {
        let line = mem::take(&mut self.partial);
        logs.push(self.stream, line.strip_suffix(b"\r").unwrap_or(&line));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(logs: &Logs, only: Option<LogStream>) -> Vec<String> {
        logs.tail(usize::MAX, only).0.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn pieces_become_lines_and_streams_do_not_mix() {
        let logs = Logs::new(64 << 10);
        let mut out = LineWriter::new(LogStream::Stdout);
        let mut err = LineWriter::new(LogStream::Stderr);
        out.write(&logs, b"one\r\ntw");
        err.write(&logs, b"oops\n");
        out.write(&logs, "o \u{e9}".as_bytes());
        out.write(&logs, b"\n\nlast");
        out.finish(&logs);
        err.finish(&logs);
        assert_eq!(texts(&logs, Some(LogStream::Stdout)), ["one", "two é", "", "last"]);
        assert_eq!(texts(&logs, Some(LogStream::Stderr)), ["oops"]);
        assert_eq!(logs.tail(1, None).0[0].text, "last");
    }

    #[test]
    fn endless_lines_are_cut_and_memory_is_bounded() {
        let logs = Logs::new(64 << 10);
        let mut out = LineWriter::new(LogStream::Stdout);
        for _ in 0..1000 {
            out.write(&logs, &[b'x'; 1000]);
        }
        let lines = texts(&logs, None);
        assert!(lines.iter().all(|line| line.len() == MAX_LINE));
        assert!(lines.iter().map(String::len).sum::<usize>() <= 64 << 10);
        assert!(!lines.is_empty());
    }
}
