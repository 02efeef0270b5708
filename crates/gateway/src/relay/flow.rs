//! One TCP connection: the guest's end, the host's end, and what is checked in between.
//!
//! ```text
//!   SYN, allowed by ── an address ─▶ connect ─────────▶ accept the guest ─▶ open
//!                  └── a name ─────▶ accept the guest ─▶ listen ─▶ connect ─▶ open
//!                                                         │
//!   open: bytes both ways, the guest's through the        └─ refused: an answer if there
//!         inspector; half-closes are passed on               can be one, then the end
//! ```
//!
//! Under a name, the host's end is made only once the guest has said the name: whoever lies about
//! it has sent nothing to anybody. A protocol in which the server speaks first would wait for ever,
//! so where the rules leave the port to such protocols, a short silence counts as one.
//!
//! Memory is bounded: the buffers of the guest's end, and what the inspector has not decided on.

mod moves;
mod says;

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use pandastack_policy::{Check, Flow as Asked, Host, Policy, Protocol, Site, Verdict};
use pandastack_types::EgressKind;
use rustix::net::sockopt;

use super::bucket::Bucket;
use super::host;
use super::journal::{Entry, Journal};
use super::poller::{Poller, Token};
use crate::inspect::Inspector;
use crate::net::packet::{self, Content};
use crate::net::port::Port;
use crate::net::tcp::{Buffers, Guest};
use crate::random;

/// How long a guest may be silent before its server is asked to speak first.
const SERVER_FIRST: Duration = Duration::from_millis(300);
/// How long a connection may take to be made, and to say what it has to say.
const BEGINNING: Duration = Duration::from_secs(30);
/// How long an open connection may be silent.
const IDLE: Duration = Duration::from_secs(3600);
/// The same when one side has said its last byte.
const HALF_CLOSED: Duration = Duration::from_secs(300);
/// How long a guest gets to read why it was refused.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// Ports on which there is always a name to wait for.
const NAMED_PORTS: [u16; 2] = [80, 443];
/// Bytes moved in one direction before others get their turn.
const TURN: usize = 256 << 10;

/// What a turn of a flow works with.
pub struct Turn<'a> {
    /// The clock.
    pub now: Duration,
    /// The guest's wire.
    pub port: &'a mut Port,
    /// The rules.
    pub policy: &'a Policy,
    /// The place.
    pub site: &'a Site,
    /// How much may go from the guest.
    pub up: &'a mut Bucket,
    /// How much may go to it.
    pub down: &'a mut Bucket,
    /// The log.
    pub journal: &'a mut Journal,
    /// Who wakes us for the host's end.
    pub poller: &'a Poller,
}

/// What a flow is after a turn.
#[derive(Debug, PartialEq, Eq)]
pub enum After {
    /// It goes on, and wants another turn at this time.
    Going(Option<Duration>),
    /// Nothing of it is left but its line in the log.
    Over,
}

/// The host's end.
enum Server {
    /// Not made yet.
    Unmade,
    /// Being made.
    Connecting(OwnedFd),
    /// There.
    Open(OwnedFd),
    /// Done with.
    Gone,
}

/// A connection.
pub struct Flow {
    token: Token,
    guest_port: u16,
    server: SocketAddr,
    names: Vec<Host>,
    rule: usize,
    inspector: Inspector,
    /// The rules leave it to the server to speak first.
    patient: bool,
    /// The guest's first frame, for as long as it has no answer.
    first: Vec<u8>,
    guest: Option<Guest>,
    host: Server,
    buffers: Buffers,
    /// Bytes of the guest on their way to the server; the first `cleared` may go.
    held: Vec<u8>,
    cleared: usize,
    readable: bool,
    writable: bool,
    /// The server has said its last byte.
    heard_all: bool,
    /// The server was told that the guest has said its last byte.
    said_all: bool,
    /// Until when the guest may read why it was refused.
    refused: Option<Duration>,
    up: u64,
    down: u64,
    began: Duration,
    moved: Duration,
    why: &'static str,
}

/// How a flow begins.
pub struct Beginning {
    /// Its name for the poller.
    pub token: Token,
    /// The guest's port.
    pub guest_port: u16,
    /// Where to.
    pub server: SocketAddr,
    /// The names that led there.
    pub names: Vec<Host>,
    /// The rule that allowed it.
    pub rule: usize,
    /// What it has to show.
    pub check: Check,
    /// The frame with its first segment.
    pub first: Vec<u8>,
    /// What the guest's end may hold.
    pub buffers: Buffers,
}

