//! The byte stream to the host: a virtio port, or a socket in development mode.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pandastack_proto::Encoder;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// How long to leave a port alone on whose other side nobody is. It is always "ready" then, so
/// polling it would spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A host that may come and go.
    Port,
    /// A process; when it goes, the agent goes.
    Socket,
}

/// What reading or writing came to.
#[derive(Debug, PartialEq, Eq)]
pub enum Moved {
    /// So many bytes.
    Bytes(usize),
    /// Nothing now.
    Nothing,
    /// There will never be more.
    Over,
}

/// The stream.
pub struct Link {
    fd: OwnedFd,
    kind: Kind,
    paused_until: Option<Instant>,
}

impl Link {
    /// Takes the descriptor over and makes it non-blocking.
    pub fn new(fd: OwnedFd, kind: Kind) -> rustix::io::Result<Self> {
        fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Ok(Self { fd, kind, paused_until: None })
    }

    /// The descriptor to wait for, unless nobody is at the other end.
    pub fn pollable(&mut self, now: Instant) -> Option<BorrowedFd<'_>> {
        self.paused_until = self.paused_until.filter(|&until| until > now);
        if self.paused_until.is_some() { None } else { Some(self.fd.as_fd()) }
    }

    /// When to look again although nothing is ready.
    pub fn wake_at(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Reads once.
    pub fn read(&mut self, buf: &mut [u8]) -> Moved {
        let read = rustix::io::read(&self.fd, buf);
        self.outcome(read)
    }

    /// Writes once.
    pub fn write(&mut self, out: &mut Encoder) -> Moved {
        let written = rustix::io::write(&self.fd, out.pending());
        let moved = self.outcome(written);
        if let Moved::Bytes(n) = moved {
            out.advance(n);
        }
        moved
    }

    fn outcome(&mut self, result: rustix::io::Result<usize>) -> Moved {
        match (result, self.kind) {
            (Ok(n), _) if n > 0 => Moved::Bytes(n),
            (Err(Errno::AGAIN | Errno::INTR), _) => Moved::Nothing,
            (_, Kind::Socket) => Moved::Over,
            (_, Kind::Port) => {
                self.paused_until = Some(Instant::now() + PAUSE);
                Moved::Nothing
            }
        }
    }
}
