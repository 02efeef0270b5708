//! What clients do, as values: a plan can be printed, and a failure can say what led to it.

use std::fmt;

/// One operation of a client. Sandboxes and snapshots are numbered in the order in which the client
/// got them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A new sandbox of the template.
    Create { ttl: u64 },
    /// A new sandbox of a snapshot, which may be gone.
    Restore { snapshot: usize, ttl: u64 },
    /// Something with one sandbox, whatever state it is in.
    On { sandbox: usize, act: Act },
    /// Deletes a snapshot, which may be gone.
    DeleteSnapshot { snapshot: usize },
    /// Compares the lists of sandboxes and snapshots.
    List,
    /// `kill -9` of the server, whatever the other clients are doing, and a new one.
    KillServer,
}

/// What can be done with a sandbox.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Act {
    /// A command that reads every file, and asks the process that holds a value.
    Check,
    /// Has that process hold another value.
    Hold {
        value: u64,
    },
    /// Puts a value in a file.
    WriteFile {
        file: usize,
        value: u64,
    },
    /// Gets a file, which may not be there.
    ReadFile {
        file: usize,
    },
    Pause,
    Resume,
    Hibernate,
    Wake,
    Snapshot,
    Fork {
        children: usize,
    },
    /// Gives it another time to live.
    SetTtl {
        ttl: u64,
    },
    /// Gives it a second to live, and waits until that is over.
    Expire,
    /// Compares its object and its lifecycle.
    Look,
    Delete,
    /// `kill -9` of its machine's process.
    KillMachine,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::On { sandbox, act } => write!(f, "sandbox {sandbox}: {act:?}"),
            other => write!(f, "{other:?}"),
        }
    }
}

impl Operation {
    /// The sandbox that it is about.
    pub fn sandbox(&self) -> Option<usize> {
        match self {
            Self::On { sandbox, .. } => Some(*sandbox),
            _ => None,
        }
    }

    /// The name of its kind, for the count of what was done.
    pub fn kind(&self) -> String {
        let text = match self {
            Self::On { act, .. } => format!("{act:?}"),
            other => format!("{other:?}"),
        };
        text.split([' ', '{']).next().unwrap_or_default().to_owned()
    }
}
