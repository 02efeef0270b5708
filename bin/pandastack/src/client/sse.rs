//! Server-sent events, as the API writes them.

use std::collections::VecDeque;
use std::mem;

use super::{ClientError, Reply};

/// The longest line or event that is kept; what a hostile guest logs beyond it is dropped.
const LINE_LIMIT: usize = 1 << 20;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Event {
    /// Its type; empty for a plain message.
    pub name: String,
    /// Its data, lines joined by line feeds.
    pub data: String,
}

/// Reads the events of a reply.
pub struct EventReader {
    reply: Reply,
    decoder: Decoder,
}

impl EventReader {
    /// Reads the events of `reply`.
    pub fn new(reply: Reply) -> Self {
        Self { reply, decoder: Decoder::default() }
    }

    /// The next event; `None` when the server ended the stream.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            if let Some(event) = self.decoder.next() {
                return Ok(Some(event));
            }
            match self.reply.chunk().await? {
                Some(bytes) => self.decoder.feed(&bytes),
                None => return Ok(None),
            }
        }
    }
}

/// Cuts a stream of bytes into events.
#[derive(Default)]
struct Decoder {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    ready: VecDeque<Event>,
}

impl Decoder {
    fn feed(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                let line = mem::take(&mut self.line);
                self.take_line(String::from_utf8_lossy(&line).trim_end_matches('\r'));
            } else if self.line.len() < LINE_LIMIT {
                self.line.push(byte);
            }
        }
    }

    fn next(&mut self) -> Option<Event> {
        self.ready.pop_front()
    }

    fn take_line(&mut self, line: &str) {
        if line.is_empty() {
            let event = mem::take(&mut self.event);
            if mem::take(&mut self.has_data) {
                self.ready.push_back(event);
            }
            return;
        }
        // A line that starts with a colon is a comment: it only keeps the connection alive.
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" if self.event.data.len() < LINE_LIMIT => {
                if mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_out_however_the_bytes_arrive() {
        let stream = "event: log\ndata: {\"line\":\"é\"}\n\n: ping\n\ndata: a\r\ndata: b\r\n\r\n";
        let expected = [
            Event { name: "log".into(), data: "{\"line\":\"é\"}".into() },
            Event { name: String::new(), data: "a\nb".into() },
        ];
        for size in [1, 2, 3, 7, stream.len()] {
            let mut decoder = Decoder::default();
            for piece in stream.as_bytes().chunks(size) {
                decoder.feed(piece);
            }
            let events: Vec<_> = std::iter::from_fn(|| decoder.next()).collect();
            assert_eq!(events, expected, "in pieces of {size}");
        }
    }

    #[test]
    fn an_endless_line_is_bounded() {
        let mut decoder = Decoder::default();
        decoder.feed(b"data: ");
        decoder.feed(&vec![b'x'; 2 * LINE_LIMIT]);
        decoder.feed(b"\ndata: more\n\n");
        assert!(decoder.next().unwrap().data.len() <= LINE_LIMIT);
    }
}
