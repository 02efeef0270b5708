//! One stream of a connection.
//!
//! A [`Cell`] is shared by the connection, which puts in what arrives, and a [`Handle`], which
//! takes it out. The window is what bounds the queue between them: it shrinks when a frame
//! arrives and grows when the handle's owner takes it. Nothing here ever waits for a slow owner,
//! so one stream cannot hold up another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use pandastack_proto::{Channel, Outcome, RecvWindow, SendWindow, plain_prefix};
use tokio::sync::Notify;

use super::AgentError;
use super::connection::Link;

/// What a stream brings.
#[derive(Debug)]
pub(super) enum Event {
    /// The connection that the stream is for is made.
    Ready,
    /// Raw bytes of a channel.
    Data(Channel, Bytes),
    /// The guest's side of the connection has ended.
    Eof,
    /// The reply: the last event.
    End(Outcome),
}

/// The shared half of a stream.
pub(super) struct Cell {
    /// The channels that the agent may send on.
    accepts: &'static [Channel],
    state: Mutex<State>,
    /// Something arrived.
    readable: Notify,
    /// Credit arrived.
    writable: Notify,
}

/// How far the connection is that a stream is for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Progress {
    #[default]
    Asked,
    Ready,
    Ended,
}

/// What waits in a stream.
enum Arrived {
    Data(Channel, Bytes),
    /// Never more than one of each, so they need no window.
    Progress(Progress),
}

#[derive(Default)]
struct State {
    inbox: VecDeque<Arrived>,
    progress: Progress,
    reader: Option<Waker>,
    writer: Option<Waker>,
    recv: RecvWindow,
    send: SendWindow,
    /// Set once: the reply, or why there will be none.
    end: Option<Result<Outcome, AgentError>>,
    /// The handle is gone; what still arrives is counted and dropped.
    abandoned: bool,
}

