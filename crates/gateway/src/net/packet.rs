//! Frames into packets, and back.
//!
//! The invariant: **a [`Packet`] is whole, and from the guest.** Whatever claims another sender, is
//! a fragment or is cut short never becomes one, so the code behind it cannot be talked into
//! answering somebody else.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use pandastack_proto::network::{
    GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, GUEST_V4, GUEST_V6,
};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ETHERNET_HEADER_LEN, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4DstUnreachable,
    Icmpv4Packet, Icmpv4Repr, Icmpv6DstUnreachable, Icmpv6Packet, Icmpv6Repr, IpAddress,
    IpProtocol, IpRepr, Ipv4Packet, Ipv4Repr, Ipv6Packet, Ipv6Repr, TcpControl, TcpPacket, TcpRepr,
    TcpSeqNumber, UdpPacket, UdpRepr,
};

/// Bytes before the packet in a frame.
pub const HEADER: usize = ETHERNET_HEADER_LEN;
/// Longest frame that is taken: a full packet, its header and a VLAN tag that nobody reads.
pub const MAX_FRAME: usize = 1518;
/// `TTL` of everything that comes out of here.
const HOP_LIMIT: u8 = 64;

/// What a frame holds.
#[derive(Debug)]
pub enum Content<'a> {
    /// A question about hardware addresses.
    Arp(&'a [u8]),
    /// A packet of the guest.
    Ip(Packet<'a>),
    /// Something that this network does not have.
    Odd(Odd),
}

/// Why a frame goes nowhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum Odd {
    /// Shorter than its headers say.
    #[error("a frame that is cut short or malformed")]
    Malformed,
    /// Another hardware address than the guest's.
    #[error("a frame with a hardware address that is not the sandbox's")]
    HardwareAddress,
    /// Another address than the guest's.
    #[error("a packet with a source address that is not the sandbox's")]
    SourceAddress,
    /// A fragment.
    #[error("a fragment: this network takes whole packets of at most 1500 bytes")]
    Fragment,
    /// Neither IP nor ARP.
    #[error("a protocol that this network does not have")]
    EtherType,
}

/// A packet of the guest.
#[derive(Clone, Copy, Debug)]
pub struct Packet<'a> {
    /// All of it, with its header.
    pub bytes: &'a [u8],
    /// One of the guest's addresses, or none yet.
    pub source: IpAddr,
    /// Where to.
    pub destination: IpAddr,
    /// What is in it.
    pub protocol: IpProtocol,
    /// What comes after its header.
    pub payload: &'a [u8],
}

/// Reads a frame.
pub fn read(frame: &[u8]) -> Content<'_> {
    let Ok(ethernet) = EthernetFrame::new_checked(frame) else {
        return Content::Odd(Odd::Malformed);
    };
    if ethernet.src_addr() != EthernetAddress(GUEST_MAC) {
        return Content::Odd(Odd::HardwareAddress);
    }
    let packet = match ethernet.ethertype() {
        EthernetProtocol::Arp => return Content::Arp(ethernet.payload()),
        EthernetProtocol::Ipv4 => v4(ethernet.payload()),
        EthernetProtocol::Ipv6 => v6(ethernet.payload()),
        _ => Err(Odd::EtherType),
    };
    packet.map_or_else(Content::Odd, Content::Ip)
}

fn v4(bytes: &[u8]) -> Result<Packet<'_>, Odd> {
    let packet = Ipv4Packet::new_checked(bytes).map_err(|_| Odd::Malformed)?;
    if packet.version() != 4 || !packet.verify_checksum() {
        return Err(Odd::Malformed);
    }
    if packet.more_frags() || packet.frag_offset() != 0 {
        return Err(Odd::Fragment);
    }
    let source = packet.src_addr();
    // Without an address yet, a guest may ask for a lease and for nothing else.
    let leaseless = source.is_unspecified() && packet.dst_addr().is_broadcast();
    if source != GUEST_V4 && !leaseless {
        return Err(Odd::SourceAddress);
    }
    Ok(Packet {
        bytes: &bytes[..usize::from(packet.total_len())],
        source: source.into(),
        destination: packet.dst_addr().into(),
        protocol: packet.next_header(),
        payload: packet.payload(),
    })
}

fn v6(bytes: &[u8]) -> Result<Packet<'_>, Odd> {
    let packet = Ipv6Packet::new_checked(bytes).map_err(|_| Odd::Malformed)?;
    if packet.version() != 6 {
        return Err(Odd::Malformed);
    }
    let source = packet.src_addr();
    // Neighbours are asked for from a link-local address as well, or from none.
    let neighbourly = source.is_unspecified() || source.is_unicast_link_local();
    if source != GUEST_V6 && !neighbourly {
        return Err(Odd::SourceAddress);
    }
    let (protocol, payload) = past_options(packet.next_header(), packet.payload())?;
    if neighbourly && protocol != IpProtocol::Icmpv6 {
        return Err(Odd::SourceAddress);
    }
    Ok(Packet {
        bytes: &bytes[..packet.total_len()],
        source: source.into(),
        destination: packet.dst_addr().into(),
        protocol,
        payload,
    })
}

