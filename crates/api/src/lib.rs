//! The REST API.
//!
//! ```text
//!   connection ─▶ access log ─▶ host guard ─▶ key check ─▶ route ─▶ domain
//!   (serve)       (access)      (guard)       (auth)       (routes)
//! ```
//!
//! Nothing is decided here about sandboxes: a route reads a request into the domain's types,
//! calls the domain, and writes its answer. Two promises are kept for every answer:
//!
//! * **Everything that is not a success is `{"error": "…"}`**, also what the HTTP library
//!   would say by itself (`error` is the only place that makes such answers).
//! * **A stream that ends without its last event is broken off, never closed in good order**:
//!   client libraries take a clean end for success.
#![forbid(unsafe_code)]

mod access;
mod auth;
mod body;
mod error;
mod extract;
mod guard;
mod keyring;
mod routes;
mod serve;
mod sse;

use std::sync::Arc;

use pandastack_sandbox::Manager;

pub use keyring::{KeyError, KeyRing};
pub use serve::serve;

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of one uploaded file.
    pub max_upload_bytes: u64,
    /// Most connections at a time; more wait to be accepted.
    pub max_connections: usize,
    /// Names besides the loopback ones that a client of a loopback listener may call us by.
    pub extra_hosts: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self { max_upload_bytes: 1 << 30, max_connections: 1024, extra_hosts: Vec::new() }
    }
}

/// The API of one server. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub(crate) manager: Arc<Manager>,
    pub(crate) keys: KeyRing,
    pub(crate) options: Arc<Options>,
}

impl Api {
    /// An API for the sandboxes of `manager` and the holders of `keys`.
    pub fn new(manager: Arc<Manager>, keys: KeyRing, options: Options) -> Self {
        Self { manager, keys, options: Arc::new(options) }
    }
}
