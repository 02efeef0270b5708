//! UDP between one port of the guest and one port of a server.
//!
//! Each pair has a connected socket of its own, so only that server is heard. It ends when nothing
//! was said for a while. Datagrams that cannot go on at once are lost, as they may be.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use pandastack_policy::{Check, Flow as Asked, Host, Policy, Protocol, Site, Verdict};
use pandastack_types::EgressKind;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::flow::Turn;
use super::host;
use super::journal::{Entry, Journal};
use super::poller::Token;
use crate::net::packet;

/// How long nothing may be said.
const IDLE: Duration = Duration::from_secs(60);
/// Most bytes of a datagram: what fits into a packet of the guest's network behind its headers.
const MAX_PAYLOAD: usize = 1500 - 20 - 8;
/// Datagrams in one turn.
const TURN: usize = 64;

/// The exchange of one pair of ports.
pub struct Datagrams {
    guest_port: u16,
    server: SocketAddr,
    names: Vec<Host>,
    rule: usize,
    socket: OwnedFd,
    up: u64,
    down: u64,
    moved: Duration,
}

impl Datagrams {
    /// Begins an exchange that is allowed.
    pub fn begin(
        token: Token,
        guest_port: u16,
        server: SocketAddr,
        names: Vec<Host>,
        rule: usize,
        turn: &mut Turn<'_>,
    ) -> io::Result<Self> {
        let socket = host::connect_udp(server)?;
        turn.poller.watch(&socket, token)?;
        Ok(Self { guest_port, server, names, rule, socket, up: 0, down: 0, moved: turn.now })
    }

    /// The guest's port and the server.
    pub fn ends(&self) -> (u16, SocketAddr) {
        (self.guest_port, self.server)
    }

    /// Sends what the guest said.
    pub fn send(&mut self, payload: &[u8], turn: &mut Turn<'_>) {
        if turn.up.room(turn.now) < payload.len() {
            return;
        }
        if let Ok(sent) = send(&self.socket, payload, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            turn.up.spend(sent);
            self.up += sent as u64;
            self.moved = turn.now;
        }
    }

    /// Brings what the server said. Says when to look again.
    pub fn pump(&mut self, turn: &mut Turn<'_>) -> Duration {
        let mut payload = [0; MAX_PAYLOAD];
        let most = if self.server.is_ipv4() { MAX_PAYLOAD } else { MAX_PAYLOAD - 20 };
        for _ in 0..TURN {
            let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
            match recv(&self.socket, &mut payload[..], flags) {
                Ok((_, len)) if len > most || turn.down.room(turn.now) < len => {}
                Ok((_, len)) => {
                    let from = (self.server.ip(), self.server.port());
                    turn.port.give(packet::datagram(from, self.guest_port, &payload[..len]));
                    turn.down.spend(len);
                    self.down += len as u64;
                    self.moved = turn.now;
                }
                Err(rustix::io::Errno::INTR) => {}
                // An unreachable port is told once; the guest finds out by silence.
                Err(_) => return self.moved + IDLE,
            }
        }
        turn.now
    }

    /// Whether nothing was said for too long.
    pub fn is_over(&self, now: Duration) -> bool {
        now >= self.moved + IDLE
    }

    /// Whether it may go on under another policy.
    pub fn still_allowed(&mut self, policy: &Policy, site: &Site) -> bool {
        let asked = Asked {
            protocol: Protocol::Udp,
            address: self.server.ip(),
            port: self.server.port(),
            names: &self.names,
        };
        match policy.connect(site, &asked) {
            // What is said in it was never read.
            Verdict::Allow { rule, check } if check <= Check::Name => {
                self.rule = rule;
                true
            }
            _ => false,
        }
    }

    /// Writes its last line.
    pub fn close(self, why: &str, journal: &mut Journal, now: Duration) {
        let entry = Entry::closed(EgressKind::Udp, why, self.up, self.down)
            .name(self.names.first())
            .to(self.server.ip(), self.server.port())
            .rule(Some(self.rule));
        journal.note(entry, now);
    }
}
