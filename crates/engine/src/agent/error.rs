//! What can go wrong between the host and an agent.

use std::time::Duration;

use pandastack_proto::{DecodeError, EncodeError, ErrorCode, Failure, WindowError};

use crate::error::tame;

/// An operation of an [`AgentClient`](super::AgentClient) failed.
///
/// [`Closed`](AgentError::Closed) and [`Protocol`](AgentError::Protocol) are the end of the
/// connection; the others concern one operation.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// The connection is gone: the machine ended, or the client was dropped.
    #[error("the connection to the guest is closed")]
    Closed,
    /// The guest broke the protocol, so the connection was closed.
    #[error("the guest broke the protocol: {0}")]
    Protocol(String),
    /// No answer in time. The operation was cancelled.
    #[error("no answer from the guest within {0:?}")]
    Deadline(Duration),
    /// The agent refused or failed.
    #[error("{message}")]
    Remote {
        /// For programs.
        code: ErrorCode,
        /// For people; from the guest, shortened and without control characters.
        message: String,
    },
    /// More than fits: the request in a frame, or the answer in the client's limit.
    #[error("the {what} is larger than its limit of {limit} bytes")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// Too many operations on this guest at once.
    #[error("too many operations on this guest at once")]
    TooMany,
    /// The host gave no random bytes.
    #[error("the host has no random bytes to give")]
    Entropy,
}

impl AgentError {
    /// The agent's code, if it was the agent that refused.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            Self::Remote { code, .. } => Some(*code),
            _ => None,
        }
    }

    pub(super) fn protocol(text: &str) -> Self {
        Self::Protocol(text.to_owned())
    }
}

impl From<Failure> for AgentError {
    fn from(failure: Failure) -> Self {
        Self::Remote { code: failure.code, message: tame(&failure.message) }
    }
}

impl From<DecodeError> for AgentError {
    fn from(error: DecodeError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<WindowError> for AgentError {
    fn from(error: WindowError) -> Self {
        Self::Protocol(error.to_string())
    }
}

impl From<EncodeError> for AgentError {
    fn from(EncodeError::TooLong: EncodeError) -> Self {
        Self::TooLarge { what: "request", limit: pandastack_proto::MAX_PAYLOAD }
    }
}
