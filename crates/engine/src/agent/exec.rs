//! Commands.
//!
//! ```text
//!   exec() ──▶ Stdout | Stderr … ──▶ Exit ──▶ (None for ever)
//!                   │ kill()            ▲
//!                   └───────────────────┘ with the code of SIGKILL
//! ```

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pandastack_proto::{Channel, ExecSpec, ExecStatus, Reply, Request};
use tokio::time::{Instant, timeout_at};

use super::connection::Link;
use super::stream::{Event, Handle};
use super::{AgentError, GRACE, unexpected};

/// Most bytes of each output that [`AgentClient::run`](super::AgentClient::run) keeps.
pub const MAX_RUN_OUTPUT: usize = 1 << 20;

/// What a command left behind, all in memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// How it ended.
    pub status: ExecStatus,
    /// The first [`MAX_RUN_OUTPUT`] bytes of its standard output.
    pub stdout: Vec<u8>,
    /// The first [`MAX_RUN_OUTPUT`] bytes of its standard error.
    pub stderr: Vec<u8>,
    /// Whether something was left out of either.
    pub truncated: bool,
}

/// What a command does, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExecEvent {
    /// Bytes of its standard output.
    Stdout(Bytes),
    /// Bytes of its standard error.
    Stderr(Bytes),
    /// It ended; the last event.
    Exit(ExecStatus),
}

/// A running command. Output that is not taken makes the command wait, not the host or other
/// commands. Dropping the session kills the command with all of its descendants; after
/// [`ExecEvent::Exit`] those that went on in the background live on.
pub struct ExecSession {
    handle: Arc<Handle>,
    /// When the agent must have ended the command.
    deadline: Option<Instant>,
    timeout: Duration,
    over: bool,
}

impl ExecSession {
    pub(super) fn open(link: &Arc<Link>, spec: ExecSpec) -> Result<Self, AgentError> {
        let timeout = spec.timeout_ms.map(Duration::from_millis);
        let request = Request::Exec(spec);
        let handle = Arc::new(link.open(request, &[Channel::Stdout, Channel::Stderr])?);
        Ok(Self {
            handle,
            // A timeout beyond the clock's range is none.
            deadline: timeout.and_then(|t| Instant::now().checked_add(t.checked_add(GRACE)?)),
            timeout: timeout.unwrap_or_default(),
            over: false,
        })
    }

    /// The next event; `None` after the exit. Safe to use in `select!`.
    ///
    /// A command that could not start ends in an error: the user or the directory is missing. A
    /// missing program is an exit with 127 and a line on stderr, as in a shell.
    pub async fn next(&mut self) -> Result<Option<ExecEvent>, AgentError> {
        if self.over {
            return Ok(None);
        }
        let event = match self.deadline {
            // Output that a slow reader left in the guest may come later than the exit.
            Some(deadline) => timeout_at(deadline.max(Instant::now() + GRACE), self.handle.event())
                .await
                .unwrap_or(Err(AgentError::Deadline(self.timeout.saturating_add(GRACE)))),
            None => self.handle.event().await,
        };
        let event = match event {
            Ok(Event::Data(Channel::Stdout, bytes)) => return Ok(Some(ExecEvent::Stdout(bytes))),
            Ok(Event::Data(_, bytes)) => return Ok(Some(ExecEvent::Stderr(bytes))),
            Ok(Event::End(Ok(Reply::Exited(status)))) => Ok(Some(ExecEvent::Exit(status))),
            Ok(Event::End(Ok(_)) | Event::Ready | Event::Eof) => Err(unexpected()),
            Ok(Event::End(Err(failure))) => Err(failure.into()),
            Err(error) => Err(error),
        };
        self.over = true;
        if matches!(event, Err(AgentError::Deadline(_))) {
            self.handle.reset();
        }
        event
    }

    /// Takes everything until the exit.
    pub(super) async fn output(mut self) -> Result<ExecOutput, AgentError> {
        let (mut stdout, mut stderr, mut truncated) = (Vec::new(), Vec::new(), false);
        loop {
            let (kept, bytes) = match self.next().await? {
                Some(ExecEvent::Stdout(bytes)) => (&mut stdout, bytes),
                Some(ExecEvent::Stderr(bytes)) => (&mut stderr, bytes),
                Some(ExecEvent::Exit(status)) => {
                    return Ok(ExecOutput { status, stdout, stderr, truncated });
                }
                None => return Err(AgentError::Closed),
            };
            let room = bytes.len().min(MAX_RUN_OUTPUT - kept.len());
            kept.extend_from_slice(&bytes[..room]);
            truncated |= room < bytes.len();
        }
    }

    /// Its standard input, if the spec asked for one. Close it, or the command waits for more.
    pub fn stdin(&self) -> ExecStdin {
        ExecStdin { handle: self.handle.clone() }
    }

    /// Kills the command with all of its descendants. The exit still comes, with code 137.
    pub fn kill(&self) {
        self.handle.reset();
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        // A stdin that lives on shares the handle, so its own drop would come too late.
        self.handle.reset();
    }
}

/// The standard input of a command.
#[derive(Clone)]
pub struct ExecStdin {
    handle: Arc<Handle>,
}

impl ExecStdin {
    /// Writes all of `bytes`, waiting while the command does not read. Bytes for a command that
    /// has ended go nowhere, without an error.
    pub async fn write(&self, bytes: Bytes) -> Result<(), AgentError> {
        self.handle.send(Channel::Stdin, bytes).await
    }

    /// Ends the input.
    pub fn close(&self) {
        self.handle.eof(Channel::Stdin);
    }
}
