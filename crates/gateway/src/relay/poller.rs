//! What a thread sleeps on: epoll(7), in safe words.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{EventfdFlags, Timespec, epoll, eventfd};
use rustix::io::Errno;

/// Names a descriptor to its poller.
pub type Token = u64;

/// Events of one turn.
const MAX_EVENTS: usize = 256;

/// A set of descriptors.
#[derive(Debug)]
pub struct Poller {
    epoll: OwnedFd,
}

/// A descriptor that something happened to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Woken {
    /// Which.
    pub token: Token,
    /// It has bytes, an end or an error.
    pub readable: bool,
    /// It has room, or an error.
    pub writable: bool,
}

impl Poller {
    /// An empty set.
    pub fn new() -> io::Result<Self> {
        Ok(Self { epoll: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Tells once whenever a descriptor begins to have bytes or room. It leaves the set when it is
    /// closed.
    pub fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let flags = epoll::EventFlags::IN
            | epoll::EventFlags::OUT
            | epoll::EventFlags::RDHUP
            | epoll::EventFlags::ET;
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Tells for as long as a descriptor has bytes.
    pub fn watch_input(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token);
        Ok(epoll::add(&self.epoll, fd, data, epoll::EventFlags::IN)?)
    }

    /// The same, and of room as well if `output`.
    pub fn change(&self, fd: impl AsFd, token: Token, output: bool) -> io::Result<()> {
        let mut flags = epoll::EventFlags::IN;
        flags.set(epoll::EventFlags::OUT, output);
        Ok(epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Sleeps until something happens, for at most so long.
    pub fn wait(&self, longest: Option<Duration>) -> io::Result<Vec<Woken>> {
        let mut events = Vec::with_capacity(MAX_EVENTS);
        let timeout = longest.map(|longest| Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(longest.subsec_nanos()),
        });
        match epoll::wait(
            &self.epoll,
            rustix::buffer::spare_capacity(&mut events),
            timeout.as_ref(),
        ) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Vec::new()),
            Err(errno) => return Err(errno.into()),
        }
        Ok(events.iter().map(Self::read).collect())
    }

    fn read(event: &epoll::Event) -> Woken {
        let flags = event.flags;
        let broken = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        let input = epoll::EventFlags::IN | epoll::EventFlags::RDHUP;
        Woken {
            token: event.data.u64(),
            readable: broken || flags.intersects(input),
            writable: broken || flags.contains(epoll::EventFlags::OUT),
        }
    }
}

/// Wakes a thread that sleeps on a poller.
#[derive(Debug)]
pub struct Bell(OwnedFd);

impl Bell {
    /// A silent bell.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Wakes.
    pub fn ring(&self) {
        // The only failure is a counter that is full: it rings already.
        let _ = rustix::io::write(&self.0, &1_u64.to_ne_bytes());
    }

    /// Makes it silent again.
    pub fn hush(&self) {
        let _ = rustix::io::read(&self.0, &mut [0_u8; 8]);
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}
