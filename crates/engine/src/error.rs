//! What can go wrong with a machine.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// What can go wrong with a machine.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A program or file of the host that the engine needs is missing or unusable.
    #[error("{what} is missing or unusable on this host: {hint}")]
    Host {
        /// What is missing.
        what: String,
        /// What to do about it.
        hint: String,
    },
    /// A file operation failed.
    #[error("cannot {action} {path}")]
    File {
        /// Verb, such as `create`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The machine's process could not be started.
    #[error("cannot start the machine")]
    Spawn(#[source] io::Error),
    /// The machine's control channel failed or answered an error.
    #[error("the machine's monitor failed: {0}")]
    Monitor(String),
    /// The machine ended while it was being worked on.
    #[error("the machine ended: {0}")]
    Ended(String),
    /// Something took longer than its deadline.
    #[error("{0} took too long")]
    Deadline(&'static str),
    /// A file of a bake or snapshot is damaged, incomplete or of another version.
    #[error("{file} cannot be used: {why}")]
    Damaged {
        /// Its name in the directory of the bake.
        file: String,
        /// What is wrong with it.
        why: String,
    },
    /// A bake or snapshot was made on a processor that this host does not have.
    #[error("it was made on another processor: {0}")]
    Foreign(String),
    /// Machines cannot be forked here.
    #[error("machines cannot be forked: {0}")]
    NoFork(String),
    /// Machines of this engine have no volumes.
    #[error("machines of this engine cannot have volumes")]
    NoVolumes,
    /// A machine that another server left cannot be taken over.
    #[error("it cannot be taken over: {0}")]
    NotAdopted(String),
    /// The guest's agent did not answer as it should.
    #[error("the guest agent failed")]
    Agent(#[from] crate::agent::AgentError),
}

/// An operation on `path` that failed.
pub(crate) fn file_error(action: &'static str, path: &Path, source: io::Error) -> EngineError {
    EngineError::File { action, path: path.to_owned(), source }
}

impl From<pandastack_jail::root::RootError> for EngineError {
    fn from(error: pandastack_jail::root::RootError) -> Self {
        EngineError::File { action: error.action, path: error.path, source: error.source }
    }
}

/// Text of a guest or of a machine's process, made fit for a log line.
pub(crate) fn tame(text: &str) -> String {
    const MAX_CHARS: usize = 512;
    text.chars().take(MAX_CHARS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// An error with its causes on one line.
pub(crate) struct ErrorChain<'a>(pub &'a dyn Error);

impl fmt::Display for ErrorChain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
