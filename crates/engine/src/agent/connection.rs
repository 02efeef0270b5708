//! The connection to one agent: two tasks and what they share.
//!
//! ```text
//!   handles ──▶ outbox ──▶ writer task ──▶ socket ──▶ reader task ──▶ cells ──▶ handles
//! ```
//!
//! The reader never waits for anything but the socket, and the outbox never makes a handle wait:
//! windows and the limit of open streams bound both. The first violation, by whichever task sees
//! it, ends the connection for everyone with the same error.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use pandastack_proto::{
    Channel, Decoder, Encoder, Frame, Hello, INITIAL_WINDOW, Incoming, Kind, MAX_PAYLOAD, Nonce,
    Outcome, Request, Sealed, Token, VERSION, Welcome, nonce_from, parse,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::AgentError;
use super::stream::{Cell, Handle};

/// Most streams that a client has open at once.
const MAX_OPEN: usize = 256;
/// Most bytes that wait for a guest that does not read: everything that the windows allow.
const MAX_OUTBOX: usize = MAX_OPEN * (INITIAL_WINDOW as usize + MAX_PAYLOAD);
/// A buffer that grew beyond this is given back once it is empty.
const KEEP_BUFFER: usize = 1 << 20;

/// How far the connection is.
#[derive(Clone, Debug)]
pub(super) enum Phase {
    /// No welcome yet.
    Greeting,
    /// In use.
    Open(Welcome),
    /// Over.
    Ended(AgentError),
}

struct State {
    token: Token,
    next_id: u32,
    streams: HashMap<u32, Arc<Cell>>,
    outbox: Encoder,
}

/// A connection, seen from the handles and tasks.
pub(super) struct Connection {
    state: Mutex<State>,
    /// The outbox is not empty any more, or the connection ended.
    outgoing: Notify,
    phase: watch::Sender<Phase>,
}

/// Keeps the connection up. When the last client and the last handle are gone, the tasks end and
/// the socket closes.
pub(super) struct Link {
    connection: Arc<Connection>,
    tasks: [AbortHandle; 2],
}

