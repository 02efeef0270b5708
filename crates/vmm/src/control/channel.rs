//! Messages on the socket.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MAX_DESCRIPTORS, MAX_MESSAGE, Message, Role};

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

/// A message that arrived.
#[derive(Debug)]
pub struct Received<T> {
    /// What is said.
    pub body: T,
    /// What came with it.
    pub descriptors: Vec<(Role, OwnedFd)>,
}

impl<T> Received<T> {
    /// Takes out the one descriptor with this role, if it is there.
    pub fn take(&mut self, role: Role) -> Option<OwnedFd> {
        let at = self.descriptors.iter().position(|(have, _)| *have == role)?;
        Some(self.descriptors.remove(at).1)
    }

    /// Takes out all descriptors with this role, in their order.
    pub fn take_all(&mut self, role: Role) -> Vec<OwnedFd> {
        let (taken, left): (Vec<_>, Vec<_>) =
            self.descriptors.drain(..).partition(|(have, _)| *have == role);
        self.descriptors = left;
        taken.into_iter().map(|(_, fd)| fd).collect()
    }
}

/// Sends one message.
pub fn send<T: Serialize>(
    socket: impl AsFd,
    body: T,
    descriptors: &[(Role, BorrowedFd<'_>)],
) -> Result<(), WireError> {
    let message = Message { body, roles: descriptors.iter().map(|(role, _)| *role).collect() };
    let bytes = postcard::to_stdvec(&message).map_err(|_| WireError::Malformed)?;
    if bytes.len() > MAX_MESSAGE || descriptors.len() > MAX_DESCRIPTORS {
        return Err(WireError::TooLong);
    }
    let attached: Vec<BorrowedFd<'_>> = descriptors.iter().map(|(_, fd)| *fd).collect();
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !attached.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&attached));
    }
    let vector = [IoSlice::new(&bytes)];
    loop {
        match rustix::net::sendmsg(&socket, &vector, &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(Errno::PIPE | Errno::CONNRESET) => return Err(WireError::Closed),
            Err(errno) => return Err(WireError::Socket(errno)),
        }
    }
}

/// Receives one message, waiting for it unless the socket does not block.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<Received<T>, WireError> {
    let mut bytes = vec![0u8; MAX_MESSAGE];
    let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut vector = [IoSliceMut::new(&mut bytes)];
        let flags = RecvFlags::CMSG_CLOEXEC;
        match rustix::net::recvmsg(&socket, &mut vector, &mut ancillary, flags) {
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
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.bytes == 0 && attached.is_empty() {
        return Err(WireError::Closed);
    }
    let cut = received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
    // The space for them is rounded up, so a few more may have fitted.
    if cut || attached.len() > MAX_DESCRIPTORS {
        return Err(WireError::TooLong);
    }
    let (message, rest) = postcard::take_from_bytes::<Message<T>>(&bytes[..received.bytes])
        .map_err(|_| WireError::Malformed)?;
    if !rest.is_empty() || message.roles.len() != attached.len() {
        return Err(WireError::Malformed);
    }
    Ok(Received {
        body: message.body,
        descriptors: message.roles.into_iter().zip(attached).collect(),
    })
}

#[cfg(test)]
mod tests {
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    use super::super::{Fork, Reply, Request};
    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap()
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (here, there) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let with = [(Role::Agent, file.as_fd()), (Role::Group, file.as_fd())];
        send(&here, Request::Fork(Fork { readable: true }), &with).unwrap();
        let mut got = receive::<Request>(&there).unwrap();
        assert_eq!(got.body, Request::Fork(Fork { readable: true }));
        assert!(got.take(Role::Agent).is_some() && got.take(Role::Agent).is_none());
        assert_eq!(got.take_all(Role::Group).len(), 1);
        assert!(got.descriptors.is_empty());
    }

    #[test]
    fn what_is_not_a_message_is_refused_and_the_end_is_told_apart() {
        let (here, there) = pair();
        assert!(matches!(receive::<Reply>(&there), Err(WireError::Socket(Errno::AGAIN))));
        for bytes in [&[0xff; 40][..], &[0, 0, 0], &[9]] {
            rustix::net::send(&here, bytes, SendFlags::empty()).unwrap();
            assert!(matches!(receive::<Request>(&there), Err(WireError::Malformed)));
        }
        drop(here);
        assert!(matches!(receive::<Reply>(&there), Err(WireError::Closed)));
    }

    #[test]
    fn more_descriptors_than_a_message_may_have_are_refused() {
        let (here, there) = pair();
        for count in MAX_DESCRIPTORS - 1..=MAX_DESCRIPTORS + 5 {
            let message = Message { body: Request::Run, roles: vec![Role::Layer; count] };
            let bytes = postcard::to_stdvec(&message).unwrap();
            let mut space = vec![MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253))];
            let mut ancillary = SendAncillaryBuffer::new(&mut space);
            let attached = vec![here.as_fd(); count];
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&attached)));
            let vector = [IoSlice::new(&bytes)];
            rustix::net::sendmsg(&here, &vector, &mut ancillary, SendFlags::empty()).unwrap();
            match receive::<Request>(&there) {
                Ok(received) => assert!(received.descriptors.len() == count && count <= 200),
                Err(error) => assert!(matches!(error, WireError::TooLong) && count > 200),
            }
        }
    }

    #[test]
    fn descriptors_that_the_message_does_not_name_are_closed() {
        let (here, there) = pair();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let bytes = postcard::to_stdvec(&Message { body: Request::Run, roles: vec![] }).unwrap();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let attached = [writer.as_fd()];
        ancillary.push(SendAncillaryMessage::ScmRights(&attached));
        let vector = [IoSlice::new(&bytes)];
        rustix::net::sendmsg(&here, &vector, &mut ancillary, SendFlags::empty()).unwrap();
        drop(writer);
        assert!(matches!(receive::<Request>(&there), Err(WireError::Malformed)));
        assert_eq!(rustix::io::read(&reader, &mut [0u8; 1]), Ok(0), "nobody can write any more");
    }
}
