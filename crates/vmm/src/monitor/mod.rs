//! The monitor: one process, one machine, one supervisor.
//!
//! Its main thread answers requests one after the other and never touches what the guest writes:
//! that is for the threads of vCPUs and devices, which exist only while the machine runs. It is
//! the thread that forks, so everything in here happens in every copy as well.
//!
//! The process ends when its supervisor does: the control socket is closed then.

mod attach;
mod fork;
mod save;
mod start;

use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};

use crate::clock::Stages;
use crate::control::{self, End, Failure, Reply, Request, Role, WireError};
use crate::kvm::{Exit, Kick};
use crate::machine::Machine;

/// What a request comes to: a reply, with a descriptor maybe.
type Answer = Result<(Reply, Option<OwnedFd>), Failure>;

/// Serves the supervisor at the other end of `control` until one of the two, or the guest, ends.
pub fn run(control: OwnedFd) -> std::io::Result<()> {
    Kick::install()?;
    let mut monitor = Monitor { control, machine: None };
    while monitor.turn() == Turn::Next {}
    Ok(())
}

/// The process.
struct Monitor {
    control: OwnedFd,
    machine: Option<Machine>,
}

/// Whether there is another turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Turn {
    Next,
    Over,
}

impl Monitor {
    /// Waits for a request or the end of the guest, and acts on it.
    fn turn(&mut self) -> Turn {
        let bell = self.machine.as_ref().map(|machine| machine.board.bell());
        let mut waited = vec![PollFd::new(&self.control, PollFlags::IN)];
        waited.extend(bell.as_deref().map(|bell| PollFd::new(bell, PollFlags::IN)));
        if poll(&mut waited, None).is_err() {
            return Turn::Next; // a signal
        }
        let [asked, rung] =
            [0, 1].map(|at| waited.get(at).is_some_and(|fd| !fd.revents().is_empty()));
        if rung && let Some(exit) = self.machine.as_mut().and_then(Machine::over) {
            // A supervisor that is gone needs no news.
            let _ = control::send(&self.control, Reply::Ended(self.end(exit)), &[]);
            return Turn::Over;
        }
        if asked { self.request() } else { Turn::Next }
    }

    fn request(&mut self) -> Turn {
        let received = match control::receive::<Request>(&self.control) {
            Ok(received) => received,
            Err(WireError::Malformed | WireError::TooLong) => {
                return self.answer(Err(Failure::Refused("a malformed request".into())));
            }
            Err(WireError::Closed | WireError::Socket(_)) => return Turn::Over,
        };
        let runs = matches!(received.body, Request::Run);
        let answer = match &received.body {
            Request::Start(start) => {
                let start = start.clone();
                self.start(&start, received)
            }
            Request::Ready => self.ready(),
            Request::Run => self.run(),
            Request::Pause => self.pause(),
            // Comes back in the copy, too, where `self` is the copy's monitor.
            Request::Fork(fork) => {
                let fork = fork.clone();
                self.fork(&fork, received)
            }
            Request::Attach(attach) => {
                let attach = *attach;
                self.attach(attach, received)
            }
            Request::Save => self.save(received),
            Request::Record => self.record(received),
            Request::Console => self.console(),
            Request::Prove => start::prove(received),
        };
        let turn = self.answer(answer);
        if runs && let Some(machine) = &mut self.machine {
            // Nobody waits for this thread now.
            machine.copy_working_set();
        }
        turn
    }

    fn answer(&self, answer: Answer) -> Turn {
        let (reply, descriptor) = answer.unwrap_or_else(|why| (Reply::Failed(why), None));
        let attached: Vec<_> = descriptor.iter().map(|fd| (Role::Process, fd.as_fd())).collect();
        match control::send(&self.control, reply, &attached) {
            Ok(()) => Turn::Next,
            Err(_) => Turn::Over,
        }
    }

    fn machine(&mut self) -> Result<&mut Machine, Failure> {
        let nothing = || Failure::Refused("there is no machine yet".into());
        self.machine.as_mut().ok_or_else(nothing)
    }

    fn ready(&mut self) -> Answer {
        let mut clock = Stages::new();
        self.machine()?.make_ready(&mut clock).map_err(start::machine_failure)?;
        Ok((Reply::Ran(clock.take()), None))
    }

    fn run(&mut self) -> Answer {
        let mut clock = Stages::new();
        self.machine()?.run(&mut clock).map_err(start::machine_failure)?;
        Ok((Reply::Ran(clock.take()), None))
    }

    fn pause(&mut self) -> Answer {
        self.machine()?.pause().map_err(start::machine_failure)?;
        Ok((Reply::Done, None))
    }

    fn console(&mut self) -> Answer {
        let said = self.machine()?.board.ports().serial.output();
        Ok((Reply::Console(said), None))
    }

    /// What the end of the vCPUs means. A kernel that panicked says so and asks for a reset, as one
    /// that reboots does; its last words go where complaints go.
    fn end(&self, exit: Exit) -> End {
        let said = self.machine.as_ref().map(|it| it.board.ports().serial.output());
        let said = said.unwrap_or_default();
        let panicked = said.windows(PANIC.len()).any(|part| part == PANIC);
        let end = match exit {
            Exit::PowerOff => End::PowerOff,
            Exit::Reset if panicked => End::Panic,
            Exit::Reset => End::Reset,
            Exit::Crash | Exit::Stopped => End::Crash,
        };
        if matches!(end, End::Panic | End::Crash) {
            let last = &said[said.len().saturating_sub(LAST_WORDS)..];
            eprintln!("the guest's last words: {}", last.escape_ascii());
        }
        end
    }
}

/// What Linux prints when it panics.
const PANIC: &[u8] = b"Kernel panic";
/// Bytes of the guest's console that are kept of one that crashed.
const LAST_WORDS: usize = 2048;
