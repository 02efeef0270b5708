//! Messages between processes of one host: each is one datagram of a `SOCK_SEQPACKET` socket, with
//! descriptors attached (`SCM_RIGHTS`, unix(7)).
//!
//! Both ends bound what they read. What a message says, and what its descriptors are for, is its
//! users' affair; whatever is wrong with one, its descriptors are closed.

#![forbid(unsafe_code)]

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

/// Why a message could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// The socket failed; `EAGAIN` on one that does not block means "not now".
    #[error("the control socket failed")]
    Socket(#[source] Errno),
    /// Nobody is at the other end any more.
    #[error("the control socket was closed")]
    Closed,
    /// It was no message of ours.
    #[error("a malformed message on the control socket")]
    Malformed,
    /// It was too long, or had too many descriptors.
    #[error("a message that is too long for the control socket")]
    TooLong,
}

/// The most that one message may be.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes.
    pub bytes: usize,
    /// Descriptors; the kernel takes 253 (`SCM_MAX_FD`).
    pub descriptors: usize,
}

impl Limits {
    /// Sends one message.
    pub fn send(
        self,
        socket: impl AsFd,
        bytes: &[u8],
        attached: &[BorrowedFd<'_>],
    ) -> Result<(), WireError> {
        if bytes.len() > self.bytes || attached.len() > self.descriptors {
            return Err(WireError::TooLong);
        }
        let mut space = self.ancillary_space();
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !attached.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(attached));
        }
        loop {
            match sendmsg(&socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => return Err(WireError::Closed),
                Err(errno) => return Err(WireError::Socket(errno)),
            }
        }
    }

    /// Receives one message, waiting for it unless the socket does not block. Its descriptors are
    /// closed on exec.
    pub fn receive(self, socket: impl AsFd) -> Result<(Vec<u8>, Vec<OwnedFd>), WireError> {
        let mut bytes = vec![0; self.bytes];
        let mut space = self.ancillary_space();
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut vector = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&socket, &mut vector, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Ok(received) => break received,
                Err(Errno::INTR) => {}
                Err(Errno::CONNRESET) => return Err(WireError::Closed),
                Err(errno) => return Err(WireError::Socket(errno)),
            }
        };
        // Taken out first, so that whatever is wrong with the message, they are closed.
        let attached: Vec<OwnedFd> = ancillary
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
                _ => None,
            })
            .flatten()
            .collect();
        if received.bytes == 0 && attached.is_empty() {
            return Err(WireError::Closed);
        }
        let cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        // The space for them is rounded up, so one more may have fitted.
        if cut || attached.len() > self.descriptors {
            return Err(WireError::TooLong);
        }
        bytes.truncate(received.bytes);
        Ok((bytes, attached))
    }

    fn ancillary_space(self) -> Vec<MaybeUninit<u8>> {
        vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(self.descriptors))]
    }
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::*;

    const LIMITS: Limits = Limits { bytes: 16, descriptors: 3 };

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap()
    }

    /// Limits of somebody who does not keep to ours.
    const NONE: Limits = Limits { bytes: 1 << 10, descriptors: 253 };

    #[test]
    fn bytes_arrive_with_descriptors_and_the_end_is_told_apart() {
        let (here, there) = pair();
        assert!(matches!(LIMITS.receive(&there), Err(WireError::Socket(Errno::AGAIN))));
        LIMITS.send(&here, b"hello", &[here.as_fd(), there.as_fd()]).unwrap();
        let (bytes, attached) = LIMITS.receive(&there).unwrap();
        assert_eq!((&bytes[..], attached.len()), (&b"hello"[..], 2));
        drop((here, attached));
        assert!(matches!(LIMITS.receive(&there), Err(WireError::Closed)));
        assert!(matches!(LIMITS.send(&there, b"x", &[]), Err(WireError::Closed)));
    }

    #[test]
    fn what_is_too_long_is_neither_sent_nor_taken() {
        let (here, there) = pair();
        for (bytes, descriptors) in [(17, 0), (1, 4), (1, 253)] {
            let (bytes, attached) = (vec![1; bytes], vec![here.as_fd(); descriptors]);
            assert!(matches!(LIMITS.send(&here, &bytes, &attached), Err(WireError::TooLong)));
            NONE.send(&here, &bytes, &attached).unwrap();
            assert!(matches!(LIMITS.receive(&there), Err(WireError::TooLong)));
        }
        LIMITS.send(&here, &[1; 16], &[here.as_fd(); 3]).unwrap();
        assert!(LIMITS.receive(&there).is_ok());
    }

    #[test]
    fn descriptors_of_a_refused_message_are_closed() {
        let (here, there) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        NONE.send(&here, &[1; 100], &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(matches!(LIMITS.receive(&there), Err(WireError::TooLong)));
        assert_eq!(rustix::io::read(&reader, &mut [0; 1]), Ok(0), "nobody can write any more");
    }
}
