//! Messages on the socket.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use pandastack_datagram::{Limits, WireError};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{MAX_DESCRIPTORS, MAX_MESSAGE, Message, Role};

const LIMITS: Limits = Limits { bytes: MAX_MESSAGE, descriptors: MAX_DESCRIPTORS };

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
    let attached: Vec<BorrowedFd<'_>> = descriptors.iter().map(|(_, fd)| *fd).collect();
    LIMITS.send(socket, &bytes, &attached)
}

/// Receives one message, waiting for it unless the socket does not block.
pub fn receive<T: DeserializeOwned>(socket: impl AsFd) -> Result<Received<T>, WireError> {
    let (bytes, attached) = LIMITS.receive(socket)?;
    let (message, rest) =
        postcard::take_from_bytes::<Message<T>>(&bytes).map_err(|_| WireError::Malformed)?;
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
    use rustix::io::Errno;
    use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, socketpair};

    use super::super::{DiskFork, Fork, Reply, Request};
    use super::*;

    /// Limits of somebody who does not keep to ours.
    const UNBOUND: Limits = Limits { bytes: MAX_MESSAGE, descriptors: 253 };

    fn pair() -> (OwnedFd, OwnedFd) {
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap()
    }

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (here, there) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let fork = Fork { readable: true, disks: vec![DiskFork { slot: Some(7), freezes: true }] };
        let with = [(Role::Agent, file.as_fd()), (Role::Group, file.as_fd())];
        send(&here, Request::Fork(fork.clone()), &with).unwrap();
        let mut got = receive::<Request>(&there).unwrap();
        assert_eq!(got.body, Request::Fork(fork));
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
            UNBOUND.send(&here, &bytes, &vec![here.as_fd(); count]).unwrap();
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
        UNBOUND.send(&here, &bytes, &[writer.as_fd()]).unwrap();
        drop(writer);
        assert!(matches!(receive::<Request>(&there), Err(WireError::Malformed)));
        assert_eq!(rustix::io::read(&reader, &mut [0u8; 1]), Ok(0), "nobody can write any more");
    }
}
