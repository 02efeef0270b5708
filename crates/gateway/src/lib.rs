//! The network of every sandbox: frames in, sockets out, policy between.
//!
//! A sandbox has a network device that leads to a socket here and nowhere else. One process per
//! host, `panda-gateway`, is at the other end of all of them: it answers what a network answers
//! (ARP, neighbours, DHCP, echo, DNS), ends the guest's TCP connections in a stack of its own and
//! makes new ones, from ordinary sockets, to where the policy allows.
#![forbid(unsafe_code)]

#[cfg(feature = "client")]
pub mod client;
pub mod control;
pub mod dns;
pub mod inspect;
pub mod net;
pub mod network;
pub mod process;
mod random;
pub mod relay;
