//! One question to one resolver, over a socket of its own.
//!
//! Over UDP one datagram goes and the first that comes is the answer; which of those is to be
//! believed is the [`crate::dns::Resolver`]'s to say, so a wrong one only costs its place. Over TCP
//! both have their length before them (RFC 1035, 4.2.2).

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::host;
use super::poller::{Poller, Token};
use crate::dns::{Key, Transport};

/// Longest answer: what a length of TCP can say.
const MAX_ANSWER: usize = u16::MAX as usize;

/// A question on its way.
pub struct Question {
    /// The resolver's name for it.
    pub key: Key,
    socket: OwnedFd,
    transport: Transport,
    /// What is not sent yet.
    unsent: Vec<u8>,
    got: Vec<u8>,
}

/// What became of it so far.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// A message, which may be an answer.
    Message(Vec<u8>),
    /// Nothing yet.
    Nothing,
    /// Nothing will come.
    Failed,
}

impl Question {
    /// Sends a question, or begins to.
    pub fn ask(
        key: Key,
        resolver: SocketAddr,
        transport: Transport,
        packet: Vec<u8>,
        poller: &Poller,
        token: Token,
    ) -> io::Result<Self> {
        let (socket, unsent) = match transport {
            Transport::Udp => (host::connect_udp(resolver)?, packet),
            Transport::Tcp => {
                let len = u16::try_from(packet.len()).map_err(io::Error::other)?;
                (host::connect_tcp(resolver)?, [&len.to_be_bytes()[..], &packet].concat())
            }
        };
        poller.watch(&socket, token)?;
        Ok(Self { key, socket, transport, unsent, got: Vec::new() })
    }

    /// Goes on with it.
    pub fn pump(&mut self) -> Heard {
        if !self.unsent.is_empty() {
            match send(&self.socket, &self.unsent, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => return Heard::Nothing,
                Err(_) => return Heard::Failed,
            }
        }
        match self.transport {
            Transport::Udp => self.datagram(),
            Transport::Tcp => self.stream(),
        }
    }

    fn datagram(&mut self) -> Heard {
        let mut buffer = vec![0; MAX_ANSWER];
        match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
            Ok((len, _)) => {
                buffer.truncate(len);
                Heard::Message(buffer)
            }
            Err(Errno::AGAIN | Errno::INTR) => Heard::Nothing,
            Err(_) => Heard::Failed,
        }
    }

    fn stream(&mut self) -> Heard {
        let mut buffer = [0; 4096];
        loop {
            if let Some(message) = whole(&self.got) {
                return Heard::Message(message.to_vec());
            }
            match recv(&self.socket, &mut buffer[..], RecvFlags::DONTWAIT) {
                Ok((0, _)) => return Heard::Failed,
                Ok((len, _)) if self.got.len() + len <= MAX_ANSWER + 2 => {
                    self.got.extend_from_slice(&buffer[..len]);
                }
                Ok(_) => return Heard::Failed,
                Err(Errno::AGAIN | Errno::INTR) => return Heard::Nothing,
                Err(_) => return Heard::Failed,
            }
        }
    }
}

/// The first message of a stream, if all of it is there.
fn whole(got: &[u8]) -> Option<&[u8]> {
    let (len, rest) = got.split_first_chunk::<2>()?;
    rest.get(..usize::from(u16::from_be_bytes(*len)))
}
