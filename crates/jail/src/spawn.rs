//! Starting a jailed program.
//!
//! `clone3` makes process 1 inside its namespaces at once; once the jail is shut, process 1 makes
//! process 2, the program, and turns into the keeper. The invariant: nobody in there lives longer
//! than its owner. That is the supervisor, unless there is a lifeline ([`Program::lifeline`]): then
//! whoever holds the other end of that. `PR_SET_PDEATHSIG` ends process 1 and so the whole family,
//! but it fires when the *thread* that made the child ends: see [`crate::spawner`].

use std::ffi::{CStr, CString, OsStr, c_char};
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use libc::{c_int, rlimit};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags,
    SocketType,
};

use crate::child::{Plan, READY, Step, enter};
use crate::ids::OuterIds;
use crate::process::{Child, Init};
use crate::{Cgroup, Filter, landlock};

/// A program and the whole world it will see.
pub struct Program {
    /// Directory that becomes `/`, read-only. For a program with a `/proc` it must contain an
    /// empty directory of this name.
    pub root: PathBuf,
    /// The keeper (`panda-keeper`), a path in that directory. It becomes process 1, without any
    /// descriptor or environment, and stays until the program and all its forks are gone.
    pub init: CString,
    /// The program, a path in that directory. It becomes process 2.
    pub path: CString,
    /// Arguments, with the program's name first.
    pub args: Vec<CString>,
    /// Environment, `NAME=value` each.
    pub env: Vec<CString>,
    /// Descriptor n of the new process is `descriptors[n]`; it has no others.
    pub descriptors: Vec<Arc<OwnedFd>>,
    /// Resource limits.
    pub rlimits: Rlimits,
    /// What it may reach by a path.
    pub confine: Confine,
    /// System calls it may not make.
    pub filter: Arc<Filter>,
    /// Joined by the program before it starts. The keeper, which may stay longer, is not in it.
    pub cgroup: Option<Arc<Cgroup>>,
    /// The end of a pipe to read from. The program and all its forks live until nobody holds the
    /// other end, which can be passed on; without one, until this process ends. For a program that
    /// has its standard descriptors.
    pub lifeline: Option<OwnedFd>,
}

/// What a program may reach by a path, in the directory that is its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confine {
    /// Everything in there, and a `/proc` that shows it itself: QEMU opens its firmware, and
    /// inherited descriptors by their names.
    Root,
    /// Nothing but the keeper and the program, in order to execute them, as far as the kernel has
    /// Landlock ([`crate::Level`] says whether it has). There is no `/proc`, so a keeper cannot
    /// give a copy its ids: see [`crate::give_ids`].
    Programs,
    /// As [`Confine::Programs`], but in the network namespace of the host, where it may connect to
    /// others and nobody can connect to it: a gateway is between sandboxes and that network.
    HostNetwork,
}

/// Resource limits of a jailed process; a core is never dumped.
#[derive(Clone, Copy, Debug)]
pub struct Rlimits {
    /// Largest file it may write, bytes.
    pub file_size: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Processes and threads of its user id. The whole family of a program's forks counts: their
    /// user namespaces lie inside the first one, and so does the accounting. So this has to be
    /// large; the bound for each machine is the one of its control group.
    pub processes: u64,
}

