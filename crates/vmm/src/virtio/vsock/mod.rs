//! The socket device (virtio 1.2, section 5.10): one stream between the agent and its supervisor.
//!
//! ```text
//!   guest: the agent                       host: an inherited Unix socket
//!   (3, port below 1024) ──connects──▶ (2, 1024)
//!
//!   tx queue ─▶ packet ─▶ connection ─▶ outgoing, ≤ 256 KiB ─▶ socket
//!   rx queue ◀─ packet ◀─ connection ◀──────────────────────── socket
//! ```
//!
//! **One stream.** Whatever else the guest asks for is answered with RST, and nothing is kept of it
//! but that answer. The guest's port has to be a privileged one, so a command of a tenant that is
//! not root cannot pass itself off as the agent.
//!
//! **Nothing in flight.** Between two calls of `work`, every byte that was read from the socket is
//! in the guest's memory, and every chain that was taken was given back. What the device holds
//! besides is the bytes on their way to the socket. So a copy of the device is complete, and the
//! agent's connection goes on in every copy of its machine, with another socket behind it:
//!
//! * in a *fork* the child gets a socket of its own ([`Vsock::replace_stream`]) and throws away what
//!   was on its way to its parent's, which the parent sends;
//! * a *snapshot* has the connection's ends and counts in it, and none of its bytes.
//!
//! The agent's protocol starts over with a mark, so it does not miss those bytes. Were the
//! connection reset instead, the guest would first have to hear of that and dial again: two round
//! trips through its kernel before the first answer of every sandbox.
//!
//! A machine that is restored without a connection gets a reset of its transport
//! ([`Vsock::reset_transport`]): whatever its guest believes to have leads nowhere.
//!
//! **After a reset nothing is established** until the guest has dropped its own connections. It
//! does so when it handles the event, at a time of its choice, and drops all that it has by then:
//! a connection that was made too early would end on its side and stay on ours. So the queues of
//! packets rest until the event's buffer has come back, and there is no connection meanwhile:
//!
//! ```text
//!              reset_transport              a buffer for the event
//!   Settled ───────────────────▶ Owed ────────────────────────────▶ Told
//!      ▲  ▲                       │                                  │
//!      │  └────── device reset ───┴──────────────────────────────────┤
//!      └───────────────────── the buffer came back ──────────────────┘
//! ```
//!
//! Owed lasts until there is a buffer, however late the driver starts; the queues rest meanwhile,
//! because it is the event that ends the rest. A snapshot that is taken in Told stays in Told, with
//! the same event: another one would be answered with the first one's buffer.

mod connection;
mod device;
mod host;
mod packet;
#[cfg(test)]
mod tests;

pub use connection::Connection;
pub use device::Vsock;

/// The host's address.
pub const HOST_CID: u64 = 2;
/// The guest's address, the same in every guest: each has the host for itself.
pub const GUEST_CID: u64 = 3;
/// The host's port for the agent.
pub const AGENT_PORT: u32 = 1024;