impl Flow {
    /// Begins a flow that is allowed so far. Fails if the host or the random generator does.
    pub fn begin(beginning: Beginning, turn: &mut Turn<'_>) -> io::Result<Self> {
        let Beginning { token, guest_port, server, names, rule, check, first, buffers } = beginning;
        let mut flow = Self {
            token,
            guest_port,
            server,
            names,
            rule,
            inspector: Inspector::new(check, server.port()),
            patient: check == Check::Name && !NAMED_PORTS.contains(&server.port()),
            first,
            guest: None,
            host: Server::Unmade,
            buffers,
            held: Vec::new(),
            cleared: 0,
            readable: false,
            writable: false,
            heard_all: false,
            said_all: false,
            refused: None,
            up: 0,
            down: 0,
            began: turn.now,
            moved: turn.now,
            why: "closed",
        };
        if check == Check::Nothing {
            flow.connect(turn)?
        } else {
            flow.accept(turn)?
        }
        Ok(flow)
    }

    /// The guest's port and the server.
    pub fn ends(&self) -> (u16, SocketAddr) {
        (self.guest_port, self.server)
    }

    /// Takes a packet of the guest.
    pub fn take(&mut self, packet: &[u8], turn: &mut Turn<'_>) {
        if let Some(guest) = &mut self.guest {
            guest.take(packet, turn.port, turn.now);
        }
    }

    /// Notes what the poller said of the host's end.
    pub fn woken(&mut self, readable: bool, writable: bool) {
        self.readable |= readable;
        self.writable |= writable;
    }

    /// Decides about the flow anew. Whether it stays.
    pub fn still_allowed(&mut self, policy: &Policy, site: &Site) -> bool {
        let passed = self.inspector.passed();
        match policy.connect(site, &self.asked()) {
            Verdict::Allow { rule, check } if check <= passed => {
                self.rule = rule;
                self.inspector.require(check);
                self.stands(policy, site)
            }
            _ => false,
        }
    }

    /// Ends the flow now, for both sides.
    pub fn cut(&mut self, why: &'static str, turn: &mut Turn<'_>) {
        self.why = why;
        self.hang_up();
        match &mut self.guest {
            Some(guest) => {
                guest.socket().abort();
                guest.speak(turn.port, turn.now);
            }
            None => self.reset_first(turn.port),
        }
    }

    /// Writes its last line.
    pub fn close(self, journal: &mut Journal, now: Duration) {
        let entry = Entry::closed(EgressKind::Tcp, self.why, self.up, self.down)
            .name(self.names.first())
            .to(self.server.ip(), self.server.port())
            .rule(Some(self.rule));
        journal.note(entry, now);
    }

    /// Moves what can be moved.
    pub fn pump(&mut self, turn: &mut Turn<'_>) -> After {
        if !self.settle_connection(turn) {
            return After::Over;
        }
        if self.guest.is_none() {
            return self.wait_until(self.began + BEGINNING, turn);
        }
        self.take_in(turn);
        if self.refused.is_none() {
            self.inspect(turn);
        }
        if let Some(deadline) = self.refused {
            return self.finish_refusal(deadline, turn);
        }
        if self.must_connect(turn.now) && self.connect(turn).is_err() {
            self.cut("the host could not connect", turn);
            return After::Over;
        }
        let slow_up = self.send_up(turn);
        let slow_down = self.bring_down(turn);
        self.pass_ends_on();
        self.conclude(turn, slow_up, slow_down)
    }

