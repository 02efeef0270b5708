//! The host's end: a Unix socket, and what is on its way to it.
//!
//! Once the other end of the socket is gone, nothing comes and everything that is sent is thrown
//! away. No call here ever waits.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use crate::virtio::device::Interest;

/// Memory that an empty buffer may keep.
const KEPT: usize = 16 * 1024;

/// The socket, if there is one, and the bytes for it.
#[derive(Debug)]
pub struct Host {
    socket: Option<OwnedFd>,
    outgoing: VecDeque<u8>,
}

impl Host {
    /// With nothing on its way.
    pub fn new(socket: Option<OwnedFd>) -> Self {
        Self { socket, outgoing: VecDeque::new() }
    }

    /// Puts another socket in the place of the one that there was. What was on its way stays, so
    /// [`discard`](Self::discard) it first.
    pub fn replace(&mut self, socket: OwnedFd) {
        self.socket = Some(socket);
    }

    /// What to wait for, besides reading if that is wanted.
    pub fn interest(&self, read: bool) -> Option<Interest<'_>> {
        let write = !self.outgoing.is_empty();
        let fd = self.socket.as_ref()?.as_fd();
        (read || write).then_some(Interest { fd, read, write })
    }

    /// Takes bytes on; the caller bounds them.
    pub fn push(&mut self, bytes: &[u8]) {
        self.outgoing.extend(bytes);
    }

    /// Bytes on their way.
    #[cfg(test)]
    pub fn held(&self) -> usize {
        self.outgoing.len()
    }

    /// Forgets what is on its way, and says how much that was.
    pub fn discard(&mut self) -> usize {
        std::mem::take(&mut self.outgoing).len()
    }

    /// Sends what the socket takes now, and says how many bytes are no longer on their way.
    pub fn flush(&mut self) -> usize {
        let mut done = 0;
        while !self.outgoing.is_empty() {
            let Some(socket) = &self.socket else { return done + self.discard() };
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match send(socket, self.outgoing.as_slices().0, flags) {
                Ok(sent) => {
                    self.outgoing.drain(..sent);
                    done += sent;
                }
                Err(Errno::AGAIN) => return done,
                Err(Errno::INTR) => {}
                Err(_) => self.socket = None,
            }
        }
        if self.outgoing.capacity() > KEPT {
            self.outgoing = VecDeque::new();
        }
        done
    }

    /// Reads what there is now into `buffer`, which has room for something. `None`: nothing.
    pub fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match recv(self.socket.as_ref()?, &mut *buffer, RecvFlags::DONTWAIT) {
                Ok((0, _)) => self.socket = None,
                Ok((read, _)) => return Some(read),
                Err(Errno::AGAIN) => return None,
                Err(Errno::INTR) => {}
                Err(_) => self.socket = None,
            }
        }
    }
}
