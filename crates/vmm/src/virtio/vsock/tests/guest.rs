//! A driver as a guest has it, over a few MiB of memory, and the other end of the socket.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use vm_memory::{Bytes, GuestAddress};

use super::super::connection::BUFFER;
use super::super::packet::{HEADER_LEN, Header, STREAM, op};
use super::super::{AGENT_PORT, GUEST_CID, HOST_CID, Vsock};
use crate::GuestMemory;
use crate::virtio::device::{Broken, Device};
use crate::virtio::queue::{Queue, QueueSetup};

/// The agent's port in these tests.
pub const PORT: u32 = 1000;
/// Bytes of a receive buffer.
pub const RX_BUFFER: u32 = 512;
/// Longest payload of a packet that is sent.
pub const TX_PAYLOAD: usize = 8192 - HEADER_LEN;

const MEMORY: usize = 4 << 20;
/// Where the queues and their buffers are, 1 MiB each.
const AREA: u64 = 1 << 20;
const BUFFERS: u64 = 0x1_0000;

const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver's side of a queue. Chain `n` has the descriptors `2n` and `2n + 1`.
#[derive(Clone)]
pub struct Ring {
    base: u64,
    size: u16,
    offered: u16,
    seen: u16,
    /// Chains that the driver has.
    pub free: VecDeque<u16>,
}

impl Ring {
    fn new(area: u64, size: u16) -> Self {
        let base = area * AREA;
        Self { base, size, offered: 0, seen: 0, free: (0..size / 2).collect() }
    }

    pub fn setup(&self) -> QueueSetup {
        QueueSetup {
            size: self.size,
            ready: true,
            descriptors: self.base,
            available: self.base + 0x2000,
            used: self.base + 0x4000,
        }
    }

    /// Memory of a chain.
    fn buffer(&self, chain: u16) -> u64 {
        self.base + BUFFERS + u64::from(chain) * 8192
    }

    /// Offers a chain of one or two parts.
    pub fn offer(&mut self, memory: &GuestMemory, chain: u16, parts: &[u32], flags: u16) {
        let mut start = self.buffer(chain);
        for (n, &len) in parts.iter().enumerate() {
            let at = 2 * chain + n as u16;
            let next = if n + 1 < parts.len() { NEXT } else { 0 };
            let rest = u64::from(len) | u64::from(flags | next) << 32 | u64::from(at + 1) << 48;
            let entry = GuestAddress(self.base + 16 * u64::from(at));
            memory.write_obj([start, rest], entry).unwrap();
            start += u64::from(len);
        }
        let slot = u64::from(self.offered % self.size);
        let available = self.setup().available;
        memory.write_obj(2 * chain, GuestAddress(available + 4 + 2 * slot)).unwrap();
        self.offered = self.offered.wrapping_add(1);
        memory.write_obj(self.offered, GuestAddress(available + 2)).unwrap();
    }

    /// Chains that came back, with the bytes that were written to each.
    pub fn used(&mut self, memory: &GuestMemory) -> Vec<(u16, Vec<u8>)> {
        let used = self.setup().used;
        let index: u16 = memory.read_obj(GuestAddress(used + 2)).unwrap();
        let mut chains = Vec::new();
        while self.seen != index {
            let entry = GuestAddress(used + 4 + 8 * u64::from(self.seen % self.size));
            let [head, len] = memory.read_obj::<[u32; 2]>(entry).unwrap();
            let chain = head as u16 / 2;
            let mut bytes = vec![0; len as usize];
            memory.read_slice(&mut bytes, GuestAddress(self.buffer(chain))).unwrap();
            chains.push((chain, bytes));
            self.seen = self.seen.wrapping_add(1);
        }
        chains
    }
}

