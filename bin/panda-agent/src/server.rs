//! The loop: one thread, one poll, everything in turn.
//!
//! ```text
//!   wait ─▶ receive frames ─▶ reap children ─▶ read outputs ─▶ step jobs ─▶ send ─┐
//!     ▲                                                                          │
//!     └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Every step is bounded, so no stream keeps another one waiting for long. In an emulated guest
//! each system call costs, so a turn makes as few as it can: a ping is one poll, one read and one
//! write.

use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::time::Instant;

use anyhow::Context;
use pandastack_proto::{Decoder, Encoder, Hello, Incoming, Kind, parse};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{WaitOptions, wait};

use crate::guest::Guest;
use crate::link::{Link, Moved};
use crate::session::{Owner, Session};
use crate::sys;

/// Most reads of the link in one turn.
const READS: usize = 16;
/// A virtio port gives at most a page per read, and a packet of vsock is about as long; less means
/// that there is no more.
const PAGE: usize = 4096;
/// Most children reaped in one turn: a fork bomb must not keep the agent from answering.
const REAPS: usize = 256;

/// What became ready.
enum Ready {
    Link,
    Children,
    Output(Owner, RawFd),
    /// Tried by every turn anyway.
    Input,
}

/// The agent at work.
pub struct Server {
    link: Link,
    guest: Guest,
    session: Session,
    decoder: Decoder,
    out: Encoder,
    children: OwnedFd,
    /// There may be more to reap than the last turn did.
    more_children: bool,
    /// Some job can go on without waiting for anything.
    busy: bool,
    /// The hello of the current connection has come.
    greeted: bool,
}

impl Server {
    /// Serves `link` as `guest`.
    pub fn new(link: Link, guest: Guest) -> anyhow::Result<Self> {
        Ok(Self {
            link,
            guest,
            session: Session::default(),
            decoder: Decoder::for_agent(),
            out: Encoder::new(),
            children: sys::child_signals().context("watch for the end of children")?,
            more_children: true,
            busy: false,
            greeted: false,
        })
    }

    /// Runs until the other end of a socket is gone; in a guest, for ever.
    pub fn run(&mut self) {
        while self.turn() != Turn::Over {}
        self.session.kill_all();
    }

    fn turn(&mut self) -> Turn {
        for ready in self.wait() {
            match ready {
                Ready::Link if self.receive() == Turn::Over => return Turn::Over,
                Ready::Link | Ready::Input => {}
                Ready::Children => self.more_children = true,
                Ready::Output(owner, fd) => {
                    // Children first: what their pipes hold at the end is then sent with the end.
                    self.reap();
                    self.session.readable(owner, fd, &mut self.out);
                }
            }
        }
        self.reap();
        self.session.expire(Instant::now());
        self.busy = self.session.work(&mut self.guest, &mut self.out);
        if !self.out.is_empty() {
            match self.link.write(&mut self.out) {
                Moved::Over => return Turn::Over,
                Moved::Anew => self.start_over(),
                Moved::Bytes(_) | Moved::Nothing => {}
            }
        }
        if self.session.power_off() && self.out.is_empty() {
            self.guest.power_off();
        }
        Turn::Next
    }

    /// Waits until something is ready, or a time has come.
    fn wait(&mut self) -> Vec<Ready> {
        let now = Instant::now();
        let deadline = self.session.next_deadline().into_iter().chain(self.link.wake_at()).min();
        let timeout = if self.busy || self.more_children {
            Some(Timespec::default())
        } else {
            deadline.map(|at| {
                let left = at.saturating_duration_since(now);
                Timespec {
                    tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                    tv_nsec: i64::from(left.subsec_nanos()),
                }
            })
        };
        let mut meanings = vec![Ready::Children];
        let mut fds = vec![PollFd::from_borrowed_fd(self.children.as_fd(), PollFlags::IN)];
        if let Some(link) = self.link.pollable(now) {
            let write = if self.out.is_empty() { PollFlags::empty() } else { PollFlags::OUT };
            meanings.push(Ready::Link);
            fds.push(PollFd::from_borrowed_fd(link, PollFlags::IN | write));
        }
        for (owner, fd, write) in self.session.interests(&self.out) {
            let flags = if write { PollFlags::OUT } else { PollFlags::IN };
            meanings.push(if write { Ready::Input } else { Ready::Output(owner, fd.as_raw_fd()) });
            fds.push(PollFd::from_borrowed_fd(fd, flags));
        }
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(Errno::INTR | Errno::AGAIN) => return Vec::new(),
            // Nothing that a tenant does can make this fail; if it does, go on without waiting
            // for anything but the host.
            Err(_) => return vec![Ready::Children, Ready::Link],
        }
        let ready = fds.iter().map(|fd| !fd.revents().is_empty()).collect::<Vec<_>>();
        meanings
            .into_iter()
            .zip(ready)
            .filter_map(|(meaning, ready)| ready.then_some(meaning))
            .collect()
    }

    /// Reads from the host and does what it says.
    fn receive(&mut self) -> Turn {
        for _ in 0..READS {
            let count = match self.link.read(self.decoder.space()) {
                Moved::Bytes(count) => count,
                Moved::Nothing => break,
                Moved::Anew => {
                    self.start_over();
                    break;
                }
                Moved::Over => return Turn::Over,
            };
            self.decoder.commit(count);
            self.frames();
            if count < PAGE {
                break;
            }
        }
        Turn::Next
    }

    fn frames(&mut self) {
        // A malformed frame ends the connection; the decoder looks for the next one by itself.
        while let Ok(Some(incoming)) = self.decoder.next() {
            match incoming {
                Incoming::Start => self.start_over(),
                Incoming::Frame(frame) if self.greeted => {
                    self.session.frame(frame, &mut self.guest, &mut self.out);
                }
                Incoming::Frame(frame) => {
                    if frame.kind == Kind::Hello
                        && let Ok(hello) = parse::<Hello>(frame.payload, "hello")
                    {
                        self.greeted = true;
                        self.out.echo(&hello.nonce);
                        // A short message that fits.
                        let _ = self.out.message(Kind::Welcome, 0, &self.guest.welcome());
                    }
                }
            }
        }
    }

    /// The host is another one, or will be: nothing of the old connection may reach it. The decoder
    /// needs no hint, since what comes next is the mark.
    fn start_over(&mut self) {
        self.session.restart(&mut self.guest);
        self.out.clear();
        self.greeted = false;
    }

    /// Waits for children that have ended: commands, and every orphan of the guest.
    fn reap(&mut self) {
        if !std::mem::take(&mut self.more_children) {
            return;
        }
        // Emptied before the children are looked for, so that none is missed.
        let _ = rustix::io::read(&self.children, &mut [0_u8; 128]);
        for _ in 0..REAPS {
            match wait(WaitOptions::NOHANG) {
                Ok(Some((pid, status))) => self.session.reaped(pid, status, &mut self.guest),
                Ok(None) | Err(_) => return,
            }
        }
        self.more_children = true;
    }
}

