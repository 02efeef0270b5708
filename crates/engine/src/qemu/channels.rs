//! The descriptors that are one machine's own: its sockets to the server and its complaints.
//!
//! Every machine gets new ones, forked or not, so that no two processes share one. The machine's
//! ends are remembered by identity ([`FileId`]): that is how a fork of it says what to replace.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use pandastack_fork::FileId;
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::wire;

/// The server's ends.
pub(super) struct Ours {
    pub complaints: OwnedFd,
    pub qmp: UnixStream,
    pub agent: UnixStream,
    pub control: OwnedFd,
    pub net: OwnedFd,
}

impl Ours {
    /// Copies of those that can be handed to another server, in the order of [`Ours::from_copies`].
    pub fn copies(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![
            self.complaints.try_clone()?,
            self.qmp.as_fd().try_clone_to_owned()?,
            self.agent.as_fd().try_clone_to_owned()?,
            self.control.try_clone()?,
            self.net.try_clone()?,
        ])
    }

    /// What another server had.
    pub fn from_copies(copies: [OwnedFd; 5]) -> Self {
        let [complaints, qmp, agent, control, net] = copies;
        Self { complaints, qmp: qmp.into(), agent: agent.into(), control, net }
    }
}

/// The machine's ends.
pub(super) struct Theirs {
    /// Its standard error.
    pub stderr: OwnedFd,
    pub qmp: OwnedFd,
    pub agent: OwnedFd,
    /// Requests to fork: datagrams of `pandastack_fork`.
    pub control: OwnedFd,
    /// Frames of its network device.
    pub net: OwnedFd,
}

/// Identities of the machine's ends, in the order of [`Theirs::in_order`].
pub(super) type Identities = [FileId; 5];

/// Makes both.
pub(super) fn open() -> io::Result<(Ours, Theirs)> {
    let (qmp, their_qmp) = UnixStream::pair()?;
    let (agent, their_agent) = UnixStream::pair()?;
    let (complaints, stderr) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let (control, their_control) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )?;
    let (net, their_net) = wire::open()?;
    let ours = Ours { complaints, qmp, agent, control, net };
    let (qmp, agent) = (their_qmp.into(), their_agent.into());
    Ok((ours, Theirs { stderr, qmp, agent, control: their_control, net: their_net }))
}

impl Theirs {
    /// All of them, in one order that everybody keeps.
    pub fn in_order(self) -> [OwnedFd; 5] {
        [self.stderr, self.qmp, self.agent, self.control, self.net]
    }

    pub fn identities(&self) -> io::Result<Identities> {
        Ok([
            identity(&self.stderr)?,
            identity(&self.qmp)?,
            identity(&self.agent)?,
            identity(&self.control)?,
            identity(&self.net)?,
        ])
    }
}

/// What file a descriptor leads to.
pub(super) fn identity(fd: impl AsFd) -> io::Result<FileId> {
    let stat = rustix::fs::fstat(fd)?;
    Ok(FileId { device: stat.st_dev, inode: stat.st_ino })
}
