//! The log of one build: everything goes to a file, the last lines stay at hand for the error.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::ImageError;

/// Lines quoted in an error.
const TAIL: usize = 12;

/// An open log.
pub(crate) struct BuildLog {
    path: PathBuf,
    state: Mutex<State>,
}

struct State {
    file: File,
    tail: VecDeque<String>,
}

impl BuildLog {
    /// Starts the log anew: it tells of the last attempt only.
    pub(crate) fn create(path: PathBuf) -> Result<Self, ImageError> {
        let file = File::create(&path).map_err(ImageError::file("create", &path))?;
        Ok(Self { path, state: Mutex::new(State { file, tail: VecDeque::new() }) })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds a line. A log that cannot be written must not end the build it tells of, so errors
    /// only cost the line in the file.
    pub(crate) fn line(&self, line: &str) {
        let mut state = self.state();
        if let Err(error) = writeln!(state.file, "{line}") {
            tracing::debug!(%error, "cannot write to the build log");
        }
        if state.tail.len() == TAIL {
            state.tail.pop_front();
        }
        state.tail.push_back(line.to_owned());
    }

    /// The last lines, indented.
    pub(crate) fn tail(&self) -> String {
        self.state().tail.iter().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // A panic between two statements above leaves nothing inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
