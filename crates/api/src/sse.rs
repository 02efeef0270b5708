//! Server-sent events, in the dialect that both published client libraries read right.
//!
//! * JSON is plain ASCII, everything else as `\uXXXX`: one library decodes Latin-1 unless told
//!   otherwise and takes U+0085 and U+2028 for line ends.
//! * A chunk never ends inside a UTF-8 sequence ([`Utf8Chunks`] holds the beginning back).
//! * Blocks end in `\n\n`; a comment is sent every [`PING`], since clients give a silent
//!   connection up after 30 seconds.

use std::collections::VecDeque;
use std::io;
use std::mem;
use std::time::Duration;

use axum::body::Body;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures_util::{Stream, stream};
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use tokio::time::timeout;

/// How often a comment is sent.
pub(crate) const PING: Duration = Duration::from_secs(10);

/// The comment that keeps a connection alive.
pub(crate) const PING_BLOCK: Bytes = Bytes::from_static(b": ping\n\n");

/// One block.
pub(crate) fn block(event: Option<&str>, data: &impl Serialize) -> Bytes {
    let mut text = Vec::with_capacity(128);
    if let Some(event) = event {
        text.extend_from_slice(b"event: ");
        text.extend_from_slice(event.as_bytes());
        text.push(b'\n');
    }
    text.extend_from_slice(b"data: ");
    text.append(&mut ascii_json(data));
    text.extend_from_slice(b"\n\n");
    text.into()
}

/// A block with a number by which a client can say where it left off.
pub(crate) fn numbered(number: u64, data: &impl Serialize) -> Bytes {
    let mut text = format!("id: {number}\n").into_bytes();
    text.extend_from_slice(&block(None, data));
    text.into()
}

/// An answer made of blocks. An error breaks the connection off.
pub(crate) fn response(
    blocks: impl Stream<Item = Result<Bytes, io::Error>> + Send + 'static,
) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/event-stream; charset=utf-8"),
        (header::CACHE_CONTROL, "no-cache"),
    ];
    (headers, Body::from_stream(blocks)).into_response()
}

/// Something that goes on, and can be told in blocks.
pub(crate) trait Source: Send + 'static {
    /// Waits until there is more to tell; `false` if there never will be.
    fn more(&self) -> impl Future<Output = bool> + Send;
    /// What there is to tell since the last time.
    fn take(&mut self) -> Vec<Bytes>;
}

/// An answer that begins with `ready` and goes on until the source ends.
pub(crate) fn follow(source: impl Source, ready: impl IntoIterator<Item = Bytes>) -> Response {
    let ready: VecDeque<Bytes> = ready.into_iter().collect();
    response(stream::unfold((source, ready), |(mut source, mut ready)| async {
        loop {
            if let Some(block) = ready.pop_front() {
                return Some((Ok(block), (source, ready)));
            }
            match timeout(PING, source.more()).await {
                Ok(true) => ready.extend(source.take()),
                Ok(false) => return None,
                Err(_) => return Some((Ok(PING_BLOCK), (source, ready))),
            }
        }
    }))
}

fn ascii_json(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::with_capacity(128);
    let mut serializer = serde_json::Serializer::with_formatter(&mut text, Ascii);
    // Only maps with keys that are not strings fail, and nobody passes one.
    if value.serialize(&mut serializer).is_err() {
        return b"{}".to_vec();
    }
    text
}

struct Ascii;

impl Formatter for Ascii {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        let mut rest = fragment;
        while let Some(at) = rest.find(|c: char| !c.is_ascii() || c == '\x7F') {
            let (plain, tail) = rest.split_at(at);
            CompactFormatter.write_string_fragment(writer, plain)?;
            let Some(c) = tail.chars().next() else { break };
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(writer, "\\u{unit:04x}")?;
            }
            rest = &tail[c.len_utf8()..];
        }
        CompactFormatter.write_string_fragment(writer, rest)
    }
}

/// Turns a stream of bytes into texts that are whole.
#[derive(Debug, Default)]
pub(crate) struct Utf8Chunks {
    /// The beginning of a sequence: at most three bytes.
    held: Vec<u8>,
}

impl Utf8Chunks {
    /// The text that is whole by now. Bytes that no text can contain are replaced.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        let mut bytes = match mem::take(&mut self.held) {
            held if held.is_empty() => bytes.to_vec(),
            held => [&held, bytes].concat(),
        };
        self.held = bytes.split_off(bytes.len() - unfinished(&bytes));
        String::from_utf8(bytes)
            .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
    }

    /// What is left when no more bytes come.
    pub(crate) fn finish(&mut self) -> String {
        String::from_utf8_lossy(&mem::take(&mut self.held)).into_owned()
    }
}

