//! Connections into a guest.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use pandastack_engine::agent::{AgentError, ErrorCode, GuestStream};
use pandastack_types::State;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;

use super::{MAX_CONNECTIONS, Port};
use crate::error::Unavailable;
use crate::sandbox::{Busy, Sandbox};

/// A connection to a port of a guest. While it exists the sandbox does not count as idle; it breaks
/// when the sandbox ends, and stands still while the sandbox is paused.
pub struct Connection {
    stream: GuestStream,
    _turn: OwnedSemaphorePermit,
    _busy: Busy,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// The guest cannot be asked, or ended meanwhile.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// Nothing listens there.
    #[error("nothing in the sandbox listens on port {0}; start the server, or wait until it is up")]
    Refused(Port),
    /// Whatever listens there did not answer.
    #[error("port {0} of the sandbox did not take the connection in time")]
    TimedOut(Port),
    /// As many connections as it may have.
    #[error(
        "the sandbox has its limit of {MAX_CONNECTIONS} connections; close some, or try again \
         later"
    )]
    TooMany,
    /// The conversation with the guest failed.
    #[error("the guest agent failed")]
    Agent(#[source] AgentError),
}

impl Sandbox {
    /// Connects to a TCP port of the guest's own loopback.
    pub async fn dial(self: &Arc<Self>, port: Port) -> Result<Connection, DialError> {
        let (agent, busy) = self.guest().await?;
        let turn = self.ingress().turns.clone().try_acquire_owned();
        let turn = turn.map_err(|_| DialError::TooMany)?;
        match agent.dial(port.number()).await {
            Ok(stream) => Ok(Connection { stream, _turn: turn, _busy: busy }),
            Err(error) => Err(explain(self, port, error).await),
        }
    }
}

/// What a failure of the agent means to whoever wanted a connection.
async fn explain(sandbox: &Arc<Sandbox>, port: Port, error: AgentError) -> DialError {
    match &error {
        AgentError::Closed | AgentError::Protocol(_) => match sandbox.explanation().await {
            Some(ended) => ended.into(),
            None => DialError::Agent(error),
        },
        // A guest that stands still answers nothing.
        AgentError::Deadline(_) if sandbox.state() != State::Running => {
            sandbox.unavailable().into()
        }
        AgentError::Deadline(_) => DialError::TimedOut(port),
        AgentError::TooMany => DialError::TooMany,
        AgentError::Remote { code: ErrorCode::Refused, .. } => DialError::Refused(port),
        AgentError::Remote { code: ErrorCode::TimedOut, .. } => DialError::TimedOut(port),
        AgentError::Remote { code: ErrorCode::TooMany, .. } => DialError::TooMany,
        AgentError::Remote { .. } | AgentError::TooLarge { .. } | AgentError::Entropy => {
            DialError::Agent(error)
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
