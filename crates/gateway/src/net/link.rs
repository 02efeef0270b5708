//! What a router answers by itself: who has its addresses, and whether it is there.
//!
//! The gateway has one hardware address and answers for its own two addresses alone. Every other
//! question about a neighbour stays without an answer, because there is no neighbour.

use std::net::{IpAddr, Ipv6Addr};

use pandastack_proto::network::{
    GATEWAY_MAC, GATEWAY_V4, GATEWAY_V6, GUEST_MAC, GUEST_V4, GUEST_V6,
};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetProtocol, Icmpv4Packet, Icmpv4Repr,
    Icmpv6Packet, Icmpv6Repr, IpProtocol, NdiscNeighborFlags, NdiscRepr,
};

use super::packet::{HEADER, Packet, frame, is_gateway, write_header};

/// What becomes of a message of ICMP.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// This frame is the answer.
    Frame(Vec<u8>),
    /// It was for the gateway, or for nobody in particular, and has no answer.
    Silence,
    /// It was for somebody else.
    Elsewhere,
}

/// Answers a question about the hardware address of the gateway.
pub fn arp(packet: &[u8]) -> Option<Vec<u8>> {
    let packet = ArpPacket::new_checked(packet).ok()?;
    let ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Request,
        source_hardware_addr,
        source_protocol_addr,
        target_protocol_addr: GATEWAY_V4,
        ..
    } = ArpRepr::parse(&packet).ok()?
    else {
        return None;
    };
    // Nobody else is here, so nobody else may be spoken for.
    if source_hardware_addr != EthernetAddress(GUEST_MAC) || source_protocol_addr != GUEST_V4 {
        return None;
    }
    let repr = ArpRepr::EthernetIpv4 {
        operation: ArpOperation::Reply,
        source_hardware_addr: EthernetAddress(GATEWAY_MAC),
        source_protocol_addr: GATEWAY_V4,
        target_hardware_addr: EthernetAddress(GUEST_MAC),
        target_protocol_addr: GUEST_V4,
    };
    let mut frame = vec![0; HEADER + repr.buffer_len()];
    write_header(&mut frame, EthernetProtocol::Arp);
    repr.emit(&mut ArpPacket::new_unchecked(&mut frame[HEADER..]));
    Some(frame)
}

/// Answers a message of ICMP.
pub fn icmp(packet: &Packet<'_>) -> Answer {
    match (packet.source, packet.destination) {
        (IpAddr::V4(_), IpAddr::V4(to)) if to == GATEWAY_V4 => echo_v4(packet),
        (IpAddr::V6(_), IpAddr::V6(_)) => icmp_v6(packet),
        (_, to) if to.is_multicast() => Answer::Silence,
        _ => Answer::Elsewhere,
    }
}

fn echo_v4(packet: &Packet<'_>) -> Answer {
    let read = || {
        let message = Icmpv4Packet::new_checked(packet.payload).ok()?;
        match Icmpv4Repr::parse(&message, &ChecksumCapabilities::default()).ok()? {
            Icmpv4Repr::EchoRequest { ident, seq_no, data } => {
                Some(Icmpv4Repr::EchoReply { ident, seq_no, data })
            }
            _ => None,
        }
    };
    let Some(repr) = read() else { return Answer::Silence };
    let (from, to) = (GATEWAY_V4.into(), GUEST_V4.into());
    Answer::Frame(frame(from, to, IpProtocol::Icmp, repr.buffer_len(), |bytes| {
        repr.emit(&mut Icmpv4Packet::new_unchecked(bytes), &ChecksumCapabilities::default());
    }))
}

fn icmp_v6(packet: &Packet<'_>) -> Answer {
    let (IpAddr::V6(source), IpAddr::V6(destination)) = (packet.source, packet.destination) else {
        return Answer::Elsewhere;
    };
    let ours = is_gateway(destination.into());
    if !ours && !destination.is_multicast() {
        return Answer::Elsewhere;
    }
    let read = || {
        let message = Icmpv6Packet::new_checked(packet.payload).ok()?;
        let checksums = ChecksumCapabilities::default();
        let repr = Icmpv6Repr::parse(&source, &destination, &message, &checksums).ok()?;
        match repr {
            Icmpv6Repr::EchoRequest { ident, seq_no, data } if ours => {
                Some(v6(source, &Icmpv6Repr::EchoReply { ident, seq_no, data }))
            }
            Icmpv6Repr::Ndisc(NdiscRepr::NeighborSolicit { target_addr: GATEWAY_V6, .. }) => {
                Some(v6(source, &here()))
            }
            _ => None,
        }
    };
    read().map_or(Answer::Silence, Answer::Frame)
}

