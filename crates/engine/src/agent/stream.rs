//! One stream of a connection.
//!
//! A [`Cell`] is shared by the connection, which puts in what arrives, and a [`Handle`], which
//! takes it out. The window is what bounds the queue between them: it shrinks when a frame
//! arrives and grows when the handle's owner takes it. Nothing here ever waits for a slow owner,
//! so one stream cannot hold up another.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use pandastack_proto::{Channel, Outcome, RecvWindow, SendWindow, plain_prefix};
use tokio::sync::Notify;

use super::AgentError;
use super::connection::Link;

/// What a stream brings.
#[derive(Debug)]
pub(super) enum Event {
    /// Raw bytes of a channel.
    Data(Channel, Bytes),
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

#[derive(Default)]
struct State {
    inbox: VecDeque<(Channel, Bytes)>,
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
        state.recv.take(bytes.len())?;
        if !state.abandoned {
            // A copy of its own, so that a short frame does not pin a whole read buffer.
            state.inbox.push_back((channel, Bytes::copy_from_slice(bytes)));
            drop(state);
            self.readable.notify_waiters();
        }
        Ok(())
    }

    /// A CREDIT frame arrived.
    pub(super) fn grant(&self, credit: u32) -> Result<(), AgentError> {
        self.lock().send.grant(credit)?;
        self.writable.notify_waiters();
        Ok(())
    }

    /// The reply arrived, or the connection ended.
    pub(super) fn finish(&self, end: Result<Outcome, AgentError>) {
        self.lock().end.get_or_insert(end);
        self.readable.notify_waiters();
        self.writable.notify_waiters();
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

    fn take(&self) -> Option<Result<Event, AgentError>> {
        let mut state = self.cell.lock();
        let Some((channel, bytes)) = state.inbox.pop_front() else {
            let end = state.end.clone()?;
            return Some(end.map(Event::End));
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
