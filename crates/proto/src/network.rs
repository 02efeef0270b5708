//! The network that every sandbox is alone in: the same addresses everywhere, so a copy of a
//! machine needs no new ones.
//!
//! The IPv4 network is one for benchmarks (RFC 2544), which no host has a use for; the IPv6 one is
//! unique-local (RFC 4193). Neither is ever routed.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Hardware address of every guest.
pub const GUEST_MAC: [u8; 6] = [0x02, 0x50, 0x41, 0x4e, 0x44, 0x41];
/// Hardware address of every gateway.
pub const GATEWAY_MAC: [u8; 6] = [0x02, 0x50, 0x41, 0x4e, 0x47, 0x57];
/// The guest.
pub const GUEST_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 2);
/// Its gateway, which is also its resolver.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// The network.
pub const NETWORK_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// Length of its prefix.
pub const PREFIX_V4: u8 = 24;
/// The guest.
pub const GUEST_V6: Ipv6Addr = Ipv6Addr::new(0xfd50, 0x616e, 0x6461, 0, 0, 0, 0, 2);
/// Its gateway, which is also its resolver.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfd50, 0x616e, 0x6461, 0, 0, 0, 0, 1);
/// The network.
pub const NETWORK_V6: Ipv6Addr = Ipv6Addr::new(0xfd50, 0x616e, 0x6461, 0, 0, 0, 0, 0);
/// Length of its prefix.
pub const PREFIX_V6: u8 = 64;
/// Longest packet in bytes.
pub const MTU: u16 = 1500;
