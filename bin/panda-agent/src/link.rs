//! The byte stream to the host: a virtio port, a vsock connection, or a socket in development mode.
//!
//! What the end of the stream means depends on what it is:
//!
//! ```text
//!   port     nobody is there now       ─▶ pause, look again
//!   dialled  this connection is over   ─▶ dial anew; if that fails, pause and dial again
//!   socket   nobody will ever be there ─▶ over
//! ```
//!
//! A connection that was dialled anew has nothing of the old one: whoever asked is told
//! ([`Moved::Anew`]) and has to start over as well.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pandastack_proto::Encoder;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

/// How long to leave a stream alone on whose other side nobody is. It is always "ready" then, so
/// polling it would spin.
const PAUSE: Duration = Duration::from_millis(50);

/// Makes another connection to the host. Bounded, because the agent does nothing else meanwhile.
pub type Dial = fn() -> rustix::io::Result<OwnedFd>;

/// What the stream is.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// A device that stays, with a host that may come and go.
    Port,
    /// A connection that ends with every host, and how to get the next.
    Dialled(Dial),
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
    /// Nothing: the connection had ended, and this is another one.
    Anew,
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
        Ok(Self { fd: non_blocking(fd)?, kind, paused_until: None })
    }

    /// The descriptor to wait for, unless nobody is at the other end.
    pub fn pollable(&mut self, now: Instant) -> Option<BorrowedFd<'_>> {
        if self.paused(now) { None } else { Some(self.fd.as_fd()) }
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
            // A packet needs memory, and a tenant may have it all for a moment.
            (Err(Errno::NOMEM | Errno::NOBUFS), _) | (_, Kind::Port) => self.pause(),
            (_, Kind::Dialled(dial)) => self.dial(dial),
        }
    }

    /// The connection has ended: gets another one, unless that was tried just now.
    fn dial(&mut self, dial: Dial) -> Moved {
        if self.paused(Instant::now()) {
            return Moved::Nothing;
        }
        match dial().and_then(non_blocking) {
            Ok(fd) => {
                self.fd = fd;
                Moved::Anew
            }
            // The old descriptor stays: it is ready after the pause, since it has ended, and that
            // leads here again.
            Err(_) => self.pause(),
        }
    }

    fn pause(&mut self) -> Moved {
        self.paused_until = Some(Instant::now() + PAUSE);
        Moved::Nothing
    }

    fn paused(&mut self, now: Instant) -> bool {
        self.paused_until = self.paused_until.filter(|&until| until > now);
        self.paused_until.is_some()
    }
}

fn non_blocking(fd: OwnedFd) -> rustix::io::Result<OwnedFd> {
    fcntl_setfl(&fd, fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
    Ok(fd)
}
