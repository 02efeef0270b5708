//! Host ⇄ agent messages: small frames over one byte stream.
//!
//! This crate does no I/O. The host's client and the guest's agent feed bytes in and take bytes
//! out; both live by the rules on this page.
//!
//! # Bytes
//!
//! ```text
//!  host → agent   MAGIC(16) HELLO  REQUEST …
//!  agent → host   MAGIC(16) nonce(16) WELCOME  REPLY …
//!
//!  frame          ┌──────┬───────────┬─────────┬───────────────┐
//!                 │ kind │ stream    │ length  │ payload       │   integers little-endian,
//!                 │ u8   │ u32       │ u32     │ ≤ 160 KiB     │   structures are postcard
//!                 └──────┴───────────┴─────────┴───────────────┘
//! ```
//!
//! # Starting again
//!
//! A guest that was restored from a snapshot does not know that its host is another one: either
//! side may be in the middle of a frame of a connection that no longer exists. So every connection
//! starts with a mark that cannot occur elsewhere:
//!
//! * **towards the agent**, [`MAGIC`] never occurs inside frames. It has no byte below `0xF8`, so
//!   it is no part of a text, an integer or a header; [`plain_prefix`] splits raw data that
//!   contains it. The agent looks for it in every byte it reads, drops every stream when it comes,
//!   and reads frames from there. If the first bytes of the mark happen to fill up a frame that was
//!   cut short, they cannot make a valid request of it: none ends in such a byte.
//! * **towards the host**, the agent answers with [`MAGIC`] and the nonce of the hello. The nonce
//!   is fresh, so old bytes cannot contain it. The host throws away what comes before, at most
//!   [`MAX_STALE`] bytes.
//!
//! # A stream
//!
//! One request is one stream. The host numbers them upwards and never uses a number twice.
//!
//! ```text
//!            REQUEST                     REPLY
//!   (idle) ──────────▶ open ─────────────────────────────▶ closed
//!                       │  DATA, EOF, CREDIT both ways       ▲
//!                       │ RESET (host)                       │ REPLY
//!                       └──────────────▶ cancelling ─────────┘
//! ```
//!
//! The agent's EOF and READY are of streams that are a connection ([`Request::Dial`]): READY says that
//! it is made, at most once and before its bytes.
//!
//! Every request gets exactly one reply, and it is the last frame of its stream. A host that
//! resets a stream keeps its number until the reply, so a frame for an unknown stream is always a
//! violation on the host's side; the agent ignores frames for streams that it has closed, since
//! they may have crossed its reply.
//!
//! # Flow control
//!
//! DATA costs its bytes plus [`DATA_OVERHEAD`], and each direction of a stream starts with
//! [`INITIAL_WINDOW`]. The receiver gives credit back as it consumes. Whoever receives more than
//! it granted closes the connection. So the memory of a connection is bounded by
//! [`MAX_STREAMS`] × [`INITIAL_WINDOW`], also with tiny frames.
//!
//! # Why not HTTP/2
//!
//! It does all of this, and an agent that speaks it answers later: the code that a guest runs first
//! is translated while the client of a create waits, and every request afterwards is about
//! twice the work. `cargo xtask bench transport` measures both under the translator that a guest
//! runs on; `docs/benchmarks/transport.md` has the figures.
//!
//! # Authority
//!
//! Every request carries a token. Until the first [`Request::Resume`] it is all zero; a resume
//! replaces it, and from then on the old one is refused.
#![forbid(unsafe_code)]

mod decode;
mod encode;
mod flow;
mod frame;
mod message;
pub mod network;
#[cfg(test)]
mod tests;

pub use decode::{DecodeError, Decoder, Incoming, parse};
pub use encode::{EncodeError, Encoder};
pub use flow::{RecvWindow, SendWindow, WindowError};
pub use frame::{
    Channel, DATA_OVERHEAD, Frame, HEADER_LEN, INITIAL_WINDOW, Kind, MAGIC, MAX_DATA, MAX_PAYLOAD,
    MAX_STALE, MAX_STREAMS, NONCE_LEN, Nonce, TOKEN_LEN, Token, VERSION, nonce_from, plain_prefix,
};
pub use message::{
    Detached, DirEntry, Ended, ErrorCode, ExecSpec, ExecStatus, Failure, FileKind, Hello, Identity,
    Outcome, Reply, Request, ResumeAck, Sealed, Stats, Welcome,
};
