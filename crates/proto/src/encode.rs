//! Bytes out.

use std::io;

use serde::Serialize;

use crate::frame::{Channel, HEADER_LEN, Kind, MAGIC, MAX_DATA, MAX_PAYLOAD, Nonce};

/// A message that does not fit in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// More than [`MAX_PAYLOAD`] bytes.
    #[error("the message is longer than a frame")]
    TooLong,
}

/// A queue of encoded bytes.
///
/// ```text
///   buf   │ sent │ pending │ initialised spare │
///         0      start     end                 len
/// ```
///
/// The spare part is kept initialised between uses: the agent reads pipes straight into it, and
/// clearing 32 KiB for every read is what an emulated CPU can do without.
#[derive(Debug, Default)]
pub struct Encoder {
    buf: Vec<u8>,
    start: usize,
    end: usize,
}

impl Encoder {
    /// An empty queue.
    pub fn new() -> Self {
        Self::default()
    }

    /// What waits to be sent.
    pub fn pending(&self) -> &[u8] {
        &self.buf[self.start..self.end]
    }

    /// Length of [`Encoder::pending`].
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Notes that the first `n` pending bytes were sent.
    pub fn advance(&mut self, n: usize) {
        self.start = (self.start + n).min(self.end);
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        }
    }

    /// Bytes of memory that it holds.
    pub fn capacity(&self) -> usize {
        self.buf.len()
    }

    /// Forgets what waits.
    pub fn clear(&mut self) {
        self.start = 0;
        self.end = 0;
    }

    /// Queues the mark of a new connection, towards the agent.
    pub fn magic(&mut self) {
        self.raw(&MAGIC);
    }

    /// Queues the mark of a new connection, towards the host.
    pub fn echo(&mut self, nonce: &Nonce) {
        self.raw(&MAGIC);
        self.raw(nonce);
    }

    /// Queues a frame with a structure in it. Nothing is queued when it does not fit.
    pub fn message<T: Serialize>(
        &mut self,
        kind: Kind,
        stream: u32,
        message: &T,
    ) -> Result<(), EncodeError> {
        let head = self.end;
        let room = self.room(HEADER_LEN + MAX_PAYLOAD);
        let (header, payload) = room.split_at_mut(HEADER_LEN);
        let len = postcard::to_slice(message, payload).map_err(|_| EncodeError::TooLong)?.len();
        put_header(header, kind, stream, len);
        debug_assert_eq!(head, self.end);
        self.end += HEADER_LEN + len;
        Ok(())
    }

    /// Queues a DATA frame with `bytes`, at most [`MAX_DATA`] of them.
    pub fn data(&mut self, stream: u32, channel: Channel, bytes: &[u8]) -> Result<(), EncodeError> {
        if bytes.len() > MAX_DATA {
            return Err(EncodeError::TooLong);
        }
        let filled = self.data_with(stream, channel, bytes.len(), |room| {
            room.copy_from_slice(bytes);
            Ok(bytes.len())
        });
        debug_assert!(filled.is_ok());
        Ok(())
    }

    /// Queues a DATA frame whose bytes `fill` writes, at most `max` of them, and returns how many
    /// it wrote. Nothing is queued when it wrote none or failed.
    pub fn data_with(
        &mut self,
        stream: u32,
        channel: Channel,
        max: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let max = max.min(MAX_DATA);
        let room = self.room(HEADER_LEN + 1 + max);
        let n = fill(&mut room[HEADER_LEN + 1..])?.min(max);
        if n > 0 {
            put_header(room, Kind::Data, stream, n + 1);
            room[HEADER_LEN] = channel as u8;
            self.end += HEADER_LEN + 1 + n;
        }
        Ok(n)
    }

    /// Queues a DATA frame with a structure in it, and returns how many bytes that is. Nothing is
    /// queued when it does not fit.
    pub fn data_message<T: Serialize>(
        &mut self,
        stream: u32,
        channel: Channel,
        message: &T,
    ) -> Result<usize, EncodeError> {
        self.data_with(stream, channel, MAX_DATA, |room| {
            let written = postcard::to_slice(message, room).map_err(io::Error::other)?;
            Ok(written.len())
        })
        .map_err(|_| EncodeError::TooLong)
    }

    /// Queues the end of a channel.
    pub fn eof(&mut self, stream: u32, channel: Channel) {
        self.small(Kind::Eof, stream, &[channel as u8]);
    }

    /// Queues credit for the other side.
    pub fn credit(&mut self, stream: u32, credit: u32) {
        self.small(Kind::Credit, stream, &credit.to_le_bytes());
    }

    /// Queues the news that a stream's connection is made.
    pub fn ready(&mut self, stream: u32) {
        self.small(Kind::Ready, stream, &[]);
    }

    /// Queues the cancellation of a stream.
    pub fn reset(&mut self, stream: u32) {
        self.small(Kind::Reset, stream, &[]);
    }

    fn small(&mut self, kind: Kind, stream: u32, payload: &[u8]) {
        let room = self.room(HEADER_LEN + payload.len());
        put_header(room, kind, stream, payload.len());
        room[HEADER_LEN..].copy_from_slice(payload);
        self.end += HEADER_LEN + payload.len();
    }

    fn raw(&mut self, bytes: &[u8]) {
        self.room(bytes.len()).copy_from_slice(bytes);
        self.end += bytes.len();
    }

    /// Exactly `n` initialised bytes behind what is pending.
    fn room(&mut self, n: usize) -> &mut [u8] {
        if self.start > 0 && self.end + n > self.buf.len() {
            self.buf.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        if self.end + n > self.buf.len() {
            self.buf.resize(self.end + n, 0);
        }
        &mut self.buf[self.end..self.end + n]
    }
}

fn put_header(out: &mut [u8], kind: Kind, stream: u32, len: usize) {
    out[0] = kind as u8;
    out[1..5].copy_from_slice(&stream.to_le_bytes());
    out[5..HEADER_LEN].copy_from_slice(&(len as u32).to_le_bytes());
}