    fn asked(&self) -> Asked<'_> {
        Asked {
            protocol: Protocol::Tcp,
            address: self.server.ip(),
            port: self.server.port(),
            names: &self.names,
        }
    }

    /// Answers the guest's first segment.
    fn accept(&mut self, turn: &mut Turn<'_>) -> io::Result<()> {
        let seed = u64::from_ne_bytes(random::bytes()?);
        let guest = Guest::listen(self.server, self.buffers, seed, turn.now);
        let mut guest = guest.ok_or_else(|| io::Error::other("no such end"))?;
        if let Content::Ip(packet) = packet::read(&self.first) {
            guest.take(packet.bytes, turn.port, turn.now);
        }
        self.first = Vec::new();
        self.guest = Some(guest);
        Ok(())
    }

    fn connect(&mut self, turn: &mut Turn<'_>) -> io::Result<()> {
        let socket = host::connect_tcp(self.server)?;
        turn.poller.watch(&socket, self.token)?;
        self.host = Server::Connecting(socket);
        Ok(())
    }

    /// Whether it is time for the host's end.
    fn must_connect(&mut self, now: Duration) -> bool {
        if !matches!(self.host, Server::Unmade) {
            return false;
        }
        let speaks_later = now >= self.began + SERVER_FIRST && self.held.is_empty();
        self.cleared > 0 || self.patient && speaks_later
    }

    /// Finds out what became of a connection. False when the flow is over.
    fn settle_connection(&mut self, turn: &mut Turn<'_>) -> bool {
        if !self.writable || !matches!(self.host, Server::Connecting(_)) {
            return true;
        }
        let Server::Connecting(socket) = std::mem::replace(&mut self.host, Server::Gone) else {
            return true;
        };
        let made = host::outcome(&socket).and_then(|()| {
            self.host = Server::Open(socket);
            if self.guest.is_none() { self.accept(turn) } else { Ok(()) }
        });
        match made {
            Ok(()) => {
                let verdict = Verdict::Allow { rule: self.rule, check: Check::Nothing };
                self.log(Entry::decided(EgressKind::Tcp, verdict), turn);
                true
            }
            Err(error) => {
                let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                let why = if refused { "the server refused" } else { "the server was not reached" };
                self.cut(why, turn);
                false
            }
        }
    }

    fn conclude(
        &mut self,
        turn: &mut Turn<'_>,
        slow_up: Option<Duration>,
        slow_down: Option<Duration>,
    ) -> After {
        let deadline = self.deadline();
        if turn.now >= deadline {
            self.cut("was silent for too long", turn);
            return After::Over;
        }
        let Some(guest) = &mut self.guest else { return After::Over };
        guest.speak(turn.port, turn.now);
        if self.is_over() {
            return After::Over;
        }
        let wakes = [Some(deadline), slow_up, slow_down, self.server_first(turn.now)];
        let next = wakes.into_iter().flatten().min();
        After::Going(self.next(turn, next))
    }

    /// Whether both sides have what they will ever get.
    fn is_over(&mut self) -> bool {
        let Some(guest) = &mut self.guest else { return true };
        if !guest.is_over() {
            return false;
        }
        // A guest that has ended in good order may have left bytes for a server that is slow.
        let in_order = self.heard_all && matches!(self.host, Server::Open(_));
        !in_order || self.said_all
    }

    fn server_first(&self, now: Duration) -> Option<Duration> {
        let at = self.began + SERVER_FIRST;
        (self.patient && matches!(self.host, Server::Unmade) && now < at).then_some(at)
    }

    fn deadline(&mut self) -> Duration {
        if !matches!(self.host, Server::Open(_)) {
            return self.began + BEGINNING;
        }
        self.moved + if self.heard_all || self.said_all { HALF_CLOSED } else { IDLE }
    }

    /// The earlier of a time and the guest's end's own next one. Without room on the wire that end
    /// can do nothing, and gets a turn when there is some.
    fn next(&mut self, turn: &Turn<'_>, at: Option<Duration>) -> Option<Duration> {
        let own = match &mut self.guest {
            Some(guest) if turn.port.has_room() => guest.due(turn.now),
            _ => None,
        };
        own.into_iter().chain(at).min()
    }

    fn wait_until(&mut self, deadline: Duration, turn: &mut Turn<'_>) -> After {
        if turn.now >= deadline {
            self.cut("the server did not answer", turn);
            return After::Over;
        }
        After::Going(Some(deadline))
    }

    fn log(&self, entry: Entry, turn: &mut Turn<'_>) {
        let entry = entry.name(self.names.first()).to(self.server.ip(), self.server.port());
        turn.journal.note(entry.rule(Some(self.rule)), turn.now);
    }

    /// Ends both sides with an error; the guest's is told in this turn.
    fn reset(&mut self, why: &'static str) {
        self.why = why;
        self.hang_up();
        if let Some(guest) = &mut self.guest {
            guest.socket().abort();
        }
    }

    /// Closes the host's end. What the server does not know yet, it learns as an error and not as
    /// an end.
    fn hang_up(&mut self) {
        if let Server::Open(socket) | Server::Connecting(socket) = &self.host
            && !self.said_all
        {
            let _ = sockopt::set_socket_linger(socket, Some(Duration::ZERO));
        }
        self.host = Server::Gone;
    }

    fn reset_first(&self, port: &mut Port) {
        if let Content::Ip(packet) = packet::read(&self.first)
            && let Some(frame) = packet::reset(&packet)
        {
            port.give(frame);
        }
    }
}

impl Drop for Flow {
    fn drop(&mut self) {
        self.hang_up();
    }
}
