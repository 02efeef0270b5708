//! Everything that comes down the cable from the host, whoever it is for.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::net::sockopt::Timeout;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SocketFlags, SocketType, recv, socket_with, sockopt,
};
use tokio::sync::watch;

use super::journal::Journal;
use super::link::{HOST_MAC, ROUTER_V4, ROUTER_V6};

/// Port of the packets that only say that all packets before them have been seen.
pub(super) const SENTINEL_PORT: u16 = 9;
/// How much of a packet is kept.
const SNAP: usize = 2048;

/// What a packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first packet of a TCP connection. Others are not kept.
    Tcp,
    /// A datagram.
    Udp,
    /// An ICMP message of either family.
    Icmp,
    /// A question for a hardware address.
    Arp,
    /// Anything else; the protocol's number.
    Other(u16),
}

/// A packet that left the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    /// What it is.
    pub kind: Kind,
    /// Where to.
    pub to: Option<IpAddr>,
    /// To which port.
    pub port: Option<u16>,
    /// The beginning of it, from the IP header on.
    pub bytes: Vec<u8>,
}

/// Reads packets. Made in the internet's namespace.
pub struct Sniffer(OwnedFd);

impl Sniffer {
    /// Sees what comes from now on, of every device.
    pub fn new() -> Result<Self> {
        // All protocols, in the byte order of the network.
        let all = NonZeroU32::new(u32::from(3_u16.to_be())).map(Protocol::from_raw);
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, all)
            .context("no packet socket")?;
        sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20)?;
        // Now and then it has to look whether anybody is left to tell.
        sockopt::set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_millis(100)))?;
        Ok(Self(socket))
    }

    /// Notes packets, and tells `sentinel` the numbers of those that are only for that, until
    /// nobody listens to it.
    pub fn run(&self, journal: &Journal, sentinel: &watch::Sender<u64>) {
        let mut buffer = [0_u8; SNAP];
        while !sentinel.is_closed() {
            let Ok((length, _)) = recv(&self.0, &mut buffer[..], RecvFlags::empty()) else {
                continue;
            };
            match look(&buffer[..length]) {
                Some(Look::Packet(packet)) => journal.packet(packet),
                Some(Look::Sentinel(number)) => drop(sentinel.send_replace(number)),
                None => {}
            }
        }
    }
}

enum Look {
    Packet(Packet),
    Sentinel(u64),
}

/// What is to be said of a frame, if anything.
fn look(frame: &[u8]) -> Option<Look> {
    let (source, rest) = (frame.get(6..12)?, frame.get(14..)?);
    if source != HOST_MAC {
        return None;
    }
    let packet = match frame.get(12..14)? {
        [0x08, 0x00] => v4(rest)?,
        [0x86, 0xdd] => v6(rest)?,
        [0x08, 0x06] => arp(rest)?,
        other => {
            let number = u16::from_be_bytes([other[0], other[1]]);
            Packet { kind: Kind::Other(number), to: None, port: None, bytes: rest.to_vec() }
        }
    };
    let sentinel = packet.kind == Kind::Udp && packet.port == Some(SENTINEL_PORT);
    if sentinel && packet.to == Some(ROUTER_V4.into()) {
        let body = packet.bytes.get(28..36)?;
        return Some(Look::Sentinel(u64::from_be_bytes(body.try_into().ok()?)));
    }
    Some(Look::Packet(packet))
}

fn v4(bytes: &[u8]) -> Option<Packet> {
    let header = usize::from(bytes.first()? & 15) * 4;
    let to: [u8; 4] = bytes.get(16..20)?.try_into().ok()?;
    // Fragments after the first have no ports.
    let first = u16::from_be_bytes([bytes[6], bytes[7]]) & 0x1fff == 0;
    let payload = if first { bytes.get(header..)? } else { &[] };
    above(bytes, Ipv4Addr::from(to).into(), bytes[9], payload)
}

fn v6(bytes: &[u8]) -> Option<Packet> {
    let source: [u8; 16] = bytes.get(8..24)?.try_into().ok()?;
    let to: [u8; 16] = bytes.get(24..40)?.try_into().ok()?;
    let (source, to) = (Ipv6Addr::from(source), Ipv6Addr::from(to));
    // A hop-by-hop header is before a report of multicast groups only.
    if bytes[6] == 0 && to.is_multicast() {
        return None;
    }
    let payload = bytes.get(40..)?;
    if bytes[6] == 58 && is_housekeeping(source, to, payload) {
        return None;
    }
    above(bytes, to.into(), bytes[6], payload)
}

/// What every host says to its router and its cable.
fn is_housekeeping(source: Ipv6Addr, to: Ipv6Addr, message: &[u8]) -> bool {
    let target = message.get(8..24).and_then(|t| <[u8; 16]>::try_from(t).ok()).map(Ipv6Addr::from);
    match message.first() {
        // A solicitation of the router's address, an answer to the router's own.
        Some(135) => target == Some(ROUTER_V6) || source.is_unspecified(),
        Some(136) => to == ROUTER_V6 || to.is_multicast() || to.is_unicast_link_local(),
        Some(133) => true,
        _ => false,
    }
}

fn above(bytes: &[u8], to: IpAddr, protocol: u8, payload: &[u8]) -> Option<Packet> {
    let port = || Some(u16::from_be_bytes([*payload.get(2)?, *payload.get(3)?]));
    let (kind, port) = match protocol {
        6 => {
            let opens = payload.get(13).is_none_or(|flags| flags & 0x12 == 0x02);
            if !opens {
                return None;
            }
            (Kind::Tcp, port())
        }
        17 => (Kind::Udp, port()),
        // The kernel's own complaint about an answer that came too late.
        1 if payload.first() == Some(&3) => return None,
        58 if payload.first() == Some(&1) => return None,
        1 | 58 => (Kind::Icmp, None),
        other => (Kind::Other(other.into()), None),
    };
    Some(Packet { kind, to: Some(to), port, bytes: bytes.to_vec() })
}

fn arp(bytes: &[u8]) -> Option<Packet> {
    let to: [u8; 4] = bytes.get(24..28)?.try_into().ok()?;
    let to = Ipv4Addr::from(to);
    // Answers, and questions for the router, are needed by everything.
    if bytes.get(6..8)? != [0, 1] || to == ROUTER_V4 {
        return None;
    }
    Some(Packet { kind: Kind::Arp, to: Some(to.into()), port: None, bytes: bytes.to_vec() })
}
