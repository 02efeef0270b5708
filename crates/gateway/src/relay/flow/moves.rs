//! Bytes between the two ends, as fast as they may go, and the ends of what each side says.

use std::os::fd::AsFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};

use super::{Flow, Server, TURN, Turn};

impl Flow {
    /// Sends what may go to the server. Says when to go on if the limit of speed was met.
    pub(super) fn send_up(&mut self, turn: &mut Turn<'_>) -> Option<Duration> {
        let Server::Open(socket) = &self.host else { return None };
        let guest = self.guest.as_mut()?;
        let mut budget = TURN;
        while self.writable && budget > 0 {
            let room = turn.up.room(turn.now).min(budget);
            let straight = self.held.is_empty() && self.inspector.is_open();
            let wanting = if straight { guest.socket().can_recv() } else { self.cleared > 0 };
            if !wanting {
                return None;
            }
            if room == 0 {
                return Some(turn.up.next(turn.now));
            }
            let sent = if straight {
                let moved = guest.socket().recv(|bytes| {
                    let sent = put(socket, &bytes[..bytes.len().min(room)]);
                    (*sent.as_ref().unwrap_or(&0), sent)
                });
                moved.unwrap_or(Ok(0))
            } else {
                let sent = put(socket, &self.held[..self.cleared.min(room)]);
                let many = *sent.as_ref().unwrap_or(&0);
                self.held.drain(..many);
                self.cleared -= many;
                sent
            };
            match sent {
                Ok(many) => {
                    turn.up.spend(many);
                    budget = budget.saturating_sub(many);
                    self.up += many as u64;
                    self.moved = turn.now;
                }
                Err(Errno::AGAIN | Errno::INTR) => self.writable = false,
                Err(_) => {
                    self.reset("the server closed the connection");
                    return None;
                }
            }
        }
        (budget == 0).then_some(turn.now)
    }

    /// Brings what the server says to the guest.
    pub(super) fn bring_down(&mut self, turn: &mut Turn<'_>) -> Option<Duration> {
        let Server::Open(socket) = &self.host else { return None };
        let guest = self.guest.as_mut()?;
        let mut budget = TURN;
        while self.readable && !self.heard_all && budget > 0 && guest.socket().can_send() {
            let room = turn.down.room(turn.now).min(budget);
            if room == 0 {
                return Some(turn.down.next(turn.now));
            }
            let got = guest.socket().send(|buffer| {
                let many = buffer.len().min(room);
                let got = recv(socket, &mut buffer[..many], RecvFlags::DONTWAIT).map(|(_, n)| n);
                (*got.as_ref().unwrap_or(&0), got)
            });
            match got {
                Ok(Ok(0)) => self.heard_all = true,
                Ok(Ok(many)) => {
                    turn.down.spend(many);
                    budget = budget.saturating_sub(many);
                    self.down += many as u64;
                    self.moved = turn.now;
                }
                Ok(Err(Errno::AGAIN | Errno::INTR)) => self.readable = false,
                Ok(Err(_)) => {
                    self.reset("the server reset the connection");
                    return None;
                }
                Err(_) => return None,
            }
        }
        (budget == 0).then_some(turn.now)
    }

    /// Tells each side that the other has said its last byte.
    pub(super) fn pass_ends_on(&mut self) {
        let Some(guest) = &mut self.guest else { return };
        if self.heard_all && guest.socket().may_send() {
            guest.socket().close();
        }
        if guest.has_finished() && !self.said_all {
            match &self.host {
                Server::Open(socket) if self.held.is_empty() => {
                    let _ = shutdown(socket, Shutdown::Write);
                    self.said_all = true;
                }
                // What is left was never whole, so it was never decided about.
                Server::Open(_) if self.cleared == 0 => self.reset("ended in the middle"),
                Server::Unmade if self.cleared == 0 => self.reset("ended before it said anything"),
                _ => {}
            }
        }
    }
}

fn put(socket: impl AsFd, bytes: &[u8]) -> Result<usize, Errno> {
    send(socket, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)
}
