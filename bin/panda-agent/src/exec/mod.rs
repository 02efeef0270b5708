//! Commands.
//!
//! ```text
//!            start()           main process ends          pipes drained
//!   request ─────────▶ running ─────────────────▶ draining ────────────▶ reply
//!                        │ timeout, reset: kill the tree             ▲
//!                        └───────▶ (main process ends) ─────▶ dying ─┘ tree empty
//! ```
//!
//! A command is over when its main process has ended and what was in the pipes at that moment is
//! sent. Processes that it left in the background live on, as with ssh, but nobody reads their
//! output any more. Kills reach the whole tree, wherever its processes went, and a command that was
//! killed is over when nothing of it is left: what it held is then free for the next one.
//!
//! A connection may disappear under a running command, when its guest was copied. The command
//! then goes on [detached](Exec::detach): its output is read and thrown away.

mod command;
pub mod tree;
mod user;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use pandastack_proto::{Channel, Encoder, ErrorCode, ExecSpec, ExecStatus, Failure, Reply};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, WaitStatus};

use crate::failure::{because, refuse};
use crate::guest::Guest;
use crate::inlet::Inlet;
use crate::lane::{Lane, Progress};
use crate::sys;
use tree::Tree;

/// How long a killed command's processes may take to disappear before its end is told all the
/// same. Less than what the host waits for the end of a command whose time is up.
const DYING: Duration = Duration::from_secs(6);

/// One output of a command.
struct Output {
    channel: Channel,
    /// `None` at the end.
    pipe: Option<OwnedFd>,
    /// Once the main process has ended: bytes that were in the pipe then.
    rest: Option<u64>,
}

/// A command that was started.
pub struct Exec {
    pid: Pid,
    tree: Tree,
    stdin: Option<Inlet>,
    outputs: [Output; 2],
    deadline: Option<Instant>,
    timed_out: bool,
    /// Once it was killed: when its end is told even if something of it is left.
    gone_by: Option<Instant>,
    /// Nobody wants the output.
    muted: bool,
    /// Exit code of the main process, once it has ended.
    code: Option<i32>,
    /// The beginning of what was asked for.
    label: String,
}

/// The beginning of a command, for people to know it by.
fn label(spec: &ExecSpec) -> String {
    const CHARS: usize = 200;
    let words = || spec.argv.as_deref().unwrap_or_default().join(" ");
    spec.shell.clone().unwrap_or_else(words).chars().take(CHARS).collect()
}