/// Why a process could not be jailed and started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The kernel refused the process or its namespaces.
    #[error("the kernel refused a process in namespaces of its own")]
    Clone(#[source] io::Error),
    /// The supervisor could not give the child its ids, control group or rules.
    #[error("cannot set up {what} of the process")]
    Supervise {
        /// Ids, control group or rules.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The child failed while setting its jail up.
    #[error("the process failed at {step:?}")]
    Child {
        /// Where.
        step: Step,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The child ended without a word.
    #[error("the process ended before its program started")]
    Vanished,
}

/// Jails and starts a program, and waits until both it and its keeper were executed.
///
/// Only for the thread that children die with; everybody else calls [`crate::spawn()`].
pub(crate) fn start(program: Program) -> Result<(Init, Child), SpawnError> {
    let (link, theirs) = rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(|e| SpawnError::Clone(e.into()))?;
    let groups = program.cgroup.as_ref().map_or(Ok(Vec::new()), |group| group.join_files());
    let groups =
        groups.map_err(|source| SpawnError::Supervise { what: "the control group", source })?;
    let rules = program.rules();
    let rules =
        rules.map_err(|source| SpawnError::Supervise { what: "Landlock's rules", source })?;
    let sources: Vec<BorrowedFd<'_>> = program
        .descriptors
        .iter()
        .map(|fd| fd.as_fd())
        .chain([theirs.as_fd()])
        .chain(groups.iter().map(AsFd::as_fd))
        .chain(rules.iter().map(AsFd::as_fd))
        .chain(program.lifeline.iter().map(AsFd::as_fd))
        .collect();
    // Sources are lifted above every target, so that placing one overwrites no other.
    let lowest = sources.len() as RawFd;
    let lifted: Vec<OwnedFd> = sources
        .into_iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, lowest))
        .collect::<Result<_, _>>()
        .map_err(|e| SpawnError::Clone(e.into()))?;
    let outer = OuterIds::choose();
    let plan = Plan {
        root: CString::new(program.root.as_os_str().as_bytes())
            .map_err(|e| SpawnError::Clone(e.into()))?,
        init_argv: [program.init.as_ptr()]
            .into_iter()
            .chain(program.lifeline.iter().map(|_| LIFELINE.as_ptr()))
            .chain([std::ptr::null()])
            .collect(),
        init: program.init,
        program: program.path,
        argv: pointers(&program.args),
        envp: pointers(&program.env),
        _strings: [program.args, program.env],
        sources: lifted.iter().map(AsRawFd::as_raw_fd).collect(),
        given: program.descriptors.len(),
        groups: groups.len(),
        ruled: rules.is_some(),
        lifeline: program.lifeline.is_some(),
        proc: program.confine == Confine::Root,
        foreign: link.as_raw_fd(),
        limits: program.rlimits.list(),
        filter: program.filter.program().to_vec(),
        drop_groups: outer.privileged,
    };
    let network = program.confine != Confine::HostNetwork;
    let init = clone_into_jail(&plan, network).map_err(SpawnError::Clone)?;
    // The link has to end when the children's copies do.
    drop((lifted, theirs));
    match supervise(&init, &outer, &link) {
        Ok(child) => Ok((init, child)),
        Err(error) => {
            init.end();
            Err(error)
        }
    }
}

impl Program {
    /// Landlock's rules for the program and its keeper, if it is to have some and the kernel can.
    fn rules(&self) -> io::Result<Option<OwnedFd>> {
        if self.confine == Confine::Root {
            return Ok(None);
        }
        let outside = |inside: &CString| {
            let inside = Path::new(OsStr::from_bytes(inside.as_bytes()));
            self.root.join(inside.strip_prefix("/").unwrap_or(inside))
        };
        let connects = self.confine == Confine::HostNetwork;
        landlock::only_execute(&[&outside(&self.init), &outside(&self.path)], connects)
    }
}

/// What `execve` takes: an array that ends with a null. The strings must outlive it.
fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
}

/// Tells the keeper that its descriptor 0 is a lifeline.
const LIFELINE: &CStr = c"lifeline";

/// Time for each part of a child's set-up, which takes a millisecond on an idle host.
const DEADLINE_SECONDS: i64 = 20;