/// Length of the sequence that `bytes` ends in the middle of.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = &bytes[bytes.len().saturating_sub(3)..];
    // The last byte that begins a sequence decides.
    let Some(at) = tail.iter().rposition(|byte| byte & 0xC0 != 0x80) else { return 0 };
    match std::str::from_utf8(&tail[at..]) {
        Err(error) if error.error_len().is_none() && error.valid_up_to() == 0 => tail.len() - at,
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const REPLACED: char = char::REPLACEMENT_CHARACTER;

    #[test]
    fn a_block_is_ascii_and_says_what_it_was_given() {
        for text in ["plain", "é Å", "\u{85}\u{2028}\u{2029}\x7f", "😀", "a\"\\\n\r\t\0b", ""] {
            let block = block(Some("stdout"), &json!({ "chunk": text }));
            assert!(block.is_ascii());
            let block = std::str::from_utf8(&block).unwrap();
            let data = block.strip_prefix("event: stdout\ndata: ").unwrap();
            let data = data.strip_suffix("\n\n").unwrap();
            assert!(!data.contains(['\n', '\r', '\x7f']), "{data}");
            assert_eq!(serde_json::from_str::<Value>(data).unwrap()["chunk"], text);
        }
        assert_eq!(&block(None, &json!({ "exit_code": 0 }))[..], b"data: {\"exit_code\":0}\n\n");
        assert_eq!(&numbered(7, &json!({ "n": 7 }))[..], b"id: 7\ndata: {\"n\":7}\n\n");
        assert_eq!(
            &block(None, &json!({ "chunk": "😀\u{2028}" }))[..],
            b"data: {\"chunk\":\"\\ud83d\\ude00\\u2028\"}\n\n"
        );
    }

    #[test]
    fn a_sequence_is_held_back_until_it_is_whole() {
        let mut chunks = Utf8Chunks::default();
        let emoji = "😀".as_bytes();
        assert_eq!(chunks.push(b"a"), "a");
        assert_eq!(chunks.push(&emoji[..1]), "");
        assert_eq!(chunks.push(&emoji[1..3]), "");
        assert_eq!(chunks.push(&[emoji[3], b'b', 0xC3]), "😀b");
        assert_eq!(chunks.finish(), "\u{FFFD}");
        assert_eq!(chunks.finish(), "");
    }

    #[test]
    fn what_can_never_become_text_is_not_held() {
        let mut chunks = Utf8Chunks::default();
        assert_eq!(chunks.push(b"a\x80"), "a\u{FFFD}");
        assert_eq!(chunks.push(b"\xFF"), "\u{FFFD}");
        // A surrogate: wrong at its second byte.
        assert_eq!(chunks.push(b"\xED\xA0"), "\u{FFFD}\u{FFFD}");
    }

    proptest! {
        #[test]
        fn however_text_is_cut_it_comes_out_whole(text in any::<String>(), cuts in any::<Vec<u8>>()) {
            let mut chunks = Utf8Chunks::default();
            let mut seen = String::new();
            let mut rest = text.as_bytes();
            for cut in cuts {
                let (piece, tail) = rest.split_at(rest.len().min(usize::from(cut % 7)));
                let out = chunks.push(piece);
                prop_assert!(!out.contains(REPLACED) || text.contains(REPLACED));
                seen.push_str(&out);
                rest = tail;
            }
            seen.push_str(&chunks.push(rest));
            seen.push_str(&chunks.finish());
            prop_assert_eq!(seen, text);
        }

        #[test]
        fn any_bytes_are_survived_and_little_is_held(pieces in any::<Vec<Vec<u8>>>()) {
            let mut chunks = Utf8Chunks::default();
            let mut seen = String::new();
            for piece in &pieces {
                seen.push_str(&chunks.push(piece));
                prop_assert!(chunks.held.len() <= 3);
            }
            seen.push_str(&chunks.finish());
            prop_assert_eq!(seen, String::from_utf8_lossy(&pieces.concat()).into_owned());
        }

        #[test]
        fn any_text_survives_a_block(text in any::<String>()) {
            let block = block(Some("stdout"), &json!({ "chunk": text }));
            prop_assert!(block.is_ascii());
            let block = String::from_utf8(block.to_vec()).unwrap();
            prop_assert_eq!(block.matches('\n').count(), 3);
            let data = block.trim_end().rsplit_once("data: ").unwrap().1;
            prop_assert_eq!(&serde_json::from_str::<Value>(data).unwrap()["chunk"], &json!(text));
        }
    }
}
