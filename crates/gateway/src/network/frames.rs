//! What the guest sends: answered here, given to the flow that it is of, or decided about.

use std::net::SocketAddr;

use pandastack_policy::{Check, Denied, Flow as Asked, Protocol, Reserved, Verdict};
use pandastack_types::EgressKind;
use smoltcp::wire::{IpProtocol, TcpPacket, UdpPacket};

use super::{Client, DNS, Line, MAX_FLOWS, NARROW, Network, Opened, TURN, WIDE, WIDE_FLOWS};
use crate::dns;
use crate::net::packet::{self, Content, MAX_FRAME, Packet};
use crate::net::port::Taken;
use crate::net::{dhcp, link};
use crate::relay::asker::Asker;
use crate::relay::datagrams::Datagrams;
use crate::relay::flow::{Beginning, Flow};
use crate::relay::host::{self, Place};
use crate::relay::journal::Entry;

impl Network {
    /// Takes frames of the guest. False when the machine is gone.
    pub(super) fn take_frames(&mut self) -> bool {
        let mut buffer = [0; MAX_FRAME];
        if self.port.is_waiting() {
            self.port.flush();
            if self.port.has_room() {
                self.busy.extend(self.lines.keys());
            }
        }
        for _ in 0..TURN {
            match self.port.take(&mut buffer) {
                Taken::Frame(len) if len <= buffer.len() => self.frame(&buffer[..len]),
                // Longer than any that this network has.
                Taken::Frame(_) => {}
                Taken::Nothing => return true,
                Taken::Gone => return false,
            }
        }
        true
    }

    fn frame(&mut self, frame: &[u8]) {
        match packet::read(frame) {
            Content::Arp(question) => {
                if let Some(answer) = link::arp(question) {
                    self.port.give(answer);
                }
            }
            Content::Odd(odd) => {
                self.journal.note(Entry::refused(EgressKind::Other, odd), self.now)
            }
            Content::Ip(packet) => match packet.protocol {
                IpProtocol::Tcp => self.segment(&packet, frame),
                IpProtocol::Udp => self.datagram(&packet),
                IpProtocol::Icmp | IpProtocol::Icmpv6 => self.message(&packet),
                // Who listens to which group is of no interest here.
                IpProtocol::Igmp => {}
                _ => {
                    let reason = "a protocol other than TCP, UDP and ICMP";
                    self.refuse(Entry::refused(EgressKind::Other, reason), &packet, None);
                }
            },
        }
    }

    fn message(&mut self, packet: &Packet<'_>) {
        match link::icmp(packet) {
            link::Answer::Frame(answer) => self.port.give(answer),
            link::Answer::Silence => {}
            link::Answer::Elsewhere => {
                let reason = "ICMP goes no further than the gateway, so ping reaches nothing else";
                self.refuse(Entry::refused(EgressKind::Icmp, reason), packet, None);
            }
        }
    }

    fn datagram(&mut self, packet: &Packet<'_>) {
        let Ok(datagram) = UdpPacket::new_checked(packet.payload) else { return };
        let (from, to, payload) = (datagram.src_port(), datagram.dst_port(), datagram.payload());
        let ours = packet::is_gateway(packet.destination);
        match to {
            DNS if ours => {
                let client = Client::Port(packet.destination, from);
                let steps =
                    self.resolver.ask(self.now, payload, client, dns::Transport::Udp, &self.policy);
                return self.carry_out(steps);
            }
            dhcp::SERVER if ours || packet::is_for_many(packet.destination) => {
                if let Some(answer) = dhcp::answer(payload) {
                    self.port.give(answer);
                }
                return;
            }
            _ => {}
        }
        let server = SocketAddr::new(packet.destination, to);
        if let Some(token) = self.by_ends.get(&(Protocol::Udp, from, server)).copied() {
            self.with_line(token, |line, turn| {
                if let Line::Udp(flow) = line {
                    flow.send(payload, turn);
                }
            });
            return;
        }
        match self.open(Protocol::Udp, server) {
            Err(entry) => self.refuse(*entry, packet, Some(to)),
            Ok((names, rule, _)) => {
                let token = self.new_token();
                let begun = {
                    let mut turn = self.turn();
                    Datagrams::begin(token, from, server, names.clone(), rule, &mut turn).map(
                        |mut flow| {
                            flow.send(payload, &mut turn);
                            flow
                        },
                    )
                };
                match begun {
                    Ok(flow) => {
                        let verdict = Verdict::Allow { rule, check: Check::Nothing };
                        let entry = Entry::decided(EgressKind::Udp, verdict).name(names.first());
                        self.journal.note(entry.to(server.ip(), to), self.now);
                        self.by_ends.insert((Protocol::Udp, from, server), token);
                        self.lines.insert(token, Line::Udp(flow));
                        self.busy.insert(token);
                    }
                    Err(error) => {
                        let entry = Entry::refused(EgressKind::Udp, format!("the host: {error}"));
                        self.refuse(entry, packet, Some(to));
                    }
                }
            }
        }
    }

