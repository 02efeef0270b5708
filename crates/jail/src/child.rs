//! What a jailed process does between its birth and its program.
//!
//! This code runs in a copy of a multi-threaded process, in which any lock may be held by a
//! thread that no longer exists. So it allocates nothing, takes no lock and calls only thin
//! wrappers of system calls, on data that the parent prepared.

use std::ffi::{CStr, CString, c_char, c_int, c_ulong};
use std::os::fd::RawFd;

use libc::{rlimit, sock_filter, sock_fprog};

/// A step of the set-up, so that a failure can say where it happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
#[repr(u8)]
pub enum Step {
    /// Waiting for the supervisor.
    Wait = 1,
    /// Putting descriptors in place.
    Descriptors,
    /// Making the root directory the only file system.
    Root,
    /// Mounting the process's own `/proc`.
    Proc,
    /// Setting resource limits.
    Limits,
    /// Giving up capabilities and the user id.
    Privileges,
    /// Dying with the supervisor.
    ParentDeath,
    /// Installing the seccomp filter.
    Seccomp,
    /// Executing the program.
    Exec,
}

impl Step {
    const ALL: [Step; 9] = [
        Step::Wait,
        Step::Descriptors,
        Step::Root,
        Step::Proc,
        Step::Limits,
        Step::Privileges,
        Step::ParentDeath,
        Step::Seccomp,
        Step::Exec,
    ];

    /// The step with this number, if there is one.
    pub(crate) fn from_number(number: u8) -> Option<Step> {
        Self::ALL.into_iter().find(|step| *step as u8 == number)
    }
}

/// Written by the child once everything but `execve` is done.
pub(crate) const READY: u8 = 0;

/// Ids inside the jail's user namespace: neither root nor anybody that owns a file.
pub(crate) const INNER_ID: u32 = 1000;

/// Everything that the child needs, in the form that system calls take.
pub(crate) struct Plan {
    /// New root directory.
    pub root: CString,
    /// Program, as seen from the new root.
    pub program: CString,
    /// Owns the strings that `argv` points to.
    pub _args: Vec<CString>,
    /// Null-terminated.
    pub argv: Vec<*const c_char>,
    /// Null-terminated and otherwise empty.
    pub envp: [*const c_char; 1],
    /// Descriptor `sources[n]` becomes descriptor `n`.
    pub sources: Vec<RawFd>,
    /// Read end of the supervisor's word.
    pub orders: RawFd,
    /// Write end for READY or a failure.
    pub status: RawFd,
    /// The supervisor's ends of the two pipes, of which the child has copies.
    pub foreign: [RawFd; 2],
    /// Resource limits, in order.
    pub limits: Vec<(c_int, rlimit)>,
    /// The seccomp filter.
    pub filter: Vec<sock_filter>,
    /// Whether supplementary groups can be dropped (not in a rootless user namespace).
    pub drop_groups: bool,
}

/// A failed step with its `errno`.
type Outcome = Result<(), (Step, c_int)>;

/// Sets the jail up and executes the program; reports the failure otherwise. Never returns.
pub(crate) fn enter(plan: &Plan) -> ! {
    let status = plan.sources.len() as RawFd;
    let (step, errno) = match set_up(plan) {
        Err(failure) => failure,
        Ok(()) => {
            // SAFETY: all pointers are null-terminated arrays of valid C strings owned by `plan`.
            unsafe { libc::execve(plan.program.as_ptr(), plan.argv.as_ptr(), plan.envp.as_ptr()) };
            (Step::Exec, errno())
        }
    };
    let report = [step as u8, errno as u8];
    // Until the descriptors were put in place the pipe has its old number.
    let fd = if step <= Step::Descriptors { plan.status } else { status };
    // SAFETY: `report` is valid for its length.
    unsafe { libc::write(fd, report.as_ptr().cast(), report.len()) };
    // SAFETY: _exit runs no destructors or handlers of the copied process.
    unsafe { libc::_exit(127) }
}

fn set_up(plan: &Plan) -> Outcome {
    for fd in plan.foreign {
        // A pipe whose write end we hold ourselves would never read as ended.
        // SAFETY: closing a number is safe; both are copies that nobody uses here.
        unsafe { libc::close(fd) };
    }
    wait_for_order(plan.orders)?;
    let (status, orders) = place_descriptors(plan)?;
    enter_root(&plan.root)?;
    // While the host's own /proc is still in sight: the kernel lets a user namespace mount a
    // new one only where a whole one is visible (mount_too_revealing in fs/namespace.c).
    mount_proc()?;
    leave_host()?;
    for (resource, limit) in &plan.limits {
        // SAFETY: `limit` is a valid rlimit.
        check(Step::Limits, unsafe { libc::setrlimit(*resource as _, limit) })?;
    }
    drop_privileges(plan.drop_groups)?;
    // After the last change of ids, which would clear it. The supervisor's word below closes the
    // window in which the supervisor died before this line.
    // SAFETY: prctl with these options takes plain integers.
    check(Step::ParentDeath, unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as c_ulong, 0, 0, 0)
    })?;
    install_filter(&plan.filter)?;
    // SAFETY: one readable byte.
    unsafe { libc::write(status, [READY].as_ptr().cast(), 1) };
    wait_for_order(orders)
}

/// Blocks until the supervisor writes a byte; its death reads as end of file.
fn wait_for_order(fd: RawFd) -> Outcome {
    let mut byte = 0u8;
    loop {
        // SAFETY: one writable byte.
        match unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } {
            1 => return Ok(()),
            -1 if errno() == libc::EINTR => {}
            _ => return Err((Step::Wait, libc::ECANCELED)),
        }
    }
}

