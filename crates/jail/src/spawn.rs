//! Starting a jailed process.
//!
//! `clone3` makes the child inside its namespaces at once. The invariant: a child lives no longer
//! than the supervisor. `PR_SET_PDEATHSIG` fires when the *thread* that made the child ends, so
//! all children are made by one thread that lives as long as the program.

use std::ffi::CString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, OnceLock, mpsc};

use libc::{c_int, rlimit};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Signal, WaitId, WaitIdOptions};

use crate::child::{INNER_ID, Plan, READY, Step, enter};
use crate::{Cgroup, Filter};

/// A program and the whole world it will see.
pub struct Program {
    /// Directory that becomes `/`, read-only. It must contain an empty directory `proc`.
    pub root: PathBuf,
    /// The program, a path in that directory.
    pub path: CString,
    /// Arguments, with the program's name first.
    pub args: Vec<CString>,
    /// Descriptor n of the new process is `descriptors[n]`; it has no others.
    pub descriptors: Vec<Arc<OwnedFd>>,
    /// Resource limits.
    pub rlimits: Rlimits,
    /// System calls it may not make.
    pub filter: Arc<Filter>,
    /// Joined before the program starts.
    pub cgroup: Option<Arc<Cgroup>>,
}

/// Resource limits of a jailed process; a core is never dumped.
#[derive(Clone, Copy, Debug)]
pub struct Rlimits {
    /// Largest file it may write, bytes.
    pub file_size: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Processes and threads of its user id.
    pub processes: u64,
}

/// A running jailed process.
#[derive(Debug)]
pub struct Child {
    pid: u32,
    pidfd: OwnedFd,
}

impl Child {
    /// Its process id on the host.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Becomes readable when the process has ended.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Ends the process now. It stays until [`Child::reap`].
    pub fn kill(&self) {
        // The only failure is that it is already gone.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, Signal::KILL);
    }

    /// Collects the ended process; waits for its end if it has not come yet.
    pub fn reap(&self) {
        use std::os::fd::AsFd;
        let wait =
            || rustix::process::waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
        while wait().is_err_and(|e| e == rustix::io::Errno::INTR) {}
    }
}

/// Why a process could not be jailed and started.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The kernel refused the process or its namespaces.
    #[error("the kernel refused a process in namespaces of its own")]
    Clone(#[source] io::Error),
    /// The supervisor could not give the child its ids or control group.
    #[error("cannot set up {what} of the process")]
    Supervise {
        /// Ids or control group.
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

/// Jails and starts a program. Blocks for about 2 ms, until the program was executed.
pub fn spawn(program: Program) -> Result<Child, SpawnError> {
    type Job = (Program, mpsc::SyncSender<Result<Child, SpawnError>>);
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        // The thread that children die with: it ends with the program.
        std::thread::Builder::new()
            .name("spawner".into())
            .spawn(move || {
                for (program, answer) in queue {
                    let _ = answer.send(spawn_here(program));
                }
            })
            .expect("a thread at start-up");
        jobs
    });
    let (answer, result) = mpsc::sync_channel(1);
    spawner.send((program, answer)).map_err(|_| SpawnError::Vanished)?;
    result.recv().map_err(|_| SpawnError::Vanished)?
}

fn spawn_here(program: Program) -> Result<Child, SpawnError> {
    let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
        Ok(rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?)
    };
    let (orders_read, orders) = pipe().map_err(SpawnError::Clone)?;
    let (status, status_write) = pipe().map_err(SpawnError::Clone)?;
    // Sources are lifted above every target, so that placing one overwrites no other.
    let lowest = program.descriptors.len() as c_int + 2;
    let lifted: Vec<OwnedFd> = program
        .descriptors
        .iter()
        .map(|fd| rustix::io::fcntl_dupfd_cloexec(fd.as_ref(), lowest))
        .collect::<Result<_, _>>()
        .map_err(|e| SpawnError::Clone(e.into()))?;
    let outer = OuterIds::choose();
    let argv = program.args.iter().map(|a| a.as_ptr()).chain([std::ptr::null()]).collect();
    let plan = Plan {
        root: CString::new(program.root.as_os_str().as_bytes())
            .map_err(|e| SpawnError::Clone(e.into()))?,
        program: program.path,
        argv,
        _args: program.args,
        envp: [std::ptr::null()],
        sources: lifted.iter().map(AsRawFd::as_raw_fd).collect(),
        orders: orders_read.as_raw_fd(),
        status: status_write.as_raw_fd(),
        foreign: [orders.as_raw_fd(), status.as_raw_fd()],
        limits: program.rlimits.list(),
        filter: program.filter.program().to_vec(),
        drop_groups: outer.privileged,
    };
    let child = clone_into_jail(&plan).map_err(SpawnError::Clone)?;
    drop((orders_read, status_write));
    let supervised = supervise(&child, &outer, program.cgroup.as_deref(), orders, status);
    if supervised.is_err() {
        child.kill();
        child.reap();
    }
    supervised.map(|()| child)
}

