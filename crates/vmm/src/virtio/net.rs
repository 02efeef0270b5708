//! A network card: virtio-net (virtio 1.2, section 5.1) over an inherited socket, one Ethernet
//! frame per datagram.
//!
//! **No frame is ever held here.** One that the guest sends stays in its queue until the socket
//! takes it, one for the guest stays in the socket until the guest has a buffer; so a stop, a
//! fork or a snapshot between two turns finds nothing half done. A guest without a socket, or
//! whose peer is gone, talks to nobody.
//!
//! No offloads are offered, so every frame is whole, and the header before it says nothing.

use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MAC;

use super::device::{Broken, Device, DeviceState, Interest};
use super::queue::{Chain, Queue};
use crate::GuestMemory;

/// Longest frame: 1500 bytes of payload, Ethernet header, one VLAN tag. It is also what drivers
/// without offloads have buffers for (section 5.1.6.3.1).
pub const MAX_FRAME: usize = 1518;
/// Shortest frame: an Ethernet header.
const MIN_FRAME: usize = 14;
/// `struct virtio_net_hdr` of virtio 1, before every frame.
const HEADER: usize = 12;
/// One that says nothing, but that the frame is in one buffer (`num_buffers`, section 5.1.6.4.1).
const PLAIN_HEADER: [u8; HEADER] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
/// Some 128 frames of 1.5 KiB: enough for what arrives while the guest does something else.
const QUEUE_SIZE: u16 = 128;
/// A turn ends after so many frames in each direction.
const TURN_FRAMES: usize = 64;

/// The network card.
#[derive(Debug)]
pub struct Net {
    socket: Option<OwnedFd>,
    mac: [u8; 6],
    /// The guest has a buffer and the socket had no frame.
    hungry: bool,
    /// The guest has a frame and the socket had no room.
    jammed: bool,
}

/// What became of something that a socket was asked for.
enum Socket<T> {
    Done(T),
    /// It is to be asked again when poll(2) says so.
    NotNow,
    /// There is nobody at the other end.
    Gone,
}

impl Net {
    /// A card with this address, and a socket that keeps the borders of datagrams.
    pub fn new(socket: Option<OwnedFd>, mac: [u8; 6]) -> Self {
        Self { socket, mac, hungry: false, jammed: false }
    }

    /// Another socket, or none: what a copy does.
    pub fn set_socket(&mut self, socket: Option<OwnedFd>) {
        *self = Self::new(socket, self.mac);
    }

    /// Frames from the guest, while there is room for them. True if there are more.
    fn transmit(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
        self.jammed = false;
        for _ in 0..TURN_FRAMES {
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            match self.send(&chain, memory)? {
                Socket::Done(()) => queue.push(memory, chain.head, 0)?,
                Socket::NotNow => {
                    queue.unpop();
                    self.jammed = true;
                    return Ok(false);
                }
                Socket::Gone => {
                    queue.push(memory, chain.head, 0)?;
                    self.set_socket(None);
                }
            }
        }
        queue.has_available(memory)
    }

    /// Sends one frame; one of an impossible length is sent nowhere.
    fn send(&self, chain: &Chain, memory: &GuestMemory) -> Result<Socket<()>, Broken> {
        let mut frame = [0; MAX_FRAME];
        let len = chain.readable_bytes().saturating_sub(HEADER as u64);
        let Some(socket) = &self.socket else { return Ok(Socket::Done(())) };
        if !(MIN_FRAME as u64..=MAX_FRAME as u64).contains(&len) {
            return Ok(Socket::Done(()));
        }
        let frame = &mut frame[..len as usize];
        chain.read(memory, HEADER as u64, frame)?;
        Ok(match send(socket, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            // Too much for this kernel at the moment: a network may lose a frame.
            Ok(_) | Err(Errno::NOBUFS | Errno::NOMEM | Errno::MSGSIZE) => Socket::Done(()),
            Err(Errno::AGAIN | Errno::INTR) => Socket::NotNow,
            Err(_) => Socket::Gone,
        })
    }

    /// Frames for the guest, while it has buffers. True if there may be more.
    fn receive(&mut self, queue: &mut Queue, memory: &GuestMemory) -> Result<bool, Broken> {
        self.hungry = false;
        let mut buffer = [0; HEADER + MAX_FRAME];
        buffer[..HEADER].copy_from_slice(&PLAIN_HEADER);
        for _ in 0..TURN_FRAMES {
            let Some(socket) = &self.socket else { return Ok(false) };
            let Some(chain) = queue.pop(memory)? else { return Ok(false) };
            match receive(socket, &mut buffer[HEADER..]) {
                Socket::Done(len) if fits(len, &chain) => {
                    let bytes = &buffer[..HEADER + len];
                    chain.write(memory, 0, bytes)?;
                    queue.push(memory, chain.head, bytes.len() as u32)?;
                }
                // A frame that cannot be is lost; the buffer waits for the next.
                Socket::Done(_) => queue.unpop(),
                Socket::NotNow => {
                    queue.unpop();
                    self.hungry = true;
                    return Ok(false);
                }
                Socket::Gone => {
                    queue.unpop();
                    self.set_socket(None);
                }
            }
        }
        Ok(true)
    }
}

/// Takes one frame, and says how long it was, even if the buffer is shorter.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Socket<usize> {
    match recv(socket, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
        Ok((_, 0)) => Socket::Gone,
        Ok((_, len)) => Socket::Done(len),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Socket::NotNow,
        Err(_) => Socket::Gone,
    }
}

fn fits(len: usize, chain: &Chain) -> bool {
    (MIN_FRAME..=MAX_FRAME).contains(&len) && chain.writable_bytes() >= (HEADER + len) as u64
}

impl Device for Net {
    fn kind(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
    }

    fn queue_sizes(&self) -> &'static [u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn config(&self) -> Vec<u8> {
        self.mac.to_vec()
    }

    fn reset(&mut self) {
        self.hungry = false;
        self.jammed = false;
    }

    fn work(&mut self, queues: &mut [Queue], memory: &GuestMemory) -> Result<bool, Broken> {
        let [for_guest, from_guest] = queues else {
            return Err(Broken("a network card has two queues"));
        };
        let more_from = self.transmit(from_guest, memory)?;
        let more_for = self.receive(for_guest, memory)?;
        Ok(more_from || more_for)
    }

    fn interest(&self) -> Option<Interest<'_>> {
        let fd = self.socket.as_ref()?.as_fd();
        Some(Interest { fd, read: self.hungry, write: self.jammed })
    }

    fn save(&self) -> DeviceState {
        DeviceState::Nothing
    }

    fn restore(&mut self, state: DeviceState) -> Result<(), Broken> {
        state.expect_nothing()
    }
}
