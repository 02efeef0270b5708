//! The harness of the tests and benchmarks that use the real server with real guests.
//!
//! A [`Server`] is a process of its own with a data directory of its own; templates are shared
//! between all of them, because building them takes minutes. `cargo xtask test` builds the
//! program and the templates first and says where they are.

mod client;
mod process;
mod server;
mod stress;

pub use client::{Answer, Client, Sandbox, Tree};
pub use process::{descendants, machines_below, open_descriptors, wait_until};
pub use server::{Options, Server, program, shared_data};
pub use stress::Stress;