/// Makes process 1 in its own namespaces; `network` says whether it gets an empty network, too.
fn clone_into_jail(plan: &Plan, network: bool) -> io::Result<Init> {
    let mut pidfd: RawFd = -1;
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP
        | if network { libc::CLONE_NEWNET } else { 0 };
    // SAFETY: an all-zero clone_args asks for a plain fork.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = (namespaces | libc::CLONE_PIDFD) as u64;
    args.pidfd = (&raw mut pidfd) as u64;
    args.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: without CLONE_VM the child has its own copy of memory, as after fork(2), and it
    // only runs `enter`, which is written for that situation and never returns.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw mut args, std::mem::size_of::<libc::clone_args>())
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => enter(plan),
        // SAFETY: the kernel stored a new descriptor, which nobody else owns.
        _ => Ok(Init { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Gives process 1 its ids, lets it set the jail up, and waits for both programs to start.
fn supervise(init: &Init, outer: &OuterIds, link: &OwnedFd) -> Result<Child, SpawnError> {
    outer.map(init.pid).map_err(|source| SpawnError::Supervise { what: "the ids", source })?;
    let order = || match rustix::net::send(link, b"!", SendFlags::NOSIGNAL) {
        Ok(_) => Ok(()),
        Err(_) => Err(SpawnError::Vanished),
    };
    order()?;
    let child = match receive(link)? {
        Word::Ready(pidfd) => Child::from_pidfd(pidfd).map_err(|_| SpawnError::Vanished)?,
        Word::End => return Err(SpawnError::Vanished),
    };
    // One for each of the two. Had one of them gone without taking its order, the link would end
    // with an error: unix(7) resets a connection with unread data.
    order()?;
    order()?;
    // The link ends once both have executed their programs; a failure comes first.
    match receive(link)? {
        Word::End => Ok(child),
        Word::Ready(_) => Err(SpawnError::Vanished),
    }
}

/// What the children say when all is well.
enum Word {
    /// The jail is shut and the program's process waits in it.
    Ready(OwnedFd),
    /// Nobody has the other end of the link.
    End,
}

/// Receives a word of the children. Their failure is an error, and so is a long silence.
fn receive(link: &OwnedFd) -> Result<Word, SpawnError> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut attached = RecvAncillaryBuffer::new(&mut space);
    let mut word = [0u8; 2];
    let received = receive_soon(link, &mut word, &mut attached);
    let pidfd = attached.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    match (received, word, pidfd) {
        (Ok(0), ..) => Ok(Word::End),
        (Ok(1), [READY, _], Some(pidfd)) => Ok(Word::Ready(pidfd)),
        (Ok(2), [number, errno], None) => Err(match Step::from_number(number) {
            None => SpawnError::Vanished,
            Some(step) => {
                let source = io::Error::from_raw_os_error(c_int::from(errno));
                SpawnError::Child { step, source }
            }
        }),
        _ => Err(SpawnError::Vanished),
    }
}

fn receive_soon(
    link: &OwnedFd,
    word: &mut [u8],
    attached: &mut RecvAncillaryBuffer<'_>,
) -> rustix::io::Result<usize> {
    let mut ready = [PollFd::new(link, PollFlags::IN)];
    let deadline = Timespec { tv_sec: DEADLINE_SECONDS, tv_nsec: 0 };
    match rustix::event::poll(&mut ready, Some(&deadline))? {
        0 => Err(rustix::io::Errno::TIMEDOUT),
        _ => {
            let flags = RecvFlags::CMSG_CLOEXEC;
            Ok(rustix::net::recvmsg(link, &mut [IoSliceMut::new(word)], attached, flags)?.bytes)
        }
    }
}

impl Rlimits {
    fn list(&self) -> Vec<(c_int, rlimit)> {
        [
            (libc::RLIMIT_FSIZE, self.file_size),
            (libc::RLIMIT_NOFILE, self.descriptors),
            (libc::RLIMIT_NPROC, self.processes),
            (libc::RLIMIT_CORE, 0),
            (libc::RLIMIT_MEMLOCK, 0),
        ]
        .map(|(resource, value)| (resource as c_int, rlimit { rlim_cur: value, rlim_max: value }))
        .to_vec()
    }
}
