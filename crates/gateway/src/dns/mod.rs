//! DNS: the gateway answers every question of a guest itself.
//!
//! The invariant: **of what a guest writes, nothing but a name that its policy allows and one of
//! four types reaches another machine.** A question to a resolver is made from those two, a random
//! id and nothing else; so options, padding, further records and the case of letters carry nothing
//! out. An answer to the guest is made from records that were read and judged, never copied.
//!
//! ```text
//!   guest ── packet ─▶ Query::parse ── name ─▶ Policy::name ── no ─▶ NXDOMAIN, by ourselves
//!                                                  │ yes
//!            another type than A, AAAA, HTTPS, SVCB│ ─────────────▶ no data, by ourselves
//!                                                  ▼
//!                                        question ─▶ resolver 0, 1, 2: one socket each
//!                                                  │ answer, or its time is over
//!                     Policy::answer drops ◀── addresses      names of the chain ─▶ Policy::name
//!                                                  ▼
//!   guest ◀── our packet ◀── Pin: what this sandbox was told
//! ```
//!
//! Everything here is pure: packets and times come in, [`Step`]s come out. Whoever has the sockets
//! does them.
//!
//! The codec is our own. The usual crates bring tables for international names and an asynchronous
//! runtime into a small confined program; what is needed of DNS here fits into a few short files
//! that are fuzzed.
//!
//! # What fails how
//!
//! musl waits for its whole timeout when it reads REFUSED or NOTIMP, and glibc asks again; both
//! stop at once at NXDOMAIN and at an answer without data. So a name that is not allowed does not
//! exist, and another type of an allowed name has no data. REFUSED is for what libc never asks:
//! another class, the root. Who asks with EDNS gets the reason in text (RFC 8914).

mod answer;
mod message;
mod query;
mod reply;
mod resolver;
mod service;
mod tell;
#[cfg(test)]
mod tests;

pub use answer::{Answer, AnswerError};
pub use message::{RecordType, Transport};
pub use query::{Query, QueryError};
pub use resolver::{Key, Line, Resolver, Step};

/// The longest answer over UDP, which every path carries in one piece.
pub const MAX_UDP: u16 = 1232;
