//! What a server and a holder say to each other: JSON datagrams with descriptors attached.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// Raised when messages change: a holder may be an older program than the server that finds it.
pub(crate) const VERSION: u32 = 1;
/// Most bytes of a message.
const MAX_BYTES: usize = 64 << 10;
/// Most descriptors of a machine.
const MAX_DESCRIPTORS: usize = 16;

/// How long a machine may live without a server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Until {
    /// Until this time of the wall clock, in milliseconds since the Unix epoch.
    Time(u64),
    /// So long after the server's end.
    After(Duration),
}

impl Until {
    /// What is left of it, for a server that ended so long ago.
    pub(crate) fn left(self, alone: Duration) -> Duration {
        match self {
            Self::After(grace) => grace.saturating_sub(alone),
            Self::Time(end) => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
                Duration::from_millis(end).saturating_sub(now)
            }
        }
    }
}

/// A machine that is held.
#[derive(Debug)]
pub struct Held {
    /// Its name: that of its directory.
    pub name: String,
    /// What its server wrote down of it.
    pub note: String,
    /// Its descriptors, the pidfd of its process first.
    pub descriptors: Vec<OwnedFd>,
}

/// One datagram.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Message {
    /// Keep this machine, whose descriptors are attached. Replaces one of the same name.
    Hold { name: String, note: String, until: Until },
    /// Another time to live.
    Until { name: String, until: Until },
    /// Forget it.
    Release { name: String },
    /// Say what there is: every machine as `Hold`, then `Everything`. It stays held.
    Take { version: u32 },
    /// That was all, by a holder of this version. One of another has ended what it held.
    Everything { version: u32 },
}

/// Sends a message, waiting only if the socket does.
pub(crate) fn send(
    socket: impl AsFd,
    message: &Message,
    attached: &[BorrowedFd<'_>],
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_BYTES || attached.len() > MAX_DESCRIPTORS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a machine that is too large"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !attached.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(attached));
    }
    let flags = flags | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(socket, &[IoSlice::new(&bytes)], &mut control, flags)?;
    Ok(())
}

/// Receives a message; `None` when nobody is at the other end.
pub(crate) fn receive(socket: impl AsFd) -> io::Result<Option<(Message, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_BYTES];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let into = &mut [IoSliceMut::new(&mut bytes)];
    let received = loop {
        match rustix::net::recvmsg(&socket, into, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?.bytes,
        }
    };
    let attached = control
        .drain()
        .flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        })
        .collect();
    if received == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&bytes[..received])?, attached)))
}
