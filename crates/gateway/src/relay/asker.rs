//! A guest that asks for names over TCP, as programs do whose answer was too long for a datagram.
//!
//! Messages have their length before them (RFC 1035, 4.2.2). What is kept is bounded: one question
//! that is not whole, and the answers that the guest has not read.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::flow::{After, Turn};
use crate::net::packet::{self, Content};
use crate::net::tcp::{Buffers, Guest};
use crate::random;

/// Longest question: a name, and what a program may send around it.
const MAX_QUESTION: usize = 4096;
/// Answers that wait, in bytes; a guest that asks on without reading is cut off.
const MAX_UNREAD: usize = 256 << 10;
/// How long a connection may be silent, and how long it may last.
const IDLE: Duration = Duration::from_secs(10);
const LIFE: Duration = Duration::from_secs(120);
/// Small questions and answers.
const BUFFERS: Buffers = Buffers(8 << 10);

/// A connection.
pub struct Asker {
    guest: Guest,
    guest_port: u16,
    server: SocketAddr,
    asked: Vec<u8>,
    unread: Vec<u8>,
    began: Duration,
    moved: Duration,
}

impl Asker {
    /// Accepts a connection whose first frame this is.
    pub fn begin(
        guest_port: u16,
        server: SocketAddr,
        first: &[u8],
        turn: &mut Turn<'_>,
    ) -> io::Result<Self> {
        let seed = u64::from_ne_bytes(random::bytes()?);
        let guest = Guest::listen(server, BUFFERS, seed, turn.now);
        let mut guest = guest.ok_or_else(|| io::Error::other("no such end"))?;
        if let Content::Ip(packet) = packet::read(first) {
            guest.take(packet.bytes, turn.port, turn.now);
        }
        let (asked, unread) = (Vec::new(), Vec::new());
        Ok(Self { guest, guest_port, server, asked, unread, began: turn.now, moved: turn.now })
    }

    /// The guest's port and the resolver that it believes to talk to.
    pub fn ends(&self) -> (u16, SocketAddr) {
        (self.guest_port, self.server)
    }

    /// Takes a packet of the guest.
    pub fn take(&mut self, packet: &[u8], turn: &mut Turn<'_>) {
        self.guest.take(packet, turn.port, turn.now);
    }

    /// Takes an answer for the guest.
    pub fn answer(&mut self, message: &[u8]) {
        if let Ok(len) = u16::try_from(message.len()) {
            self.unread.extend_from_slice(&len.to_be_bytes());
            self.unread.extend_from_slice(message);
        }
    }

    /// Moves what can be moved. Comes with the questions that are whole now.
    pub fn pump(&mut self, turn: &mut Turn<'_>) -> (Vec<Vec<u8>>, After) {
        let questions = self.questions(turn.now);
        let sent = self.guest.socket().send_slice(&self.unread).unwrap_or(0);
        if sent > 0 {
            self.unread.drain(..sent);
            self.moved = turn.now;
        }
        let deadline = (self.moved + IDLE).min(self.began + LIFE);
        let greedy = self.unread.len() > MAX_UNREAD || self.asked.len() > MAX_QUESTION + 2;
        if greedy || turn.now >= deadline {
            self.guest.socket().abort();
        } else if self.guest.has_finished() && self.unread.is_empty() && questions.is_empty() {
            self.guest.socket().close();
        }
        self.guest.speak(turn.port, turn.now);
        if self.guest.is_over() {
            return (questions, After::Over);
        }
        let own = if turn.port.has_room() { self.guest.due(turn.now) } else { None };
        (questions, After::Going(own.into_iter().chain([deadline]).min()))
    }

    fn questions(&mut self, now: Duration) -> Vec<Vec<u8>> {
        let mut whole = Vec::new();
        while self.guest.socket().can_recv() && self.asked.len() <= MAX_QUESTION + 2 {
            let room = MAX_QUESTION + 3 - self.asked.len();
            let asked = &mut self.asked;
            let taken = self.guest.socket().recv(|bytes| {
                let many = bytes.len().min(room);
                asked.extend_from_slice(&bytes[..many]);
                (many, many)
            });
            if !matches!(taken, Ok(1..)) {
                break;
            }
            self.moved = now;
            while let Some((len, rest)) = self.asked.split_first_chunk::<2>()
                && let Some(question) = rest.get(..usize::from(u16::from_be_bytes(*len)))
            {
                whole.push(question.to_vec());
                self.asked.drain(..2 + question.len());
            }
        }
        whole
    }
}