/// Device, driver and the supervisor's end.
pub struct Guest {
    pub device: Vsock,
    pub host: UnixStream,
    pub rx: Ring,
    pub tx: Ring,
    pub event: Ring,
    memory: GuestMemory,
    queues: Vec<Queue>,
    /// Packets that have arrived.
    pub inbox: VecDeque<(Header, Vec<u8>)>,
    /// What this guest says of its own buffer.
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Guest {
    /// With all receive buffers offered and no connection.
    pub fn new() -> Self {
        let mut guest = Self::bare();
        guest.give_rx(usize::MAX);
        guest
    }

    /// With no buffer offered.
    pub fn bare() -> Self {
        let (host, stream) = socket_pair();
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let device = Vsock::new(Some(stream.into()));
        let sizes = device.queue_sizes();
        let [rx, tx, event] = [0, 1, 2].map(|n| Ring::new(n, sizes[n as usize]));
        let queues = [&rx, &tx, &event]
            .map(|ring| Queue::new(ring.setup(), ring.size, &memory).unwrap())
            .to_vec();
        let (buf_alloc, fwd_cnt) = (64 * 1024, 0);
        let inbox = VecDeque::new();
        Self { device, host, rx, tx, event, memory, queues, inbox, buf_alloc, fwd_cnt }
    }

    /// With an open connection.
    pub fn connected() -> Self {
        let mut guest = Self::new();
        guest.connect(PORT);
        guest
    }

    /// Connects, and expects that it is granted.
    pub fn connect(&mut self, port: u32) {
        self.send(Header { src_port: port, ..self.header(op::REQUEST) }, &[]);
        self.work();
        let (header, _) = self.inbox.pop_front().unwrap();
        assert_eq!((header.op, header.dst_port, header.buf_alloc), (op::RESPONSE, port, BUFFER));
    }

    /// A packet of the agent.
    pub fn header(&self, op: u16) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: PORT,
            dst_port: AGENT_PORT,
            len: 0,
            kind: STREAM,
            op,
            flags: 0,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
        }
    }

    /// Sends data of the agent.
    pub fn write(&mut self, bytes: &[u8]) {
        self.send(self.header(op::RW), bytes);
    }

    /// Puts a packet into the transmit queue. Its length is that of the payload.
    pub fn send(&mut self, header: Header, payload: &[u8]) {
        let header = Header { len: payload.len() as u32, ..header };
        // Split in the middle of the payload, to see that it is put together.
        let half = payload.len() / 2;
        let parts = [HEADER_LEN + half, payload.len() - half].map(|len| len as u32);
        self.send_raw(&[&header.bytes()[..], payload].concat(), &parts);
    }

    /// Puts any bytes into the transmit queue.
    pub fn send_raw(&mut self, bytes: &[u8], parts: &[u32]) {
        let chain = self.tx.free.pop_front().expect("a free chain");
        self.memory.write_slice(bytes, GuestAddress(self.tx.buffer(chain))).unwrap();
        self.tx.offer(&self.memory, chain, parts, 0);
    }

    /// Offers up to `count` receive buffers.
    pub fn give_rx(&mut self, count: usize) {
        for chain in self.rx.free.drain(..count.min(self.rx.free.len())).collect::<Vec<_>>() {
            // The first part ends inside of the header.
            self.rx.offer(&self.memory, chain, &[10, RX_BUFFER - 10], WRITE);
        }
    }

    /// Offers a receive buffer of any size.
    pub fn give_rx_of(&mut self, len: u32) {
        let chain = self.rx.free.pop_front().unwrap();
        self.rx.offer(&self.memory, chain, &[len], WRITE);
    }

    /// Offers one event buffer.
    pub fn give_event(&mut self) {
        let chain = self.event.free.pop_front().unwrap();
        self.event.offer(&self.memory, chain, &[4], WRITE);
    }

    /// Events that have arrived.
    pub fn events(&mut self) -> Vec<Vec<u8>> {
        let used = self.event.used(&self.memory);
        self.event.free.extend(used.iter().map(|(chain, _)| chain));
        used.into_iter().map(|(_, bytes)| bytes).collect()
    }

    /// One turn, and what it brought. Says whether there is more to do.
    pub fn turn(&mut self) -> Result<bool, Broken> {
        let more = self.device.work(&mut self.queues, &self.memory)?;
        let sent = self.tx.used(&self.memory);
        self.tx.free.extend(sent.iter().map(|(chain, _)| chain));
        for (chain, bytes) in self.rx.used(&self.memory) {
            let (head, payload) = bytes.split_first_chunk().unwrap();
            let header = Header::parse(head);
            assert_eq!(header.len as usize, payload.len());
            self.inbox.push_back((header, payload.to_vec()));
            self.rx.free.push_back(chain);
        }
        Ok(more)
    }

    /// Turns until there is nothing to do.
    pub fn work(&mut self) {
        for _ in 0..10_000 {
            if !self.turn().unwrap() {
                return;
            }
        }
        panic!("the device is never done");
    }

    /// Puts a device in its place that is made of its snapshot, with another socket.
    pub fn restored(&mut self) {
        let state = self.device.save();
        let (host, stream) = socket_pair();
        self.host = host;
        self.device = Vsock::new(Some(stream.into()));
        self.device.restore(state).unwrap();
    }

    /// What the device waits for: reading, writing.
    pub fn interest(&self) -> (bool, bool) {
        self.device.interest().map_or((false, false), |it| (it.read, it.write))
    }

    /// Operations that have arrived.
    pub fn ops(&mut self) -> Vec<u16> {
        self.inbox.drain(..).map(|(header, _)| header.op).collect()
    }

    /// Sends bytes from the supervisor, as many as the socket takes now.
    pub fn host_write(&mut self, bytes: &[u8]) -> usize {
        match self.host.write(bytes) {
            Ok(written) => written,
            Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
            Err(error) => panic!("{error}"),
        }
    }

    /// What the supervisor can read now, up to `most` bytes.
    pub fn host_read(&mut self, most: usize) -> Vec<u8> {
        let mut bytes = vec![0; most];
        match self.host.read(&mut bytes) {
            Ok(read) => bytes.truncate(read),
            Err(error) if error.kind() == ErrorKind::WouldBlock => bytes.clear(),
            Err(error) => panic!("{error}"),
        }
        bytes
    }
}

/// Both ends of a socket that holds little.
pub fn socket_pair() -> (UnixStream, UnixStream) {
    let (host, device) = UnixStream::pair().unwrap();
    for end in [&host, &device] {
        end.set_nonblocking(true).unwrap();
        rustix::net::sockopt::set_socket_send_buffer_size(end, 4096).unwrap();
    }
    (host, device)
}
