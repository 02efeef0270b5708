//! What the agent is: in a guest its first process, in development mode just a process.
//!
//! In development mode nothing outside the process is touched: no clock, no name, no files of the
//! system, and commands run as whoever started the agent.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use anyhow::Context;
use pandastack_proto::{ErrorCode, Failure, Identity, ResumeAck, Token, Welcome};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{Resource, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use subtle::ConstantTimeEq;

use crate::exec::tree::{Cgroups, Tree};
use crate::failure::refuse;
use crate::identity;
use crate::sys::Credentials;

/// Descriptors that the agent may hold: a thousand commands with three pipes each, and more.
const OWN_OPEN_FILES: u64 = 16 * 1024;
/// Soft limit of a command's descriptors, as everywhere: some programs loop over all of them.
const COMMAND_OPEN_FILES: u64 = 1024;

/// What only the first process of a guest has.
pub struct Init {
    /// The agent's own view of `/proc`, whatever becomes of the mount.
    pub proc_dir: OwnedFd,
    pub identity: identity::Files,
    pub cgroups: Option<Cgroups>,
}

/// The agent's surroundings and its current token.
pub struct Guest {
    init: Option<Init>,
    null: OwnedFd,
    token: Token,
    open_files: (u64, u64),
    commands: u64,
}

impl Guest {
    /// Takes the surroundings over. `None` is development mode.
    pub fn new(init: Option<Init>) -> anyhow::Result<Self> {
        let null = open_null()?;
        let limit = getrlimit(Resource::Nofile);
        let hard = limit.maximum.unwrap_or(u64::MAX);
        let mut own = limit;
        own.current = Some(hard.min(OWN_OPEN_FILES));
        setrlimit(Resource::Nofile, own).context("raise the limit of open files")?;
        let open_files = (COMMAND_OPEN_FILES.min(hard), hard);
        Ok(Self { init, null, token: Token::default(), open_files, commands: 0 })
    }

    /// Says who is there.
    pub fn welcome(&self) -> Welcome {
        let kernel = rustix::system::uname();
        Welcome {
            version: pandastack_proto::VERSION,
            init: self.init.is_some(),
            kernel: kernel.release().to_string_lossy().into_owned(),
        }
    }

    /// Whether a request may be served. Takes the same time for every wrong token.
    pub fn authorise(&self, token: &Token) -> Result<(), Failure> {
        if bool::from(self.token.ct_eq(token)) {
            return Ok(());
        }
        Err(refuse(ErrorCode::Unauthorized, "the token is not the current one"))
    }

    /// Becomes somebody. The token changes last: if anything fails, the host can try again.
    pub fn resume(&mut self, identity: &Identity) -> Result<ResumeAck, Failure> {
        let begin = clock_gettime(ClockId::Monotonic);
        identity::check(identity)?;
        if let Some(init) = &self.init {
            init.identity.become_somebody(identity)?;
        }
        self.token = identity.token;
        let end = clock_gettime(ClockId::Monotonic);
        let took = (end.tv_sec - begin.tv_sec) * 1_000_000 + (end.tv_nsec - begin.tv_nsec) / 1000;
        Ok(ResumeAck { unix_ns: identity::unix_ns(), took_us: u64::try_from(took).unwrap_or(0) })
    }

    /// Sets the wall clock.
    pub fn set_clock(&self, unix_ns: u64) -> Result<(), Failure> {
        if self.init.is_some() { identity::set_clock(unix_ns) } else { Ok(()) }
    }

    /// Refuses what only the first process of a guest can do.
    pub fn must_be_init(&self) -> Result<(), Failure> {
        match self.init {
            Some(_) => Ok(()),
            None => Err(refuse(ErrorCode::InvalidArgument, "this agent has no machine")),
        }
    }

    /// Where the processes of a new command will be.
    pub fn new_tree(&mut self) -> Tree {
        let cgroups = self.init.as_mut().and_then(|init| init.cgroups.as_mut());
        if let Some(leaf) = cgroups.and_then(Cgroups::take) {
            return Tree::Leaf(leaf);
        }
        self.commands += 1;
        Tree::Marked(format!("{}.{}", std::process::id(), self.commands))
    }

    /// Takes back where a command was.
    pub fn keep_tree(&mut self, tree: Tree) {
        let cgroups = self.init.as_mut().and_then(|init| init.cgroups.as_mut());
        if let (Some(cgroups), Tree::Leaf(leaf)) = (cgroups, tree) {
            cgroups.give(leaf);
        }
    }

    /// `/dev/null`, also after somebody removed it.
    pub fn null(&self) -> BorrowedFd<'_> {
        self.null.as_fd()
    }

    /// Who a command becomes; in development mode nobody else if it is the same user.
    pub fn credentials<'a>(&self, wanted: &'a Credentials) -> Option<&'a Credentials> {
        let is_us = wanted.uid == rustix::process::getuid().as_raw();
        // Root's groups as PID 1 are none, and need none.
        if is_us { None } else { Some(wanted) }
    }

    /// Soft and hard limit of a command's open files.
    pub fn open_files(&self) -> (u64, u64) {
        self.open_files
    }

    /// The agent's own `/proc`.
    pub fn proc_dir(&self) -> Option<BorrowedFd<'_>> {
        self.init.as_ref().map(|init| init.proc_dir.as_fd())
    }

    /// Ends the machine, or the process in development mode.
    pub fn power_off(&self) -> ! {
        if self.init.is_some() {
            use rustix::system::{RebootCommand, reboot};
            rustix::fs::sync();
            // Returns only when it cannot be done; a reset ends the machine as well.
            let _ = reboot(RebootCommand::PowerOff);
            let _ = reboot(RebootCommand::Restart);
        }
        std::process::exit(0)
    }
}

/// Opens `/dev/null` above the three standard descriptors. A child replaces those one by one, so
/// nothing that it still needs may be among them; whatever is opened later is above them, too.
fn open_null() -> anyhow::Result<OwnedFd> {
    loop {
        let fd = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context("open /dev/null")?;
        if std::os::fd::AsRawFd::as_raw_fd(&fd) > 2 {
            return Ok(fd);
        }
        // Fills one of the three for the life of the process.
        std::mem::forget(fd);
    }
}
