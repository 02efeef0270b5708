//! What the server and the gateway say to each other.
//!
//! One message is one datagram of a `SOCK_SEQPACKET` socket, in JSON, which is what a policy can be
//! read from. [`Request::Attach`] comes with one descriptor: the socket of a machine's frames.
//!
//! ```text
//!   Settings ─▶ Attach ─▶ Policy … ─▶ Detach        each answered by Done or Refused
//!                  └─ Log, Log, …                    unasked
//! ```

use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pandastack_datagram::Limits;
pub use pandastack_datagram::WireError;
use pandastack_policy::{Policy, Site};
use pandastack_types::EgressEntry;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Longest message in bytes: a policy of the longest that there is, and what is around it.
pub const MAX_MESSAGE: usize = 96 << 10;
/// Longest policy in bytes, in JSON.
pub const MAX_POLICY: usize = Policy::MAX_LEN;
/// Names one network for as long as it is attached; never used twice.
pub type NetworkId = u64;

/// What is the same for all networks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The place where sandboxes run.
    pub site: Site,
    /// Resolvers that allowed names are asked of, in order of preference.
    pub resolvers: Vec<SocketAddr>,
}

/// A request with the number that its answer will have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Chosen by the server.
    pub number: u64,
    /// What is asked for.
    pub request: Request,
}

/// From the server.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Replaces the settings. The first request.
    Settings(Settings),
    /// Begins to serve a network under a policy. Comes with the socket of its frames.
    Attach {
        /// Which.
        network: NetworkId,
        /// What may be reached.
        policy: Policy,
    },
    /// Replaces a policy. Once it is answered, no flow is open that the new one forbids.
    Policy {
        /// Of which network.
        network: NetworkId,
        /// What may be reached from now on.
        policy: Policy,
    },
    /// Ends a network and every flow of it.
    Detach {
        /// Which.
        network: NetworkId,
    },
}

/// From the gateway.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done {
        /// The request's number.
        number: u64,
    },
    /// It is not.
    Refused {
        /// The request's number.
        number: u64,
        /// For people.
        why: String,
    },
    /// What was decided lately.
    Log {
        /// In which network.
        network: NetworkId,
        /// In order.
        entries: Vec<EgressEntry>,
    },
}

/// Longest message, and the most descriptors of one.
const LIMITS: Limits = Limits { bytes: MAX_MESSAGE, descriptors: 1 };

/// Sends one message, with at most one descriptor.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    attached: Option<BorrowedFd<'_>>,
) -> Result<(), WireError> {
    let bytes = serde_json::to_vec(message).map_err(|_| WireError::Malformed)?;
    LIMITS.send(socket, &bytes, attached.as_slice())
}

/// Receives one message, waiting for it unless the socket does not block.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<(T, Option<OwnedFd>), WireError> {
    let (bytes, attached) = LIMITS.receive(socket)?;
    let message = serde_json::from_slice(&bytes).map_err(|_| WireError::Malformed)?;
    Ok((message, attached.into_iter().next()))
}
