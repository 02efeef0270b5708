//! The REST API.
//!
//! ```text
//!   connection ─▶ access log ─▶ host guard ─▶ key check ─▶ route ─▶ domain
//!   (serve)       (access) │    (guard)       (auth)       (routes)
//!                          └──▶ preview ─▶ a server in a sandbox
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
mod egress;
mod error;
mod extract;
mod guard;
mod idempotency;
mod keyring;
mod preview;
mod rate;
mod routes;
mod serve;
mod sse;

use std::sync::Arc;
use std::time::Duration;

use pandastack_sandbox::Manager;

use idempotency::Idempotency;
use preview::{Signer, Site};
use rate::Rates;

pub use keyring::{KeyError, KeyRing};
pub use preview::{InvalidPreviewHost, PreviewHost, PreviewSecret};
pub use rate::RateLimits;
pub use serve::serve;

/// What an operator may set.
#[derive(Clone, Debug)]
pub struct Options {
    /// Most bytes of one uploaded file.
    pub max_upload_bytes: u64,
    /// Most connections at a time; more wait to be accepted.
    pub max_connections: usize,
    /// How often clients may ask.
    pub rate_limits: RateLimits,
    /// Names besides the loopback ones that a client of a loopback listener may call us by.
    pub extra_hosts: Vec<String>,
    /// Names below which the ports of sandboxes have theirs, besides `localhost`. The first one is
    /// given out.
    pub preview_hosts: Vec<PreviewHost>,
    /// What preview tokens are made with; one of this process when absent.
    pub preview_secret: Option<PreviewSecret>,
    /// How long a guest's server may leave a request without an answer.
    pub preview_patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_upload_bytes: 1 << 30,
            max_connections: 1024,
            rate_limits: RateLimits::default(),
            extra_hosts: Vec::new(),
            preview_hosts: Vec::new(),
            preview_secret: None,
            preview_patience: Duration::from_secs(60),
        }
    }
}

/// The API of one server. Cheap to clone.
#[derive(Clone)]
pub struct Api {
    pub(crate) manager: Arc<Manager>,
    pub(crate) keys: KeyRing,
    pub(crate) options: Arc<Options>,
    pub(crate) signer: Signer,
    pub(crate) idempotency: Idempotency,
    pub(crate) rates: Rates,
    /// Where it listens, once it does.
    pub(crate) site: Arc<Site>,
}

impl Api {
    /// An API for the sandboxes of `manager` and the holders of `keys`.
    pub fn new(manager: Arc<Manager>, keys: KeyRing, options: Options) -> Result<Self, KeyError> {
        let secret = options.preview_secret.clone().map_or_else(PreviewSecret::random, Ok)?;
        Ok(Self {
            manager,
            keys,
            rates: Rates::new(options.rate_limits),
            options: Arc::new(options),
            signer: Signer::new(&secret),
            idempotency: Idempotency::default(),
            site: Arc::default(),
        })
    }
}
