//! The frames of an attached command's answer.
//!
//! ```text
//!  ┌─────────┬────────────────┬─────────────┐
//!  │ channel │ length, u32 BE │ bytes       │   1 stdout   3 exit, JSON
//!  └─────────┴────────────────┴─────────────┘   2 stderr   4 error, JSON
//! ```
//!
//! Output is handed on as it arrives, so a frame may be longer than memory allows; only the
//! two small JSON frames are kept until they are whole, and those are bounded.

use bytes::{Buf, Bytes, BytesMut};
use serde::Deserialize;

/// The longest JSON frame.
const JSON_LIMIT: u32 = 64 << 10;
const HEADER_LEN: usize = 5;

/// A frame, or as much of an output frame as has arrived.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Bytes of standard output.
    Stdout(Bytes),
    /// Bytes of standard error.
    Stderr(Bytes),
    /// The command is over. The last frame.
    Exit(Exit),
    /// The command could not be run, or is lost. The last frame.
    Error(String),
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
pub struct Exit {
    /// Exit status, or 128 + the signal's number.
    pub exit_code: i32,
    /// Whether its deadline ended it.
    #[serde(default)]
    pub timed_out: bool,
}

#[derive(Deserialize)]
struct Failure {
    error: String,
}

/// Bytes that are no frame.
#[derive(Debug, thiserror::Error)]
pub enum BadFrame {
    /// A channel that does not exist.
    #[error("the server sent a frame of the unknown channel {0}")]
    Channel(u8),
    /// A JSON frame that is too long to be one.
    #[error("the server sent a status of {0} bytes")]
    TooLong(u32),
    /// A JSON frame that does not say what it should.
    #[error("the server sent a status that makes no sense")]
    Json(#[from] serde_json::Error),
}

#[derive(Clone, Copy)]
enum Channel {
    Stdout,
    Stderr,
    Exit,
    Error,
}

/// Cuts a stream of bytes into frames.
#[derive(Default)]
pub struct Decoder {
    buffer: BytesMut,
    /// The frame whose header has been read, and how much of it is missing.
    open: Option<(Channel, u32)>,
}

impl Decoder {
    /// Takes bytes as they arrive.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame, if enough of it is there.
    pub fn next(&mut self) -> Result<Option<Frame>, BadFrame> {
        loop {
            let Some((channel, missing)) = self.open else {
                if !self.open_frame()? {
                    return Ok(None);
                }
                continue;
            };
            let ready = u32::try_from(self.buffer.len()).unwrap_or(u32::MAX).min(missing);
            let whole = ready == missing;
            if !whole && (ready == 0 || matches!(channel, Channel::Exit | Channel::Error)) {
                return Ok(None);
            }
            let bytes = self.buffer.split_to(ready as usize).freeze();
            self.open = if whole { None } else { Some((channel, missing - ready)) };
            return Ok(Some(match channel {
                Channel::Stdout => Frame::Stdout(bytes),
                Channel::Stderr => Frame::Stderr(bytes),
                Channel::Exit => Frame::Exit(serde_json::from_slice(&bytes)?),
                Channel::Error => Frame::Error(serde_json::from_slice::<Failure>(&bytes)?.error),
            }));
        }
    }

    /// Reads a header, if it is there.
    fn open_frame(&mut self) -> Result<bool, BadFrame> {
        if self.buffer.len() < HEADER_LEN {
            return Ok(false);
        }
        let channel = match self.buffer.get_u8() {
            1 => Channel::Stdout,
            2 => Channel::Stderr,
            3 => Channel::Exit,
            4 => Channel::Error,
            other => return Err(BadFrame::Channel(other)),
        };
        let length = self.buffer.get_u32();
        if matches!(channel, Channel::Exit | Channel::Error) && length > JSON_LIMIT {
            return Err(BadFrame::TooLong(length));
        }
        self.open = Some((channel, length));
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(channel: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap();
        [&[channel][..], &length.to_be_bytes(), payload].concat()
    }

    /// All frames of `stream`, cut into pieces of `size`, with output joined per run.
    fn decode(stream: &[u8], size: usize) -> Result<Vec<Frame>, BadFrame> {
        let mut decoder = Decoder::default();
        let mut frames: Vec<Frame> = Vec::new();
        for piece in stream.chunks(size) {
            decoder.feed(piece);
            while let Some(frame) = decoder.next()? {
                match (frames.last_mut(), frame) {
                    (Some(Frame::Stdout(all)), Frame::Stdout(more))
                    | (Some(Frame::Stderr(all)), Frame::Stderr(more)) => {
                        *all = [&all[..], &more[..]].concat().into();
                    }
                    (_, frame) => frames.push(frame),
                }
            }
        }
        Ok(frames)
    }

    #[test]
    fn frames_come_out_however_the_bytes_arrive() {
        let every_byte: Vec<u8> = (0..=255).collect();
        let stream = [
            frame(1, &every_byte),
            frame(2, b"oops\n"),
            frame(1, b""),
            frame(3, br#"{"exit_code":143,"timed_out":true}"#),
        ]
        .concat();
        for size in [1, 2, 5, 6, 64, stream.len()] {
            let frames = decode(&stream, size).unwrap();
            let expected = [
                Frame::Stdout(every_byte.clone().into()),
                Frame::Stderr(Bytes::from_static(b"oops\n")),
                Frame::Stdout(Bytes::new()),
                Frame::Exit(Exit { exit_code: 143, timed_out: true }),
            ];
            assert_eq!(frames, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn long_output_is_handed_on_before_its_frame_is_whole() {
        let mut decoder = Decoder::default();
        decoder.feed(&[1, 0xff, 0xff, 0xff, 0xff, b'a', b'b']);
        let first = decoder.next().unwrap();
        assert_eq!(first, Some(Frame::Stdout(Bytes::from_static(b"ab"))));
        assert_eq!(decoder.next().unwrap(), None);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(matches!(decode(&frame(9, b"x"), 99), Err(BadFrame::Channel(9))));
        assert!(matches!(decode(&frame(3, b"{}"), 99), Err(BadFrame::Json(_))));
        let huge = [3, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(decode(&huge, 99), Err(BadFrame::TooLong(_))));
        let failure = decode(&frame(4, br#"{"error":"no such user"}"#), 99).unwrap();
        assert_eq!(failure, [Frame::Error("no such user".into())]);
    }
}
