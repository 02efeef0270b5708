//! Bytes in.

use serde::de::DeserializeOwned;

use crate::frame::{Frame, HEADER_LEN, Kind, MAGIC, MAX_PAYLOAD, MAX_STALE, NONCE_LEN, Nonce};

/// Why a byte stream cannot be read on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A frame of no known kind.
    #[error("a frame of unknown kind {0}")]
    Kind(u8),
    /// A frame that says it is longer than [`MAX_PAYLOAD`].
    #[error("a frame of {0} bytes")]
    Length(u32),
    /// The start of the connection did not come within [`MAX_STALE`] bytes.
    #[error("no start of the connection")]
    NoStart,
    /// A payload that is not the structure it should be.
    #[error("a malformed {0}")]
    Message(&'static str),
}

/// What a [`Decoder`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Incoming<'a> {
    /// A connection starts here. Everything before belonged to another one.
    Start,
    /// A frame of the current connection.
    Frame(Frame<'a>),
}

/// Cuts a byte stream into frames, in a buffer of fixed size.
///
/// ```text
///              mark found                 malformed
///   hunting ───────────────▶ in step ───────────────▶ lost
///      ▲                       │ ▲                      │
///      │                       └─┘ mark found           │ mark found
///      └ start                   (agent only)           ▼ (agent only)
///                                                    in step
/// ```
///
/// Bytes go into [`Decoder::space`], are announced by [`Decoder::commit`], and come out of
/// [`Decoder::next`] until it says `None`.
#[derive(Debug)]
pub struct Decoder {
    buf: Vec<u8>,
    start: usize,
    end: usize,
    mark: Mark,
    state: State,
    /// A mark was found and not reported yet.
    fresh: bool,
    /// Bytes thrown away while hunting.
    skipped: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Hunting,
    InStep,
    Lost(DecodeError),
}

/// Recognises the mark in a stream of bytes.
///
/// The first byte of the mark occurs nowhere else in it, so after a mismatch nothing but that
/// byte can be the start of another try.
#[derive(Debug)]
struct Mark {
    bytes: Vec<u8>,
    matched: usize,
    /// The agent looks for it in every byte, the host only until it was found: what comes later
    /// from a guest is hostile and may well contain it.
    always: bool,
}

impl Mark {
    /// Where in `bytes` the last complete mark ends.
    fn find(&mut self, bytes: &[u8]) -> Option<usize> {
        let mut found = None;
        let mut at = 0;
        while at < bytes.len() {
            if self.matched == 0 {
                match bytes[at..].iter().position(|&b| b == self.bytes[0]) {
                    Some(skip) => at += skip,
                    None => break,
                }
            }
            if bytes[at] == self.bytes[self.matched] {
                self.matched += 1;
            } else {
                self.matched = usize::from(bytes[at] == self.bytes[0]);
            }
            at += 1;
            if self.matched == self.bytes.len() {
                self.matched = 0;
                found = Some(at);
                if !self.always {
                    break;
                }
            }
        }
        found
    }
}

impl Decoder {
    /// Room for two frames, so that a partial one is rarely moved.
    const CAPACITY: usize = 2 * (HEADER_LEN + MAX_PAYLOAD);

    /// The agent's: starts whenever [`MAGIC`] comes by.
    pub fn for_agent() -> Self {
        Self::new(MAGIC.to_vec(), true)
    }

    /// The host's: starts once, at the echo of its nonce.
    pub fn for_host(nonce: &Nonce) -> Self {
        let mut mark = Vec::with_capacity(MAGIC.len() + NONCE_LEN);
        mark.extend_from_slice(&MAGIC);
        mark.extend_from_slice(nonce);
        Self::new(mark, false)
    }

    fn new(mark: Vec<u8>, always: bool) -> Self {
        Self {
            buf: vec![0; Self::CAPACITY],
            start: 0,
            end: 0,
            mark: Mark { bytes: mark, matched: 0, always },
            state: State::Hunting,
            fresh: false,
            skipped: 0,
        }
    }

    /// Where to put bytes. Never empty after [`Decoder::next`] has said `None`.
    pub fn space(&mut self) -> &mut [u8] {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.buf.len() - self.end < HEADER_LEN + MAX_PAYLOAD {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.buf[self.end..]
    }

    /// Notes that the first `n` bytes of [`Decoder::space`] were filled.
    pub fn commit(&mut self, n: usize) {
        let from = self.end;
        self.end = (self.end + n).min(self.buf.len());
        if !self.mark.always && self.state != State::Hunting {
            return;
        }
        match self.mark.find(&self.buf[from..self.end]) {
            Some(at) => {
                self.start = from + at;
                self.state = State::InStep;
                self.fresh = true;
            }
            None if self.state == State::InStep => {}
            None => {
                self.skipped = self.skipped.saturating_add(n);
                self.start = self.end;
            }
        }
    }

    /// The next thing in the buffer, or `None` when more bytes are needed. After an error it
    /// repeats the error, on the agent's side until the next mark.
    #[expect(clippy::should_implement_trait, reason = "it lends from the buffer")]
    pub fn next(&mut self) -> Result<Option<Incoming<'_>>, DecodeError> {
        if std::mem::take(&mut self.fresh) {
            return Ok(Some(Incoming::Start));
        }
        match self.state {
            State::Hunting if !self.mark.always && self.skipped > MAX_STALE => {
                Err(DecodeError::NoStart)
            }
            State::Hunting => Ok(None),
            State::Lost(error) => Err(error),
            State::InStep => match self.frame() {
                Ok(Some((kind, stream, from, to))) => {
                    self.start = to;
                    let payload = &self.buf[from..to];
                    Ok(Some(Incoming::Frame(Frame { kind, stream, payload })))
                }
                Ok(None) => Ok(None),
                Err(error) => {
                    self.state = State::Lost(error);
                    self.start = self.end;
                    Err(error)
                }
            },
        }
    }

    /// Kind, stream and the payload's bounds of a complete frame.
    fn frame(&self) -> Result<Option<(Kind, u32, usize, usize)>, DecodeError> {
        let bytes = &self.buf[self.start..self.end];
        let Some((header, rest)) = bytes.split_at_checked(HEADER_LEN) else { return Ok(None) };
        let kind = Kind::from_byte(header[0]).ok_or(DecodeError::Kind(header[0]))?;
        let stream = u32::from_le_bytes([header[1], header[2], header[3], header[4]]);
        let len = u32::from_le_bytes([header[5], header[6], header[7], header[8]]);
        if len as usize > MAX_PAYLOAD {
            return Err(DecodeError::Length(len));
        }
        if rest.len() < len as usize {
            return Ok(None);
        }
        let from = self.start + HEADER_LEN;
        Ok(Some((kind, stream, from, from + len as usize)))
    }
}

/// Reads a structure that must fill its payload exactly.
pub fn parse<T: DeserializeOwned>(payload: &[u8], what: &'static str) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(payload) {
        Ok((message, [])) => Ok(message),
        _ => Err(DecodeError::Message(what)),
    }
}
