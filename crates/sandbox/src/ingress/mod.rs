//! What of a sandbox may be reached from outside, and the way in.
//!
//! A connection goes through the guest's agent to the guest's own loopback, so no network of the
//! sandbox takes part in it: a server on 127.0.0.1 is reached, and a policy that closes the network
//! closes nothing here. Two invariants:
//!
//! * **A port is private until somebody says otherwise** ([`Ingress::expose`]), and that is about
//!   this sandbox alone: a fork, a snapshot and what is made of it start with nothing exposed.
//! * **Connections never use up what commands need**: at most [`MAX_CONNECTIONS`] of the agent's
//!   streams are theirs.

mod dial;
mod ports;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Semaphore;

use crate::sync::lock;

pub use dial::{Connection, DialError};
pub use ports::{Exposed, Port, PortError, Ports};

/// Most connections into a sandbox at a time: half of what its agent's client takes.
pub const MAX_CONNECTIONS: usize = 128;

/// The ways into one sandbox.
pub struct Ingress {
    ports: Mutex<Ports>,
    turns: Arc<Semaphore>,
    keys: AtomicU32,
}

impl Default for Ingress {
    fn default() -> Self {
        Self {
            ports: Mutex::default(),
            turns: Arc::new(Semaphore::new(MAX_CONNECTIONS)),
            keys: AtomicU32::new(0),
        }
    }
}

impl Ingress {
    /// Lists a port; it replaces what was said of it before.
    pub fn expose(&self, port: Port, exposed: Exposed) -> Result<(), PortError> {
        lock(&self.ports).expose(port, exposed)
    }

    /// Takes a port off the list, which makes it private. Says whether it was listed.
    pub fn close(&self, port: Port) -> bool {
        lock(&self.ports).close(port)
    }

    /// Whether anybody may reach the port.
    pub fn is_public(&self, port: Port) -> bool {
        lock(&self.ports).get(port).is_some_and(|exposed| exposed.public)
    }

    /// What is listed.
    pub fn exposed(&self) -> Ports {
        lock(&self.ports).clone()
    }

    /// How often the sandbox's tokens were made void. Part of what every one of them is made of.
    pub fn generation(&self) -> u32 {
        self.keys.load(Ordering::SeqCst)
    }

    /// Makes every token that was given out for this sandbox void.
    pub fn revoke(&self) {
        self.keys.fetch_add(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_private_until_somebody_says_otherwise() {
        let ingress = Ingress::default();
        let port: Port = "8000".parse().unwrap();
        let listed = |public| Exposed { label: None, public };
        assert!(!ingress.is_public(port));
        ingress.expose(port, listed(false)).unwrap();
        assert!(!ingress.is_public(port));
        ingress.expose(port, listed(true)).unwrap();
        assert!(ingress.is_public(port));
        assert!(ingress.close(port) && !ingress.close(port));
        assert!(!ingress.is_public(port));
    }

    #[test]
    fn every_revocation_is_another_generation() {
        let ingress = Ingress::default();
        let before = ingress.generation();
        ingress.revoke();
        assert_ne!(ingress.generation(), before);
    }
}