/// Puts `sources` on 0, 1, 2…, then the status and order pipes, and closes everything else.
fn place_descriptors(plan: &Plan) -> Result<(RawFd, RawFd), (Step, c_int)> {
    let step = Step::Descriptors;
    let count = plan.sources.len() as RawFd;
    let (status, orders) = (count, count + 1);
    // First out of the way of every target, so that no dup2 overwrites a source still needed.
    let above = orders + 1;
    // SAFETY: fcntl, dup3, close_range and sigprocmask on plain integers and valid pointers.
    unsafe {
        let lift = |fd| libc::fcntl(fd, libc::F_DUPFD, above);
        let (lifted_status, lifted_orders) = (lift(plan.status), lift(plan.orders));
        check(step, lifted_status.min(lifted_orders))?;
        for (target, source) in plan.sources.iter().enumerate() {
            // The supervisor lifted every source above the targets: nothing is overwritten.
            check(step, libc::dup2(*source, target as RawFd))?;
        }
        check(step, libc::dup3(lifted_status, status, libc::O_CLOEXEC))?;
        check(step, libc::dup3(lifted_orders, orders, libc::O_CLOEXEC))?;
        check(step, libc::close_range(above as u32, u32::MAX, 0))?;
        // The supervisor's runtime may block signals and ignore SIGPIPE.
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
        libc::signal(libc::SIGPIPE, libc::SIG_DFL);
        libc::setsid();
    }
    Ok((status, orders))
}

/// Mounts `root`, read-only, and goes there.
fn enter_root(root: &CStr) -> Outcome {
    let step = Step::Root;
    let (none, top) = (std::ptr::null::<c_char>(), c"/".as_ptr());
    let quiet = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_RDONLY;
    // SAFETY: every string is null-terminated; null source, type and data are allowed by mount(2).
    unsafe {
        let private = libc::MS_REC | libc::MS_PRIVATE;
        check(step, libc::mount(none, top, none, private, none.cast()))?;
        check(step, libc::mount(root.as_ptr(), root.as_ptr(), none, libc::MS_BIND, none.cast()))?;
        let again = libc::MS_REMOUNT | libc::MS_BIND | quiet;
        check(step, libc::mount(none, root.as_ptr(), none, again, none.cast()))?;
        check(step, libc::chdir(root.as_ptr()))
    }
}

/// Makes the current directory the only tree of this mount namespace.
fn leave_host() -> Outcome {
    let (step, here) = (Step::Root, c".".as_ptr());
    // SAFETY: null-terminated strings.
    unsafe {
        // pivot_root(".", ".") stacks the old root on the new one, where it can be detached
        // without a directory to put it in: pivot_root(2), NOTES.
        check(step, libc::syscall(libc::SYS_pivot_root, here, here) as c_int)?;
        check(step, libc::umount2(here, libc::MNT_DETACH))?;
        check(step, libc::chdir(c"/".as_ptr()))
    }
}

/// The process's own `/proc`: it shows nothing but this process, and it is how a program opens
/// an inherited descriptor by path (`/proc/self/fd/N`).
fn mount_proc() -> Outcome {
    let flags = libc::MS_NOSUID | libc::MS_NODEV | libc::MS_NOEXEC;
    // SAFETY: null-terminated strings.
    check(Step::Proc, unsafe {
        libc::mount(
            c"proc".as_ptr(),
            c"proc".as_ptr(),
            c"proc".as_ptr(),
            flags,
            c"subset=pid".as_ptr().cast(),
        )
    })
}

/// Leaves no capability in any set, no way to regain one, and an id that owns nothing.
fn drop_privileges(drop_groups: bool) -> Outcome {
    let step = Step::Privileges;
    // Raw calls where ids change: the C library's versions signal every thread it believes to have
    // and wait for them, for ever in a copy of a process whose other threads do not exist.
    // SAFETY: prctl and set*id take plain integers; setgroups reads no list of length 0.
    unsafe {
        // CAP_LAST_CAP is below 64; numbers that the kernel does not know fail with EINVAL.
        for capability in 0..64 as c_ulong {
            libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
        }
        let no_root = libc::SECBIT_NOROOT | libc::SECBIT_NOROOT_LOCKED;
        check(step, libc::prctl(libc::PR_SET_SECUREBITS, no_root as c_ulong, 0, 0, 0))?;
        if drop_groups {
            check(step, libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<u32>()) as c_int)?;
        }
        check(step, raw3(libc::SYS_setresgid, INNER_ID))?;
        // Leaving id 0 clears the effective, permitted and ambient sets: capabilities(7).
        check(step, raw3(libc::SYS_setresuid, INNER_ID))?;
        check(step, libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1 as c_ulong, 0, 0, 0))
    }
}

/// `setresuid` or `setresgid` with one id for all three.
///
/// # Safety
/// `call` must be one of the two.
unsafe fn raw3(call: libc::c_long, id: u32) -> c_int {
    // SAFETY: both calls take three integers.
    unsafe { libc::syscall(call, id, id, id) as c_int }
}

fn install_filter(filter: &[sock_filter]) -> Outcome {
    let program = sock_fprog { len: filter.len() as u16, filter: filter.as_ptr().cast_mut() };
    // SAFETY: `program` describes `filter`, which the kernel copies.
    check(Step::Seccomp, unsafe {
        libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER as c_ulong, &raw const program)
    })
}

fn check(step: Step, result: c_int) -> Outcome {
    if result < 0 { Err((step, errno())) } else { Ok(()) }
}

fn errno() -> c_int {
    // SAFETY: the pointer is valid for the life of the thread.
    unsafe { *libc::__errno_location() }
}
