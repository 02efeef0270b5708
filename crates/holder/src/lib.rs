//! The holder: a small process that keeps the machines of sandboxes while there is no server.
//!
//! A server that is killed leaves its sandboxes running. What it could reach them by, their
//! sockets and pidfds, is also here; the next server of the same directory takes it over. The
//! invariant: **nothing outlives both, and nothing its time.** Every machine hangs on a lifeline
//! whose end is among its descriptors, so one that nobody holds ends; and while there is no server
//! the holder ends each machine when its time is over ([`Until`]).
//!
//! ```text
//!   server ──Hold, Until, Release──▶ holder ─── the server dies ──▶ holder alone: ends machines
//!      ▲     (one-way datagrams)                                       │ in time, and itself
//!      │                                                               │ after the last one
//!   next server ──connects, Take──▶ holder ──every machine it has──▶ next server
//! ```
//!
//! Messages are one-way, so a server never waits for the holder: the kernel keeps what it sent
//! before it died. The holder reads nothing that a guest wrote, opens no file and uses no network.
//! If it dies, its server notices and gives another one everything anew.
#![forbid(unsafe_code)]

mod client;
mod place;
mod process;
mod wire;

pub use client::{Hold, Holder, Launch, look};
pub use process::serve;
pub use wire::{Held, Until};