/// Skips one header of hop-by-hop options, which reports of multicast listeners have. Other
/// extension headers are a packet's content, which nothing here understands.
fn past_options(next: IpProtocol, payload: &[u8]) -> Result<(IpProtocol, &[u8]), Odd> {
    match next {
        IpProtocol::HopByHop => {
            let [inner, units, ..] = payload else { return Err(Odd::Malformed) };
            let rest = payload.get(8 + 8 * usize::from(*units)..).ok_or(Odd::Malformed)?;
            Ok((IpProtocol::from(*inner), rest))
        }
        IpProtocol::Ipv6Frag => Err(Odd::Fragment),
        other => Ok((other, payload)),
    }
}

/// The guest's address in the family of `address`.
pub fn guest(address: IpAddr) -> IpAddr {
    if address.is_ipv4() { GUEST_V4.into() } else { GUEST_V6.into() }
}

/// Whether an address is the gateway's own.
pub fn is_gateway(address: IpAddr) -> bool {
    address == IpAddr::V4(GATEWAY_V4) || address == IpAddr::V6(GATEWAY_V6)
}

/// Whether a packet is for many: discovery and reports, which end here in silence.
pub fn is_for_many(address: IpAddr) -> bool {
    address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST)
        // The network's own broadcast address.
        || address == IpAddr::V4(Ipv4Addr::from_bits(GUEST_V4.to_bits() | 0xff))
}

/// A frame for the guest around something that `emit` writes.
pub fn frame(
    source: IpAddr,
    destination: IpAddr,
    protocol: IpProtocol,
    len: usize,
    emit: impl FnOnce(&mut [u8]),
) -> Vec<u8> {
    let repr = ip(source, destination, protocol, len);
    let mut frame = blank(repr.header_len() + len, source.is_ipv4());
    let (header, payload) = frame[HEADER..].split_at_mut(repr.header_len());
    emit(payload);
    match repr {
        IpRepr::Ipv4(repr) => {
            // Lengths are the repr's; checksums cover the header alone.
            let mut packet = Ipv4Packet::new_unchecked(header);
            repr.emit(&mut packet, &ChecksumCapabilities::default());
        }
        IpRepr::Ipv6(repr) => repr.emit(&mut Ipv6Packet::new_unchecked(header)),
    }
    frame
}

/// A frame with its Ethernet header and nothing yet behind it.
pub fn blank(packet: usize, v4: bool) -> Vec<u8> {
    let mut bytes = vec![0; HEADER + packet];
    let protocol = if v4 { EthernetProtocol::Ipv4 } else { EthernetProtocol::Ipv6 };
    write_header(&mut bytes, protocol);
    bytes
}

/// Writes an Ethernet header to the guest.
pub fn write_header(frame: &mut [u8], protocol: EthernetProtocol) {
    let mut ethernet = EthernetFrame::new_unchecked(frame);
    ethernet.set_src_addr(EthernetAddress(GATEWAY_MAC));
    ethernet.set_dst_addr(EthernetAddress(GUEST_MAC));
    ethernet.set_ethertype(protocol);
}

fn ip(source: IpAddr, destination: IpAddr, protocol: IpProtocol, len: usize) -> IpRepr {
    IpRepr::new(IpAddress::from(source), IpAddress::from(destination), protocol, len, HOP_LIMIT)
}

/// A datagram for the guest.
pub fn datagram(from: (IpAddr, u16), to_port: u16, payload: &[u8]) -> Vec<u8> {
    let (source, destination) = (from.0, guest(from.0));
    let repr = UdpRepr { src_port: from.1, dst_port: to_port };
    let len = repr.header_len() + payload.len();
    frame(source, destination, IpProtocol::Udp, len, |bytes| {
        let mut packet = UdpPacket::new_unchecked(bytes);
        let copy = |to: &mut [u8]| to.copy_from_slice(payload);
        let checksums = ChecksumCapabilities::default();
        repr.emit(
            &mut packet,
            &source.into(),
            &destination.into(),
            payload.len(),
            copy,
            &checksums,
        );
    })
}

