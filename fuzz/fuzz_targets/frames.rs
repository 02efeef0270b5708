//! Frames of a guest, mended so that they get past the first look, through everything that reads
//! them: Ethernet, ARP, IP with options and extension headers, fragments, ICMP, neighbours, DHCP, UDP,
//! and TCP up to a connection. Nothing panics, what comes back is a frame for the guest and for nobody
//! else, and no packet is taken from anybody else.
#![no_main]

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use pandastack_fuzz::{Script, sockets};
use pandastack_gateway::net::packet::{self, Content, HEADER, MAX_FRAME};
use pandastack_gateway::net::port::Port;
use pandastack_gateway::net::tcp::{Buffers, Guest};
use pandastack_gateway::net::{dhcp, link};
use pandastack_proto::network::{GATEWAY_MAC, GUEST_MAC, GUEST_V4, GUEST_V6};
use rustix::net::{RecvFlags, SocketType, recv};
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket, UdpPacket};

/// Where the guest's connections go.
const SERVER: &str = "203.0.113.10:80";

fuzz_target!(|bytes: &[u8]| {
    run(Script(bytes));
});

fn run(mut script: Script<'_>) -> Option<()> {
    let server: SocketAddr = SERVER.parse().ok()?;
    let (ours, peer) = sockets(SocketType::SEQPACKET);
    let (mut port, mut now) = (Port::new(ours), Duration::ZERO);
    let mut guest = Guest::listen(server, Buffers(4096), 7, now)?;
    while let Some(mending) = script.u8() {
        now += Duration::from_millis(u64::from(mending >> 4) * 50);
        let len = usize::from(script.u16()?) % (MAX_FRAME + 1);
        let mut frame = vec![0; len];
        let given = script.some(254)?;
        for (to, from) in frame.iter_mut().zip(given) {
            *to = *from;
        }
        mend(&mut frame, mending, server);
        match packet::read(&frame) {
            Content::Arp(question) => give(&mut port, link::arp(question)),
            Content::Odd(_) => {}
            Content::Ip(packet) => {
                let own = [IpAddr::V4(GUEST_V4), IpAddr::V6(GUEST_V6)];
                let homeless = packet.source.is_unspecified();
                let neighbour =
                    matches!(packet.source, IpAddr::V6(v6) if v6.is_unicast_link_local());
                assert!(own.contains(&packet.source) || homeless || neighbour);
                give(&mut port, packet::prohibited(&packet));
                match packet.protocol {
                    IpProtocol::Icmp | IpProtocol::Icmpv6 => {
                        if let link::Answer::Frame(answer) = link::icmp(&packet) {
                            give(&mut port, Some(answer));
                        }
                    }
                    IpProtocol::Udp => {
                        if let Ok(datagram) = UdpPacket::new_checked(packet.payload) {
                            give(&mut port, dhcp::answer(datagram.payload()));
                        }
                    }
                    IpProtocol::Tcp => {
                        give(&mut port, packet::reset(&packet));
                        guest.take(packet.bytes, &mut port, now);
                        // As a flow would: takes what was said and says it back.
                        let mut said = [0; 512];
                        if let Ok(len) = guest.socket().recv_slice(&mut said) {
                            let _ = guest.socket().send_slice(&said[..len]);
                        }
                        guest.speak(&mut port, now);
                        let _ = (guest.due(now), guest.is_over(), guest.has_finished());
                    }
                    _ => {}
                }
            }
        }
        check(&peer, &mut port);
    }
    Some(())
}

/// Makes a frame the guest's, as far as the bits say.
fn mend(frame: &mut [u8], how: u8, server: SocketAddr) {
    if how & 1 != 0 && frame.len() >= HEADER {
        frame[..6].copy_from_slice(&GATEWAY_MAC);
        frame[6..12].copy_from_slice(&GUEST_MAC);
    }
    if how & 2 != 0 && frame.len() >= HEADER + 20 && frame[12..14] == [8, 0] {
        let packet = &mut frame[HEADER..];
        packet[0] = 0x40 | packet[0] & 0x0f;
        let total = u16::try_from(packet.len()).unwrap_or(u16::MAX);
        let mut header = Ipv4Packet::new_unchecked(packet);
        header.set_total_len(total);
        header.set_src_addr(GUEST_V4);
        if usize::from(header.header_len()) >= 20
            && usize::from(header.header_len()) <= usize::from(total)
        {
            header.fill_checksum();
        }
    }
    if how & 4 != 0 && frame.len() >= HEADER + 40 && frame[12..14] == [0x86, 0xdd] {
        frame[HEADER] = 0x60 | frame[HEADER] & 0x0f;
        frame[HEADER + 8..HEADER + 24].copy_from_slice(&GUEST_V6.octets());
        let len = u16::try_from(frame.len() - HEADER - 40).unwrap_or(u16::MAX);
        frame[HEADER + 4..HEADER + 6].copy_from_slice(&len.to_be_bytes());
    }
    // A segment for the connection.
    if how & 8 != 0
        && frame.len() >= HEADER + 40
        && frame[12..14] == [8, 0]
        && frame[HEADER + 9] == 6
    {
        if let IpAddr::V4(v4) = server.ip() {
            frame[HEADER + 16..HEADER + 20].copy_from_slice(&v4.octets());
        }
        let start = HEADER + 4 * usize::from(frame[HEADER] & 0x0f);
        if let Some(segment) = frame.get_mut(start..).filter(|rest| rest.len() >= 20) {
            TcpPacket::new_unchecked(segment).set_dst_port(server.port());
        }
        mend(frame, 2, server);
    }
}

fn give(port: &mut Port, frame: Option<Vec<u8>>) {
    if let Some(frame) = frame {
        port.give(frame);
    }
}

/// What came out is for the guest.
fn check(peer: &std::os::fd::OwnedFd, port: &mut Port) {
    let mut buffer = [0; 2 * MAX_FRAME];
    while let Ok((_, len @ 1..)) = recv(peer, &mut buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
        assert!((HEADER..=MAX_FRAME).contains(&len), "a frame of {len} bytes");
        assert_eq!((&buffer[..6], &buffer[6..12]), (&GUEST_MAC[..], &GATEWAY_MAC[..]));
    }
    port.flush();
}