/// "The gateway is at its hardware address", asked for.
fn here<'a>() -> Icmpv6Repr<'a> {
    Icmpv6Repr::Ndisc(NdiscRepr::NeighborAdvert {
        flags: NdiscNeighborFlags::SOLICITED | NdiscNeighborFlags::ROUTER,
        target_addr: GATEWAY_V6,
        lladdr: Some(EthernetAddress(GATEWAY_MAC).into()),
    })
}

/// A message to whichever of its addresses the guest asked from.
fn v6(guest: Ipv6Addr, repr: &Icmpv6Repr<'_>) -> Vec<u8> {
    let to = if guest.is_unspecified() { GUEST_V6 } else { guest };
    let mut bytes =
        frame(GATEWAY_V6.into(), to.into(), IpProtocol::Icmpv6, repr.buffer_len(), |bytes| {
            let mut message = Icmpv6Packet::new_unchecked(bytes);
            repr.emit(&GATEWAY_V6, &to, &mut message, &ChecksumCapabilities::default());
        });
    // Neighbours believe nothing that a router may have passed on (RFC 4861, 7.1.2).
    bytes[HEADER + 7] = 255;
    bytes
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Content, read};
    use super::*;
    use smoltcp::wire::EthernetFrame;

    /// A frame of the guest around a packet.
    fn from_guest(mut frame: Vec<u8>) -> Vec<u8> {
        let mut ethernet = EthernetFrame::new_unchecked(&mut frame);
        ethernet.set_src_addr(EthernetAddress(GUEST_MAC));
        ethernet.set_dst_addr(EthernetAddress(GATEWAY_MAC));
        frame
    }

    fn question(from: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
        let repr = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress(from),
            source_protocol_addr: sender.into(),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: target.into(),
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut ArpPacket::new_unchecked(&mut bytes[..]));
        bytes
    }

    #[test]
    fn only_the_gateway_is_a_neighbour_and_only_of_the_guest() {
        let (guest, gateway) = (GUEST_V4.octets(), GATEWAY_V4.octets());
        let answer = arp(&question(GUEST_MAC, guest, gateway)).unwrap();
        let Ok(ArpRepr::EthernetIpv4 {
            operation, source_hardware_addr, target_protocol_addr, ..
        }) = ArpRepr::parse(&ArpPacket::new_checked(&answer[HEADER..]).unwrap())
        else {
            panic!("no ARP")
        };
        assert_eq!(operation, ArpOperation::Reply);
        assert_eq!(source_hardware_addr, EthernetAddress(GATEWAY_MAC));
        assert_eq!(target_protocol_addr, GUEST_V4);
        for (mac, sender, target) in [
            (GUEST_MAC, guest, [198, 18, 0, 9]),
            (GUEST_MAC, guest, guest),
            (GUEST_MAC, [198, 18, 0, 9], gateway),
            ([2, 0, 0, 0, 0, 1], guest, gateway),
        ] {
            assert_eq!(arp(&question(mac, sender, target)), None);
        }
        assert_eq!(arp(b"short"), None);
    }

    fn echo(to: IpAddr) -> Vec<u8> {
        let guest = super::super::packet::guest(to);
        let (data, ident, seq_no) = (&b"ping"[..], 7, 1);
        from_guest(match (guest, to) {
            (IpAddr::V4(_), IpAddr::V4(_)) => {
                let repr = Icmpv4Repr::EchoRequest { ident, seq_no, data };
                frame(guest, to, IpProtocol::Icmp, repr.buffer_len(), |bytes| {
                    let mut packet = Icmpv4Packet::new_unchecked(bytes);
                    repr.emit(&mut packet, &ChecksumCapabilities::default());
                })
            }
            (IpAddr::V6(from), IpAddr::V6(v6)) => {
                let repr = Icmpv6Repr::EchoRequest { ident, seq_no, data };
                frame(guest, to, IpProtocol::Icmpv6, repr.buffer_len(), |bytes| {
                    let mut packet = Icmpv6Packet::new_unchecked(bytes);
                    repr.emit(&from, &v6, &mut packet, &ChecksumCapabilities::default());
                })
            }
            _ => unreachable!("one family"),
        })
    }

    fn answer_to(frame: &[u8]) -> Answer {
        let Content::Ip(packet) = read(frame) else { panic!("no packet: {frame:?}") };
        icmp(&packet)
    }

    #[test]
    fn echo_is_answered_by_the_gateway_alone() {
        for own in [IpAddr::V4(GATEWAY_V4), IpAddr::V6(GATEWAY_V6)] {
            let Answer::Frame(reply) = answer_to(&echo(own)) else { panic!("no reply of {own}") };
            assert!(reply.ends_with(b"ping"));
        }
        for other in ["8.8.8.8", "198.18.0.9", "2001:4860:4860::8888"] {
            assert_eq!(answer_to(&echo(other.parse().unwrap())), Answer::Elsewhere, "{other}");
        }
    }
}
