//! What crosses: flows of a guest, and the sockets of the host that they go on in.

pub mod asker;
pub mod bucket;
pub mod datagrams;
pub mod flow;
pub mod host;
pub mod journal;
pub mod poller;
pub mod question;
