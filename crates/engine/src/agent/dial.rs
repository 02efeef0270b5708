//! Connections to TCP ports of a guest.
//!
//! ```text
//!   dial() ──READY──▶ GuestStream: bytes both ways, each way ended by itself ──drop──▶ reset
//!      └── refused, no answer ──▶ AgentError
//! ```
//!
//! A stream whose guest's side breaks ends in an error and never in a clean end.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use pandastack_proto::{Channel, Reply, Request};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::connection::Link;
use super::stream::{Event, Handle};
use super::{AgentError, DEADLINE, event_within, unexpected};

/// A connection to a TCP port of a guest. Dropping it breaks the connection.
pub struct GuestStream {
    handle: Handle,
    /// Arrived and not read.
    rest: Bytes,
    read: Side,
}

/// The guest's side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Open,
    Ended,
}

impl GuestStream {
    pub(super) async fn open(link: &Arc<Link>, port: u16) -> Result<Self, AgentError> {
        let handle = link.open(Request::Dial { port }, &[Channel::Tcp])?;
        match event_within(&handle, DEADLINE).await? {
            Event::Ready => Ok(Self { handle, rest: Bytes::new(), read: Side::Open }),
            Event::End(Err(failure)) => Err(failure.into()),
            Event::Data(..) | Event::Eof | Event::End(Ok(_)) => Err(unexpected()),
        }
    }

    fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() && self.read == Side::Open {
            match ready!(self.handle.poll_event(cx)).map_err(io_error)? {
                Event::Data(_, bytes) => self.rest = bytes,
                // After both sides have ended; ours may have ended first.
                Event::Eof | Event::End(Ok(Reply::Done)) => self.read = Side::Ended,
                Event::End(Err(failure)) => return Poll::Ready(Err(io_error(failure.into()))),
                Event::Ready | Event::End(Ok(_)) => {
                    return Poll::Ready(Err(io_error(unexpected())));
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

/// The error with its reason inside.
fn io_error(error: AgentError) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, error)
}

impl AsyncRead for GuestStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_fill(cx))?;
        let count = this.rest.len().min(buf.remaining());
        buf.put_slice(&this.rest[..count]);
        this.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for GuestStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.handle.poll_send(cx, Channel::Tcp, bytes).map_err(io_error)
    }

    /// What was written is on its way: nothing is held back here.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.handle.eof(Channel::Tcp);
        Poll::Ready(Ok(()))
    }
}
