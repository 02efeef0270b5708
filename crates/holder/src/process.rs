//! The process itself: one thread, one poll, no file and no network.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;
use rustix::process::{Resource, Signal, pidfd_send_signal};

use crate::place::is_own;
use crate::wire::{self, Message, Until, VERSION};

/// How long the wall clock may jump unnoticed: so late may a machine end at most.
const TICK: Duration = Duration::from_millis(500);

struct Machine {
    note: String,
    until: Until,
    /// The pidfd first.
    descriptors: Vec<OwnedFd>,
}

struct Process {
    listener: OwnedFd,
    server: Option<OwnedFd>,
    /// Since when there is no server, if there is none.
    alone_since: Instant,
    machines: BTreeMap<String, Machine>,
}

/// Holds what `server` sends, and what the servers send that connect to `listener` after it. Returns
/// when there is neither a server nor a machine.
///
/// # Errors
/// Only what makes it unable to wait; the machines end with it.
pub fn serve(server: OwnedFd, listener: OwnedFd) -> io::Result<()> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // With fewer descriptors it holds fewer machines.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    let (server, alone_since) = (Some(server), Instant::now());
    let mut process = Process { listener, server, alone_since, machines: BTreeMap::new() };
    while process.server.is_some() || !process.machines.is_empty() {
        process.turn()?;
    }
    Ok(())
}

impl Process {
    fn turn(&mut self) -> io::Result<()> {
        let (heard, ended) = self.wait()?;
        self.machines.retain(|name, _| !ended.contains(name));
        match (&self.server, heard) {
            (Some(_), true) => self.listen(),
            (None, true) => self.accept(),
            (_, false) => {}
        }
        if self.server.is_none() {
            let alone = self.alone_since.elapsed();
            let over = self.machines.values().filter(|m| m.until.left(alone).is_zero());
            over.for_each(end);
        }
        Ok(())
    }

    /// Waits for a word of the server, or for a server, and for the end of machines.
    fn wait(&self) -> io::Result<(bool, Vec<String>)> {
        let from = self.server.as_ref().unwrap_or(&self.listener);
        let pidfds = self.machines.values().map(|machine| &machine.descriptors[0]);
        let mut watched: Vec<_> =
            [from].into_iter().chain(pidfds).map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let timeout = self.server.is_none().then(|| {
            let alone = self.alone_since.elapsed();
            let left = self.machines.values().map(|machine| machine.until.left(alone)).min();
            // What is over has been told so and ends in a moment.
            let left = left.unwrap_or(TICK).clamp(Duration::from_millis(5), TICK);
            Timespec { tv_sec: 0, tv_nsec: i64::from(left.subsec_nanos()) }
        });
        match rustix::event::poll(&mut watched, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = watched.iter().map(|fd| !fd.revents().is_empty()).collect();
        let names = self.machines.keys().zip(&ready[1..]);
        Ok((ready[0], names.filter(|(_, ended)| **ended).map(|(name, _)| name.clone()).collect()))
    }

    /// One word of the server, or its end.
    fn listen(&mut self) {
        let Some(server) = &self.server else { return };
        match wire::receive(server) {
            Ok(Some((message, attached))) => self.obey(message, attached),
            // Nonsense comes from nobody but a server in trouble.
            Ok(None) | Err(_) => {
                self.server = None;
                self.alone_since = Instant::now();
            }
        }
    }

    fn obey(&mut self, message: Message, descriptors: Vec<OwnedFd>) {
        match message {
            Message::Hold { name, note, until } if !descriptors.is_empty() => {
                self.machines.insert(name, Machine { note, until, descriptors });
            }
            Message::Until { name, until } => {
                if let Some(machine) = self.machines.get_mut(&name) {
                    machine.until = until;
                }
            }
            Message::Release { name } => {
                self.machines.remove(&name);
            }
            Message::Take { version } => {
                if version != VERSION {
                    self.machines.values().for_each(end);
                    self.machines.clear();
                }
                if self.tell_everything().is_err() {
                    self.server = None;
                    self.alone_since = Instant::now();
                }
            }
            Message::Hold { .. } | Message::Everything { .. } => {}
        }
    }

    fn tell_everything(&self) -> io::Result<()> {
        let Some(server) = &self.server else { return Ok(()) };
        for (name, machine) in &self.machines {
            let Machine { note, until, descriptors } = machine;
            let message = Message::Hold { name: name.clone(), note: note.clone(), until: *until };
            let attached: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
            wire::send(server, &message, &attached, SendFlags::empty())?;
        }
        wire::send(server, &Message::Everything { version: VERSION }, &[], SendFlags::empty())
    }

    /// The next server, if it is of the same user.
    fn accept(&mut self) {
        let accepted = rustix::net::accept_with(&self.listener, rustix::net::SocketFlags::CLOEXEC);
        self.server = accepted.ok().filter(is_own);
        if let Some(server) = &self.server {
            // One that does not read what it asked for is no server.
            let patience = Some(Duration::from_secs(5));
            let sending = rustix::net::sockopt::Timeout::Send;
            let _ = rustix::net::sockopt::set_socket_timeout(server, sending, patience);
        }
    }
}

fn end(machine: &Machine) {
    // The only failure is that it has ended.
    let _ = pidfd_send_signal(&machine.descriptors[0], Signal::KILL);
}