impl Cell {
    pub(super) fn new(accepts: &'static [Channel]) -> Self {
        Self { accepts, state: Mutex::default(), readable: Notify::new(), writable: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A DATA frame arrived.
    pub(super) fn deliver(&self, channel: Channel, bytes: &[u8]) -> Result<(), AgentError> {
        if !self.accepts.contains(&channel) {
            return Err(AgentError::protocol("data on a channel that the stream does not have"));
        }
        let mut state = self.lock();
        if channel == Channel::Tcp && state.progress != Progress::Ready {
            return Err(AgentError::protocol("data outside of a connection"));
        }
        state.recv.take(bytes.len())?;
        if !state.abandoned {
            // A copy of its own, so that a short frame does not pin a whole read buffer.
            self.put(state, Arrived::Data(channel, Bytes::copy_from_slice(bytes)));
        }
        Ok(())
    }

    /// A READY frame arrived.
    pub(super) fn ready(&self) -> Result<(), AgentError> {
        self.advance(Progress::Asked, Progress::Ready)
    }

    /// An EOF frame arrived.
    pub(super) fn eof(&self, channel: Channel) -> Result<(), AgentError> {
        if channel != Channel::Tcp {
            return Err(AgentError::protocol("the end of a channel that has none"));
        }
        self.advance(Progress::Ready, Progress::Ended)
    }

    fn advance(&self, from: Progress, to: Progress) -> Result<(), AgentError> {
        let mut state = self.lock();
        if !self.accepts.contains(&Channel::Tcp) || state.progress != from {
            return Err(AgentError::protocol("a connection that goes backwards"));
        }
        state.progress = to;
        if !state.abandoned {
            self.put(state, Arrived::Progress(to));
        }
        Ok(())
    }

    fn put(&self, mut state: MutexGuard<'_, State>, arrived: Arrived) {
        state.inbox.push_back(arrived);
        wake(state.reader.take());
        drop(state);
        self.readable.notify_waiters();
    }

    /// A CREDIT frame arrived.
    pub(super) fn grant(&self, credit: u32) -> Result<(), AgentError> {
        let mut state = self.lock();
        state.send.grant(credit)?;
        wake(state.writer.take());
        drop(state);
        self.writable.notify_waiters();
        Ok(())
    }

    /// The reply arrived, or the connection ended.
    pub(super) fn finish(&self, end: Result<Outcome, AgentError>) {
        let mut state = self.lock();
        state.end.get_or_insert(end);
        wake(state.reader.take());
        wake(state.writer.take());
        drop(state);
        self.readable.notify_waiters();
        self.writable.notify_waiters();
    }
}

fn wake(waker: Option<Waker>) {
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// The owner's half of a stream. Dropping it before the end cancels the stream.
pub(super) struct Handle {
    pub(super) link: Arc<Link>,
    pub(super) cell: Arc<Cell>,
    pub(super) id: u32,
}

impl Handle {
    /// The next event. Safe to drop while it waits.
    pub(super) async fn event(&self) -> Result<Event, AgentError> {
        loop {
            let mut arrived = std::pin::pin!(self.cell.readable.notified());
            arrived.as_mut().enable();
            if let Some(event) = self.take() {
                return event;
            }
            arrived.await;
        }
    }

    /// The same, for one task at a time.
    pub(super) fn poll_event(&self, cx: &mut Context<'_>) -> Poll<Result<Event, AgentError>> {
        // Before the look, so that nothing arrives in between.
        self.cell.lock().reader = Some(cx.waker().clone());
        self.take().map_or(Poll::Pending, Poll::Ready)
    }

    fn take(&self) -> Option<Result<Event, AgentError>> {
        let mut state = self.cell.lock();
        let (channel, bytes) = match state.inbox.pop_front() {
            Some(Arrived::Data(channel, bytes)) => (channel, bytes),
            Some(Arrived::Progress(Progress::Ended)) => return Some(Ok(Event::Eof)),
            Some(Arrived::Progress(_)) => return Some(Ok(Event::Ready)),
            None => return state.end.clone().map(|end| end.map(Event::End)),
        };
        let credit = state.recv.release(bytes.len()).filter(|_| state.end.is_none());
        drop(state);
        if let Some(credit) = credit {
            self.link.credit(self.id, credit);
        }
        Some(Ok(Event::Data(channel, bytes)))
    }

    /// Sends bytes as credit allows. Ends early, without an error, when the stream has ended: the
    /// reply says why. Dropped while it waits, it has sent some of the bytes.
    pub(super) async fn send(&self, channel: Channel, mut bytes: Bytes) -> Result<(), AgentError> {
        while !bytes.is_empty() {
            let mut granted = std::pin::pin!(self.cell.writable.notified());
            granted.as_mut().enable();
            let len = {
                let mut state = self.cell.lock();
                match &state.end {
                    Some(Err(error)) => return Err(error.clone()),
                    Some(Ok(_)) => return Ok(()),
                    None => {}
                }
                let len = plain_prefix(&bytes[..bytes.len().min(state.send.allowance())]);
                state.send.spend(len);
                len
            };
            if len > 0 {
                self.link.data(self.id, channel, &bytes.split_to(len))?;
            } else {
                granted.await;
            }
        }
        Ok(())
    }

    /// Sends the beginning of `bytes`, as much as credit allows, for one task at a time. An error
    /// when the stream has ended.
    pub(super) fn poll_send(
        &self,
        cx: &mut Context<'_>,
        channel: Channel,
        bytes: &[u8],
    ) -> Poll<Result<usize, AgentError>> {
        let mut state = self.cell.lock();
        match &state.end {
            Some(Ok(Err(failure))) => return Poll::Ready(Err(failure.clone().into())),
            Some(Ok(Ok(_))) => return Poll::Ready(Err(AgentError::Closed)),
            Some(Err(error)) => return Poll::Ready(Err(error.clone())),
            None => {}
        }
        let len = plain_prefix(&bytes[..bytes.len().min(state.send.allowance())]);
        if len == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        if len > 0 {
            state.send.spend(len);
            drop(state);
            self.link.data(self.id, channel, &bytes[..len])?;
        }
        Poll::Ready(Ok(len))
    }

    /// Ends a channel towards the agent.
    pub(super) fn eof(&self, channel: Channel) {
        if !self.ended() {
            self.link.eof(self.id, channel);
        }
    }

    /// Asks the agent to give the stream up. Its reply still comes.
    pub(super) fn reset(&self) {
        if !self.ended() {
            self.link.reset(self.id);
        }
    }

    fn ended(&self) -> bool {
        self.cell.lock().end.is_some()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut state = self.cell.lock();
        state.abandoned = true;
        state.inbox.clear();
        let ended = state.end.is_some();
        drop(state);
        if !ended {
            self.link.reset(self.id);
        }
    }
}
