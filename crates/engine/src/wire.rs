//! The wire between a machine's network device and whoever is its network: a pair of sockets, one
//! Ethernet frame per datagram.
//!
//! Every machine gets a new one, forked or not. The kernel bounds what waits in it; what does not
//! fit stays where it is, in the guest or with the gateway. Both ends learn that the other is gone.

use std::io;
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair, sockopt};

/// Bytes that may wait in each direction, as the kernel counts them: some 2.3 KiB for a frame of
/// 1.5, so a hundred frames. The kernel doubles it, up to what the host allows.
const BUFFER: usize = 256 << 10;

/// Makes the gateway's end and the machine's. Neither blocks.
pub(crate) fn open() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    for end in [&ours, &theirs] {
        sockopt::set_socket_send_buffer_size(end, BUFFER)?;
    }
    Ok((ours, theirs))
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;
    use rustix::net::{RecvFlags, SendFlags, recv, send};

    use super::*;

    #[test]
    fn a_hundred_frames_wait_and_then_there_is_an_end() {
        let (ours, theirs) = open().unwrap();
        for (from, to) in [(&ours, &theirs), (&theirs, &ours)] {
            let sent =
                (0..10_000).take_while(|_| send(from, &[7; 1514], SendFlags::empty()).is_ok());
            let sent = sent.count();
            assert!((100..1_000).contains(&sent), "{sent} frames fit");
            let mut frame = [0; 2048];
            let received = (0..).take_while(|_| {
                recv(to, &mut frame, RecvFlags::empty()).is_ok_and(|(_, length)| length == 1514)
            });
            assert_eq!(received.count(), sent, "frames stay apart");
        }
        drop(theirs);
        assert_eq!(send(&ours, &[7; 60], SendFlags::NOSIGNAL), Err(Errno::PIPE));
    }
}