    fn segment(&mut self, packet: &Packet<'_>, frame: &[u8]) {
        let Ok(segment) = TcpPacket::new_checked(packet.payload) else { return };
        let (from, to) = (segment.src_port(), segment.dst_port());
        if from == 0 || to == 0 || !packet::is_unicast(packet.destination) {
            return;
        }
        let server = SocketAddr::new(packet.destination, to);
        if let Some(token) = self.by_ends.get(&(Protocol::Tcp, from, server)).copied() {
            self.with_line(token, |line, turn| match line {
                Line::Tcp(flow) => flow.take(packet.bytes, turn),
                Line::Asker(asker) => asker.take(packet.bytes, turn),
                _ => {}
            });
            self.busy.insert(token);
            return;
        }
        if !segment.syn() || segment.ack() {
            // Of a connection that was before this network: a copy's guest has those of its source.
            if let Some(answer) = packet::reset(packet) {
                self.port.give(answer);
            }
            return;
        }
        if packet::is_gateway(server.ip()) && to == DNS {
            return self.accept_asker(from, server, frame);
        }
        match self.open(Protocol::Tcp, server) {
            Err(entry) => self.refuse(*entry, packet, Some(to)),
            Ok((names, rule, check)) => {
                let token = self.new_token();
                let buffers = if self.lines.len() < WIDE_FLOWS { WIDE } else { NARROW };
                let first = frame.to_vec();
                let beginning = Beginning {
                    token,
                    guest_port: from,
                    server,
                    names,
                    rule,
                    check,
                    first,
                    buffers,
                };
                let begun = Flow::begin(beginning, &mut self.turn());
                match begun {
                    Ok(flow) => {
                        self.by_ends.insert((Protocol::Tcp, from, server), token);
                        self.lines.insert(token, Line::Tcp(Box::new(flow)));
                        self.busy.insert(token);
                    }
                    Err(error) => {
                        let entry = Entry::refused(EgressKind::Tcp, format!("the host: {error}"));
                        self.refuse(entry, packet, Some(to));
                    }
                }
            }
        }
    }

    /// Takes a connection that asks for names. What it asks for is decided name by name.
    fn accept_asker(&mut self, from: u16, server: SocketAddr, first: &[u8]) {
        if self.by_ends.len() >= MAX_FLOWS as usize {
            return;
        }
        if let Ok(asker) = Asker::begin(from, server, first, &mut self.turn()) {
            let token = self.new_token();
            self.by_ends.insert((Protocol::Tcp, from, server), token);
            self.lines.insert(token, Line::Asker(Box::new(asker)));
            self.busy.insert(token);
        }
    }

    /// Whether a flow may be opened: with the names that led there, the rule and what the flow has
    /// to show, or the line that says why not.
    fn open(&self, protocol: Protocol, server: SocketAddr) -> Result<Opened, Box<Entry>> {
        let kind = if protocol == Protocol::Tcp { EgressKind::Tcp } else { EgressKind::Udp };
        let names = self.pins.names_of(server.ip(), self.now);
        let asked = Asked { protocol, address: server.ip(), port: server.port(), names: &names };
        let verdict = self.policy.connect(&self.settings.site, &asked);
        let Verdict::Allow { rule, check } = verdict else {
            return Err(Box::new(Entry::decided(kind, verdict).name(names.first())));
        };
        let most = self.policy.max_connections().unwrap_or(MAX_FLOWS);
        if self.by_ends.len() >= most as usize {
            let reason = format!("there are {most} connections already, which is the limit");
            return Err(Box::new(Entry::refused(kind, reason).name(names.first())));
        }
        // The list of the site may be a moment old; the kernel knows. Where it knows no way, saying
        // so at once lets programs try the other family.
        match host::place(server.ip()) {
            Place::Elsewhere => Ok((names, rule, check)),
            Place::Own => {
                let own = Denied::Reserved(Reserved::Own);
                Err(Box::new(Entry::decided(kind, Verdict::Deny(own)).name(names.first())))
            }
            Place::Nowhere => {
                let reason = "the host has no way to this address";
                Err(Box::new(Entry::refused(kind, reason).name(names.first())))
            }
        }
    }

    /// Logs a refusal and lets the guest know at once.
    fn refuse(&mut self, entry: Entry, packet: &Packet<'_>, port: Option<u16>) {
        self.journal.note(entry.to(packet.destination, port), self.now);
        if !packet::is_unicast(packet.destination) {
            return;
        }
        let answer = match packet.protocol {
            IpProtocol::Tcp => packet::reset(packet),
            _ => packet::prohibited(packet),
        };
        if let Some(answer) = answer {
            self.port.give(answer);
        }
    }
}