impl Exec {
    /// Starts a command.
    pub fn start(spec: &ExecSpec, guest: &mut Guest) -> Result<Self, Failure> {
        let tree = guest.new_tree();
        let started = Self::start_in(&tree, spec, guest);
        match started {
            Ok((pid, stdin, pipes)) => {
                let mut channels = [Channel::Stdout, Channel::Stderr].into_iter();
                let outputs = pipes.map(|pipe| Output {
                    channel: channels.next().unwrap_or(Channel::Stderr),
                    pipe: Some(pipe),
                    rest: None,
                });
                let deadline = spec
                    .timeout_ms
                    .and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)));
                Ok(Self {
                    pid,
                    tree,
                    stdin,
                    outputs,
                    deadline,
                    timed_out: false,
                    gone_by: None,
                    muted: false,
                    code: None,
                    label: label(spec),
                })
            }
            Err(failure) => {
                guest.keep_tree(tree);
                Err(failure)
            }
        }
    }

    fn start_in(
        tree: &Tree,
        spec: &ExecSpec,
        guest: &Guest,
    ) -> Result<(Pid, Option<Inlet>, [OwnedFd; 2]), Failure> {
        let command = command::prepare(spec, tree.marker())?;
        let pipe =
            || pipe_with(PipeFlags::CLOEXEC).map_err(because(|| "cannot make a pipe".into()));
        let (stdin_theirs, stdin) = if spec.stdin {
            let (theirs, ours) = pipe()?;
            (Some(theirs), Some(Inlet::new(ours)))
        } else {
            (None, None)
        };
        let ((stdout, stdout_theirs), (stderr, stderr_theirs)) = (pipe()?, pipe()?);
        let input = stdin_theirs.as_ref().map_or(guest.null(), OwnedFd::as_fd);
        let launch = sys::Launch {
            programs: &command.programs,
            args: &command.args,
            path_as_name: command.path_as_name,
            env: &command.env,
            cwd: &command.cwd,
            stdio: [input, stdout_theirs.as_fd(), stderr_theirs.as_fd()],
            credentials: guest.credentials(&command.user.credentials),
            open_files: guest.open_files(),
            proc_dir: guest.proc_dir(),
            cgroup: tree.cgroup(),
        };
        let pid = sys::spawn(&launch).map_err(|errno| match errno {
            Errno::AGAIN => {
                refuse(ErrorCode::TooMany, "the sandbox has reached its limit of processes")
            }
            other => because(|| "cannot start a process".into())(other),
        })?;
        Ok((pid, stdin, [stdout, stderr]))
    }

    /// The main process, while it has not been waited for.
    pub fn pid(&self) -> Option<Pid> {
        self.code.is_none().then_some(self.pid)
    }

    /// How its main process ended, if it has, and what it was.
    pub fn end(&self) -> Option<(&str, ExecStatus)> {
        let status = |code| ExecStatus { code, timed_out: self.timed_out };
        self.code.map(|code| (self.label.as_str(), status(code)))
    }

    /// Takes the processes that are left.
    pub fn into_tree(self) -> Tree {
        self.tree
    }

    /// When something is due that no descriptor tells of: [`Exec::expire`], or the end of waiting
    /// for what was killed.
    pub fn deadline(&self) -> Option<Instant> {
        match self.code {
            Some(_) => self.gone_by.filter(|_| self.is_dying()),
            None => self.deadline.filter(|_| !self.timed_out),
        }
    }

    /// Its time is up, if it is.
    pub fn expire(&mut self, now: Instant) {
        if self.code.is_none() && self.deadline().is_some_and(|at| at <= now) {
            self.timed_out = true;
            self.kill();
        }
    }

    /// The host is not interested any more: everything goes, and only the end is told.
    pub fn cancel(&mut self) {
        self.kill();
        self.detach();
    }

    /// Kills all of its processes.
    pub fn kill(&mut self) {
        self.tree.kill(self.pid());
        self.gone_by.get_or_insert_with(|| Instant::now() + DYING);
    }

    /// Whether it was killed and is not gone. The last of its processes is an orphan by then, so
    /// its end wakes the agent.
    fn is_dying(&self) -> bool {
        self.gone_by.is_some_and(|by| !self.tree.is_empty() && Instant::now() < by)
    }

    /// Goes on without a host.
    pub fn detach(&mut self) {
        self.muted = true;
        self.stdin = None;
    }

    /// Which of its descriptors can be worked on now, if they are ready.
    pub fn interests(&self, room: usize) -> impl Iterator<Item = (BorrowedFd<'_>, bool)> {
        let readable = self.muted || room > 0;
        let outputs = self.outputs.iter().filter(move |_| readable);
        let outputs = outputs.filter_map(|o| o.pipe.as_ref()).map(|fd| (fd.as_fd(), false));
        let stdin = self.stdin.as_ref().and_then(Inlet::blocked).map(|fd| (fd, true));
        outputs.chain(stdin)
    }

    /// Data for its stdin. Takes all of it; what the command does not read yet is kept, and the
    /// window bounds it.
    pub fn data(&mut self, bytes: &[u8], lane: &mut Lane, out: &mut Encoder) {
        match &mut self.stdin {
            Some(stdin) => stdin.push(bytes, lane, out),
            // Closed by the command: data for it goes nowhere.
            None => lane.used(out, bytes.len()),
        }
    }

    /// The end of its stdin.
    pub fn eof(&mut self) {
        if let Some(stdin) = &mut self.stdin {
            stdin.finish();
        }
        self.drop_stdin();
    }

    fn drop_stdin(&mut self) {
        if self.stdin.as_ref().is_some_and(Inlet::is_over) {
            self.stdin = None;
        }
    }

    /// Moves what can be moved without waiting. `ready` says which outputs have something; after
    /// the end of the main process it is not needed.
    pub fn work(&mut self, lane: &mut Lane, out: &mut Encoder) -> Progress {
        if let Some(stdin) = &mut self.stdin {
            stdin.write(lane, out);
        }
        self.drop_stdin();
        let Some(code) = self.code else { return Progress::Waiting };
        if self.muted {
            return self.over(code);
        }
        for output in &mut self.outputs {
            while output.pipe.is_some() && lane.room(out) > 0 {
                output.pump(lane, out);
            }
        }
        if self.outputs.iter().all(|o| o.pipe.is_none()) {
            return self.over(code);
        }
        Progress::Waiting
    }

    fn over(&self, code: i32) -> Progress {
        if self.is_dying() {
            return Progress::Waiting;
        }
        Progress::Done(Ok(Reply::Exited(ExecStatus { code, timed_out: self.timed_out })))
    }

    /// One of its outputs has something to read.
    pub fn readable(&mut self, fd: RawFd, lane: &mut Lane, out: &mut Encoder) {
        let output =
            self.outputs.iter_mut().find(|o| o.pipe.as_ref().is_some_and(|p| p.as_raw_fd() == fd));
        let Some(output) = output else { return };
        if self.muted {
            output.discard();
        } else if lane.room(out) > 0 {
            output.pump(lane, out);
        }
    }

    /// The main process has ended.
    pub fn ended(&mut self, status: WaitStatus) {
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        self.code = status.exit_status().or(signal).or(Some(255));
        self.stdin = None;
        for output in &mut self.outputs {
            // What a background process writes from here on is not waited for: it could go on for
            // ever. Reading exactly what is there now can never block either.
            let rest = output.pipe.as_ref().and_then(|pipe| rustix::io::ioctl_fionread(pipe).ok());
            output.rest = Some(rest.unwrap_or(0));
            output.close_if_drained();
        }
    }
}

impl Output {
    /// Sends one chunk. The caller knows that there is something to read and room for it.
    fn pump(&mut self, lane: &mut Lane, out: &mut Encoder) {
        let Some(pipe) = &self.pipe else { return };
        let rest = self.rest.map_or(usize::MAX, |rest| usize::try_from(rest).unwrap_or(usize::MAX));
        let max = lane.room(out).min(rest);
        let sent = lane.send_with(out, self.channel, max, |buf| rustix::io::read(pipe, buf));
        self.after_read(sent);
    }

    /// Reads one chunk and throws it away.
    fn discard(&mut self) {
        let Some(pipe) = &self.pipe else { return };
        let mut buf = [0; 4096];
        let read = rustix::io::read(pipe, &mut buf);
        self.after_read(read);
    }

    fn after_read(&mut self, read: rustix::io::Result<usize>) {
        match read {
            Ok(n) if n > 0 => {
                if let Some(rest) = &mut self.rest {
                    *rest = rest.saturating_sub(n as u64);
                }
                self.close_if_drained();
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(_) | Err(_) => self.pipe = None,
        }
    }

    fn close_if_drained(&mut self) {
        if self.rest == Some(0) {
            self.pipe = None;
        }
    }
}
