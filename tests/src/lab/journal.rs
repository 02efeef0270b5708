//! What the internet saw. Bounded, because guests may send as much as they like.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::sniffer::Packet;

/// Most records of one kind; what comes later is only counted.
const MAX_RECORDS: usize = 20_000;
/// How much of what a client said in one connection is kept.
const MAX_SAID: usize = 64 << 10;

/// A question to the fake resolver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// Name, in lower case.
    pub name: String,
    /// Type, such as 1 for A.
    pub kind: u16,
    /// Whether it came by TCP.
    pub tcp: bool,
    /// Server that was asked.
    pub server: SocketAddr,
    /// The whole message.
    pub raw: Vec<u8>,
}

/// A connection that a fake server accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// Where to.
    pub to: SocketAddr,
    /// Where from.
    pub from: SocketAddr,
    /// The beginning of what the client said.
    pub said: Vec<u8>,
    /// How much it said.
    pub received: u64,
    /// Whether it is over.
    pub closed: bool,
}

/// A datagram that a fake server received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Datagram {
    /// Where to.
    pub to: SocketAddr,
    /// What it said.
    pub said: Vec<u8>,
}

/// Everything that was seen since somebody forgot.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// At the fake resolver and at everybody who pretends to be one.
    pub queries: Vec<Query>,
    /// By number; in the order they came.
    pub connections: BTreeMap<u64, Connection>,
    /// At the fake servers of UDP.
    pub datagrams: Vec<Datagram>,
    /// On the cable: every packet from the host, of TCP those that open a connection.
    pub packets: Vec<Packet>,
    /// How many records there was no room for.
    pub dropped: u64,
}

impl Seen {
    /// Connections to an address.
    pub fn connections_to(&self, address: &str) -> Vec<&Connection> {
        let address: IpAddr = address.parse().expect("an address");
        self.connections.values().filter(|c| c.to.ip() == address).collect()
    }

    /// Names that were asked for, in order and without repetitions next to each other.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<_> = self.queries.iter().map(|query| query.name.as_str()).collect();
        names.dedup();
        names
    }

    /// Whether a text is anywhere in what left the host.
    pub fn contains(&self, text: &str) -> bool {
        let needle = text.as_bytes().to_ascii_lowercase();
        let has = |bytes: &[u8]| {
            bytes.to_ascii_lowercase().windows(needle.len()).any(|window| window == needle)
        };
        self.packets.iter().any(|packet| has(&packet.bytes))
            || self.connections.values().any(|connection| has(&connection.said))
            || self.queries.iter().any(|query| has(&query.raw))
            || self.datagrams.iter().any(|datagram| has(&datagram.said))
    }

    /// Packets to an address.
    pub fn packets_to(&self, address: &str) -> Vec<&Packet> {
        let address: IpAddr = address.parse().expect("an address");
        self.packets.iter().filter(|packet| packet.to == Some(address)).collect()
    }
}

/// Where the internet writes what it sees.
#[derive(Clone, Default)]
pub struct Journal(Arc<Mutex<(u64, Seen)>>);

impl Journal {
    fn lock(&self) -> MutexGuard<'_, (u64, Seen)> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of it.
    pub fn seen(&self) -> Seen {
        self.lock().1.clone()
    }

    /// Begins anew. Connections that are open are forgotten too.
    pub fn forget(&self) {
        self.lock().1 = Seen::default();
    }

    pub(super) fn query(&self, query: Query) {
        let Seen { queries, dropped, .. } = &mut self.lock().1;
        push(queries, query, dropped);
    }

    pub(super) fn datagram(&self, to: SocketAddr, said: &[u8]) {
        let Seen { datagrams, dropped, .. } = &mut self.lock().1;
        push(datagrams, Datagram { to, said: said.to_vec() }, dropped);
    }

    pub(super) fn packet(&self, packet: Packet) {
        let Seen { packets, dropped, .. } = &mut self.lock().1;
        push(packets, packet, dropped);
    }

    /// Notes a new connection; its number.
    pub(super) fn connection(&self, to: SocketAddr, from: SocketAddr) -> u64 {
        let (next, seen) = &mut *self.lock();
        *next += 1;
        if seen.connections.len() < MAX_RECORDS {
            let (to, from) = (canonical(to), canonical(from));
            let new = Connection { to, from, said: Vec::new(), received: 0, closed: false };
            seen.connections.insert(*next, new);
        } else {
            seen.dropped += 1;
        }
        *next
    }

    pub(super) fn said(&self, connection: u64, bytes: &[u8]) {
        if let Some(record) = self.lock().1.connections.get_mut(&connection) {
            let room = MAX_SAID.saturating_sub(record.said.len());
            record.said.extend_from_slice(&bytes[..bytes.len().min(room)]);
            record.received += bytes.len() as u64;
        }
    }

    pub(super) fn closed(&self, connection: u64) {
        if let Some(record) = self.lock().1.connections.get_mut(&connection) {
            record.closed = true;
        }
    }
}

fn push<T>(list: &mut Vec<T>, record: T, dropped: &mut u64) {
    if list.len() < MAX_RECORDS {
        list.push(record);
    } else {
        *dropped += 1;
    }
}

/// An IPv4 address that came through a socket for both families is one.
pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
