//! The stream between host and agent: what a guest sends comes out of the host's decoder as the
//! same frames however it is cut up, never longer than a frame may be; and a structure that is
//! understood says the same when it is said again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::Script;
use pandastack_proto::{
    DecodeError, Decoder, Encoder, Hello, Incoming, Kind, MAGIC, MAX_PAYLOAD, Outcome, Sealed,
    Welcome, parse,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

const NONCE: [u8; 16] = *b"sixteen letters.";

/// What came out: a start, frames, and an error that ends it.
#[derive(Debug, PartialEq)]
enum Seen {
    Start,
    Frame(Kind, u32, Vec<u8>),
    Error(DecodeError),
}

fuzz_target!(|bytes: &[u8]| {
    let mut script = Script(bytes);
    let (Some(kind), Some(cuts)) = (script.u8(), script.take::<4>()) else { return };
    let mut stream = Vec::new();
    // Nobody guesses a mark.
    if kind & 1 == 0 {
        stream.extend(MAGIC);
        stream.extend(NONCE);
    }
    stream.extend(script.0);
    let whole = decode(Decoder::for_host(&NONCE), &stream, &[]);
    let cut = decode(Decoder::for_host(&NONCE), &stream, &cuts);
    assert_eq!(whole, cut);
    let starts = whole.iter().filter(|seen| **seen == Seen::Start).count();
    assert!(starts <= 1, "a guest cannot start a connection again");
    decode(Decoder::for_agent(), &stream, &cuts);
});

/// Feeds a stream, in pieces of these lengths by turns.
fn decode(mut decoder: Decoder, stream: &[u8], cuts: &[u8]) -> Vec<Seen> {
    let mut seen = Vec::new();
    let mut cuts = cuts.iter().map(|cut| usize::from(*cut) + 1).cycle();
    let mut rest = stream;
    while !rest.is_empty() {
        let space = decoder.space();
        assert!(!space.is_empty());
        let len = cuts.next().unwrap_or(rest.len()).min(rest.len()).min(space.len());
        let (piece, later) = rest.split_at(len);
        space[..len].copy_from_slice(piece);
        decoder.commit(len);
        rest = later;
        loop {
            match decoder.next() {
                Ok(None) => break,
                Ok(Some(Incoming::Start)) => seen.push(Seen::Start),
                Ok(Some(Incoming::Frame(frame))) => {
                    assert!(frame.payload.len() <= MAX_PAYLOAD);
                    understand(frame.kind, frame.payload);
                    seen.push(Seen::Frame(frame.kind, frame.stream, frame.payload.to_vec()));
                }
                Err(error) => {
                    assert_eq!(decoder.next().err(), Some(error), "it repeats the error");
                    if seen.last() != Some(&Seen::Error(error)) {
                        seen.push(Seen::Error(error));
                    }
                    break;
                }
            }
        }
    }
    seen
}

fn understand(kind: Kind, payload: &[u8]) {
    match kind {
        Kind::Hello => again::<Hello>(kind, payload),
        Kind::Welcome => again::<Welcome>(kind, payload),
        Kind::Request => again::<Sealed>(kind, payload),
        Kind::Reply => again::<Outcome>(kind, payload),
        Kind::Data | Kind::Eof | Kind::Credit | Kind::Reset | Kind::Ready => {}
    }
}

/// Reads a structure, writes it, and reads it again.
fn again<T: DeserializeOwned + Serialize + PartialEq + std::fmt::Debug>(
    kind: Kind,
    payload: &[u8],
) {
    let Ok(message) = parse::<T>(payload, "message") else { return };
    let mut encoder = Encoder::new();
    encoder.message(kind, 1, &message).expect("it came in a frame");
    let again = &encoder.pending()[pandastack_proto::HEADER_LEN..];
    assert_eq!(parse::<T>(again, "message"), Ok(message));
}
