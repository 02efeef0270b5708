//! Leases for guests that ask for one: always the same.
//!
//! The agent sets the addresses itself; an image of somebody else's may start a client of DHCP
//! (RFC 2131) all the same, and has to be told what it has already.

use std::net::{IpAddr, Ipv4Addr};

use pandastack_proto::network::{GATEWAY_V4, GUEST_MAC, GUEST_V4, MTU, PREFIX_V4};
use smoltcp::wire::{DhcpMessageType, DhcpOption, DhcpPacket, DhcpRepr, EthernetAddress};

use super::packet::datagram;

/// Port of servers.
pub const SERVER: u16 = 67;
/// Port of clients.
const CLIENT: u16 = 68;
/// Seconds that a lease is said to last: longer than a sandbox, so nobody has to ask again.
const LEASE: u32 = 7 * 24 * 3600;
/// `interface MTU`, RFC 2132, 5.1.
const MTU_OPTION: u8 = 26;

/// Answers a client's message.
pub fn answer(message: &[u8]) -> Option<Vec<u8>> {
    let packet = DhcpPacket::new_checked(message).ok()?;
    let asked = DhcpRepr::parse(&packet).ok()?;
    if asked.client_hardware_address != EthernetAddress(GUEST_MAC) {
        return None;
    }
    let elsewhere = asked.server_identifier.is_some_and(|server| server != GATEWAY_V4);
    // RFC 2131, 4.3.2: a client says which address it takes, in one of two fields.
    let wanted = asked.requested_ip.unwrap_or(asked.client_ip);
    let message_type = match asked.message_type {
        DhcpMessageType::Discover => DhcpMessageType::Offer,
        DhcpMessageType::Request if elsewhere => return None,
        DhcpMessageType::Request if wanted == GUEST_V4 => DhcpMessageType::Ack,
        DhcpMessageType::Request => DhcpMessageType::Nak,
        DhcpMessageType::Inform => DhcpMessageType::Ack,
        _ => return None,
    };
    let granted = message_type != DhcpMessageType::Nak;
    let mtu = MTU.to_be_bytes();
    let options = [DhcpOption { kind: MTU_OPTION, data: &mtu }];
    let leased = granted && asked.message_type != DhcpMessageType::Inform;
    let repr = DhcpRepr {
        message_type,
        transaction_id: asked.transaction_id,
        secs: 0,
        client_hardware_address: asked.client_hardware_address,
        client_ip: Ipv4Addr::UNSPECIFIED,
        your_ip: if leased { GUEST_V4 } else { Ipv4Addr::UNSPECIFIED },
        server_ip: GATEWAY_V4,
        router: granted.then_some(GATEWAY_V4),
        subnet_mask: granted.then_some(Ipv4Addr::from_bits(u32::MAX << (32 - PREFIX_V4))),
        relay_agent_ip: Ipv4Addr::UNSPECIFIED,
        broadcast: false,
        requested_ip: None,
        client_identifier: None,
        server_identifier: Some(GATEWAY_V4),
        parameter_request_list: None,
        dns_servers: granted.then(|| [GATEWAY_V4].into_iter().collect()),
        max_size: None,
        lease_duration: leased.then_some(LEASE),
        renew_duration: None,
        rebind_duration: None,
        additional_options: if granted { &options } else { &[] },
    };
    let mut bytes = vec![0; repr.buffer_len()];
    repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).ok()?;
    Some(datagram((IpAddr::V4(GATEWAY_V4), SERVER), CLIENT, &bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::packet::HEADER;

    fn ask(message_type: DhcpMessageType, requested_ip: Option<Ipv4Addr>) -> Option<Vec<u8>> {
        let repr = DhcpRepr {
            message_type,
            transaction_id: 9,
            secs: 0,
            client_hardware_address: EthernetAddress(GUEST_MAC),
            client_ip: Ipv4Addr::UNSPECIFIED,
            your_ip: Ipv4Addr::UNSPECIFIED,
            server_ip: Ipv4Addr::UNSPECIFIED,
            router: None,
            subnet_mask: None,
            relay_agent_ip: Ipv4Addr::UNSPECIFIED,
            broadcast: true,
            requested_ip,
            client_identifier: None,
            server_identifier: None,
            parameter_request_list: None,
            dns_servers: None,
            max_size: None,
            lease_duration: None,
            renew_duration: None,
            rebind_duration: None,
            additional_options: &[],
        };
        let mut bytes = vec![0; repr.buffer_len()];
        repr.emit(&mut DhcpPacket::new_unchecked(&mut bytes[..])).unwrap();
        answer(&bytes)
    }

    fn read(frame: &[u8]) -> DhcpPacket<&[u8]> {
        // IPv4 and UDP headers without options.
        DhcpPacket::new_checked(&frame[HEADER + 20 + 8..]).unwrap()
    }

    fn parse<'a>(packet: &'a DhcpPacket<&'a [u8]>) -> DhcpRepr<'a> {
        DhcpRepr::parse(packet).unwrap()
    }

    #[test]
    fn everybody_gets_the_same_lease() {
        let offer = ask(DhcpMessageType::Discover, None).unwrap();
        let offer = read(&offer);
        let offer = parse(&offer);
        assert_eq!((offer.message_type, offer.your_ip), (DhcpMessageType::Offer, GUEST_V4));
        assert_eq!((offer.transaction_id, offer.router), (9, Some(GATEWAY_V4)));
        let ack = ask(DhcpMessageType::Request, Some(GUEST_V4)).unwrap();
        let ack = read(&ack);
        let ack = parse(&ack);
        assert_eq!((ack.message_type, ack.lease_duration), (DhcpMessageType::Ack, Some(LEASE)));
        assert_eq!(ack.dns_servers.unwrap().first(), Some(&GATEWAY_V4));
        let nak = ask(DhcpMessageType::Request, Some(Ipv4Addr::new(10, 0, 0, 1))).unwrap();
        assert_eq!(parse(&read(&nak)).message_type, DhcpMessageType::Nak);
        assert_eq!(ask(DhcpMessageType::Release, None), None);
        assert_eq!(answer(b"noise"), None);
    }
}
