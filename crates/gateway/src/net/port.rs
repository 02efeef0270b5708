//! The socket of a guest's frames: one frame per datagram, with a queue for what does not fit.
//!
//! The invariant: **memory is bounded and nobody waits.** When the socket is full, frames queue;
//! when the queue is full, TCP is told to wait ([`Port::has_room`]) and everything else is lost, as
//! networks lose packets.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

/// Most frames that wait for the socket: 1.5 KiB each.
const MAX_QUEUE: usize = 256;

/// The socket with its queue.
#[derive(Debug)]
pub struct Port {
    socket: OwnedFd,
    queue: VecDeque<Vec<u8>>,
}

/// What the socket had.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// A frame of so many bytes, even if the buffer was shorter.
    Frame(usize),
    /// Nothing at the moment.
    Nothing,
    /// The machine is gone.
    Gone,
}

impl Port {
    /// Takes over a socket that keeps the borders of datagrams.
    pub fn new(socket: OwnedFd) -> Self {
        Self { socket, queue: VecDeque::new() }
    }

    /// Takes one frame of the guest.
    pub fn take(&self, buffer: &mut [u8]) -> Taken {
        match recv(&self.socket, buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC) {
            Ok((_, 0)) => Taken::Gone,
            Ok((_, len)) => Taken::Frame(len),
            Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS | Errno::NOMEM) => Taken::Nothing,
            Err(_) => Taken::Gone,
        }
    }

    /// Sends a frame to the guest, now or when there is room. It is lost if too many wait.
    pub fn give(&mut self, frame: Vec<u8>) {
        if self.queue.is_empty() && self.send(&frame) {
            return;
        }
        if self.has_room() {
            self.queue.push_back(frame);
        }
    }

    /// Whether another frame would not be lost.
    pub fn has_room(&self) -> bool {
        self.queue.len() < MAX_QUEUE
    }

    /// Whether frames wait for the socket.
    pub fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Sends what waits, as far as it goes.
    pub fn flush(&mut self) {
        while let Some(frame) = self.queue.pop_front() {
            if !self.send(&frame) {
                return self.queue.push_front(frame);
            }
        }
    }

    /// Whether the socket took the frame, or never will.
    fn send(&self, frame: &[u8]) -> bool {
        let sent = send(&self.socket, frame, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        // A machine that is gone is noticed by whoever reads.
        !matches!(sent, Err(Errno::AGAIN | Errno::INTR))
    }
}

impl AsFd for Port {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    #[test]
    fn a_guest_that_does_not_read_costs_a_bounded_queue() {
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .unwrap();
        let mut port = Port::new(ours);
        for number in 0..4096_u32 {
            port.give(number.to_be_bytes().repeat(300));
        }
        assert!(port.is_waiting() && !port.has_room());
        let mut expected = 0;
        let mut buffer = [0; 2048];
        loop {
            port.flush();
            match recv(&theirs, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((len, _)) => {
                    assert_eq!((len, &buffer[..4]), (1200, &u32::to_be_bytes(expected)[..]));
                    expected += 1;
                }
                Err(_) => break,
            }
        }
        assert!(expected >= MAX_QUEUE as u32 && !port.is_waiting(), "{expected} came");
        assert_eq!(port.take(&mut buffer), Taken::Nothing);
        drop(theirs);
        assert_eq!(port.take(&mut buffer), Taken::Gone);
    }
}