/// Tells the guest that a packet of it was not let through, so that its program fails at once.
/// Nothing if the packet is itself such an answer (RFC 1122, 3.2.2; RFC 4443, 2.4e).
pub fn prohibited(refused: &Packet<'_>) -> Option<Vec<u8>> {
    if is_error(refused) {
        return None;
    }
    let checksums = ChecksumCapabilities::ignored();
    // As much of the packet as fits into the smallest packet that everybody takes.
    match (refused.source, refused.destination) {
        (IpAddr::V4(_), IpAddr::V4(_)) => {
            let packet = Ipv4Packet::new_checked(refused.bytes).ok()?;
            let header = Ipv4Repr::parse(&packet, &checksums).ok()?;
            let data = &packet.payload()[..packet.payload().len().min(8)];
            let reason = Icmpv4DstUnreachable::CommProhibited;
            let repr = Icmpv4Repr::DstUnreachable { reason, header, data };
            let len = repr.buffer_len();
            let emit = |bytes: &mut [u8]| {
                repr.emit(
                    &mut Icmpv4Packet::new_unchecked(bytes),
                    &ChecksumCapabilities::default(),
                );
            };
            Some(frame(GATEWAY_V4.into(), GUEST_V4.into(), IpProtocol::Icmp, len, emit))
        }
        (IpAddr::V6(_), IpAddr::V6(_)) => {
            let packet = Ipv6Packet::new_checked(refused.bytes).ok()?;
            let header = Ipv6Repr::parse(&packet).ok()?;
            let data = &packet.payload()[..packet.payload().len().min(512)];
            let reason = Icmpv6DstUnreachable::AdminProhibit;
            let repr = Icmpv6Repr::DstUnreachable { reason, header, data };
            let len = repr.buffer_len();
            let emit = |bytes: &mut [u8]| {
                let mut packet = Icmpv6Packet::new_unchecked(bytes);
                let checksums = ChecksumCapabilities::default();
                repr.emit(&GATEWAY_V6, &GUEST_V6, &mut packet, &checksums);
            };
            Some(frame(GATEWAY_V6.into(), GUEST_V6.into(), IpProtocol::Icmpv6, len, emit))
        }
        _ => None,
    }
}

/// Whether a packet tells of what became of another one, or is too short to tell what it is.
fn is_error(packet: &Packet<'_>) -> bool {
    let kind = packet.payload.first();
    match packet.protocol {
        IpProtocol::Icmp => kind.is_none_or(|kind| ICMP_ERRORS.contains(kind)),
        IpProtocol::Icmpv6 => kind.is_none_or(|kind| *kind < 128 || *kind == ICMPV6_REDIRECT),
        _ => false,
    }
}

/// Destination unreachable, source quench, redirect, time exceeded, parameter problem (RFC 792).
const ICMP_ERRORS: [u8; 5] = [3, 4, 5, 11, 12];
/// A redirect is no error by its number and none is answered either (RFC 4443, 2.4e).
const ICMPV6_REDIRECT: u8 = 137;

/// Ends a connection that there is not: the answer to a segment of it (RFC 9293, 3.10.7.1).
/// Nothing if the segment is itself a reset.
pub fn reset(packet: &Packet<'_>) -> Option<Vec<u8>> {
    let segment = TcpPacket::new_checked(packet.payload).ok()?;
    if segment.rst() {
        return None;
    }
    let (seq_number, ack_number) = if segment.ack() {
        (segment.ack_number(), None)
    } else {
        (TcpSeqNumber(0), Some(segment.seq_number() + segment.segment_len()))
    };
    let repr = TcpRepr {
        src_port: segment.dst_port(),
        dst_port: segment.src_port(),
        control: TcpControl::Rst,
        seq_number,
        ack_number,
        window_len: 0,
        window_scale: None,
        max_seg_size: None,
        sack_permitted: false,
        sack_ranges: [None; 3],
        timestamp: None,
        payload: &[],
    };
    let (from, to) = (packet.destination, guest(packet.destination));
    Some(frame(from, to, IpProtocol::Tcp, repr.buffer_len(), |bytes| {
        let mut reply = TcpPacket::new_unchecked(bytes);
        repr.emit(&mut reply, &from.into(), &to.into(), &ChecksumCapabilities::default());
    }))
}

/// Whether an address can be the other end of a flow at all.
pub fn is_unicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => !v4.is_unspecified() && !v4.is_broadcast() && !v4.is_multicast(),
        IpAddr::V6(v6) => v6 != Ipv6Addr::UNSPECIFIED && !v6.is_multicast(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_not_answered_with_an_error() {
        let v4 = (GUEST_V4.into(), GATEWAY_V4.into(), IpProtocol::Icmp);
        let v6 = (GUEST_V6.into(), GATEWAY_V6.into(), IpProtocol::Icmpv6);
        for ((source, destination, protocol), kind, answered) in [
            (v4, 8, true),
            (v4, 13, true),
            (v4, 3, false),
            (v4, 11, false),
            (v6, 128, true),
            (v6, 1, false),
            (v6, 127, false),
            (v6, 137, false),
        ] {
            let sent = frame(source, destination, protocol, 8, |bytes| bytes[0] = kind);
            let (bytes, payload) = (&sent[HEADER..], &sent[sent.len() - 8..]);
            let packet = Packet { bytes, source, destination, protocol, payload };
            assert_eq!(prohibited(&packet).is_some(), answered, "{protocol} {kind}");
        }
    }
}
