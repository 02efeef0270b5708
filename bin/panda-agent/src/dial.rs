//! Connections to the guest's own TCP ports.
//!
//! ```text
//!            127.0.0.1            made
//!   request ───────────▶ waiting ──────▶ READY, open ──▶ reply, when both sides have ended
//!                        │    ▲            │
//!              refused ──┴────┘ once, ::1  └ broke: a failure, never a clean end
//! ```
//!
//! Whatever listens is the tenant's, as is what it does: it may not accept, not read, or reset the
//! connection at any moment. Nothing here waits for it, and the windows bound what is kept.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use pandastack_proto::{Channel, Encoder, ErrorCode, Failure, Reply};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, Shutdown, SocketFlags, SocketType, connect, shutdown, socket_with, sockopt,
};

use crate::failure::{because, refuse};
use crate::inlet::Inlet;
use crate::lane::{Lane, Progress};

/// How long a connection may take. On the loopback it takes no time, unless the queue of whoever
/// listens is full.
const PATIENCE: Duration = Duration::from_secs(5);

/// A connection.
pub struct Dial {
    port: u16,
    socket: OwnedFd,
    state: State,
}

enum State {
    Waiting {
        address: SocketAddr,
        until: Instant,
    },
    Open {
        /// Gone once the host has ended its side, or the guest does not listen to it.
        inlet: Option<Inlet>,
        /// The guest has ended its side.
        ended: bool,
        /// The guest broke the connection off while it was written to.
        reset: bool,
    },
    Broken(Failure),
}

impl Dial {
    /// Starts to connect.
    pub fn start(port: u16) -> Result<Self, Failure> {
        if port == 0 {
            return Err(refuse(ErrorCode::InvalidArgument, "there is no port 0"));
        }
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let socket = socket(AddressFamily::INET)
            .map_err(because(|| format!("cannot connect to port {port}")))?;
        let until = Instant::now() + PATIENCE;
        Ok(Self { port, socket, state: State::Waiting { address, until } })
    }

    /// When something is due that no descriptor tells of.
    pub fn deadline(&self) -> Option<Instant> {
        match self.state {
            State::Waiting { until, .. } => Some(until),
            _ => None,
        }
    }

    /// Its descriptors that can be worked on now, if they are ready, and whether it is for writing.
    pub fn interests(&self, room: usize) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let (read, write) = match &self.state {
            State::Waiting { .. } => (false, Some(self.socket.as_fd())),
            State::Open { inlet, ended, .. } => {
                (!ended && room > 0, inlet.as_ref().and_then(Inlet::blocked))
            }
            State::Broken(_) => (false, None),
        };
        let read = read.then_some((self.socket.as_fd(), false));
        read.into_iter().chain(write.map(|fd| (fd, true)))
    }

    /// Bytes from the host. What the guest does not read yet is kept, and the window bounds it.
    pub fn data(&mut self, bytes: &[u8], lane: &mut Lane, out: &mut Encoder) -> Progress {
        match &mut self.state {
            State::Open { inlet: Some(inlet), .. } => inlet.push(bytes, lane, out),
            State::Open { inlet: None, .. } | State::Broken(_) => lane.used(out, bytes.len()),
            State::Waiting { .. } => {
                let failure = refuse(ErrorCode::InvalidArgument, "data before the connection");
                return Progress::Done(Err(failure));
            }
        }
        Progress::Waiting
    }

    /// The host's side has ended.
    pub fn eof(&mut self) {
        if let State::Open { inlet: Some(inlet), .. } = &mut self.state {
            inlet.finish();
        }
    }

    /// Does what can be done without waiting.
    pub fn work(&mut self, lane: &mut Lane, out: &mut Encoder) -> Progress {
        if let State::Waiting { address, until } = self.state {
            return self.wait_on(address, until, lane, out);
        }
        if let State::Open { inlet, ended, reset } = &mut self.state {
            if let Some(waiting) = inlet {
                waiting.write(lane, out);
                *reset |= waiting.was_reset();
            }
            if inlet.as_ref().is_some_and(Inlet::is_over) {
                *inlet = None;
                // It may have gone meanwhile, and then knows.
                let _ = shutdown(&self.socket, Shutdown::Write);
            }
            if inlet.is_some() || !*ended {
                return Progress::Waiting;
            }
        }
        Progress::Done(match &self.state {
            State::Broken(failure) => Err(failure.clone()),
            _ => Ok(Reply::Done),
        })
    }

    fn wait_on(
        &mut self,
        address: SocketAddr,
        until: Instant,
        lane: &Lane,
        out: &mut Encoder,
    ) -> Progress {
        match connect(&self.socket, &address) {
            Ok(()) | Err(Errno::ISCONN) => {}
            Err(Errno::INPROGRESS | Errno::ALREADY | Errno::AGAIN | Errno::INTR) => {
                if Instant::now() < until {
                    return Progress::Waiting;
                }
                let text = format!("port {} did not answer", self.port);
                return Progress::Done(Err(refuse(ErrorCode::TimedOut, text)));
            }
            Err(_) if address.is_ipv4() => {
                let address = SocketAddr::from((Ipv6Addr::LOCALHOST, self.port));
                // A kernel without IPv6 has nothing that listens there.
                let Ok(socket) = socket(AddressFamily::INET6) else { return self.refused() };
                self.socket = socket;
                self.state = State::Waiting { address, until };
                return self.wait_on(address, until, lane, out);
            }
            Err(_) => return self.refused(),
        }
        // A second descriptor, so that the end of one side does not close the other.
        let Ok(twin) = rustix::io::fcntl_dupfd_cloexec(&self.socket, 0) else {
            let text = "the agent holds too many descriptors";
            return Progress::Done(Err(refuse(ErrorCode::TooMany, text)));
        };
        let _ = sockopt::set_tcp_nodelay(&self.socket, true);
        self.state = State::Open { inlet: Some(Inlet::new(twin)), ended: false, reset: false };
        out.ready(lane.id);
        Progress::Waiting
    }

    fn refused(&self) -> Progress {
        let text = format!("nothing listens on port {}", self.port);
        Progress::Done(Err(refuse(ErrorCode::Refused, text)))
    }

    /// The guest has sent something, or ended its side.
    pub fn readable(&mut self, lane: &mut Lane, out: &mut Encoder) {
        let State::Open { ended, reset, .. } = &mut self.state else { return };
        let room = lane.room(out);
        if room == 0 || *ended {
            return;
        }
        let socket = &self.socket;
        match lane.send_with(out, Channel::Tcp, room, |buf| rustix::io::read(socket, buf)) {
            Ok(0) if *reset => self.broke(Errno::CONNRESET),
            Ok(0) => {
                *ended = true;
                out.eof(lane.id, Channel::Tcp);
            }
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(errno) => self.broke(errno),
        }
    }

    fn broke(&mut self, errno: Errno) {
        let what = || format!("the connection to port {} broke", self.port);
        self.state = State::Broken(because(what)(errno));
    }
}

fn socket(family: AddressFamily) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(family, SocketType::STREAM, flags, None)
}
