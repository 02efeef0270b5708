//! The device: packets out of one queue, packets into the other, and the event of a reset.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::GUEST_CID;
use super::connection::Connection;
use super::host::Host;
use super::packet::{HEADER_LEN, Header, op};
use crate::GuestMemory;
use crate::virtio::device::{Broken, Device, DeviceState, Interest};
use crate::virtio::queue::{Chain, Queue};

/// `VIRTIO_ID_VSOCK`.
const KIND: u32 = 19;

/// Sizes of the queues: receive, transmit, event. Linux fills the first with buffers of a page
/// each, which a fork has to copy one after the other as they are used.
const QUEUE_SIZES: [u16; 3] = [64, 64, 8];

/// Packets of each direction in one turn.
const BUDGET: usize = 64;

/// Refusals that wait for a receive buffer. With more, the transmit queue rests.
pub(super) const MAX_REFUSALS: usize = 64;

/// Most bytes in one packet to the guest. Linux' buffers hold a little less than a page.
const MAX_PAYLOAD: usize = 4096;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`, as the whole event.
const TRANSPORT_RESET: [u8; 4] = 0_u32.to_le_bytes();

/// Whether the guest knows that its connections are gone: see the picture on the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reset {
    Settled,
    Owed,
    /// The event is in the guest's hands. Its buffer has come back when the driver's index of the
    /// event queue is another one than this.
    Told(u16),
}

/// The device.
#[derive(Debug)]
pub struct Vsock {
    host: Host,
    connection: Option<Connection>,
    refusals: VecDeque<Header>,
    reset: Reset,
    /// Only the socket keeps the guest from getting more.
    wants_read: bool,
}

impl Vsock {
    /// A device whose stream leads to `stream`. Without one, whatever the agent says is thrown away.
    pub fn new(stream: Option<OwnedFd>) -> Self {
        Self {
            host: Host::new(stream),
            connection: None,
            refusals: VecDeque::new(),
            reset: Reset::Settled,
            wants_read: false,
        }
    }

    /// The child of a fork gets a socket of its own. Bytes for the old one are its parent's to send;
    /// here they count as taken. The guest's connection stays. To be followed by a turn of work.
    pub fn replace_stream(&mut self, stream: OwnedFd) {
        let discarded = self.host.discard();
        self.taken(discarded);
        self.host.replace(stream);
    }

    /// The guest goes on somewhere else than where its connections led: drops them, on both sides.
    pub fn reset_transport(&mut self) {
        self.drop_connection();
        self.refusals.clear();
        if self.reset == Reset::Settled {
            self.reset = Reset::Owed;
        }
    }

    /// Bytes on their way to the socket.
    #[cfg(test)]
    pub(super) fn held(&self) -> usize {
        self.host.held()
    }

    /// Moves a reset on, if there is one.
    fn announce_reset(&mut self, event: &mut Queue, memory: &GuestMemory) -> Result<(), Broken> {
        match self.reset {
            Reset::Settled => {}
            Reset::Owed => {
                // Read before the event is given away: from then on it may change.
                let index = available_index(event, memory)?;
                let Some(chain) = event.pop(memory)? else { return Ok(()) };
                if chain.write(memory, 0, &TRANSPORT_RESET)? < TRANSPORT_RESET.len() {
                    return Err(Broken("a buffer that is too short for an event"));
                }
                event.push(memory, chain.head, TRANSPORT_RESET.len() as u32)?;
                self.reset = Reset::Told(index);
            }
            Reset::Told(index) => {
                if available_index(event, memory)? != index {
                    self.reset = Reset::Settled;
                }
            }
        }
        Ok(())
    }

    /// Takes packets from the guest, as long as there is room for the refusals they may lead to.
    fn transmit(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<(), Broken> {
        for _ in 0..BUDGET {
            if self.refusals.len() >= MAX_REFUSALS {
                return Ok(());
            }
            let Some(chain) = queue.pop(memory)? else { return Ok(()) };
            let mut header = [0; HEADER_LEN];
            if chain.read(memory, 0, &mut header)? < HEADER_LEN {
                return Err(Broken("a packet shorter than its header"));
            }
            self.packet(&Header::parse(&header), &chain, memory)?;
            queue.push(memory, chain.head, 0)?;
        }
        Ok(())
    }

    /// Does what one packet of the guest says.
    fn packet(
        &mut self,
        packet: &Header,
        chain: &Chain,
        memory: &GuestMemory,
    ) -> Result<(), Broken> {
        let Some(connection) = self.connection.as_mut().filter(|it| it.owns(packet)) else {
            match Connection::accept(packet) {
                Some(accepted) if self.connection.is_none() => self.connection = Some(accepted),
                _ => self.refuse(packet),
            }
            return Ok(());
        };
        connection.hear(packet);
        match packet.op {
            op::CREDIT_UPDATE | op::CREDIT_REQUEST => {}
            op::RW if connection.receive(packet.len).is_ok() => {
                return self.payload(packet.len, chain, memory);
            }
            op::RST => self.drop_connection(),
            // A stream with one direction is of no use to the agent: the end of one ends both.
            op::SHUTDOWN => self.end(packet),
            // A violation, or a second connection from the port of the first.
            _ => self.end(packet),
        }
        Ok(())
    }

    /// Takes the bytes of a packet, for which there is room.
    fn payload(&mut self, len: u32, chain: &Chain, memory: &GuestMemory) -> Result<(), Broken> {
        if chain.readable_bytes() < u64::from(len) + HEADER_LEN as u64 {
            return Err(Broken("a packet longer than its buffer"));
        }
        let (mut piece, mut done) = ([0; MAX_PAYLOAD], 0);
        while done < len as usize {
            let piece = &mut piece[..MAX_PAYLOAD.min(len as usize - done)];
            done += chain.read(memory, (HEADER_LEN + done) as u64, piece)?;
            self.host.push(piece);
        }
        Ok(())
    }

    /// Gives packets to the guest. True if the budget ended before them.
    fn receive(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
        self.wants_read = false;
        let mut packet = [0; HEADER_LEN + MAX_PAYLOAD];
        for _ in 0..BUDGET {
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            let room = packet.len().min(chain.writable_bytes() as usize);
            if room <= HEADER_LEN {
                return Err(Broken("a receive buffer without room for data"));
            }
            let Some(len) = self.next_packet(&mut packet[..room]) else {
                queue.unpop();
                return Ok(false);
            };
            chain.write(memory, 0, &packet[..len])?;
            queue.push(memory, chain.head, len as u32)?;
        }
        Ok(true)
    }

    /// Makes the next packet for the guest in `buffer`, and says how long it is.
    fn next_packet(&mut self, buffer: &mut [u8]) -> Option<usize> {
        let (head, payload) = buffer.split_at_mut(HEADER_LEN);
        let (header, len) = if let Some(refusal) = self.refusals.pop_front() {
            (refusal, 0)
        } else {
            let connection = self.connection.as_mut()?;
            if let Some(op) = connection.due() {
                (connection.packet(op, 0), 0)
            } else {
                let room = payload.len().min(connection.credit() as usize);
                // Reading nothing would look like the end of the stream.
                let read =
                    if room > 0 { self.host.read(&mut payload[..room]) } else { return None };
                self.wants_read = read.is_none();
                let len = read?;
                (connection.packet(op::RW, len as u32), len)
            }
        };
        head.copy_from_slice(&header.bytes());
        Some(HEADER_LEN + len)
    }

    /// Bytes of the connection have left the buffer.
    fn taken(&mut self, len: usize) {
        if let Some(connection) = &mut self.connection {
            connection.take(len as u32);
        }
    }

    /// Drops the connection, and tells the guest so.
    fn end(&mut self, packet: &Header) {
        self.drop_connection();
        self.refuse(packet);
    }

    fn drop_connection(&mut self) {
        self.connection = None;
        self.host.discard();
    }

    fn refuse(&mut self, packet: &Header) {
        if packet.op != op::RST {
            self.refusals.push_back(packet.refusal());
        }
    }
}

impl Device for Vsock {
    fn kind(&self) -> u32 {
        KIND
    }

    fn features(&self) -> u64 {
        // Streams are what a device without features has.
        0
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &QUEUE_SIZES
    }

    fn config(&self) -> Vec<u8> {
        GUEST_CID.to_le_bytes().to_vec()
    }

    fn reset(&mut self) {
        self.drop_connection();
        self.refusals.clear();
        self.reset = Reset::Settled;
        self.wants_read = false;
    }

    fn work(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<bool, Broken> {
        let [receive, transmit, event] = queues else {
            return Err(Broken("a socket device has three queues"));
        };
        self.announce_reset(event, memory)?;
        if self.reset != Reset::Settled {
            self.wants_read = false;
            return Ok(false);
        }
        self.transmit(transmit, memory)?;
        let flushed = self.host.flush();
        self.taken(flushed);
        let more = self.receive(receive, memory)?;
        let room = self.refusals.len() < MAX_REFUSALS;
        Ok(more || (room && transmit.has_available(memory)?))
    }

    fn interest(&self) -> Option<Interest<'_>> {
        self.host.interest(self.wants_read)
    }

    fn save(&self) -> DeviceState {
        DeviceState::Vsock {
            connection: self.connection.as_ref().map(Connection::saved),
            told: match self.reset {
                Reset::Told(index) => Some(index),
                Reset::Settled | Reset::Owed => None,
            },
        }
    }

    /// Includes [`Vsock::reset_transport`] where there is no connection to go on with.
    fn restore(&mut self, state: DeviceState) -> Result<(), Broken> {
        let DeviceState::Vsock { connection, told } = state else {
            return Err(Broken("the state of another device"));
        };
        self.reset = told.map_or(Reset::Settled, Reset::Told);
        match connection {
            Some(it) if told.is_none() && it.is_possible() => self.connection = Some(it),
            Some(_) => return Err(Broken("an impossible connection")),
            None => self.reset_transport(),
        }
        Ok(())
    }
}

/// The driver's index of a queue: how many buffers it has offered, wrapping.
fn available_index(queue: &Queue, memory: &GuestMemory) -> Result<u16, Broken> {
    memory
        .load(GuestAddress(queue.setup().available + 2), Ordering::Acquire)
        .map_err(|_| Broken("an available ring that went away"))
}