impl Drop for Link {
    fn drop(&mut self) {
        self.connection.end(AgentError::Closed);
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl std::ops::Deref for Link {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

/// Greets the agent at the other end of `socket` and starts the two tasks.
pub(super) fn start(socket: UnixStream) -> Arc<Link> {
    let mut random = [0; 16];
    let random = getrandom::fill(&mut random).map(|()| random);
    let nonce = nonce_from(random.unwrap_or_default());
    let connection = Arc::new(Connection::greeting(nonce));
    if random.is_err() {
        connection.end(AgentError::Entropy);
    }
    let (from_agent, to_agent) = socket.into_split();
    let reader = tokio::spawn({
        let connection = connection.clone();
        async move { connection.clone().end(connection.read(from_agent, nonce).await) }
    });
    let writer = tokio::spawn({
        let connection = connection.clone();
        async move { connection.clone().end(connection.write(to_agent).await) }
    });
    Arc::new(Link { connection, tasks: [reader.abort_handle(), writer.abort_handle()] })
}

impl Connection {
    fn greeting(nonce: Nonce) -> Self {
        let mut outbox = Encoder::new();
        outbox.magic();
        // A fixed-size message, so it fits.
        let fits = outbox.message(Kind::Hello, 0, &Hello { version: VERSION, nonce });
        debug_assert!(fits.is_ok());
        Self {
            state: Mutex::new(State {
                token: Token::default(),
                next_id: 1,
                streams: HashMap::new(),
                outbox,
            }),
            outgoing: Notify::new(),
            phase: watch::Sender::new(Phase::Greeting),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To watch how far the connection is.
    pub(super) fn phase(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Authorises the requests from now on.
    pub(super) fn token(&self) -> Token {
        self.lock().token
    }

    pub(super) fn set_token(&self, token: Token) {
        self.lock().token = token;
    }

    pub(super) fn credit(&self, id: u32, credit: u32) {
        self.queue(|outbox| outbox.credit(id, credit));
    }

    pub(super) fn eof(&self, id: u32, channel: Channel) {
        self.queue(|outbox| outbox.eof(id, channel));
    }

    pub(super) fn reset(&self, id: u32) {
        self.queue(|outbox| outbox.reset(id));
    }

    pub(super) fn data(&self, id: u32, channel: Channel, bytes: &[u8]) -> Result<(), AgentError> {
        self.queue(|outbox| outbox.data(id, channel, bytes))?;
        Ok(())
    }

    fn queue<T>(&self, put: impl FnOnce(&mut Encoder) -> T) -> T {
        let mut state = self.lock();
        let result = put(&mut state.outbox);
        let full = state.outbox.len() > MAX_OUTBOX;
        drop(state);
        if full {
            self.end(AgentError::protocol("it does not read what it is sent"));
        }
        self.outgoing.notify_one();
        result
    }

    /// Ends the connection for everyone. The first reason stays.
    fn end(&self, reason: AgentError) {
        let first = self.phase.send_if_modified(|phase| {
            let first = !matches!(phase, Phase::Ended(_));
            if first {
                *phase = Phase::Ended(reason.clone());
            }
            first
        });
        if first {
            if let AgentError::Protocol(text) = &reason {
                tracing::warn!(violation = text, "closing the connection to a guest");
            }
            let streams = std::mem::take(&mut self.lock().streams);
            streams.values().for_each(|cell| cell.finish(Err(reason.clone())));
            self.outgoing.notify_one();
        }
    }

    fn ended(&self) -> Option<AgentError> {
        match &*self.phase.borrow() {
            Phase::Ended(reason) => Some(reason.clone()),
            _ => None,
        }
    }

    /// Sends the outbox until the connection ends.
    async fn write(&self, mut socket: OwnedWriteHalf) -> AgentError {
        let mut batch = Encoder::new();
        loop {
            if let Some(reason) = self.ended() {
                return reason;
            }
            std::mem::swap(&mut self.lock().outbox, &mut batch);
            if batch.is_empty() {
                self.outgoing.notified().await;
                continue;
            }
            let ended = async {
                let _ = self.phase().wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
            };
            tokio::select! {
                written = socket.write_all(batch.pending()) => if written.is_err() {
                    return AgentError::Closed;
                },
                () = ended => {}
            }
            if batch.capacity() > KEEP_BUFFER {
                batch = Encoder::new();
            }
            batch.clear();
        }
    }

    /// Reads frames until the connection ends.
    async fn read(&self, mut socket: OwnedReadHalf, nonce: Nonce) -> AgentError {
        let mut decoder = Decoder::for_host(&nonce);
        let mut phase = self.phase();
        loop {
            let count = tokio::select! {
                count = socket.read(decoder.space()) => count,
                _ = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))) => Ok(0),
            };
            match count {
                Ok(count) if count > 0 => decoder.commit(count),
                _ => return AgentError::Closed,
            }
            loop {
                let step = match decoder.next() {
                    Ok(None) => break,
                    Ok(Some(Incoming::Start)) => Ok(()),
                    Ok(Some(Incoming::Frame(frame))) => self.dispatch(frame),
                    Err(error) => Err(error.into()),
                };
                if let Err(reason) = step {
                    return reason;
                }
            }
        }
    }

    fn dispatch(&self, frame: Frame<'_>) -> Result<(), AgentError> {
        if frame.kind == Kind::Welcome {
            return self.welcome(parse(frame.payload, "welcome")?);
        }
        if matches!(*self.phase.borrow(), Phase::Greeting) {
            return Err(AgentError::protocol("a frame before the welcome"));
        }
        let unknown = || AgentError::protocol("a frame of a stream that is not open");
        match frame.kind {
            Kind::Reply => {
                let outcome: Outcome = parse(frame.payload, "reply")?;
                let cell = self.lock().streams.remove(&frame.stream).ok_or_else(unknown)?;
                cell.finish(Ok(outcome));
                Ok(())
            }
            Kind::Data => {
                let (channel, bytes) =
                    frame.channel().ok_or_else(|| AgentError::protocol("an unknown channel"))?;
                self.cell(frame.stream).ok_or_else(unknown)?.deliver(channel, bytes)
            }
            Kind::Credit => {
                let credit =
                    frame.credit().ok_or_else(|| AgentError::protocol("a malformed credit"))?;
                self.cell(frame.stream).ok_or_else(unknown)?.grant(credit)
            }
            Kind::Ready => self.cell(frame.stream).ok_or_else(unknown)?.ready(),
            Kind::Eof => {
                let (channel, _) =
                    frame.channel().ok_or_else(|| AgentError::protocol("an unknown channel"))?;
                self.cell(frame.stream).ok_or_else(unknown)?.eof(channel)
            }
            Kind::Hello | Kind::Welcome | Kind::Request | Kind::Reset => {
                Err(AgentError::protocol("a frame that only a host sends"))
            }
        }
    }

    fn welcome(&self, welcome: Welcome) -> Result<(), AgentError> {
        if welcome.version != VERSION {
            return Err(AgentError::protocol("it speaks another version"));
        }
        let first = self.phase.send_if_modified(|phase| {
            let first = matches!(phase, Phase::Greeting);
            if first {
                *phase = Phase::Open(welcome);
            }
            first
        });
        if first { Ok(()) } else { Err(AgentError::protocol("a second welcome")) }
    }

    fn cell(&self, id: u32) -> Option<Arc<Cell>> {
        self.lock().streams.get(&id).cloned()
    }
}

impl Link {
    /// Opens a stream. The request waits in the outbox if the agent is not there yet.
    pub(super) fn open(
        self: &Arc<Self>,
        request: Request,
        accepts: &'static [Channel],
    ) -> Result<Handle, AgentError> {
        let cell = Arc::new(Cell::new(accepts));
        let mut state = self.lock();
        if state.streams.len() >= MAX_OPEN {
            return Err(AgentError::TooMany);
        }
        let id = state.next_id;
        let sealed = Sealed { token: state.token, request };
        state.outbox.message(Kind::Request, id, &sealed)?;
        // Four thousand million requests: at a thousand a second, a month and a half.
        state.next_id = id.checked_add(1).ok_or(AgentError::TooMany)?;
        state.streams.insert(id, cell.clone());
        drop(state);
        // Looked at after the insertion, so that either this or `end` sees the other.
        if let Some(reason) = self.ended() {
            self.lock().streams.remove(&id);
            return Err(reason);
        }
        self.outgoing.notify_one();
        Ok(Handle { link: self.clone(), cell, id })
    }
}
