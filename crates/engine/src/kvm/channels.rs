//! The descriptors that are one machine's own: its sockets to the server and its complaints.
//!
//! Every machine gets new ones, forked or not, so that no two processes share one.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::wire;

/// The server's ends.
pub(super) struct Ours {
    pub complaints: OwnedFd,
    pub control: OwnedFd,
    pub agent: UnixStream,
    pub net: OwnedFd,
}

/// The machine's ends.
pub(super) struct Theirs {
    /// Its standard error.
    pub complaints: OwnedFd,
    pub control: OwnedFd,
    pub agent: OwnedFd,
    /// Frames of its network device.
    pub net: OwnedFd,
}

/// Makes both.
pub(super) fn open() -> io::Result<(Ours, Theirs)> {
    let (agent, their_agent) = UnixStream::pair()?;
    let (complaints, their_complaints) = pipe_with(PipeFlags::CLOEXEC)?;
    let (control, their_control) = control()?;
    let (net, their_net) = wire::open()?;
    let ours = Ours { complaints, control, agent, net };
    let agent = their_agent.into();
    let (complaints, control, net) = (their_complaints, their_control, their_net);
    Ok((ours, Theirs { complaints, control, agent, net }))
}

/// A control socket: the server's end, which does not block, and the monitor's, which does.
pub(super) fn control() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    fcntl_setfl(&ours, fcntl_getfl(&ours)? | OFlags::NONBLOCK)?;
    Ok((ours, theirs))
}