/// Whether there is another turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Next,
    Over,
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;
    use std::sync::Mutex;

    use pandastack_proto::{MAGIC, Nonce, Request, Sealed, Token, VERSION, Welcome};
    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::*;
    use crate::link::Kind as LinkKind;

    /// Where the next connection leads.
    static NEXT: Mutex<Option<OwnedFd>> = Mutex::new(None);

    fn dial() -> rustix::io::Result<OwnedFd> {
        NEXT.lock().unwrap().take().ok_or(Errno::CONNRESET)
    }

    /// A connection with a host's end, which never waits, and an agent's end that holds little.
    fn pair() -> (UnixStream, OwnedFd) {
        let (host, agent) = UnixStream::pair().unwrap();
        host.set_nonblocking(true).unwrap();
        set_socket_send_buffer_size(&agent, 4096).unwrap();
        (host, agent.into())
    }

    fn greeting(nonce: Nonce) -> Encoder {
        let mut out = Encoder::new();
        out.magic();
        out.message(Kind::Hello, 0, &Hello { version: VERSION, nonce }).unwrap();
        out
    }

    fn ping(stream: u32, out: &mut Encoder) {
        let sealed = Sealed { token: Token::default(), request: Request::Ping };
        out.message(Kind::Request, stream, &sealed).unwrap();
    }

    /// Everything that has come, and whether the stream goes on.
    fn arrived(host: &mut UnixStream) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let open = host.read_to_end(&mut bytes).is_err();
        (bytes, open)
    }

    /// Turns until `host` was sent something.
    fn answer(server: &mut Server, host: &mut UnixStream) -> Vec<u8> {
        loop {
            assert_eq!(server.turn(), Turn::Next);
            let (bytes, _) = arrived(host);
            if !bytes.is_empty() {
                return bytes;
            }
        }
    }

    fn starts_with_welcome(bytes: &[u8], nonce: Nonce) -> bool {
        let nothing_before = bytes.starts_with(&[&MAGIC[..], &nonce[..]].concat());
        let mut decoder = Decoder::for_host(&nonce);
        decoder.space()[..bytes.len()].copy_from_slice(bytes);
        decoder.commit(bytes.len());
        assert!(matches!(decoder.next(), Ok(Some(Incoming::Start))));
        let Ok(Some(Incoming::Frame(frame))) = decoder.next() else { return false };
        nothing_before && parse::<Welcome>(frame.payload, "welcome").is_ok()
    }

    #[test]
    fn a_dialled_link_that_ends_is_dialled_again_and_starts_over() {
        let (mut first, end) = pair();
        let link = Link::new(end, LinkKind::Dialled(dial)).unwrap();
        let mut server = Server::new(link, Guest::new(None).unwrap()).unwrap();

        // More answers than the connection holds, then half a request, then the end.
        let mut out = greeting([1; 16]);
        (1..3000).for_each(|stream| ping(stream, &mut out));
        first.write_all(out.pending()).unwrap();
        while server.out.len() < 1000 {
            assert_eq!(server.turn(), Turn::Next);
        }
        let mut out = Encoder::new();
        ping(3000, &mut out);
        first.write_all(&out.pending()[..out.len() - 3]).unwrap();
        drop(first);

        // Nobody is there: the agent tries, and does not spin.
        let (mut second, end) = pair();
        while server.link.wake_at().is_none() {
            assert_eq!(server.turn(), Turn::Next);
        }
        let until = server.link.wake_at().unwrap();
        assert_eq!(server.turn(), Turn::Next);
        assert!(Instant::now() >= until, "it must pause between attempts");

        // The new connection has nothing of the old one.
        *NEXT.lock().unwrap() = Some(end);
        while NEXT.lock().unwrap().is_some() {
            assert_eq!(server.turn(), Turn::Next);
        }
        assert_eq!(arrived(&mut second), (Vec::new(), true));
        assert!(!server.greeted && server.out.is_empty());
        second.write_all(greeting([2; 16]).pending()).unwrap();
        let bytes = answer(&mut server, &mut second);
        assert!(starts_with_welcome(&bytes, [2; 16]), "{bytes:?}");

        // And it works: numbers start anew.
        let mut out = Encoder::new();
        ping(1, &mut out);
        second.write_all(out.pending()).unwrap();
        assert_eq!(answer(&mut server, &mut second)[0], Kind::Reply as u8);
    }
}
