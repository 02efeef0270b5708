//! The guest's end of one TCP connection: smoltcp, with one interface and one socket per flow.
//!
//! An interface of its own lets a flow have the address that the guest believes to talk to, and
//! makes the work for a segment independent of how many flows there are: a table finds the flow,
//! and nothing is searched. An interface without a link layer is a few hundred bytes.

use std::net::SocketAddr;
use std::time::Duration;

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetProtocol, HardwareAddress, IpCidr, IpEndpoint};

use super::packet::{HEADER, blank, write_header};
use super::port::Port;
use pandastack_proto::network::MTU;

/// How long an acknowledgement waits for data to travel with.
const ACK_DELAY: smoltcp::time::Duration = smoltcp::time::Duration::from_millis(5);

/// Segments sent in one turn: more than the largest buffer has.
const MAX_SEGMENTS: usize = 128;

/// One connection, as the guest sees it.
pub struct Guest {
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

/// Bytes that a connection buffers in each direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffers(pub usize);

impl Guest {
    /// Waits for the guest's first segment to `server`. `seed` chooses sequence numbers, so it has
    /// to be random.
    pub fn listen(server: SocketAddr, buffers: Buffers, seed: u64, now: Duration) -> Option<Self> {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut Wire::closed(), instant(now));
        let bits = if server.is_ipv4() { 32 } else { 128 };
        interface.update_ip_addrs(|own| {
            // An interface has room for two.
            let _ = own.push(IpCidr::new(server.ip().into(), bits));
        });
        let buffer = || SocketBuffer::new(vec![0; buffers.0]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY));
        socket.listen(IpEndpoint::from(server)).ok()?;
        let mut sockets = SocketSet::new(Vec::with_capacity(1));
        let handle = sockets.add(socket);
        Some(Self { interface, sockets, handle })
    }

    /// Takes one packet of the guest, and sends what there is to say.
    pub fn take(&mut self, packet: &[u8], port: &mut Port, now: Duration) {
        let mut wire = Wire { packet: Some(packet), port: Some(port) };
        self.interface.poll_ingress_single(instant(now), &mut wire, &mut self.sockets);
        self.send(wire, now);
    }

    /// Sends what there is to say.
    pub fn speak(&mut self, port: &mut Port, now: Duration) {
        self.send(Wire { packet: None, port: Some(port) }, now);
    }

    /// Sends segment after segment, as long as there are some and the wire takes them.
    fn send(&mut self, mut wire: Wire<'_>, now: Duration) {
        for _ in 0..MAX_SEGMENTS {
            let polled = self.interface.poll_egress(instant(now), &mut wire, &mut self.sockets);
            if polled == PollResult::None {
                return;
            }
        }
    }

    /// When [`Guest::speak`] is due, if it is: repetitions and late acknowledgements.
    pub fn due(&mut self, now: Duration) -> Option<Duration> {
        let at = self.interface.poll_at(instant(now), &self.sockets)?;
        Some(Duration::from_micros(u64::try_from(at.total_micros()).unwrap_or(0)).max(now))
    }

    /// The socket.
    pub fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }

    /// Whether the guest has not begun: its first segment was not one.
    pub fn is_silent(&mut self) -> bool {
        self.socket().state() == State::Listen
    }

    /// Whether nothing more will be said by either side.
    pub fn is_over(&mut self) -> bool {
        matches!(self.socket().state(), State::Closed | State::TimeWait)
    }

    /// Whether the guest has said its last byte, and all of it was taken.
    pub fn has_finished(&mut self) -> bool {
        let socket = self.socket();
        !socket.may_recv() && !matches!(socket.state(), State::Listen | State::SynReceived)
    }
}

fn instant(now: Duration) -> Instant {
    Instant::from_micros(i64::try_from(now.as_micros()).unwrap_or(i64::MAX))
}

/// The guest's wire for one turn: at most one packet in, any out.
struct Wire<'a> {
    packet: Option<&'a [u8]>,
    port: Option<&'a mut Port>,
}

impl Wire<'_> {
    fn closed() -> Self {
        Self { packet: None, port: None }
    }
}

impl Device for Wire<'_> {
    type RxToken<'b>
        = Received<'b>
    where
        Self: 'b;
    type TxToken<'b>
        = ToGuest<'b>
    where
        Self: 'b;

    fn receive(&mut self, _: Instant) -> Option<(Received<'_>, ToGuest<'_>)> {
        let packet = self.packet.take()?;
        Some((Received(packet), ToGuest(self.port.as_deref_mut()?)))
    }

    fn transmit(&mut self, _: Instant) -> Option<ToGuest<'_>> {
        self.port.as_deref_mut().filter(|port| port.has_room()).map(ToGuest)
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = usize::from(MTU);
        // A socket of this host changes no bytes; guests check what they get.
        capabilities.checksum.tcp = Checksum::Tx;
        capabilities
    }
}

struct Received<'a>(&'a [u8]);

impl RxToken for Received<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        read(self.0)
    }
}

struct ToGuest<'a>(&'a mut Port);

impl TxToken for ToGuest<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, write: F) -> R {
        let mut frame = blank(len, true);
        let result = write(&mut frame[HEADER..]);
        if frame.get(HEADER).is_some_and(|first| first >> 4 == 6) {
            write_header(&mut frame, EthernetProtocol::Ipv6);
        }
        self.0.give(frame);
        result
    }
}
