//! The network that a guest sees: what is on its wire.
//!
//! Everything here speaks to one guest and to nobody else. Names of modules are those of layers:
//!
//! | module | is |
//! | --- | --- |
//! | [`port`] | the socket of frames, with a queue in front of it |
//! | [`packet`] | frames into packets, and the checks that every one of them has to pass |
//! | [`link`], [`dhcp`] | what a router answers by itself: ARP, neighbours, echo, leases |
//! | [`tcp`] | the guest's end of one TCP connection |

pub mod dhcp;
pub mod link;
pub mod packet;
pub mod port;
pub mod tcp;