/// Time for each half of a child's set-up, which takes a millisecond on an idle host.
const DEADLINE_SECONDS: i64 = 20;

/// Makes the child in its own namespaces.
fn clone_into_jail(plan: &Plan) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let namespaces = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWCGROUP;
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
        _ => Ok(Child { pid: pid as u32, pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) } }),
    }
}

/// Gives the child its ids and group, lets it go, and waits for its program to start.
fn supervise(
    child: &Child,
    outer: &OuterIds,
    cgroup: Option<&Cgroup>,
    orders: OwnedFd,
    status: OwnedFd,
) -> Result<(), SpawnError> {
    let failed = |what| move |source| SpawnError::Supervise { what, source };
    outer.map(child.pid).map_err(failed("the ids"))?;
    if let Some(cgroup) = cgroup {
        cgroup.add(child.pid).map_err(failed("the control group"))?;
    }
    let (mut orders, mut status) = (fs::File::from(orders), fs::File::from(status));
    let mut word = [0u8; 2];
    orders.write_all(b"m").map_err(|_| SpawnError::Vanished)?;
    match read_soon(&mut status, &mut word) {
        Ok(1) if word[0] == READY => {}
        other => return Err(child_failure(other, word)),
    }
    orders.write_all(b"g").map_err(|_| SpawnError::Vanished)?;
    // The status pipe closes when the program is executed; a failure comes first.
    match read_soon(&mut status, &mut word) {
        Ok(0) => Ok(()),
        other => Err(child_failure(other, word)),
    }
}

/// Reads a word of the child, or fails when it says nothing for too long.
fn read_soon(status: &mut fs::File, word: &mut [u8]) -> io::Result<usize> {
    let mut ready = [PollFd::new(status, PollFlags::IN)];
    let deadline = Timespec { tv_sec: DEADLINE_SECONDS, tv_nsec: 0 };
    match rustix::event::poll(&mut ready, Some(&deadline))? {
        0 => Err(io::ErrorKind::TimedOut.into()),
        _ => status.read(word),
    }
}

fn child_failure(read: io::Result<usize>, word: [u8; 2]) -> SpawnError {
    match (read, Step::from_number(word[0])) {
        (Ok(2), Some(step)) => {
            SpawnError::Child { step, source: io::Error::from_raw_os_error(c_int::from(word[1])) }
        }
        _ => SpawnError::Vanished,
    }
}

/// Host ids that a jailed process runs as.
struct OuterIds {
    uid: u32,
    gid: u32,
    /// Whether we may map ids other than our own.
    privileged: bool,
}

/// First host id given to machines by a privileged supervisor, and how many there are. Far above
/// the ids of people, of services and of the ranges in subuid(5).
const FIRST_ID: u32 = 0x6000_0000;
const ID_COUNT: u32 = 1 << 16;

impl OuterIds {
    /// An id of its own for each machine where we may; our own id otherwise.
    fn choose() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        if own.0 == 0 && ids_exist(FIRST_ID + ID_COUNT) {
            let id = FIRST_ID + NEXT.fetch_add(1, Ordering::Relaxed) % ID_COUNT;
            Self { uid: id, gid: id, privileged: true }
        } else {
            Self { uid: own.0, gid: own.1, privileged: false }
        }
    }

    /// Writes the maps of the child's user namespace: one id inside, one outside.
    fn map(&self, pid: u32) -> io::Result<()> {
        if !self.privileged {
            // user_namespaces(7): an unprivileged gid map needs setgroups denied first.
            fs::write(format!("/proc/{pid}/setgroups"), "deny")?;
        }
        fs::write(format!("/proc/{pid}/uid_map"), format!("{INNER_ID} {} 1", self.uid))?;
        fs::write(format!("/proc/{pid}/gid_map"), format!("{INNER_ID} {} 1", self.gid))
    }
}

/// Whether `id` exists in this process's user namespace.
fn ids_exist(id: u32) -> bool {
    let Ok(map) = fs::read_to_string("/proc/self/uid_map") else { return false };
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|n| n.parse::<u64>().ok());
        match (numbers.next(), numbers.nth(1)) {
            (Some(first), Some(count)) => (first..first + count).contains(&u64::from(id)),
            _ => false,
        }
    })
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
